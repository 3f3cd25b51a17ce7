// SPDX-License-Identifier: Apache-2.0
// A service that does not look whether its client is still there. slow_service PORT; on stdout "begin ID"
// when it has read GET /work?id=ID&ms=N..., which takes it so long, and "end ID SOONEST LATEST CLOSES CLOSED"
// when it has closed, CLOCK_MONOTONIC in ns. The client left after SOONEST and before LATEST, 0: not known.
// With "&until=left" the work begins when the client has left, however long that takes. With "&gate=FILE" it
// begins when there is such a file, and goes on for as long again after it has heard that the client is gone.
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "harness/sockets.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr unsigned kUserTimeoutMs = 600;
constexpr unsigned kClockMs = 10;  // a tick of the kernel's clock, by which that is measured

long long now() { return std::chrono::nanoseconds(Clock::now().time_since_epoch()).count(); }

void tell(const std::string& line) {
  const std::string whole = line + "\n";
  if (::write(STDOUT_FILENO, whole.data(), whole.size()) < 0) std::abort();
}

std::string parameter(const std::string& request, const std::string& name) {
  const auto at = request.find(name + "=");
  if (at == std::string::npos) return "";
  const auto begin = at + name.size() + 1;
  return request.substr(begin, request.find_first_of("& ", begin) - begin);
}

void work(int ms) { std::this_thread::sleep_until(Clock::now() + std::chrono::milliseconds(ms)); }

void serve(int fd) {
  std::string request;
  char buffer[4096];
  while (request.find("\r\n\r\n") == std::string::npos) {
    const ssize_t count = ::read(fd, buffer, sizeof buffer);
    if (count <= 0) std::abort();  // all clients ask
    request.append(buffer, static_cast<std::size_t>(count));
  }
  const std::string id = parameter(request, "id");
  const int ms = std::stoi(parameter(request, "ms"));
  const std::string gate = parameter(request, "gate");
  tell("begin " + id);
  long long soonest = 0, latest = 0;
  if (parameter(request, "until") == "left") {
    pollfd entry{fd, POLLRDHUP, 0};
    sockalarm::test::require(::poll(&entry, 1, -1) == 1, "poll");
    latest = now();
  }
  while (!gate.empty() && ::access(gate.c_str(), F_OK) != 0) work(1);
  work(ms);
  const std::string answer =
      "HTTP/1.0 200 OK\r\n\r\ndone\n";  // without its length: a proxy waits for our close
  if (!gate.empty()) soonest = now() + (kUserTimeoutMs - kClockMs) * 1'000'000LL;
  ::send(fd, answer.data(), answer.size(), MSG_NOSIGNAL);
  if (!gate.empty()) {
    while (::read(fd, buffer, sizeof buffer) > 0) {
    }
    latest = now();
  }
  if (!gate.empty()) work(ms);
  const long long closes = now();
  ::close(fd);
  const long long closed = now();
  tell("end " + id + " " + std::to_string(soonest) + " " + std::to_string(latest) + " " +
       std::to_string(closes) + " " + std::to_string(closed));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(std::stoi(argv[1])));
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  ::setsockopt(listener, IPPROTO_TCP, TCP_USER_TIMEOUT, &kUserTimeoutMs, sizeof kUserTimeoutMs);
  sockalarm::test::require(::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
                           "bind");
  sockalarm::test::require(::listen(listener, 256) == 0, "listen");
  tell("listening");
  for (;;) {
    const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    sockalarm::test::require(fd >= 0, "accept4");
    std::thread(serve, fd).detach();
  }
}
