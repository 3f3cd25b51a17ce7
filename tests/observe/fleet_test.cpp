// SPDX-License-Identifier: Apache-2.0
// `sockalarm fleet` before a real broker: each record once, over restarts of everybody.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "harness/ports.h"
#include "integration/cli.h"
#include "observe/nats_server.h"
#include "observe/samples.h"

namespace sockalarm::observe {
namespace {

using namespace test;
using namespace std::chrono_literals;
using nlohmann::json;
using sockalarm::test::cli;
using sockalarm::test::Ended;
using sockalarm::test::free_port;
using sockalarm::test::null;
using sockalarm::test::Output;
using sockalarm::test::Process;

Host host_a() { return {std::string(32, 'a'), std::string(32, 'b'), "web-1.example", "eu-1"}; }
Host host_b() { return {std::string(32, 'c'), std::string(32, 'd'), "db-2", "us-1"}; }

class Fleet : public ::testing::Test {
 protected:
  struct Done {
    Ended ended;
    std::string text;
    std::vector<std::string> ids() const {
      std::vector<std::string> all;
      std::istringstream lines(text);
      for (std::string line; std::getline(lines, line);) all.push_back(json::parse(line)["event.id"]);
      return all;
    }
  };

  void begin() {
    server_.start();
    consumer_ = std::make_unique<Consumer>(server_.url());
    consumer_->make_stream(1, 1s);
  }
  std::vector<std::string> words(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), "fleet");
    arguments.insert(arguments.begin() + 2, {"--server", server_.url()});
    return cli(std::move(arguments));
  }
  Done run(std::vector<std::string> arguments) const {
    const UniqueFd nothing = null();
    const Output out;
    Process process(words(std::move(arguments)), nothing.get(), out.fd());
    Done done;
    done.ended = process.wait();
    done.text = out.text();
    return done;
  }
  void publish(const Host& host, const ConnectionEnd& end) const {
    consumer_->publish(nats_subject(host, end.cause), to_json(host, end));
  }
  void publish(const Host& host, std::uint64_t from, std::uint64_t count) const {
    for (auto number = from; number < from + count; ++number) publish(host, sample_end(number));
  }
  static std::vector<std::string> ids_of(const Host& host, std::uint64_t from, std::uint64_t count) {
    std::vector<std::string> ids;
    for (auto number = from; number < from + count; ++number)
      ids.push_back(event_id(host, sample_end(number)));
    return ids;
  }

  ServerFolder folder_;
  NatsServer server_{folder_, "alone", free_port()};
  std::unique_ptr<Consumer> consumer_;
};

TEST_F(Fleet, PrintsEachRecordOfAllHostsOnceThoughItCameTwice) {
  begin();
  publish(host_a(), 1, 20);
  publish(host_b(), 1, 20);
  publish(host_a(), 1, 20);  // without a Nats-Msg-Id, as if the duplicate window were over
  publish(host_a(), 21, 1);
  const auto done = run({"events", "--all", "--json", "--count", "41"});
  EXPECT_EQ(done.ended.status, 0) << done.ended.errors;
  auto expected = ids_of(host_a(), 1, 20);
  const auto of_b = ids_of(host_b(), 1, 20), last = ids_of(host_a(), 21, 1);
  expected.insert(expected.end(), of_b.begin(), of_b.end());
  expected.insert(expected.end(), last.begin(), last.end());
  EXPECT_EQ(done.ids(), expected);
}

TEST_F(Fleet, GoesOnWhereTheDurableStopped) {
  begin();
  publish(host_a(), 1, 10);
  EXPECT_EQ(run({"events", "--durable", "audit", "--all", "--json", "--count", "4"}).ids(),
            ids_of(host_a(), 1, 4));
  EXPECT_EQ(run({"events", "--durable", "other", "--all", "--json", "--count", "1"}).ids(),
            ids_of(host_a(), 1, 1));
  server_.kill();
  server_.start();
  consumer_ = std::make_unique<Consumer>(server_.url());  // it listens before it knows its streams
  ASSERT_TRUE(eventually([&] { return consumer_->has_durable("audit"); }));
  const auto second = run({"events", "--durable", "audit", "--all", "--json", "--count", "6"});
  EXPECT_EQ(second.ids(), ids_of(host_a(), 5, 6));
  EXPECT_NE(second.ended.errors.find("goes on where the durable 'audit' stopped"), std::string::npos);

  EXPECT_NE(run({"events", "--durable", "audit", "--delete"}).ended.errors.find("'audit' is deleted"),
            std::string::npos);
  const auto again = run({"events", "--durable", "audit", "--delete"});
  EXPECT_EQ(again.ended.status, 0);
  EXPECT_NE(again.ended.errors.find("'audit' is not known there"), std::string::npos);
  EXPECT_EQ(run({"events", "--durable", "audit", "--all", "--json", "--count", "1"}).ids(),
            ids_of(host_a(), 1, 1));
}

