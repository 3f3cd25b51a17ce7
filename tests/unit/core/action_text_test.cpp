// SPDX-License-Identifier: Apache-2.0
#include "core/action_text.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sockalarm/action.h>
#include <sockalarm/unique_fd.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <random>

#include "base/signal_text.h"
#include "core/shell_words.h"

namespace sockalarm {
namespace {

using namespace std::chrono_literals;
using detail::parse_duration;
using detail::split_words;
using Words = std::vector<std::string>;

bool says(const Error& error, std::string_view part) {
  return error.message().find(part) != std::string::npos;
}

TEST(SignalText, ReadsEveryWayToSayOne) {
  for (const char* text : {"ALRM", "alrm", "SIGALRM", "sigalrm", "SigAlrm", "14"})
    EXPECT_EQ(detail::parse_signal(text), SIGALRM) << text;
  EXPECT_EQ(detail::parse_signal("IOT"), SIGABRT);
  EXPECT_EQ(detail::parse_signal("rtmin+3"), SIGRTMIN + 3);
  EXPECT_EQ(detail::parse_signal("SIGRTMIN"), SIGRTMIN);
  EXPECT_EQ(detail::parse_signal("RTMAX"), SIGRTMAX);
  EXPECT_EQ(detail::parse_signal("RTMAX-2"), SIGRTMAX - 2);
  for (const char* text : {"", "SIG", "FOO", "-1", "+14", "14x", "RTMIN-1", "RTMIN+", "RTMIN+99", "RTMAX+1",
                           "RTMAX-99", "99999999999", "RTMIN+99999999999", " ALRM"})
    EXPECT_EQ(detail::parse_signal(text), std::nullopt) << text;
}

TEST(SignalText, EveryNameComesBack) {
  for (int signal = -3; signal <= 200; ++signal) {
    const std::string name = detail::signal_name(signal);
    if (name.empty()) continue;
    EXPECT_EQ(detail::parse_signal(name), signal) << name;
  }
  EXPECT_EQ(detail::signal_name(SIGABRT), "ABRT");
  EXPECT_EQ(detail::signal_name(SIGRTMIN + 3), "RTMIN+3");
  EXPECT_EQ(detail::signal_name(0), "");
  EXPECT_EQ(detail::signal_name(99), "");
}

TEST(ShellWords, QuotesAsTheShellDoes) {
  EXPECT_EQ(split_words("mysql -e 'kill 42'").value(), (Words{"mysql", "-e", "kill 42"}));
  EXPECT_EQ(split_words(R"(a\ b "c \" \\ \n $d" e'f'"g"\h '')").value(),
            (Words{"a b", R"(c " \ \n $d)", "efgh", ""}));
  EXPECT_EQ(split_words("a\\\nb \"c\\\nd\" 'e\\f'").value(), (Words{"ab", "cd", "e\\f"}));
  EXPECT_EQ(split_words(" \t\n ").value(), Words{});
  EXPECT_EQ(split_words("a #b $c *").value(), (Words{"a", "#b", "$c", "*"}));
}

TEST(ShellWords, SaysWhereAQuoteBegan) {
  for (const auto& [text, position] :
       {std::pair{"ab 'c", "character 4"}, {"\"a\\\"", "character 1"}, {"abc\\", "character 4"}}) {
    const auto words = split_words(text);
    ASSERT_FALSE(words) << text;
    EXPECT_EQ(words.error().code(), Errc::invalid_text);
    EXPECT_TRUE(says(words.error(), position) && says(words.error(), text)) << words.error().message();
  }
}

TEST(ShellWords, AnyWordsComeBack) {
  std::minstd_rand random(2);
  for (int round = 0; round < 5'000; ++round) {
    Words words(random() % 4);
    std::string text;
    for (std::string& word : words) {
      for (auto left = random() % 6; left > 0; --left) word += " '\"\\;,\na$\xc3|"[random() % 12];
      text += (text.empty() ? "" : " ") + detail::quote_word(word);
    }
    ASSERT_EQ(split_words(text).value(), words) << text;
    ASSERT_EQ(detail::split_unquoted(text, ';')->size(), 1U) << text;
    ASSERT_EQ(detail::split_unquoted(text, ',')->size(), 1U) << text;
  }
}

TEST(Duration, ReadsUnitsExactly) {
  const std::pair<const char*, std::chrono::nanoseconds> known[] = {
      {"2s", 2s},      {"250ms", 250ms},  {"10us", 10us},
      {"5ns", 5ns},    {"1m", 1min},      {"3h", 3h},
      {"2d", 48h},     {"1.5h", 90min},   {".5d", 12h},
      {"1.5", 1500ms}, {"0", 0ns},        {".5s", 500ms},
      {"5.", 5s},      {"0.5m", 30s},     {"1.0000000019", 1'000'000'001ns},
      {"0.9ns", 0ns},  {"1.5us", 1500ns}, {"0.333333333333333333333333", 333'333'333ns}};
  for (const auto& [text, expected] : known) EXPECT_EQ(parse_duration(text).value(), expected) << text;
}

TEST(Duration, RefusesWhatIsNone) {
  for (const char* text : {"",
                           ".",
                           "s",
                           "-1",
                           "+1",
                           "1e3",
                           "inf",
                           "nan",
                           "infinity",
                           "0x10",
                           "1H",
                           "1w",
                           "1min",
                           "1 s",
                           "1s ",
                           "1.2.3",
                           "1,5",
                           "3153600001",
                           "99999999999999999999999",
                           "18446744073709551617ns",
                           "52560001m",
                           "876001h",
                           "36501d"}) {
    const auto duration = parse_duration(text);
    ASSERT_FALSE(duration) << text;
    EXPECT_EQ(duration.error().code(), Errc::invalid_text);
  }
  for (const char* text : {"3153600000", "52560000m", "876000h", "36500d"})
    EXPECT_EQ(parse_duration(text).value(), detail::kLongestSleep) << text;
}

TEST(Duration, ComesBack) {
  for (const std::chrono::nanoseconds d : std::initializer_list<std::chrono::nanoseconds>{
           0ns, 1ns, 999ns, 1000ns, 1500us, 1ms, 1s, 90s, detail::kLongestSleep - 1ns})
    EXPECT_EQ(parse_duration(detail::duration_text(d)).value(), d);
  EXPECT_EQ(detail::duration_text(1500ms), "1500ms");
  EXPECT_EQ(detail::duration_text(0ns), "0s");
}

// Every kind of action that has a text form.
class ActionText : public testing::Test {
 protected:
  void SetUp() override {
    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    one_.reset(pair[0]);
    other_.reset(pair[1]);
    event_.reset(::eventfd(0, EFD_CLOEXEC));
    fd_ = std::to_string(one_.get());
  }
  UniqueFd one_, other_, event_;
  std::string fd_;
};

TEST_F(ActionText, EveryActionComesBack) {
  const int fd = one_.get();
  const auto address = [](const char* text) { return SocketAddress::parse(text).value(); };
  std::vector<Action> actions{send_signal(SIGALRM, SignalTarget::process),
                              send_signal(SIGRTMIN + 3, SignalTarget::process),
                              send_signal(SIGKILL, SignalTarget::process),
                              kill_process(SIGTERM, ::getpid()),
                              close_fd(fd),
                              shutdown_read(fd),
                              shutdown_write(fd),
                              shutdown_both(fd),
                              close_peer(address("127.0.0.1:3306")),
                              shutdown_read(address("[::1]:80")),
                              shutdown_write(address("unix:/run/a b,c;d'e")),
                              shutdown_both(address("unix:back\\x5cslash")),
                              run({"sh", "-c", "echo 'a;b'", ""}),
                              exec({"/bin/sh", "\n", "\\"}),
                              sleep_for(1500ms),
                              sleep_for(0s),
                              notify(event_.get())};
#if SOCKALARM_LINUX
  actions.push_back(send_signal(SIGALRM));
  actions.push_back(close_peer(address("unix:@abs\\x00tract")));
#endif
  for (const Action& action : actions) {
    ASSERT_EQ(action.error(), nullptr) << action.error()->message();
    const auto parsed = parse_action(to_string(action));
    ASSERT_TRUE(parsed) << parsed.error().message();
    EXPECT_TRUE(*parsed == action) << to_string(action);
    EXPECT_EQ(to_string(*parsed), to_string(action));
  }
  for (std::size_t i = 0; i < actions.size(); ++i)
    for (std::size_t j = 0; j < actions.size(); ++j) EXPECT_EQ(actions[i] == actions[j], i == j);
  const auto chain = ActionChain::parse(to_string(ActionChain(actions)));
  ASSERT_TRUE(chain) << chain.error().message();
  ASSERT_EQ(chain->size(), actions.size());
  for (std::size_t i = 0; i < actions.size(); ++i) EXPECT_TRUE((*chain)[i] == actions[i]);
}

TEST_F(ActionText, WritesTheCanonicalForm) {
  EXPECT_EQ(to_string(parse_action(" sig:14:process ").value()), "sig:ALRM:process");
  EXPECT_EQ(to_string(parse_action("sig:sigrtmin+3:process").value()), "sig:RTMIN+3:process");
  EXPECT_EQ(to_string(parse_action("sleep:1.5").value()), "sleep:1500ms");
  EXPECT_EQ(to_string(parse_action("run:sh  -c \"kill 42\"").value()), "run:sh -c 'kill 42'");
  EXPECT_EQ(to_string(parse_action("shut_rw:[::1]:80").value()), "shut_rw:[::1]:80");
}

TEST_F(ActionText, ChainsNameSeveralTargetsAndTolerateTheLastSemicolon) {
  const auto chain = ActionChain::parse("shut_rw:" + fd_ + ", 'unix:/a,b' ,127.0.0.1:1; sleep:2s ; ");
  ASSERT_TRUE(chain) << chain.error().message();
  EXPECT_EQ(to_string(*chain), "shut_rw:" + fd_ + "; shut_rw:'unix:/a,b'; shut_rw:127.0.0.1:1; sleep:2s");
  EXPECT_EQ(ActionChain::parse("run:sh -c 'a;b' \";\" \\;")->size(), 1U);
}

TEST_F(ActionText, SaysWhatIsWrong) {
  const struct {
    std::string text;
    Errc code;
    const char* says;
  } cases[] = {
      {"", Errc::invalid_text, "expected one of"},
      {"   ", Errc::invalid_text, "expected one of"},
      {"frob:1", Errc::invalid_text, "sleep:"},
      {"sleep", Errc::invalid_text, "'sleep'"},
      {"sleep:", Errc::invalid_text, "nothing follows"},
      {"sleep:-1", Errc::invalid_text, "'-1'"},
      {"sleep:1 2", Errc::invalid_text, "more than one word"},
      {"sig:", Errc::invalid_text, "sig:ALRM"},
      {"sig:FOO", Errc::invalid_text, "'FOO'"},
      {"sig:ALRM:thread", Errc::invalid_text, "'thread'"},
      {"sig:0:process", Errc::invalid_action, "0"},
      {"sig:99:process", Errc::invalid_action, "99"},
      {"kill:TERM", Errc::invalid_text, "process id"},
      {"kill:1234:TERM", Errc::invalid_text, "'TERM'"},
      {"kill:TERM:-1", Errc::invalid_action, "above 0"},
      {"kill:TERM:99999999999", Errc::invalid_text, "99999999999"},
      {"close:", Errc::invalid_text, "target"},
      {"close:-1", Errc::invalid_action, "-1"},
      {"close:99999999999", Errc::invalid_text, "99999999999"},
      {"close:" + fd_ + ",", Errc::invalid_text, "target is missing"},
      {"close:" + fd_ + "," + fd_, Errc::invalid_text, "several"},
      {"close:unix:", Errc::invalid_action, "unnamed"},
      {"run:", Errc::invalid_action, "no program"},
      {"run:''", Errc::invalid_action, "empty"},
      {"run:no-such-program-anywhere", Errc::invalid_action, "no-such-program-anywhere"},
      {"run:sh 'x", Errc::invalid_text, "character 8"},
      {"run:sh;", Errc::invalid_text, "more than one action"},
      {"notify:x", Errc::invalid_text, "'x'"},
      {"notify:" + fd_, Errc::invalid_action, "eventfd"},
      {"call", Errc::invalid_text, "code cannot"},
      {"call_blocking", Errc::invalid_text, "code cannot"},
      {"stop", Errc::invalid_text, "code cannot"},
  };
  for (const auto& [text, code, part] : cases) {
#if !SOCKALARM_LINUX
    if (text == "notify:" + fd_) continue;  // there only asked to be open
#endif
    const auto action = parse_action(text);
    ASSERT_FALSE(action) << text;
    EXPECT_EQ(action.error().code(), code) << text << ": " << action.error().message();
    EXPECT_TRUE(says(action.error(), part)) << action.error().message();
    EXPECT_TRUE(
        says(action.error(), text.substr(text.find_first_not_of(' ') == text.npos ? text.size() : 0)));
  }
}

TEST_F(ActionText, ChainErrors) {
  for (const auto& [text, part] : {std::pair{"", "missing"},
                                   {" ", "missing"},
                                   {";", "missing"},
                                   {";;", "missing"},
                                   {"sleep:1;;sleep:2", "character 9"},
                                   {"sleep:1;;", "character 9"},
                                   {"sleep:1; run:sh \"x", "character 17"},
                                   {"sleep:1;sleep:x", "'sleep:x'"}}) {
    const auto chain = ActionChain::parse(text);
    ASSERT_FALSE(chain) << text;
    EXPECT_EQ(chain.error().code(), Errc::invalid_text);
    EXPECT_TRUE(says(chain.error(), part)) << chain.error().message();
  }
}

TEST_F(ActionText, NoTextCrashes) {
  const std::string pieces[] = {
      "sig:",   "kill:", "close:", "shut_rw:", "sleep:", "notify:", "run:",  "TERM",
      ":",      ";",     ",",      "'",        "\"",     "\\",      "unix:", "@",
      "[::1]:", "80",    "1.5",    "ms",       "sh",     " ",       "\n",    std::string(1, '\0'),
      "%",      "-"};
  std::minstd_rand random(3);
  for (int round = 0; round < 20'000; ++round) {
    std::string text;
    for (auto left = random() % 9; left > 0; --left) text += pieces[random() % std::size(pieces)];
    if (const auto action = parse_action(text)) {
      EXPECT_TRUE(*action == parse_action(to_string(*action)).value()) << text;
    }
    if (const auto chain = ActionChain::parse(text)) {
      const auto again = ActionChain::parse(to_string(*chain));
      ASSERT_TRUE(again) << text << " -> " << to_string(*chain);
      EXPECT_EQ(to_string(*again), to_string(*chain));
    }
  }
}

}  // namespace
}  // namespace sockalarm
