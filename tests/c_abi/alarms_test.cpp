// SPDX-License-Identifier: Apache-2.0
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include <atomic>
#include <future>

#include "c_abi/handles.h"
#include "harness/signals.h"

// The C library does what the C++ library does, over each source; what is tested there in depth is only
// touched here.
namespace sockalarm::test {
namespace {

SOCKALARM_SUITE(CAlarmsTest);

struct Told {
  std::promise<sockalarm_event> event;
  std::atomic<int> released{0};
  int answer = SOCKALARM_PROCEED;
  std::shared_future<void> held{};  // waits for it, if there is one

  static int call(void* data, const sockalarm_event* event) {
    auto* const self = static_cast<Told*>(data);
    self->event.set_value(*event);
    if (self->held.valid()) self->held.wait();
    return self->answer;
  }
  static void release(void* data) { static_cast<Told*>(data)->released.fetch_add(1); }
};

sockalarm_news next_of(const CContext& context) {
  pollfd entry{sockalarm_context_fd(context.get()), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 30'000), 1);
  sockalarm_news news{};
  EXPECT_EQ(sockalarm_context_next(context.get(), &news), 1);
  return news;
}

TEST_P(CAlarmsTest, ContextSaysWhatServes) {
  SOCKALARM_C_CONTEXT(context, GetParam());
  EXPECT_EQ(sockalarm_context_source(context.get()), source_of(GetParam()));
  const std::string text = text_of(
      [&](char* buffer, size_t size) { return sockalarm_context_describe(context.get(), buffer, size); });
  const std::string name = text_of(
      [&](char* buffer, size_t size) { return sockalarm_source_text(source_of(GetParam()), buffer, size); });
  EXPECT_NE(text.find(name), std::string::npos) << text;
  EXPECT_EQ(sockalarm_source_parse(name.c_str()), source_of(GetParam()));
}

TEST_P(CAlarmsTest, PeerGoneIsALoad) {
  SOCKALARM_C_CONTEXT(context, GetParam());
  Connection connection = tcp_pair();
  const CWatch watch = watch_of(context, connection.ours.get());
  const sockalarm_peer peer = sockalarm_watch_peer(watch.get());
  EXPECT_EQ(sockalarm_watch_fd(watch.get()), connection.ours.get());
  EXPECT_EQ(sockalarm_watch_source(watch.get()), source_of(GetParam()));
  EXPECT_NE(sockalarm_watch_cookie(watch.get()), 0U);
  EXPECT_FALSE(sockalarm_peer_gone(peer));
  EXPECT_EQ(sockalarm_watch_seen_at(watch.get(), SOCKALARM_EVENT_SHUT), 0);
  reset(connection.peer);
  ASSERT_TRUE(eventually([&] { return sockalarm_peer_gone(peer); }));
  EXPECT_TRUE(sockalarm_peer_seen(peer) & SOCKALARM_EVENT_RESET);
  EXPECT_TRUE(eventually([&] { return sockalarm_watch_error(watch.get()) == ECONNRESET; }));
  EXPECT_GT(sockalarm_watch_seen_at(watch.get(), SOCKALARM_EVENT_SHUT), 0);
}

TEST_P(CAlarmsTest, CallIsToldWhatHappenedAndReleased) {
  SOCKALARM_C_CONTEXT(context, GetParam());
  Connection connection = tcp_pair();
  CWatch watch = watch_of(context, connection.ours.get());
  Told told, blocking, never;
  blocking.answer = SOCKALARM_STOP;
  CActions actions = no_actions();
  ASSERT_EQ(sockalarm_actions_add_call(actions.get(), Told::call, &told, Told::release), 0);
  ASSERT_EQ(sockalarm_actions_add_call_blocking(actions.get(), Told::call, &blocking, Told::release), 0);
  ASSERT_EQ(sockalarm_actions_add_call(actions.get(), Told::call, &never, nullptr), 0);
  EXPECT_EQ(sockalarm_actions_count(actions.get()), 3);
  CAlarm alarm = armed(watch, actions);
  actions.reset();  // the alarm keeps what it needs
  EXPECT_TRUE(sockalarm_alarm_active(alarm.get()));
  EXPECT_FALSE(sockalarm_alarm_triggered(alarm.get()));
  EXPECT_EQ(sockalarm_alarm_current_action(alarm.get()), -1);
  connection.peer.reset();
  const sockalarm_event event = told.event.get_future().get();
  EXPECT_EQ(event.what, std::uint32_t{SOCKALARM_EVENT_FIN});
  EXPECT_EQ(event.cookie, sockalarm_watch_cookie(watch.get()));
  EXPECT_GT(event.at, 0);
  blocking.event.get_future().get();
  ASSERT_TRUE(eventually([&] { return !sockalarm_alarm_active(alarm.get()); }));
  EXPECT_FALSE(sockalarm_alarm_finished(alarm.get())) << "the second action ended the chain";
  EXPECT_EQ(sockalarm_alarm_current_action(alarm.get()), 1);
  sockalarm_event cause{};
  ASSERT_EQ(sockalarm_alarm_cause(alarm.get(), &cause), 0);
  EXPECT_EQ(cause.what, event.what);
  EXPECT_NE(never.event.get_future().wait_for(0s), std::future_status::ready);
  const std::string text =
      text_of([&](char* buffer, size_t size) { return sockalarm_alarm_text(alarm.get(), buffer, size); });
  EXPECT_NE(text.find("stopped at action 2 of 3 (fin)"), std::string::npos) << text;
  EXPECT_EQ(told.released.load(), 0);
  alarm.reset();
  watch.reset();
  EXPECT_EQ(told.released.load(), 1) << "the watch kept the chain of its last alarm";
  EXPECT_EQ(blocking.released.load(), 1);
}

TEST_P(CAlarmsTest, CancelsAndArmsAgain) {
  SOCKALARM_C_CONTEXT(context, GetParam());
  Connection connection = tcp_pair();
  const CWatch watch = watch_of(context, connection.ours.get());
  int tag = 0;
  const CActions actions = no_actions();
  ASSERT_EQ(sockalarm_actions_add_post(actions.get(), context.get(), &tag), 0);
  const CAlarm alarm = armed(watch, actions);
  EXPECT_EQ(sockalarm_alarm_start(alarm.get()), 0) << "armed already";
  EXPECT_EQ(sockalarm_alarm_cancel(alarm.get()), SOCKALARM_PREVENTED);
  EXPECT_EQ(sockalarm_alarm_cancel_and_wait(alarm.get()), SOCKALARM_INACTIVE);
  EXPECT_EQ(sockalarm_alarm_start(alarm.get()), 1);
  EXPECT_EQ(sockalarm_alarm_disarm(alarm.get()), 1);
  connection.peer.reset();
  ASSERT_TRUE(eventually([&] { return sockalarm_peer_gone(sockalarm_watch_peer(watch.get())); }));
  sockalarm_news news{};
  EXPECT_EQ(sockalarm_context_next(context.get(), &news), 0) << "cancelled";
  for (int times = 0; times < 10; ++times) {
    ASSERT_EQ(sockalarm_alarm_start(alarm.get()), 1);
    news = next_of(context);
    EXPECT_EQ(news.tag, &tag);
    EXPECT_EQ(news.event.what, std::uint32_t{SOCKALARM_EVENT_FIN});
    ASSERT_TRUE(eventually([&] { return sockalarm_alarm_finished(alarm.get()); }));
    EXPECT_EQ(sockalarm_context_next(context.get(), &news), 0);
  }
  pollfd entry{sockalarm_context_fd(context.get()), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 0), 0) << "readable only while there is something";
  sockalarm_stats stats{};
  stats.size = sizeof stats;
  ASSERT_EQ(sockalarm_context_stats(context.get(), &stats), 0);
  EXPECT_EQ(stats.fired, 10U);
  EXPECT_EQ(stats.watches, 1U);
}

TEST_P(CAlarmsTest, CancelAndWaitWaitsForARunningAction) {
  SOCKALARM_C_CONTEXT(context, GetParam());
  Connection connection = tcp_pair();
  const CWatch watch = watch_of(context, connection.ours.get());
  Told told;
  std::promise<void> gate;
  told.held = gate.get_future().share();
  const CActions actions = no_actions();
  ASSERT_EQ(sockalarm_actions_add_call_blocking(actions.get(), Told::call, &told, nullptr), 0);
  ASSERT_EQ(sockalarm_actions_add(actions.get(), "sleep:1h"), 0);
  const CAlarm alarm = armed(watch, actions);
  connection.peer.reset();
  told.event.get_future().get();
  EXPECT_EQ(sockalarm_alarm_cancel(alarm.get()), SOCKALARM_INTERRUPTED);
  auto waited = std::async(std::launch::async, [&] { return sockalarm_alarm_cancel_and_wait(alarm.get()); });
  EXPECT_EQ(waited.wait_for(20ms), std::future_status::timeout);
  gate.set_value();
  waited.get();
  EXPECT_FALSE(sockalarm_alarm_active(alarm.get()));
}

TEST_P(CAlarmsTest, SignalsAndNotifiesAndHasDeadlines) {
  SOCKALARM_C_CONTEXT(context, GetParam());
  const Connection connection = tcp_pair();
  const CWatch watch = watch_of(context, connection.ours.get());
  const SignalCounter signals(SIGALRM);
  const UniqueFd counter(::eventfd(0, EFD_CLOEXEC));
  const CActions actions = no_actions();
#if SOCKALARM_LINUX
  ASSERT_EQ(sockalarm_actions_add_signal(actions.get(), SIGALRM), 0);
#endif
  ASSERT_EQ(sockalarm_actions_add_process_signal(actions.get(), SIGALRM), 0);
  ASSERT_EQ(sockalarm_actions_add_sleep(actions.get(), 1'000'000), 0);
  ASSERT_EQ(sockalarm_actions_add_shutdown(actions.get(), connection.ours.get(), SHUT_RDWR), 0);
  ASSERT_EQ(sockalarm_actions_add_notify(actions.get(), counter.get()), 0);
  const CAlarm alarm = armed(watch, actions, SOCKALARM_EVENT_RESET, 1'000'000);
  std::uint64_t times = 0;
  ssize_t n = 0;
  do n = ::read(counter.get(), &times, sizeof times);
  while (n < 0 && errno == EINTR);
  EXPECT_EQ(times, 1U);
  EXPECT_TRUE(eventually([&] { return signals.count() >= 1; }));
  char byte = 0;
  EXPECT_EQ(::recv(connection.peer.get(), &byte, 1, 0), 0) << "shut down";
  sockalarm_event cause{};
  ASSERT_EQ(sockalarm_alarm_cause(alarm.get(), &cause), 0);
  EXPECT_EQ(cause.what, std::uint32_t{SOCKALARM_EVENT_DEADLINE});
}

// What a child of fork() finds, as bits of its exit status.
int child_finds(const CContext& context, const CWatch& watch, const CAlarm& alarm,
                [[maybe_unused]] const CActions& posts, int ours) {
  int wrong = 0;
  sockalarm_news news{};
  sockalarm_watch* made = nullptr;
  if (sockalarm_watch_new(context.get(), ours, &made) != SOCKALARM_E_INERT_AFTER_FORK) wrong |= 1;
  if (sockalarm_context_next(context.get(), &news) != SOCKALARM_E_INERT_AFTER_FORK) wrong |= 2;
  if (sockalarm_alarm_cancel(alarm.get()) != SOCKALARM_INACTIVE) wrong |= 4;
  if (sockalarm_peer_gone(sockalarm_watch_peer(watch.get()))) wrong |= 8;
#if SOCKALARM_CHILD_THREADS
  if (sockalarm_context_after_fork(context.get()) != 1) return wrong | 16;
  if (sockalarm_context_after_fork(context.get()) != 0) wrong |= 32;
  Connection connection = tcp_pair();
  const CWatch own = watch_of(context, connection.ours.get());
  const CAlarm armed_here = armed(own, posts);  // made before the fork
  connection.peer.reset();
  if (next_of(context).event.what != SOCKALARM_EVENT_FIN) wrong |= 64;
#endif
  return wrong;
}

TEST_P(CAlarmsTest, AForkedChildMakesItsContextNew) {
  SOCKALARM_C_CONTEXT(context, GetParam());
  EXPECT_EQ(sockalarm_context_after_fork(context.get()), 0) << "not inherited";
  Connection connection = tcp_pair();
  const CWatch watch = watch_of(context, connection.ours.get());
  const CActions actions = no_actions();
  ASSERT_EQ(sockalarm_actions_add_post(actions.get(), context.get(), nullptr), 0);
  const CAlarm alarm = armed(watch, actions);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) ::_exit(child_finds(context, watch, alarm, actions, connection.ours.get()));
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  pollfd queue{sockalarm_context_fd(context.get()), POLLIN, 0};
  EXPECT_EQ(::poll(&queue, 1, 0), 0) << "what the child posts is the child's";
  connection.peer.reset();
  EXPECT_EQ(next_of(context).event.what, std::uint32_t{SOCKALARM_EVENT_FIN}) << "the parent's is untouched";
}

TEST_P(CAlarmsTest, HandlesOutliveTheContext) {
  SOCKALARM_C_CONTEXT(context, GetParam());
  const Connection connection = tcp_pair();
  const CWatch watch = watch_of(context, connection.ours.get());
  const CActions actions = no_actions();
  ASSERT_EQ(sockalarm_actions_add_post(actions.get(), context.get(), nullptr), 0);
  const CAlarm alarm = armed(watch, actions);
  context.reset();
  EXPECT_EQ(sockalarm_alarm_start(alarm.get()), 0);
  sockalarm_alarm* other = nullptr;
  EXPECT_EQ(sockalarm_alarm_new(watch.get(), actions.get(), SOCKALARM_EVENT_SHUT, 0, &other),
            SOCKALARM_E_STOPPED);
  EXPECT_EQ(other, nullptr);
}

SOCKALARM_SUITE(CRequestTest);

struct Slow {
  sockalarm_request* request;
  Connection* leaves = nullptr;  // whose peer leaves while it is slow
  int error = 0;
  bool aborted_at_end = false;
};

void be_slow(void* data) {
  auto* const slow = static_cast<Slow*>(data);
  if (slow->leaves != nullptr) slow->leaves->peer.reset();
  const timespec long_time{60, 0};
  slow->error = ::nanosleep(&long_time, nullptr) != 0 ? errno : 0;
}

TEST_P(CRequestTest, ACallEndsWithItsClientOrItsLimit) {
  SOCKALARM_C_CONTEXT(context, GetParam());
  Connection connection = tcp_pair();
  const CWatch watch = watch_of(context, connection.ours.get());
  sockalarm_requests* made = nullptr;
  ASSERT_EQ(sockalarm_requests_new(context.get(), "limit = 60", &made), 0) << sockalarm_error_text();
  const CRequests requests(made);
  sockalarm_request* begun = nullptr;
  ASSERT_EQ(sockalarm_request_begin(requests.get(), watch.get(), "/report", &begun), 0)
      << sockalarm_error_text();
  CRequest request(begun);
  Slow slow{request.get()};
  ASSERT_EQ(sockalarm_request_on_cleanup(
                request.get(),
                [](void* data, bool aborted) { static_cast<Slow*>(data)->aborted_at_end = aborted; }, &slow),
            0);
  EXPECT_EQ(sockalarm_request_call(request.get(), "nap", 1'000'000, be_slow, &slow),
            SOCKALARM_E_LIMIT_PASSED);
  EXPECT_STREQ(sockalarm_error_text(), "limit of 1ms of the call 'nap'");
  EXPECT_EQ(slow.error, EINTR);
  EXPECT_EQ(sockalarm_request_sleep(request.get(), 1'000), 0);
  EXPECT_EQ(sockalarm_request_wait_readable(request.get(), connection.ours.get(), 1'000), 0);
  slow.leaves = &connection;
  slow.error = 0;
  EXPECT_EQ(sockalarm_request_call(request.get(), "query", 0, be_slow, &slow), SOCKALARM_E_PEER_GONE);
  EXPECT_EQ(slow.error, EINTR);
  EXPECT_TRUE(sockalarm_request_aborted(request.get()));
  EXPECT_EQ(text_of([&](char* buffer, size_t size) {
              return sockalarm_request_stopped(request.get(), buffer, size);
            }),
            "peer gone (fin)");
  EXPECT_EQ(sockalarm_request_finish(request.get()), 0) << sockalarm_error_text();
  EXPECT_TRUE(slow.aborted_at_end);
}

TEST_P(CRequestTest, AShieldHoldsAlarmsBack) {
  SOCKALARM_C_CONTEXT(context, GetParam());
  Connection connection = tcp_pair();
  const CWatch watch = watch_of(context, connection.ours.get());
  sockalarm_requests* made = nullptr;
  ASSERT_EQ(sockalarm_requests_new(context.get(), nullptr, &made), 0) << sockalarm_error_text();
  const CRequests requests(made);
  sockalarm_request* begun = nullptr;
  ASSERT_EQ(sockalarm_request_begin(requests.get(), watch.get(), "/", &begun), 0) << sockalarm_error_text();
  const CRequest request(begun);
  const CActions actions = no_actions();
  ASSERT_EQ(sockalarm_actions_add_post(actions.get(), context.get(), nullptr), 0);
  ASSERT_EQ(sockalarm_request_arm(request.get(), actions.get(), SOCKALARM_EVENT_SHUT), 0);
  sockalarm_shield* held = nullptr;
  ASSERT_EQ(sockalarm_shield_new(request.get(), &held), 0);
  CShield shield(held);
  EXPECT_EQ(sockalarm_request_arm(request.get(), actions.get(), SOCKALARM_EVENT_SHUT),
            SOCKALARM_E_INVALID_USE);
  connection.peer.reset();
  // Behind it in the dispatcher's order: had the alarm fired, it would have posted before.
  int second = 0;
  const CActions others = no_actions();
  ASSERT_EQ(sockalarm_actions_add_post(others.get(), context.get(), &second), 0);
  const CAlarm other = armed(watch, others);
  EXPECT_EQ(next_of(context).tag, &second);
  sockalarm_news news{};
  EXPECT_EQ(sockalarm_context_next(context.get(), &news), 0);
  shield.reset();
  EXPECT_EQ(next_of(context).tag, nullptr);
}

}  // namespace
}  // namespace sockalarm::test
