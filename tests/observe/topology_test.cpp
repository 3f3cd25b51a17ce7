// SPDX-License-Identifier: Apache-2.0
#include "observe/topology.h"

#include <gtest/gtest.h>
#include <netinet/tcp.h>

#include <atomic>
#include <cstdlib>
#include <list>
#include <mutex>
#include <sstream>
#include <thread>

#include "harness/untold.h"

namespace sockalarm::observe::test {
namespace {

using sockalarm::test::Untold;

constexpr int kHosts = 5, kEach = 6;  // of every scenario, on every host
constexpr int kWorkMs = 400;

// What the clients did, which is the truth.
class Truth {
 public:
  void ended(const std::string& service, const char* direction, const char* cause, const char* verdict) {
    const std::lock_guard lock(mutex_);
    ++counts_[{service + ".service", direction, cause, verdict}];
  }
  // Not before that; 0: the service knows better.
  void left(const std::string& id, long long after) {
    const std::lock_guard lock(mutex_);
    left_[id] = after;
  }
  const Counts& counts() const { return counts_; }
  // Of the service, at least and at most, with what it said itself: on a busy machine time passes between
  // what happens and a look at the clock.
  std::pair<double, double> orphaned_seconds(const std::map<std::string, Host::End>& ends) const {
    long long least = 0, most = 0;
    for (const auto& [id, after] : left_) {
      const Host::End& end = ends.at(id);
      least += end.closes - end.latest;
      most += end.closed - std::max(after, end.soonest);
    }
    return {static_cast<double>(least) / 1e9, static_cast<double>(most) / 1e9};
  }
  bool all_ended(const std::map<std::string, Host::End>& ends) const {
    return std::all_of(left_.begin(), left_.end(), [&](const auto& one) { return ends.contains(one.first); });
  }

 private:
  std::mutex mutex_;
  Counts counts_;
  std::map<std::string, long long> left_;
};

long long now() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::uint16_t port_number(const char* port) { return static_cast<std::uint16_t>(std::stoi(port)); }

class Clients {
 public:
  Clients(const NetworkNamespace& net, const Host& host, Truth& truth)
      : net_(net), host_(host), truth_(truth) {}

  // All that leave in other ways than by vanishing; each way at once, one after another.
  void run() {
    std::vector<std::thread> ways;
    for (const auto& way : std::initializer_list<void (Clients::*)()>{
             &Clients::finish, &Clients::finish_through, &Clients::finish_direct, &Clients::keep_alive,
             &Clients::half_close, &Clients::half_close_direct, &Clients::leave, &Clients::leave_direct,
             &Clients::reset_through, &Clients::reset_direct})
      ways.emplace_back([this, way] {
        net_.run([&] {
          for (int i = 0; i < kEach; ++i) (this->*way)();
        });
      });
    for (std::thread& way : ways) way.join();
  }

  // Packets to the host are dropped from a moment on, so nothing says that they left: the service hears of it
  // when its answer is not acknowledged.
  void vanish() {
    const std::string gate = host_.socket() + ".gone";
    std::vector<Asked> gone;
    net_.run([&] {
      for (int i = 0; i < kEach; ++i) gone.push_back(ask(Host::kServicePort, "&gate=" + gate));
      for (const Asked& asked : gone) await_begin(asked);
    });
    host_.net().on_packets_to(port_number(Host::kServicePort), "drop");
    std::ofstream(gate).close();
    for (const Asked& asked : gone) {
      truth_.ended("slow", "inbound", "timeout", "abandoned");
      truth_.left(asked.id, 0);
    }
    EXPECT_TRUE(eventually([&] { return truth_.all_ended(host_.ends_of_service()); }));
  }

 private:
  struct Asked {
    UniqueFd fd;
    std::string id;
  };

