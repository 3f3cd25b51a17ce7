// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>

#include <cstdio>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>

#include "harness/sockets.h"

namespace sockalarm::test {

// A network of the test's own, with a loopback interface on which packets can be dropped and rejected. It has
// no name and no mount, so it goes with the last descriptor of it.
class NetworkNamespace {
 public:
  NetworkNamespace() {
    std::string failed;
    std::thread([&] {  // unshare() moves the thread for good
      try {
        require(::unshare(CLONE_NEWNET) == 0, "unshare(CLONE_NEWNET)");
        handle_ = UniqueFd(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
        require(bool(handle_), "/proc/thread-self/ns/net");
        bring_up_loopback();
      } catch (const std::exception& error) {
        failed = error.what();
      }
    })
        .join();
    if (!failed.empty()) throw std::runtime_error(failed);
  }

  // Runs `function` on a thread inside. The sockets it makes stay there.
  void run(const std::function<void()>& function) const {
    std::string failed;
    std::thread([&] {
      try {
        require(::setns(handle_.get(), CLONE_NEWNET) == 0, "setns");
        function();
      } catch (const std::exception& error) {
        failed = error.what();
      }
    }).join();
    if (!failed.empty()) throw std::runtime_error(failed);
  }

  Connection connect(int family = AF_INET) const {
    Connection connection;
    run([&] { connection = tcp_pair(family); });
    return connection;
  }

  // Where `ip ... netns` finds it, as long as this object lives.
  std::string path() const {
    return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(handle_.get());
  }

  // A shell command inside; its output is part of the exception if it fails.
  void shell(const std::string& command) const {
    run([&] {
      std::FILE* pipe = ::popen(("PATH=$PATH:/usr/sbin:/sbin; " + command + " 2>&1").c_str(), "re");
      require(pipe != nullptr, "popen");
      std::string output;
      for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) output += static_cast<char>(c);
      if (::pclose(pipe) != 0) throw std::runtime_error("'" + command + "' failed: " + output);
    });
  }

  // What happens to packets for that port, as an nftables verdict: "drop", "reject with tcp reset"...
  void on_packets_to(std::uint16_t port, const std::string& verdict) const {
    shell(
        "nft 'add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t "
        "in tcp dport " +
        std::to_string(port) + " " + verdict + "'");
  }
  void flush() const { shell("nft 'flush ruleset'"); }

  void sysctl(const std::string& path, int value) const {
    run([&] {
      std::ofstream file("/proc/sys/" + path);
      file << value << std::flush;
      if (!file) throw std::runtime_error("cannot write /proc/sys/" + path);
    });
  }

 private:
  static void bring_up_loopback() {
    const UniqueFd any(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq request{};
    std::snprintf(request.ifr_name, sizeof request.ifr_name, "lo");
    require(::ioctl(any.get(), SIOCGIFFLAGS, &request) == 0, "SIOCGIFFLAGS");
    request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP);
    require(::ioctl(any.get(), SIOCSIFFLAGS, &request) == 0, "SIOCSIFFLAGS");
  }

  UniqueFd handle_;
};

inline std::uint16_t local_port(int fd) {
  sockaddr_storage name{};
  socklen_t length = sizeof name;
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length);
  // The port stands at the same place in both families.
  return ntohs(reinterpret_cast<const sockaddr_in*>(&name)->sin_port);
}

}  // namespace sockalarm::test
