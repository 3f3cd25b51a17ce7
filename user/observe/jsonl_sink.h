// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/unique_fd.h>

#include <cstdint>
#include <filesystem>
#include <memory>

#include "observe/sink.h"

namespace sockalarm::observe {

// A JSON object per line to a descriptor, as standard output. Each line by one write(2), so whoever reads a
// pipe sees whole ones up to PIPE_BUF.
class DescriptorSink final : public Sink {
 public:
  explicit DescriptorSink(UniqueFd fd) : fd_(std::move(fd)) {}
  Result<void> write(const Record& record) override;
  Result<void> flush() override { return {}; }

 private:
  UniqueFd fd_;
  bool amid_line_ = false;  // the last write stopped there
};

// The same to a file that becomes FILE.1, FILE.1 FILE.2 and so on before it grows beyond `max_bytes`; the one
// beyond `keep` goes. A line is never parted.
class RotatingFileSink final : public Sink {
 public:
  struct Options {
    std::filesystem::path file;
    std::uint64_t max_bytes = 64ULL << 20;
    unsigned keep = 4;  // beside the current one
  };
  static Result<std::unique_ptr<RotatingFileSink>> open(Options options);

  Result<void> write(const Record& record) override;
  Result<void> flush() override { return {}; }

 private:
  explicit RotatingFileSink(Options options) : options_(std::move(options)) {}
  Result<void> reopen();
  Result<void> rotate();

  Options options_;
  UniqueFd fd_;
  std::uint64_t size_ = 0;
};

// The journal of systemd: MESSAGE is the object, SOCKALARM_EVENT_ID and SOCKALARM_CAUSE are fields to search
// by.
class JournalSink final : public Sink {
 public:
  Result<void> write(const Record& record) override;
  Result<void> flush() override { return {}; }
};

}  // namespace sockalarm::observe
