// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/postgres.h>

#include "databases/database.h"
#include "databases/postgres_server.h"

namespace sockalarm::test {
namespace {

struct Clear {
  void operator()(PGresult* result) const { PQclear(result); }
};
struct Finish {
  void operator()(PGconn* connection) const { PQfinish(connection); }
};

class PostgresSession final : public Session {
 public:
  explicit PostgresSession(const std::string& conninfo) : connection_(PQconnectdb(conninfo.c_str())) {
    if (PQstatus(connection_.get()) != CONNECTION_OK)
      throw std::runtime_error(PQerrorMessage(connection_.get()));
  }
  long id() const override { return PQbackendPID(connection_.get()); }
  Answer query(const std::string& statement) override {
    const std::unique_ptr<PGresult, Clear> result(PQexec(connection_.get(), statement.c_str()));
    if (PQresultStatus(result.get()) == PGRES_TUPLES_OK)
      return {Answer::Kind::done, PQgetvalue(result.get(), 0, 0)};
    if (PQresultStatus(result.get()) == PGRES_COMMAND_OK) return {Answer::Kind::done, ""};
    const char* const state = PQresultErrorField(result.get(), PG_DIAG_SQLSTATE);
    const bool cancelled = state != nullptr && std::string(state) == "57014";  // query_canceled
    return {cancelled ? Answer::Kind::stopped : Answer::Kind::failed, PQresultErrorMessage(result.get())};
  }
  Action stop_query() override { return postgres::cancel_query(connection_.get()); }

 private:
  const std::unique_ptr<PGconn, Finish> connection_;
};

class Postgres final : public Database {
 public:
  std::unique_ptr<Session> connect(bool tcp) override {
    return std::make_unique<PostgresSession>(server_.conninfo(tcp));
  }
  std::set<long> running() override {
    const std::string pids =
        monitor_
            .query(
                "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE state = 'active' "
                "AND pid <> pg_backend_pid() AND backend_type = 'client backend'")
            .text;
    std::istringstream text(pids);
    return {std::istream_iterator<long>(text), {}};
  }
  std::string sleeping(double seconds) const override {
    return "SELECT pg_sleep(" + std::to_string(seconds) + ")";
  }
  std::string gated() const override { return "SELECT 'through' FROM pg_advisory_xact_lock_shared(1)"; }
  void close_gate() override { monitor_.query("SELECT pg_advisory_lock(1)"); }
  void open_gate() override { monitor_.query("SELECT pg_advisory_unlock(1)"); }
  void freeze() override { server_.process().send(SIGSTOP); }
  void thaw() override { server_.process().send(SIGCONT); }
  std::string socket_path() const override { return server_.socket_path(); }
  Action stop_query_of_nobody() override { return postgres::cancel_query(nullptr); }
  std::string text_of(const Session& session) const override {
    return "pg_cancel:" + std::to_string(session.id()) + "@" + server_.folder() + ":" + server_.port();
  }
  std::vector<Refused> refused(Session&) override { return {}; }

 private:
  const PostgresServer server_;
  PostgresSession monitor_{server_.conninfo()};
};

}  // namespace

std::unique_ptr<Database> start_postgres() { return std::make_unique<Postgres>(); }

}  // namespace sockalarm::test
