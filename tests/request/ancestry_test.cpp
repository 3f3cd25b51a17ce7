// SPDX-License-Identifier: Apache-2.0
#include <sys/wait.h>

#include <csignal>
#include <future>
#include <thread>

#include "harness/signals.h"
#include "request/scene.h"

// What Catalyst::Plugin::Alarm and the mod_perl chapter on aborted connections give a request, one test for
// each of the rows of docs/ancestry.md, which names them.

namespace sockalarm::test {
namespace {

SOCKALARM_SUITE(CatalystAlarm);

TEST_P(CatalystAlarm, TimeoutIsTheDefaultForCalls) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.call_limit = 20ms});
  Request request = scene.begin();
  const SilentPipe pipe;
  const auto result = request.call("slow", [&] { return pipe.read(); });
  EXPECT_EQ(code_of(result), Errc::limit_passed);
  EXPECT_EQ(result.error().message(), "limit of 20ms of the call 'slow'");
}

TEST_P(CatalystAlarm, ATimeoutWithoutADefaultIsAnError) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  bool ran = false;
  EXPECT_EQ(code_of(request.call("unlimited", [&] { ran = true; })), Errc::invalid_policy);
  EXPECT_FALSE(ran);
}

TEST_P(CatalystAlarm, ACallMayHaveItsOwnLimit) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.call_limit = 1h});
  Request request = scene.begin();
  const SilentPipe pipe;
  EXPECT_EQ(code_of(request.call("slow", 10ms, [&] { return pipe.read(); })), Errc::limit_passed);
  // A longer one than the default: it ends by itself.
  Scene other(watcher, {.call_limit = 1ms});
  Request patient = other.begin();
  EXPECT_EQ(patient.call("slow", 1h, [&] { return std::this_thread::sleep_for(20ms), 7; }), 7);
}

TEST_P(CatalystAlarm, GlobalLimitsTheRequest) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.limit = 20ms});
  Request request = scene.begin();
  const SilentPipe pipe;
  const auto result = request.call("slow", 1h, [&] { return pipe.read(); });
  EXPECT_EQ(code_of(result), Errc::request_limit_passed);
  EXPECT_EQ(result.error().message(), "limit of 20ms of the request");
  bool ran = false;
  EXPECT_EQ(code_of(request.call("next", 1h, [&] { ran = true; })), Errc::request_limit_passed);
  EXPECT_FALSE(ran);
}

TEST_P(CatalystAlarm, GlobalIsThreeMinutesByDefault) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  EXPECT_EQ(scene.begin().record().limit, 180s);
}

TEST_P(CatalystAlarm, GlobalOfZeroTurnsItOff) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.limit = 0ns});
  Request request = scene.begin();
  EXPECT_EQ(request.record().limit, 0ns);
  EXPECT_TRUE(request.sleep_for(20ms));
  EXPECT_FALSE(request.stopped());
}

TEST_P(CatalystAlarm, GlobalCountsOutsideOfCallsToo) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.limit = 20ms});
  Request request = scene.begin();
  const std::stop_token token = request.stop_token();
  EXPECT_TRUE(until_stopped(token));
  EXPECT_EQ(code_of(request.sleep_for(1h)), Errc::request_limit_passed);
  EXPECT_EQ(request.stopped()->cause, StopCause::request_limit);
}

TEST_P(CatalystAlarm, TheHandlerIsToldWhichCallAndWhichLimit) {
  constexpr auto kWhole = 500ms;  // or a busy machine does not come to the second call in time
  std::vector<std::string> told;
  const auto tell = [&](Sounding& sounding) {
    told.push_back((sounding.local() ? "local " : "global ") + sounding.what.call);
    EXPECT_EQ(sounding.what.limit, sounding.local() ? 10ms : kWhole);
  };
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.limit = kWhole, .handler = tell});
  Request request = scene.begin();
  const SilentPipe pipe;
  EXPECT_FALSE(request.call("first", 10ms, [&] { return pipe.read(); }));
  EXPECT_FALSE(request.call("second", 1h, [&] { return pipe.read(); }));
  EXPECT_EQ(told, (std::vector<std::string>{"local first", "global second"}));
}

