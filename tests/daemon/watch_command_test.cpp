// SPDX-License-Identifier: Apache-2.0
#include <sys/prctl.h>
#include <sys/resource.h>

#include <map>
#include <memory>

#include "daemon/raw_client.h"
#include "integration/cli.h"

// `sockalarm watch`: connections of a process that knows nothing of it.

namespace sockalarm::test {
namespace {

// A server of its own: 'a' accepts a connection, 'c' closes the oldest, 's' tells how often it got SIGUSR1.
class Server {
 public:
  explicit Server(uid_t uid = kNobody) : listener_(listen_on(AF_INET)), worker_(make(), uid) {}

  UniqueFd connect() const {
    UniqueFd peer = connect_to(listener_);
    EXPECT_TRUE(worker_.ask('a'));
    return peer;
  }
  std::string port() const {
    sockaddr_in name{};
    std::memcpy(&name, &listener_.address, sizeof name);
    return ":" + std::to_string(ntohs(name.sin_port));
  }
  std::string pid() const { return std::to_string(worker_.pid()); }
  const Worker& worker() const { return worker_; }

 private:
  std::function<Worker::Body()> make() const {
    return [this] {
      static volatile std::sig_atomic_t signals = 0;
      ::signal(SIGUSR1, [](int) { signals = signals + 1; });
      ::prctl(PR_SET_DUMPABLE, 1);  // forgotten when it became another user; a server that logs in has it
      ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);  // where Yama would let only its parents copy descriptors
      auto accepted = std::make_shared<std::vector<UniqueFd>>();
      const int listener = listener_.fd.get();
      return [accepted, listener](char letter) -> std::uint64_t {
        if (letter == 'a') accepted->emplace_back(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
        if (letter == 'c') accepted->erase(accepted->begin());
        return letter == 's' ? static_cast<std::uint64_t>(signals) : accepted->size();
      };
    };
  }

  Listener listener_;
  Worker worker_;
};

// The tool, and what it prints.
class Observer {
 public:
  explicit Observer(std::vector<std::string> arguments, const Process::Preparation& prepare = [] {}) {
    int ends[2];
    require(::pipe2(ends, O_CLOEXEC) == 0, "pipe2");
    output_ = UniqueFd(ends[0]);
    const UniqueFd theirs(ends[1]), nothing = null();
    arguments.insert(arguments.begin(), {"watch", "--json"});
    process_.emplace(cli(std::move(arguments)), nothing.get(), theirs.get(), prepare);
  }
  // The next line; null: it has ended.
  nlohmann::json next() {
    for (;;) {
      if (const auto end = text_.find('\n'); end != std::string::npos) {
        auto line = nlohmann::json::parse(text_.substr(0, end));
        text_.erase(0, end + 1);
        return line;
      }
      pollfd entry{output_.get(), POLLIN, 0};
      char part[512];
      const ssize_t n = ::poll(&entry, 1, 30'000) == 1 ? ::read(output_.get(), part, sizeof part) : 0;
      if (n <= 0) return nullptr;
      text_.append(part, static_cast<std::size_t>(n));
    }
  }
  Ended wait() { return process_->wait(); }

 private:
  UniqueFd output_;
  std::optional<Process> process_;
  std::string text_;
};

class WatchCommandTest : public testing::Test {
 protected:
  std::vector<std::string> at_daemon(const Server& server, std::vector<std::string> more = {}) const {
    more.insert(more.begin(), {"--socket", home_.socket(), "--source", "daemon", "--pid", server.pid()});
    return more;
  }

