// SPDX-License-Identifier: Apache-2.0
// One broker: it comes late, dies, does not answer; the agent dies.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "harness/ports.h"
#include "observe/nats_reader.h"
#include "observe/nats_server.h"
#include "observe/samples.h"

namespace sockalarm::observe {
namespace {

using namespace test;
using namespace std::chrono_literals;
using sockalarm::test::contents;
using sockalarm::test::free_port;
using sockalarm::test::write_contents;

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
    if (!sink) return nullptr;
    const auto started = (*sink)->start();
    EXPECT_TRUE(started) << started.error().message();
    return started ? std::move(*sink) : nullptr;
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

  ServerFolder folder_;
  NatsServer server_{folder_, "alone", free_port()};
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

// The answer to the first question comes while all is taken down again: TSan sees a lock that is no more.
TEST_F(Nats, EndsWhileAnAnswerComes) {
  server_.start();
  Consumer(server_.url()).make_stream(1, 1h);
  constexpr int kRounds = 1000;
  for (int round = 0; round < kRounds; ++round) {
    const auto sink = open(options());
    ASSERT_TRUE(sink);
    ASSERT_TRUE(eventually([&] { return sink->figures().connected.load(); }, 60s));
  }
}

// As in a fleet: each host has a leaf node without JetStream, the region a hub that has the stream.
TEST_F(Nats, ThroughALeafNodeToTheHubOfARegion) {
  const std::string hub_port = free_port(), leaf_port = free_port(), between = free_port();
  write_contents(folder_ / "hub.conf", "leafnodes { listen: \"127.0.0.1:" + between + "\" }\n");
  write_contents(folder_ / "leaf.conf",
                 "leafnodes { remotes: [ { url: \"nats-leaf://127.0.0.1:" + between + "\" } ] }\n");
  NatsServer hub(folder_, "hub", hub_port, {"-c", folder_ / "hub.conf"});
  hub.start();
  const auto start_leaf = [&] {
    return std::make_unique<ServerProcess>(
        folder_, "leaf",
        std::vector<std::string>{"nats-server", "-a", "127.0.0.1", "-p", leaf_port, "-n", "leaf", "-c",
                                 folder_ / "leaf.conf"});
  };
  auto leaf = start_leaf();
  Consumer consumer(hub.url());
  consumer.make_stream(1, 1h);
  NatsOptions to_leaf = options();
  to_leaf.servers = "nats://127.0.0.1:" + leaf_port;
  const auto sink = open(to_leaf);
  ASSERT_TRUE(sink);
  write(*sink, 1, 100);
  ASSERT_TRUE(all_acknowledged(*sink));
  leaf.reset();
  write(*sink, 101, 100);
  leaf = start_leaf();
  ASSERT_TRUE(all_acknowledged(*sink));
  EXPECT_EQ(consumer.ids(200, 60s).size(), 200U);
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

TEST_F(Nats, ADamagedSpoolIsToldOf) {
  write(*open(options()), 1, 1);
  EXPECT_FALSE(told_of("not the number of a record"));
  write_contents(spool_.folder / "acknowledged", "0123456789abcdef");
  const auto sink = open(options());
  EXPECT_TRUE(told_of((spool_.folder / "acknowledged").string() + ": not the number of a record"));
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
    EXPECT_TRUE(eventually([&] { return told_of("stream not found; make it: nats stream add"); }, 60s));
  }
  Consumer consumer(server_.url());
  consumer.make_stream(1, 2min);
  const auto sink = open(options());
  EXPECT_TRUE(eventually([&] { return told_of("raise its duplicate window"); }, 60s));
}

TEST_F(Nats, SaysThatThereIsNoConnectionAndKnowsOneThatComesLate) {
  const auto sink = open(options());
  ASSERT_TRUE(sink);
  EXPECT_TRUE(eventually([&] { return told_of("no connection to the NATS servers"); }, 60s));
  EXPECT_FALSE(sink->figures().connected);
  server_.start();
  EXPECT_TRUE(eventually([&] { return sink->figures().connected.load(); }, 60s));
  server_.kill();
  EXPECT_TRUE(eventually([&] { return !sink->figures().connected; }, 60s));
}

// With the right to publish only: it is told of once, and what comes is sent as fast as ever.
TEST_F(Nats, AnAgentThatMayNotAskForTheStreamSends) {
  write_contents(
      folder_ / "server.conf",
      "authorization { users = [{user: agent, password: secret, permissions: {"
      "publish: [\"sockalarm.v1.>\"], subscribe: [\"_INBOX.>\"]}}, {user: operator, password: secret}] }\n");
  NatsServer strict(folder_, "strict", free_port(), {"-c", folder_ / "server.conf"});
  strict.start();
  Consumer consumer(strict.url("operator:secret@"));
  consumer.make_stream(1, 1h);
  NatsOptions given = options();
  given.servers = strict.url("agent:secret@");
  const auto sink = open(given);
  ASSERT_TRUE(sink);
  ASSERT_TRUE(eventually([&] { return told_of("Permissions Violation"); }, 60s));
  const auto begun = std::chrono::steady_clock::now();
  for (std::uint64_t number = 1; number <= 20; ++number) {
    write(*sink, number, 1);
    ASSERT_TRUE(all_acknowledged(*sink));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begun, 60s) << "20 times 5 s, if each asked again";
  const std::lock_guard lock(mutex_);
  EXPECT_EQ(errors_.size(), 1U);
}

TEST_F(Nats, ABrokerWithoutJetStreamOrStreamIsToldOfWithWhatToDo) {
  const std::string port = free_port();
  std::optional<ServerProcess> plain(std::in_place, folder_, "plain",
                                     std::vector<std::string>{"nats-server", "-a", "127.0.0.1", "-p", port});
  NatsOptions given = options();
  given.servers = "nats://agent:secret@127.0.0.1:" + port;
  const auto sink = open(given);
  ASSERT_TRUE(sink);
  write(*sink, 1, 1);
  EXPECT_TRUE(eventually([&] { return told_of("there is no JetStream for the stream 'SOCKALARM'"); }, 60s));
  EXPECT_TRUE(told_of("`jetstream {}`"));
  plain.reset();
  NatsServer next(folder_, "next", port);
  next.start();
  EXPECT_TRUE(
      eventually([&] { return told_of("nats stream add SOCKALARM --subjects 'sockalarm.v1.>'"); }, 60s));
  Consumer(next.url()).make_stream(1, 1h);
  EXPECT_TRUE(all_acknowledged(*sink));
  EXPECT_TRUE(told_of("nats://***@127.0.0.1:" + port));
  EXPECT_FALSE(told_of("secret"));
}

TEST_F(Nats, TlsIsNotLeftToTheServer) {
  server_.start();
  Consumer consumer(server_.url());  // it is there
  NatsOptions given = options();
  given.servers = "tls://agent:secret@" + server_.url().substr(7);
  const auto sink = open(given);
  ASSERT_TRUE(sink);
  EXPECT_TRUE(eventually([&] { return told_of("no connection"); }, 60s));
  EXPECT_FALSE(sink->figures().connected);
  EXPECT_FALSE(told_of("secret"));
}

// Whoever is certified for another name may be in between.
TEST_F(Nats, ATlsServerMustBeTheOneOfItsUrl) {
  const auto openssl = [&](std::vector<std::string> words) {
    words.insert(words.begin(), "openssl");
    sockalarm::test::run_to_end(folder_, "openssl", std::move(words));
  };
  const auto make = [&](const std::string& name, const std::vector<std::string>& more) {
    std::vector<std::string> words{"req",
                                   "-x509",
                                   "-newkey",
                                   "rsa:2048",
                                   "-nodes",
                                   "-days",
                                   "2",
                                   "-subj",
                                   "/CN=" + name,
                                   "-keyout",
                                   folder_ / (name + ".key"),
                                   "-out",
                                   folder_ / (name + ".pem")};
    words.insert(words.end(), more.begin(), more.end());
    openssl(std::move(words));
  };
  make("authority", {});
  NatsOptions given = options();
  given.authorities = folder_ / "authority.pem";
  const auto connects = [&](const std::string& certified, bool expected) {
    SCOPED_TRACE(certified);
    make(certified, {"-addext", "subjectAltName=" + certified, "-addext", "basicConstraints=CA:FALSE", "-CA",
                     folder_ / "authority.pem", "-CAkey", folder_ / "authority.key"});
    NatsServer server(
        folder_, certified, free_port(),
        {"--tls", "--tlscert", folder_ / (certified + ".pem"), "--tlskey", folder_ / (certified + ".key")});
    server.start();
    given.servers = "tls" + server.url().substr(4);
    const auto sink = open(given);
    ASSERT_TRUE(sink);
    if (expected)
      EXPECT_TRUE(eventually([&] { return sink->figures().connected.load(); }, 60s));
    else
      EXPECT_TRUE(eventually([&] { return told_of("IP address mismatch"); }, 60s));
    EXPECT_EQ(sink->figures().connected.load(), expected);
  };
  connects("DNS:other.example", false);
  connects("IP:127.0.0.1", true);
}

TEST_F(Nats, AReaderTellsNoPassword) {
  NatsServer strict(folder_, "strict", free_port(), {"--user", "other", "--pass", "password"});
  strict.start();
  Consumer consumer(strict.url("other:password@"));
  for (const auto& servers : {strict.url("agent:secret@"), std::string("nats://agent:secret@127.0.0.1:1"),
                              std::string("agent:secret@[::1:4222")}) {
    StreamOptions asked;
    asked.servers = servers;
    asked.durable = "one";
    const auto reader = StreamReader::open(asked);
    ASSERT_FALSE(reader);
    EXPECT_EQ(reader.error().message().find("secret"), std::string::npos) << reader.error().message();
    EXPECT_NE(reader.error().message().find("***@"), std::string::npos) << reader.error().message();
  }
}

TEST(NatsServers, AreShownWithoutLogins) {
  const std::pair<const char*, const char*> cases[]{
      {"", ""},
      {"nats://host:4222", "nats://host:4222"},
      {"nats://user:secret@host:4222", "nats://***@host:4222"},
      {"nats://secret@host", "nats://***@host"},
      {"user:secret@host", "***@host"},
      {"secret@[::1]:4222", "***@[::1]:4222"},
      {"nats://a:4222, tls://u:secret@b:4222 ,nats://c", "nats://a:4222, tls://***@b:4222 ,nats://c"},
      {"nats://u:secret@a,nats://secret@b", "nats://***@a,nats://***@b"},
      {"nats://u:secr@et@a,nats://b", "nats://***@a,nats://b"},
      {"nats://u:sec,ret@a", "nats://***@a"},
      {"nats://u:secr://et@a,nats://b", "nats://***@a,nats://b"},
      {"nats://u:sec ret@a", "nats://***@a"},
      {"a:4222,u:secret@b", "***@b"},
      {"cannot reach nats://u:secret@a:4222: refused", "cannot reach nats://***@a:4222: refused"},
      {"cannot reach 'u:secret@a'", "cannot reach '***@a'"},
      {"Authorization Violation", "Authorization Violation"},
      {"://", "://"},
      {"@", "***@"}};
  for (const auto& [given, shown] : cases) EXPECT_EQ(without_logins(given), shown) << given;
}

TEST(NatsServers, AreRefusedIfTheyAreNone) {
  for (const char* wrong : {"", " , ", "http://h", "nats://", "nats://u:secret@", "h:", "h:0", "h:65536",
                            "h:http", "::1:4222", "[::1", "[]:4222", "[::1]4222", "nats://secret@h x"}) {
    const auto options =
        nats_options({.servers = wrong, .credentials = {}, .authorities = {}, .name = "test"}, 100ms);
    ASSERT_FALSE(options) << wrong;
    EXPECT_NE(options.error().message().find("separated by commas, as nats://host:4222"), std::string::npos);
    EXPECT_EQ(options.error().message().find("secret"), std::string::npos) << options.error().message();
  }
  for (const char* right :
       {"h", "nats://h", "tls://u:p@h:4222", "h:1,[::1]:65535", " nats://[::1] ,h", "nats://h:4222/"})
    EXPECT_TRUE(nats_options({.servers = right, .credentials = {}, .authorities = {}, .name = "test"}, 100ms))
        << right;
}

TEST_F(Nats, CredentialsThatAreRefusedAreTriedAgain) {
  const std::string port = free_port();
  const auto configure = [&](const std::string& password) {
    write_contents(folder_ / "server.conf",
                   "authorization { users = [{user: agent, password: " + password + "}] }\n");
  };
  configure("other");
  NatsServer strict(folder_, "strict", port, {"-c", folder_ / "server.conf"});
  strict.start();
  NatsOptions given = options();
  given.servers = strict.url("agent:secret@");
  const auto sink = open(given);
  ASSERT_TRUE(sink);
  ASSERT_TRUE(eventually([&] { return told_of("no connection"); }, 60s));
  EXPECT_TRUE(eventually([&] { return told_of("(Authorization Violation)"); }, 60s));
  ASSERT_TRUE(eventually(
      [&] {
        const std::string log = contents(folder_ / "strict.log");
        const auto first = log.find("authentication error");
        return first != std::string::npos && log.find("authentication error", first + 1) != std::string::npos;
      },
      60s))
      << "after the second the library closes the connection for good";
  configure("secret");
  strict.kill();
  strict.start();
  EXPECT_TRUE(eventually([&] { return sink->figures().connected.load(); }, 60s));
}

// Takes connections, says what a server says, and reads no more than that takes.
class DeafServer {
 public:
  DeafServer() : listening_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const int small = 4096;
    EXPECT_EQ(::setsockopt(listening_.get(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small), 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    EXPECT_EQ(::bind(listening_.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
    EXPECT_EQ(::getsockname(listening_.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
    EXPECT_EQ(::listen(listening_.get(), 16), 0);
    url_ = "nats://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
    thread_ = std::thread([this] { serve(); });
  }
  DeafServer(const DeafServer&) = delete;
  DeafServer& operator=(const DeafServer&) = delete;
  ~DeafServer() {
    ::shutdown(listening_.get(), SHUT_RDWR);  // ends accept(2)
    thread_.join();
  }
  const std::string& url() const { return url_; }
  unsigned connections() const { return connections_; }

 private:
  void serve() {
    std::vector<UniqueFd> open;
    for (;;) {
      UniqueFd client(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!client) return;
      const std::string info =
          R"(INFO {"server_id":"deaf","version":"2.9.10","proto":1,"headers":true,"max_payload":1048576})"
          "\r\n";
      EXPECT_EQ(::send(client.get(), info.data(), info.size(), MSG_NOSIGNAL),
                static_cast<ssize_t>(info.size()));
      std::string said;
      char byte = 0;
      while (said.find("PING\r\n") == std::string::npos && ::recv(client.get(), &byte, 1, 0) == 1)
        said += byte;
      ::send(client.get(), "PONG\r\n", 6, MSG_NOSIGNAL);
      open.push_back(std::move(client));
      ++connections_;
    }
  }

  UniqueFd listening_;
  std::string url_;
  std::atomic<unsigned> connections_{0};
  std::thread thread_;
};

TEST_F(Nats, ABrokerThatReadsNoMoreBlocksTheSenderOnlySoLong) {
  DeafServer deaf;
  NatsOptions given = options();
  given.servers = deaf.url();
  given.window = 100'000;
  const auto sink = open(given);
  ASSERT_TRUE(sink);
  write(*sink, 1, 15'000);  // more than sockets of the loopback interface hold
  EXPECT_TRUE(eventually([&] { return deaf.connections() >= 2; }, 60s)) << "the sender gave up the first";
  EXPECT_EQ(sink->spool().pending, 15'000U);
}

// Threads of the library may still call when static objects end: what those use must be there.
TEST_F(Nats, ASinkMayLiveLongerThanMain) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // a process of its own
  EXPECT_EXIT(
      {
        static std::unique_ptr<NatsSink> sink;  // its end comes after that of what open() makes
        sink = open(options());
        write(*sink, 1, 10);
        std::filesystem::remove_all(folder_.text());
        std::exit(sink ? 0 : 2);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST(NatsSubject, HasNoMoreTokensThanItShould) {
  Host host = sample_host();
  host.name = "a.b *>\xc3\xa9";
  host.region.clear();
  EXPECT_EQ(nats_subject(host, Cause::timeout), "sockalarm.v1.none.a_b_____.timeout");
}

}  // namespace
}  // namespace sockalarm::observe