TEST_P(CatalystAlarm, TheHandlerSeesTheValueAndMayReplaceIt) {
  const auto replace = [](Sounding& sounding) {
    ASSERT_NE(sounding.value<std::string>(), nullptr);
    EXPECT_EQ(*sounding.value<std::string>(), "half an answer");
    EXPECT_EQ(sounding.value<int>(), nullptr);
    EXPECT_FALSE(sounding.replace(7));
    EXPECT_TRUE(sounding.replace(std::string("some return value")));
    sounding.fatal = false;
  };
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.handler = replace});
  Request request = scene.begin();
  const SilentPipe pipe;
  const auto result = request.call("slow", 10ms, [&] { return pipe.read(), std::string("half an answer"); });
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(*result, "some return value");
}

TEST_P(CatalystAlarm, TurningOnOffMakesItHarmless) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.handler = [](Sounding& sounding) { sounding.fatal = false; }});
  Request request = scene.begin();
  const SilentPipe pipe;
  EXPECT_EQ(request.call("slow", 10ms, [&] { return pipe.read(); }), EINTR);
  EXPECT_TRUE(request.call("next", 1h, [] {}));
  ASSERT_EQ(request.record().sounded.size(), 1U);
  EXPECT_FALSE(request.record().sounded[0].fatal);
}

TEST_P(CatalystAlarm, TurningOnOffForTheGlobalOneLetsTheRequestGoOn) {
  int asked = 0;
  const auto forgive = [&](Sounding& sounding) {
    EXPECT_FALSE(sounding.local());
    ++asked;
    sounding.fatal = false;
  };
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.limit = 20ms, .handler = forgive});
  Request request = scene.begin();
  const SilentPipe pipe;
  EXPECT_EQ(request.call("slow", 1h, [&] { return pipe.read(); }), EINTR);
  EXPECT_TRUE(request.sleep_for(30ms));  // it does not come back
  EXPECT_TRUE(request.call("next", 1h, [] {}));
  // Between calls, too: it is asked before the next one.
  Request other = scene.begin();
  EXPECT_TRUE(until_stopped(other.stop_token()));
  EXPECT_TRUE(other.call("next", 1h, [] {}));
  EXPECT_EQ(asked, 2);
}

TEST_P(CatalystAlarm, TheHandlerMayThrow) {
  struct TimedOut {};
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.handler = [](Sounding&) { throw TimedOut{}; }});
  Request request = scene.begin();
  const SilentPipe pipe;
  EXPECT_THROW((void)request.call("slow", 10ms, [&] { return pipe.read(); }), TimedOut);
  EXPECT_TRUE(request.call("next", 1h, [] {}));
}

TEST_P(CatalystAlarm, OverrideByPath) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.overrides = {{"^/ajax/", 20ms}, {"^/a", 30s}, {"report$", 0s}, {"^/b.*$", 1s}}});
  EXPECT_EQ(scene.begin("/index").record().limit, 180s);
  EXPECT_EQ(scene.begin("/index").record().override_matched, "");
  EXPECT_EQ(scene.begin("/about").record().limit, 30s);
  EXPECT_EQ(scene.begin("/monthly/report").record().limit, 0s);
  EXPECT_EQ(scene.begin("/b\xff\n").record().limit, 1s);  // what clients send is not always text
  Request request = scene.begin("/ajax/list");
  EXPECT_EQ(request.record().override_matched, "^/ajax/");
  EXPECT_EQ(request.record().limit, 20ms);
  EXPECT_EQ(code_of(request.sleep_for(1h)), Errc::request_limit_passed);
  EXPECT_EQ(scene.begin("/index").record().limit, 180s);  // only for that request
}

TEST_P(CatalystAlarm, ForwardGivesEveryCallTheDefault) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.call_limit = 10ms, .forward = true});
  Request request = scene.begin();
  const SilentPipe pipe;
  EXPECT_EQ(code_of(request.forward("slow", [&] { return pipe.read(); })), Errc::limit_passed);
  Scene without(watcher, {.call_limit = 10ms});
  Request other = without.begin();
  EXPECT_EQ(other.forward("slow", [&] { return std::this_thread::sleep_for(30ms), 7; }), 7);
}

// With global and forward together it did not work there.
TEST_P(CatalystAlarm, GlobalAndForwardTogether) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.limit = 30ms, .call_limit = 10s, .forward = true});
  Request request = scene.begin();
  const SilentPipe pipe;
  EXPECT_EQ(code_of(request.forward("slow", [&] { return pipe.read(); })), Errc::request_limit_passed);
}

TEST_P(CatalystAlarm, ForwardNeedsADefault) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const auto requests = Requests::create(watcher, {.forward = true});
  EXPECT_EQ(code_of(requests), Errc::invalid_policy);
  EXPECT_NE(requests.error().message().find("call_limit"), std::string::npos);
}

