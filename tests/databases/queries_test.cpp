// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <filesystem>
#include <iostream>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <tuple>

#include "databases/database.h"
#include "databases/limits.h"
#include "harness/alarms.h"
#include "harness/sockets.h"

// Queries that end with their client, on real servers.
namespace sockalarm::test {
namespace {

std::vector<DatabaseKind> kinds() {
  std::vector<DatabaseKind> all;
#if SOCKALARM_TEST_POSTGRES
  all.push_back({"postgres", start_postgres});
#endif
#if SOCKALARM_TEST_MARIADB
  all.push_back({"mariadb", start_mariadb});
#endif
  return all;
}

std::map<std::string, std::unique_ptr<Database>>& started() {
  static std::map<std::string, std::unique_ptr<Database>> all;
  return all;
}
class StopDatabases : public testing::Environment {
  void TearDown() override { started().clear(); }
};
[[maybe_unused]] const auto* const kStopDatabases = testing::AddGlobalTestEnvironment(new StopDatabases);

class QueriesTest : public testing::TestWithParam<std::tuple<DatabaseKind, SourceKind>> {
 protected:
  void SetUp() override {
    const auto& [kind, source] = GetParam();
    auto made = make_watcher(source, logging_to(warnings_, LogLevel::warning));
    if (!made && !kernel_required() && source == SourceKind::kernel) GTEST_SKIP() << made.error().message();
    ASSERT_TRUE(made) << made.error().message();
    watcher_.emplace(std::move(*made));
    std::unique_ptr<Database>& known = started()[kind.name];
    if (!known) known = kind.start();
    database_ = known.get();
  }
  const Watcher& watcher() const { return *watcher_; }
  Database& database() const { return *database_; }
  Journal& warnings() { return warnings_; }
  bool runs(const Session& session) const { return database_->running().contains(session.id()); }

 private:
  Journal warnings_;
  std::optional<Watcher> watcher_;
  Database* database_ = nullptr;
};
INSTANTIATE_TEST_SUITE_P(Database, QueriesTest,
                         testing::Combine(testing::ValuesIn(kinds()), testing::ValuesIn(tested_sources())),
                         [](const auto& one) {
                           return std::get<0>(one.param).name + "_" +
                                  std::string(to_string(std::get<1>(one.param)));
                         });

// A request and the thread that handles it: one query, then the connection is used again.
class Request {
 public:
  Request(const Watcher& watcher, Session& session, std::string statement)
      : connection_(tcp_pair()), watch_(watcher.watch(connection_.ours.get()).value()) {
    thread_ = std::thread([this, &session, statement = std::move(statement)] {
      {
        const auto alarm = watch_.arm(repeated(session.stop_query())).value();
        answer_ = session.query(statement);
      }
      next_ = session.query("SELECT 'next'");
    });
  }
  void client_leaves() { connection_.peer.reset(); }
  Answer answer() {
    if (thread_.joinable()) thread_.join();
    return answer_;
  }
  Answer next() {
    answer();
    return next_;
  }
  ~Request() { answer(); }

 private:
  Connection connection_;
  const Watch watch_;
  Answer answer_, next_;
  std::thread thread_;
};

#define EXPECT_ANSWER(answer, expected)                                                              \
  do {                                                                                               \
    const Answer given = (answer);                                                                   \
    EXPECT_EQ(static_cast<int>(given.kind), static_cast<int>(Answer::Kind::expected)) << given.text; \
  } while (false)

TEST_P(QueriesTest, EndsOnTheServerWithItsClient) {
  std::vector<std::chrono::nanoseconds> took;
  for (const bool tcp : {false, true, false, true, false}) {
    const auto session = database().connect(tcp);
    Request request(watcher(), *session, database().sleeping(60));
    ASSERT_TRUE(eventually([&] { return runs(*session); }));
    const auto left = std::chrono::steady_clock::now();
    request.client_leaves();
    while (runs(*session) && std::chrono::steady_clock::now() - left < kPatience) {
    }
    took.push_back(std::chrono::steady_clock::now() - left);
    EXPECT_ANSWER(request.answer(), stopped);
    EXPECT_ANSWER(request.next(), done);
  }
  expect_within_limit(took, "a query of 60 s was gone from the server's list");
  EXPECT_TRUE(warnings().lines().empty()) << warnings().lines().front();
}

TEST_P(QueriesTest, ExactlyTheAbandonedOnesEnd) {
  constexpr std::size_t kRequests = 200;
  // Kept for the other sources: connecting takes most of the time.
  static std::map<Database*, std::vector<std::unique_ptr<Session>>> connected;
  auto& sessions = connected[&database()];
  std::vector<std::unique_ptr<Request>> requests;
  std::set<long> kept;
  std::vector<std::size_t> order(kRequests);
  for (std::size_t i = 0; i < kRequests; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), std::mt19937(7));
  database().close_gate();
  while (sessions.size() < kRequests) sessions.push_back(database().connect());
  for (const auto& session : sessions)
    requests.push_back(std::make_unique<Request>(watcher(), *session, database().gated()));
  EXPECT_TRUE(eventually([&] { return database().running().size() == kRequests; }));
  for (std::size_t i = kRequests / 2; i < kRequests; ++i) kept.insert(sessions[order[i]]->id());

  for (std::size_t i = 0; i < kRequests / 2; ++i) requests[order[i]]->client_leaves();
  EXPECT_TRUE(eventually([&] { return database().running().size() <= kept.size(); }));
  for (std::size_t i = 0; i < kRequests / 2; ++i) {
    EXPECT_ANSWER(requests[order[i]]->answer(), stopped);
    EXPECT_ANSWER(requests[order[i]]->next(), done);
  }
  EXPECT_EQ(database().running(), kept);

