// SPDX-License-Identifier: Apache-2.0
// What a user's program looks like: nothing of this project but what was installed.
#include <sockalarm/sockalarm.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <future>

int main() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return 1;
  auto watcher = sockalarm::Watcher::create();
  if (!watcher) return std::puts(watcher.error().message().c_str()), 1;
  const auto watch = watcher->watch(ends[0]);
  if (!watch) return std::puts(watch.error().message().c_str()), 1;
  std::promise<void> fired;
  const auto alarm = watch->arm(sockalarm::call([&] { fired.set_value(); }));
  ::close(ends[1]);
  fired.get_future().wait();
  std::puts("fired");
  return watch->peer_gone() ? 0 : 1;
}
