// SPDX-License-Identifier: Apache-2.0
#include <mysql.h>
#include <mysqld_error.h>
#include <sockalarm/mariadb.h>
#include <sys/un.h>

#include <optional>
#include <sstream>

#include "databases/database.h"
#include "harness/servers.h"

namespace sockalarm::test {
namespace {

constexpr const char* kUser = "app";
constexpr const char* kPassword = "a'b\\c";

// A MariaDB server of the test's own. What mariadb-install-db(1) does, without the programs that it needs.
class MariadbServer {
 public:
  MariadbServer() : port_(free_port()) {
    std::string script = "create database mysql;\nuse mysql;\nset @auth_root_socket=null;\n";
    for (const char* part : {"mysql_system_tables", "mysql_performance_tables", "mysql_system_tables_data",
                             "maria_add_gis_sp_bootstrap"}) {
      std::ifstream file(std::string("/usr/share/mysql/") + part + ".sql");
      script.append(std::istreambuf_iterator<char>(file), {});
    }
    folder_.write("bootstrap.sql", script);
    const auto server = [&](std::vector<std::string> more) {
      std::vector<std::string> argv{"/usr/sbin/mariadbd",
                                    "--no-defaults",
                                    "--datadir=" + folder_.text(),
                                    "--innodb-log-file-size=4M",
                                    "--innodb-flush-log-at-trx-commit=0",
                                    "--innodb-buffer-pool-size=16M"};
      argv.insert(argv.end(), more.begin(), more.end());
      return argv;
    };
    run_to_end(folder_, "bootstrap", server({"--bootstrap"}), folder_ / "bootstrap.sql");
    process_.emplace(folder_, "mariadbd",
                     server({"--socket=" + socket_path(), "--port=" + port_, "--bind-address=127.0.0.1",
                             "--pid-file=" + (folder_ / "pid"), "--max-connections=260"}));
    if (!eventually([&] { return process_->ended() || listens(); }) || process_->ended())
      throw std::runtime_error("mariadbd did not start: " + folder_.read("mariadbd.log"));
  }
  ~MariadbServer() { process_->stop(SIGTERM); }
  MariadbServer(const MariadbServer&) = delete;
  MariadbServer& operator=(const MariadbServer&) = delete;

  std::string socket_path() const { return folder_ / "socket"; }
  unsigned int port() const { return static_cast<unsigned int>(std::stoul(port_)); }
  const ServerProcess& process() const { return *process_; }

 private:
  // The socket is there a moment before the server listens.
  bool listens() const {
    const UniqueFd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    socket_path().copy(address.sun_path, sizeof address.sun_path - 1);
    return ::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }

  const ServerFolder folder_;
  const std::string port_;
  std::optional<ServerProcess> process_;
};

class MariadbSession final : public Session {
 public:
  MariadbSession(const MariadbServer& server, bool tcp, const char* user, const char* password)
      : connection_(::mysql_init(nullptr)) {
    const unsigned int protocol = tcp ? MYSQL_PROTOCOL_TCP : MYSQL_PROTOCOL_SOCKET;
    ::mysql_optionsv(connection_.get(), MYSQL_OPT_PROTOCOL, &protocol);
    if (::mysql_real_connect(connection_.get(), tcp ? "127.0.0.1" : nullptr, user, password, nullptr,
                             server.port(), tcp ? nullptr : server.socket_path().c_str(), 0) == nullptr)
      throw std::runtime_error(::mysql_error(connection_.get()));
  }
  long id() const override { return static_cast<long>(::mysql_thread_id(connection_.get())); }
  Answer query(const std::string& statement) override {
    if (::mysql_query(connection_.get(), statement.c_str()) != 0) return error();
    MYSQL_RES* const result = ::mysql_store_result(connection_.get());
    if (result == nullptr)
      return ::mysql_errno(connection_.get()) != 0 ? error() : Answer{Answer::Kind::done, ""};
    MYSQL_ROW const row = ::mysql_fetch_row(result);
    Answer answer{Answer::Kind::done, row != nullptr && row[0] != nullptr ? row[0] : ""};
    ::mysql_free_result(result);
    return answer;
  }
  Action stop_query() override { return mariadb::kill_query(connection_.get()); }
  MYSQL* handle() { return connection_.get(); }

 private:
  Answer error() const {
    const bool killed = ::mysql_errno(connection_.get()) == ER_QUERY_INTERRUPTED;
    return {killed ? Answer::Kind::stopped : Answer::Kind::failed, ::mysql_error(connection_.get())};
  }
  struct Close {
    void operator()(MYSQL* connection) const { ::mysql_close(connection); }
  };
  const std::unique_ptr<MYSQL, Close> connection_;
};

class Mariadb final : public Database {
 public:
  Mariadb() {
    std::vector<std::string> statements{"CREATE DATABASE test",
                                        "CREATE TABLE test.gate SELECT 'through' AS way"};
    for (const char* host : {"localhost", "127.0.0.1"}) {
      const std::string user = std::string("'") + kUser + "'@'" + host + "'";
      statements.push_back("CREATE USER " + user + " IDENTIFIED BY 'a\\'b\\\\c'");
      statements.push_back("GRANT SELECT ON test.* TO " + user);
    }
    for (const std::string& statement : statements)
      if (const Answer answer = monitor_.query(statement); answer.kind != Answer::Kind::done)
        throw std::runtime_error(statement + ": " + answer.text);
  }
  std::unique_ptr<Session> connect(bool tcp) override {
    return std::make_unique<MariadbSession>(server_, tcp, kUser, kPassword);
  }
  std::set<long> running() override {
    const std::string ids =
        monitor_
            .query(
                "SELECT GROUP_CONCAT(ID SEPARATOR ' ') FROM information_schema.PROCESSLIST "
                "WHERE COMMAND = 'Query' AND ID <> CONNECTION_ID() AND INFO LIKE 'SELECT %'")
            .text;
    std::istringstream text(ids);
    return {std::istream_iterator<long>(text), {}};
  }
  std::string sleeping(double seconds) const override {
    return "SELECT SLEEP(" + std::to_string(seconds) + ")";
  }
  std::string gated() const override { return "SELECT way FROM test.gate"; }
  void close_gate() override { monitor_.query("LOCK TABLES test.gate WRITE"); }
  void open_gate() override { monitor_.query("UNLOCK TABLES"); }
  void freeze() override { server_.process().send(SIGSTOP); }
  void thaw() override { server_.process().send(SIGCONT); }
  std::string socket_path() const override { return server_.socket_path(); }
  Action stop_query_of_nobody() override { return mariadb::kill_query(nullptr); }
  std::string text_of(const Session& session) const override {
    return "kill_query:" + std::to_string(session.id()) + "@" + server_.socket_path();
  }
  std::vector<Refused> refused(Session& session) override {
    MYSQL* const connection = static_cast<MariadbSession&>(session).handle();
    mariadb::Account wrong = mariadb::Account::of(connection);
    wrong.password = "something else";
    MYSQL nobody{};
    nobody.thread_id = 4'000'000'000;
    return {{mariadb::kill_query(connection, wrong), "Access denied"},
            {mariadb::kill_query(&nobody, mariadb::Account::of(connection)), "Unknown thread id"}};
  }

 private:
  const MariadbServer server_;
  MariadbSession monitor_{server_, false, "root", ""};
};

}  // namespace

std::unique_ptr<Database> start_mariadb() { return std::make_unique<Mariadb>(); }

}  // namespace sockalarm::test
