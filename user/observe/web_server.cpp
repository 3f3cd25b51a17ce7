// SPDX-License-Identifier: Apache-2.0
#include "observe/web_server.h"

#include <microhttpd.h>
#include <poll.h>
#include <sockalarm/address.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <list>
#include <string_view>
#include <thread>
#include <utility>

#include "base/blocked_signals.h"
#include "base/text.h"
#include "base/wake_pipe.h"

namespace sockalarm::observe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kChunk = 65536;
constexpr std::chrono::milliseconds kGrace{100};  // for the request of a client that has just come
// The library's own limit, at which it takes no more: those that are let go count until it has heard of that.
constexpr unsigned kLibraryConnections = WebServer::kConnections + 32;

struct DaemonDeleter {
  void operator()(MHD_Daemon* daemon) const noexcept { MHD_stop_daemon(daemon); }
};
struct ResponseDeleter {
  void operator()(MHD_Response* response) const noexcept { MHD_destroy_response(response); }
};
using Response = std::unique_ptr<MHD_Response, ResponseDeleter>;

void add_headers(MHD_Response* response, const std::string& type, const std::string& policy) {
  MHD_add_response_header(response, "Content-Type", type.c_str());
  MHD_add_response_header(response, "Connection", "close");
  MHD_add_response_header(response, "Cache-Control", "no-store");
  MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
  MHD_add_response_header(response, "Content-Security-Policy", policy.c_str());
}

Response to_response(const WebServer::Answer& answer) {
  // libmicrohttpd asks for a pointer that is not const, and copies what it finds there.
  Response response(MHD_create_response_from_buffer(answer.body.size(), const_cast<char*>(answer.body.data()),
                                                    MHD_RESPMEM_MUST_COPY));
  if (response) add_headers(response.get(), answer.type, answer.policy);
  return response;
}

