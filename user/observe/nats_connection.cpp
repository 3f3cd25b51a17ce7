// SPDX-License-Identifier: Apache-2.0
#include "observe/nats_connection.h"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <vector>

#include "base/text.h"

namespace sockalarm::observe {
namespace {
constexpr std::string_view kScheme = "://";
}

std::string nats_token(std::string_view name) {
  std::string result(name.empty() ? "none" : name);
  for (char& c : result)
    if (c == '.' || c == '*' || c == '>' || static_cast<unsigned char>(c) <= ' ' ||
        static_cast<unsigned char>(c) >= 0x7f)
      c = '_';
  return result;
}

namespace {

// Where the next URL begins that is not amid another: at the beginning, or after a comma, a blank or a quote.
std::size_t next_url(std::string_view text, std::size_t from) {
  const auto is_letter = [](char c) { return (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; };
  for (auto at = text.find(kScheme, from); at != std::string_view::npos; at = text.find(kScheme, at + 1)) {
    std::size_t begin = at;
    while (begin > from && is_letter(text[begin - 1])) --begin;
    if (begin == 0 || std::string_view(", \t\"'(").find(text[begin - 1]) != std::string_view::npos)
      return begin;
  }
  return text.size();
}

std::vector<std::string> servers_of(std::string_view list) {
  std::vector<std::string> each;
  while (!list.empty()) {
    const auto server = list.substr(0, list.find(','));
    list.remove_prefix(std::min(list.size(), server.size() + 1));
    if (!trim(server).empty()) each.emplace_back(trim(server));
  }
  return each;
}

// nats://LOGIN@HOST:PORT, of which scheme, login and port may be left out. What is wrong with it, or nothing;
// without a part of it, since a comma in a password may have parted what was given.
std::string wrong_with(std::string_view server) {
  if (const auto at = server.find(kScheme); at != std::string_view::npos) {
    if (server.substr(0, at) != "nats" && server.substr(0, at) != "tls")
      return "begins neither with nats:// nor with tls://";
    server.remove_prefix(at + kScheme.size());
  }
  if (server.find_first_of(" \t") != std::string_view::npos) return "has a blank in it";
  server.remove_prefix(server.rfind('@') + 1);  // or 0
  if (server.ends_with('/')) server.remove_suffix(1);
  auto host = server.substr(0, server.rfind(':'));
  if (server.starts_with('[')) {
    const auto end = server.find(']');
    if (end == std::string_view::npos) return "has no ] after its IPv6 address";
    host = server.substr(0, end + 1);
  } else if (host.find(':') != std::string_view::npos) {
    return "has an IPv6 address without brackets, or a : too many";
  }
  if (host.empty() || host == "[]") return "has no host";
  const auto port = server.substr(host.size());
  if (port.empty()) return "";
  const auto number = parse_number<std::uint16_t>(port.substr(1));
  return port.front() == ':' && number && *number != 0 ? "" : "has no port from 1 to 65535 at its end";
}

Result<void> look_at(const std::vector<std::string>& servers, const std::string& given) {
  std::string wrong = servers.empty() ? "there is no server in it" : "";
  for (std::size_t i = 0; i < servers.size() && wrong.empty(); ++i)
    if (wrong = wrong_with(servers[i]); !wrong.empty())
      wrong.insert(0, "number " + std::to_string(i + 1) + " ");
  if (wrong.empty()) return {};
  return fail(
      Error(Errc::invalid_options, "NATS servers " + shown_servers(given) + ": " + wrong +
                                       "; expected one or more, separated by commas, as nats://host:4222, "
                                       "tls://user:password@host:4222 or nats://[::1]:4222"));
}

// Only that it has what the library looks for, since that says no more than that something failed.
Result<void> look_into(const std::string& file, const char* word, const std::string& what,
                       const std::string& expected) {
  std::ifstream stream(file);
  const auto error = [&](std::error_code code, const std::string& why) {
    return fail(Error(code, "the file of " + what + ", " + sockalarm::quoted(file) + ": " + why +
                                "; expected is " + expected + ", which the user that this runs as may read"));
  };
  if (!stream) {
    const std::error_code code(errno, std::generic_category());
    return error(code, code.message());
  }
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  if (text.find(word) != std::string::npos) return {};
  return error(make_error_code(Errc::invalid_options),
               "there is no line " + sockalarm::quoted(word) + " in it");
}

}  // namespace

std::string without_logins(std::string_view text) {
  std::string shown;
  for (std::size_t from = 0; from < text.size();) {
    const std::size_t scheme = text.find(kScheme, from);
    const bool is_url = next_url(text, from) == from && scheme != std::string_view::npos;
    const std::size_t begin = is_url ? scheme + kScheme.size() : from;
    const std::size_t end = next_url(text, begin);
    std::string_view piece = text.substr(begin, end - begin);
    shown += text.substr(from, begin - from);
    if (const auto at = piece.rfind('@'); at != std::string_view::npos) {
      // Without a scheme there may be words before it.
      if (!is_url)
        if (const auto word = piece.substr(0, at).find_last_of(" \t\"'"); word != std::string_view::npos)
          shown += piece.substr(0, word + 1);
      shown += "***";
      piece.remove_prefix(at);
    }
    shown += piece;
    from = end;
  }
  return shown;
}

std::string shown_servers(std::string_view list) { return sockalarm::quoted(escaped(without_logins(list))); }

std::string make_stream(const std::string& stream) {
  return "nats stream add " + stream +
         " --subjects 'sockalarm.v1.>' --storage file --replicas 3 --dupe-window 24h --max-age 7d --defaults";
}

Error nats_error(natsStatus status, const std::string& what, bool any) {
  natsStatus of_thread = NATS_OK;
  const char* const last = nats_GetLastError(&of_thread);
  std::string_view detail = last == nullptr || (of_thread != status && !any) ? "" : last;
  if (const auto text = detail.find("): "); detail.starts_with('(') && text != std::string_view::npos)
    detail.remove_prefix(text + 3);  // where in the library
  if (detail == natsStatus_GetText(status)) detail = {};
  return Error(std::make_error_code(std::errc::not_connected),
               what + ": " + natsStatus_GetText(status) +
                   (detail.empty() ? "" : " (" + escaped(without_logins(detail)) + ")"));
}

Result<NatsOwned<natsOptions>> nats_options(const NatsServers& servers, std::chrono::milliseconds least) {
  const std::vector<std::string> each = servers_of(servers.servers);
  if (auto good = look_at(each, servers.servers); !good) return fail(good.error());
  if (!servers.credentials.empty())
    if (auto good = look_into(servers.credentials, "-----BEGIN NATS USER JWT-----", "credentials for NATS",
                              "what `nsc generate creds` prints");
        !good)
      return fail(good.error());
  if (!servers.authorities.empty())
    if (auto good = look_into(servers.authorities, "-----BEGIN CERTIFICATE-----", "authorities for NATS",
                              "one with certificates in PEM form");
        !good)
      return fail(good.error());
  std::vector<const char*> urls;
  urls.reserve(each.size());
  for (const auto& server : each) urls.push_back(server.c_str());

  natsOptions* made = nullptr;
  natsStatus status = natsOptions_Create(&made);
  NatsOwned<natsOptions> options(made);
  const auto also = [&](auto set, auto... arguments) {
    if (status == NATS_OK) status = set(made, arguments...);
  };
  also(natsOptions_SetServers, urls.data(), static_cast<int>(urls.size()));
  also(natsOptions_SetName, servers.name.c_str());
  also(natsOptions_SetTimeout, 2000);
  also(natsOptions_SetWriteDeadline, kNatsWriteDeadline.count());
  also(natsOptions_SetMaxReconnect, -1);
  also(natsOptions_SetReconnectWait, least.count());
  also(natsOptions_SetReconnectJitter, least.count() * 4, least.count() * 8);
  also(natsOptions_SetPingInterval, 5000);
  also(natsOptions_SetMaxPingsOut, 2);
  if (!servers.credentials.empty())
    also(natsOptions_SetUserCredentialsFromFiles, servers.credentials.c_str(), nullptr);
  // Else the library, told tls://, is content with a server that does not ask for TLS (libnats 3.4).
  if (std::any_of(each.begin(), each.end(), [](const auto& server) { return server.starts_with("tls://"); }))
    also(natsOptions_SetSecure, true);
  std::string what = "options for the NATS servers " + shown_servers(servers.servers);
  if (status == NATS_OK && !servers.authorities.empty()) {
    what = "the file of authorities for NATS, " + sockalarm::quoted(servers.authorities);
    also(natsOptions_LoadCATrustedCertificates, servers.authorities.c_str());
  }
  if (status != NATS_OK) return fail(nats_error(status, what));
  return options;
}

}  // namespace sockalarm::observe