TEST_P(CatalystAlarm, WhatTheCallReturnsComesBack) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  EXPECT_EQ(request.call("sum", 1h, [] { return 2 + 2; }), 4);
  const auto moved = request.call("unique", 1h, [](std::stop_token) { return std::make_unique<int>(5); });
  ASSERT_TRUE(moved);
  EXPECT_EQ(**moved, 5);
  EXPECT_TRUE(request.call("nothing", 1h, [] {}));
  EXPECT_TRUE(request.record().sounded.empty());
}

TEST_P(CatalystAlarm, ExceptionsPassThrough) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  EXPECT_THROW((void)request.call("throws", 1h, [] { throw std::out_of_range("of it"); }), std::out_of_range);
  // Also after the limit, and the handler is told.
  const SilentPipe pipe;
  EXPECT_THROW((void)request.call("throws late", 10ms,
                                  [&] {
                                    (void)pipe.read();
                                    throw std::out_of_range("of it");
                                  }),
               std::out_of_range);
  EXPECT_EQ(request.record().failed(), std::vector<std::string>{"throws late"});
  EXPECT_EQ(request.call("next", 1h, [] { return 1; }), 1);
}

TEST_P(CatalystAlarm, OffTurnsEverythingOffForTheRequest) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.limit = 300ms});
  Request request = scene.begin();
  const auto outer = request.call("outer", 200ms, [&] {
    request.snooze();
    return std::this_thread::sleep_for(400ms), 7;
  });
  EXPECT_EQ(outer, 7);
  EXPECT_TRUE(request.record().limits_off);
  EXPECT_FALSE(request.stopped());
  EXPECT_EQ(request.record().stop, std::chrono::steady_clock::time_point{});
}

TEST_P(CatalystAlarm, ACallAfterOffHasItsLimit) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.limit = 1h});
  Request request = scene.begin();
  request.off();
  const SilentPipe pipe;
  EXPECT_EQ(code_of(request.call("slow", 10ms, [&] { return pipe.read(); })), Errc::limit_passed);
}

TEST_P(CatalystAlarm, TheRecordTellsWhatHappened) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.limit = 100ms});
  const auto before = std::chrono::steady_clock::now();
  Request request = scene.begin("/report");
  const SilentPipe pipe;
  EXPECT_FALSE(request.call("first", 10ms, [&] { return pipe.read(); }));
  EXPECT_FALSE(request.call("second", 1h, [&] { return pipe.read(); }));
  ASSERT_TRUE(request.finish());
  const Record record = request.record();
  EXPECT_EQ(record.path, "/report");
  EXPECT_GE(record.start, before);
  EXPECT_EQ(record.total, record.stop - record.start);
  EXPECT_GE(record.total, 100ms);
  ASSERT_EQ(record.sounded.size(), 2U);
  EXPECT_EQ(record.sounded[0].cause, StopCause::call_limit);
  EXPECT_GE(record.sounded[0].after, 10ms);
  EXPECT_EQ(record.sounded[1].cause, StopCause::request_limit);
  EXPECT_EQ(record.sounded[1].after, 100ms);
  EXPECT_EQ(record.failed(), (std::vector<std::string>{"first", "second"}));
  EXPECT_GE(record.pokes, 2U);
  EXPECT_FALSE(record.aborted);
}

// Whole seconds only, there.
TEST_P(CatalystAlarm, FractionsOfASecondWork) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const auto policy = parse_policy("limit = 0.25\ncall_limit = 0.01\n");
  ASSERT_TRUE(policy) << policy.error().message();
  Scene scene(watcher, *policy);
  Request request = scene.begin();
  EXPECT_EQ(request.record().limit, 250ms);
  const SilentPipe pipe;
  const auto result = request.call("slow", [&] { return pipe.read(); });
  EXPECT_EQ(result.error().message(), "limit of 10ms of the call 'slow'");
}

TEST_P(CatalystAlarm, NestedCallsTheInnerOneShorter) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  const SilentPipe pipe;
  const auto outer = request.call("outer", 1h, [&](std::stop_token outer_token) {
    const auto inner = request.call("inner", 10ms, [&](std::stop_token token) {
      EXPECT_EQ(pipe.read(), EINTR);
      EXPECT_TRUE(token.stop_requested());  // before the first poke
    });
    EXPECT_EQ(code_of(inner), Errc::limit_passed);
    EXPECT_NE(inner.error().message().find("'inner'"), std::string::npos);
    EXPECT_FALSE(outer_token.stop_requested());
    return 7;
  });
  EXPECT_EQ(outer, 7);
}

