// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "daemon/connection.h"
#include "fuzz/checks.h"
#include "fuzz/kernel_side_in_memory.h"
#include "ipc/scm_rights.h"

// What a client says to sockalarmd: two connections of one user, against what the daemon does with their
// frames. The input is a list of steps, each 2 bytes and a frame: which connection (bit 7 of the first), what
// descriptor goes with it (its low bits), how long the frame is. A cookie that reads "cookie!!" becomes that
// of the TCP socket. Checked: only what makes sense is registered, answers have the form of the protocol, and
// afterwards nothing is left, neither descriptors nor registrations nor quotas.
namespace {

using namespace sockalarm;
using daemon::Connection;
using fuzz::lowest_free;
using fuzz::require;

std::uint64_t cookie_of(int fd) {
  std::uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  ::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length);
  return cookie;
}

// Made once: a descriptor of each kind.
struct World {
  UniqueFd tcp, other_tcp, listening, udp, file, read_end, write_end;
  std::unique_ptr<daemon::KernelSide> kernel = std::move(*daemon::KernelSide::open("", {64, 4}));
  daemon::UserLimits limits{.connections = 8, .watches = 3, .memory = 1 << 20};
  std::shared_ptr<daemon::Accounts> accounts = std::make_shared<daemon::Accounts>(limits);
  daemon::Roll roll;
  daemon::Shared shared{*kernel, accounts, roll, std::chrono::steady_clock::now(), 64, 8192};

  World() {
    tcp = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    other_tcp = UniqueFd(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
    listening = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ::listen(listening.get(), 1);
    udp = UniqueFd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    file = UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    int ends[2];
    require(::pipe2(ends, O_CLOEXEC) == 0);
    read_end = UniqueFd(ends[0]);
    write_end = UniqueFd(ends[1]);
  }
};

World& world() {
  static World one;
  return one;
}

// The client's end, and the daemon's object.
class Client {
 public:
  Client() {
    int ends[2];
    require(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
    ours_ = UniqueFd(ends[0]);
    daemon::Peer peer;
    peer.uid = peer.gid = 1000;
    peer.pid = ::getpid();
    auto charge = world().accounts->charge(peer.uid, daemon::Resource::connections, 1);
    require(charge.has_value());
    connection_.emplace(world().shared, pace_, UniqueFd(ends[1]), std::move(peer), std::move(*charge),
                        [](const daemon::Peer&, std::uint32_t, std::uint32_t) { return nullptr; });
  }

  // False: the daemon has hung up.
  bool say(std::span<const std::byte> frame, std::span<const int> descriptors) {
    if (!connection_) return false;
    if (!ipc::send_with_fds(ours_.get(), frame, descriptors)) return true;  // an empty one, for instance
    const auto refusal = connection_->serve();
    hear();
    if (refusal) connection_.reset();
    return connection_.has_value();
  }
  int table() const { return table_ ? table_.get() : world().file.get(); }
  int ring() const { return ring_ ? ring_.get() : world().file.get(); }

 private:
  void hear() {
    std::array<std::byte, sizeof(ipc::Text)> buffer;
    ipc::Frame frame;
    while (ipc::receive_frame(ours_.get(), buffer, frame) == ipc::Arrival::frame) {
      ipc::Header header{};
      require(frame.bytes.size() >= sizeof header);
      std::memcpy(&header, frame.bytes.data(), sizeof header);
      check(header.kind, frame);
      if (header.kind == ipc::Kind::give_table) table_ = std::move(frame.descriptor);
      if (header.kind == ipc::Kind::give_ring) ring_ = std::move(frame.descriptor);
    }
  }
  static void check(ipc::Kind kind, const ipc::Frame& frame) {
    switch (kind) {
      case ipc::Kind::welcome: {
        const auto welcome = frame.as<ipc::Welcome>();
        require(welcome && welcome->version == ipc::kVersion && welcome->slots <= 64 &&
                welcome->ring_bytes <= 8192 && welcome->slots != 1);
        return;
      }
      case ipc::Kind::give_table:
      case ipc::Kind::give_ring:
        return require(frame.as<ipc::Header>() && frame.descriptor);
      case ipc::Kind::reply: {
        const auto reply = frame.as<ipc::Reply>();
        return require(reply && reply->length <= reply->message.size() && !frame.descriptor);
      }
      case ipc::Kind::text: {
        const auto text = frame.as<ipc::Text>();
        return require(text && text->length <= text->part.size() && text->more == 0);
      }
      case ipc::Kind::count:
        return require(frame.as<ipc::Count>().has_value());
      default:
        return require(false);
    }
  }

  UniqueFd ours_, table_, ring_;
  daemon::Pace pace_;
  std::optional<Connection> connection_;
};

std::vector<int> descriptors(unsigned choice, const Client& client, const Client& other) {
  World& all = world();
  switch (choice % 16) {
    case 1:
      return {all.tcp.get()};
    case 2:
      return {all.other_tcp.get()};
    case 3:
      return {all.listening.get()};
    case 4:
      return {all.udp.get()};
    case 5:
      return {all.file.get()};
    case 6:
      return {all.read_end.get()};
    case 7:
      return {client.table()};
    case 8:
      return {client.ring()};
    case 9:
      return {all.tcp.get(), all.tcp.get()};
    case 10:
      return std::vector<int>(ipc::kMaxFdsPerSend, all.tcp.get());
    case 11:
      return {other.table()};
    case 12:
      return {other.ring()};
    default:
      return {};
  }
}

// A fuzzer cannot guess cookies.
void put_cookie(std::vector<std::byte>& frame) {
  constexpr std::string_view kMark = "cookie!!";
  const auto* const mark = reinterpret_cast<const std::byte*>(kMark.data());
  const auto at = std::search(frame.begin(), frame.end(), mark, mark + kMark.size());
  if (at == frame.end()) return;
  const std::uint64_t cookie = cookie_of(world().tcp.get());
  std::memcpy(&*at, &cookie, sizeof cookie);
}

void talk(std::span<const std::byte> input) {
  std::array<Client, 2> clients;
  while (input.size() >= 2) {
    const auto how = std::to_integer<unsigned>(input[0]);
    const std::size_t length =
        std::min<std::size_t>(std::to_integer<std::size_t>(input[1]), input.size() - 2);
    std::vector<std::byte> frame(input.begin() + 2, input.begin() + 2 + static_cast<std::ptrdiff_t>(length));
    put_cookie(frame);
    Client& client = clients[how >> 7];
    if (!client.say(frame, descriptors(how & 0x7f, client, clients[1 - (how >> 7)]))) return;
    require(!fuzz::nonsense_registered() && fuzz::registered() <= 3 && fuzz::clients() <= 2);
    input = input.subspan(2 + length);
  }
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  world();
  const int before = lowest_free();
  talk(std::as_bytes(std::span(data, size)));
  require(lowest_free() == before);
  require(fuzz::registered() == 0 && fuzz::clients() == 0 && fuzz::readers() == 0);
  require(world().accounts->used().empty() && world().roll.all().empty());
  return 0;
}
