// SPDX-License-Identifier: Apache-2.0
// A server with a thread for each request, whose handler blocks: here in nanosleep(2), elsewhere in a
// database. When the client leaves, a signal gets the thread out of its system call, and a program cleans up.
//
//   blocking_server [PORT [kernel|epoll|poll]]      curl --max-time 1 http://127.0.0.1:PORT/
#include <sockalarm/sockalarm.h>

#include <cerrno>
#include <csignal>
#include <thread>

#include "common.h"

namespace {

void handle(const sockalarm::Watcher& watcher, int client) {
  using namespace sockalarm;
  const auto watch = watcher.watch(client);
  if (!watch) return say(watch.error().message());
  char request[4096];
  if (::recv(client, request, sizeof request, 0) <= 0) return;
  say("request; now blocking for 30 s, watched by " + std::string(to_string(watch->source())));

  const ActionChain chain{call([](const Event& event) {
                            say("action 1, function: the client left (" + to_string(event.what) + ")");
                            return Verdict::proceed;
                          }),
                          send_signal(SIGALRM), run({"date", "+%T.%6N action 3, program: cleaning up"})};
  bool left = false;
  {
    const auto alarm = watch->arm(chain);
    if (!alarm) return say(alarm.error().message());
    const timespec work{30, 0};
    left = !watch->peer_gone() && ::nanosleep(&work, nullptr) != 0 && errno == EINTR;
    if (left) say("action 2, signal: the blocked thread is back");
  }  // from here on no signal comes
  if (left || watch->peer_gone()) return say("request given up, nobody waits for it");
  const std::string answer = "HTTP/1.0 200 OK\r\n\r\ndone\n";
  ::send(client, answer.data(), answer.size(), MSG_NOSIGNAL);
}

}  // namespace

int main(int argc, char** argv) {
  struct sigaction interrupt{};
  interrupt.sa_handler = [](int) {};  // without SA_RESTART: its only purpose is EINTR
  ::sigaction(SIGALRM, &interrupt, nullptr);

  sockalarm::Options options;
  if (argc > 2) {
    const auto source = sockalarm::parse_source(argv[2]);
    if (!source) give_up(source.error().message());
    options.source = *source;
  }
  const auto watcher = sockalarm::Watcher::create(options);
  if (!watcher) give_up(watcher.error().message());
  const int listener = listen_on_loopback(argc > 1 ? std::atoi(argv[1]) : 0);
  for (;;) {
    const int client = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) continue;
    std::thread([&watcher, client] {
      handle(*watcher, client);
      ::close(client);
    }).detach();
  }
}
