// SPDX-License-Identifier: Apache-2.0
#include "observe/spool.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <future>
#include <optional>
#include <random>
#include <set>

#include "faults/failing_call.h"
#include "harness/alarms.h"
#include "harness/folder.h"
#include "harness/small_disk.h"
#include "observe/spool_format.h"

namespace sockalarm::observe {
namespace {

using sockalarm::test::contents;
using sockalarm::test::FailingCall;
using sockalarm::test::Folder;
using sockalarm::test::write_contents;

std::string text_of(std::uint64_t number) {
  return "record " + std::to_string(number) + std::string(number % 50, '.');
}

struct Scene {
  Folder folder;
  Losses losses;
  Spool::Options options{folder / "spool", 1 << 20, std::chrono::hours(1)};

  std::unique_ptr<Spool> open() {
    auto spool = Spool::open(options, losses);
    EXPECT_TRUE(spool) << spool.error().message();
    return spool ? std::move(*spool) : nullptr;
  }
  std::filesystem::path only_segment() const {
    for (const auto& entry : std::filesystem::directory_iterator(options.folder))
      if (entry.path().extension() == ".spool") return entry.path();
    ADD_FAILURE() << "no segment";
    return {};
  }
};

std::vector<std::string> texts(const std::vector<Spool::Entry>& entries) {
  std::vector<std::string> all;
  for (const auto& entry : entries) all.push_back(entry.bytes);
  return all;
}

TEST(Spool, GivesBackInOrderAndAfterARestartWhatIsNotAcknowledged) {
  Scene scene;
  {
    const auto spool = scene.open();
    for (std::uint64_t number = 1; number <= 5; ++number) EXPECT_EQ(spool->append(text_of(number)), number);
    const auto entries = spool->read(3);
    EXPECT_EQ(texts(entries), (std::vector{text_of(1), text_of(2), text_of(3)}));
    spool->acknowledge(3);
    spool->acknowledge(1);
    spool->acknowledge(1);
    EXPECT_EQ(spool->state().pending, 3U);
  }
  const auto spool = scene.open();
  EXPECT_EQ(texts(spool->read(100)), (std::vector{text_of(2), text_of(3), text_of(4), text_of(5)}))
      << "3 was acknowledged before 2, so it comes again";
  EXPECT_EQ(spool->append(text_of(6)), 6U);
  EXPECT_EQ(texts(spool->read(100)), std::vector{text_of(6)});
  for (std::uint64_t number = 2; number <= 6; ++number) spool->acknowledge(number);
  EXPECT_EQ(spool->state().pending, 0U);
  EXPECT_EQ(spool->state().oldest.count(), 0);
  EXPECT_TRUE(spool->read(100).empty());
}

TEST(Spool, NumbersGoOnAfterAllIsAcknowledged) {
  Scene scene;
  {
    const auto spool = scene.open();
    EXPECT_EQ(spool->append("a"), 1U);
    spool->acknowledge(1);
  }
  {
    const auto spool = scene.open();
    EXPECT_TRUE(spool->read(10).empty());
    EXPECT_EQ(spool->append("b"), 2U);
  }
  const auto spool = scene.open();
  EXPECT_EQ(texts(spool->read(10)), std::vector<std::string>{"b"});
}

TEST(Spool, DropsTheOldestBeyondItsSizeAndCountsThem) {
  Scene scene;
  scene.options.max_bytes = 65536;
  const auto spool = scene.open();
  constexpr std::uint64_t kAppended = 3000;
  for (std::uint64_t number = 1; number <= kAppended; ++number) {
    ASSERT_TRUE(spool->append(text_of(number)));
    ASSERT_LE(spool->state().bytes, scene.options.max_bytes);
  }
  const auto entries = spool->read(kAppended);
  ASSERT_FALSE(entries.empty());
  EXPECT_GT(scene.losses.spool_size, 0U);
  EXPECT_EQ(entries.size() + scene.losses.spool_size, kAppended);
  EXPECT_EQ(entries.back().bytes, text_of(kAppended));
  EXPECT_EQ(entries.front().bytes, text_of(kAppended - entries.size() + 1));
}

TEST(Spool, WhatWasAcknowledgedIsNotCountedAsDropped) {
  Scene scene;
  scene.options.max_bytes = 65536;
  const auto spool = scene.open();
  ASSERT_TRUE(spool->append(text_of(1)));  // stays, so that the others cannot go
  for (std::uint64_t number = 2; number <= 1000; ++number) {
    ASSERT_TRUE(spool->append(text_of(number)));
    spool->acknowledge(number);
  }
  EXPECT_LE(scene.losses.spool_size, 1U);
}

TEST(Spool, DropsTheTooOldAndCountsThem) {
  Scene scene;
  scene.options.max_age = std::chrono::seconds(1);
  const auto spool = scene.open();
  ASSERT_TRUE(spool->append("old"));
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (scene.losses.spool_age == 0 && std::chrono::steady_clock::now() < deadline) {
    spool->drop_too_old();
    ::usleep(10'000);
  }
  EXPECT_EQ(scene.losses.spool_age, 1U);
  EXPECT_TRUE(spool->read(10).empty());
  ASSERT_TRUE(spool->append("young"));
  EXPECT_EQ(texts(spool->read(10)), std::vector<std::string>{"young"});
}

// Of this boot the clock says nothing, of another one that went back makes a segment young.
TEST(Spool, AWrongClockDropsNothing) {
  Scene scene;
  ASSERT_TRUE(scene.open()->append("kept"));
  const auto file = scene.only_segment();
  const std::string whole = contents(file);
  using spool_format::Header;
  Header header;
  std::memcpy(&header, whole.data(), sizeof header);
  const auto boot = header.boot;
  constexpr std::int64_t kYear = 365LL * 24 * 3600 * 1'000'000'000;
  const auto kept = [&](std::int64_t created, bool this_boot) {
    header.created = created;
    header.boot = this_boot ? boot : std::array<char, 36>{};
    header.crc = header.right_crc();
    write_contents(file, std::string(spool_format::bytes_of(header)) + whole.substr(sizeof header));
    const auto spool = scene.open();
    spool->drop_too_old();
    return spool->read(10).size() == 1;
  };
  const std::int64_t now = header.created;
  EXPECT_TRUE(kept(0, true));
  EXPECT_TRUE(kept(now + 10 * kYear, true));
  EXPECT_TRUE(kept(now, false));
  EXPECT_TRUE(kept(now + 10 * kYear, false));
  EXPECT_EQ(scene.losses.spool_age, 0U);
  EXPECT_FALSE(kept(now - kYear, false)) << "a year of another boot is too old";
  EXPECT_EQ(scene.losses.spool_age, 1U);
}

TEST(Spool, EachPrefixOfASegmentGivesItsWholeRecordsAndIsWrittenBehind) {
  Scene scene;
  constexpr std::uint64_t kRecords = 4;
  {
    const auto spool = scene.open();
    for (std::uint64_t number = 1; number <= kRecords; ++number) ASSERT_TRUE(spool->append(text_of(number)));
  }
  const auto file = scene.only_segment();
  const std::string whole = contents(file);
  std::size_t most = 0;
  for (std::size_t length = 0; length <= whole.size(); ++length) {
    std::filesystem::remove_all(scene.options.folder);
    std::filesystem::create_directory(scene.options.folder);
    write_contents(file, whole.substr(0, length));
    std::size_t found = 0;
    {
      const auto spool = scene.open();
      ASSERT_TRUE(spool);
      const auto entries = spool->read(100);
      for (const auto& entry : entries) ASSERT_EQ(entry.bytes, text_of(++found));
      ASSERT_GE(found, most);
      most = found;
      ASSERT_TRUE(spool->append("behind"));
      ASSERT_EQ(texts(spool->read(100)), std::vector<std::string>{"behind"});
    }
    ASSERT_EQ(scene.open()->read(100).size(), found + 1) << length;
  }
  EXPECT_EQ(most, kRecords);
  EXPECT_EQ(scene.losses.spool_corrupt, 0U);
}

TEST(Spool, NoDamagedByteGivesAnotherRecord) {
  Scene scene;
  {
    const auto spool = scene.open();
    for (std::uint64_t number = 1; number <= 4; ++number) ASSERT_TRUE(spool->append(text_of(number)));
  }
  const auto file = scene.only_segment();
  const std::string whole = contents(file);
  for (std::size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << (at % 8)));
    std::filesystem::remove_all(scene.options.folder);
    std::filesystem::create_directory(scene.options.folder);
    write_contents(file, damaged);
    const auto spool = scene.open();
    ASSERT_TRUE(spool);
    std::uint64_t number = 0;
    for (const auto& entry : spool->read(100)) ASSERT_EQ(entry.bytes, text_of(++number)) << at;
    ASSERT_LT(number, 4U) << at;
    const auto appended = spool->append("behind");
    ASSERT_TRUE(appended);
    for (std::uint64_t done = 1; done <= *appended; ++done) spool->acknowledge(done);
    ASSERT_EQ(spool->state().pending, 0U) << at;
  }
  EXPECT_GT(scene.losses.spool_corrupt, 0U);
}

TEST(Spool, DamageOfTheNotedNumberMeansThatAllComesAgain) {
  Scene scene;
  {
    const auto spool = scene.open();
    ASSERT_TRUE(spool->append("a"));
    ASSERT_TRUE(spool->append("b"));
    spool->acknowledge(1);
  }
  write_contents(scene.options.folder / "acknowledged", "0123456789abcdef");
  EXPECT_EQ(texts(scene.open()->read(10)), (std::vector<std::string>{"a", "b"}));
}

TEST(Spool, IsOfOneProcess) {
  Scene scene;
  const auto spool = scene.open();
  const auto second = Spool::open(scene.options, scene.losses);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code().value(), EWOULDBLOCK);
  EXPECT_EQ(second.error().message(), "another process, " + std::to_string(::getpid()) + ", has the spool " +
                                          scene.options.folder.string() +
                                          "; end that one, or give each a folder of its own");
}

