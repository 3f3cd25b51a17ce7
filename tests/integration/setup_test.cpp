// SPDX-License-Identifier: Apache-2.0
#include "integration/cli.h"

// scripts/setup where it may not install anything. SOCKALARM_SETUP is the script.

namespace sockalarm::test {
namespace {

class SetupTest : public ::testing::Test {
 protected:
  SetupTest() { std::filesystem::create_directory(programs_.text()); }

  // The only programs that it finds: these, and what `borrow` takes from the machine.
  void provide(const std::string& name, const std::string& script) {
    const std::string path = programs_.text() + "/" + name;
    std::ofstream(path) << "#!/bin/sh\n" << script << "\n";
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
  }
  void borrow(const std::string& name) { provide(name, "PATH=/usr/bin:/bin exec " + name + " \"$@\""); }

  Ended run() {
    const UniqueFd nothing = null();
    return Process({"/bin/bash", SOCKALARM_SETUP, "build"}, nothing.get(), nothing.get(),
                   [&] { ::setenv("PATH", programs_.text().c_str(), 1); })
        .wait();
  }
  void says(const Ended& ended, const std::vector<std::string>& words) {
    EXPECT_EQ(ended.status, 1);
    for (const std::string& word : words)
      EXPECT_NE(ended.errors.find(word), std::string::npos) << word << " in " << ended.errors;
    EXPECT_EQ(ended.errors.find("cmake"), std::string::npos) << "that is there: " << ended.errors;
    EXPECT_FALSE(called_.exists()) << "it tried to install";
  }

  const TemporaryPath programs_{"setup"}, called_{"setup-called"};
  // ninja-build and libbpf-dev are missing.
  const std::string some_ = "case $4 in ninja-build | libbpf-dev) exit 1 ;; esac; echo install ok installed";
};

TEST_F(SetupTest, WithoutRootItListsWhatToInstall) {
  borrow("sort");
  provide("dpkg-query", some_);
  provide("id", "echo 1000");
  provide("apt-get", "touch " + called_.text());
  says(run(), {"Run: sudo apt-get install", "ninja-build", "libbpf-dev"});
}

TEST_F(SetupTest, WithASudoThatAsksForAPasswordToo) {
  borrow("sort");
  provide("dpkg-query", some_);
  provide("id", "echo 1000");
  provide("sudo", "exit 1");
  provide("apt-get", "touch " + called_.text());
  says(run(), {"Run: sudo apt-get install", "ninja-build", "libbpf-dev"});
}

TEST_F(SetupTest, WithoutAptItListsWhatToInstall) {
  borrow("sort");
  provide("dpkg-query", some_);
  provide("id", "echo 0");
  says(run(), {"no apt-get here", "ninja-build", "libbpf-dev"});
}

TEST_F(SetupTest, WithoutRootAndWithoutAptItListsWhatToInstall) {
  borrow("sort");
  provide("dpkg-query", some_);
  provide("id", "echo 1000");
  says(run(), {"ninja-build", "libbpf-dev"});
}

TEST_F(SetupTest, DoesNothingWhereNothingIsMissing) {
  borrow("sort");
  provide("dpkg-query", "echo install ok installed");
  provide("id", "echo 1000");
  EXPECT_EQ(run().status, 0);
}

}  // namespace
}  // namespace sockalarm::test
