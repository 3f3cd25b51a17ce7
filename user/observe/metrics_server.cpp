// SPDX-License-Identifier: Apache-2.0
#include <httplib.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/blocked_signals.h"
#include "observe/metrics.h"

namespace sockalarm::observe {
namespace {

constexpr std::size_t kThreads = 2;
constexpr std::size_t kWaiting = 16;
constexpr time_t kSeconds = 5;  // for a client to ask, and to take the answer

// A pool that takes no more than some connections at once: whoever accepts them waits, and the kernel keeps
// the others, so that however many ask, the daemon keeps its descriptors.
class BoundedPool final : public httplib::TaskQueue {
 public:
  void enqueue(std::function<void()> task) override {
    std::unique_lock lock(mutex_);
    room_.wait(lock, [&] { return waiting_ < kWaiting || ending_; });
    ++waiting_;
    pool_.enqueue([this, task = std::move(task)] {
      task();
      const std::lock_guard guard(mutex_);
      --waiting_;
      room_.notify_one();
    });
  }
  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
      room_.notify_one();
    }
    pool_.shutdown();
  }

 private:
  std::mutex mutex_;
  std::condition_variable room_;
  std::size_t waiting_ = 0;
  bool ending_ = false;
  httplib::ThreadPool pool_{kThreads};
};

}  // namespace

struct MetricsServer::Server {
  explicit Server(Answers given) : answers(std::move(given)) {
    http.new_task_queue = [] { return new BoundedPool; };
    http.set_read_timeout(kSeconds);
    http.set_write_timeout(kSeconds);
    http.set_keep_alive_max_count(1);  // a thread is no client's for longer than a question
    http.set_payload_max_length(0);
    http.Get("/metrics", [this](const httplib::Request&, httplib::Response& response) {
      response.set_content(answers.metrics(), "text/plain; version=0.0.4; charset=utf-8");
    });
    const auto state = [this](const char* path, const std::function<bool()>& good) {
      http.Get(path, [&good](const httplib::Request&, httplib::Response& response) {
        const bool is_good = good();
        response.status = is_good ? 200 : 503;
        response.set_content(is_good ? "ok\n" : "not ok\n", "text/plain");
      });
    };
    state("/healthz", answers.healthy);
    state("/readyz", answers.ready);
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  ~Server() {
    if (!thread.joinable()) return;
    while (!http.is_running() && !ended) std::this_thread::yield();  // stop() before is not heard
    http.stop();
    thread.join();
  }

  void listen() {
    const BlockedSignals blocked;  // and with it all threads of the pool
    thread = std::thread([this] {
      http.listen_after_bind();
      ended = true;
    });
  }

  const Answers answers;
  httplib::Server http;
  int port = 0;
  std::atomic<bool> ended{false};
  std::thread thread;
};

MetricsServer::MetricsServer(std::unique_ptr<Server> server) : server_(std::move(server)) {}

MetricsServer::~MetricsServer() = default;

Result<std::unique_ptr<MetricsServer>> MetricsServer::open(const std::string& address, std::uint16_t port,
                                                           Answers answers) {
  auto server = std::make_unique<Server>(std::move(answers));
  server->port = port;
  errno = 0;
  const bool bound = port == 0 ? (server->port = server->http.bind_to_any_port(address)) > 0
                               : server->http.bind_to_port(address, port);
  if (!bound)
    return fail(Error::from_errno(errno != 0 ? errno : EADDRNOTAVAIL,
                                  "the address for metrics, " + address + " port " + std::to_string(port)));
  server->listen();
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(server)));
}

std::uint16_t MetricsServer::port() const noexcept { return static_cast<std::uint16_t>(server_->port); }

}  // namespace sockalarm::observe
