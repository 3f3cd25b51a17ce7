// SPDX-License-Identifier: Apache-2.0
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sockalarm/address.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <optional>

#include "base/text.h"

// Two addresses are equal exactly when their texts are; both come from the same normal form.

namespace sockalarm {
namespace {

constexpr std::size_t kPathAt = offsetof(sockaddr_un, sun_path);
constexpr bool kAbstractNames = SOCKALARM_LINUX;  // elsewhere a path that starts with NUL means unnamed

template <class Sockaddr>
Sockaddr copy_as(const SocketAddress& address) noexcept {
  Sockaddr copy{};
  std::memcpy(&copy, address.data(), std::min(sizeof copy, static_cast<std::size_t>(address.size())));
  return copy;
}

// IPv4 is kept v4-mapped. The scope counts for link-local addresses only, as in the kernel: getpeername(2)
// gives 0 for all others.
struct InternetName {
  in6_addr address{};
  in_port_t port = 0;
  std::uint32_t scope = 0;

  bool is_v4() const noexcept {
    static constexpr std::array<unsigned char, 12> kMapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    return std::memcmp(&address, kMapped.data(), kMapped.size()) == 0;
  }
  bool is_link_local() const noexcept {
    return address.s6_addr[0] == 0xfe && (address.s6_addr[1] & 0xc0) == 0x80;
  }
  friend bool operator==(const InternetName& a, const InternetName& b) noexcept {
    return std::memcmp(&a.address, &b.address, sizeof a.address) == 0 && a.port == b.port &&
           a.scope == b.scope;
  }
};

std::optional<InternetName> internet_name(const SocketAddress& socket) noexcept {
  InternetName name;
  if (socket.family() == AF_INET && socket.size() >= offsetof(sockaddr_in, sin_addr) + sizeof(in_addr)) {
    const auto v4 = copy_as<sockaddr_in>(socket);
    name.address.s6_addr[10] = name.address.s6_addr[11] = 0xff;
    std::memcpy(&name.address.s6_addr[12], &v4.sin_addr, sizeof v4.sin_addr);
    name.port = v4.sin_port;
    return name;
  }
  // RFC 2133's form without the scope is taken, as the kernel does.
  if (socket.family() == AF_INET6 && socket.size() >= offsetof(sockaddr_in6, sin6_scope_id)) {
    const auto v6 = copy_as<sockaddr_in6>(socket);
    name.address = v6.sin6_addr;
    name.port = v6.sin6_port;
    if (name.is_link_local()) name.scope = v6.sin6_scope_id;
    return name;
  }
  return std::nullopt;
}

// Empty: unnamed. Starting with NUL: abstract, all bytes count (unix(7)). Else a path without its NUL.
std::optional<std::string_view> unix_name(const SocketAddress& socket) noexcept {
  if (socket.family() != AF_UNIX) return std::nullopt;
  if (socket.size() <= kPathAt) return std::string_view{};
  const std::size_t size =
      std::min(static_cast<std::size_t>(socket.size()) - kPathAt, sizeof(sockaddr_un::sun_path));
  const std::string_view bytes(reinterpret_cast<const char*>(socket.data()) + kPathAt, size);
  if (kAbstractNames && bytes.front() == '\0') return bytes;
  return bytes.substr(0, bytes.find('\0'));
}

Error bad(std::string_view text, const std::string& why) {
  return {Errc::invalid_text,
          "'" + std::string(text) + "' is not a socket address: " + why +
              "; expected one like 127.0.0.1:3306, [::1]:80, unix:/run/db.sock or unix:@abstract"};
}

bool all_digits(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

std::optional<std::uint32_t> parse_scope(const std::string& text) {
  auto index = all_digits(text) ? parse_number<std::uint32_t>(text) : ::if_nametoindex(text.c_str());
  if (index == 0U) index.reset();
  return index;
}

// inet_pton(3) ends at a NUL, so one inside would let anything follow it.
bool read_ip(int family, const std::string& text, void* address) {
  return text.find('\0') == std::string::npos && ::inet_pton(family, text.c_str(), address) == 1;
}

Result<SocketAddress> parse_internet(std::string_view text) {
  const bool v6 = text.starts_with('[');
  const auto colon = text.rfind(':');
  if (colon == std::string_view::npos) return fail(bad(text, "the port is missing"));
  const auto port = parse_number<std::uint16_t>(text.substr(colon + 1));
  if (!port) return fail(bad(text, "the port is not a number up to 65535"));
  std::string host(text.substr(0, colon));
  if (!v6) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(*port);
    if (host.find(':') != std::string::npos) return fail(bad(text, "IPv6 addresses stand in brackets"));
    if (!read_ip(AF_INET, host, &address.sin_addr))
      return fail(bad(text, "'" + host + "' is not an IPv4 address"));
    return SocketAddress(reinterpret_cast<const sockaddr*>(&address), sizeof address);
  }
  if (!host.ends_with(']')) return fail(bad(text, "']:' and a port must follow the IPv6 address"));
  host = host.substr(1, host.size() - 2);
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_port = htons(*port);
  const auto percent = host.find('%');
  if (!read_ip(AF_INET6, host.substr(0, percent), &address.sin6_addr))
    return fail(bad(text, "'" + host.substr(0, percent) + "' is not an IPv6 address"));
  if (percent != std::string::npos) {
    const auto scope = parse_scope(host.substr(percent + 1));
    if (!scope) return fail(bad(text, "'" + host.substr(percent + 1) + "' is not a network interface"));
    address.sin6_scope_id = *scope;
  }
  return SocketAddress(reinterpret_cast<const sockaddr*>(&address), sizeof address);
}

// What escaped() made; any byte may be written so.
std::optional<std::string> unescape(std::string_view text) {
  std::string bytes;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\') {
      bytes += text[i];
      continue;
    }
    unsigned char byte = 0;
    if (text.size() - i < 4 || text[i + 1] != 'x') return std::nullopt;
    const char* const end = text.data() + i + 4;
    const auto result = std::from_chars(end - 2, end, byte, 16);
    if (result.ec != std::errc{} || result.ptr != end) return std::nullopt;
    bytes += static_cast<char>(byte);
    i += 3;
  }
  return bytes;
}

