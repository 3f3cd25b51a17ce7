// SPDX-License-Identifier: Apache-2.0
#include <csignal>

#include "suite/suite.h"

#if SOCKALARM_LINUX

namespace sockalarm::test {
namespace {

SOCKALARM_SUITE(SctpTest);

// Many kernels have no SCTP (CONFIG_IP_SCTP; 6.18 as built where this was written has none, nor have the
// images of vmtests/). There is then nothing to watch, and that is what is checked: that the kernel says so
// and not that our options were wrong. With SCTP the association is epoll's whatever the Watcher's source is.
TEST_P(SctpTest, EpollServesIt) {
  const UniqueFd probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_SCTP));
  if (!probe) {
    EXPECT_EQ(errno, EPROTONOSUPPORT);
    return;
  }
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = tcp_pair(AF_INET, IPPROTO_SCTP);
  const auto watch = watcher.watch(connection.ours.get());
  ASSERT_TRUE(watch) << watch.error().message();
  EXPECT_EQ(watch->source(), GetParam().source == SourceKind::poll ? SourceKind::poll : SourceKind::epoll);
  Journal journal;
  const auto alarm = watch->arm(journal.entry("gone"));
  connection.peer.reset();
  EXPECT_TRUE(journal.wait_for(1));
  EXPECT_TRUE(watch->peer_gone());
}

}  // namespace
}  // namespace sockalarm::test

#endif