TEST(Spool, SaysWhyItsFolderCannotBeUsed) {
  Scene scene;
  write_contents(scene.folder / "file", "");
  for (const auto& [folder, said] :
       {std::pair{scene.folder / "file", scene.folder / "file: Not a directory"},
        std::pair{std::string("/sys/kernel"),
                  std::string("the spool, /sys/kernel/lock: Permission denied")}}) {
    scene.options.folder = folder;
    const auto spool = Spool::open(scene.options, scene.losses);
    ASSERT_FALSE(spool);
    EXPECT_NE(spool.error().message().find(said + "; a spool needs a local folder that this process can"),
              std::string::npos)
        << spool.error().message();
  }
}

TEST(Spool, SaysWhichFileIsDamagedAndWhatBecameOfIt) {
  Scene scene;
  std::vector<std::string> told;
  scene.options.on_damage = [&](const Error& error) { told.push_back(error.message()); };
  const auto was_told = [&](const std::string& part) {
    ASSERT_EQ(told.size(), 1U) << part;
    EXPECT_NE(told[0].find(part), std::string::npos) << told[0];
    told.clear();
  };
  std::string whole;
  std::filesystem::path file;
  const auto damage = [&](std::size_t at) {
    std::string damaged = whole;
    ++damaged[at];
    write_contents(file, damaged);
  };
  {
    const auto spool = scene.open();
    for (std::uint64_t number = 1; number <= 3; ++number) ASSERT_TRUE(spool->append(text_of(number)));
    file = scene.only_segment();
    whole = contents(file);
    damage(whole.size() - 1);
    EXPECT_EQ(spool->read(10).size(), 2U);
    was_told(file.string() + ": record 3 is no more at byte");
    write_contents(file, whole);
  }
  std::filesystem::remove(scene.options.folder / "acknowledged");
  damage(whole.size() - 1);
  EXPECT_EQ(scene.open()->read(10).size(), 2U);
  was_told(file.string() + ": no whole record 3 at byte");
  write_contents(scene.options.folder / "acknowledged", "0123456789abcdef");
  EXPECT_EQ(scene.open()->read(10).size(), 2U);
  ASSERT_EQ(told.size(), 2U);
  told.pop_back();
  was_told("acknowledged: not the number of a record");
  std::filesystem::remove(scene.options.folder / "acknowledged");
  damage(0);
  EXPECT_TRUE(scene.open()->read(10).empty());
  was_told(file.string() + ": no header of a segment");
}

