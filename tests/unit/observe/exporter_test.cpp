// SPDX-License-Identifier: Apache-2.0
#include "observe/exporter.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/fsuid.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <future>
#include <new>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/blocked_signals.h"
#include "harness/alarms.h"
#include "harness/folder.h"
#include "harness/small_disk.h"
#include "observe/jsonl_sink.h"
#include "observe/samples.h"

namespace sockalarm::observe {
namespace {

using namespace test;
using sockalarm::test::contents;
using sockalarm::test::Folder;
using sockalarm::test::write_contents;

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

// Of a page, and full.
struct FullPipe {
  FullPipe() {
    int made[2];
    EXPECT_EQ(::pipe2(made, O_CLOEXEC), 0);
    reading = UniqueFd(made[0]);
    writing = UniqueFd(made[1]);
    EXPECT_GT(::fcntl(made[1], F_SETPIPE_SZ, 4096), 0);
    const std::string page(static_cast<std::size_t>(::fcntl(made[1], F_GETPIPE_SZ)), ' ');
    EXPECT_EQ(::write(made[1], page.data(), page.size()), static_cast<ssize_t>(page.size()));
  }
  std::unique_ptr<Sink> sink() const {
    return std::make_unique<DescriptorSink>(UniqueFd(::fcntl(writing.get(), F_DUPFD_CLOEXEC, 0)));
  }
  UniqueFd reading, writing;
};

TEST(Exporter, GivesUpAPipeThatNobodyReadsAndCountsWhatWasLeft) {
  for (const int flags : {0, O_NONBLOCK}) {
    const FullPipe pipe;
    ASSERT_EQ(::fcntl(pipe.writing.get(), F_SETFL, flags), 0);
    const int before = ::fcntl(pipe.writing.get(), F_GETFL);
    Losses losses;
    std::vector<std::unique_ptr<Sink>> sinks;
    sinks.push_back(pipe.sink());
    Exporter exporter(sample_host(), {}, std::move(sinks), losses, {});
    for (std::uint64_t number = 0; number < 10; ++number) exporter.offer(sample_end(number));
    exporter.stop(std::chrono::milliseconds(20));
    EXPECT_EQ(losses.queue, 10U);
    EXPECT_EQ(losses.sink, 0U);
    EXPECT_EQ(::fcntl(pipe.writing.get(), F_GETFL), before) << "of the description that others share";
  }
}

TEST(Exporter, TheEndWaitsForAPipeThatIsReadLate) {
  FullPipe pipe;
  Losses losses;
  std::string read;
  std::thread reader;
  {
    std::vector<std::unique_ptr<Sink>> sinks;
    sinks.push_back(pipe.sink());
    Exporter exporter(sample_host(), {}, std::move(sinks), losses, {});
    pipe.writing.reset();
    for (std::uint64_t number = 0; number < 10; ++number) exporter.offer(sample_end(number));
    reader = std::thread([&] {
      char bytes[1000];
      for (ssize_t count = 0; (count = ::read(pipe.reading.get(), bytes, sizeof bytes)) > 0;)
        read.append(bytes, static_cast<std::size_t>(count));
    });
    exporter.stop(sockalarm::test::kPatience);
  }
  reader.join();  // at the end of the file
  EXPECT_EQ(losses.queue, 0U);
  EXPECT_EQ(std::count(read.begin(), read.end(), '\n'), 10);
}

class ThrowingSink final : public Sink {
 public:
  explicit ThrowingSink(Written& written) : written_(written) {}
  Result<void> write(const Record& record) override {
    if (written_.ids.empty()) {
      written_.ids.emplace_back("none");
      throw std::bad_alloc();
    }
    if (written_.ids.size() == 1) {
      written_.ids.emplace_back("none");
      throw std::runtime_error("the sink of the test");
    }
    written_.ids.push_back(record.id);
    return {};
  }
  Result<void> flush() override {
    ++written_.flushes;
    throw std::runtime_error("flush()");
  }

