// SPDX-License-Identifier: Apache-2.0
#include <iostream>

#include "daemon/many_watches.h"
#include "daemon/neighbour_figure.h"

// What tests/bench/daemon.cpp measures, small: that it works, not how fast.

namespace sockalarm::test {
namespace {

TEST(FiguresTest, ManyWatchesAreRegisteredFiredAndCleanedUp) {
  nlohmann::json row;
  ASSERT_NO_THROW(row = measure_many_watches(4, 1000));
  EXPECT_EQ(row["watches"], 4000);
  std::cout << row.dump(2) << "\n";
}

TEST(FiguresTest, ANeighbourOfAnyHostileClientIsServed) {
  nlohmann::json result;
  ASSERT_NO_THROW(result = measure_neighbour(2, 10));
  std::cout << result.dump(2) << "\n";
}

}  // namespace
}  // namespace sockalarm::test
