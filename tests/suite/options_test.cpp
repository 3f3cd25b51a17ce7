// SPDX-License-Identifier: Apache-2.0
#include "suite/suite.h"

namespace sockalarm::test {
namespace {

TEST(OptionsTest, WhatNoSourceCouldKeepIsAnErrorWithEverySource) {
  const auto refused = [](Options options, const char* says) {
    for (const SourceKind source :
         {SourceKind::automatic, SourceKind::kernel, SourceKind::epoll, SourceKind::poll}) {
      options.source = source;
      const auto watcher = Watcher::create(options);
      ASSERT_FALSE(watcher) << says;
      EXPECT_EQ(watcher.error().code(), Errc::invalid_options);
      EXPECT_NE(watcher.error().message().find(says), std::string::npos) << watcher.error().message();
    }
  };
  Options delivery, waking, ring;
  delivery.delivery = static_cast<Delivery>(9);
  refused(delivery, "delivery is 9");
  waking.waking = static_cast<Waking>(9);
  refused(waking, "waking is 9");
  for (const std::size_t bytes : {(std::size_t{1} << 31) + 1, ~std::size_t{0}}) {
    ring.ring_bytes = bytes;
    refused(ring, "ring_bytes is ");
  }
  Options source;
  source.source = static_cast<SourceKind>(9);
  const auto watcher = Watcher::create(source);
  ASSERT_FALSE(watcher);
  EXPECT_EQ(watcher.error().code(), Errc::invalid_options);
}

}  // namespace
}  // namespace sockalarm::test