TEST(Spool, WhatIsAppendedBehindDamageIsRead) {
  Scene scene;
  const auto spool = scene.open();
  for (std::uint64_t number = 1; number <= 3; ++number) ASSERT_TRUE(spool->append(text_of(number)));
  std::string damaged = contents(scene.only_segment());
  ++damaged.back();
  write_contents(scene.only_segment(), damaged);
  EXPECT_EQ(spool->read(10).size(), 2U);
  for (std::uint64_t number = 4; number <= 6; ++number) {
    ASSERT_TRUE(spool->append(text_of(number)));
    EXPECT_EQ(texts(spool->read(10)), std::vector{text_of(number)});
  }
  EXPECT_EQ(scene.losses.spool_corrupt, 1U);
}

TEST(Spool, WithTheOldestGoesNoMoreThanItsPlaceIsNeeded) {
  Scene scene;
  scene.options.max_bytes = 65536;
  ASSERT_TRUE(scene.open()->append("small, since a restart begins another segment"));
  const auto spool = scene.open();
  for (std::uint64_t number = 2; number <= 50; ++number) {
    ASSERT_TRUE(spool->append(std::string(1000, 'x')));
    spool->acknowledge(number);  // but stays in its place, behind the first
  }
  for (std::uint64_t number = 51; number <= 80; ++number) ASSERT_TRUE(spool->append(std::string(1000, 'y')));
  EXPECT_EQ(scene.losses.spool_size, 1U);
  EXPECT_EQ(spool->state().pending, 30U);
}

