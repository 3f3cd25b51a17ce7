// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/stat.h>

#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "harness/network_namespace.h"
#include "harness/servers.h"
#include "observe/attribution.h"

// Hosts of a fleet, each with a network, nginx, a slow service behind it and beside it, and its own observer,
// which sees its cgroups alone.
namespace sockalarm::observe::test {

using sockalarm::test::eventually;
using sockalarm::test::NetworkNamespace;
using sockalarm::test::require;
using sockalarm::test::ServerFolder;
using sockalarm::test::ServerProcess;

// A cgroup of the test's own and all below it, until the end.
class Cgroup {
 public:
  explicit Cgroup(const std::string& path) : path_(path) {
    for (const char* root : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"})
      if (std::filesystem::exists(std::string(root) + "/cgroup.procs")) root_ = root;
    require(!root_.empty(), "no cgroup v2 is mounted");
    std::filesystem::create_directories(folder());
  }
  // Its processes have ended; the kernel may take a moment to see that.
  ~Cgroup() {
    std::vector<std::filesystem::path> all{folder()};
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder()))
      if (entry.is_directory()) all.push_back(entry.path());
    for (auto one = all.rbegin(); one != all.rend(); ++one)
      if (!eventually([&] { return ::rmdir(one->c_str()) == 0; })) ADD_FAILURE() << *one << " stays";
    ::rmdir(std::filesystem::path(folder()).parent_path().c_str());  // by the last of those in it
  }
  Cgroup(const Cgroup&) = delete;
  Cgroup& operator=(const Cgroup&) = delete;

  std::string make(const std::string& name) const {
    std::filesystem::create_directory(folder() + "/" + name);
    return folder() + "/" + name;
  }
  const std::string& path() const { return path_; }
  std::string folder() const { return root_ + path_; }

 private:
  const std::string path_;
  std::string root_;
};

// Answers of HTTP/1.0: without chunks, and the end of the connection is its end.
inline std::string http_get(const std::string& port, const std::string& target) {
  const UniqueFd client = sockalarm::test::connect_to_port(port);
  sockalarm::test::send_text(client.get(), "GET " + target + " HTTP/1.0\r\nHost: test\r\n\r\n");
  std::string answer;
  char buffer[4096];
  for (ssize_t count = 0; (count = ::read(client.get(), buffer, sizeof buffer)) > 0;)
    answer.append(buffer, static_cast<std::size_t>(count));
  const auto body = answer.find("\r\n\r\n");
  return body == std::string::npos ? "" : answer.substr(body + 4);
}

// service, direction, cause, verdict
using Kind = std::tuple<std::string, std::string, std::string, std::string>;
using Counts = std::map<Kind, std::uint64_t>;

class Host {
 public:
  static constexpr const char *kNginxPort = "8080", *kServicePort = "9000";

  Host(const ServerFolder& folder, const NetworkNamespace& clients, int number)
      : name_("host" + std::to_string(number)),
        folder_(folder),
        address_("10.77." + std::to_string(number) + "."),
        cgroup_("/sockalarmtest" + std::to_string(::getpid()) + ".slice/" + name_ + ".slice"),
        metrics_port_(sockalarm::test::free_port()) {
    // `which`: a busybox shell would take its own ip.
    const std::string ip = "ip=$(which ip); $ip ", here = "v" + name_;
    clients.shell(ip + "link add " + here + " type veth peer name eth0 netns " + net_.path());
    clients.shell(ip + "addr add " + address_ + "1/24 dev " + here + " && $ip link set " + here + " up");
    net_.shell(ip + "addr add " + address() + "/24 dev eth0 && $ip link set eth0 up");
    start_observer();
    start_services();
  }

  const std::string& name() const { return name_; }
  std::string address() const { return address_ + "2"; }
  const NetworkNamespace& net() const { return net_; }
  const std::string& metrics_port() const { return metrics_port_; }
  std::string socket() const { return folder_ / (name_ + ".sock"); }
  pid_t observer() const { return observer_->pid(); }
  std::string said_by_service() const { return folder_.read(name_ + "-slow.log"); }

