// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sockalarm/access_log.h>

#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <nlohmann/json.hpp>

namespace sockalarm {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::Not;

Record abandoned() {
  Record record;
  record.path = "/report";
  record.began =
      std::chrono::system_clock::from_time_t(979'028'835) + 1500us;  // 9 January 2001, 08:27:15 UTC
  record.total = 2'500ms;
  record.limit = 180s;
  record.override_matched = "^/rep";
  record.sounded.push_back({StopCause::call_limit, "query", 250ms, 300ms, 10ms, false});
  record.sounded.push_back({StopCause::request_limit, "render", 2s, 2s, 0ms, true});
  record.aborted = true;
  record.cause = events::reset;
  record.error = ECONNRESET;
  record.busy = 1'234'567us;
  record.broken_pipe = true;
  record.shielded = 20ms;
  record.held_back = 10ms;
  record.pokes = 3;
  record.cleanups_run = 2;
  record.cleanups_failed = 1;
  return record;
}

const Exchange kExchange{.remote_host = "127.0.0.1",
                         .user = "alice",
                         .request_line = "GET /report HTTP/1.0",
                         .status = 499,
                         .bytes = 16,
                         .referer = "http://a/",
                         .user_agent = "curl"};

std::string line(std::string_view format, const Record& record, const Exchange& exchange) {
  const auto parsed = LogFormat::parse(format);
  return parsed ? parsed->line(record, exchange) : parsed.error().message();
}

class AccessLog : public testing::Test {
 protected:
  void SetUp() override {
    ::setenv("TZ", "CET-1", 1);
    ::tzset();
  }
  void TearDown() override {
    ::unsetenv("TZ");
    ::tzset();
  }
};

// The chapter's own format and its two lines.
TEST_F(AccessLog, AsTheChapterHasIt) {
  const char* const format = "%h %l %u %t \"%r\" %s %b %{SIGPIPE}e";
  const Exchange first{.remote_host = "127.0.0.1",
                       .request_line = "GET /perl/stopping_detector.pl HTTP/1.0",
                       .status = 200,
                       .bytes = 16};
  EXPECT_EQ(
      line(format, abandoned(), first),
      "127.0.0.1 - - [09/Jan/2001:09:27:15 +0100] \"GET /perl/stopping_detector.pl HTTP/1.0\" 200 16 1");
  Record kept = abandoned();
  kept.broken_pipe = false;
  EXPECT_TRUE(line(format, kept, first).ends_with(" 200 16 -"));
}

TEST_F(AccessLog, EveryFact) {
  EXPECT_EQ(line("%>s %X %D %T %U", abandoned(), kExchange), "499 X 2500000 2 /report");
  EXPECT_EQ(line("%{aborted}x %{cause}x %{error}x %{busy}x", abandoned(), kExchange),
            "1 reset " + std::to_string(ECONNRESET) + " 1234.567");
  EXPECT_EQ(line("%{sounded}x %{failed}x", abandoned(), kExchange), "query:250ms,request:2s query,render");
  EXPECT_EQ(line("%{shielded}x %{held}x %{limit}x %{override}x", abandoned(), kExchange),
            "20.000 10.000 180s ^/rep");
  EXPECT_EQ(line("%{pokes}x %{cleanups}x", abandoned(), kExchange), "3 2/1");
  EXPECT_EQ(line("%u %{Referer}i %{User-Agent}i %B 100%%", abandoned(), kExchange),
            "alice http://a/ curl 16 100%");
}

TEST_F(AccessLog, NothingToTell) {
  EXPECT_EQ(line("%h %u %s %b %B %X %{aborted}x %{cause}x %{error}x %{busy}x %{sounded}x %{failed}x", {}, {}),
            "- - - - 0 + - - - - - -");
  EXPECT_EQ(line("%{shielded}x %{held}x %{limit}x %{override}x %{pokes}x %{cleanups}x %{sigpipe}e", {}, {}),
            "- - - - - 0/0 -");
}

TEST_F(AccessLog, NoLineCanBeForged) {
  const Exchange hostile{.remote_host = "h",
                         .user = "a b",
                         .request_line = "GET /\" 200 1\n127.0.0.1 - - \\ \x7f\xc3\xa4",
                         .user_agent = "\t"};
  const std::string text = line("\"%r\" \"%{User-Agent}i\"", abandoned(), hostile);
  EXPECT_EQ(text, "\"GET /\\\" 200 1\\x0a127.0.0.1 - - \\\\ \\x7f\\xc3\\xa4\" \"\\x09\"");
  Record record;
  record.sounded.push_back({.call = "a\nb", .limit = 1s});
  EXPECT_EQ(line("%{sounded}x", record, {}), "a\\x0ab:1s");
  EXPECT_THAT(to_json(record, hostile), Not(HasSubstr("\n")));
}

TEST_F(AccessLog, UnknownDirectives) {
  for (const char* wrong : {"%q", "%{nonsense}x", "%{aborted", "%", "%>", "%{aborted}y", "%{Referer}I"}) {
    const auto format = LogFormat::parse(wrong);
    ASSERT_FALSE(format) << wrong;
    EXPECT_EQ(format.error().code(), Errc::invalid_text);
    EXPECT_THAT(format.error().message(), HasSubstr("%{aborted}x"));
  }
  EXPECT_TRUE(LogFormat::parse());
}

TEST_F(AccessLog, AsJson) {
  const auto json = nlohmann::json::parse(to_json(abandoned(), kExchange));
  const auto expected = nlohmann::json::parse(R"({
    "began": "2001-01-09T08:27:15.001500Z", "remote_host": "127.0.0.1", "user": "alice",
    "request": "GET /report HTTP/1.0", "status": 499, "bytes": 16, "referer": "http://a/", "user_agent": "curl",
    "path": "/report", "total": 2.5, "limit": 180.0, "override": "^/rep", "aborted": true, "cause": "reset",
    "errno": 104, "busy": 1.234567, "broken_pipe": true, "shielded": 0.02, "held_back": 0.01, "pokes": 3,
    "cleanups": 2, "cleanups_failed": 1, "sounded": [
      {"limit_of": "call", "call": "query", "limit": 0.25, "after": 0.3, "held": 0.01, "fatal": false},
      {"limit_of": "request", "call": "render", "limit": 2.0, "after": 2.0, "fatal": true}]})");
  EXPECT_EQ(json, expected);
}

TEST_F(AccessLog, JsonOfWhatIsNoText) {
  const auto json = nlohmann::json::parse(to_json({}, {.request_line = "GET /\xff\"\n"}));
  EXPECT_EQ(json["request"], "GET /\xef\xbf\xbd\"\n");
  EXPECT_FALSE(json.contains("sounded"));
  EXPECT_EQ(json["aborted"], false);
}

}  // namespace
}  // namespace sockalarm
