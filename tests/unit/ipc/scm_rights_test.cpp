// SPDX-License-Identifier: Apache-2.0
#include "ipc/scm_rights.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <vector>

#include "harness/descriptors.h"
#include "harness/sockets.h"

namespace sockalarm::ipc {
namespace {

using test::bytes_of;
using test::make_file;
using test::open_fds;
using test::same_file;
using test::TableFiller;

struct Pair {
  explicit Pair(int type = SOCK_STREAM) {
    int ends[2];
    test::require(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
    a = UniqueFd(ends[0]);
    b = UniqueFd(ends[1]);
  }
  UniqueFd a, b;
};

TEST(ScmRightsTest, ArriveInOrderAndCloseOnExec) {
  for (const int type : {SOCK_STREAM, SOCK_SEQPACKET}) {
    const Pair pair(type);
    const std::array<UniqueFd, 3> files{make_file(), make_file(), make_file()};
    const std::array fds{files[0].get(), files[1].get(), files[2].get()};
    EXPECT_EQ(send_with_fds(pair.a.get(), bytes_of("hello"), fds).value(), 5U);
    std::array<std::byte, 16> buffer{};
    const Received received = receive_with_fds(pair.b.get(), buffer, kMaxFdsPerSend).value();
    EXPECT_EQ(received.size, 5U);
    EXPECT_FALSE(received.fds_truncated);
    ASSERT_EQ(received.fds.size(), 3U);
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(same_file(received.fds[i].get(), fds[i]));
      EXPECT_TRUE(::fcntl(received.fds[i].get(), F_GETFD) & FD_CLOEXEC);
    }
  }
}

TEST(ScmRightsTest, NeitherSideBlocksAndNoSigpipe) {
  Pair pair;
  std::array<std::byte, 4096> buffer{};
  EXPECT_TRUE(would_block(receive_with_fds(pair.b.get(), buffer, 1).error()));
  Result<std::size_t> sent = 0;
  while (sent = send_with_fds(pair.a.get(), buffer, {}), sent) {
  }
  EXPECT_TRUE(would_block(sent.error()));
  pair.b.reset();
  EXPECT_EQ(send_with_fds(pair.a.get(), buffer, {}).error().code(), std::errc::broken_pipe);
}

TEST(ScmRightsTest, MoreThanAskedForAreClosedAndTold) {
  const Pair pair(SOCK_SEQPACKET);
  const UniqueFd file = make_file();
  const std::vector<int> fds(2, file.get());
  const std::size_t before = open_fds();
  ASSERT_TRUE(send_with_fds(pair.a.get(), bytes_of("x"), fds));
  std::array<std::byte, 1> buffer{};
  {
    const Received received = receive_with_fds(pair.b.get(), buffer, 1).value();
    EXPECT_EQ(received.fds.size(), 1U);
    EXPECT_TRUE(received.fds_truncated);
  }
  ASSERT_TRUE(send_with_fds(pair.a.get(), bytes_of("x"), fds));
  EXPECT_TRUE(receive_with_fds(pair.b.get(), buffer, 0)->fds_truncated);
  EXPECT_EQ(open_fds(), before);
}

TEST(ScmRightsTest, LongDatagramIsTold) {
  const Pair pair(SOCK_SEQPACKET);
  ASSERT_TRUE(send_with_fds(pair.a.get(), bytes_of("12345"), {}));
  std::array<std::byte, 4> buffer{};
  EXPECT_TRUE(receive_with_fds(pair.b.get(), buffer, 1)->data_truncated);
}

TEST(ScmRightsTest, TooManyAreRefused) {
  const Pair pair;
  EXPECT_EQ(send_with_fds(pair.a.get(), bytes_of("x"), std::vector<int>(254, 0)).error().code(),
            std::errc::invalid_argument);
  EXPECT_TRUE(send_with_fds(pair.a.get(), bytes_of("x"), std::vector<int>(253, 0)));
}

#if SOCKALARM_LINUX
TEST(ScmRightsTest, APeekLosesNothingWhenTheTableIsFull) {
  for (const int type : {SOCK_STREAM, SOCK_SEQPACKET}) {
    const Pair pair(type);
    const UniqueFd file = make_file();
    ASSERT_TRUE(send_with_fds(pair.a.get(), bytes_of("x"), std::vector<int>(5, file.get())));
    std::array<std::byte, 8> buffer{};
    {
      TableFiller filler;
      filler.leave_free(3);
      for (int i = 0; i < 3; ++i) {
        const Received peeked = receive_with_fds(pair.b.get(), buffer, 5, Take::peek).value();
        EXPECT_EQ(peeked.fds.size(), 3U);
        EXPECT_TRUE(peeked.fds_truncated);
      }
    }
    const Received peeked = receive_with_fds(pair.b.get(), buffer, 5, Take::peek).value();
    EXPECT_FALSE(peeked.fds_truncated);
    ASSERT_EQ(peeked.fds.size(), 5U);
    EXPECT_EQ(receive_with_fds(pair.b.get(), buffer, 0)->size, 1U);
    EXPECT_TRUE(would_block(receive_with_fds(pair.b.get(), buffer, 0).error()));
    for (const UniqueFd& fd : peeked.fds) EXPECT_TRUE(same_file(fd.get(), file.get()));
  }
}

// As a peer may who holds a duplicate of the socket.
TEST(ScmRightsTest, OtherControlMessagesDoNotLeak) {
  const Pair pair;
  constexpr int kSoPassPidfd = 76;  // Linux 6.5
  const int on = 1;
  ASSERT_EQ(::setsockopt(pair.b.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on), 0);
  ::setsockopt(pair.b.get(), SOL_SOCKET, kSoPassPidfd, &on, sizeof on);
  const UniqueFd file = make_file();
  const std::size_t before = open_fds();
  for (const std::size_t room : {0U, 1U, 5U, 10U, 100U}) {
    ASSERT_TRUE(send_with_fds(pair.a.get(), bytes_of("x"), std::vector<int>(1, file.get())));
    std::array<std::byte, 1> buffer{};
    EXPECT_LE(receive_with_fds(pair.b.get(), buffer, room)->fds.size(), room);
    EXPECT_EQ(open_fds(), before);
  }
}
#endif

}  // namespace
}  // namespace sockalarm::ipc
