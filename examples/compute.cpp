// SPDX-License-Identifier: Apache-2.0
// A long computation that asks a std::stop_token whether anybody still wants its result.
//
//   compute [PORT]      curl --max-time 1 http://127.0.0.1:PORT/
#include <sockalarm/sockalarm.h>

#include "common.h"

namespace {

// Counts primes until the end of time, or until nobody waits for the number.
unsigned long count_primes(const std::stop_token& stop) {
  unsigned long found = 0;
  for (unsigned long n = 2; !stop.stop_requested(); ++n) {
    bool prime = true;
    for (unsigned long d = 2; d * d <= n && prime; ++d) prime = n % d != 0;
    if (prime) ++found;
  }
  return found;
}

}  // namespace

int main(int argc, char** argv) {
  const auto watcher = sockalarm::Watcher::create();
  if (!watcher) give_up(watcher.error().message());
  const int listener = listen_on_loopback(argc > 1 ? std::atoi(argv[1]) : 0);
  for (;;) {
    const int client = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) continue;
    if (const auto watch = watcher->watch(client)) {
      say("request; now computing");
      const unsigned long found = count_primes(watch->stop_token());
      say("stopped with " + std::to_string(found) + " primes: the client left");
    }
    ::close(client);
  }
}