  database().open_gate();
  for (std::size_t i = kRequests / 2; i < kRequests; ++i) {
    EXPECT_EQ(requests[order[i]]->answer().text, "through");
    EXPECT_ANSWER(requests[order[i]]->next(), done);
  }
  for (const auto& session : sessions) EXPECT_ANSWER(session->query("SELECT 1"), done);
  EXPECT_TRUE(warnings().lines().empty()) << warnings().lines().front();
}

// Clients that leave around the end of a short query: the cancel hits it or nothing, never the next one.
TEST_P(QueriesTest, AStaleCancelDoesNotHitTheNextQuery) {
  constexpr int kRounds = 60;
  const auto session = database().connect();
  const ActionChain stop_query = repeated(session->stop_query(), 4, 1ms);
  std::mt19937 random(11);
  int stopped = 0, done = 0;
  for (int round = 0; round < kRounds; ++round) {
    Connection connection = tcp_pair();
    const Watch watch = watcher().watch(connection.ours.get()).value();
    const auto begin = std::chrono::steady_clock::now();
    const auto moment = std::chrono::microseconds(random() % 25'000);
    const std::jthread client([&] {
      std::this_thread::sleep_until(begin + moment);
      connection.peer.reset();
    });
    Answer answer;
    {
      const auto alarm = watch.arm(stop_query).value();
      answer = session->query(database().sleeping(0.02));
    }
    for (int next = 0; next < 2; ++next) {
      const Answer after = session->query(database().sleeping(0.002));
      ASSERT_EQ(static_cast<int>(after.kind), static_cast<int>(Answer::Kind::done)) << after.text;
    }
    ASSERT_NE(static_cast<int>(answer.kind), static_cast<int>(Answer::Kind::failed)) << answer.text;
    (answer.kind == Answer::Kind::stopped ? stopped : done) += 1;
  }
  std::cout << stopped << " stopped, " << done << " done\n";
  EXPECT_GT(stopped, 0);
}

// The first cancel comes before the query has begun and hits nothing; the next one does.
TEST_P(QueriesTest, AnEarlyCancelIsRepeated) {
  const auto session = database().connect();
  Connection connection = tcp_pair();
  const Watch watch = watcher().watch(connection.ours.get()).value();
  connection.peer.reset();
  {
    const auto alarm = watch.arm(repeated(session->stop_query(), 16, 50ms)).value();
    ASSERT_TRUE(eventually([&] { return alarm.current_action() >= 1; }));
    EXPECT_ANSWER(session->query(database().sleeping(60)), stopped);
  }
  EXPECT_ANSWER(session->query("SELECT 1"), done);
}

TEST_P(QueriesTest, AServerThatHangsHoldsUpNobodyElse) {
  const auto session = database().connect();
  Request request(watcher(), *session, database().sleeping(60));
  ASSERT_TRUE(eventually([&] { return runs(*session); }));
  Connection other = tcp_pair();
  const Watch watch = watcher().watch(other.ours.get()).value();
  Journal journal;
  const auto alarm = watch.arm(journal.entry("served")).value();
  database().freeze();
  request.client_leaves();
  EXPECT_TRUE(eventually([&] { return watcher().stats().fired == 1; }));
  other.peer.reset();
  EXPECT_TRUE(journal.wait_for(1));
  EXPECT_TRUE(eventually([&] { return watcher().stats().actions_run >= 1; }));
  EXPECT_EQ(watcher().stats().actions_run, 1U) << "the cancel is still under way";
  database().thaw();
  EXPECT_ANSWER(request.answer(), stopped);
  EXPECT_ANSWER(request.next(), done);
}

TEST_P(QueriesTest, FailuresAreCountedAndTold) {
  const auto session = database().connect();
  std::vector<Database::Refused> actions = database().refused(*session);
  const std::string hidden = database().socket_path() + ".hidden";
  std::filesystem::rename(database().socket_path(), hidden);  // nobody can connect
  actions.push_back({session->stop_query(), "onnect"});
  std::uint64_t failed = 0;
  for (auto one = actions.rbegin(); one != actions.rend(); ++one) {
    Connection connection = tcp_pair();
    const Watch watch = watcher().watch(connection.ours.get()).value();
    Journal journal;
    const auto alarm = watch.arm(ActionChain{one->action, journal.entry("after")}).value();
    connection.peer.reset();
    EXPECT_TRUE(journal.wait_for(1)) << "the chain goes on";
    EXPECT_EQ(watcher().stats().actions_failed, ++failed);
    const std::string told = warnings().lines().empty() ? "" : warnings().lines().back();
    EXPECT_NE(told.find(one->says), std::string::npos) << told;
    EXPECT_NE(told.find(to_string(one->action)), std::string::npos) << told;
    EXPECT_EQ(told.find('\n'), std::string::npos) << told;
    if (one == actions.rbegin()) std::filesystem::rename(hidden, database().socket_path());
  }
}

TEST_P(QueriesTest, TextAndErrors) {
  const auto session = database().connect();
  const Action action = session->stop_query();
  EXPECT_EQ(action.error(), nullptr);
  EXPECT_EQ(to_string(action), database().text_of(*session));
  EXPECT_EQ(action, session->stop_query());
  const Action nobody = database().stop_query_of_nobody();
  ASSERT_NE(nobody.error(), nullptr);
  EXPECT_EQ(nobody.error()->code(), Errc::invalid_action);
  EXPECT_NE(nobody.error()->message().find("expected a connection that is open"), std::string::npos);
  Connection connection = tcp_pair();
  const Watch watch = watcher().watch(connection.ours.get()).value();
  EXPECT_FALSE(watch.arm(nobody));
}

}  // namespace
}  // namespace sockalarm::test
