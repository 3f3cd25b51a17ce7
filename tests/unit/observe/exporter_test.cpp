// SPDX-License-Identifier: Apache-2.0
#include "observe/exporter.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <future>
#include <nlohmann/json.hpp>

#include "observe/folder.h"
#include "observe/jsonl_sink.h"
#include "observe/samples.h"

namespace sockalarm::observe {
namespace {

using namespace test;

struct Written {
  std::vector<std::string> ids;
  int flushes = 0;
};

// Waits at its first record until told to go on; fails where told to.
class SlowSink final : public Sink {
 public:
  SlowSink(Written& written, std::promise<void>& entered, std::shared_future<void> go, bool fails)
      : written_(written), entered_(entered), go_(std::move(go)), fails_(fails) {}
  Result<void> write(const Record& record) override {
    if (!std::exchange(began_, true)) entered_.set_value();
    go_.wait();
    if (fails_) return fail(Error::from_errno(EPIPE, "the sink of the test"));
    written_.ids.push_back(record.id);
    return {};
  }
  Result<void> flush() override {
    ++written_.flushes;
    return {};
  }

 private:
  Written& written_;
  std::promise<void>& entered_;
  std::shared_future<void> go_;
  bool fails_, began_ = false;
};

TEST(Exporter, AStuckSinkHoldsUpNobodyAndWhatItLosesIsCounted) {
  Losses losses;
  Written stuck, free;
  std::promise<void> go_stuck, go_free, stuck_entered, free_entered;
  go_free.set_value();
  {
    std::vector<std::unique_ptr<Sink>> sinks;
    sinks.push_back(std::make_unique<SlowSink>(stuck, stuck_entered, go_stuck.get_future().share(), false));
    sinks.push_back(std::make_unique<SlowSink>(free, free_entered, go_free.get_future().share(), false));
    Exporter exporter(sample_host(), {.per_second = 0, .queue = 100}, std::move(sinks), losses, {});
    exporter.offer(sample_end(0));
    stuck_entered.get_future().wait();  // so it holds one, and the queue is empty
    free_entered.get_future().wait();
    for (std::uint64_t number = 1; number <= 150; ++number) exporter.offer(sample_end(number));
    EXPECT_GE(losses.queue, 50U);
    go_stuck.set_value();
  }
  ASSERT_EQ(stuck.ids.size(), 101U) << "one in its hands, and the queue";
  EXPECT_EQ(stuck.ids[100], event_id(sample_host(), sample_end(100))) << "the newest were left out";
  EXPECT_EQ(stuck.ids.size() + free.ids.size() + losses.queue, 2 * 151U);
  EXPECT_GE(stuck.flushes, 1);
}

TEST(Exporter, AFailingSinkIsCountedAndToldOfOnce) {
  Losses losses;
  Written written;
  std::promise<void> go, entered;
  go.set_value();
  std::vector<std::string> errors;
  {
    std::vector<std::unique_ptr<Sink>> sinks;
    sinks.push_back(std::make_unique<SlowSink>(written, entered, go.get_future().share(), true));
    Exporter exporter(sample_host(), {}, std::move(sinks), losses,
                      [&](const Error& error) { errors.push_back(error.message()); });
    for (std::uint64_t number = 0; number < 10; ++number) exporter.offer(sample_end(number));
  }
  EXPECT_EQ(losses.sink, 10U);
  ASSERT_EQ(errors.size(), 1U);
  EXPECT_EQ(errors[0], "the sink of the test: Broken pipe");
}

TEST(RateLimit, AdmitsASecondsWorthAtOnceAndThenThatManyPerSecond) {
  RateLimit limit(10);
  auto now = RateLimit::Clock::now();
  int admitted = 0;
  for (int i = 0; i < 100; ++i) admitted += limit.admits(now);
  EXPECT_EQ(admitted, 10);
  now += std::chrono::milliseconds(501);
  for (int i = 0; i < 100; ++i) admitted += limit.admits(now);
  EXPECT_EQ(admitted, 15);
  now += std::chrono::hours(1);
  for (int i = 0; i < 100; ++i) admitted += limit.admits(now);
  EXPECT_EQ(admitted, 25);
  RateLimit none(0);
  EXPECT_TRUE(none.admits(now));
}

TEST(DescriptorSink, WritesALinePerRecord) {
  const Folder folder;
  {
    DescriptorSink sink(UniqueFd(::open((folder / "out").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)));
    ASSERT_TRUE(sink.write({"1", Cause::local, "{\"a\":1}"}));
    ASSERT_TRUE(sink.write({"2", Cause::local, "{\"a\":2}"}));
  }
  EXPECT_EQ(contents(folder / "out"), "{\"a\":1}\n{\"a\":2}\n");
}

TEST(DescriptorSink, SaysThatTheDiskIsFull) {
  DescriptorSink sink(UniqueFd(::open("/dev/full", O_WRONLY | O_CLOEXEC)));
  const auto written = sink.write({"1", Cause::local, "{}"});
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code().value(), ENOSPC);
}

TEST(RotatingFileSink, LosesNoLineAndKeepsNoMoreThanItShould) {
  const Folder folder;
  const auto line = [](int number) { return "{\"number\":" + std::to_string(100 + number) + "}"; };
  const std::size_t length = line(0).size() + 1;
  for (int run = 0; run < 2; ++run) {  // the second goes on with the files of the first
    auto sink = RotatingFileSink::open({folder / "ends.jsonl", 3 * length, 2});
    ASSERT_TRUE(sink) << sink.error().message();
    for (int i = 0; i < 4; ++i) ASSERT_TRUE((*sink)->write({"", Cause::local, line(4 * run + i)}));
  }
  EXPECT_EQ(contents(folder / "ends.jsonl"), line(6) + "\n" + line(7) + "\n");
  EXPECT_EQ(contents(folder / "ends.jsonl.1"), line(3) + "\n" + line(4) + "\n" + line(5) + "\n");
  EXPECT_EQ(contents(folder / "ends.jsonl.2"), line(0) + "\n" + line(1) + "\n" + line(2) + "\n");
  EXPECT_FALSE(std::filesystem::exists(folder / "ends.jsonl.3"));
}

TEST(RotatingFileSink, SaysWhichFileCannotBeOpened) {
  const auto sink = RotatingFileSink::open({"/no/such/folder/ends.jsonl", 1000, 1});
  ASSERT_FALSE(sink);
  EXPECT_EQ(sink.error().message(), "/no/such/folder/ends.jsonl: No such file or directory");
}

}  // namespace
}  // namespace sockalarm::observe
