// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <libpq-fe.h>

#include <optional>

#include "harness/servers.h"

namespace sockalarm::test {

// A PostgreSQL cluster of the test's own: user and database 'postgres', without a password.
class PostgresServer {
 public:
  PostgresServer() : port_(free_port()) {
    run_to_end(folder_, "initdb",
               {program("initdb"), "-D", folder_ / "data", "-U", "postgres", "--auth=trust", "--no-sync",
                "--encoding=UTF8", "--locale=C"});
    process_.emplace(folder_, "postgres",
                     std::vector<std::string>{program("postgres"),
                                              "-D",
                                              folder_ / "data",
                                              "-k",
                                              folder_.text(),
                                              "-p",
                                              port_,
                                              "-c",
                                              "listen_addresses=127.0.0.1",
                                              "-c",
                                              "fsync=off",
                                              "-c",
                                              "max_connections=260",
                                              "-c",
                                              "shared_buffers=32MB",
                                              "-c",
                                              "autovacuum=off",
                                              "-c",
                                              "max_wal_senders=0",
                                              "-c",
                                              "wal_level=minimal",
                                              "-c",
                                              "jit=off"});
    if (!eventually([&] { return process_->ended() || PQping(conninfo().c_str()) == PQPING_OK; }) ||
        process_->ended())
      throw std::runtime_error("postgres did not start: " + folder_.read("postgres.log"));
  }
  ~PostgresServer() { process_->stop(SIGINT); }  // "fast": does not wait for its clients
  PostgresServer(const PostgresServer&) = delete;
  PostgresServer& operator=(const PostgresServer&) = delete;

  const ServerProcess& process() const { return *process_; }
  std::string conninfo(bool tcp = false) const {
    return "host=" + (tcp ? "127.0.0.1" : folder_.text()) + " port=" + port_ +
           " user=postgres dbname=postgres";
  }
  std::string port() const { return port_; }
  std::string folder() const { return folder_.text(); }
  std::string socket_path() const { return folder_ / (".s.PGSQL." + port_); }

 private:
  // Debian keeps them apart by version.
  static std::string program(const std::string& name) {
    std::string newest;
    std::error_code none;
    for (const auto& version : std::filesystem::directory_iterator("/usr/lib/postgresql", none))
      if (const auto path = version.path() / "bin" / name; std::filesystem::exists(path) && path > newest)
        newest = path;
    return newest.empty() ? name : newest;
  }

  const ServerFolder folder_;
  const std::string port_;
  std::optional<ServerProcess> process_;
};

}  // namespace sockalarm::test
