// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sockalarm/sockalarm.h>
#include <sys/eventfd.h>

#include <csignal>
#include <random>

#include "base/unique_fd.h"
#include "core/open_descriptors.h"
#include "harness/sockets.h"

namespace sockalarm::test {
namespace {

using namespace std::chrono_literals;

TEST(EventTextTest, RoundTripOfEveryMask) {
  for (std::uint32_t bits = 0; bits <= events::all.bits(); ++bits) {
    const auto parsed = parse_events(to_string(Events(bits)));
    ASSERT_TRUE(parsed) << parsed.error().message();
    EXPECT_EQ(*parsed, Events(bits));
  }
  EXPECT_EQ(to_string(events::shut), "shut");
  EXPECT_EQ(*parse_events(" fin | reset,timeout , error"), events::shut);
}

TEST(EventTextTest, UnknownWordIsNamed) {
  for (const char* text : {"fin,bogus", "", "fin,,reset", "fin;reset", "FIN bogus"}) {
    const auto parsed = parse_events(text);
    ASSERT_FALSE(parsed) << text;
    EXPECT_EQ(parsed.error().code(), Errc::invalid_text);
    EXPECT_NE(parsed.error().message().find("deadline"), std::string::npos)
        << "the known ones: " << parsed.error().message();
  }
}

TEST(AddressTextTest, RoundTrip) {
  for (const char* text : {"127.0.0.1:3306", "[::1]:80", "[fe80::1%lo]:443", "unix:/run/db.sock",
                           "unix:", "0.0.0.0:0"}) {
    const auto parsed = SocketAddress::parse(text);
    ASSERT_TRUE(parsed) << text << ": " << parsed.error().message();
    EXPECT_EQ(to_string(*parsed), text);
  }
#if SOCKALARM_LINUX
  EXPECT_EQ(to_string(*SocketAddress::parse("unix:@abstract")), "unix:@abstract");
#endif
  EXPECT_EQ(*SocketAddress::parse("127.0.0.1:80"), *SocketAddress::parse("[::ffff:127.0.0.1]:80"));
  EXPECT_FALSE(*SocketAddress::parse("127.0.0.1:80") == *SocketAddress::parse("127.0.0.1:81"));
}

TEST(AddressTextTest, Refused) {
  for (const std::string& text :
       std::vector<std::string>{"", "127.0.0.1", "localhost:80", "127.0.0.1:65536", "[::1]", "::1:80",
                                "[::1:80", "127.0.0.1:-1", "unix:" + std::string(200, 'x'), "1.2.3:4"}) {
    const auto parsed = SocketAddress::parse(text);
    ASSERT_FALSE(parsed) << text;
    EXPECT_EQ(parsed.error().code(), Errc::invalid_text);
  }
}

// What is written is what was meant: every kind of action, read back.
TEST(ActionTextTest, RoundTripOfEveryAction) {
  const Connection connection = tcp_pair();
  const int fd = connection.ours.get();
  const SocketAddress peer = *SocketAddress::parse("[::1]:80"),
                      path = *SocketAddress::parse("unix:/a b;c,d'e");
#if SOCKALARM_LINUX
  const UniqueFd bell(::eventfd(0, EFD_CLOEXEC));
#endif
  std::vector<Action> all{
      send_signal(SIGALRM, SignalTarget::process),
      send_signal(SIGRTMIN + 3, SignalTarget::process),
      kill_process(SIGTERM, ::getpid()),
      close_fd(fd),
      shutdown_read(fd),
      shutdown_write(fd),
      shutdown_both(fd),
      close_peer(peer),
      shutdown_read(peer),
      shutdown_write(path),
      shutdown_both(path),
      run({"sh", "-c", "echo 'x;y' \"z\" \\ $HOME", ""}),
      exec({"/bin/sh"}),
      sleep_for(2s),
      sleep_for(1500ms),
      sleep_for(7ns),
#if SOCKALARM_LINUX
      send_signal(SIGALRM),
      notify(bell.get()),
#endif
  };
  for (const Action& action : all) {
    ASSERT_EQ(action.error(), nullptr) << action.error()->message();
    const auto parsed = parse_action(to_string(action));
    ASSERT_TRUE(parsed) << to_string(action) << ": " << parsed.error().message();
    EXPECT_TRUE(*parsed == action) << to_string(action);
  }
  const ActionChain chain(all);
  const auto parsed = ActionChain::parse(to_string(chain));
  ASSERT_TRUE(parsed) << parsed.error().message();
  ASSERT_EQ(parsed->size(), all.size());
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_TRUE((*parsed)[i] == all[i]) << to_string(all[i]);
}

TEST(ActionTextTest, SeveralTargetsBecomeSeveralActions) {
  const Connection connection = tcp_pair();
  const std::string a = std::to_string(connection.ours.get()), b = std::to_string(connection.peer.get());
  const auto chain = ActionChain::parse("close:" + a + "," + b + "; shut_rw:127.0.0.1:80," + a + ";");
  ASSERT_TRUE(chain) << chain.error().message();
  EXPECT_EQ(to_string(*chain), "close:" + a + "; close:" + b + "; shut_rw:127.0.0.1:80; shut_rw:" + a);
}

TEST(ActionTextTest, WhatIsWrongIsSaidAndNothingLeaks) {
  const auto before = detail::open_descriptors();
  for (const char* text : {"",
                           "  ",
                           "nonsense",
                           "sig:",
                           "sig:BOGUS",
                           "sig:0:process",
                           "sig:99:process",
                           "sig:ALRM:who",
                           "kill:TERM",
                           "kill:TERM:0",
                           "kill:TERM:x",
                           "kill:TERM:-1",
                           "close:",
                           "close:x",
                           "close:19999",
                           "shut_rw:0.0.0.0",
                           "run:",
                           "run:/no/such/program",
                           "run:'unfinished",
                           "run:back\\",
                           "exec:",
                           "sleep:",
                           "sleep:-1s",
                           "sleep:1x",
                           "sleep:inf",
                           "sleep:99999999999999999999",
                           "notify:x",
                           "notify:19999",
                           "call",
                           "stop",
                           "sig:TERM; sleep:1s"}) {
    const auto parsed = parse_action(text);
    ASSERT_FALSE(parsed) << text;
    EXPECT_TRUE(parsed.error().code() == Errc::invalid_text || parsed.error().code() == Errc::invalid_action)
        << text << ": " << parsed.error().message();
    EXPECT_GT(parsed.error().message().size(), 15U) << text;
  }
  EXPECT_FALSE(ActionChain::parse("sleep:1s;;sleep:1s"));
  EXPECT_FALSE(ActionChain::parse(""));
  EXPECT_EQ(*detail::open_descriptors(), *before);
}

TEST(ActionTextTest, RandomTextNeverDoesHarm) {
  std::mt19937 random(7);
  const std::string alphabet = "sigkloexprun_rw:;,'\"\\ 0123456789.[]%@/ TERMs\n";
  const std::vector<std::string> starts{"", "sig:", "close:", "run:sh ", "shut_rw:[", "sleep:", "kill:TERM:"};
  for (int i = 0; i < 20'000; ++i) {
    std::string text = starts[random() % starts.size()];
    for (std::size_t n = random() % 30; n > 0; --n) text += alphabet[random() % alphabet.size()];
    const auto chain = ActionChain::parse(text);
    if (!chain) continue;
    const auto again = ActionChain::parse(to_string(*chain));
    ASSERT_TRUE(again) << text << " -> " << to_string(*chain);
    ASSERT_EQ(to_string(*again), to_string(*chain)) << text;
  }
}

TEST(ErrorTest, SaysWhatAndWhy) {
  const Error error = Error::from_errno(ENOENT, "reading").with_context("outer");
  EXPECT_EQ(error.message(), "outer: reading: No such file or directory");
  EXPECT_EQ(error.code(), std::errc::no_such_file_or_directory);
  EXPECT_EQ(make_error_code(Errc::not_a_socket).category().name(), std::string("sockalarm"));
}

}  // namespace
}  // namespace sockalarm::test
