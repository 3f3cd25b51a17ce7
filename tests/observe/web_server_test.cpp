// SPDX-License-Identifier: Apache-2.0
#include "observe/web_server.h"

#include <gtest/gtest.h>
#include <sys/un.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <thread>

#include "harness/alarms.h"
#include "harness/network_namespace.h"
#include "harness/ports.h"
#include "observe/event_feed.h"

namespace sockalarm::observe {
namespace {

using namespace std::chrono_literals;
using sockalarm::test::eventually;

// One address that is trusted and one that is not.
class Served {
 public:
  explicit Served(WebServer::Routes routes, WebServer::Options options = {}) {
    auto tcp = listen_at_tcp("127.0.0.1:0");
    sockalarm::test::require(tcp.has_value(), "listen_at_tcp");
    port_ = std::to_string(sockalarm::test::local_port(tcp->get()));
    auto pair = listen_on_abstract();
    std::vector<WebServer::Address> addresses;
    addresses.push_back({std::move(*tcp), false});
    addresses.push_back({std::move(pair), true});
    auto started = WebServer::start(std::move(addresses), std::move(routes), options);
    sockalarm::test::require(started.has_value(), "WebServer::start");
    server_ = std::move(*started);
  }

  WebServer& server() { return *server_; }
  void stop() { server_.reset(); }
  UniqueFd connect() const { return within_a_minute(sockalarm::test::connect_to_port(port_)); }
  UniqueFd connect_trusted() const {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockalarm::test::require(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&name_), length_) == 0,
                             "connect");
    return within_a_minute(std::move(fd));
  }

 private:
  // What is not answered fails instead of taking for ever.
  static UniqueFd within_a_minute(UniqueFd client) {
    const timeval limit{60, 0};
    ::setsockopt(client.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return client;
  }
  UniqueFd listen_on_abstract() {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    name_.sun_family = AF_UNIX;
    length_ = sizeof(sa_family_t);  // the kernel chooses an abstract name (unix(7), autobind)
    sockalarm::test::require(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&name_), length_) == 0,
                             "bind");
    length_ = sizeof name_;
    ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&name_), &length_);
    sockalarm::test::require(::listen(fd.get(), 64) == 0, "listen");
    return fd;
  }

  std::string port_;
  sockaddr_un name_{};
  socklen_t length_ = 0;
  std::unique_ptr<WebServer> server_;
};

std::string request(const std::string& path, const std::string& method = "GET") {
  return method + " " + path + " HTTP/1.1\r\nHost: test\r\n\r\n";
}

