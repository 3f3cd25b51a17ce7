// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <netinet/in.h>
#include <sockalarm/diagnostics.h>
#include <sockalarm/unique_fd.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sockalarm::cli {

// Which addresses are meant: "10.0.0.1:80", "10.0.0.1", ":80", "[::1]:80", "::1". A value.
class AddressPattern {
 public:
  static Result<AddressPattern> parse(std::string_view text);
  bool matches(const SocketAddress& address) const noexcept;

 private:
  std::optional<SocketAddress> host_;  // with port 0
  std::optional<in_port_t> port_;
};

// A connection of another process, and a copy of its descriptor. The copy keeps the connection open after its
// owner closed it, so it must not be kept.
struct TakenSocket {
  DescriptorInfo info;  // `fd` is the owner's number
  UniqueFd copy;
};

// The TCP connections of a process whose ends match, each once, by pidfd_getfd(2) (Linux 5.6). Errors say
// what was looked for and what to do: no such process, no right to its descriptors, nothing that matches.
Result<std::vector<TakenSocket>> take_sockets(pid_t pid, const std::optional<AddressPattern>& local,
                                              const std::optional<AddressPattern>& remote);

}  // namespace sockalarm::cli
