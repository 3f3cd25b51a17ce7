// SPDX-License-Identifier: Apache-2.0
#include "observe/cgroup_walk.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <filesystem>

#include "faults/failing_call.h"
#include "harness/sockets.h"

// In a tree of tmpfs(5), whose entries say the same as those of a cgroup file system.
namespace sockalarm::observe {
namespace {

using namespace std::chrono_literals;
using sockalarm::test::FailingCall;

class CgroupWalkTest : public ::testing::Test {
 protected:
  CgroupWalkTest() {
    std::string root = "/dev/shm/sockalarm-XXXXXX";
    sockalarm::test::require(::mkdtemp(root.data()) != nullptr, "a folder in /dev/shm");
    root_ = root;
  }
  ~CgroupWalkTest() override { std::filesystem::remove_all(root_); }

  std::uint64_t make(const std::string& path) const {
    std::filesystem::create_directories(root_ + path);
    return id_of(path);
  }
  std::uint64_t id_of(const std::string& path) const {
    struct stat status{};
    EXPECT_EQ(::stat((root_ + path).c_str(), &status), 0) << path;
    return status.st_ino;
  }

  // Each look at the clock takes `tick_`: one for each folder that is read.
  CgroupWalk walk(std::size_t most = 1000) {
    const auto now = [this] {
      ++looks_;
      return now_ += tick_;
    };
    return CgroupWalk(root_, now, most);
  }