TEST(Spool, RefusesCapsThatHoldNothing) {
  Scene scene;
  scene.options.max_bytes = 1000;
  EXPECT_EQ(Spool::open(scene.options, scene.losses).error().code(), Errc::invalid_options);
}

// RLIMIT_FSIZE ends a write where a full disk would: short, then not at all.
TEST(Spool, AFullDiskIsCountedAndHarmsNothingThatWasTaken) {
  Scene scene;
  const auto spool = scene.open();
  struct sigaction ignore{}, before{};
  ignore.sa_handler = SIG_IGN;
  ASSERT_EQ(::sigaction(SIGXFSZ, &ignore, &before), 0);
  rlimit limit{}, small{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &limit), 0);
  small = {2000, limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  std::uint64_t taken = 0, refused = 0;
  for (int i = 0; i < 100; ++i)
    if (spool->append(text_of(taken + 1)))
      ++taken;
    else
      ++refused;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  ASSERT_EQ(::sigaction(SIGXFSZ, &before, nullptr), 0);
  EXPECT_GT(taken, 0U);
  EXPECT_GT(refused, 0U);
  EXPECT_EQ(scene.losses.spool_write, refused);
  ASSERT_TRUE(spool->append(text_of(++taken))) << "there is space again";
  const auto entries = spool->read(1000);
  ASSERT_EQ(entries.size(), taken);
  for (std::uint64_t number = 1; number <= taken; ++number)
    EXPECT_EQ(entries[number - 1].bytes, text_of(number));
}

