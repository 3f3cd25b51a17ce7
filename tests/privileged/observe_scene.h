// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <poll.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "harness/alarms.h"
#include "harness/network_namespace.h"
#include "observe/observer.h"

// An observer that sees this test's connections alone: they have addresses that nobody else uses.
namespace sockalarm::test {

namespace observe = sockalarm::observe;
using observe::Cause;
using observe::ConnectionEnd;
using observe::Direction;
using observe::Filter;
using ObservedVerdict = observe::Verdict;  // not that of an action

// Of a loopback network of this process.
inline std::string own_address(int host) {
  const unsigned pid = static_cast<unsigned>(::getpid());
  return "127." + std::to_string(64 + (pid >> 8) % 128) + "." + std::to_string(pid & 255) + "." +
         std::to_string(host);
}

inline std::string own_ipv6_address() {
  const unsigned pid = static_cast<unsigned>(::getpid());
  return "fd77::" + std::to_string(pid / 1000) + ":" + std::to_string(pid % 1000);
}

inline Filter own_connections() {
  Filter filter;
  filter.prefixes.push_back(observe::parse_prefix(own_address(0) + "/24").value());
  filter.prefixes.push_back(observe::parse_prefix(own_ipv6_address()).value());
  return filter;
}

// Like tcp_pair() with those addresses: `ours` was accepted, `peer` connected.
inline UniqueFd connect_from(const Listener& listener, int host) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  ::inet_pton(AF_INET, own_address(host).c_str(), &address.sin_addr);
  require(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
  require(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&listener.address), listener.length) == 0,
          "connect");
  return fd;
}

class ObserverScene {
 public:
  explicit ObserverScene(observe::ObserverOptions options = {}, const Filter& filter = own_connections()) {
    options.filter = filter;
    options.latency = std::chrono::milliseconds(1);
    auto opened = observe::Observer::open(options);
    require(opened.has_value(), opened ? "" : opened.error().message().c_str());
    observer_ = std::move(*opened);
  }

  observe::Observer& observer() { return *observer_; }
  const NetworkNamespace& net() const { return net_; }

  Listener listen() const {
    Listener listener;
    net_.run([&] { listener = listen_on(AF_INET, 64, 0, own_address(1).c_str()); });
    return listener;
  }
  Connection connect(int host = 2) const {
    Connection connection;
    net_.run([&] {
      const Listener listener = listen_on(AF_INET, 64, 0, own_address(1).c_str());
      UniqueFd peer = connect_from(listener, host);
      connection.ours = accept_from(listener);
      connection.peer = std::move(peer);
    });
    return connection;
  }

  // All ends so far, of which there must be so many: a connection of which it is known when it ended shows
  // that nothing more was to come.
  std::vector<ConnectionEnd> ends(std::size_t expected) {
    read_until(expected);
    std::vector<ConnectionEnd> all = all_ends();
    EXPECT_EQ(all.size(), expected);
    if (all.size() != expected)
      for (const ConnectionEnd& end : all)
        ADD_FAILURE() << "an end with cause " << int(end.cause) << ", direction " << int(end.direction)
                      << ", port " << end.local.port << ", peer's " << end.peer.port << ", error "
                      << end.error;
    all.resize(expected);
    return all;
  }
  // However many; the sockets are closed already.
  std::vector<ConnectionEnd> all_ends() {
    Connection marker = connect(99);
    const std::uint16_t port = local_port(marker.peer.get());
    const auto is_marker = [](const ConnectionEnd& end) {  // of this observer or another
      return end.local.address[3] == 99 || end.peer.address[3] == 99;
    };
    const auto is_last = [&](const ConnectionEnd& end) {
      return is_marker(end) && (end.local.port == port || end.peer.port == port);
    };
    marker.peer.reset();
    await_readable(marker.ours.get(), POLLRDHUP);
    marker.ours.reset();
    wait([&] { return std::count_if(ends_.begin(), ends_.end(), is_last) == 2; });
    std::vector<ConnectionEnd> all;
    std::copy_if(ends_.begin(), ends_.end(), std::back_inserter(all),
                 [&](const ConnectionEnd& end) { return !is_marker(end); });
    ends_.clear();
    return all;
  }
  // The one of the side that accepted, of one connection that ended.
  ConnectionEnd server_end() { return one_of(ends(2), Direction::inbound); }

  static ConnectionEnd one_of(const std::vector<ConnectionEnd>& ends, Direction direction) {
    const auto is = [&](const ConnectionEnd& end) { return end.direction == direction; };
    EXPECT_EQ(std::count_if(ends.begin(), ends.end(), is), 1);
    const auto found = std::find_if(ends.begin(), ends.end(), is);
    return found != ends.end() ? *found : ConnectionEnd{};
  }

  const std::vector<ConnectionEnd>& so_far() const { return ends_; }
  std::size_t read() {
    return observer_->read([this](const ConnectionEnd& end) { ends_.push_back(end); }).value();
  }

 private:
  void read_until(std::size_t count) {
    wait([&] { return ends_.size() >= count; });
  }
  template <class Condition>
  void wait(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (read(), !condition()) {
      if (std::chrono::steady_clock::now() > end) {
        ADD_FAILURE() << "only " << ends_.size() << " ends came";
        return;
      }
      pollfd entry{observer_->fd(), POLLIN, 0};
      ::poll(&entry, 1, 1000);
    }
  }

  std::unique_ptr<observe::Observer> observer_;
  NetworkNamespace net_;
  std::vector<ConnectionEnd> ends_;
};

inline std::string receive(int fd, std::size_t bytes) {
  std::string text(bytes, '\0');
  require(::recv(fd, text.data(), bytes, MSG_WAITALL) == static_cast<ssize_t>(bytes), "recv");
  return text;
}

// Until the peer's system has acknowledged all that was sent; of a listener: until so many connections wait
// (tcp(7), TCP_INFO).
inline void await_unacknowledged(int fd, std::uint32_t count) {
  EXPECT_TRUE(eventually([&] {
    tcp_info info{};
    socklen_t length = sizeof info;
    ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length);
    return info.tcpi_unacked == count;
  }));
}

// A request that was read and answered, the answer read and acknowledged.
inline void exchange(const Connection& connection) {
  send_text(connection.peer.get(), "request");
  receive(connection.ours.get(), 7);
  send_text(connection.ours.get(), "answer");
  receive(connection.peer.get(), 6);
  await_unacknowledged(connection.ours.get(), 0);
}

// Until a FIN, reset or error has arrived there.
inline void await_departure(int fd) { await_readable(fd, POLLRDHUP); }

}  // namespace sockalarm::test
