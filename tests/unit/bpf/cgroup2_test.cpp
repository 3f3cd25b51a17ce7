// SPDX-License-Identifier: Apache-2.0
#include "base/cgroup2.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "harness/alarms.h"

namespace sockalarm {
namespace {

// In a container the cgroup that it is in passes for the root. The host's is found if it is there, and what
// only looks like it is not taken for it.
TEST(Cgroup2, OnlyTheRootOfTheHostIsTheRoot) {
  if (::geteuid() != 0 && !test::kernel_required()) GTEST_SKIP() << "namespaces need root";
  const auto root = cgroup2_root();
  ASSERT_TRUE(root) << "no cgroup v2 is mounted";
  const std::string own = *root + "/sockalarmtest" + std::to_string(::getpid());
  std::string place = (std::filesystem::temp_directory_path() / "sockalarm-XXXXXX").string();
  ASSERT_NE(::mkdtemp(place.data()), nullptr);
  ASSERT_EQ(::mkdir(own.c_str(), 0755), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    std::ofstream(own + "/cgroup.procs") << "0" << std::flush;
    if (::unshare(CLONE_NEWCGROUP | CLONE_NEWNS) != 0 ||
        ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
      ::_exit(1);
    if (cgroup2_root() != root) ::_exit(2);
    if (::mount("none", place.c_str(), "cgroup2", 0, nullptr) != 0) ::_exit(3);
    if (::umount2(root->c_str(), MNT_DETACH) != 0) ::_exit(4);
    ::_exit(cgroup2_root() ? 5 : 0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0) << WEXITSTATUS(status);
  EXPECT_EQ(::rmdir(own.c_str()), 0);
  EXPECT_EQ(::rmdir(place.c_str()), 0);
}

}  // namespace
}  // namespace sockalarm