  std::string root_;
  CgroupWalk::Clock::time_point now_{1h};
  std::chrono::milliseconds tick_{0};
  int looks_ = 0;
};

constexpr std::uint64_t kNobody = 0x7fffffffffffff;

TEST_F(CgroupWalkTest, OneWalkFindsAll) {
  CgroupWalk walk = this->walk();
  std::vector<std::pair<std::string, std::uint64_t>> all{{"/", id_of("/")}};
  for (int i = 0; i < 100; ++i) {
    const std::string path = "/a.slice/" + std::to_string(i) + ".service";
    all.emplace_back(path, make(path));
  }
  EXPECT_EQ(walk.path(all.back().second).value(), all.back().first);
  const int looks = looks_;
  for (const auto& [path, id] : all) {
    EXPECT_EQ(walk.path(id).value(), path);
    EXPECT_TRUE(walk.exists(id));
  }
  EXPECT_EQ(looks_, looks);
}

TEST_F(CgroupWalkTest, WhetherItExistsTakesNoWalk) {
  const std::uint64_t id = make("/a.slice/b.service"), other = make("/c.service");
  CgroupWalk walk = this->walk();
  ASSERT_EQ(walk.path(id).value(), "/a.slice/b.service");
  std::filesystem::remove(root_ + "/a.slice/b.service");
  now_ += 1h;
  FailingCall reading({"getdents64()", SYS_getdents64, EIO}, sockalarm::test::kEvery);
  reading.run([&] {
    EXPECT_FALSE(walk.exists(id));
    EXPECT_TRUE(walk.exists(other));
  });
  EXPECT_EQ(reading.calls(), 0u);
  EXPECT_EQ(walk.path(id).value(), "/a.slice/b.service") << "whose it was is known still";
}

// A thread that reads records asks: a walk takes no more than a slice of its time at once, and a tenth in
// all.
TEST_F(CgroupWalkTest, ItGoesOnInSlices) {
  constexpr int kFolders = 100, kInASlice = 10;
  for (int i = 0; i < kFolders; ++i) make("/" + std::to_string(i));
  CgroupWalk walk = this->walk();
  tick_ = CgroupWalk::kSlice / kInASlice;
  EXPECT_FALSE(walk.path(kNobody)) << "nobody knows that yet";
  EXPECT_EQ(looks_, 1 + kInASlice);
  EXPECT_FALSE(walk.path(kNobody));
  EXPECT_EQ(looks_, 1 + kInASlice + 1) << "it rests";
  EXPECT_TRUE(walk.exists(kNobody)) << "nothing says that it has gone";
  int slices = 1;
  for (; !walk.path(kNobody); ++slices) now_ += CgroupWalk::kRest * CgroupWalk::kSlice;
  EXPECT_EQ(slices, kFolders / kInASlice + 1);
  EXPECT_EQ(walk.path(kNobody).value(), std::nullopt);
  EXPECT_FALSE(walk.exists(kNobody));
}

TEST_F(CgroupWalkTest, ANewOneIsFoundByTheNextWalkAndHasNotGoneUntilThen) {
  const std::uint64_t id = make("/a");
  CgroupWalk walk = this->walk();
  tick_ = 1ms;
  ASSERT_EQ(walk.path(id).value(), "/a");
  tick_ = 0ms;  // it rests
  const std::uint64_t later = make("/b");
  EXPECT_FALSE(walk.path(later));
  now_ += 1s;
  EXPECT_EQ(walk.path(later).value(), "/b");
}

TEST_F(CgroupWalkTest, ManyThatHaveGoneTakeOneWalk) {
  make("/a");
  CgroupWalk walk = this->walk();
  tick_ = 1ms;
  EXPECT_EQ(walk.path(kNobody).value(), std::nullopt);
  tick_ = 0ms;  // it rests
  for (std::uint64_t i = 1; i < 100; ++i) EXPECT_FALSE(walk.path(kNobody - i));
  now_ += 1s;
  EXPECT_EQ(walk.path(kNobody - 1).value(), std::nullopt);
  const int looks = looks_;
  for (std::uint64_t i = 0; i < 100; ++i) EXPECT_EQ(walk.path(kNobody - i).value(), std::nullopt);
  EXPECT_EQ(looks_, looks);
}

// Where there are more than it remembers, it walks again for those that it has dropped.
TEST_F(CgroupWalkTest, WhatItHasDroppedHasNotGone) {
  constexpr std::size_t kMost = 10;
  std::vector<std::uint64_t> all;
  for (std::size_t i = 0; i < 3 * kMost; ++i) all.push_back(make("/" + std::to_string(i)));
  CgroupWalk walk = this->walk(kMost);
  for (int round = 0; round < 3; ++round)
    for (std::size_t i = 0; i < all.size(); ++i) {
      EXPECT_TRUE(walk.exists(all[i]));
      EXPECT_EQ(walk.path(all[i]).value(), "/" + std::to_string(i));
      EXPECT_EQ(walk.path(kNobody - i).value(), std::nullopt);
    }
}

TEST_F(CgroupWalkTest, WhatCannotBeReadIsLeftOutAndNothingElse) {
  const std::string name(NAME_MAX, 'x');
  UniqueFd at(::open(root_.c_str(), O_PATH | O_CLOEXEC));
  for (int depth = 0; depth <= PATH_MAX / NAME_MAX + 1; ++depth) {
    ASSERT_EQ(::mkdirat(at.get(), name.c_str(), 0755), 0);
    at = UniqueFd(::openat(at.get(), name.c_str(), O_PATH | O_CLOEXEC));
    ASSERT_TRUE(at);
  }
  struct stat deepest{};
  ASSERT_EQ(::fstat(at.get(), &deepest), 0);
  std::vector<std::uint64_t> others;  // wherever in the order of the folder
  for (int i = 0; i < 20; ++i) others.push_back(make("/" + std::to_string(i) + "/own.service"));
  CgroupWalk walk = this->walk();
  for (std::size_t i = 0; i < others.size(); ++i)
    EXPECT_EQ(walk.path(others[i]).value(), "/" + std::to_string(i) + "/own.service");
  EXPECT_EQ(walk.path(deepest.st_ino).value(), std::nullopt);
}

TEST_F(CgroupWalkTest, WithoutDescriptorsNothingHasGone) {
  const std::uint64_t id = make("/a/b");
  CgroupWalk walk = this->walk();
  for (const int error : {EMFILE, ENFILE, ENOMEM}) {
    FailingCall opening({"openat()", SYS_openat, error}, sockalarm::test::kEvery);
    opening.run([&] {
      EXPECT_FALSE(walk.path(id));
      EXPECT_TRUE(walk.exists(kNobody));
    });
  }
  FailingCall reading({"getdents64()", SYS_getdents64, ENOMEM}, sockalarm::test::kEvery);
  reading.run([&] { EXPECT_FALSE(walk.path(id)); });
  EXPECT_EQ(walk.path(id).value(), "/a/b");
}

}  // namespace
}  // namespace sockalarm::observe