  UniqueFd connect(const char* port) {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port_number(port));
    ::inet_pton(AF_INET, host_.address().c_str(), &address.sin_addr);
    require(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0, "connect");
    return fd;
  }
  Asked ask(const char* port, const std::string& further, bool and_shut_down = false) {
    Asked asked{connect(port), host_.name() + "-" + std::to_string(++last_)};
    const std::string text = "GET /work?id=" + asked.id + "&ms=" + std::to_string(kWorkMs) + further +
                             " HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    send(asked.fd, text, and_shut_down);
    return asked;
  }
  // One packet has the question, and the FIN if there is one: so it is there before the answer.
  static void send(const UniqueFd& fd, const std::string& text, bool and_shut_down) {
    require(::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL | (and_shut_down ? MSG_MORE : 0)) ==
                static_cast<ssize_t>(text.size()),
            "send");
    if (and_shut_down) require(::shutdown(fd.get(), SHUT_WR) == 0, "shutdown");
  }
  void await_begin(const Asked& asked) const {
    require(eventually([&] { return host_.has_begun(asked.id); }), "the service has not begun");
  }
  // The service is there for it, and goes to work when it has left.
  Asked begun(const char* port) {
    Asked asked = ask(port, "&until=left");
    await_begin(asked);
    return asked;
  }
  template <class Way>
  void go(Asked& asked, Way way) {
    const long long after = now();
    way(asked.fd);
    truth_.left(asked.id, after);
  }
  static std::string read_to_end(const UniqueFd& fd) {
    std::string answer;
    char buffer[4096];
    for (ssize_t count = 0; (count = ::read(fd.get(), buffer, sizeof buffer)) > 0;)
      answer.append(buffer, static_cast<std::size_t>(count));
    return answer;
  }
  static void fast(const UniqueFd& fd, const char* connection, bool and_shut_down = false) {
    send(fd, std::string("GET /fast HTTP/1.1\r\nHost: test\r\nConnection: ") + connection + "\r\n\r\n",
         and_shut_down);
  }

  void finish() {
    const UniqueFd fd = connect(Host::kNginxPort);
    fast(fd, "close");
    EXPECT_TRUE(read_to_end(fd).ends_with("hello\n"));
    truth_.ended("nginx", "inbound", "local", "local");
  }
  void finish_through() {
    EXPECT_NE(read_to_end(ask(Host::kNginxPort, "").fd).find("done\n"), std::string::npos);  // in chunks
    truth_.ended("nginx", "inbound", "local", "local");
    truth_.ended("nginx", "outbound", "peer_fin", "none");
    truth_.ended("slow", "inbound", "local", "local");
  }
  void finish_direct() {
    EXPECT_TRUE(read_to_end(ask(Host::kServicePort, "").fd).ends_with("done\n"));
    truth_.ended("slow", "inbound", "local", "local");
  }
  void keep_alive() {
    const UniqueFd fd = connect(Host::kNginxPort);
    for (int i = 0; i < 3; ++i) {
      fast(fd, "keep-alive");
      std::string answer;
      for (char byte = 0; !answer.ends_with("hello\n") && ::read(fd.get(), &byte, 1) == 1;) answer += byte;
    }
    truth_.ended("nginx", "inbound", "peer_fin", "idle_close");
  }
  void half_close() {
    const UniqueFd fd = connect(Host::kNginxPort);
    fast(fd, "keep-alive", true);
    EXPECT_TRUE(read_to_end(fd).ends_with("hello\n"));
    truth_.ended("nginx", "inbound", "peer_fin", "half_close_served");
  }
  void half_close_direct() {
    EXPECT_TRUE(read_to_end(ask(Host::kServicePort, "", true).fd).ends_with("done\n"));
    truth_.ended("slow", "inbound", "peer_fin", "half_close_served");
  }
  // nginx hears of it and closes what it had asked for; the service does not.
  void leave() {
    Asked asked = begun(Host::kNginxPort);
    go(asked, [](UniqueFd& fd) { fd.reset(); });
    truth_.ended("nginx", "inbound", "peer_fin", "abandoned");
    truth_.ended("nginx", "outbound", "local", "none");
    truth_.ended("slow", "inbound", "peer_fin", "abandoned");
  }
  void leave_direct() {
    Asked asked = begun(Host::kServicePort);
    go(asked, [](UniqueFd& fd) { fd.reset(); });
    truth_.ended("slow", "inbound", "peer_fin", "abandoned");
  }
  void reset_through() {
    Asked asked = begun(Host::kNginxPort);
    go(asked, sockalarm::test::reset);
    truth_.ended("nginx", "inbound", "peer_reset", "abandoned");
    truth_.ended("nginx", "outbound", "local", "none");
    truth_.ended("slow", "inbound", "peer_fin", "abandoned");
  }
  void reset_direct() {
    Asked asked = begun(Host::kServicePort);
    go(asked, sockalarm::test::reset);
    truth_.ended("slow", "inbound", "peer_reset", "abandoned");
  }

  const NetworkNamespace& net_;
  const Host& host_;
  Truth& truth_;
  std::atomic<int> last_{0};
};

// Only what the other one has not.
std::string shown(const Counts& counts, const Counts& other) {
  std::string text;
  for (const auto& [kind, count] : counts) {
    if (const auto same = other.find(kind); same != other.end() && same->second == count) continue;
    const auto& [service, direction, cause, verdict] = kind;
    text += service + " " + direction + " " + cause + " " + verdict + ": " + std::to_string(count) + "\n";
  }
  return text;
}