 private:
  Written& written_;
};

TEST(Exporter, WhatASinkThrowsIsAFailureOfIt) {
  Losses losses;
  Written written;
  std::vector<std::string> errors;
  {
    std::vector<std::unique_ptr<Sink>> sinks;
    sinks.push_back(std::make_unique<ThrowingSink>(written));
    Exporter exporter(sample_host(), {}, std::move(sinks), losses, [&](const Error& error) {
      errors.push_back(error.message());
      throw std::runtime_error("the hook");
    });
    for (std::uint64_t number = 0; number < 3; ++number) exporter.offer(sample_end(number));
  }
  EXPECT_EQ(losses.sink, 2U);
  ASSERT_EQ(written.ids.size(), 3U);
  EXPECT_EQ(written.ids[2], event_id(sample_host(), sample_end(2)));
  EXPECT_GE(written.flushes, 1);
  ASSERT_FALSE(errors.empty());
  EXPECT_EQ(errors[0], "out of memory");
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

TEST(DescriptorSink, WritesLinesLongerThanAPipeAndToASocket) {
  const std::string json(100'000, 'x');
  const auto read_all = [](int fd, std::string& all) {
    char bytes[4000];
    for (ssize_t count = 0; (count = ::read(fd, bytes, sizeof bytes)) > 0;)
      all.append(bytes, static_cast<std::size_t>(count));
  };
  for (const bool is_socket : {false, true}) {
    int made[2];
    ASSERT_EQ(
        is_socket ? ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, made) : ::pipe2(made, O_CLOEXEC), 0);
    UniqueFd reading(made[0]);
    auto sink = std::make_unique<DescriptorSink>(UniqueFd(made[1]));
    std::string all;
    std::thread reader([&] { read_all(reading.get(), all); });
    EXPECT_TRUE(sink->write({"1", Cause::local, json}));
    sink.reset();
    reader.join();
    EXPECT_EQ(all, json + "\n");
    reading.reset();
  }
}

TEST(DescriptorSink, SaysThatNobodyReadsAnyMore) {
  FullPipe pipe;
  const auto sink = pipe.sink();
  pipe.reading.reset();
  std::thread([&] {  // SIGPIPE stays with it
    const BlockedSignals no_sigpipe;
    const auto written = sink->write({"1", Cause::local, "{}"});
    ASSERT_FALSE(written);
    EXPECT_EQ(written.error().code().value(), EPIPE);
    sigset_t pipe_only;
    ::sigemptyset(&pipe_only);
    ::sigaddset(&pipe_only, SIGPIPE);
    const timespec now{};
    ::sigtimedwait(&pipe_only, nullptr, &now);
  })
      .join();
}

// Where the journal would be.
class Journal {
 public:
  explicit Journal(const std::string& path)
      : path_(path), fd_(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    EXPECT_EQ(::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  }
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;
  ~Journal() { ::unlink(path_.c_str()); }
  std::string next() const {
    char bytes[4096];
    const ssize_t count = ::recv(fd_.get(), bytes, sizeof bytes, MSG_DONTWAIT);
    return {bytes, count > 0 ? static_cast<std::size_t>(count) : 0};
  }

 private:
  std::string path_;
  UniqueFd fd_;
};

TEST(JournalSink, SendsTheObjectAndFieldsToSearchBy) {
  const Folder folder;
  const std::string path = folder / "journal";
  JournalSink sink(path);
  ASSERT_FALSE(sink.write({"0", Cause::local, "{}"})) << "there is no journal";
  const Record record{"m-b-1", Cause::peer_reset, "{\"a\":1}"};
  for (int life = 0; life < 2; ++life) {  // the journal is started again
    const Journal journal(path);
    ASSERT_TRUE(sink.write(record));
    EXPECT_EQ(journal.next(),
              "MESSAGE={\"a\":1}\nPRIORITY=6\nSYSLOG_IDENTIFIER=sockalarmd\nSOCKALARM_EVENT_ID=m-b-1\n"
              "SOCKALARM_CAUSE=peer_reset\n");
  }
}

TEST(Exporter, GivesUpAJournalThatHangs) {
  const Folder folder;
  const Journal journal(folder / "journal");
  Losses losses;
  std::vector<std::unique_ptr<Sink>> sinks;
  sinks.push_back(std::make_unique<JournalSink>(folder / "journal"));
  constexpr std::uint64_t kEnds = 5000;  // more than net.unix.max_dgram_qlen
  Exporter exporter(sample_host(), {}, std::move(sinks), losses, {});
  for (std::uint64_t number = 0; number < kEnds; ++number) exporter.offer(sample_end(number));
  exporter.stop(std::chrono::milliseconds(200));
  std::uint64_t taken = 0;
  while (!journal.next().empty()) ++taken;
  EXPECT_EQ(losses.queue + taken, kEnds);
  EXPECT_GT(losses.queue, 0U);
}

TEST(DescriptorSink, SaysThatTheDiskIsFull) {
  DescriptorSink sink(UniqueFd(::open("/dev/full", O_WRONLY | O_CLOEXEC)));
  const auto written = sink.write({"1", Cause::local, "{}"});
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().message(), "write() to /dev/full: No space left on device");
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

TEST(RotatingFileSink, RefusesWhatCannotRotate) {
  const Folder folder;
  const std::string pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_FALSE(RotatingFileSink::open({pipe, 1000, 1})) << "and does not wait for a reader";
  EXPECT_EQ(RotatingFileSink::open({"/dev/null", 1000, 1}).error().code(), Errc::invalid_options);
}

TEST(RotatingFileSink, SaysWhichFileCannotBeOpened) {
  const auto sink = RotatingFileSink::open({"/no/such/folder/ends.jsonl", 1000, 1});
  ASSERT_FALSE(sink);
  EXPECT_EQ(sink.error().message(), "/no/such/folder/ends.jsonl: No such file or directory");
}

struct Rotating {
  explicit Rotating(const Folder& its_folder) : folder(its_folder) {}
  Result<std::unique_ptr<RotatingFileSink>> open(std::uint64_t max_bytes) {
    return RotatingFileSink::open({folder / "ends.jsonl", max_bytes, 2,
                                   [this](const Error& error) { told.push_back(error.message()); }});
  }
  std::string in_file(const std::string& suffix = "") const {
    return contents(folder / "ends.jsonl" + suffix);
  }
  void set_mode(mode_t mode) const { EXPECT_EQ(::chmod(folder.text().c_str(), mode), 0); }

  const Folder& folder;
  std::vector<std::string> told;
};

bool write(RotatingFileSink& sink, const std::string& line) {
  return sink.write({"", Cause::local, line}).has_value();
}

// On a thread that is nobody, and has no capability for files (setfsuid(2)); where the test is not root's it
// is nobody anyway.
void as_nobody(const std::function<void()>& body) {
  std::thread([&] {
    constexpr uid_t kNobody = 65534;
    if (::geteuid() == 0) ::setfsuid(kNobody);
    body();
  }).join();
}

TEST(RotatingFileSink, RefusesAFolderInWhichItCouldNotRename) {
  const Folder folder;
  Rotating scene(folder);
  write_contents(folder / "ends.jsonl", "");
  ASSERT_EQ(::chmod((folder / "ends.jsonl").c_str(), 0666), 0);
  scene.set_mode(0555);
  as_nobody([&] {
    const auto sink = scene.open(1000);
    ASSERT_FALSE(sink);
    EXPECT_EQ(sink.error().message(),
              "the folder of " + (folder / "ends.jsonl") +
                  ", in which files are renamed, so it has to be writable: Permission "
                  "denied");
  });
  scene.set_mode(0700);
}

TEST(RotatingFileSink, LosesNothingWhereItCannotRenameAndSaysSoOnce) {
  const Folder folder;
  Rotating scene(folder);
  std::unique_ptr<RotatingFileSink> sink;
  std::string all;
  const auto write_some = [&](int from, int to) {
    for (int number = from; number < to; ++number) {
      const std::string line = "{\"number\":" + std::to_string(number) + "}";
      all += line + "\n";
      EXPECT_TRUE(write(*sink, line));
      EXPECT_TRUE(sink->flush());
    }
  };
  scene.set_mode(0777);
  as_nobody([&] {
    auto opened = scene.open(40);
    ASSERT_TRUE(opened) << opened.error().message();
    sink = std::move(*opened);
    write_some(100, 103);
  });
  scene.set_mode(0555);
  as_nobody([&] { write_some(103, 120); });
  EXPECT_EQ(scene.in_file(".1") + scene.in_file(), all);
  ASSERT_EQ(scene.told.size(), 1U);
  const std::string file = folder / "ends.jsonl";
  EXPECT_EQ(scene.told[0], file + " grows beyond its 40 bytes, for renaming " + file + ".1 to " + file +
                               ".2 failed: Permission denied; see to its folder");
  scene.set_mode(0777);
  as_nobody([&] {
    EXPECT_TRUE(sink->flush()) << "now it can";
    write_some(120, 121);
  });
  scene.set_mode(0700);
  EXPECT_EQ(scene.in_file(".2") + scene.in_file(".1") + scene.in_file(), all);
  EXPECT_EQ(scene.in_file(), "{\"number\":120}\n");
  EXPECT_EQ(scene.told.size(), 1U);
}

// As logrotate does it, and by who clears a folder.
TEST(RotatingFileSink, GoesOnInTheFileOfItsNameWhenSomebodyMovedRemovedOrCutIt) {
  const Folder folder;
  Rotating scene(folder);
  const auto opened = scene.open(1000);
  ASSERT_TRUE(opened);
  RotatingFileSink& sink = **opened;
  ASSERT_TRUE(write(sink, "first"));
  std::filesystem::rename(folder / "ends.jsonl", folder / "moved");
  ASSERT_TRUE(sink.flush());
  ASSERT_TRUE(write(sink, "second"));
  EXPECT_EQ(contents(folder / "moved"), "first\n");
  EXPECT_EQ(scene.in_file(), "second\n");
  std::filesystem::remove(folder / "ends.jsonl");
  ASSERT_TRUE(sink.flush());
  ASSERT_TRUE(write(sink, "third"));
  EXPECT_EQ(scene.in_file(), "third\n");
  std::filesystem::remove(folder / "ends.jsonl");
  EXPECT_TRUE(sockalarm::test::eventually([&] { return write(sink, "fourth") && !scene.in_file().empty(); }))
      << "also without a pause for flush()";
  std::filesystem::resize_file(folder / "ends.jsonl", 0);
  ASSERT_TRUE(sink.flush());
  ASSERT_TRUE(write(sink, std::string(999, 'x')));
  EXPECT_FALSE(std::filesystem::exists(folder / "ends.jsonl.1")) << "there was room again";
  EXPECT_TRUE(scene.told.empty());
}

TEST(RotatingFileSink, AnAttemptThatFailsMovesNoFileOnAndOn) {
  const Folder folder;
  Rotating scene(folder);
  const auto opened = RotatingFileSink::open(
      {folder / "ends.jsonl", 10, 4, [&](const Error& error) { scene.told.push_back(error.message()); }});
  ASSERT_TRUE(opened);
  write_contents(folder / "ends.jsonl.1", "older");
  std::filesystem::create_directories(folder / "ends.jsonl.2/not/empty");
  std::filesystem::create_directories(folder / "ends.jsonl.3/not/empty");
  write_contents(folder / "ends.jsonl.4", "a file, so no folder can take its name");
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(write(**opened, "12345678"));
    ASSERT_TRUE((*opened)->flush());
  }
  EXPECT_EQ(scene.in_file(".1"), "older");
  EXPECT_EQ(scene.in_file(), "12345678\n12345678\n12345678\n12345678\n12345678\n");
  EXPECT_EQ(scene.told.size(), 1U);
}

TEST(RotatingFileSink, SaysWhichDiskIsFull) {
  const Folder folder;
  Rotating scene(folder);
  sockalarm::test::on_small_disk(folder.text(), 65536, [&] {
    const auto sink = scene.open(1 << 20);
    ASSERT_TRUE(sink);
    sockalarm::test::fill_disk(folder / "filler");
    const auto written = (*sink)->write({"", Cause::local, "{}"});
    ASSERT_FALSE(written);
    EXPECT_EQ(written.error().message(),
              "write() to " + (folder / "ends.jsonl") + ": No space left on device");
  });
}

}  // namespace
}  // namespace sockalarm::observe
