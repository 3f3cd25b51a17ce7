// SPDX-License-Identifier: Apache-2.0
// The client leaves, and the query that ran for it ends, not only the wait for its result. The chain asks the
// database to kill the query, as "mysql -e 'kill 42'" would; if that did not help within a second, it cuts
// the connection.
//
// The database is a stand-in: it answers "query" never, and "kill N" by ending query N.
//
//   stop_query [PORT]      curl --max-time 1 http://127.0.0.1:PORT/
#include <sockalarm/sockalarm.h>

#include <map>
#include <mutex>
#include <thread>

#include "common.h"

namespace {

std::string receive(int fd) {
  char text[256];
  const ssize_t n = ::recv(fd, text, sizeof text, 0);
  return n > 0 ? std::string(text, static_cast<std::size_t>(n)) : std::string();
}
void send_text(int fd, const std::string& text) { ::send(fd, text.data(), text.size(), MSG_NOSIGNAL); }

class Database {
 public:
  explicit Database(int listener) : listener_(listener) {
    std::thread([this] {
      for (int next = 1;; ++next) {
        const int connection = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
        if (connection >= 0) std::thread([this, connection, id = next] { serve(connection, id); }).detach();
      }
    }).detach();
  }

 private:
  void serve(int connection, int id) {
    const std::string command = receive(connection);
    if (command.rfind("kill ", 0) == 0) {
      end(std::stoi(command.substr(5)));
      ::close(connection);
      return;
    }
    const std::lock_guard lock(mutex_);
    queries_[id] = connection;
    send_text(connection, std::to_string(id));
    say("database: query " + std::to_string(id) + " runs");
  }
  void end(int id) {
    const std::lock_guard lock(mutex_);
    const auto query = queries_.find(id);
    if (query == queries_.end()) return;
    say("database: query " + std::to_string(id) + " killed");
    send_text(query->second, "error: killed");
    ::close(query->second);
    queries_.erase(query);
  }

  const int listener_;
  std::mutex mutex_;
  std::map<int, int> queries_;  // id -> connection
};

int connect_to(const sockaddr_in& address) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    give_up("cannot reach the database");
  return fd;
}

void handle(const sockalarm::Watcher& watcher, int client, const sockaddr_in& database) {
  using namespace std::chrono_literals;
  const auto watch = watcher.watch(client);
  if (!watch) return say(watch.error().message());
  const int query = connect_to(database);
  send_text(query, "query");
  const std::string id = receive(query);

  const auto kill_query = sockalarm::call([&] {
    const int second = connect_to(database);
    send_text(second, "kill " + id);
    ::close(second);
  });
  const sockalarm::ActionChain chain{kill_query, sockalarm::sleep_for(1s), sockalarm::shutdown_both(query)};
  {
    const auto alarm = watch->arm(chain);
    if (!alarm) return say(alarm.error().message());
    say("the database answered: " + receive(query));  // blocks for as long as the query runs
  }
  ::close(query);
}

}  // namespace

int main(int argc, char** argv) {
  const auto watcher = sockalarm::Watcher::create();
  if (!watcher) give_up(watcher.error().message());
  sockaddr_in database{};
  const int database_listener = listen_on_loopback(0, &database);
  const Database running(database_listener);
  const int listener = listen_on_loopback(argc > 1 ? std::atoi(argv[1]) : 0);
  for (;;) {
    const int client = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) continue;
    std::thread([&watcher, client, database] {
      handle(*watcher, client, database);
      ::close(client);
    }).detach();
  }
}
