// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sockalarm/result.h>

#include <cerrno>

namespace sockalarm {
namespace {

TEST(ErrorTest, SaysWhatAndWhy) {
  const Error error = Error::from_errno(ENOENT, "reading").with_context("outer");
  EXPECT_EQ(error.message(), "outer: reading: No such file or directory");
  EXPECT_EQ(error.code(), std::errc::no_such_file_or_directory);
  EXPECT_EQ(make_error_code(Errc::not_a_socket).category().name(), std::string("sockalarm"));
}

}  // namespace
}  // namespace sockalarm
