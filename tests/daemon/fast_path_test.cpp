// SPDX-License-Identifier: Apache-2.0
#include <linux/seccomp.h>
#include <sys/prctl.h>

#include <memory>

#include "daemon/raw_client.h"

namespace sockalarm::test {
namespace {

// In seccomp(2)'s strict mode any system call but read, write and exit kills the thread.
TEST(FastPathTest, ArmingCancellingAndAskingNeedNoSystemCall) {
  const DaemonHome home;
  const DaemonProcess daemon(home);
  const Worker worker([&] {
    auto watcher = std::make_shared<Watcher>(daemon_watcher(home));
    return [watcher](char) -> std::uint64_t {
      // Never destroyed: that takes system calls, and then there may be none.
      const Connection& connection = *new Connection(tcp_pair());
      const Watch& watch = *new Watch(watcher->watch(connection.ours.get()).value());
      const ActionChain chain(send_signal(SIGUSR1));
      std::uint64_t done = 0;
      const auto once = [&] {
        const auto alarm = watch.arm(chain);
        if (alarm && !watch.peer_gone()) ++done;
      };
      once();  // what is made at the first time is not the matter here
      if (watch.source() != SourceKind::daemon || ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) return 0;
      for (int i = 0; i < 100'000; ++i) once();
      return done;
    };
  });
  EXPECT_EQ(worker.ask('s'), 100'001U);
}

}  // namespace
}  // namespace sockalarm::test
