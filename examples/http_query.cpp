// SPDX-License-Identifier: Apache-2.0
// An HTTP service with a thread for each request (cpp-httplib), whose handler blocks in a database query.
// When the client leaves, or nginx in front of it closes the connection because its client left, the query
// ends on the server, and the thread and its database connection are free for the next request.
//
//   http_query CONNINFO [PORT|unix:PATH [kernel|epoll|poll]]
//   curl --max-time 1 'http://127.0.0.1:PORT/report?seconds=60'
//
// CONNINFO is libpq's: 'host=/run/postgresql dbname=postgres'.
#include <libpq-fe.h>
#include <sockalarm/postgres.h>
#include <sockalarm/sockalarm.h>

#include <memory>

#include "common.h"
#include "watching_http_server.h"

namespace {

// A thread's own connection, and how to stop what runs on it.
class Database {
 public:
  explicit Database(const std::string& conninfo)
      : connection_(PQconnectdb(conninfo.c_str())),
        stop_query_(sockalarm::repeated(sockalarm::postgres::cancel_query(connection_.get()))) {}

  bool open() const { return PQstatus(connection_.get()) == CONNECTION_OK; }
  const char* error() const { return PQerrorMessage(connection_.get()); }
  const sockalarm::ActionChain& stop_query() const { return stop_query_; }

  // Blocks. Empty: it ended as it should; else why not.
  std::string sleep(const std::string& seconds) {
    const char* const values[] = {seconds.c_str()};
    PGresult* const result = PQexecParams(connection_.get(), "SELECT pg_sleep($1::float8)", 1, nullptr,
                                          values, nullptr, nullptr, 0);
    const bool done = PQresultStatus(result) == PGRES_TUPLES_OK;
    const std::string why = done ? "" : PQresultErrorMessage(result);
    PQclear(result);
    return why.substr(0, why.find('\n'));
  }

 private:
  struct Finish {
    void operator()(PGconn* connection) const { PQfinish(connection); }
  };
  const std::unique_ptr<PGconn, Finish> connection_;
  const sockalarm::ActionChain stop_query_;
};

void report(const std::string& conninfo, const httplib::Request& request, httplib::Response& response) {
  static thread_local std::unique_ptr<Database> database;
  if (!database || !database->open()) database = std::make_unique<Database>(conninfo);
  const sockalarm::Watch& client = WatchingHttpServer::client();
  std::string why;
  {
    const auto alarm = client.arm(database->stop_query());
    if (!alarm) {
      say(database->open() ? alarm.error().message() : database->error());
      response.status = 503;
      return;
    }
    why = database->sleep(request.has_param("seconds") ? request.get_param_value("seconds") : "1");
  }  // waits for a cancel under way, so none can hit the next request's query
  if (client.peer_gone()) return say("handler ended, its client had left: " + why);
  if (why.empty())
    response.set_content("done\n", "text/plain");
  else
    response.status = 500;
  say("handler answered: " + (why.empty() ? "done" : why));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) give_up("usage: http_query CONNINFO [PORT|unix:PATH [kernel|epoll|poll]]");
  const std::string conninfo = argv[1], where = argc > 2 ? argv[2] : "0";
  sockalarm::Options options;
  options.log = [](sockalarm::LogLevel level, std::string_view text) {
    if (level >= sockalarm::LogLevel::warning) say(std::string(text));
  };
  if (argc > 3) {
    const auto source = sockalarm::parse_source(argv[3]);
    if (!source) give_up(source.error().message());
    options.source = *source;
  }
  const auto watcher = sockalarm::Watcher::create(options);
  if (!watcher) give_up(watcher.error().message());

  WatchingHttpServer server(*watcher);
  server.Get("/report", [&](const httplib::Request& request, httplib::Response& response) {
    report(conninfo, request, response);
  });
  const bool local = where.rfind("unix:", 0) == 0;
  const int listener = local ? listen_on_path(where.substr(5)) : listen_on_loopback(std::atoi(where.c_str()));
  if (!server.serve(listener)) give_up("the server ended");
}
