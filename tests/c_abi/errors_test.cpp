// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <stdexcept>
#include <thread>

#include "c_abi/handles.h"

// What needs no source: errors and their texts, text forms, options.
namespace sockalarm::test {
namespace {

bool error_says(const std::string& part) {
  return std::string(sockalarm_error_text()).find(part) != std::string::npos;
}

TEST(CErrors, NullIsNamedAndChangesNothing) {
  EXPECT_EQ(sockalarm_watch_new(nullptr, 0, nullptr), -EINVAL);
  EXPECT_STREQ(sockalarm_error_text(), "sockalarm_watch_new(): `context` is NULL");
  EXPECT_EQ(sockalarm_context_new(nullptr, nullptr), -EINVAL);
  EXPECT_TRUE(error_says("`out` is NULL")) << sockalarm_error_text();
  sockalarm_actions* actions = reinterpret_cast<sockalarm_actions*>(8);
  EXPECT_EQ(sockalarm_actions_parse(nullptr, &actions), -EINVAL);
  EXPECT_EQ(actions, nullptr);
  EXPECT_EQ(sockalarm_alarm_start(nullptr), -EINVAL);
  EXPECT_FALSE(sockalarm_alarm_active(nullptr));
  EXPECT_EQ(sockalarm_watch_peer(nullptr).seen, nullptr);
  sockalarm_context_free(nullptr);
  sockalarm_watch_free(nullptr);
  sockalarm_actions_free(nullptr);
  sockalarm_alarm_free(nullptr);
  sockalarm_requests_free(nullptr);
  sockalarm_request_free(nullptr);
  sockalarm_shield_free(nullptr);
}

TEST(CErrors, TextIsTheThreadsOwn) {
  EXPECT_EQ(sockalarm_source_parse("nonesuch"), SOCKALARM_E_INVALID_TEXT);
  EXPECT_TRUE(error_says("nonesuch"));
  std::thread([] {
    EXPECT_STREQ(sockalarm_error_text(), "");
    EXPECT_EQ(sockalarm_source_parse("other"), SOCKALARM_E_INVALID_TEXT);
    EXPECT_TRUE(error_says("other"));
  }).join();
  EXPECT_TRUE(error_says("nonesuch"));
}

TEST(CErrors, LongTextIsCut) {
  const std::string text(5'000, 'x');
  sockalarm_actions* actions = nullptr;
  EXPECT_EQ(sockalarm_actions_parse(text.c_str(), &actions), SOCKALARM_E_INVALID_TEXT);
  EXPECT_LE(std::strlen(sockalarm_error_text()), 1'023U);
}

// An exception that a function of the caller's throws through the library, which callers in C cannot.
TEST(CErrors, AnExceptionIsACode) {
  const CContext context = make_context(SourceKind::poll);
  sockalarm_requests* made = nullptr;
  ASSERT_EQ(sockalarm_requests_new(context.get(), nullptr, &made), 0) << sockalarm_error_text();
  const CRequests requests(made);
  sockalarm_request* begun = nullptr;
  ASSERT_EQ(sockalarm_request_begin(requests.get(), nullptr, "/", &begun), 0);
  const CRequest request(begun);
  const auto call = [&](void (*function)(void*)) {
    return sockalarm_request_call(request.get(), "x", 0, function, nullptr);
  };
  EXPECT_EQ(call([](void*) { throw std::bad_alloc(); }), -ENOMEM);
  EXPECT_STREQ(sockalarm_error_text(), "out of memory");
  EXPECT_EQ(call([](void*) { throw std::runtime_error("odd"); }), SOCKALARM_E_INTERNAL);
  EXPECT_STREQ(sockalarm_error_text(), "odd");
  EXPECT_EQ(call([](void*) { throw 1; }), SOCKALARM_E_INTERNAL);
  EXPECT_EQ(call([](void*) {}), 0);
}

TEST(CErrors, OptionsOfOtherVersions) {
  sockalarm_context* context = nullptr;
  sockalarm_options options{};
  EXPECT_EQ(sockalarm_context_new(&options, &context), -EINVAL) << "no size";
  struct Later {
    sockalarm_options known;
    std::uint64_t unknown;
  } later{};
  later.known.size = sizeof later;
  later.known.source = SOCKALARM_SOURCE_POLL;
  EXPECT_EQ(sockalarm_context_new(&later.known, &context), 0) << sockalarm_error_text();
  sockalarm_context_free(context);
  later.unknown = 1;
  EXPECT_EQ(sockalarm_context_new(&later.known, &context), -E2BIG);
  EXPECT_EQ(context, nullptr);
  options.size = offsetof(sockalarm_options, delivery);  // an earlier one: what it has not is the default
  options.source = SOCKALARM_SOURCE_POLL;
  options.helper_threads = 1'000'000;
  EXPECT_EQ(sockalarm_context_new(&options, &context), 0) << sockalarm_error_text();
  EXPECT_EQ(sockalarm_context_source(context), SOCKALARM_SOURCE_POLL);
  sockalarm_context_free(context);
  options.size = sizeof options;
  EXPECT_EQ(sockalarm_context_new(&options, &context), SOCKALARM_E_INVALID_OPTIONS);
  EXPECT_TRUE(error_says("helper_threads is 1000000")) << sockalarm_error_text();
  options.helper_threads = 0;
  options.source = 5;
  EXPECT_EQ(sockalarm_context_new(&options, &context), SOCKALARM_E_INVALID_OPTIONS);
}

TEST(CErrors, WatchSaysWhatItWasGiven) {
  const CContext context = make_context(SourceKind::poll);
  sockalarm_watch* watch = nullptr;
  EXPECT_EQ(sockalarm_watch_new(context.get(), -1, &watch), -EBADF);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_EQ(sockalarm_watch_new(context.get(), ends[0], &watch), SOCKALARM_E_NOT_A_SOCKET)
      << sockalarm_error_text();
  ::close(ends[0]);
  ::close(ends[1]);
  const Listener listener = listen_on(AF_INET);
  EXPECT_EQ(sockalarm_watch_new(context.get(), listener.fd.get(), &watch), SOCKALARM_E_NOT_CONNECTED);
  EXPECT_EQ(watch, nullptr);
  const Connection connection = tcp_pair();
  const CWatch good = watch_of(context, connection.ours.get());
  const CActions actions = no_actions();
  sockalarm_alarm* alarm = nullptr;
  EXPECT_EQ(sockalarm_alarm_new(good.get(), actions.get(), 0, 0, &alarm), SOCKALARM_E_INVALID_EVENTS);
  EXPECT_EQ(sockalarm_alarm_new(good.get(), actions.get(), 1U << 30, 0, &alarm), SOCKALARM_E_INVALID_EVENTS);
}

TEST(CActionsTest, TextForms) {
  sockalarm_actions* made = nullptr;
  ASSERT_EQ(sockalarm_actions_parse("sig:ALRM:process; sleep:2s", &made), 0) << sockalarm_error_text();
  const CActions actions(made);
  const char* const argv[] = {"true", "a b", nullptr};
  ASSERT_EQ(sockalarm_actions_add_run(actions.get(), argv), 0) << sockalarm_error_text();
  ASSERT_EQ(sockalarm_actions_add_exec(actions.get(), argv), 0) << sockalarm_error_text();
  sockaddr_in peer{};
  peer.sin_family = AF_INET;
  peer.sin_port = htons(3306);
  peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const auto* const address = reinterpret_cast<const sockaddr*>(&peer);
  ASSERT_EQ(sockalarm_actions_add_close_peer(actions.get(), address, sizeof peer), 0);
  ASSERT_EQ(sockalarm_actions_add_shutdown_peer(actions.get(), address, sizeof peer, SHUT_WR), 0);
  ASSERT_EQ(sockalarm_actions_add_kill(actions.get(), SIGTERM, ::getpid()), 0) << sockalarm_error_text();
  const Connection connection = tcp_pair();
  const std::string number = std::to_string(connection.ours.get());
  ASSERT_EQ(sockalarm_actions_add_close(actions.get(), connection.ours.get()), 0) << sockalarm_error_text();
  ASSERT_EQ(sockalarm_actions_add(actions.get(), ("shut_r:" + number + "; shut_w:" + number).c_str()), 0);
  const auto text = [&] {
    return text_of(
        [&](char* buffer, size_t size) { return sockalarm_actions_text(actions.get(), buffer, size); });
  };
  const std::string before = text();
  for (const std::string& part : std::vector<std::string>{
           "sig:ALRM:process; sleep:2s; run:", "'a b'", "exec:", "close:127.0.0.1:3306",
           "shut_w:127.0.0.1:3306",
           "kill:TERM:", "close:" + number + "; shut_r:" + number + "; shut_w:" + number})
    EXPECT_NE(before.find(part), std::string::npos) << part << " in " << before;
  EXPECT_EQ(sockalarm_actions_count(actions.get()), 10);

  EXPECT_EQ(sockalarm_actions_add_process_signal(actions.get(), 99), SOCKALARM_E_INVALID_ACTION);
  EXPECT_TRUE(error_says("99")) << sockalarm_error_text();
  EXPECT_EQ(sockalarm_actions_add_shutdown(actions.get(), 0, 7), SOCKALARM_E_INVALID_ACTION);
  EXPECT_EQ(sockalarm_actions_add(actions.get(), "nonesuch:1"), SOCKALARM_E_INVALID_TEXT);
  EXPECT_EQ(text(), before) << "what fails adds nothing";
  char little[4];
  EXPECT_EQ(sockalarm_actions_text(actions.get(), little, sizeof little), static_cast<int>(before.size()));
  EXPECT_STREQ(little, "sig");
}

TEST(CActionsTest, EventNames) {
  std::uint32_t events = 0;
  ASSERT_EQ(sockalarm_events_parse("reset|timeout", &events), 0);
  EXPECT_EQ(events, std::uint32_t{SOCKALARM_EVENT_RESET | SOCKALARM_EVENT_TIMEOUT});
  EXPECT_EQ(sockalarm_events_parse("rest", &events), SOCKALARM_E_INVALID_TEXT);
  EXPECT_EQ(text_of([](char* buffer, size_t size) {
              return sockalarm_events_text(SOCKALARM_EVENT_SHUT, buffer, size);
            }),
            "shut");
  EXPECT_STREQ(sockalarm_version(), SOCKALARM_VERSION);
}

}  // namespace
}  // namespace sockalarm::test
