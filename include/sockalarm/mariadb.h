// SPDX-License-Identifier: Apache-2.0
#pragma once

// End the MariaDB or MySQL query that runs for a client that leaves. Library sockalarm::mariadb, over MariaDB
// Connector/C:
//
//   const auto stop_query = sockalarm::repeated(sockalarm::mariadb::kill_query(connection));  // once
//   {
//     const auto alarm = watch.arm(stop_query).value();           // per request
//     mysql_query(connection, "SELECT ...");                       // error 1317 if it was killed
//   }                                                              // waits for a kill that is under way
//   // from here on the connection may be used again: no kill of this request comes any more

#include <sockalarm/action.h>

#include <chrono>
#include <string>

struct st_mysql;  // MYSQL of mysql.h

namespace sockalarm::mariadb {

// How the second connection is made. Everything is a copy.
struct Account {
  std::string host;         // empty: this host, by `unix_socket`
  unsigned int port = 0;    // 0: 3306
  std::string unix_socket;  // empty: the client library's default
  std::string user;         // that of the query, or one with CONNECTION ADMIN (MySQL: CONNECTION_ADMIN)
  std::string password;
  std::string tls_ca, tls_cert, tls_key;    // files; empty: none
  bool tls_required = false;                // without TLS the connection fails
  bool tls_verify = false;                  // and the server's certificate must fit its name
  std::chrono::seconds connect_timeout{5};  // at least 1 s

  // As `connection` was made, with its password; so that is in memory twice.
  static Account of(st_mysql* connection);
};

// KILL QUERY for what runs on `connection` at that moment, on a helper thread, by a second connection that is
// made then. The thread's number and the account are taken now, so the MYSQL is not touched later, and the
// thread that blocks in mysql_query() is not disturbed. Build it anew after a reconnect.
// "kill_query:42@db.example:3306", for people: mysql_thread_id().
//
// A kill that arrives before its query has begun hits nothing: use it with repeated().
// It counts as running until the server has acknowledged it, so after the end of the Alarm's scope, or
// cancel_and_wait(), it cannot hit the next query: the server forgets a KILL QUERY for a connection that is
// idle.
//
// Errors: invalid_action if the connection is not open. At run time: what the server or the client library
// says. If it says that the second connection broke after the command was sent, the kill may still come:
// close the connection of the query then, too.
Action kill_query(st_mysql* connection);
Action kill_query(st_mysql* connection, Account account);

}  // namespace sockalarm::mariadb
