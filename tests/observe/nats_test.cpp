// SPDX-License-Identifier: Apache-2.0
// One broker: it comes late, dies, does not answer; the agent dies.
#include <algorithm>

#include "harness/ports.h"
#include "observe/nats_server.h"
#include "observe/samples.h"

namespace sockalarm::observe {
namespace {

using namespace test;
using namespace std::chrono_literals;
using sockalarm::test::free_port;

class Nats : public ::testing::Test {
 protected:
  NatsOptions options() const {
    NatsOptions given;
    given.servers = server_.url();
    given.max_wait = 1000ms;
    given.least_backoff = 50ms;
    given.most_backoff = 1000ms;
    return given;
  }
  std::unique_ptr<NatsSink> open(const NatsOptions& given) {
    auto sink = NatsSink::open(sample_host(), given, spool_, losses_, [this](const Error& error) {
      const std::lock_guard lock(mutex_);
      errors_.push_back(error.message());
    });
    EXPECT_TRUE(sink) << sink.error().message();
    return sink ? std::move(*sink) : nullptr;
  }
  bool told_of(const std::string& part) {
    const std::lock_guard lock(mutex_);
    return std::any_of(errors_.begin(), errors_.end(),
                       [&](auto& error) { return error.find(part) != std::string::npos; });
  }
  static void write(NatsSink& sink, std::uint64_t from, std::uint64_t count) {
    for (auto number = from; number < from + count; ++number) {
      const ConnectionEnd end = sample_end(number);
      ASSERT_TRUE(sink.write({event_id(sample_host(), end), end.cause, to_json(sample_host(), end)}));
    }
    ASSERT_TRUE(sink.flush());
  }
  static bool all_acknowledged(NatsSink& sink) {
    return eventually([&] { return sink.spool().pending == 0; }, 120s);
  }

  Folder folder_;
  NatsServer server_{folder_.path(), "alone", free_port()};
  Spool::Options spool_{folder_ / "spool", 16 << 20, 1h};
  Losses losses_;
  std::mutex mutex_;
  std::vector<std::string> errors_;
};

TEST_F(Nats, WhatCameBeforeTheBrokerIsSentWhenItIsThere) {
  const auto sink = open(options());
  ASSERT_TRUE(sink);
  write(*sink, 1, 100);
  EXPECT_EQ(sink->spool().pending, 100U);
  server_.start();
  Consumer consumer(server_.url());
  consumer.make_stream(1, 1h);
  ASSERT_TRUE(all_acknowledged(*sink));
  write(*sink, 101, 100);
  ASSERT_TRUE(all_acknowledged(*sink));
  const auto ids = consumer.ids(200, 60s);
  EXPECT_EQ(ids.size(), 200U);
  for (std::uint64_t number = 1; number <= 200; ++number)
    EXPECT_EQ(ids.count(event_id(sample_host(), sample_end(number))), 1U) << number;
  EXPECT_EQ(consumer.last_subject, "sockalarm.v1.eu-1.web-1_example.peer_reset");
  EXPECT_NE(consumer.last_json.find("\"schema\":\"sockalarm.connection_ended.v1\""), std::string::npos);
  EXPECT_EQ(sink->figures().waiting, 0U);
}

TEST_F(Nats, ASecondLifeOfTheAgentSendsWhatTheFirstLeftAndNothingTwice) {
  {
    const auto sink = open(options());
    write(*sink, 1, 50);
  }
  server_.start();
  Consumer consumer(server_.url());
  consumer.make_stream(1, 1h);
  {
    const auto sink = open(options());
    write(*sink, 51, 50);
    ASSERT_TRUE(all_acknowledged(*sink));
  }
  std::filesystem::remove(spool_.folder / "acknowledged");
  const auto sink = open(options());
  write(*sink, 51, 60);  // the first fifty once more
  ASSERT_TRUE(all_acknowledged(*sink));
  const auto ids = consumer.ids(110, 60s);
  EXPECT_EQ(ids.size(), 110U);
  EXPECT_GE(sink->figures().duplicates, 50U);
}

TEST_F(Nats, ABrokerThatNeverAnswersKeepsTheWindowAndTheSpoolWithinTheirBounds) {
  server_.start();
  Consumer consumer(server_.url());
  consumer.make_stream(1, 1h);
  spool_.max_bytes = 256 << 10;
  NatsOptions given = options();
  given.window = 16;
  const auto sink = open(given);
  ASSERT_TRUE(eventually([&] { return sink->figures().connected.load(); }, 60s));
  server_.stop_and_continue(true);  // the connection stands, and nobody is there
  std::uint64_t written = 0;
  while (losses_.spool_size == 0 && written < 2000) write(*sink, ++written, 1);
  EXPECT_GT(losses_.spool_size, 0U);
  EXPECT_TRUE(eventually([&] { return sink->figures().retried >= 16; }, 60s))
      << "each is given up after max_wait";
  EXPECT_LE(sink->figures().waiting, 16U);
  EXPECT_LE(sink->spool().bytes, spool_.max_bytes);
  server_.stop_and_continue(false);
  ASSERT_TRUE(all_acknowledged(*sink));
  ASSERT_TRUE(eventually([&] { return sink->figures().waiting == 0; }, 60s));
  const auto ids = consumer.ids(written - losses_.spool_size, 60s);
  const std::set<std::string> different(ids.begin(), ids.end());
  EXPECT_EQ(different.size(), ids.size());
  EXPECT_GE(different.size() + losses_.spool_size, written) << "nothing is lost but what is counted";
}

TEST_F(Nats, SaysThatTheStreamIsNotThereOrForgetsTooSoon) {
  server_.start();
  {
    const auto sink = open(options());
    EXPECT_TRUE(eventually([&] { return told_of("make it with the subject sockalarm.v1.>"); }, 60s));
  }
  Consumer consumer(server_.url());
  consumer.make_stream(1, 2min);
  const auto sink = open(options());
  EXPECT_TRUE(eventually([&] { return told_of("raise its duplicate window"); }, 60s));
}

TEST(NatsSubject, HasNoMoreTokensThanItShould) {
  Host host = sample_host();
  host.name = "a.b *>\xc3\xa9";
  host.region.clear();
  EXPECT_EQ(nats_subject(host, Cause::timeout), "sockalarm.v1.none.a_b_____.timeout");
}

}  // namespace
}  // namespace sockalarm::observe
