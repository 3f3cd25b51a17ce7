// SPDX-License-Identifier: Apache-2.0
#include <netinet/tcp.h>

#include "harness/network_namespace.h"
#include "request/scene.h"

// A request whose client is gone says how it went. The network is one of the test's own: only root makes one.
namespace sockalarm::test {
namespace {

SOCKALARM_SUITE(Causes);

void expect_ended_by(Scene& scene, const std::string& cause, const std::function<void()>& go) {
  Request request = scene.begin();
  const SilentPipe pipe;
  std::thread client;
  int how = 0;
  const auto result = request.call("read", 0s, [&] {
    client = std::thread(go);
    how = pipe.read();
  });
  client.join();
  EXPECT_EQ(how, EINTR);
  ASSERT_EQ(code_of(result), Errc::peer_gone);
  EXPECT_NE(result.error().message().find(cause), std::string::npos) << result.error().message();
}

TEST_P(Causes, ClientThatClosedOrReset) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene closed(watcher), aborted(watcher);
  expect_ended_by(closed, "(fin", [&] { closed.leave(); });
  expect_ended_by(aborted, "(reset", [&] { reset(aborted.connection.peer); });
}

TEST_P(Causes, ClientThatVanished) {
  if (::geteuid() != 0 && !kernel_required()) GTEST_SKIP() << "needs root";
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Scene scene(watcher, {}, net.connect());
  const int fd = scene.connection.ours.get(), patience_ms = 200;
  require(::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &patience_ms, sizeof patience_ms) == 0,
          "TCP_USER_TIMEOUT");
  net.on_packets_to(local_port(scene.connection.peer.get()), "drop");
  expect_ended_by(scene, "(timeout", [&] { send_text(fd, "into the void"); });
}

}  // namespace
}  // namespace sockalarm::test