TEST_F(Fleet, FollowsThroughARestartOfTheBrokerAndEndsByASignalWithNothingLost) {
  begin();
  const UniqueFd nothing = null();
  const Output out;
  const auto lines = [&] {
    const std::string text = out.text();
    return std::count(text.begin(), text.end(), '\n');
  };
  Process process(words({"events", "--durable", "d", "--json"}), nothing.get(), out.fd());
  ASSERT_TRUE(eventually([&] { return consumer_->has_durable("d"); })) << process.errors();
  publish(host_a(), 1, 3);
  ASSERT_TRUE(eventually([&] { return lines() == 3; })) << process.errors();
  server_.kill();
  ASSERT_TRUE(eventually([&] { return process.errors().find("have gone") != std::string::npos; }));
  server_.start();
  ASSERT_TRUE(eventually([&] { return process.errors().find("are back") != std::string::npos; }));
  publish(host_a(), 4, 3);
  ASSERT_TRUE(eventually([&] { return lines() == 6; })) << process.errors();
  ::kill(process.pid(), SIGINT);
  EXPECT_EQ(process.wait().status, 128 + SIGINT);
  publish(host_a(), 7, 1);
  EXPECT_EQ(run({"events", "--durable", "d", "--json", "--count", "1"}).ids(), ids_of(host_a(), 7, 1));
}

TEST_F(Fleet, ShowsWhatIsWanted) {
  begin();
  publish(host_a(), 1, 3);
  publish(host_b(), 1, 2);
  ConnectionEnd fin = sample_end(9);
  fin.cause = Cause::peer_fin;
  fin.verdict = Verdict::idle_close;
  fin.service = "nginx.service";
  publish(host_b(), fin);
  EXPECT_EQ(run({"events", "--all", "--json", "--host", "web-1.example", "--count", "3"}).ids(),
            ids_of(host_a(), 1, 3));
  EXPECT_EQ(run({"events", "--all", "--json", "--region", "us-1", "--count", "2"}).ids(),
            ids_of(host_b(), 1, 2));
  const auto text = run({"events", "--all", "--durable", "f", "--filter", "cause=peer_fin", "--count", "1"});
  EXPECT_NE(text.text.find(" db-2 "), std::string::npos) << text.text;
  EXPECT_NE(text.text.find(" nginx.service "), std::string::npos) << text.text;
  EXPECT_EQ(run({"events", "--since", "1h", "--durable", "g", "--json", "--count", "1"}).ids(),
            ids_of(host_a(), 1, 1));

  const auto other = run({"events", "--durable", "f", "--host", "db-2", "--count", "1"});
  EXPECT_EQ(other.ended.status, 125);
  EXPECT_NE(other.ended.errors.find("the durable 'f' is for 'sockalarm.v1.*.*.*'"), std::string::npos)
      << other.ended.errors;
}

