// SPDX-License-Identifier: Apache-2.0
#include "observe/record.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

namespace sockalarm::observe {
namespace {

Result<std::string> id_in(const char* file) {
  std::ifstream in(file);
  std::string id;
  if (!(in >> id))
    return fail(Error::from_errno(errno != 0 ? errno : EIO, std::string(file) + ", which should hold an id"));
  std::erase(id, '-');
  return id;
}

// An IPv4 peer of an IPv6 socket is what it is.
struct Shown {
  bool ipv4;
  std::string address;
};
Shown shown(std::uint8_t family, const Endpoint& endpoint) {
  constexpr std::size_t kPrefix = 12;
  in6_addr six{};
  std::memcpy(&six, endpoint.address.data(), sizeof six);
  const bool mapped = family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&six);
  const bool ipv4 = family == AF_INET || mapped;
  char text[INET6_ADDRSTRLEN] = "";
  ::inet_ntop(ipv4 ? AF_INET : AF_INET6, endpoint.address.data() + (mapped ? kPrefix : 0), text, sizeof text);
  return {ipv4, text};
}

void add(nlohmann::ordered_json& json, const char* name, const std::string& value) {
  if (!value.empty()) json[name] = value;
}

}  // namespace

Result<Host> Host::this_one(std::string region) {
  auto machine = id_in("/etc/machine-id");
  if (!machine) return fail(machine.error());
  auto boot = id_in("/proc/sys/kernel/random/boot_id");
  if (!boot) return fail(boot.error());
  char name[HOST_NAME_MAX + 1] = "";
  if (::gethostname(name, sizeof name - 1) != 0) return fail(Error::from_errno(errno, "gethostname()"));
  return Host{std::move(*machine), std::move(*boot), name, std::move(region)};
}

std::string_view text(Cause cause) noexcept {
  switch (cause) {
    case Cause::peer_fin:
      return "peer_fin";
    case Cause::peer_reset:
      return "peer_reset";
    case Cause::timeout:
      return "timeout";
    case Cause::unreachable:
      return "unreachable";
    case Cause::refused:
      return "refused";
    case Cause::destroyed:
      return "destroyed";
    case Cause::local:
      break;
  }
  return "local";
}

std::string_view text(Verdict verdict) noexcept {
  switch (verdict) {
    case Verdict::idle_close:
      return "idle_close";
    case Verdict::abandoned:
      return "abandoned";
    case Verdict::half_close_served:
      return "half_close_served";
    case Verdict::local:
      return "local";
    case Verdict::none:
      break;
  }
  return "none";
}

std::string_view text(Direction direction) noexcept {
  switch (direction) {
    case Direction::inbound:
      return "inbound";
    case Direction::outbound:
      return "outbound";
    case Direction::unknown:
      break;
  }
  return "unknown";
}

std::string timestamp(std::chrono::system_clock::time_point at) {
  using namespace std::chrono;
  const auto whole = floor<seconds>(at);
  const std::time_t seconds_since_epoch = system_clock::to_time_t(whole);
  std::tm parts{};
  ::gmtime_r(&seconds_since_epoch, &parts);
  char date[32], text[64];
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text, sizeof text, "%s.%09lldZ", date,
                static_cast<long long>(duration_cast<nanoseconds>(at - whole).count()));
  return text;
}

std::string event_id(const Host& host, const ConnectionEnd& end) {
  return host.machine + "-" + host.boot + "-" + std::to_string(end.sequence);
}

std::string to_json(const Host& host, const ConnectionEnd& end) {
  const Shown local = shown(end.family, end.local), peer = shown(end.family, end.peer);
  nlohmann::ordered_json json;
  json["schema"] = "sockalarm.connection_ended.v1";
  json["event.id"] = event_id(host, end);
  json["timestamp"] = timestamp(end.ended_at);
  json["host.id"] = host.machine;
  add(json, "host.name", host.name);
  add(json, "cloud.region", host.region);
  json["network.transport"] = "tcp";
  json["network.type"] = peer.ipv4 ? "ipv4" : "ipv6";
  json["network.local.address"] = local.address;
  json["network.local.port"] = end.local.port;
  json["network.peer.address"] = peer.address;
  json["network.peer.port"] = end.peer.port;
  if (end.pid != 0) json["process.pid"] = end.pid;
  add(json, "process.executable.name", end.command);
  add(json, "service.name", end.service);
  add(json, "container.id", end.container);
  add(json, "k8s.pod.uid", end.pod);
  json["sockalarm.cause"] = text(end.cause);
  json["sockalarm.verdict"] = text(end.verdict);
  json["sockalarm.direction"] = text(end.direction);
  if (end.age) json["sockalarm.age"] = in_seconds(*end.age);
  if (end.age_at_departure) json["sockalarm.age_at_departure"] = in_seconds(*end.age_at_departure);
  json["sockalarm.orphaned"] = in_seconds(end.orphaned);
  json["sockalarm.bytes_received"] = end.bytes_received;
  json["sockalarm.bytes_sent"] = end.bytes_sent;
  json["sockalarm.unread"] = end.unread;
  json["sockalarm.unsent"] = end.unsent;
  if (end.error != 0) {
    const char* name = ::strerrorname_np(end.error);
    json["error.type"] = name != nullptr ? name : std::to_string(end.error);
  }
  // As text: many readers of JSON keep 53 bits of a number.
  json["sockalarm.socket.cookie"] = std::to_string(end.cookie);
  if (end.cgroup != 0) json["sockalarm.cgroup.id"] = std::to_string(end.cgroup);
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace sockalarm::observe
