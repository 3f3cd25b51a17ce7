// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bpf/bpf.h>
#include <dirent.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "harness/alarms.h"
#include "harness/daemon.h"
#include "harness/sockets.h"
#include "ipc/frame_socket.h"
#include "ipc/protocol.h"
#include "sockalarm_abi.h"

namespace sockalarm::test {

// Speaks the protocol without the library, and says what it likes.
class RawClient {
 public:
  explicit RawClient(const std::string& path) : socket_(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    require(::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
            "connect");
  }

  int fd() const { return socket_.get(); }
  template <class T>
  int send(const T& frame, int descriptor = -1) const {
    return ipc::send_frame(socket_.get(), frame, descriptor);
  }
  // The next frame, if it is a T; empty: it is not, or the daemon has hung up.
  template <class T>
  std::optional<T> receive(UniqueFd* descriptor = nullptr) const {
    pollfd entry{socket_.get(), POLLIN, 0};
    if (::poll(&entry, 1, 20'000) != 1) return std::nullopt;
    alignas(8) std::array<std::byte, sizeof(ipc::Text)> buffer;
    ipc::Frame frame;
    if (ipc::receive_frame(socket_.get(), buffer, frame) != ipc::Arrival::frame) return std::nullopt;
    if (descriptor != nullptr) *descriptor = std::move(frame.descriptor);
    return frame.as<T>();
  }
  // True once the daemon has hung up, whatever it still says before.
  bool hung_up() const {
    for (;;) {
      pollfd entry{socket_.get(), POLLIN, 0};
      if (::poll(&entry, 1, 20'000) != 1) return false;
      alignas(8) std::array<std::byte, sizeof(ipc::Text)> buffer;
      ipc::Frame frame;
      if (ipc::receive_frame(socket_.get(), buffer, frame) == ipc::Arrival::closed) return true;
    }
  }

  static ipc::Hello hello(std::uint32_t slots = 64, std::uint32_t ring_bytes = 4096) {
    return {{ipc::Kind::hello, 1}, ipc::kMagic, ipc::kLeastVersion, ipc::kVersion, slots, ring_bytes, 0, 0};
  }
  std::optional<ipc::Welcome> greet(std::uint32_t slots = 64) {
    send(hello(slots));
    const auto welcome = receive<ipc::Welcome>();
    if (!welcome || slots == 0) return welcome;
    receive<ipc::Header>(&table_);
    receive<ipc::Header>(&ring_);
    if (welcome->task_work != 0) receive<ipc::Header>(&introduction_);
    return welcome;
  }

  // errno of the answer; -1: no answer.
  int watch(int fd, std::uint32_t slot, std::optional<std::uint64_t> cookie = std::nullopt) {
    if (!cookie) {
      std::uint64_t found = 0;
      socklen_t length = sizeof found;
      ::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &found, &length);
      cookie = found;
    }
    send(ipc::Watch{{ipc::Kind::watch, ++id_}, *cookie, slot, 1}, fd);
    return answer();
  }
  int answer() const {
    const auto reply = receive<ipc::Reply>();
    return reply ? static_cast<int>(reply->error) : -1;
  }

  int table() const { return table_.get(); }
  int ring() const { return ring_.get(); }
  int introduction() const { return introduction_.get(); }

 private:
  UniqueFd socket_, table_, ring_, introduction_;
  std::uint32_t id_ = 1;
};

inline std::uint64_t cookie_of(int fd) {
  std::uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  ::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length);
  return cookie;
}

inline nlohmann::json status_of(const DaemonHome& home) {
  RawClient client(home.socket());
  if (!client.greet(0)) throw std::runtime_error("no welcome");
  client.send(ipc::Header{ipc::Kind::status, 7});
  std::string text;
  for (;;) {
    const auto part = client.receive<ipc::Text>();
    if (!part) throw std::runtime_error("no status");
    text.append(part->part.data(), part->length);
    if (part->more == 0) return nlohmann::json::parse(text);
  }
}

inline bool all_connected(const DaemonHome& home, std::size_t count) {
  std::size_t connected = 0;
  const auto status = status_of(home);  // not a temporary: the loop would outlive it
  for (const auto& client : status["clients"]) connected += client["connected"] ? 1 : 0;
  return connected == count;
}

// What the kernel has, whoever is to blame.
inline std::size_t entries_of(const DaemonHome& home, const char* map) {
  const UniqueFd fd(::bpf_obj_get((home.bpffs() + "/v1/" + map).c_str()));
  require(bool(fd), "bpf_obj_get");
  std::size_t count = 0;
  std::uint64_t key = 0;
  for (int more = ::bpf_map_get_next_key(fd.get(), nullptr, &key); more == 0;
       more = ::bpf_map_get_next_key(fd.get(), &key, &key))
    ++count;
  return count;
}

// Before Linux 6.8 each look into a map of maps waits for an RCU grace period, which is 20 ms.
inline bool map_of_maps_is_read_quickly() {
  utsname kernel{};
  int major = 0, minor = 0;
  require(::uname(&kernel) == 0 && std::sscanf(kernel.release, "%d.%d", &major, &minor) == 2, "uname");
  return std::pair(major, minor) >= std::pair(6, 8);
}

// The clients in the list, and their tables and rings: elsewhere those at the first indices, which are taken
// first.
inline std::size_t clients_in_kernel(const DaemonHome& home) {
  constexpr std::uint32_t kMostClients = 1024;
  const std::uint32_t most_tables = map_of_maps_is_read_quickly() ? kMostClients : 8;
  const UniqueFd list(::bpf_obj_get((home.bpffs() + "/v1/clients").c_str()));
  const UniqueFd tables(::bpf_obj_get((home.bpffs() + "/v1/watch_tables").c_str()));
  const UniqueFd rings(::bpf_obj_get((home.bpffs() + "/v1/event_rings").c_str()));
  require(list && tables && rings, "bpf_obj_get");
  std::size_t count = 0;
  for (std::uint32_t index = 0; index < kMostClients; ++index) {
    sockalarm_client facts{};
    std::uint32_t id = 0;
    if (::bpf_map_lookup_elem(list.get(), &index, &facts) == 0 && facts.flags != 0) ++count;
    if (index >= most_tables) continue;
    if (::bpf_map_lookup_elem(tables.get(), &index, &id) == 0) ++count;
    if (::bpf_map_lookup_elem(rings.get(), &index, &id) == 0) ++count;
  }
  return count;
}

inline std::size_t descriptors_of(pid_t pid) {
  std::size_t count = 0;
  DIR* const directory = ::opendir(("/proc/" + std::to_string(pid) + "/fd").c_str());
  while (::readdir(directory) != nullptr) ++count;
  ::closedir(directory);
  return count;
}

// A process that does what it is told over a socket: it is sent a letter, does that, and answers a number.
class Worker {
 public:
  using Body = std::function<std::uint64_t(char)>;
  // make: what the process does first; gives what it does for each letter.
  explicit Worker(const std::function<Body()>& make, uid_t uid = kNobody) {
    int ends[2];
    require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
    ours_ = UniqueFd(ends[0]);
    UniqueFd theirs(ends[1]);
    pid_ = ::fork();
    require(pid_ >= 0, "fork");
    if (pid_ != 0) return;
    ours_.reset();
    if (!become(uid)) ::_exit(2);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // some go on for ever
    try {
      const Body body = make();
      for (char letter = 0; next(theirs.get(), letter);) {
        const std::uint64_t answer = body(letter);
        if (::write(theirs.get(), &answer, sizeof answer) != sizeof answer) break;
      }
    } catch (const std::exception& error) {
      std::fprintf(stderr, "worker: %s\n", error.what());
      ::_exit(3);
    }
    ::_exit(0);
  }
  ~Worker() { kill(); }
  Worker(Worker&& other) noexcept : ours_(std::move(other.ours_)), pid_(std::exchange(other.pid_, 0)) {}

  void tell(char letter) const { [[maybe_unused]] auto n = ::send(ours_.get(), &letter, 1, MSG_NOSIGNAL); }
  // Empty: it has ended, or does not answer.
  std::optional<std::uint64_t> answer() const {
    pollfd entry{ours_.get(), POLLIN, 0};
    std::uint64_t value = 0;
    if (::poll(&entry, 1, 60'000) != 1 || ::read(ours_.get(), &value, sizeof value) != sizeof value)
      return std::nullopt;
    return value;
  }
  std::optional<std::uint64_t> ask(char letter) const {
    tell(letter);
    return answer();
  }
  pid_t pid() const { return pid_; }
  void pause() const { stop_process(pid_); }
  bool alive() const { return pid_ > 0 && ::waitpid(pid_, nullptr, WNOHANG) == 0; }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

 private:
  static bool next(int fd, char& letter) {
    ssize_t n = -1;
    do n = ::read(fd, &letter, 1);
    while (n < 0 && errno == EINTR);  // under TSan also where signal(2) promises to go on
    return n == 1;
  }

  UniqueFd ours_;
  pid_t pid_ = 0;
};

// All at once; ~0: one has ended instead of answering.
inline std::vector<std::uint64_t> ask_all(const std::vector<Worker>& workers, char letter) {
  for (const Worker& worker : workers) worker.tell(letter);
  std::vector<std::uint64_t> answers;
  for (const Worker& worker : workers) answers.push_back(worker.answer().value_or(~std::uint64_t{0}));
  return answers;
}

inline Watcher daemon_watcher(const DaemonHome& home, Options options = {}) {
  options.source = SourceKind::daemon;
  options.daemon_socket = home.socket();
  auto watcher = Watcher::create(std::move(options));
  if (!watcher) throw std::runtime_error(watcher.error().message());
  return std::move(*watcher);
}

}  // namespace sockalarm::test
