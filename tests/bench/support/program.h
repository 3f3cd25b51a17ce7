// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <fstream>
#include <string>

#include "bench/support/basics.h"

namespace sockalarm::bench {

struct Settings {
  bool quick = false;  // shows that everything runs; the figures say little
  std::string only;    // one contender, where the program can do so; empty: all

  template <class T>
  T pick(T full, T short_run) const {
    return quick ? short_run : full;
  }
};

inline void progress(const std::string& text) { std::fprintf(stderr, "    %s\n", text.c_str()); }

// As many descriptors as this process may have. Returns that number.
inline std::size_t raise_descriptor_limit() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur;
}

// The main() of every measuring program: one run, one JSON object {"settings", "rows"}.
template <class Measure>
int bench_main(int argc, char** argv, const char* what, Measure measure) {
  CLI::App app{what};
  Settings settings;
  std::string out;
  app.add_flag("--quick", settings.quick, "Few samples: only to see that it runs");
  app.add_option(
      "--only", settings.only,
      "Only this contender (bench_callback, for a trace of it), or neighbour or many_watches (bench_daemon)");
  app.add_option("--out", out, "Write the JSON to this file instead of standard output");
  CLI11_PARSE(app, argc, argv);
  try {
    raise_descriptor_limit();
    const Json result = measure(settings);
    if (out.empty()) {
      std::printf("%s\n", result.dump(2).c_str());
    } else {
      std::ofstream file(out);
      file << result.dump(2) << '\n';
      if (!file.flush()) throw std::runtime_error("cannot write " + out);
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}

}  // namespace sockalarm::bench
