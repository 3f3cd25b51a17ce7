// SPDX-License-Identifier: Apache-2.0
// What a user's program with request scopes looks like: nothing of this project but what was installed.
#include <sockalarm/access_log.h>
#include <sockalarm/request.h>
#include <unistd.h>

#include <cstdio>

int main() {
  using namespace std::chrono_literals;
  const auto policy =
      sockalarm::parse_policy("call_limit = 0.01\n[[override]]\npath = '^/a'\nlimit = '5s'\n");
  if (!policy) return std::puts(policy.error().message().c_str()), 1;
  const auto watcher = sockalarm::Watcher::create();
  if (!watcher) return std::puts(watcher.error().message().c_str()), 1;
  const auto requests = sockalarm::Requests::create(*watcher, *policy);
  if (!requests) return std::puts(requests.error().message().c_str()), 1;
  auto request = requests->begin("/a").value();
  const auto slept = request.call("sleep", [] { return ::pause(); });
  if (!request.finish()) return 1;
  std::puts(sockalarm::to_json(request.record(), {}).c_str());
  return !slept && request.record().limit == 5s ? 0 : 1;
}
