// SPDX-License-Identifier: Apache-2.0
#include "observe/nats_connection.h"

#include <algorithm>
#include <vector>

#include "base/text.h"

namespace sockalarm::observe {

std::string nats_token(std::string_view name) {
  std::string result(name.empty() ? "none" : name);
  for (char& c : result)
    if (c == '.' || c == '*' || c == '>' || static_cast<unsigned char>(c) <= ' ' ||
        static_cast<unsigned char>(c) >= 0x7f)
      c = '_';
  return result;
}

Error nats_error(natsStatus status, const std::string& what) {
  return Error(std::make_error_code(std::errc::not_connected), what + ": " + natsStatus_GetText(status));
}

Result<NatsOwned<natsOptions>> nats_options(const NatsServers& servers, std::chrono::milliseconds least) {
  std::vector<std::string> each;
  for (std::string_view left = servers.servers; !left.empty();) {
    const auto server = left.substr(0, left.find(','));
    left.remove_prefix(std::min(left.size(), server.size() + 1));
    if (!trim(server).empty()) each.emplace_back(trim(server));
  }
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
  if (!servers.authorities.empty()) also(natsOptions_LoadCATrustedCertificates, servers.authorities.c_str());
  if (status != NATS_OK)
    return fail(nats_error(status, "options for the NATS servers " + sockalarm::quoted(servers.servers)));
  return options;
}

}  // namespace sockalarm::observe