TEST_P(CatalystAlarm, NestedCallsTheInnerOneLonger) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  const SilentPipe pipe;
  bool ran = false;
  const auto outer = request.call("outer", 20ms, [&](std::stop_token outer_token) {
    const auto inner = request.call("inner", 1h, [&](std::stop_token token) {
      EXPECT_EQ(pipe.read(), EINTR);
      EXPECT_TRUE(token.stop_requested());
    });
    EXPECT_EQ(code_of(inner), Errc::limit_passed);
    EXPECT_NE(inner.error().message().find("'outer'"), std::string::npos);
    EXPECT_TRUE(outer_token.stop_requested());
    EXPECT_EQ(pipe.read(), EINTR);  // poked until the outer one has left
    EXPECT_FALSE(request.call("another", 1h, [&] { ran = true; }));
    return 7;
  });
  EXPECT_EQ(code_of(outer), Errc::limit_passed);
  EXPECT_FALSE(ran);
  EXPECT_EQ(request.record().failed(), std::vector<std::string>{"outer"});
  EXPECT_TRUE(request.call("next", 1h, [] {}));
}

SOCKALARM_SUITE(AbortedConnections);

TEST_P(AbortedConnections, NoticedWithoutWritingAByte) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  EXPECT_FALSE(request.aborted());
  scene.leave();
  EXPECT_TRUE(eventually([&] { return request.aborted(); }));
}

// A call that blocks, and whose client leaves then.
Result<int> hang_until_left(Scene& scene, Request& request) {
  const SilentPipe pipe;
  std::promise<void> inside;
  std::thread client([&] {
    inside.get_future().wait();
    scene.leave();
  });
  auto result = request.call("hang", 0s, [&] {
    inside.set_value();
    return pipe.read();
  });
  client.join();
  return result;
}

TEST_P(AbortedConnections, AHangingHandlerIsStopped) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  const auto result = hang_until_left(scene, request);
  EXPECT_EQ(code_of(result), Errc::peer_gone);
  EXPECT_EQ(result.error().message(), "peer gone (fin)");
  EXPECT_EQ(code_of(request.call("next", 0s, [] {})), Errc::peer_gone);
}

TEST_P(AbortedConnections, TheReasonIsExact) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  reset(scene.connection.peer);
  const auto result = request.sleep_for(1h);
  EXPECT_EQ(code_of(result), Errc::peer_gone);
  const auto stop = request.stopped();
  ASSERT_TRUE(stop);
  EXPECT_EQ(stop->events, events::reset);
  EXPECT_EQ(stop->error, ECONNRESET);
}

TEST_P(AbortedConnections, FinIsAPolicy) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.on = events::reset | events::timeout});
  Request request = scene.begin();
  ::shutdown(scene.connection.peer.get(), SHUT_WR);
  ASSERT_TRUE(scene.sees_it());
  EXPECT_FALSE(request.aborted());
  EXPECT_EQ(request.call("goes on", 1h, [] { return 7; }), 7);
}

// Behind a reverse proxy it could not be known, there.
TEST_P(AbortedConnections, BehindAProxyOnAUnixSocket) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {}, unix_pair());
  Request request = scene.begin();
  const auto result = hang_until_left(scene, request);
  EXPECT_EQ(code_of(result), Errc::peer_gone);
}

TEST_P(AbortedConnections, AClientThatHadLeftBefore) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  scene.leave();
  ASSERT_TRUE(scene.sees_it());
  Request request = scene.begin();
  bool ran = false;
  EXPECT_EQ(code_of(request.call("never", 0s, [&] { ran = true; })), Errc::peer_gone);
  EXPECT_FALSE(ran);
  EXPECT_TRUE(until_stopped(request.stop_token()));
}

