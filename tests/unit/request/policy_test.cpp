// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sockalarm/policy.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>

namespace sockalarm {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::StartsWith;

TEST(Policy, HasTheAncestorsDefaults) {
  const Policy policy;
  EXPECT_EQ(policy.limit, 180s);
  EXPECT_EQ(policy.call_limit, 0s);
  EXPECT_FALSE(policy.forward);
  EXPECT_EQ(policy.on, events::shut);
  EXPECT_TRUE(check_policy(policy));
}

TEST(Policy, RefusesWhatMeansNothing) {
  const auto message = [](const Policy& policy) {
    const auto checked = check_policy(policy);
    return checked ? std::string() : checked.error().message();
  };
  EXPECT_THAT(message({.limit = -1s}), StartsWith("limit: "));
  EXPECT_THAT(message({.call_limit = -1ns}), StartsWith("call_limit: "));
  EXPECT_THAT(message({.forward = true}), HasSubstr("call_limit"));
  EXPECT_THAT(message({.on = events::none}), StartsWith("on: none"));
  EXPECT_THAT(message({.on = events::shut | events::readable}), StartsWith("on: "));
  EXPECT_THAT(message({.overrides = {{"^/a", 1s}, {"^/b", -1s}}}), StartsWith("override[1].limit: "));
  EXPECT_THAT(message({.overrides = {{"(", 1s}}}), StartsWith("override[0].path: '('"));
}

TEST(Policy, FromToml) {
  const auto policy = parse_policy(R"(
# seconds, or with a unit
limit = 90
call_limit = 2.5
forward = true
on = "reset,timeout"

[[override]]
path = '^/ajax/'
limit = "250ms"

[[override]]
path = '^/export/.*\.csv$'
limit = 0
)");
  ASSERT_TRUE(policy) << policy.error().message();
  EXPECT_EQ(policy->limit, 90s);
  EXPECT_EQ(policy->call_limit, 2500ms);
  EXPECT_TRUE(policy->forward);
  EXPECT_EQ(policy->on, events::reset | events::timeout);
  ASSERT_EQ(policy->overrides.size(), 2U);
  EXPECT_EQ(policy->overrides[0].path, "^/ajax/");
  EXPECT_EQ(policy->overrides[0].limit, 250ms);
  EXPECT_EQ(policy->overrides[1].limit, 0s);
}

// On which toml++ 3.3, taken as it is, ends the process or reaches code that it declared unreachable.
TEST(Policy, RefusesKeysThatAreNone) {
  for (const std::string toml :
       {"limit = 1\n[=]\n", "limit = 1\n[\001z]\n", "limit = 1\n[a.=]\n", "limit = 1\n\u00e9 = 1\n"}) {
    const auto policy = parse_policy(toml, "site.toml");
    ASSERT_FALSE(policy) << toml;
    EXPECT_THAT(policy.error().message(), StartsWith("site.toml:2: "));
  }
}

TEST(Policy, FromAnEmptyFileIsTheDefault) {
  const auto policy = parse_policy("");
  ASSERT_TRUE(policy);
  EXPECT_EQ(policy->limit, 180s);
}

struct Wrong {
  const char* toml;
  const char* begins;  // of the message
  const char* says;
};

class WrongToml : public testing::TestWithParam<Wrong> {};

TEST_P(WrongToml, NamesFileLineAndKey) {
  const auto policy = parse_policy(GetParam().toml, "site.toml");
  ASSERT_FALSE(policy);
  EXPECT_EQ(policy.error().code(), Errc::invalid_policy);
  EXPECT_THAT(policy.error().message(), StartsWith(GetParam().begins));
  EXPECT_THAT(policy.error().message(), HasSubstr(GetParam().says));
}

INSTANTIATE_TEST_SUITE_P(
    Policy, WrongToml,
    testing::Values(Wrong{"limit = \n", "site.toml:1: ", "value"},
                    Wrong{"\n\nlimmit = 3", "site.toml:3: limmit: ", "expected limit"},
                    Wrong{"limit = -1", "site.toml:1: limit: ", "expected 0"},
                    Wrong{"limit = nan", "site.toml:1: limit: ", "expected 0"},
                    Wrong{"limit = inf", "site.toml:1: limit: ", "expected 0"},
                    Wrong{"limit = 1e-12", "site.toml:1: limit: ", "nanosecond"},
                    Wrong{"limit = 1e300", "site.toml:1: limit: ", "expected 0"},
                    Wrong{"limit = 9223372036854775807", "site.toml:1: limit: ", "expected 0"},
                    Wrong{"limit = -9223372036854775808", "site.toml:1: limit: ", "expected 0"},
                    Wrong{"limit = true", "site.toml:1: limit: ", "expected seconds"},
                    Wrong{"\ncall_limit = \"2 weeks\"", "site.toml:2: call_limit: ", "2 weeks"},
                    Wrong{"call_limit = 1\nforward = 1", "site.toml:2: forward: ", "true or false"},
                    Wrong{"limit = 3\nforward = true", "site.toml:2: forward: ", "call_limit"},
                    Wrong{"on = 3", "site.toml:1: on: ", "text"},
                    Wrong{"on = \"fin,gone\"", "site.toml:1: on: ", "gone"},
                    Wrong{"on = \"fin,readable\"", "site.toml:1: on: ", "expected some of"},
                    Wrong{"override = 3", "site.toml:1: override: ", "[[override]]"},
                    Wrong{"[[override]]\npath = '^/a'", "site.toml:1: override: ", "no limit"},
                    Wrong{"[[override]]\nlimit = 1", "site.toml:1: override: ", "no path"},
                    Wrong{"[[override]]\nlimit = 1\npath = '^/a'\n[[override]]\npath = '('\nlimit = 1",
                          "site.toml:5: override.path: '(' is", "RE2"},
                    Wrong{"[[override]]\npath = 3\nlimit = 1", "site.toml:2: override.path: ", "text"},
                    Wrong{"[[override]]\npath = '^/a'\nlimit = 1\nunless = 2",
                          "site.toml:4: override.unless: ", "expected path"}));

TEST(Policy, FromAFile) {
  std::string path = "/tmp/sockalarm-policy-XXXXXX";
  ::close(::mkstemp(path.data()));
  std::ofstream(path) << "limit = '3s'\ncall_limit = 'soon'\n";
  const auto wrong = load_policy(path);
  ASSERT_FALSE(wrong);
  EXPECT_THAT(wrong.error().message(), StartsWith(path + ":2: call_limit: "));
  std::ofstream(path) << "limit = '3s'\n";
  const auto policy = load_policy(path);
  ASSERT_TRUE(policy) << policy.error().message();
  EXPECT_EQ(policy->limit, 3s);
  ::unlink(path.c_str());
  const auto missing = load_policy(path);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code().value(), ENOENT);
  EXPECT_THAT(missing.error().message(), HasSubstr(path));
  EXPECT_EQ(load_policy("/tmp").error().code().value(), EISDIR);
}

}  // namespace
}  // namespace sockalarm
