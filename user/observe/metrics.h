// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "observe/connection_end.h"
#include "observe/losses.h"
#include "observe/spool.h"

namespace sockalarm::observe {

// What the daemon tells as Prometheus's text format. Services are bounded: those beyond the first `services`
// are counted as "other". No address, port, pid or path is a label. Any thread.
class Metrics {
 public:
  // Counted elsewhere and asked for at each scrape; each only ever grows.
  struct Ring {
    std::uint64_t written = 0, failed = 0;
  };
  struct Sources {
    std::function<Ring()> ring;  // empty: not shown
    std::function<Spool::State()> spool;
    std::function<std::uint64_t()> lost_by_kernel;  // ends that the kernel's side could not record
  };

  // `losses` outlives this.
  Metrics(const Losses& losses, Sources sources, std::size_t services = 200);
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;
  ~Metrics();

  void ended(const ConnectionEnd& end);
  void detected(std::chrono::nanoseconds latency);  // from the event in the kernel to who reads of it
  // `action` and `result` by words of the program, never by what a client says.
  void acted(std::string_view action, std::string_view result);

  std::string text() const;

 private:
  struct Families;
  std::unique_ptr<Families> families_;
};

// /metrics, /healthz and /readyz by HTTP on one address. Two threads of its own serve, each at most some
// seconds for a client, so that one who asks slowly holds up nothing but another scrape.
class MetricsServer {
 public:
  struct Answers {
    std::function<std::string()> metrics;
    std::function<bool()> healthy;  // 503 if not
    std::function<bool()> ready;
  };
  // Port 0: any; port() says which. The address is numeric, "127.0.0.1" or "::".
  static Result<std::unique_ptr<MetricsServer>> open(const std::string& address, std::uint16_t port,
                                                     Answers answers);
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;
  ~MetricsServer();

  std::uint16_t port() const noexcept;

 private:
  struct Server;
  explicit MetricsServer(std::unique_ptr<Server> server);
  std::unique_ptr<Server> server_;
};

}  // namespace sockalarm::observe