// The segment that is written to stays, though it is done with. Nothing else would ever free it.
TEST(Spool, AFullDiskGetsTheSpaceOfWhatIsAcknowledged) {
  const std::string kPage(4000, 'p'), kSegment(8000, 's');  // which fill one, of 4 KiB and of 8 KiB
  for (const std::string& text : {kPage, kSegment}) {
    Scene scene;
    scene.options.max_bytes = 65536;
    sockalarm::test::on_small_disk(scene.folder.text(), 65536, [&] {
      std::uint64_t last = 0;
      {
        const auto spool = scene.open();
        ASSERT_TRUE(spool);
        const auto append = [&] {
          const auto number = spool->append(text);
          last = number.value_or(last);
          return number ? std::string("taken") : number.error().message();
        };
        ASSERT_EQ(append(), "taken");
        spool->acknowledge(last);
        sockalarm::test::fill_disk(scene.folder / "filler");
        for (std::uint64_t round = 1; round <= 3; ++round) {
          ASSERT_EQ(append(), "taken") << "all before is acknowledged";
          EXPECT_EQ(texts(spool->read(10)), std::vector{text});
          EXPECT_NE(append().find("No space left on device; until there is room"), std::string::npos);
          EXPECT_EQ(spool->state().pending, 1U) << "what is not acknowledged stays";
          EXPECT_EQ(scene.losses.spool_write, round);
          spool->acknowledge(last);
        }
        ASSERT_EQ(append(), "taken");
      }
      const auto spool = scene.open();
      ASSERT_TRUE(spool);
      EXPECT_EQ(texts(spool->read(10)), std::vector{text});
      EXPECT_FALSE(spool->append("more")) << "there is no other page";
      spool->acknowledge(last);
      EXPECT_EQ(spool->append("next"), last + 1);
    });
    EXPECT_EQ(scene.losses.spool_corrupt + scene.losses.spool_size + scene.losses.spool_age, 0U);
  }
}

// The disk fails for a moment: what stands there may be whole.
TEST(Spool, AnErrorOfReadingIsNoDamage) {
  Scene scene;
  {
    const auto spool = scene.open();
    for (std::uint64_t number = 1; number <= 3; ++number) ASSERT_TRUE(spool->append(text_of(number)));
    spool->acknowledge(1);
  }
  // The number acknowledged, the header, frame and bytes of each record, and what is behind the last.
  constexpr unsigned kReadsOfOpening = 9;
  for (unsigned nth = 1; nth <= kReadsOfOpening; ++nth) {
    FailingCall pread({"pread()", SYS_pread64, EIO}, nth);
    pread.run([&] {
      const auto spool = Spool::open(scene.options, scene.losses);
      ASSERT_FALSE(spool) << nth;
      EXPECT_EQ(spool.error().code().value(), EIO);
    });
  }
  const auto spool = scene.open();
  ASSERT_TRUE(spool) << "it can be opened as soon as it can be read";
  std::vector<std::string> read;
  constexpr unsigned kReads = 6;
  for (unsigned nth = 1; nth <= kReads; ++nth) {
    FailingCall pread({"pread()", SYS_pread64, EIO}, nth);
    pread.run([&] {
      for (const auto& text : texts(spool->read(1))) read.push_back(text);
    });
  }
  for (const auto& text : texts(spool->read(10))) read.push_back(text);
  EXPECT_EQ(read, (std::vector{text_of(2), text_of(3)}));
  EXPECT_GT(spool->state().read_errors, 0U);
  EXPECT_EQ(scene.losses.spool_corrupt, 0U);
}

// The first call of the thread that begins hangs in it, until it is let go.
class HangingCall {
 public:
  explicit HangingCall(long call)
      : supervisor_(
            [this](const seccomp_notif&) {
              if (asked_++ == 0) {
                entered_.set_value();
                may_go_.wait_for(sockalarm::test::kPatience);
              }
              return 0;
            },
            call) {}
  bool begin() { return supervisor_.begin(); }
  void wait_until_it_hangs() { entered_.get_future().wait(); }
  void let_go() { go_.set_value(); }

 private:
  std::promise<void> entered_, go_;
  std::future<void> may_go_ = go_.get_future();
  std::atomic<unsigned> asked_{0};
  sockalarm::test::SyscallSupervisor supervisor_;
};

TEST(Spool, NobodyWaitsForTheDiskBesideTheOneWhoAsksForThat) {
  Scene scene;
  const auto spool = scene.open();
  ASSERT_TRUE(spool->append(text_of(1)));
  HangingCall disk(SYS_fdatasync);
  std::thread syncing([&] {
    EXPECT_TRUE(disk.begin());
    EXPECT_TRUE(spool->sync());
  });
  disk.wait_until_it_hangs();
  auto appended = std::async(std::launch::async, [&] {
    EXPECT_TRUE(spool->append(text_of(2)));
    EXPECT_EQ(spool->state().pending, 2U);
  });
  EXPECT_EQ(appended.wait_for(sockalarm::test::kPatience / 2), std::future_status::ready);
  disk.let_go();
  syncing.join();
}

