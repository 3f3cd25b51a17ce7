// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <iostream>
#include <string>

#include "harness/alarms.h"
#include "harness/daemon.h"

// The suite. Tests over the daemon source run as user nobody, who has no privilege: a daemon serves him. They
// run if they are asked for ("*/daemon*"), and then they alone.
namespace sockalarm::test {
namespace {

int run_as_nobody(const std::string& socket) {
  ::setenv("SOCKALARM_TEST_DAEMON_SOCKET", socket.c_str(), 1);
  const pid_t child = ::fork();
  if (child == 0) {
    if (!become(kNobody)) ::_exit(2);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int status = RUN_ALL_TESTS();
    ::fflush(nullptr);
    ::_exit(status);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 3;
}

bool asks_for_the_daemon(const std::string& filter) {
  return filter.substr(0, filter.find('-')).find("/daemon") != std::string::npos;
}

}  // namespace
}  // namespace sockalarm::test

int main(int argc, char** argv) {
  using namespace sockalarm::test;
  testing::InitGoogleTest(&argc, argv);
  if (testing::GTEST_FLAG(list_tests)) return RUN_ALL_TESTS();
  std::string& filter = testing::GTEST_FLAG(filter);
  if (!asks_for_the_daemon(filter)) {
    filter += filter.find('-') == std::string::npos ? "-*/daemon*" : ":*/daemon*";
    return RUN_ALL_TESTS();
  }
  if (::geteuid() != 0 && !kernel_required()) {
    std::cout << "[  SKIPPED ] a daemon needs root\n";
    return 0;
  }
  try {
    const DaemonHome home;
    DaemonProcess daemon(home);
    const int status = run_as_nobody(home.socket());
    if (const int ended = daemon.stop(); ended != 0) {
      std::cerr << "sockalarmd ended with status " << ended << "\n";
      return 4;
    }
    return status;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 5;
  }
}
