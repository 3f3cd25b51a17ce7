// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fstream>
#include <random>
#include <string>

#include "harness/alarms.h"
#include "harness/sockets.h"

// Ports of other programs, on 127.0.0.1.
namespace sockalarm::test {

// One that is free now, and that no connect() takes meanwhile: from below those that are for connections
// (ip(7), ip_local_port_range).
inline std::string free_port() {
  static std::mt19937 random{std::random_device{}()};
  std::ifstream range("/proc/sys/net/ipv4/ip_local_port_range");
  int end = 32768;
  range >> end;
  constexpr int kBegin = 10'000;
  for (int attempt = 0; attempt < 1000 && end > kBegin; ++attempt) {
    const int port = std::uniform_int_distribution<>(kBegin, end - 1)(random);
    const UniqueFd probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::bind(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
      return std::to_string(port);
  }
  ADD_FAILURE() << "no port is free between " << kBegin << " and " << end;
  return "0";
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
