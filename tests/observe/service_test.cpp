// SPDX-License-Identifier: Apache-2.0
#include "daemon/service.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <linux/capability.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <fstream>
#include <set>

#include "daemon/config.h"
#include "faults/failing_call.h"
#include "harness/tasks.h"
#include "observe/observation.h"
#include "observe/topology.h"

// sockalarmd --observe as a process, and what it is made of, with connections of a cgroup of the test's own.

namespace sockalarm::observe::test {
namespace {

using sockalarm::test::connect_to;
using sockalarm::test::Connection;
using sockalarm::test::listen_on;
using sockalarm::test::tcp_pair;
using ::testing::AllOf;
using ::testing::HasSubstr;

// In a child that has joined that cgroup, so that its sockets are of it.
template <class Function>
void in_cgroup(const std::string& folder, Function function) {
  const pid_t child = ::fork();
  require(child >= 0, "fork");
  if (child == 0) {
    std::ofstream procs(folder + "/cgroup.procs");
    procs << "0" << std::flush;
    if (procs) function();
    ::_exit(procs ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  require(status == 0, "a child in a cgroup");
}

// Clients that leave amid a request: one end of each side.
void abandon(int times) {
  for (int i = 0; i < times; ++i) {
    Connection connection = tcp_pair();
    sockalarm::test::send_text(connection.peer.get(), "a question");
    connection.peer.reset();
    sockalarm::test::await_readable(connection.ours.get(), POLLRDHUP);
  }
}

class ObserveService : public ::testing::Test {
 protected:
  // The observer is to write there, and has no right to write to what is another user's.
  ObserveService() { require(::chown(folder_.text().c_str(), ::geteuid(), ::getegid()) == 0, "chown"); }

  std::string configure(const std::string& filter = "") {
    folder_.write("observe.toml", "[observe]\nsocket = \"" + socket() + "\"\nlisten = \"127.0.0.1:" + port_ +
                                      "\"\nregion = \"test\"\nhost = \"host\"\n" + further_ +
                                      "[observe.filter]\ncgroups = [\"" + cgroup_.path() + "\"]\n" + filter);
    return folder_ / "observe.toml";
  }
  void start(std::vector<std::string> further = {}, const std::string& records = "/dev/stdout") {
    std::vector<std::string> argv{"sh",        "-c",       "exec \"$@\" >> " + records, "sh", SOCKALARMD_PATH,
                                  "--observe", "--config", folder_ / "observe.toml"};
    argv.insert(argv.end(), further.begin(), further.end());
    const std::string before = said();
    process_ =
        std::make_unique<ServerProcess>(folder_, "observer", argv, "/dev/null", ServerProcess::As::tester);
    require(eventually([&] { return said().find("ready:", before.size()) != std::string::npos; }),
            said().c_str());
  }
  void abandon_some(int times) {
    in_cgroup(cgroup_.folder(), [&] { abandon(times); });
  }

  std::string socket() const { return folder_ / "observe.sock"; }
  std::string said() const { return folder_.read("observer.log"); }
  nlohmann::json totals() const { return nlohmann::json::parse(http_get(port_, "/v1/totals")); }
  std::uint64_t counted(const std::string& verdict) const {
    const auto all = totals();
    std::uint64_t sum = 0;
    for (const auto& end : all.at("ends"))
      if (end.at("verdict") == verdict) sum += end.at("count").get<std::uint64_t>();
    return sum;
  }
  std::vector<nlohmann::json> records() const {
    std::vector<nlohmann::json> records;
    std::istringstream lines(folder_.read("records"));
    for (std::string line; std::getline(lines, line);) records.push_back(nlohmann::json::parse(line));
    return records;
  }

  const ServerFolder folder_;
  const Cgroup cgroup_{"/sockalarmtest" + std::to_string(::getpid()) + ".slice/own.slice"};
  const std::string port_ = sockalarm::test::free_port();
  std::string further_;  // of [observe]
  std::unique_ptr<ServerProcess> process_;
};

TEST_F(ObserveService, CountsWritesAndAnswers) {
  configure();
  start({"--jsonl", folder_ / "records"});
  abandon_some(3);
  EXPECT_TRUE(eventually([&] { return counted("abandoned") == 3; })) << totals();
  EXPECT_EQ(counted("none"), 3u);  // the clients' side
  EXPECT_TRUE(eventually([&] { return records().size() == 6; }));
  for (const auto& record : records()) {
    EXPECT_EQ(record.at("host.name"), "host");
    EXPECT_EQ(record.at("cloud.region"), "test");
    EXPECT_EQ(record.at("service.name"), cgroup_.path().substr(1));
  }
  EXPECT_EQ(http_get(port_, "/healthz"), "ok\n");
  EXPECT_THAT(http_get(port_, "/"), HasSubstr("<html"));
  EXPECT_EQ(http_get(port_, "/readyz"), "ok\n");
  EXPECT_THAT(http_get(port_, "/metrics"), HasSubstr("sockalarm_detection_latency_seconds_count 6\n"));
  struct stat status{};
  ASSERT_EQ(::stat(socket().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0660u);
}

TEST_F(ObserveService, OnStandardOutput) {
  configure();
  start({"--jsonl", "-", "--listen", ""});
  abandon_some(1);
  EXPECT_TRUE(eventually([&] {
    return said().find("\"sockalarm.verdict\":\"abandoned\"") != std::string::npos;
  })) << said();
}

TEST_F(ObserveService, AReloadChangesTheFilterAndAWrongOneNothing) {
  configure();
  start();
  abandon_some(1);
  EXPECT_TRUE(eventually([&] { return counted("abandoned") == 1; }));
  configure("directions = [\"outbound\"]\n");
  process_->send(SIGHUP);
  EXPECT_TRUE(eventually([&] { return said().find("configuration read again") != std::string::npos; }));
  abandon_some(1);
  EXPECT_TRUE(eventually([&] { return counted("none") == 2; }));
  EXPECT_EQ(counted("abandoned"), 1u);
  configure("directions = [\"sideways\"]\n");
  process_->send(SIGHUP);
  EXPECT_TRUE(eventually([&] { return said().find("stays as it was") != std::string::npos; }));
  EXPECT_THAT(said(), HasSubstr("unknown, inbound, outbound"));
  abandon_some(1);
  EXPECT_TRUE(eventually([&] { return counted("none") == 3; }));
  EXPECT_EQ(counted("abandoned"), 1u);
}

// Killed at once, it comes back with numbers that it had not given before.
TEST_F(ObserveService, NoNumberComesTwiceInABoot) {
  configure();
  start({"--jsonl", folder_ / "records"});
  abandon_some(2);
  ASSERT_TRUE(eventually([&] { return records().size() == 4; }));
  process_->send(SIGKILL);
  process_->wait();
  start({"--jsonl", folder_ / "records"});
  abandon_some(2);
  ASSERT_TRUE(eventually([&] { return records().size() == 8; }));
  std::set<std::string> ids;
  for (const auto& record : records()) ids.insert(record.at("event.id").get<std::string>());
  EXPECT_EQ(ids.size(), 8u);
}

// Capabilities are of a thread, so each of them is asked; also those of the libraries.
TEST_F(ObserveService, NoThreadKeepsAPrivilegeThatItDoesNotNeed) {
  configure(SOCKALARM_NATS ? "[observe.nats]\nservers = \"nats://127.0.0.1:1\"\nspool = \"" +
                                 (folder_ / "spool") + "\"\n"
                           : "");
  start({"--jsonl", folder_ / "records"});
  EXPECT_EQ(http_get(port_, "/readyz"), "ok\n");
  const auto number = [](const std::string& text) { return std::stoull(text, nullptr, 16); };
  const std::uint64_t bpf = std::uint64_t{1} << CAP_BPF;
  const std::uint64_t kept = bpf | std::uint64_t{1} << CAP_DAC_READ_SEARCH;
  const auto tasks = sockalarm::test::tasks_of(process_->pid());
  EXPECT_GE(tasks.size(), SOCKALARM_NATS ? 6u : 4u) << "reads; serves; a sink each; sends; the library";
  for (const auto& task : tasks) {
    EXPECT_EQ(number(task.at("CapEff:")) & ~kept, 0u) << task.at("Name:");
    EXPECT_NE(number(task.at("CapEff:")) & bpf, 0u) << task.at("Name:");
    EXPECT_EQ(task.at("CapPrm:"), task.at("CapEff:"));
    for (const char* none : {"CapInh:", "CapBnd:", "CapAmb:"}) EXPECT_EQ(number(task.at(none)), 0u) << none;
    EXPECT_EQ(task.at("NoNewPrivs:"), "1");
  }
}

TEST_F(ObserveService, SaysWhichPortItGot) {
  configure();
  start({"--listen", "127.0.0.1:0"});
  const std::string text = said(), before = "http://127.0.0.1:";
  const auto at = text.find(before);
  ASSERT_NE(at, std::string::npos) << text;
  const std::string port =
      text.substr(at + before.size(), text.find('/', at + before.size()) - at - before.size());
  EXPECT_NE(port, "0");
  EXPECT_EQ(http_get(port, "/healthz"), "ok\n");
}

TEST_F(ObserveService, IsAliveThoughOthersHoldAllConnections) {
  configure();
  start();
  std::vector<UniqueFd> idle;
  for (int asked = 0; asked < 10; ++asked) {
    for (unsigned i = 0; i < WebServer::kConnections; ++i)
      idle.push_back(sockalarm::test::connect_to_port(port_));
    EXPECT_EQ(http_get(port_, "/healthz"), "ok\n");
  }
}

// In a directory that is its user's: it has no right beyond that any more.
TEST_F(ObserveService, TakesTheFileOfItsSocketAway) {
  configure();
  const std::string path = folder_ / "own/observe.sock";
  start({"--socket", path});
  EXPECT_TRUE(std::filesystem::is_socket(path));
  process_->send(SIGTERM);
  EXPECT_EQ(process_->wait(), 0) << said();
  EXPECT_FALSE(std::filesystem::exists(path));
  start({"--socket", path});
  std::filesystem::remove(path);
  folder_.write("own/observe.sock", "of somebody else");
  process_->send(SIGTERM);
  EXPECT_EQ(process_->wait(), 0) << said();
  EXPECT_EQ(folder_.read("own/observe.sock"), "of somebody else");
}

TEST_F(ObserveService, AReloadNamesWhatNeedsANewStart) {
  configure();
  start({"--jsonl", folder_ / "records"});
  further_ = "queue = 7\nkernel_services = 9\njsonl = [\"-\"]\n";
  configure("[observe.nats]\nspool_age = 60\n");
  process_->send(SIGHUP);
  EXPECT_TRUE(eventually([&] { return said().find("configuration read again") != std::string::npos; }));
  EXPECT_THAT(said(), HasSubstr("with a new start only: observe.kernel_services, observe.queue, "
                                "observe.nats.spool_age\n"));
}

TEST_F(ObserveService, CountsSoManyKindsOfEndsAsItIsTold) {
  further_ = "kernel_services = 1\n";
  configure();
  start();
  abandon_some(1);  // the ends of two sides
  EXPECT_TRUE(eventually([&] { return totals().at("lost").at("metrics") == 1; })) << totals();
  EXPECT_EQ(totals().at("ends").size(), 1u);
}

// A pipe that nobody reads: it loses records for that sink and counts them, its memory has a bound, and it
// ends when it is told to.
TEST_F(ObserveService, ASinkThatIsStuckCostsABoundedAmountOfMemory) {
  further_ = "queue = 20000\n";
  configure();
  const std::string pipe = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const UniqueFd nobody_reads(::open(pipe.c_str(), O_RDWR | O_CLOEXEC));
  start({"--jsonl", "-"}, pipe);
  abandon_some(15'000);
  EXPECT_TRUE(eventually([&] { return counted("abandoned") == 15'000; })) << totals();
  EXPECT_TRUE(eventually([&] { return totals().at("lost").at("queue").get<int>() > 5'000; })) << totals();
  std::ifstream status("/proc/" + std::to_string(process_->pid()) + "/status");
  std::uint64_t resident_kb = 0;
  for (std::string word; status >> word;)
    if (word == "VmRSS:") status >> resident_kb;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(resident_kb, 64u << 10);
#endif
  RecordProperty("resident_kb", static_cast<int>(resident_kb));
  std::cout << "resident: " << resident_kb << " KiB\n";
  process_->send(SIGTERM);
  EXPECT_EQ(process_->wait(), 0) << said();
}

TEST_F(ObserveService, SaysWhyItDoesNotStart) {
  configure();
  start();
  const auto refused = [&](std::vector<std::string> further, const std::string& text) {
    folder_.write("refused.toml", text);
    std::vector<std::string> argv{SOCKALARMD_PATH, "--observe", "--config", folder_ / "refused.toml"};
    argv.insert(argv.end(), further.begin(), further.end());
    std::filesystem::remove(folder_ / "refused.log");
    ServerProcess process(folder_, "refused", argv, "/dev/null", ServerProcess::As::tester);
    EXPECT_EQ(process.wait(), 1);
    return folder_.read("refused.log");
  };
  EXPECT_THAT(refused({"--socket", socket(), "--listen", ""}, ""),
              HasSubstr("listens at " + socket() + " already"));
  EXPECT_THAT(refused({"--socket", folder_ / "o", "--listen", "127.0.0.1:" + port_}, ""),
              AllOf(HasSubstr("observe.listen"), HasSubstr("127.0.0.1:" + port_)));
  EXPECT_THAT(refused({"--socket", folder_ / "o", "--listen", "::1:99999"}, ""),
              AllOf(HasSubstr("observe.listen"), HasSubstr("'::1:99999'"), HasSubstr("[::]:9465")));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "o"));
  EXPECT_THAT(refused({"--jsonl", folder_ / "no/such/file"}, ""), HasSubstr("no/such/file"));
  const ServerFolder of_another_user;
  EXPECT_THAT(refused({"--jsonl", of_another_user / "file"}, ""),
              AllOf(HasSubstr(of_another_user / "file"), HasSubstr("given up; give a folder of root's")));
  EXPECT_THAT(refused({}, "[observe.filter]\ncgroups = [\"/nowhere.slice\"]\n"),
              AllOf(HasSubstr("observe.filter.cgroups"), HasSubstr("'/nowhere.slice'")));
}

#if SOCKALARM_NATS
TEST_F(ObserveService, SaysWhyItDoesNotStartWithABroker) {
  configure();
  const auto refused = [&](const std::string& nats) {
    folder_.write("refused.toml",
                  "[observe]\nlisten = \"\"\nsocket = \"" + socket() + "\"\n[observe.nats]\n" + nats);
    std::filesystem::remove(folder_ / "refused.log");
    ServerProcess process(folder_, "refused",
                          {SOCKALARMD_PATH, "--observe", "--config", folder_ / "refused.toml"}, "/dev/null",
                          ServerProcess::As::tester);
    EXPECT_EQ(process.wait(), 1);
    return folder_.read("refused.log");
  };
  const std::string good = "servers = \"nats://127.0.0.1:1\"\n",
                    spool = "spool = \"" + (folder_ / "spool") + "\"\n";
  folder_.write("file", "nothing");
  EXPECT_THAT(refused(good + "spool = \"" + (folder_ / "file") + "/spool\"\n"),
              AllOf(HasSubstr("observe.nats.spool"), HasSubstr("Not a directory"),
                    HasSubstr("that this process can write to")));
  EXPECT_THAT(refused(good + spool + "credentials = \"" + (folder_ / "none") + "\"\n"),
              AllOf(HasSubstr("/none'"), HasSubstr("No such file"), HasSubstr("nsc generate creds")));
  EXPECT_THAT(refused(good + spool + "authorities = \"" + (folder_ / "file") + "\"\n"),
              AllOf(HasSubstr("/file'"), HasSubstr("BEGIN CERTIFICATE"), HasSubstr("PEM")));
  const std::string said =
      refused(spool + "servers = \"nats://agent:secret@127.0.0.1:4222,nats://agent:secret@h:99999\"\n");
  EXPECT_THAT(said, AllOf(HasSubstr("'nats://***@127.0.0.1:4222,nats://***@h:99999'"), HasSubstr("number 2"),
                          HasSubstr("separated by commas")));
  EXPECT_THAT(said, ::testing::Not(HasSubstr("secret")));
}
#endif

// Every key that the reader knows, but the filter's, which a reload puts in force.
TEST(ObserveConfig, NamesEveryKeyThatHasChanged) {
  const ServerFolder folder;
  const auto read = [&](const std::string& text) {
    folder.write("c.toml", text);
    return daemon::read_config(folder / "c.toml");
  };
  const std::map<std::string, std::string> values{
      {"socket", "\"/s\""},     {"socket_mode", "0o600"},    {"listen", "\"\""},
      {"region", "\"r\""},      {"host", "\"h\""},           {"services", "3"},
      {"kernel_services", "3"}, {"rate_limit", "3"},         {"queue", "3"},
      {"ring_bytes", "8192"},   {"exact_progress", "false"}, {"jsonl", "[\"-\"]"},
      {"jsonl_bytes", "5000"},  {"jsonl_keep", "3"},         {"servers", "\"nats://h\""},
      {"stream", "\"S\""},      {"credentials", "\"c\""},    {"authorities", "\"a\""},
      {"window", "3"},          {"spool", "\"/p\""},         {"spool_bytes", "70000"},
      {"spool_age", "3"}};
  const daemon::ObserveConfig before;
  std::size_t keys = 0;
  for (const std::string table : {"observe", "observe.nats"}) {
    const std::string known = read("[" + table + "]\nnone = 1\n").error().message();
    std::istringstream names(known.substr(known.find("known here: ") + 12));
    for (std::string key; std::getline(names >> std::ws, key, ',');) {
      if (key == "filter" || key == "nats") continue;
      ASSERT_TRUE(values.contains(key)) << "a new key: " << key;
      const auto config = read("[" + table + "]\n" + key + " = " + values.at(key) + "\n");
      ASSERT_TRUE(config) << config.error().message();
      EXPECT_EQ(changed_keys(before, config->observe), std::vector<std::string>{table + "." + key});
      ++keys;
    }
  }
  EXPECT_EQ(keys, values.size());
  EXPECT_TRUE(
      changed_keys(before, read("[observe.filter]\nports = [1]\ncgroups = [\"/c\"]\n")->observe).empty());
}

TEST(SocketFile, GoesWithItsOwnerOnly) {
  const ServerFolder folder;
  const std::string path = folder / "file";
  folder.write("file", "");
  {
    daemon::service::SocketFile file(path), moved(std::move(file));
    file = std::move(moved);
    EXPECT_TRUE(std::filesystem::exists(path));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  folder.write("file", "");
  daemon::service::SocketFile file(path);
  folder.write("other", "");
  std::filesystem::rename(folder / "other", path);
  file = {};
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST(ObserveConfig, SaysWhatIsWrong) {
  const ServerFolder folder;
  const auto problem = [&](const std::string& text) {
    folder.write("c.toml", "[observe]\n" + text);
    const auto config = daemon::read_config(folder / "c.toml");
    return config ? "nothing" : config.error().message();
  };
  EXPECT_THAT(problem("port = 1"), AllOf(HasSubstr("line 2"), HasSubstr("unknown key 'port'")));
  EXPECT_THAT(problem("services = 0"), HasSubstr("services must be a number from 1"));
  EXPECT_THAT(problem("exact_progress = 1"), HasSubstr("true or false"));
  EXPECT_THAT(problem("jsonl = \"-\""), HasSubstr("must be a list"));
  EXPECT_THAT(problem("jsonl = [1]"), HasSubstr("must be texts"));
  for (const char* ports : {"[0x10000]", "[\"9-8\"]", "[\"80-\"]", "[-1]", "[\"http\"]", "[1.5]"})
    EXPECT_THAT(problem("[observe.filter]\nports = " + std::string(ports)), HasSubstr("8000-8999")) << ports;
  EXPECT_THAT(problem("[observe.filter]\nprefixes = [\"10.0.0.0/33\"]"), HasSubstr("10.0.0.0/33"));
  EXPECT_THAT(problem("[observe.filter]\ncauses = [\"fin\"]"), HasSubstr("peer_fin, peer_reset"));
  EXPECT_THAT(problem("[observe.filter]\none_in = 0"), HasSubstr("one_in must be a number from 1"));
  EXPECT_THAT(problem("[observe.nats]\nspool_bytes = 1"), HasSubstr("spool_bytes"));
  EXPECT_THAT(problem("[observe.nats]\nserver = 1"), HasSubstr("unknown key 'server'"));
  EXPECT_THAT(problem("kernel_services = 0"), HasSubstr("kernel_services must be a number from 1"));
  EXPECT_EQ(problem("listen = \"\"\n[observe.filter]\nports = [443, \"8000-8999\"]\nminimum_orphaned_ms = 5\n"
                    "[observe.nats]\nservers = \"nats://127.0.0.1:4222\"\n"),
            "nothing");
}

// An observation of connections of a cgroup of its own.
class ObservationTest : public ::testing::Test {
 protected:
  void begin() {
    auto paths = CgroupPaths::open().value();
    ObserverOptions options;
    options.filter.cgroups = {paths.id(cgroup_.path()).value()};
    options.latency = std::chrono::milliseconds(1);
    auto observer = Observer::open(options);
    ASSERT_TRUE(observer) << observer.error().message();
    observer_ = observer->get();
    observe::Observation::Options own;
    own.host = observe::Host::this_one("").value();
    observation_ = std::make_unique<observe::Observation>(
        own, observe::Observation::Parts{std::move(*observer), std::move(paths), {}, {}}, losses_,
        observe::Exporter::ErrorHook());
  }
  // Of one service, or of all.
  std::uint64_t ends(const std::string& service = "") {
    EXPECT_TRUE(observation_->read());
    std::uint64_t sum = 0;
    const auto snapshot = observation_->snapshot();
    for (const auto& [key, total] : snapshot->ends)
      if (service.empty() || key.service == service) sum += total.ends;
    return sum;
  }

  const Cgroup cgroup_{"/sockalarmtest" + std::to_string(::getpid()) + ".slice/own.slice"};
  observe::Losses losses_;
  Observer* observer_ = nullptr;
  std::unique_ptr<observe::Observation> observation_;
};

// What a cgroup has counted stays when it goes, and the kernel's table has room again.
TEST_F(ObservationTest, ACgroupThatGoesLeavesItsFiguresAndNoEntry) {
  begin();
  const std::string short_lived = cgroup_.make("short.service");
  in_cgroup(short_lived, [] { abandon(2); });
  EXPECT_TRUE(eventually([&] { return ends("short.service") == 4; }));
  EXPECT_TRUE(observation_->tidy());
  EXPECT_TRUE(observation_->tidy());
  EXPECT_FALSE(observer_->metrics()->empty());  // it is there still
  ASSERT_TRUE(eventually([&] { return ::rmdir(short_lived.c_str()) == 0; }));
  EXPECT_TRUE(observation_->tidy());
  EXPECT_TRUE(observer_->metrics()->empty());
  EXPECT_EQ(ends("short.service"), 4u);
  in_cgroup(cgroup_.make("short.service"), [] { abandon(1); });
  EXPECT_TRUE(eventually([&] { return ends("short.service") == 6; }));
}

// Who may not open a cgroup by its handle walks; names may come later then.
TEST_F(ObservationTest, AlsoWithoutHandles) {
  sockalarm::test::FailingCall not_permitted({"open_by_handle_at()", SYS_open_by_handle_at, EPERM},
                                             sockalarm::test::kEvery);
  not_permitted.run([&] {
    begin();
    const std::string short_lived = cgroup_.make("short.service");
    in_cgroup(short_lived, [] { abandon(2); });
    EXPECT_TRUE(eventually([&] { return ends() == 4; }));
    EXPECT_TRUE(eventually([&] { return ends("short.service") + ends("unknown") == 4; }));
    EXPECT_TRUE(observation_->tidy());
    EXPECT_TRUE(observation_->tidy());
    EXPECT_FALSE(observer_->metrics()->empty());
    ASSERT_TRUE(eventually([&] { return ::rmdir(short_lived.c_str()) == 0; }));
    EXPECT_TRUE(eventually([&] { return observation_->tidy() && observer_->metrics()->empty(); }));
    EXPECT_EQ(ends(), 4u);
    const std::string next = cgroup_.make("next.service");
    EXPECT_TRUE(eventually([&] {
      in_cgroup(next, [] { abandon(1); });
      return ends("next.service") > 0;
    }));
  });
  EXPECT_TRUE(not_permitted.failed());
}

// Figures are kept for a moment for all who ask. Rates of two who ask at different times are right all the
// same.
TEST_F(ObservationTest, ASnapshotHasTheTimeOfItsFigures) {
  begin();
  EXPECT_TRUE(eventually([&] {
    const auto one = observation_->snapshot(), other = observation_->snapshot();
    return one->uptime == other->uptime && one->now == other->now;
  }));
  const auto before = observation_->snapshot();
  EXPECT_TRUE(eventually([&] { return observation_->snapshot()->uptime > before->uptime; }));
}

}  // namespace
}  // namespace sockalarm::observe::test
