// SPDX-License-Identifier: Apache-2.0
#include "observe/attribution.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <mntent.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <memory>
#include <vector>

#include "faults/failing_call.h"
#include "harness/alarms.h"

namespace sockalarm::observe {
namespace {

using sockalarm::test::eventually;
using sockalarm::test::FailingCall;
using sockalarm::test::kEvery;

const std::string kId = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const std::string kUid = "8dbc1c2e-6b5f-4f6e-9a3b-0d3c5a7e9f10",
                  kUidBySystemd = "8dbc1c2e_6b5f_4f6e_9a3b_0d3c5a7e9f10";
const std::string kHash = "fedcba9876543210fedcba9876543210";

struct Form {
  std::string path;
  Workload workload;
};

TEST(Attribution, KnowsTheFormsOfPaths) {
  const std::vector<Form> forms = {
      {"/system.slice/nginx.service", {"nginx.service", "", ""}},
      {"/system.slice/system-getty.slice/getty@tty1.service", {"getty@tty1.service", "", ""}},
      {"/system.slice/postgresql.service/workers/3", {"postgresql.service", "", ""}},
      {"/user.slice/user-1000.slice/session-7.scope", {"user-1000.slice", "", "", true}},
      {"/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service",
       {"user-1000.slice", "", "", true}},
      {"/user.slice/user-1000.slice/user@1000.service/app.slice/run-u7.service",
       {"user-1000.slice", "", "", true}},
      {"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + kId + ".scope/container",
       {"user-1000.slice", kId, "", true}},
      {"/user.slice/user-1000.slice/user@1000.service/kubepods/pod" + kUid + "/x",
       {"user-1000.slice", "", "", true}},
      {"/user.slice/user-1000.slice", {"user-1000.slice", "", "", true}},
      {"/web.slice/user-1000.slice/nginx.service", {"nginx.service", "", ""}},
      {"/system.slice/runner.service/nginx.service", {"runner.service", "", ""}},
      {"/system.slice/runner.service/system.slice/nginx.service", {"runner.service", "", ""}},
      {"/machine.slice/systemd-nspawn@web.service/payload/system.slice/nginx.service",
       {"systemd-nspawn@web.service", "", ""}},
      {"/lxc.payload.web/system.slice/nginx.service", {"lxc.payload.web", "", ""}},
      {"/delegated/nginx.service", {"delegated/nginx.service", "", ""}},
      {"/system.slice/run-u123.service", {"run-*.service", "", ""}},
      {"/system.slice/run-r0f1e2d3c4b5a69788796a5b4c3d2e1f0.scope", {"run-*.scope", "", ""}},
      {"/system.slice/run-p4711-i8.service", {"run-*.service", "", ""}},
      {"/system.slice/run-backup.service", {"run-backup.service", "", ""}},
      {"/system.slice/system-sshd.slice/sshd@12-192.0.2.1:22-198.51.100.9:50122.service",
       {"sshd@.service", "", ""}},
      {"/system.slice/echo@3-2001:db8::1:7-2001:db8::9:50122.service", {"echo@.service", "", ""}},
      {"/system.slice/system-systemd\\x2dcoredump.slice/systemd-coredump@7-1234-0.service",
       {"systemd-coredump@.service", "", ""}},
      {"/system.slice/postgresql@15-main.service", {"postgresql@15-main.service", "", ""}},
      {"/init.scope", {"init.scope", "", ""}},
      {"/", {"", "", ""}},
      {"", {"", "", ""}},
      {"/batch/nightly", {"batch/nightly", "", ""}},
      {"/system.slice/docker-" + kId + ".scope", {"docker-0123456789ab", kId, ""}},
      {"/docker/" + kId, {"docker-0123456789ab", kId, ""}},
      {"/system.slice/docker-" + kId + ".scope/system.slice/nginx.service", {"docker-0123456789ab", kId, ""}},
      {"/docker/" + kId + "/docker/" + std::string(64, 'f'), {"docker-0123456789ab", kId, ""}},
      {"/machine.slice/libpod-" + kId + ".scope/container", {"libpod-0123456789ab", kId, ""}},
      {"/machine.slice/libpod-conmon-" + kId + ".scope", {"libpod-conmon-*.scope", "", ""}},
      {"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + kUidBySystemd +
           ".slice/cri-containerd-" + kId + ".scope",
       {"cri-containerd-0123456789ab", kId, kUid}},
      {"/kubepods.slice/kubepods-pod" + kUidBySystemd + ".slice/crio-" + kId + ".scope",
       {"crio-0123456789ab", kId, kUid}},
      {"/kubepods.slice/kubepods-pod" + kUidBySystemd + ".slice/crio-conmon-" + kId + ".scope",
       {"crio-conmon-*.scope", "", kUid}},
      {"/kubepods/burstable/pod" + kUid + "/" + kId, {"container-0123456789ab", kId, kUid}},
      {"/kubepods/besteffort/pod" + kHash + "/" + kId, {"container-0123456789ab", kId, kHash}},
      {"/system.slice/containerd.service/kubepods-burstable-pod" + kUidBySystemd +
           ".slice:cri-containerd:" + kId,
       {"cri-containerd-0123456789ab", kId, kUid}},
      {"/system.slice/podman-restart.service", {"podman-restart.service", "", ""}},
      {"/system.slice/not" + kId + ".scope", {"not" + kId + ".scope", "", ""}},
  };
  for (const Form& form : forms) {
    const Workload found = workload_of(form.path);
    EXPECT_EQ(found.service, form.workload.service) << form.path;
    EXPECT_EQ(found.container, form.workload.container) << form.path;
    EXPECT_EQ(found.pod, form.workload.pod) << form.path;
    EXPECT_EQ(found.of_user, form.workload.of_user) << form.path;
  }
}

TEST(Attribution, AsksOnceForEachCgroupAndForgetsTheLeastRecentlyUsed) {
  std::vector<std::uint64_t> asked;
  Attribution attribution(
      [&](std::uint64_t cgroup) -> std::optional<std::string> {
        asked.push_back(cgroup);
        if (cgroup == 9) return std::nullopt;
        return "/system.slice/a" + std::to_string(cgroup) + ".service";
      },
      {}, 2);
  EXPECT_EQ(attribution.of(1).service, "a1.service");
  EXPECT_EQ(attribution.of(9).service, "");
  EXPECT_EQ(attribution.of(9).service, "");
  EXPECT_EQ(attribution.of(1).service, "a1.service");
  EXPECT_EQ(attribution.of(2).service, "a2.service");  // forgets 9
  EXPECT_EQ(attribution.of(1).service, "a1.service");
  EXPECT_EQ(asked, (std::vector<std::uint64_t>{1, 9, 2}));
  attribution.of(9);
  EXPECT_EQ(asked.size(), 4U);
  EXPECT_EQ(attribution.of(0), Workload{});
  EXPECT_EQ(asked.size(), 4U) << "there is no cgroup 0";
}

TEST(Attribution, AsksAgainForWhatCouldNotBeFoundOut) {
  bool fails = true;
  Attribution attribution([&](std::uint64_t) -> Result<std::optional<std::string>> {
    if (fails) return fail(Error::from_errno(EMFILE, "the test"));
    return "/system.slice/a.service";
  });
  EXPECT_EQ(attribution.of(1), Workload{});
  EXPECT_EQ(attribution.find(1), nullptr);
  fails = false;
  EXPECT_EQ(attribution.of(1).service, "a.service");
}

TEST(Attribution, ANameIsOnOneLineAndNoLongerThanAUnits) {
  std::string path;
  std::uint64_t cgroup = 0;
  Attribution attribution([&](std::uint64_t) { return path; });
  const auto named = [&](const std::string& as) {
    path = as;
    return attribution.of(++cgroup).service;
  };
  EXPECT_EQ(named("/system.slice/dev-disk\\x2dby.service"), "dev-disk\\x2dby.service");
  EXPECT_EQ(named("/a\nb\x1b[2J\xff\\"), "a\\x0ab\\x1b[2J\\xff\\");
  EXPECT_EQ(named("/" + std::string(255, 'a')), std::string(255, 'a'));
  EXPECT_EQ(named("/" + std::string(256, 'a')), std::string(252, 'a') + "...");
  EXPECT_EQ(named("/" + std::string(251, 'a') + "\u00fc" + std::string(3000, 'b')),
            std::string(251, 'a') + "...");
}

TEST(Attribution, AUserCannotHaveTheNameOfAContainer) {
  Attribution attribution(
      [](std::uint64_t) { return "/user.slice/user-1000.slice/user@1000.service/docker-" + kId + ".scope"; },
      [](Workload& workload) { workload.service = "shop"; });
  EXPECT_EQ(attribution.of(7).service, "user-1000.slice");
}

TEST(Attribution, AResolverGivesTheBetterName) {
  Attribution attribution([](std::uint64_t) { return "/docker/" + kId; },
                          [](Workload& workload) {
                            if (workload.container == kId) workload.service = "shop";
                          });
  EXPECT_EQ(attribution.of(7).service, "shop");
  EXPECT_EQ(attribution.of(7).container, kId);
}

// Where cgroup v2 is mounted here; empty: nowhere.
std::string mount_point() {
  const std::unique_ptr<FILE, int (*)(FILE*)> mounts(::setmntent("/proc/self/mounts", "re"), ::endmntent);
  while (const mntent* entry = ::getmntent(mounts.get()))
    if (std::string(entry->mnt_type) == "cgroup2") return entry->mnt_dir;
  return {};
}

std::uint64_t inode(const std::string& path) {
  struct stat status{};
  EXPECT_EQ(::stat(path.c_str(), &status), 0) << path;
  return status.st_ino;
}

TEST(CgroupPaths, FindTheRootAndNoneThatIsNotThere) {
  const std::string root = mount_point();
  if (root.empty()) GTEST_SKIP() << "no cgroup v2 here";
  auto paths = CgroupPaths::open();
  ASSERT_TRUE(paths) << paths.error().message();
  EXPECT_EQ(paths->path(inode(root)).value(), "/");
  EXPECT_EQ(paths->path(0x7fffffffffffff).value(), std::nullopt);
}

TEST(CgroupPaths, FindACgroupUntilItIsGone) {
  const std::string name = "/sockalarm-test-" + std::to_string(::getpid()) + ".service",
                    folder = mount_point() + name;
  if (folder == name || ::mkdir(folder.c_str(), 0755) != 0) GTEST_SKIP() << "may not make a cgroup here";
  const std::uint64_t id = inode(folder);
  auto paths = CgroupPaths::open();
  EXPECT_TRUE(paths);
  if (paths) {
    EXPECT_EQ(paths->path(id).value(), name);
    for (const int error : {EMFILE, ENFILE, ENOMEM}) {
      FailingCall no_handle({"open_by_handle_at()", SYS_open_by_handle_at, error}, 1);
      no_handle.run([&] {
        EXPECT_FALSE(paths->path(id)) << "not known now";
        EXPECT_EQ(paths->path(id).value(), name);
      });
      FailingCall again({"open_by_handle_at()", SYS_open_by_handle_at, error}, kEvery);
      again.run([&] { EXPECT_TRUE(paths->exists(id)) << "nothing says that it has gone"; });
    }
    FailingCall not_permitted({"open_by_handle_at()", SYS_open_by_handle_at, EPERM}, kEvery);
    not_permitted.run([&] {
      EXPECT_TRUE(eventually([&] { return paths->path(id).has_value(); }));
      EXPECT_EQ(paths->path(id).value(), name);
      EXPECT_TRUE(paths->exists(id));
    });
  }
  EXPECT_EQ(::rmdir(folder.c_str()), 0);
  if (paths) {
    EXPECT_EQ(paths->path(id).value(), std::nullopt);
    FailingCall not_permitted({"open_by_handle_at()", SYS_open_by_handle_at, EPERM}, kEvery);
    not_permitted.run([&] { EXPECT_FALSE(paths->exists(id)); });
  }
}

// Whoever has a subtree may make such a path. It must not hide the others.
TEST(CgroupPaths, APathThatIsTooLongHidesNoOther) {
  const std::string root = mount_point(), own = "/sockalarm-test-" + std::to_string(::getpid());
  if (root.empty() || ::mkdir((root + own).c_str(), 0755) != 0) GTEST_SKIP() << "may not make a cgroup here";
  const std::string name(200, 'x');
  std::vector<UniqueFd> deeper;
  deeper.emplace_back(::open((root + own).c_str(), O_PATH | O_CLOEXEC));
  for (std::size_t depth = 0; depth <= PATH_MAX / name.size() + 1; ++depth) {
    EXPECT_EQ(::mkdirat(deeper.back().get(), name.c_str(), 0755), 0) << depth;
    deeper.emplace_back(::openat(deeper.back().get(), name.c_str(), O_PATH | O_CLOEXEC));
  }
  struct stat deepest{};
  EXPECT_EQ(::fstat(deeper.back().get(), &deepest), 0);
  const auto look = [&] {
    auto paths = CgroupPaths::open().value();
    for (const auto& [id, path] : {std::pair(inode(root + own), std::optional(own)),
                                   std::pair(std::uint64_t(deepest.st_ino), std::optional<std::string>())}) {
      std::optional<Result<std::optional<std::string>>> found;
      EXPECT_TRUE(eventually([&] {
        found = paths.path(id);
        return found->has_value();
      })) << found->error().message();
      if (*found) {
        EXPECT_EQ(found->value(), path);
      }
    }
    EXPECT_TRUE(paths.exists(inode(root + own)));
  };
  look();
  FailingCall not_permitted({"open_by_handle_at()", SYS_open_by_handle_at, EPERM}, kEvery);
  not_permitted.run(look);
  for (deeper.pop_back(); !deeper.empty(); deeper.pop_back())
    EXPECT_EQ(::unlinkat(deeper.back().get(), name.c_str(), AT_REMOVEDIR), 0);
  EXPECT_EQ(::rmdir((root + own).c_str()), 0);
}

}  // namespace
}  // namespace sockalarm::observe
