// SPDX-License-Identifier: Apache-2.0
// What is encoded is what the schema says, in every value of every enumeration.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>

#include "observe/samples.h"

namespace sockalarm::observe {
namespace {

int exit_of_validator(const std::string& lines) {
  FILE* validator = ::popen(SOCKALARM_PYTHON " " SOCKALARM_VALIDATE " " SOCKALARM_SCHEMA, "we");
  EXPECT_NE(validator, nullptr);
  EXPECT_EQ(std::fwrite(lines.data(), 1, lines.size(), validator), lines.size());
  const int status = ::pclose(validator);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(Schema, HoldsForEveryKindOfEnd) {
  std::string lines;
  for (int cause = 0; cause <= static_cast<int>(Cause::local); ++cause)
    for (int verdict = 0; verdict <= static_cast<int>(Verdict::local); ++verdict)
      for (int direction = 0; direction <= static_cast<int>(Direction::outbound); ++direction) {
        ConnectionEnd end = test::sample_end(static_cast<std::uint64_t>(cause));
        end.cause = static_cast<Cause>(cause);
        end.verdict = static_cast<Verdict>(verdict);
        end.direction = static_cast<Direction>(direction);
        end.container = std::string(64, 'c');
        end.pod = "8dbc1c2e-6b5f-4f6e-9a3b-0d3c5a7e9f10";
        lines += to_json(test::sample_host(), end) + "\n";
      }
  ConnectionEnd bare;
  bare.family = AF_INET6;
  lines += to_json(Host{std::string(32, '0'), std::string(32, '1'), "", ""}, bare) + "\n";
  EXPECT_EQ(exit_of_validator(lines), 0);
}

TEST(Schema, RefusesWhatIsWrong) {
  std::string line = to_json(test::sample_host(), test::sample_end(1));
  line.replace(line.find("peer_reset"), 10, "no_such_as");
  EXPECT_EQ(exit_of_validator(line + "\n"), 3);
}

}  // namespace
}  // namespace sockalarm::observe