// Whoever writes or reads then has the spool with it.
TEST(Spool, ItsStateIsThereWhileTheDiskHangs) {
  for (const long call : {SYS_pwritev, SYS_pread64}) {
    Scene scene;
    const auto spool = scene.open();
    ASSERT_TRUE(spool->append(text_of(1)));
    HangingCall disk(call);
    std::thread waiting([&] {
      EXPECT_TRUE(disk.begin());
      if (call == SYS_pwritev)
        EXPECT_TRUE(spool->append(text_of(2)));
      else
        EXPECT_EQ(spool->read(1).size(), 1U);
    });
    disk.wait_until_it_hangs();
    auto state = std::async(std::launch::async, [&] { return spool->state(); });
    EXPECT_EQ(state.wait_for(sockalarm::test::kPatience / 2), std::future_status::ready);
    disk.let_go();
    waiting.join();
    const auto before = state.get();
    EXPECT_EQ(before.pending, 1U);
    EXPECT_GT(before.oldest.count(), 0);
    EXPECT_EQ(spool->state().pending, call == SYS_pwritev ? 2U : 1U);
  }
}

// What began before the last sync() was not only the segment that is written to.
TEST(Spool, SyncIsOfAllSegmentsAndTheirNames) {
  Scene scene;
  scene.options.max_bytes = 65536;  // segments of 8 KiB
  const auto spool = scene.open();
  for (std::uint64_t number = 1; number <= 3; ++number) ASSERT_TRUE(spool->append(std::string(5000, 'x')));
  std::set<std::string> synced;
  std::optional<sockalarm::test::SyscallSupervisor> seen(
      std::in_place,
      [&](const seccomp_notif& call) {
        const auto link = "/proc/" + std::to_string(call.pid) + "/fd/" + std::to_string(call.data.args[0]);
        synced.insert(std::filesystem::read_symlink(link).filename().string());
        return 0;
      },
      SYS_fdatasync);
  std::thread([&] {
    EXPECT_TRUE(seen->begin());
    EXPECT_TRUE(spool->sync());
  }).join();
  seen.reset();  // with its thread, which wrote the names
  EXPECT_EQ(synced, (std::set<std::string>{"00000000000000000001.spool", "00000000000000000002.spool",
                                           "00000000000000000003.spool", "spool"}));
}

// A child appends, and says by a pipe what append() confirmed; it is killed at a random moment.
TEST(Spool, WhatWasConfirmedIsThereAfterAKill) {
  std::mt19937 random(20240229);
  Scene scene;
  scene.options.max_bytes = std::uint64_t{1} << 40;  // nothing is to be dropped
  std::uint64_t confirmed = 0;
  for (int round = 0; round < 20; ++round) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::close(ends[0]);
      auto spool = Spool::open(scene.options, scene.losses);
      if (!spool) ::_exit(1);
      for (;;) {
        const auto number = (*spool)->append(std::string(1 + random() % 9000, 'x'));
        if (!number || ::write(ends[1], &*number, sizeof *number) != sizeof *number) ::_exit(2);
      }
    }
    ::close(ends[1]);
    const std::uint64_t until = confirmed + 1 + random() % 300;
    std::uint64_t number = 0;
    bool killed = false;
    while (::read(ends[0], &number, sizeof number) == static_cast<ssize_t>(sizeof number)) {
      EXPECT_GT(number, confirmed);
      confirmed = number;
      if (number >= until && !std::exchange(killed, true)) ::kill(child, SIGKILL);
    }
    ::close(ends[0]);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << status;
  }
  const auto spool = scene.open();
  std::uint64_t expected = 0;
  for (auto entries = spool->read(500); !entries.empty(); entries = spool->read(500))
    for (const auto& entry : entries) {
      EXPECT_EQ(entry.number, ++expected);
      EXPECT_EQ(entry.bytes.find_first_not_of('x'), std::string::npos);
    }
  EXPECT_GE(expected, confirmed);
  EXPECT_EQ(scene.losses.spool_corrupt, 0U);
}

}  // namespace
}  // namespace sockalarm::observe