int timeout_in_ms(Clock::duration left) {
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(left).count();
  return static_cast<int>(std::clamp<std::int64_t>(ms, 0, 60'000));
}

}  // namespace

// libmicrohttpd in its "external" mode: its descriptors are waited for here, so that this thread can also let
// go of clients that take too long, which the library's own time-out does not: a byte now and then renews it.
struct WebServer::Server {
  struct Listener {
    Server* server;
    bool trusted;
    std::unique_ptr<MHD_Daemon, DaemonDeleter> daemon;
    int epoll_fd;
  };
  struct Connection {
    Listener* listener;
    MHD_Connection* handle;
    int fd;
    Clock::time_point until;
    std::unique_ptr<WebStream> stream;
    bool asked = false;  // all of its request is here
    bool suspended = false;
    bool ends = false;
    bool let_go = false;

    void let_it_go() {
      ::shutdown(fd, SHUT_RDWR);
      until = Clock::time_point::max();
      let_go = true;
    }
  };

  Server(Routes given, Options chosen) : routes(std::move(given)), options(chosen) {}
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  ~Server() {
    if (!thread.joinable()) return;
    stopping = true;
    news.wake();
    thread.join();
  }

  Result<void> add(Address address);
  void serve();
  void run_all();
  int wait();
  void make_room(const Listener& listener);
  void resume(Connection& connection);
  MHD_Result answer(Connection& connection, bool reads, const std::string& path);

  static void on_connection(void* listener, MHD_Connection* handle, void** connection,
                            MHD_ConnectionNotificationCode code);
  static MHD_Result on_request(void* listener, MHD_Connection* handle, const char* path, const char* method,
                               const char* version, const char* upload, std::size_t* upload_size,
                               void** request);
  static ssize_t on_read(void* connection, std::uint64_t position, char* to, std::size_t size);

  const Routes routes;
  const Options options;
  WakePipe news;
  std::atomic<bool> stopping{false};
  std::atomic<bool> woken{false};     // set by wake(), taken back by serve() before it looks at the streams
  std::list<Connection> connections;  // the oldest first
  std::list<Listener> listeners;      // end before the connections, which they tell of
  std::thread thread;
};

Result<void> WebServer::Server::add(Address address) {
  Listener& listener = listeners.emplace_back(Listener{this, address.trusted, nullptr, -1});
  // The library closes it, and does not say whether also when it fails: better one that stays open than one
  // that is closed twice.
  const int fd = address.listener.release();
  listener.daemon.reset(MHD_start_daemon(
      MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME, 0, nullptr, nullptr, &Server::on_request, &listener,
      MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, kLibraryConnections,
      MHD_OPTION_NOTIFY_CONNECTION, &Server::on_connection, &listener, MHD_OPTION_END));
  if (!listener.daemon)
    return fail(Error::from_errno(errno != 0 ? errno : ENOMEM, "starting the HTTP server"));
  const MHD_DaemonInfo* const info = MHD_get_daemon_info(listener.daemon.get(), MHD_DAEMON_INFO_EPOLL_FD);
  if (info == nullptr) return fail(Error(Errc::unsupported, "libmicrohttpd was built without epoll"));
  listener.epoll_fd = info->epoll_fd;
  return {};
}

void WebServer::Server::on_connection(void* given, MHD_Connection* handle, void** connection,
                                      MHD_ConnectionNotificationCode code) {
  auto& listener = *static_cast<Listener*>(given);
  Server& server = *listener.server;
  if (code == MHD_CONNECTION_NOTIFY_STARTED) {
    const MHD_ConnectionInfo* const info = MHD_get_connection_info(handle, MHD_CONNECTION_INFO_CONNECTION_FD);
    server.make_room(listener);
    *connection = &server.connections.emplace_back(Connection{.listener = &listener,
                                                              .handle = handle,
                                                              .fd = info != nullptr ? info->connect_fd : -1,
                                                              .until = Clock::now() + server.options.request,
                                                              .stream = nullptr});
  } else {
    server.connections.remove_if([&](const Connection& known) { return &known == *connection; });
  }
}

// For one more. The oldest goes of those that have had time to ask and say nothing; else of those that do not
// take their answer; else of those that have just come.
void WebServer::Server::make_room(const Listener& listener) {
  unsigned count = 0;
  Connection *silent = nullptr, *slow = nullptr, *fresh = nullptr;
  const auto newest = Clock::now() + options.request - kGrace;  // of those that might have asked by now
  for (Connection& connection : connections) {
    if (connection.listener != &listener || connection.let_go) continue;
    ++count;
    if (connection.stream) continue;
    Connection*& oldest = connection.asked ? slow : connection.until > newest ? fresh : silent;
    if (oldest == nullptr) oldest = &connection;
  }
  if (count < kConnections) return;
  for (Connection* const goes : {silent, slow, fresh})
    if (goes != nullptr) return goes->let_it_go();
}

MHD_Result WebServer::Server::on_request(void* given, MHD_Connection* handle, const char* path,
                                         const char* method, const char*, const char*,
                                         std::size_t* upload_size, void** request) {
  auto& server = *static_cast<Listener*>(given)->server;
  // Called with the headers; then with the body, which nobody wants; at last without. An answer is taken the
  // first time or the last, and the first one breaks off.
  const bool first = *request == nullptr;
  *request = &server;
  const bool reads =
      std::string_view(method) == MHD_HTTP_METHOD_GET || std::string_view(method) == MHD_HTTP_METHOD_HEAD;
  if (first ? reads : *upload_size != 0) {
    *upload_size = 0;
    return MHD_YES;
  }
  const MHD_ConnectionInfo* const info = MHD_get_connection_info(handle, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
  if (info == nullptr) return MHD_NO;
  return server.answer(*static_cast<Connection*>(info->socket_context), reads, path);
}

// Through C, which no exception may pass.
MHD_Result WebServer::Server::answer(Connection& connection, bool reads, const std::string& path) {
  Answer answer{404, "text/plain; charset=utf-8", "there is nothing at this path\n"};
  connection.asked = true;
  if (!connection.let_go) connection.until = Clock::now() + options.answer;
  try {
    const auto known = routes.answers.find(path);
    const auto stream = routes.streams.find(path);
    if (!reads) {
      answer = {405, answer.type, "GET and HEAD are answered here\n"};
    } else if (known != routes.answers.end()) {
      answer = known->second();
    } else if (stream != routes.streams.end() && !connection.listener->trusted) {
      answer = {403, answer.type, "this is for those who may connect to the Unix socket\n"};
    } else if (stream != routes.streams.end()) {
      connection.stream = stream->second();
      if (!connection.stream) answer = {503, answer.type, "too many read this already; try later\n"};
    }
  } catch (const std::exception& error) {
    answer = {500, answer.type, error.what() + std::string("\n")};
  }
  Response response;
  if (connection.stream) {
    response.reset(
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, kChunk, &Server::on_read, &connection, nullptr));
    if (response) add_headers(response.get(), "application/x-ndjson", answer.policy);
    answer.status = 200;
    connection.until = Clock::time_point::max();
  } else {
    response = to_response(answer);
  }
  if (!response) return MHD_NO;
  return MHD_queue_response(connection.handle, static_cast<unsigned>(answer.status), response.get());
}

ssize_t WebServer::Server::on_read(void* given, std::uint64_t, char* to, std::size_t size) {
  auto& connection = *static_cast<Connection*>(given);
  if (connection.ends) return MHD_CONTENT_READER_END_OF_STREAM;
  try {
    if (const std::size_t count = connection.stream->read(to, size); count > 0)
      return static_cast<ssize_t>(count);
  } catch (const std::exception&) {
    return MHD_CONTENT_READER_END_WITH_ERROR;
  }
  MHD_suspend_connection(connection.handle);
  connection.suspended = true;
  return 0;
}

void WebServer::Server::resume(Connection& connection) {
  connection.suspended = false;
  MHD_resume_connection(connection.handle);
}

// Gives when the next client has to be let go, at the latest.
int WebServer::Server::wait() {
  std::vector<pollfd> entries{{news.fd(), POLLIN, 0}};
  auto until = Clock::time_point::max();
  for (const Listener& listener : listeners) {
    entries.push_back({listener.epoll_fd, POLLIN, 0});
    MHD_UNSIGNED_LONG_LONG ms = 0;
    if (MHD_get_timeout(listener.daemon.get(), &ms) == MHD_YES)
      until = std::min(until, Clock::now() + std::chrono::milliseconds(ms));
  }
  std::vector<Connection*> waiting;  // the library does not look whether their clients have left
  for (Connection& connection : connections) {
    until = std::min(until, connection.until);
    if (!connection.suspended) continue;
    waiting.push_back(&connection);
    entries.push_back({connection.fd, 0, 0});  // POLLHUP: closed, not only shut down for writing
  }
  const int timeout = until == Clock::time_point::max() ? -1 : timeout_in_ms(until - Clock::now());
  const int count = ::poll(entries.data(), entries.size(), timeout);
  if (count <= 0) return count;
  for (std::size_t i = 0; i < waiting.size(); ++i) {
    if ((entries[1 + listeners.size() + i].revents & (POLLHUP | POLLERR)) == 0) continue;
    waiting[i]->ends = true;
    resume(*waiting[i]);
  }
  return count;
}

void WebServer::Server::run_all() {
  for (const Listener& listener : listeners) {
    const std::size_t before = connections.size();
    MHD_run(listener.daemon.get());
    // At its limit the library does not wait for more clients. It looks whether it may when it begins to run,
    // not after some have left.
    if (connections.size() < before) MHD_run(listener.daemon.get());
  }
}

void WebServer::Server::serve() {
  while (!stopping) {
    wait();
    news.clear();
    woken = false;
    const auto now = Clock::now();
    for (Connection& connection : connections) {
      if (connection.until <= now) connection.let_it_go();
      if (connection.suspended && connection.stream->has_more()) resume(connection);
    }
    run_all();
  }
  for (Connection& connection : connections) {  // none may be suspended when it stops
    connection.ends = true;
    if (connection.suspended) resume(connection);
  }
  run_all();
  listeners.clear();
}

WebServer::WebServer(std::unique_ptr<Server> server) : server_(std::move(server)) {}
WebServer::~WebServer() = default;

Result<std::unique_ptr<WebServer>> WebServer::start(std::vector<Address> addresses, Routes routes,
                                                    Options options) {
  auto server = std::make_unique<Server>(std::move(routes), options);
  auto news = WakePipe::make();
  if (!news) return fail(news.error());
  server->news = std::move(*news);
  for (Address& address : addresses)
    if (auto added = server->add(std::move(address)); !added) return fail(added.error());
  const BlockedSignals blocked;
  server->thread = std::thread([&serving = *server] { serving.serve(); });
  return std::unique_ptr<WebServer>(new WebServer(std::move(server)));
}

void WebServer::wake() noexcept {
  if (!server_->woken.exchange(true)) server_->news.wake();
}

Result<UniqueFd> listen_at_tcp(const std::string& address) {
  const auto parsed = SocketAddress::parse(address);
  if (!parsed || parsed->family() == AF_UNIX)
    return fail(Error(Errc::invalid_options, sockalarm::quoted(escaped(address)) +
                                                 " is no address to listen at; write a number and a port up "
                                                 "to 65535, as 127.0.0.1:9465 or, with brackets, [::]:9465"));
  UniqueFd fd(::socket(parsed->family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  if (!fd || ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
      ::bind(fd.get(), parsed->data(), parsed->size()) != 0 || ::listen(fd.get(), SOMAXCONN) != 0)
    return fail(Error::from_errno(errno, "listening at " + address));
  return fd;
}

}  // namespace sockalarm::observe