  nlohmann::json totals() const { return nlohmann::json::parse(http_get(metrics_port_, "/v1/totals")); }
  Counts counts() const {
    Counts counts;
    const auto all = totals();
    for (const auto& end : all.at("ends"))
      counts[{end.at("service"), end.at("direction"), end.at("cause"), end.at("verdict")}] = end.at("count");
    return counts;
  }
  double orphaned_seconds_of_service() const {
    double sum = 0;
    const auto all = totals();
    for (const auto& end : all.at("ends"))
      if (end.at("service") == "slow.service") sum += end.at("orphaned_seconds").get<double>();
    return sum;
  }
  // What there is to know when it has counted otherwise than it should.
  std::string sockets() const {
    const std::string file = folder_ / (name_ + "-ss.txt");
    net_.shell("ss -tanoe exclude time-wait > " + file);
    return folder_.read(name_ + "-ss.txt");
  }

  // Of the service, ns of CLOCK_MONOTONIC: its client left between these, 0: it does not know; and before and
  // after it closed.
  struct End {
    long long soonest = 0, latest = 0, closes = 0, closed = 0;
  };
  std::map<std::string, End> ends_of_service() const {
    std::map<std::string, End> ends;
    std::istringstream lines(said_by_service());
    for (std::string line, word, id; std::getline(lines, line);) {
      std::istringstream words(line);
      End end;
      if (words >> word >> id >> end.soonest >> end.latest >> end.closes >> end.closed && word == "end")
        ends[id] = end;
    }
    return ends;
  }
  bool has_begun(const std::string& id) const {
    return ("\n" + said_by_service()).find("\nbegin " + id + "\n") != std::string::npos;
  }

 private:
  std::unique_ptr<ServerProcess> start(const std::string& name, const std::string& unit,
                                       const std::string& command) {
    const std::string procs = cgroup_.make(unit) + "/cgroup.procs";
    return std::make_unique<ServerProcess>(
        folder_, name_ + "-" + name,
        std::vector<std::string>{
            "sh", "-c", "echo $$ > " + procs + " && exec nsenter --net=" + net_.path() + " " + command},
        "/dev/null", ServerProcess::As::tester);
  }

  void start_observer() {
    const std::filesystem::path own = folder_ / (name_ + "-records");  // the folder itself is nginx's
    std::filesystem::create_directory(own);
    folder_.write(name_ + ".toml", "[observe]\nsocket = \"" + socket() + "\"\nlisten = \"127.0.0.1:" +
                                       metrics_port_ + "\"\nregion = \"test\"\nhost = \"" + name_ +
                                       "\"\njsonl = [\"" + (own / "ends.jsonl").string() +
                                       "\"]\n[observe.filter]\ncgroups = [\"" + cgroup_.path() + "\"]\n");
    observer_ = std::make_unique<ServerProcess>(
        folder_, name_ + "-observer",
        std::vector<std::string>{SOCKALARMD_PATH, "--observe", "--config", folder_ / (name_ + ".toml")},
        "/dev/null", ServerProcess::As::tester);
    const auto ready = [&] {
      return folder_.read(name_ + "-observer.log").find("ready:") != std::string::npos;
    };
    require(eventually(ready), folder_.read(name_ + "-observer.log").c_str());
  }

  void start_services() {
    slow_ = start("slow", "slow.service", SOCKALARM_SLOW_SERVICE + std::string(" ") + kServicePort);
    const std::string nginx = folder_ / (name_ + "-nginx");
    std::filesystem::create_directory(nginx);
    folder_.write(name_ + "-nginx/nginx.conf",
                  "daemon off; master_process off; pid nginx.pid; error_log stderr;\nevents {}\nhttp {\n"
                  "  access_log off; client_body_temp_path body; proxy_temp_path proxy;\n"
                  "  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n"
                  "  server {\n    listen " +
                      std::string(kNginxPort) +
                      ";\n    location = /fast { return 200 'hello\\n'; }\n"
                      "    location /work { proxy_pass http://127.0.0.1:" +
                      kServicePort + "; }\n  }\n}\n");
    nginx_ = start("nginx", "nginx.service", "/usr/sbin/nginx -p " + nginx + "/ -c nginx.conf -e stderr");
    require(eventually([&] { return said_by_service().find("listening") != std::string::npos; }),
            said_by_service().c_str());
    require(eventually([&] { return std::filesystem::exists(nginx + "/nginx.pid"); }), "nginx did not start");
  }

  const std::string name_;
  const ServerFolder& folder_;
  const std::string address_;
  const NetworkNamespace net_;
  const Cgroup cgroup_;
  const std::string metrics_port_;
  std::unique_ptr<ServerProcess> observer_, slow_, nginx_;
};

}  // namespace sockalarm::observe::test
