// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/sockalarm.h>

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

// What the tests of the query actions need of a database, so that they are the same for each.
namespace sockalarm::test {

struct Answer {
  enum class Kind { done, stopped, failed } kind = Kind::failed;  // stopped: by a cancel
  std::string text;                                               // the first value, or the error
};

// A connection, used by one thread at a time.
class Session {
 public:
  virtual ~Session() = default;
  virtual long id() const = 0;  // as in Database::running()
  virtual Answer query(const std::string& statement) = 0;
  virtual Action stop_query() = 0;
};

// A server of the test's own.
class Database {
 public:
  virtual ~Database() = default;
  virtual std::unique_ptr<Session> connect(bool tcp = false) = 0;
  // Sessions whose query (sleeping() or gated()) runs on the server, by the server's own list.
  virtual std::set<long> running() = 0;
  virtual std::string sleeping(double seconds) const = 0;  // a statement that takes so long
  // A statement that does not end before the gate is open.
  virtual std::string gated() const = 0;
  virtual void close_gate() = 0;
  virtual void open_gate() = 0;
  // While it is frozen the server takes connections and answers nothing.
  virtual void freeze() = 0;
  virtual void thaw() = 0;
  virtual std::string socket_path() const = 0;
  // An action for a session that is not open, its text is `text`.
  virtual Action stop_query_of_nobody() = 0;
  virtual std::string text_of(const Session& session) const = 0;  // of its action, by the socket
  // Actions that the server, or nobody, will take; and a part of the message.
  struct Refused {
    Action action;
    std::string says;
  };
  virtual std::vector<Refused> refused(Session& session) = 0;
};

// Each started once for all tests of the process, and stopped at its end.
struct DatabaseKind {
  std::string name;
  std::unique_ptr<Database> (*start)();
};
std::unique_ptr<Database> start_postgres();
std::unique_ptr<Database> start_mariadb();

}  // namespace sockalarm::test