TEST_P(AbortedConnections, CleanupsRunInReverseOrderHoweverItEnds) {
  SOCKALARM_WATCHER(watcher, GetParam());
  enum class End { returned, threw, limit, peer };
  for (const End end : {End::returned, End::threw, End::limit, End::peer}) {
    Scene scene(watcher);
    std::vector<std::string> order;
    try {
      Request request = scene.begin();
      request.on_cleanup([&](bool aborted) { order.push_back(aborted ? "first, aborted" : "first"); });
      request.on_cleanup([&](bool aborted) { order.push_back(aborted ? "second, aborted" : "second"); });
      if (end == End::peer) {
        scene.leave();
        EXPECT_FALSE(request.sleep_for(1h));
      }
      if (end == End::limit) {
        const SilentPipe pipe;
        EXPECT_FALSE(request.call("slow", 5ms, [&] { return pipe.read(); }));
      }
      if (end == End::threw) throw std::runtime_error("midway");
    } catch (const std::runtime_error&) {
    }
    const std::string aborted = end == End::peer ? ", aborted" : "";
    EXPECT_EQ(order, (std::vector<std::string>{"second" + aborted, "first" + aborted}));
  }
}

TEST_P(AbortedConnections, ACleanupThatThrowsStopsNoneOfTheOthers) {
  Journal told;
  SOCKALARM_WATCHER(watcher, GetParam(), logging_to(told, LogLevel::error));
  Scene scene(watcher);
  int run = 0;
  {
    Request request = scene.begin();
    request.on_cleanup([&](bool) { ++run; });
    request.on_cleanup([](bool) { throw std::runtime_error("disk full"); });
    request.on_cleanup([](bool) { throw 7; });
    request.on_cleanup([&](bool) { ++run; });
    ASSERT_TRUE(request.finish());
    EXPECT_EQ(request.record().cleanups_run, 4U);
    EXPECT_EQ(request.record().cleanups_failed, 2U);
  }
  EXPECT_EQ(run, 2);
  const std::vector<std::string> log = told.lines();
  ASSERT_EQ(log.size(), 2U);
  EXPECT_NE(log[1].find("disk full"), std::string::npos);
}

TEST_P(AbortedConnections, SigpipeIsAFactOnTheRequest) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGPIPE);
  Scene scene(watcher);
  Request request = scene.begin();
  reset(scene.connection.peer);
  ASSERT_TRUE(scene.sees_it());
  {
    SigpipeGuard guard(request);
    char byte = 0;
    (void)::recv(scene.connection.ours.get(), &byte, 1, MSG_DONTWAIT);  // takes the error
    EXPECT_EQ(::write(scene.connection.ours.get(), "x", 1), -1);
    EXPECT_EQ(errno, EPIPE);
    EXPECT_TRUE(guard.raised());
  }
  EXPECT_EQ(signals.count(), 0);
  EXPECT_TRUE(request.record().broken_pipe);
  const auto format = LogFormat::parse("%h %l %u %t \"%r\" %s %b %{SIGPIPE}e").value();
  EXPECT_TRUE(format.line(request.record(), {}).ends_with(" 1"));
}

TEST_P(AbortedConnections, TheLogLineTells) {
  SOCKALARM_WATCHER(watcher, GetParam());
  std::vector<Record> records;
  Scene scene(watcher, {.on_end = [&](const Record& record) { records.push_back(record); }});
  {
    Request request = scene.begin("/report");
    scene.leave();
    ASSERT_TRUE(eventually([&] { return request.aborted(); }));
    std::this_thread::sleep_for(5ms);  // work for nobody
  }
  ASSERT_EQ(records.size(), 1U);
  EXPECT_TRUE(records[0].aborted);
  EXPECT_EQ(records[0].cause, events::fin);
  EXPECT_GE(records[0].busy, 5ms);
  EXPECT_LE(records[0].busy, records[0].total);
  const auto format = LogFormat::parse("%>s %X %{cause}x").value();
  EXPECT_EQ(format.line(records[0], {.status = 499}), "499 X fin");
}

TEST_P(AbortedConnections, ACriticalSectionIsNotInterrupted) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  const auto result = request.call("locked", 0s, [&](std::stop_token token) {
    {
      const Shield shield = request.shield();
      scene.leave();
      EXPECT_TRUE(eventually([&] { return request.aborted(); }));
      // Long enough for anything that would go off.
      const timespec nap{0, 20'000'000};
      EXPECT_EQ(::nanosleep(&nap, nullptr), 0);
      EXPECT_FALSE(token.stop_requested());
    }
    EXPECT_TRUE(token.stop_requested());
  });
  EXPECT_EQ(code_of(result), Errc::peer_gone);
  ASSERT_TRUE(request.finish());
  EXPECT_GE(request.record().held_back, 20ms);
  EXPECT_GE(request.record().shielded, 20ms);
}

}  // namespace
}  // namespace sockalarm::test
