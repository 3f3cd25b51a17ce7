// SPDX-License-Identifier: Apache-2.0
#include <arpa/inet.h>
#include <libpq-fe.h>

#include <memory>
#include <optional>

#include "databases/limits.h"
#include "databases/postgres_server.h"

// The example of an HTTP service, as it is and behind nginx: its query ends with its client.
// SOCKALARM_HTTP_QUERY is the executable.
namespace sockalarm::test {
namespace {

UniqueFd ask(const std::string& port, const std::string& seconds) {
  UniqueFd client = connect_to_port(port);
  send_text(client.get(), "GET /report?seconds=" + seconds + " HTTP/1.1\r\nHost: localhost\r\n\r\n");
  return client;
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t times = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++times;
  return times;
}

// How many queries of the service the server runs now.
class Monitor {
 public:
  explicit Monitor(const PostgresServer& server) : connection_(PQconnectdb(server.conninfo().c_str())) {}
  ~Monitor() { PQfinish(connection_); }
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;
  int running() {
    PGresult* const result = PQexec(connection_,
                                    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' "
                                    "AND query LIKE 'SELECT pg_sleep%'");
    const int number = PQresultStatus(result) == PGRES_TUPLES_OK ? std::stoi(PQgetvalue(result, 0, 0)) : -1;
    PQclear(result);
    return number;
  }

 private:
  PGconn* const connection_;
};

enum class Front { nothing, nginx_tcp, nginx_unix };

class HttpTest : public testing::TestWithParam<std::tuple<Front, SourceKind>> {
 protected:
  static void TearDownTestSuite() { server().reset(); }

  void SetUp() override {
    const auto& [front, source] = GetParam();
    if (source == SourceKind::kernel && ::geteuid() != 0 && !kernel_required())
      GTEST_SKIP() << "the kernel source needs root";
    if (!server()) server().emplace();
    monitor_.emplace(*server());
    port_ = free_port();
    const bool local = front == Front::nginx_unix;
    const std::string upstream = local ? "unix:" + (folder_ / "upstream") : free_port();
    start_service({SOCKALARM_HTTP_QUERY, server()->conninfo(), front == Front::nothing ? port_ : upstream,
                   std::string(to_string(source))});
    if (front != Front::nothing) start_nginx(local ? upstream : "127.0.0.1:" + upstream);
  }

  std::string said() const { return folder_.read("service.log"); }
  int running() { return monitor_->running(); }
  const std::string& port() const { return port_; }

 private:
  static std::optional<PostgresServer>& server() {
    static std::optional<PostgresServer> one;
    return one;
  }
  // Its privileges are the test's, for the kernel source.
  void start_service(std::vector<std::string> argv) {
    service_.emplace(folder_, "service", std::move(argv), "/dev/null", ServerProcess::As::tester);
    ASSERT_TRUE(eventually([&] { return said().find("listening on") != std::string::npos; })) << said();
    if (std::filesystem::exists(folder_ / "upstream"))
      std::filesystem::permissions(folder_ / "upstream", std::filesystem::perms::all);
  }
  void start_nginx(const std::string& upstream) {
    folder_.write("nginx.conf",
                  "daemon off; master_process off; pid nginx.pid; error_log stderr;\n"
                  "events {}\n"
                  "http {\n"
                  "  access_log off; client_body_temp_path body; proxy_temp_path proxy;\n"
                  "  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n"
                  "  server { listen 127.0.0.1:" +
                      port_ + "; location / { proxy_pass http://" + upstream + "; } }\n}\n");
    nginx_.emplace(folder_, "nginx",
                   std::vector<std::string>{"/usr/sbin/nginx", "-p", folder_.text() + "/", "-c", "nginx.conf",
                                            "-e", "stderr"});
  }

  const ServerFolder folder_;
  std::string port_;
  std::optional<Monitor> monitor_;
  std::optional<ServerProcess> service_, nginx_;
};

std::string front_name(Front front) {
  return front == Front::nothing ? "direct" : front == Front::nginx_tcp ? "nginx_tcp" : "nginx_unix";
}
INSTANTIATE_TEST_SUITE_P(Front, HttpTest,
                         testing::Combine(testing::Values(Front::nothing, Front::nginx_tcp,
                                                          Front::nginx_unix),
                                          testing::ValuesIn(tested_sources())),
                         [](const auto& one) {
                           return front_name(std::get<0>(one.param)) + "_" +
                                  std::string(to_string(std::get<1>(one.param)));
                         });

TEST_P(HttpTest, TheHandlerEndsWithItsClient) {
  std::vector<std::chrono::nanoseconds> took, query_took;
  for (std::size_t times = 1; times <= 3; ++times) {
    UniqueFd client = ask(port(), "60");
    ASSERT_TRUE(eventually([&] { return running() == 1; })) << said();
    const auto left = std::chrono::steady_clock::now();
    client.reset();
    while (running() != 0 && std::chrono::steady_clock::now() - left < kPatience) {
    }
    query_took.push_back(std::chrono::steady_clock::now() - left);
    while (count(said(), "handler ended") < times && std::chrono::steady_clock::now() - left < kPatience) {
    }
    took.push_back(std::chrono::steady_clock::now() - left);
    EXPECT_EQ(count(said(), "handler ended, its client had left: ERROR:  canceling statement"), times)
        << said();
  }
  const std::string where = testing::UnitTest::GetInstance()->current_test_info()->name();
  expect_within_limit(query_took, where + ": the query ended");
  expect_within_limit(took, where + ": the handler ended");
}

TEST_P(HttpTest, OthersAreServed) {
  const UniqueFd stays = ask(port(), "1");
  UniqueFd leaves = ask(port(), "60");
  ASSERT_TRUE(eventually([&] { return count(said(), "handler") == 0 && running() == 2; })) << said();
  leaves.reset();
  char text[1024];
  const ssize_t length = ::recv(stays.get(), text, sizeof text, 0);
  ASSERT_GT(length, 0);
  EXPECT_EQ(std::string(text, static_cast<std::size_t>(length)).substr(0, 15), "HTTP/1.1 200 OK");
  EXPECT_TRUE(eventually([&] { return count(said(), "handler ended, its client had left") == 1; })) << said();
  EXPECT_EQ(count(said(), "handler answered: done"), 1U);
}

}  // namespace
}  // namespace sockalarm::test