TEST_F(Fleet, TopCountsWhatIsThere) {
  begin();
  publish(host_a(), 1, 8);
  publish(host_a(), 1, 8);  // again
  publish(host_b(), 1, 3);
  ConnectionEnd idle = sample_end(9);
  idle.cause = Cause::peer_fin;
  idle.verdict = Verdict::idle_close;
  idle.service = "nginx.service";
  publish(host_b(), idle);
  const auto rows = [&](std::vector<std::string> more, json& whole) {
    more.insert(more.begin(), {"top", "--once", "--json", "--all"});
    const auto done = run(std::move(more));
    EXPECT_EQ(done.ended.status, 0) << done.ended.errors;
    whole = json::parse(done.text, nullptr, false);
    return whole.value("rows", json::array());
  };
  json whole;
  json services = rows({}, whole);
  ASSERT_EQ(services.size(), 1U) << whole;
  EXPECT_EQ(services[0]["service"], "shop.service");
  EXPECT_EQ(services[0]["aborts"], 11);
  EXPECT_EQ(services[0]["causes"], (json{{"peer_reset", 11}}));
  EXPECT_DOUBLE_EQ(services[0]["orphaned_seconds"], 16.5);
  EXPECT_EQ(whole["all"]["ends"], 12);
  EXPECT_EQ(whole["hosts"], 2);
  EXPECT_EQ(whole["records"], 12);
  EXPECT_EQ(whole["duplicates"], 8);
  EXPECT_GT(whole["seconds"], 0);

  json both = rows({"--by", "both", "--idle", "--sort", "aborts"}, whole);
  ASSERT_EQ(both.size(), 3U) << whole;
  EXPECT_EQ(both[0]["host"], "web-1.example");
  EXPECT_EQ(both[0]["service"], "shop.service");
  EXPECT_EQ(both[0]["aborts"], 8);
  EXPECT_EQ(both[1]["host"], "db-2");
  EXPECT_EQ(both[1]["aborts"], 3);
  EXPECT_EQ(both[2]["service"], "nginx.service");
  EXPECT_EQ(rows({"--filter", "service=nginx.service", "--idle"}, whole).size(), 1U);
  EXPECT_EQ(whole["all"]["ends"], 1);

  const auto text = run({"top", "--once", "--by", "host"});
  EXPECT_NE(text.text.find("stream SOCKALARM, 2 hosts"), std::string::npos) << text.text;
  EXPECT_NE(text.text.find("web-1.example"), std::string::npos) << text.text;
  EXPECT_EQ(consumer_->durables(), 0U) << "nothing stays";
}

TEST_F(Fleet, TopFollows) {
  begin();
  publish(host_a(), 1, 2);
  const UniqueFd nothing = null();
  const Output out;
  Process process(words({"top", "--json", "--interval", "100ms"}), nothing.get(), out.fd());
  const auto aborts = [&] {
    const std::string text = out.text();
    const auto end = text.rfind('\n');
    if (end == std::string::npos) return -1;
    const auto begin = end == 0 ? std::string::npos : text.rfind('\n', end - 1);
    return json::parse(text.substr(begin + 1, end - begin - 1))["all"]["aborts"].get<int>();
  };
  ASSERT_TRUE(eventually([&] { return aborts() == 2; })) << process.errors();
  publish(host_b(), 1, 3);
  ASSERT_TRUE(eventually([&] { return aborts() == 5; })) << process.errors();
  ::kill(process.pid(), SIGTERM);
  EXPECT_EQ(process.wait().status, 128 + SIGTERM);
  EXPECT_EQ(consumer_->durables(), 0U) << "nothing stays";
}

TEST_F(Fleet, SaysWhatIsMissingAndWhatToDo) {
  const auto none = run({"events", "--count", "1"});
  EXPECT_EQ(none.ended.status, 2);
  EXPECT_NE(none.ended.errors.find("cannot reach the NATS servers '" + server_.url() + "'"),
            std::string::npos)
      << none.ended.errors;
  server_.start();
  const Consumer waited_for(server_.url());
  for (const char* what : {"events", "top"}) {
    const auto no_stream = run({what, "--all"});
    EXPECT_EQ(no_stream.ended.status, 2);
    EXPECT_NE(no_stream.ended.errors.find("nats stream add SOCKALARM --subjects 'sockalarm.v1.>'"),
              std::string::npos)
        << no_stream.ended.errors;
  }
  for (const auto& [arguments, words] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"events", "--durable", "a.b"}, "the name of the durable, 'a.b', must not"},
           {{"events", "--all", "--since", "1h"}, "give one of them"},
           {{"events", "--count", "none"}, "--count 'none' is no number above 0"},
           {{"top", "--by", "port"}, "expected service, host or both"}}) {
    const auto refused = run(arguments);
    EXPECT_EQ(refused.ended.status, 125);
    EXPECT_NE(refused.ended.errors.find(words), std::string::npos) << refused.ended.errors;
  }
}

}  // namespace
}  // namespace sockalarm::observe
