// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "harness/alarms.h"
#include "harness/sockets.h"

// Ports of other programs, on 127.0.0.1.
namespace sockalarm::test {

// One that is free now.
inline std::string free_port() {
  const Listener probe = listen_on(AF_INET);
  return std::to_string(ntohs(reinterpret_cast<const sockaddr_in*>(&probe.address)->sin_port));
}

// As soon as somebody listens there.
inline UniqueFd connect_to_port(const std::string& port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(std::stoi(port)));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  UniqueFd client;
  EXPECT_TRUE(eventually([&] {
    client = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    return ::connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }));
  return client;
}

}  // namespace sockalarm::test