void say(const UniqueFd& fd, const std::string& text) {
  EXPECT_EQ(::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
}

std::string all_of(const UniqueFd& fd) {
  std::string answer;
  char buffer[4096];
  for (ssize_t count = 0; (count = ::read(fd.get(), buffer, sizeof buffer)) > 0;)
    answer.append(buffer, static_cast<std::size_t>(count));
  return answer;
}

std::string asked(UniqueFd client, const std::string& text) {
  say(client, text);
  return all_of(client);
}

// Until it has so many bytes after the header, or the end.
std::string read_until(const UniqueFd& fd, const std::string& word) {
  std::string text;
  char byte = 0;
  while (text.find(word) == std::string::npos && ::read(fd.get(), &byte, 1) == 1) text += byte;
  return text;
}

// The lines of a body that comes in chunks, which may part them.
class ChunkedLines {
 public:
  explicit ChunkedLines(const UniqueFd& fd) : fd_(fd) {}
  // Empty: there are no more.
  std::string next() {
    while (text_.find('\n') == std::string::npos) {
      const std::string size = read_until(fd_, "\r\n");
      std::string chunk(size.empty() ? 0 : std::stoul(size, nullptr, 16) + 2, '\0');
      if (::recv(fd_.get(), chunk.data(), chunk.size(), MSG_WAITALL) != static_cast<ssize_t>(chunk.size()) ||
          chunk.size() <= 2)
        return "";
      text_.append(chunk, 0, chunk.size() - 2);
    }
    const auto end = text_.find('\n');
    std::string line = text_.substr(0, end);
    text_.erase(0, end + 1);
    return line;
  }

 private:
  const UniqueFd& fd_;
  std::string text_;
};

WebServer::Routes sample_routes(std::atomic<bool>& ready) {
  WebServer::Routes routes;
  routes.answers["/metrics"] = [] { return WebServer::Answer{200, "text/plain; version=0.0.4", "a 1\n"}; };
  routes.answers["/readyz"] = [&ready] { return WebServer::Answer{ready ? 200 : 503, "text/plain", "\n"}; };
  routes.answers["/broken"] = []() -> WebServer::Answer { throw std::runtime_error("a fault"); };
  return routes;
}

TEST(WebServer, AnswersWhatThereIs) {
  std::atomic<bool> ready{false};
  const Served served(sample_routes(ready));
  const std::string metrics = asked(served.connect(), request("/metrics"));
  EXPECT_TRUE(metrics.starts_with("HTTP/1.1 200")) << metrics;
  EXPECT_NE(metrics.find("text/plain; version=0.0.4"), std::string::npos);
  EXPECT_NE(metrics.find("Content-Security-Policy: default-src 'none'"), std::string::npos);
  EXPECT_TRUE(metrics.ends_with("\r\n\r\na 1\n")) << metrics;
  EXPECT_TRUE(asked(served.connect_trusted(), request("/metrics")).ends_with("\r\n\r\na 1\n"));
  EXPECT_TRUE(asked(served.connect(), request("/metrics", "HEAD")).ends_with("\r\n\r\n"));
  EXPECT_TRUE(asked(served.connect(), request("/readyz")).starts_with("HTTP/1.1 503"));
  ready = true;
  EXPECT_TRUE(asked(served.connect(), request("/readyz?verbose")).starts_with("HTTP/1.1 200"));
  EXPECT_TRUE(asked(served.connect(), request("/elsewhere")).starts_with("HTTP/1.1 404"));
  EXPECT_TRUE(asked(served.connect(), request("/broken")).starts_with("HTTP/1.1 500"));
  EXPECT_TRUE(asked(served.connect(), request("/metrics", "DELETE")).starts_with("HTTP/1.1 405"));
  EXPECT_TRUE(asked(served.connect(), "POST /metrics HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nabc")
                  .starts_with("HTTP/1.1 405"));
  asked(served.connect(), "nonsense\r\n\r\n");
  asked(served.connect(), "GET / HTTP/1.1\r\nHost: t\r\nX: " + std::string(1 << 20, 'x') + "\r\n\r\n");
  EXPECT_TRUE(asked(served.connect(), request("/metrics")).starts_with("HTTP/1.1 200"));
}

// A byte now and then keeps no connection, and no silence does.
TEST(WebServer, WhoDripsIsLetGo) {
  std::atomic<bool> ready{true};
  const Served served(sample_routes(ready), {.request = 300ms});
  std::vector<UniqueFd> slow;
  for (unsigned i = 0; i < WebServer::kConnections; ++i) slow.push_back(served.connect());
  std::atomic<bool> enough{false};
  std::thread drips([&] {
    while (!enough) {
      for (const UniqueFd& fd : slow) ::send(fd.get(), "G", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
      std::this_thread::sleep_for(10ms);
    }
  });
  EXPECT_TRUE(asked(served.connect(), request("/metrics")).starts_with("HTTP/1.1 200"));
  enough = true;
  drips.join();
  for (const UniqueFd& fd : slow) EXPECT_EQ(all_of(fd).find("200"), std::string::npos);
}

constexpr WebServer::Options kNoLimits{.request = 1h, .answer = 1h};

// Also while new ones come all the time that say nothing, on either address.
TEST(WebServer, WhoAsksIsAnsweredThoughTheSilentHoldAllPlaces) {
  std::atomic<bool> ready{true};
  EventFeed feed;
  WebServer::Routes routes = sample_routes(ready);
  routes.streams["/events"] = [&] { return feed.follow([] {}); };
  const Served served(std::move(routes), kNoLimits);
  const UniqueFd follows = served.connect_trusted();
  say(follows, request("/events"));
  read_until(follows, "\r\n\r\n");
  for (const bool trusted : {false, true}) {
    std::vector<UniqueFd> silent;
    const auto connect = [&] { return trusted ? served.connect_trusted() : served.connect(); };
    for (int asks = 0; asks < 10; ++asks) {
      for (unsigned i = 0; i < WebServer::kConnections + 6; ++i) silent.push_back(connect());
      EXPECT_TRUE(asked(connect(), request("/metrics")).starts_with("HTTP/1.1 200"));
    }
  }
  EXPECT_TRUE(feed.is_followed()) << "a stream keeps its place";
}

TEST(WebServer, WhoDoesNotTakeItsAnswerMakesRoom) {
  std::atomic<bool> ready{true};
  WebServer::Routes routes = sample_routes(ready);
  routes.answers["/long"] = [] { return WebServer::Answer{200, "text/plain", std::string(1 << 20, 'x')}; };
  const Served served(std::move(routes), kNoLimits);
  std::vector<UniqueFd> slow;  // Unix sockets, which hold less than that
  for (unsigned i = 0; i < WebServer::kConnections; ++i) {
    slow.push_back(served.connect_trusted());
    say(slow.back(), request("/long"));
    EXPECT_EQ(read_until(slow.back(), " "), "HTTP/1.1 ");  // it is under way
  }
  EXPECT_TRUE(asked(served.connect_trusted(), request("/metrics")).starts_with("HTTP/1.1 200"));
  EXPECT_LT(all_of(slow.front()).size(), std::size_t{1} << 20) << "the oldest";
  EXPECT_GT(all_of(slow.back()).size(), std::size_t{1} << 20);
}

TEST(WebServer, EndsThoughClientsAreThere) {
  std::atomic<bool> ready{true};
  EventFeed feed;
  WebServer::Routes routes = sample_routes(ready);
  routes.streams["/events"] = [&] { return feed.follow([] {}); };
  Served served(std::move(routes));
  const UniqueFd silent = served.connect(), half = served.connect(), follows = served.connect_trusted();
  say(half, "GET /metr");
  say(follows, request("/events"));
  read_until(follows, "\r\n\r\n");
  served.stop();
  EXPECT_EQ(all_of(silent), "");
  EXPECT_FALSE(all_of(follows).find('{') != std::string::npos);
}

class Followed : public ::testing::Test {
 protected:
  Followed() {
    WebServer::Routes routes;
    routes.streams["/events"] = [this] { return feed_.follow([this] { wake(); }); };
    served_.emplace(std::move(routes));
  }
  void wake() { served_->server().wake(); }
  UniqueFd follow() {
    UniqueFd fd = served_->connect_trusted();
    say(fd, request("/events"));
    EXPECT_TRUE(read_until(fd, "\r\n\r\n").starts_with("HTTP/1.1 200"));
    return fd;
  }
  // Publishes and counts readers, once those who left are known to have.
  bool followed() {
    feed_.publish("{}");
    return feed_.is_followed();
  }

  EventFeed feed_{{.readers = 3, .bytes = 4096}};
  std::optional<Served> served_;
};

TEST_F(Followed, EventsComeAtOnceAndInOrder) {
  const UniqueFd one = follow(), two = follow();
  for (int i = 0; i < 20; ++i) {
    const std::string line = R"({"i":)" + std::to_string(i) + "}";
    feed_.publish(line);
    for (const UniqueFd* reader : {&one, &two})
      EXPECT_NE(read_until(*reader, line + "\n").find(line), std::string::npos);
  }
  EXPECT_EQ(feed_.lost(), 0u);
}

TEST_F(Followed, OnlyByThoseWhoMay) {
  EXPECT_TRUE(asked(served_->connect(), request("/events")).starts_with("HTTP/1.1 403"));
  EXPECT_FALSE(feed_.is_followed());
}

TEST_F(Followed, SoManyAndWhoLeavesMakesRoom) {
  std::vector<UniqueFd> readers;
  for (int i = 0; i < 3; ++i) readers.push_back(follow());
  EXPECT_TRUE(asked(served_->connect_trusted(), request("/events")).starts_with("HTTP/1.1 503"));
  readers.pop_back();
  EXPECT_TRUE(eventually([&] {
    UniqueFd next = served_->connect_trusted();
    say(next, request("/events"));
    return read_until(next, "\r\n\r\n").starts_with("HTTP/1.1 200");
  }));
  readers.clear();
  EXPECT_TRUE(eventually([&] { return !followed(); }));
}

TEST_F(Followed, WhoReadsSlowlyIsToldWhatIsMissing) {
  const UniqueFd slow = follow();
  const int small = 1;
  ::setsockopt(slow.get(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  std::uint64_t published = 0;
  const std::string filler(1000, 'x');
  const auto publish = [&] {
    feed_.publish(R"({"i":)" + std::to_string(published++) + R"(,"x":")" + filler + "\"}");
  };
  while (feed_.lost() < 100) publish();
  // All of it, though nothing more is published after the last gap.
  ChunkedLines lines(slow);
  std::uint64_t missing = 0;
  for (std::uint64_t next = 0; next < published;) {
    const auto json = nlohmann::json::parse(lines.next(), nullptr, false);
    ASSERT_TRUE(json.is_object()) << "the stream ended after " << next << " of " << published;
    if (json.contains("lost")) {
      missing += json.at("lost").get<std::uint64_t>();
      next += json.at("lost").get<std::uint64_t>();
    } else {
      ASSERT_EQ(json.at("i").get<std::uint64_t>(), next++);
    }
  }
  EXPECT_EQ(missing, feed_.lost());
}

TEST(ListenAtTcp, SaysWhatIsWrong) {
  for (const char* wrong : {"", "9465", "localhost:80", "127.0.0.1:http", ":80", "[::1]",
                            "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:+1", "127.0.0.1: 1",
                            "::1:19480", "[::1]19480", "[::1]:65536", "[127.0.0.1]:80", "unix:/run/x"}) {
    const auto fd = listen_at_tcp(wrong);
    ASSERT_FALSE(fd) << wrong;
    EXPECT_NE(fd.error().message().find("127.0.0.1:9465"), std::string::npos) << fd.error().message();
  }
  EXPECT_TRUE(listen_at_tcp("[::1]:0"));
  const auto taken = listen_at_tcp("127.0.0.1:0");
  const std::string address = "127.0.0.1:" + std::to_string(sockalarm::test::local_port(taken->get()));
  const auto second = listen_at_tcp(address);
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().message().find(address), std::string::npos);
}

}  // namespace
}  // namespace sockalarm::observe