  DaemonHome home_;
};

void tells_what_happens(const Server& server, const std::vector<std::string>& words, const char* source,
                        const Process::Preparation& prepare) {
  UniqueFd leaves = server.connect(), resets = server.connect(), left = server.connect();
  const TemporaryPath ran("watch-ran");
  auto arguments = words;
  arguments.insert(arguments.end(), {"sig:USR1", "run:sh -c 'echo once >> " + ran.text() + "'", "sleep:1ms"});
  Observer observer(arguments, prepare);
  for (int i = 0; i < 3; ++i) {
    auto line = observer.next();  // not const: what is not there is null
    ASSERT_EQ(line["event"], "watching") << line << observer.wait().errors;
    EXPECT_EQ(line["source"], source);
    EXPECT_EQ(line["local"], "127.0.0.1" + server.port());
  }
  reset(resets);
  EXPECT_EQ(observer.next()["events"], "reset");
  leaves.reset();
  const auto fin = observer.next();
  ASSERT_TRUE(fin.is_object());
  EXPECT_EQ(fin.value("event", ""), "left");
  EXPECT_EQ(fin.value("events", ""), "fin");
  EXPECT_GE(fin.value("seconds", -1.0), 0.0);
  // No copy is kept: what the server closes is closed, and its peer sees it.
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(server.worker().ask('c'));
  char byte = 0;
  await_readable(left.get());
  EXPECT_EQ(::recv(left.get(), &byte, 1, 0), 0);
  EXPECT_EQ(observer.next()["event"], "closed");
  EXPECT_EQ(observer.next(), nullptr);
  const Ended ended = observer.wait();
  EXPECT_EQ(ended.status, 0) << ended.errors;
  EXPECT_TRUE(eventually([&] { return server.worker().ask('s').value_or(0) >= 1; }));
  EXPECT_TRUE(eventually([&] { return ran.content() == "once\nonce\n"; })) << ran.content();
}

TEST_F(WatchCommandTest, TellsWhatHappensThroughTheDaemon) {
  const DaemonProcess daemon(home_);
  for (const uid_t user : {uid_t{0}, kNobody}) {
    const Server server;
    tells_what_happens(server, at_daemon(server), "daemon", [user] {
      if (user != 0 && !become(user)) ::_exit(98);
    });
    EXPECT_TRUE(eventually([&] { return entries_of(home_, "registry") == 0; }));
    EXPECT_TRUE(eventually([&] { return clients_in_kernel(home_) == 0; }));
  }
}

TEST_F(WatchCommandTest, NeedsNoDaemonWhereItMayLoad) {
  const Server server;
  tells_what_happens(server, {"--source", "kernel", "--pid", server.pid()}, "kernel", [] {});
}

// More than the tool may have descriptors at first.
TEST_F(WatchCommandTest, WatchesAllConnectionsOfABusyServer) {
  const DaemonProcess daemon(home_);
  const Server server;
  constexpr int kMany = 300;
  std::vector<UniqueFd> peers;
  for (int i = 0; i < kMany; ++i) peers.push_back(server.connect());
  Observer observer(at_daemon(server), [] {
    const rlimit few{64, 2 * kMany};
    ::setrlimit(RLIMIT_NOFILE, &few);
  });
  for (int i = 0; i < kMany; ++i) ASSERT_EQ(observer.next()["event"], "watching") << i;
  peers.clear();
  for (int i = 0; i < kMany; ++i) ASSERT_EQ(observer.next()["event"], "left") << i;
  EXPECT_EQ(observer.wait().status, 0);
}

// The rest is watched, and it says which is not.
TEST_F(WatchCommandTest, AConnectionThatSomebodyWatchesIsLeftOut) {
  const DaemonProcess daemon(home_);
  const Server server;
  UniqueFd first = server.connect(), second = server.connect();
  sockaddr_in name{};
  socklen_t length = sizeof name;
  ASSERT_EQ(::getsockname(first.get(), reinterpret_cast<sockaddr*>(&name), &length), 0);
  const std::string firsts = "127.0.0.1:" + std::to_string(ntohs(name.sin_port));
  Observer other(at_daemon(server, {"--remote", firsts}));
  ASSERT_EQ(other.next()["event"], "watching");

  Observer observer(at_daemon(server));
  std::map<std::string, nlohmann::json> lines;
  for (int i = 0; i < 2; ++i) {
    auto line = observer.next();  // not const: what is not there is null
    ASSERT_TRUE(line.is_object()) << observer.wait().errors;
    lines[line["event"]] = line;
  }
  EXPECT_EQ(lines["left_out"]["remote"], firsts);
  EXPECT_NE(lines["left_out"].value("why", "").find("another client"), std::string::npos);
  EXPECT_NE(lines["watching"]["remote"], firsts);
  second.reset();
  EXPECT_EQ(observer.next()["event"], "left");
  EXPECT_EQ(observer.wait().status, 1);

  Observer in_vain(at_daemon(server, {"--remote", firsts}));
  EXPECT_EQ(in_vain.next()["event"], "left_out");
  EXPECT_EQ(in_vain.wait().status, 125);
  first.reset();  // whoever came first is told as ever
  EXPECT_EQ(other.next()["event"], "left");
  EXPECT_EQ(other.wait().status, 0);
}

TEST_F(WatchCommandTest, AddressesChoose) {
  const DaemonProcess daemon(home_);
  for (const char* host : {"", "127.0.0.1", "[::ffff:127.0.0.1]"}) {
    const Server server;
    const UniqueFd wanted = server.connect(), other = server.connect();
    sockaddr_in name{};
    socklen_t length = sizeof name;
    ASSERT_EQ(::getsockname(wanted.get(), reinterpret_cast<sockaddr*>(&name), &length), 0);
    const std::string port = ":" + std::to_string(ntohs(name.sin_port));
    Observer observer(
        at_daemon(server, {"--local", "127.0.0.1", "--remote", host + port, "--on", "reset,closed"}));
    auto line = observer.next();  // not const: what is not there is null
    ASSERT_EQ(line["event"], "watching") << observer.wait().errors;
    EXPECT_EQ(line["remote"], "127.0.0.1" + port);
    EXPECT_EQ(server.worker().ask('c'), 1U);
    EXPECT_EQ(observer.next()["event"], "closed");
    EXPECT_EQ(observer.wait().status, 0);
  }
}

TEST_F(WatchCommandTest, ErrorsSayWhatToDo) {
  const auto says = [](
                        std::vector<std::string> arguments, const std::string& words,
                        const Process::Preparation& prepare = [] {}) {
    arguments.insert(arguments.begin(), "watch");
    const UniqueFd nothing = null();
    const Ended ended = Process(cli(std::move(arguments)), nothing.get(), nothing.get(), prepare).wait();
    EXPECT_EQ(ended.status, 125) << words;
    EXPECT_NE(ended.errors.find(words), std::string::npos) << ended.errors;
  };
  const auto as_nobody = [] {
    if (!become(kNobody)) ::_exit(98);
  };
  const Server server, roots(0);
  const std::string pid = server.pid();
  const UniqueFd peer = server.connect(), roots_peer = roots.connect();
  says({}, "--pid is required");
  says({"--pid", "x"}, "'x' is not a process id");
  says({"--pid", "999999999"}, "process 999999999: No such process");
  says({"--pid", pid, "--local", "localhost"}, "'localhost' is no address; expected 10.0.0.1");
  says({"--pid", pid, "--remote", ":70000"}, "':70000' is no address");
  says({"--pid", pid, "--remote", "unix:/x"}, "'unix:/x' is no address");
  says({"--pid", pid, "--on", "readable"}, "expected some of fin, reset");
  says({"--pid", pid, "shut_rw:127.0.0.1:80"}, "would act on sockalarm itself");
  says({"--pid", pid, "nonsense:3"}, "nonsense");
  says({"--pid", pid, "--remote", "10.9.8.7"}, "that matches; it has:\n  ");
  says({"--pid", pid, "--source", "epoll"}, "would be kept open; start sockalarmd");
  says({"--pid", pid, "--source", "daemon", "--socket", home_.socket()}, "no daemon listens there");
  says({"--pid", pid, "--socket", home_.socket()}, "start sockalarmd, or run sockalarm as root", as_nobody);
  says({"--pid", roots.pid()}, "as its user or as root", as_nobody);
}

}  // namespace
}  // namespace sockalarm::test
