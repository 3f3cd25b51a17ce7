// SPDX-License-Identifier: Apache-2.0
#include <pthread.h>
#include <sys/mount.h>

#include <fstream>
#include <iostream>
#include <numeric>
#include <sstream>
#include <thread>

#include "harness/counting_program.h"
#include "privileged/observe_scene.h"

// Ends that come while the programs are at work for another, on the same processor.

namespace sockalarm::test {
namespace {

// That this process may use.
std::vector<unsigned> processors() {
  cpu_set_t set;
  require(::sched_getaffinity(0, sizeof set, &set) == 0, "sched_getaffinity");
  std::vector<unsigned> all;
  for (unsigned i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &set)) all.push_back(i);
  return all;
}

void stay_on(unsigned processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  require(::pthread_setaffinity_np(::pthread_self(), sizeof set, &set) == 0, "pthread_setaffinity_np");
}

// All packets of that network's loopback interface are received there: in an interrupt, if they come from
// another processor (Documentation/networking/scaling.rst, RPS).
void receive_on(const NetworkNamespace& net, unsigned processor) {
  net.run([&] {
    // sysfs shows the network of whoever mounts it; it goes with this thread.
    require(::unshare(CLONE_NEWNS) == 0, "unshare(CLONE_NEWNS)");
    require(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0, "mount /");
    require(::mount("sysfs", "/sys", "sysfs", 0, nullptr) == 0, "mount sysfs");
    std::ostringstream mask;  // words of 32 bits, the highest first
    mask << std::hex << (1U << processor % 32);
    for (unsigned word = 0; word < processor / 32; ++word) mask << ",0";
    std::ofstream file("/sys/class/net/lo/queues/rx-0/rps_cpus");
    file << mask.str() << std::flush;
    require(bool(file), "rps_cpus");
  });
}

// How many sockets of the test's connections the kernel says have gone. What it does not tell to programs it
// tells to none.
CountingProgram count_gone() {
  in_addr own{}, mask{};
  ::inet_pton(AF_INET, own_address(0).c_str(), &own);
  ::inet_pton(AF_INET, "255.255.255.0", &mask);
  constexpr int kNot = CountingProgram::kCounting;
  // struct sock_common begins with the peer's address; its port is 12 bytes further.
  return CountingProgram(
      "tcp_destroy_sock",
      {instruction(BPF_LDX | BPF_MEM | BPF_DW, 3, 1, 0, 0),  // r3 = the tracepoint's socket
       instruction(BPF_ALU64 | BPF_MOV | BPF_X, 1, 10, 0, 0),
       instruction(BPF_ALU64 | BPF_ADD | BPF_K, 1, 0, 0, -16),
       instruction(BPF_ALU64 | BPF_MOV | BPF_K, 2, 0, 0, 16),
       instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel),
       instruction(BPF_LDX | BPF_MEM | BPF_H, 1, 10, -4, 0),
       instruction(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 3 + kNot, 0),
       instruction(BPF_LDX | BPF_MEM | BPF_W, 1, 10, -16, 0),
       instruction(BPF_ALU | BPF_AND | BPF_K, 1, 0, 0, static_cast<int>(mask.s_addr)),
       instruction(BPF_JMP32 | BPF_JNE | BPF_K, 1, 0, kNot, static_cast<int>(own.s_addr))});
}

// Connections from the addresses with these numbers: one alone would run out of ports, for each stays in
// TIME_WAIT.
void come_and_go(const NetworkNamespace& net, unsigned count, int first_host, int hosts) {
  net.run([&] {
    const Listener listener = listen_on(AF_INET, 64, 0, own_address(1).c_str());
    for (unsigned i = 0; i < count; ++i) {
      UniqueFd peer = connect_from(listener, first_host + static_cast<int>(i) % hosts);
      UniqueFd ours = accept_from(listener);
      peer.reset();
      ours.reset();
    }
  });
}

std::uint64_t ends(ObserverScene& scene) {
  const auto metrics = scene.observer().metrics().value();
  return std::accumulate(metrics.begin(), metrics.end(), std::uint64_t{0},
                         [](std::uint64_t sum, const auto& of) { return sum + of.ends; });
}

// TIME_WAIT excepted, which is no socket any more (proc_net_tcp.rst).
bool all_sockets_are_gone(const NetworkNamespace& net) {
  std::size_t sockets = 0;
  net.run([&] {
    std::ifstream file("/proc/thread-self/net/tcp");
    std::string line;
    for (std::getline(file, line); std::getline(file, line);)
      if (line.find(" 06 ") == std::string::npos) ++sockets;
  });
  return sockets == 0;
}

// The kernel does not enter a program again that runs on this processor. close(2) lets softirqs in while it
// handles what came meanwhile, with which most connections end that the peer has closed: so one of another
// processor's may end in the midst of that.
TEST(ObserveInterrupts, AnEndInTheMidstOfAnotherIsCounted) {
  constexpr unsigned kEach = 10'000;
  const CountingProgram gone = count_gone();
  ObserverScene scene;
  const std::vector<unsigned> all = processors();
  receive_on(scene.net(), all.front());
  std::thread one([&] {
    stay_on(all.front());
    come_and_go(scene.net(), kEach, 2, 40);
  });
  std::thread other([&] {
    stay_on(all.back());
    come_and_go(scene.net(), kEach, 50, 40);
  });
  one.join();
  other.join();
  EXPECT_TRUE(eventually([&] { return all_sockets_are_gone(scene.net()); }));
  EXPECT_GE(ends(scene), gone.count());
  EXPECT_LE(ends(scene), gone.most());
  const auto losses = scene.observer().losses().value();
  std::cout << "of " << gone.count() << " ends; " << losses.missed << " runs were left out, " << losses.late
            << " changes noticed late\n";
}

// As if every end had come so.
TEST(ObserveInterrupts, NoEndIsMissedThoughTheProgramIsAlwaysLeftOut) {
  observe::ObserverOptions options;
  options.without = {"observe_destroy"};
  ObserverScene scene(options);
  for (int i = 0; i < 5; ++i) {
    Connection connection = scene.connect();
    exchange(connection);
    connection.peer.reset();
    await_departure(connection.ours.get());
    connection.ours.reset();
  }
  std::size_t received = 0, idle = 0;
  for (const ConnectionEnd& end : scene.ends(10)) {
    received += end.bytes_received;
    idle += end.verdict == ObservedVerdict::idle_close ? 1 : 0;
    EXPECT_TRUE(end.age);
  }
  EXPECT_EQ(received, 5u * (7 + 6));
  EXPECT_EQ(idle, 5u);
}

}  // namespace
}  // namespace sockalarm::test
