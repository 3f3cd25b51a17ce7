// SPDX-License-Identifier: Apache-2.0
// A parent accepts, its workers answer: each connection is handed to a worker process as a descriptor. When a
// worker dies, what it had not been sent yet goes to another, and a new worker takes its place.
// Usage: workers PORT [WORKERS]
#include <poll.h>
#include <sockalarm/fd_channel.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common.h"

namespace {

using namespace sockalarm;

void wait_for(std::vector<pollfd>& waited) {
  if (::poll(waited.data(), static_cast<nfds_t>(waited.size()), -1) < 0) return;
}

// The worker: one connection after the other, whoever sent it.
[[noreturn]] void work(FdChannelFork& fork, int listener) {
  ::close(listener);
  FdChannelOptions options;
  options.on_end = [](const Error*) { ::_exit(0); };  // the parent has gone
  auto channel = fork.child(std::move(options)).value();
  std::function<void(FdMessage)> answer = [&](const FdMessage& message) {
    const std::string text = "HTTP/1.0 200 OK\r\n\r\nanswered by " + std::to_string(::getpid()) + "\n";
    char request[1024];
    for (const UniqueFd& client : message.fds)
      if (::read(client.get(), request, sizeof request) <= 0 ||
          ::write(client.get(), text.data(), text.size()) < 0)
        say("a client left");
    if (!channel.receive(answer)) ::_exit(1);
  };
  if (!channel.receive(answer)) ::_exit(1);
  for (;;) {
    std::vector<pollfd> waited{{channel.poll_fd(), channel.poll_events(), 0}};
    wait_for(waited);
    channel.process();
  }
}

std::unique_ptr<FdChannel> start_worker(int listener) {
  auto fork = FdChannelFork::create().value();
  const pid_t pid = ::fork();
  if (pid == 0) work(fork, listener);
  if (pid < 0) give_up("cannot fork");
  return std::make_unique<FdChannel>(fork.parent().value());
}

}  // namespace

int main(int argc, char** argv) {
  const int listener = listen_on_loopback(argc > 1 ? std::atoi(argv[1]) : 0);
  const std::size_t count = argc > 2 ? static_cast<std::size_t>(std::atoi(argv[2])) : 2;
  std::signal(SIGCHLD, SIG_IGN);  // the channel tells who died
  std::vector<std::unique_ptr<FdChannel>> workers;
  while (workers.size() < count) workers.push_back(start_worker(listener));
  for (std::size_t next = 0;;) {
    std::vector<pollfd> waited{{listener, POLLIN, 0}};
    for (const auto& worker : workers) waited.push_back({worker->poll_fd(), worker->poll_events(), 0});
    wait_for(waited);
    std::vector<FdMessage> to_send;
    for (auto& worker : workers) {
      if (worker->process()) continue;
      say("a worker has died");
      for (FdMessage& unsent : worker->take_unsent()) to_send.push_back(std::move(unsent));
      worker = start_worker(listener);
    }
    if ((waited[0].revents & POLLIN) != 0)
      if (UniqueFd client(::accept(listener, nullptr, nullptr)); client) {
        to_send.emplace_back();
        to_send.back().fds.push_back(std::move(client));
      }
    for (FdMessage& message : to_send)
      if (!workers[next++ % count]->send(std::move(message)))
        say("that worker is too busy, its client is turned away");
  }
}
