// SPDX-License-Identifier: Apache-2.0
// The first example that users see, as it is written (example.inc), in a program that has what it speaks of:
// a client, and a query that would block for ever.
#include <poll.h>
#include <signal.h>
#include <sockalarm/sockalarm.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>

namespace {

int ends[2];
std::atomic<pid_t> waiting{0};
bool interrupted = false;

void long_blocking_query() {
  waiting = ::gettid();
  interrupted = ::poll(nullptr, 0, -1) == -1 && errno == EINTR;
}

// The client leaves when the query has begun: from its announcement on the thread sleeps nowhere else.
void leave() {
  while (waiting == 0) std::this_thread::yield();
  for (char state = 'R'; state != 'S'; std::this_thread::yield()) {
    std::ifstream file("/proc/self/task/" + std::to_string(waiting) + "/stat");
    std::string text;
    std::getline(file, text);
    state = text.at(text.rfind(')') + 2);
  }
  ::close(ends[1]);
}

bool came_back = false;
void serve(int client_fd) {
#include "example.inc"
  came_back = true;
}

}  // namespace

int main() {
  if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return 1;
  std::thread client(leave);
  serve(ends[0]);
  client.join();
  std::puts(interrupted && !came_back ? "interrupted" : "the query was not interrupted");
  return interrupted && !came_back ? 0 : 1;
}