Result<SocketAddress> parse_unix(std::string_view text, std::string_view name) {
  const bool abstract = name.starts_with('@');
  if (abstract && !kAbstractNames)
    return fail(
        Error(Errc::unsupported, "'" + std::string(text) + "': only Linux has abstract socket names"));
  auto bytes = unescape(name);
  if (!bytes) return fail(bad(text, "a backslash must be written \\x5c, and any byte may be written so"));
  if (abstract)
    bytes->front() = '\0';
  else if (bytes->find('\0') != std::string::npos)
    return fail(bad(text, "a path cannot contain NUL"));
  sockaddr_un address{};
  if (bytes->size() > sizeof address.sun_path)
    return fail(bad(text, "the name is longer than " + std::to_string(sizeof address.sun_path) + " bytes"));
  address.sun_family = AF_UNIX;
  std::copy(bytes->begin(), bytes->end(), address.sun_path);
  std::size_t size = kPathAt + bytes->size();
  if (!bytes->empty() && !abstract)
    size = std::min(size + 1, sizeof address);  // the path's NUL, where it fits
  return SocketAddress(reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(size));
}

std::string internet_text(const InternetName& name) {
  char text[INET6_ADDRSTRLEN] = "";
  const std::string port = ":" + std::to_string(ntohs(name.port));
  if (name.is_v4()) return ::inet_ntop(AF_INET, &name.address.s6_addr[12], text, sizeof text) + port;
  std::string host = ::inet_ntop(AF_INET6, &name.address, text, sizeof text);
  if (name.scope != 0) {
    // An interface may be called "7"; then the index is what parse() understands.
    char interface[IF_NAMESIZE] = "";
    const bool named = ::if_indextoname(name.scope, interface) != nullptr && !all_digits(interface);
    host += "%" + (named ? std::string(interface) : std::to_string(name.scope));
  }
  return "[" + host + "]" + port;
}

}  // namespace

SocketAddress::SocketAddress(const sockaddr* address, socklen_t length) noexcept {
  if (address == nullptr || length < offsetof(sockaddr, sa_family) + sizeof address->sa_family) return;
  length_ = std::min(length, static_cast<socklen_t>(sizeof storage_));
  std::memcpy(&storage_, address, length_);
}

Result<SocketAddress> SocketAddress::parse(std::string_view text) {
  constexpr std::string_view kUnix = "unix:";
  return text.starts_with(kUnix) ? parse_unix(text, text.substr(kUnix.size())) : parse_internet(text);
}

bool operator==(const SocketAddress& a, const SocketAddress& b) noexcept {
  const auto internet = internet_name(a);
  if (internet) return internet == internet_name(b);
  const auto local = unix_name(a);
  return local && local == unix_name(b);
}

std::string to_string(const SocketAddress& address) {
  if (const auto internet = internet_name(address)) return internet_text(*internet);
  const auto local = unix_name(address);
  if (!local) return "(address family " + std::to_string(address.family()) + ")";
  if (local->empty()) return "unix:";
  if (local->front() == '\0') return "unix:@" + escaped(local->substr(1));
  if (local->front() == '@') return "unix:\\x40" + escaped(local->substr(1));  // a path, not an abstract name
  return "unix:" + escaped(*local);
}

}  // namespace sockalarm
