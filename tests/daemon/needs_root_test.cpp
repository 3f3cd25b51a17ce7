// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include "harness/alarms.h"

namespace sockalarm::test {
namespace {

// All tests of this executable.
class NeedsRoot final : public testing::Environment {
  void SetUp() override {
    if (::geteuid() != 0 && !kernel_required())
      GTEST_SKIP() << "sockalarmd and its clients of other users need root";
  }
};
const testing::Environment* const kNeedsRoot = testing::AddGlobalTestEnvironment(new NeedsRoot);

}  // namespace
}  // namespace sockalarm::test
