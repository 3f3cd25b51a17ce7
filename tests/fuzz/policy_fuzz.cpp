// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sockalarm/policy.h>
#include <sockalarm/unique_fd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "daemon/config.h"
#include "fuzz/checks.h"

// The two kinds of TOML files that users write: policies of requests and the daemon's configuration. Checked:
// what is accepted keeps the promises of its type, an error says where it is, and nothing is thrown.
namespace {

using sockalarm::UniqueFd;
using sockalarm::fuzz::lowest_free;
using sockalarm::fuzz::require;

void policy(std::string_view toml) {
  const auto parsed = sockalarm::parse_policy(toml, "the file");
  if (!parsed) return require(parsed.error().message().find("the file") != std::string::npos);
  require(bool(sockalarm::check_policy(*parsed)));
  require(parsed->limit.count() >= 0 && parsed->call_limit.count() >= 0);
  require(!parsed->forward || parsed->call_limit.count() > 0);
}

void config(std::string_view toml) {
  static const UniqueFd kFile(::memfd_create("config", MFD_CLOEXEC));
  static const std::string kPath = "/proc/self/fd/" + std::to_string(kFile.get());
  require(::ftruncate(kFile.get(), 0) == 0);
  require(::pwrite(kFile.get(), toml.data(), toml.size(), 0) == static_cast<ssize_t>(toml.size()));
  const auto read = sockalarm::daemon::read_config(kPath);
  if (!read) return require(read.error().message().find(kPath) != std::string::npos);
  require(!read->socket.empty() && !read->bpffs.empty());
  require(read->ring_bytes >= 4096 && read->ring_bytes <= 1U << 30);
  const auto& observe = read->observe;
  require(observe.services > 0 && observe.queue > 0 && observe.filter.one_in > 0 && observe.nats.window > 0);
  for (const auto& range : observe.filter.ports) require(range.first <= range.last);
  for (const auto& prefix : observe.filter.prefixes) require(prefix.length <= 128);
  require(read->socket_mode <= 0777 && read->grace.count() > 0 && read->clients > 0 && read->slots > 1);
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 0) {
    const int before = lowest_free();
    policy(text);
    require(lowest_free() == before);
  } else {
    config(text);
  }
  return 0;
}
