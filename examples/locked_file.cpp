// SPDX-License-Identifier: Apache-2.0
// A server whose requests put a line into a file that all of them share, and then work for a while. The wait
// for the lock ends when the client leaves; the change under it does not, whenever the client leaves.
//
//   locked_file [PORT [FILE]]      curl --max-time 1 http://127.0.0.1:PORT/
#include "locked_file.h"

#include <sockalarm/access_log.h>
#include <sockalarm/request.h>

#include <thread>

#include "common.h"

namespace {

using namespace std::chrono_literals;
using namespace sockalarm;

bool add_line(Request& request, const std::string& path) {
  const std::string line = "a line of request " + std::to_string(::getpid());  // before: the section is short
  const FileLock lock(path + ".lock");
  if (!lock) return false;  // stopped while waiting: nothing was begun
  const Shield shield = request.shield();
  return put_in_front(path, line);
}  // first what was held back goes off, then the lock is given back: nothing jumps over either

void handle(const Watcher& watcher, const Requests& requests, const std::string& path, int client) {
  const auto watch = watcher.watch(client);
  if (!watch) return say(watch.error().message());
  char bytes[4096];
  if (::recv(client, bytes, sizeof bytes, 0) <= 0) return;
  auto request = requests.begin(*watch, "/");
  if (!request) return say(request.error().message());
  request->on_cleanup([](bool aborted) { say(aborted ? "cleanup: the client had left" : "cleanup"); });

  const auto added = request->call("add line", 2s, [&] { return add_line(*request, path); });
  if (added && *added) say("the line is in the file");
  const auto slept = request->call("work", 10s, [] { return ::sleep(9); });
  if (!slept) return say("request given up: " + slept.error().message());
  const std::string answer = "HTTP/1.0 200 OK\r\n\r\ndone\n";
  const SigpipeGuard guard(*request);
  [[maybe_unused]] const ssize_t n = ::write(client, answer.data(), answer.size());
}

}  // namespace

int main(int argc, char** argv) {
  const auto watcher = Watcher::create();
  if (!watcher) give_up(watcher.error().message());
  const auto format = LogFormat::parse();
  Policy policy;
  policy.limit = 30s;
  policy.on_end = [&](const Record& record) {
    say(format->line(record, {.remote_host = "127.0.0.1", .status = record.aborted ? 499 : 200}));
  };
  const auto requests = Requests::create(*watcher, policy);
  if (!requests) give_up(requests.error().message());
  const std::string path = argc > 2 ? argv[2] : "/tmp/sockalarm-locked-file";
  const int listener = listen_on_loopback(argc > 1 ? std::atoi(argv[1]) : 0);
  for (;;) {
    const int client = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) continue;
    std::thread([&, client] {
      handle(*watcher, *requests, path, client);
      ::close(client);
    }).detach();
  }
}