// Debian's, which asks all hosts.
class Prometheus {
 public:
  Prometheus(const ServerFolder& folder, const std::list<Host>& hosts) : port_(sockalarm::test::free_port()) {
    std::string config =
        "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: sockalarm\n  static_configs:\n";
    for (const Host& host : hosts)
      config +=
          "  - targets: ['127.0.0.1:" + host.metrics_port() + "']\n    labels: {host: " + host.name() + "}\n";
    folder.write("prometheus.yml", config);
    process_ = std::make_unique<ServerProcess>(
        folder, "prometheus",
        std::vector<std::string>{"prometheus", "--config.file=" + (folder / "prometheus.yml"),
                                 "--storage.tsdb.path=" + (folder / "tsdb"),
                                 "--web.listen-address=127.0.0.1:" + port_});
  }
  // Like Host::counts(), but by what was scraped: without direction.
  Counts counts(const std::string& host) const {
    Counts counts;
    const auto answer = nlohmann::json::parse(
        http_get(port_,
                 "/api/v1/query?query=sockalarm_connections_ended_total%7Bhost%3D%22" + host + "%22%7D"),
        nullptr, false);
    if (!answer.is_object() || answer.value("status", "") != "success") return counts;
    for (const auto& series : answer.at("data").at("result")) {
      const auto& metric = series.at("metric");
      counts[{metric.at("service"), "", metric.at("cause"), metric.at("verdict")}] =
          std::stoull(series.at("value").at(1).get<std::string>());
    }
    return counts;
  }

 private:
  const std::string port_;
  std::unique_ptr<ServerProcess> process_;
};

Counts without_direction(const Counts& counts) {
  Counts sums;
  for (const auto& [kind, count] : counts)
    sums[{std::get<0>(kind), "", std::get<2>(kind), std::get<3>(kind)}] += count;
  return sums;
}

// What is wrong with the figures; empty: nothing.
std::string wrong_figures() {
  const ServerFolder folder;
  const NetworkNamespace net;
  std::list<Host> hosts;
  for (int number = 1; number <= kHosts; ++number) hosts.emplace_back(folder, net, number);
  const Prometheus prometheus(folder, hosts);
  std::list<Truth> truths;
  std::list<Clients> clients;
  for (const Host& host : hosts) clients.emplace_back(net, host, truths.emplace_back());
  std::vector<std::thread> threads;
  for (Clients& of_host : clients)
    threads.emplace_back([&] {
      of_host.run();
      of_host.vanish();
    });
  for (std::thread& thread : threads) thread.join();

  std::ostringstream wrong;
  auto truth = truths.begin();
  for (const Host& host : hosts) {
    const Counts expected = truth->counts();
    Counts counts;
    if (!eventually([&] { return (counts = host.counts()) == expected; }))
      wrong << host.name() << " has counted\n"
            << shown(counts, expected) << "but there were\n"
            << shown(expected, counts) << host.totals().at("lost") << "\n"
            << host.sockets();
    const auto [least, most] = truth->orphaned_seconds(host.ends_of_service());
    EXPECT_GE(least, kEach * 5 * kWorkMs / 1000.0);
    const double counted = host.orphaned_seconds_of_service();
    std::cout << host.name() << ": " << least << " to " << most << " s for nobody, counted " << counted
              << " s\n";
    if (counted < least || counted > most)
      wrong << host.name() << " was " << least << " to " << most << " s at work for nobody, and has counted "
            << counted << " s\n";
    const Counts sums = without_direction(expected);
    if (!eventually([&] { return (counts = prometheus.counts(host.name())) == sums; }))
      wrong << "Prometheus has of " << host.name() << "\n"
            << shown(counts, sums) << "but there were\n"
            << shown(sums, counts);
    const auto lost = host.totals().at("lost");
    for (const auto& [stage, count] : lost.items())
      if (count != 0 && stage != "missed" && stage != "late") wrong << stage << " has lost " << count << "\n";
    ++truth;
  }
  return wrong.str();
}

// A kernel that keeps changes from programs is not to be blamed on them: then once more.
TEST(Topology, EveryCountIsThatOfTheClientsAndSoIsTheTimeForNobody) {
  constexpr int kAttempts = 3;
  for (int attempt = 1;; ++attempt) {
    const Untold untold(port_number(Host::kNginxPort), port_number(Host::kServicePort));
    const std::string wrong = wrong_figures();
    if (wrong.empty()) break;
    const auto count = untold.count();
    if (count == 0 || attempt == kAttempts)
      FAIL() << wrong << "the kernel kept " << count << " changes from programs";
    std::cout << wrong << "the kernel kept " << count << " changes from all programs, so once more\n";
  }
}

}  // namespace
}  // namespace sockalarm::observe::test
