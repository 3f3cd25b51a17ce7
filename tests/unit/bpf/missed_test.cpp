// SPDX-License-Identifier: Apache-2.0
// News that the kernel side has left out. It cannot be made to at will, so a session that reports nothing
// stands in for it.
#include <sockalarm/unique_fd.h>
#include <sys/eventfd.h>

#include <atomic>
#include <stop_token>

#include "core/bpf_session.h"
#include "core/core.h"
#include "core/socket.h"
#include "harness/alarms.h"
#include "harness/sockets.h"

namespace sockalarm::detail {
namespace {

using namespace test;

class DeafSession final : public BpfSession {
 public:
  explicit DeafSession(const std::atomic<std::uint64_t>& missed) : missed_(missed) {}

  std::span<WatchState> table() noexcept override { return table_; }
  Result<void> delivers() const override { return fail(Error(Errc::unsupported, "this is a test")); }
  Result<sockalarm_thread> introduce_thread() noexcept override { return sockalarm_thread{}; }
  int ring_fd() const noexcept override { return ring_.get(); }
  void drain(std::vector<sockalarm_record>&) override {}
  bool pending() const noexcept override { return false; }
  std::uint64_t bad_records() const noexcept override { return 0; }
  Result<void> enroll(std::uint64_t, std::uint32_t, std::uint32_t, int) override { return {}; }
  void dismiss(std::uint64_t, std::uint32_t) noexcept override {}
  bool watch_reads(bool) override { return false; }
  bool watch_closing() override { return false; }
  std::uint64_t missed_runs() noexcept override { return missed_.load(); }
  void after_fork() noexcept override {}

 private:
  const std::atomic<std::uint64_t>& missed_;
  std::vector<WatchState> table_ = std::vector<WatchState>(8);
  UniqueFd ring_{::eventfd(0, EFD_CLOEXEC)};
};

TEST(MissedNews, EverySocketIsAskedWhenTheKernelSaysThatItLeftSomethingOut) {
  std::atomic<std::uint64_t> missed{7};
  auto source = make_kernel_source(std::make_unique<DeafSession>(missed));
  ASSERT_TRUE(source) << source.error().message();
  auto core = Core::create(Options{}, ChosenSource{std::move(*source), {}});
  ASSERT_TRUE(core) << core.error().message();
  {
    Connection left = tcp_pair(), stays = tcp_pair();
    auto left_socket = (*core)->watch(left.ours.get());
    auto stays_socket = (*core)->watch(stays.ours.get());
    ASSERT_TRUE(left_socket && stays_socket);
    WatchHandle of_left(*left_socket, left.ours.get()), of_staying(*stays_socket, stays.ours.get());
    const std::stop_token told = of_left.stop_token(events::shut),
                          not_told = of_staying.stop_token(events::shut);
    left.peer.reset();
    await_readable(left.ours.get());
    EXPECT_FALSE(told.stop_requested()) << "the session is deaf, so this test would show nothing";

    missed = 8;
    EXPECT_TRUE(eventually([&] { return told.stop_requested(); }));
    EXPECT_FALSE(not_told.stop_requested());
  }
  (*core)->stop();
}

}  // namespace
}  // namespace sockalarm::detail
