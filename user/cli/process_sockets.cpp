// SPDX-License-Identifier: Apache-2.0
#include "cli/process_sockets.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "base/text.h"

namespace sockalarm::cli {
namespace {

bool has_port(const SocketAddress& address) noexcept {
  return address.family() == AF_INET || address.family() == AF_INET6;
}

// Of IPv4 and IPv6, where it stands at the same place.
in_port_t port_of(const SocketAddress& address) noexcept {
  sockaddr_in name{};
  std::memcpy(&name, address.data(), sizeof name);
  return ntohs(name.sin_port);
}

SocketAddress without_port(const SocketAddress& address) noexcept {
  sockaddr_storage name{};
  std::memcpy(&name, address.data(), address.size());
  std::memset(reinterpret_cast<char*>(&name) + offsetof(sockaddr_in, sin_port), 0, sizeof(in_port_t));
  return {reinterpret_cast<const sockaddr*>(&name), address.size()};
}

bool is_connection(const DescriptorInfo& info) { return info.kind == "tcp" && !info.listening && info.peer; }

bool matches(const DescriptorInfo& info, const std::optional<AddressPattern>& local,
             const std::optional<AddressPattern>& remote) {
  return (!local || (info.local && local->matches(*info.local))) &&
         (!remote || (info.peer && remote->matches(*info.peer)));
}

Error no_right(pid_t pid, int failed) {
  if (failed == ENOENT || failed == ESRCH)
    return Error::from_errno(ESRCH, "process " + std::to_string(pid) + " has ended");
  return Error::from_errno(failed, "the descriptors of process " + std::to_string(pid) +
                                       " cannot be copied; run sockalarm as its user or as root (where "
                                       "/proc/sys/kernel/yama/ptrace_scope is not 0, as root)");
}

Error nothing_found(pid_t pid, const std::vector<DescriptorInfo>& table) {
  std::string text = "process " + std::to_string(pid) + " has no TCP connection that matches";
  std::string found;
  for (const DescriptorInfo& info : table)
    if (is_connection(info)) found += "\n  " + to_string(info);
  text += found.empty()
              ? ", nor any other; sockalarm fds --sockets " + std::to_string(pid) + " shows what it has"
              : "; it has:" + found;
  return {Errc::invalid_text, text};
}

}  // namespace

Result<AddressPattern> AddressPattern::parse(std::string_view text) {
  AddressPattern pattern;
  if (text.starts_with(":")) {
    pattern.port_ = parse_number<in_port_t>(text.substr(1));
    if (pattern.port_) return pattern;
  } else if (const auto whole = SocketAddress::parse(text); whole && has_port(*whole)) {
    pattern.host_ = without_port(*whole);
    pattern.port_ = port_of(*whole);
    return pattern;
  }
  const std::string host(text);
  const bool bare6 = !text.starts_with("[") && text.find(':') != std::string_view::npos;
  if (const auto found = SocketAddress::parse((bare6 ? "[" + host + "]" : host) + ":1");
      found && has_port(*found)) {
    pattern.host_ = without_port(*found);
    return pattern;
  }
  return fail(Error(Errc::invalid_text, quoted(text) +
                                            " is no address; expected 10.0.0.1, 10.0.0.1:80, :80, ::1 or "
                                            "[::1]:80 (numbers, no names)"));
}

bool AddressPattern::matches(const SocketAddress& address) const noexcept {
  return has_port(address) && (!host_ || without_port(address) == *host_) &&
         (!port_ || port_of(address) == *port_);
}

Result<std::vector<TakenSocket>> take_sockets(pid_t pid, const std::optional<AddressPattern>& local,
                                              const std::optional<AddressPattern>& remote) {
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process) return fail(Error::from_errno(errno, "process " + std::to_string(pid)));
  const auto table = descriptor_table(pid);
  if (!table) return fail(no_right(pid, table.error().code().value()));
  std::vector<TakenSocket> taken;
  std::set<std::uint64_t> known;  // cookies: a dup is the same connection
  int refused = 0;
  for (const DescriptorInfo& listed : *table) {
    const bool unreadable = listed.kind == "socket";
    if (!unreadable && !(is_connection(listed) && matches(listed, local, remote))) continue;
    UniqueFd copy(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), listed.fd, 0)));
    if (!copy && (errno == EMFILE || errno == ENFILE))
      return fail(Error::from_errno(
          errno, "process " + std::to_string(pid) +
                     " has more connections than sockalarm "
                     "may have descriptors (ulimit -Hn); choose some by --local or --remote"));
    if (!copy && errno != EBADF && errno != ESRCH) refused = errno;
    if (!copy) continue;
    auto info = describe_descriptor(copy.get());  // the number may be another socket's by now
    if (!info || !is_connection(*info) || !matches(*info, local, remote)) continue;
    if (!known.insert(info->cookie).second) continue;
    info->fd = listed.fd;
    taken.push_back({std::move(*info), std::move(copy)});
  }
  if (!taken.empty()) return taken;
  if (refused != 0) return fail(no_right(pid, refused));
  return fail(nothing_found(pid, *table));
}

}  // namespace sockalarm::cli
