// SPDX-License-Identifier: Apache-2.0
#include "daemon/raw_client.h"
#include "integration/cli.h"

namespace sockalarm::test {
namespace {

// docs/protocol.md is enough: a client in another language, written from it, as user nobody.
TEST(ProtocolTest, AClientInPythonIsServed) {
  const DaemonHome home;
  const DaemonProcess daemon(home);
  const UniqueFd nothing = null();
  const Ended ended =
      Process({"python3", SOCKALARM_PYTHON_CLIENT, home.socket()}, nothing.get(), nothing.get(), [] {
        if (!become(kNobody)) ::_exit(98);
      }).wait();
  EXPECT_EQ(ended.status, 0) << ended.errors;
  EXPECT_TRUE(eventually([&] { return clients_in_kernel(home) == 0; }));
  EXPECT_EQ(entries_of(home, "registry"), 0U);
}

}  // namespace
}  // namespace sockalarm::test
