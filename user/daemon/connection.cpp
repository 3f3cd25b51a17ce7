// SPDX-License-Identifier: Apache-2.0
#include "daemon/connection.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <thread>
#include <utility>

#include "core/bpf_programs.h"
#include "daemon/status.h"

namespace sockalarm::daemon {
namespace {

constexpr std::chrono::seconds kReading{1};  // a status, which may be longer than what a socket holds
constexpr int kFairPart = 64;  // frames at a time, then it is the turn of others of the same user

Error wrong(int code, const std::string& what) {
  return Error(std::error_code(code, std::system_category()), what);
}

int option(int fd, int name) noexcept {
  int value = -1;
  socklen_t length = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, name, &value, &length) == 0 ? value : -1;
}

// Asks only what the kernel answers without waiting for anybody: fstat(2), for one, would ask a file system.
Result<std::uint64_t> cookie_of_tcp(int fd) {
  const int family = option(fd, SO_DOMAIN);
  if (family < 0) return fail(wrong(ENOTSOCK, "the descriptor is no socket"));
  if ((family != AF_INET && family != AF_INET6) || option(fd, SO_TYPE) != SOCK_STREAM ||
      option(fd, SO_PROTOCOL) != IPPROTO_TCP)
    return fail(wrong(EPROTONOSUPPORT, "only plain TCP sockets are watched"));
  if (option(fd, SO_ACCEPTCONN) != 0) return fail(wrong(EINVAL, "a listening socket has no peer"));
  std::uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  if (::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) != 0 || cookie == 0)
    return fail(wrong(EOPNOTSUPP, "the socket has no cookie"));
  return cookie;
}

}  // namespace

Connection::Connection(Shared& shared, Pace& pace, UniqueFd socket, Peer peer, Charge charge,
                       FindSurvivor find_survivor)
    : shared_(shared),
      pace_(pace),
      socket_(std::move(socket)),
      peer_(std::move(peer)),
      charge_(std::move(charge)),
      find_survivor_(std::move(find_survivor)) {}

std::optional<std::string> Connection::serve() {
  alignas(8) std::array<std::byte, ipc::kLongestRequest> buffer;
  for (int i = 0; i < kFairPart; ++i) {
    ipc::Frame frame;
    switch (ipc::receive_frame(socket_.get(), buffer, frame)) {
      case ipc::Arrival::nothing:
        return std::nullopt;
      case ipc::Arrival::closed:
        return "";
      case ipc::Arrival::violation:
        return "more than one descriptor, or a frame that is too long";
      case ipc::Arrival::frame:
        break;
    }
    if (auto refusal = take(std::move(frame))) return refusal;
  }
  return std::nullopt;
}

Connection::Refusal Connection::take(ipc::Frame frame) {
  ipc::Header header{};
  if (frame.bytes.size() < sizeof header) return "a frame without a header";
  std::memcpy(&header, frame.bytes.data(), sizeof header);
  const bool carries =
      header.kind == ipc::Kind::table || header.kind == ipc::Kind::ring || header.kind == ipc::Kind::watch;
  if (frame.descriptor && !carries) return "a descriptor in a frame that has none";
  switch (state_) {
    case State::silent: {
      const auto hello = frame.as<ipc::Hello>();
      if (!hello || hello->header.kind != ipc::Kind::hello || hello->magic != ipc::kMagic) return "no HELLO";
      return greet(*hello);
    }
    case State::awaits_table:
      if (header.kind != ipc::Kind::table || !frame.descriptor) return "no TABLE";
      offered_table_ = std::move(frame.descriptor);
      state_ = State::awaits_ring;
      return std::nullopt;
    case State::awaits_ring:
      if (header.kind != ipc::Kind::ring || !frame.descriptor) return "no RING";
      return resume(std::move(frame.descriptor));
    case State::serving:
      break;
  }
  return answer_to(header.kind, frame);
}

Connection::Refusal Connection::greet(const ipc::Hello& hello) {
  hello_id_ = hello.header.id;
  const std::uint16_t version = std::min(hello.version, ipc::kVersion);
  if (version < hello.least_version || version < ipc::kLeastVersion) {
    std::string why = "versions " + std::to_string(hello.least_version) + " to " +
                      std::to_string(hello.version) + " are not spoken here, but " +
                      std::to_string(ipc::kLeastVersion) + " to " + std::to_string(ipc::kVersion);
    if (auto refusal = reply(hello_id_, fail(wrong(EPROTONOSUPPORT, why)))) return refusal;
    return why;
  }
  if (hello.resume != 0) {
    state_ = State::awaits_table;
    return std::nullopt;
  }
  if (hello.slots == 0) return welcome(false);
  return make_client(hello.slots, hello.ring_bytes);
}

sockalarm_client Connection::facts(const MapFacts& table, const MapFacts& ring) const noexcept {
  sockalarm_client facts{};
  facts.flags = SOCKALARM_CLIENT_USED | SOCKALARM_CLIENT_CHECK_UID;
  facts.uid = peer_.uid;
  facts.gid = peer_.gid;
  // No thread is signalled where its number here may not be the host's.
  facts.tgid = in_initial_pid_namespace() ? static_cast<std::uint32_t>(peer_.pid) : 0;
  facts.started = peer_.started;
  facts.slots = table.entries;
  facts.ring_bytes = ring.entries;
  facts.table_id = table.id;
  facts.ring_id = ring.id;
  return facts;
}

Connection::Refusal Connection::make_client(std::uint32_t slots, std::uint32_t ring_bytes) {
  const auto page = static_cast<std::uint32_t>(::getpagesize());
  slots = std::clamp(slots, 2U, shared_.slots.load());
  ring_bytes = std::bit_floor(std::clamp(ring_bytes, page, std::max(page, shared_.ring_bytes.load())));
  const auto refuse = [&](const Error& error) -> Refusal {
    if (auto refusal = reply(hello_id_, fail(error))) return refusal;
    return error.message();
  };
  auto memory = Client::reserve(shared_, peer_.uid, slots, ring_bytes);
  if (!memory) return refuse(memory.error());
  // Others of the same user wait, too.
  std::this_thread::sleep_for(
      pace_.take(memory->amount(), shared_.accounts->limits().memory, std::chrono::steady_clock::now()));
  auto table = detail::make_table(slots);
  if (!table) return refuse(table.error());
  auto ring = detail::make_ring(ring_bytes);
  if (!ring) return refuse(ring.error());
  const auto table_facts = map_facts(table->get()), ring_facts = map_facts(ring->get());
  if (!table_facts) return refuse(table_facts.error());
  if (!ring_facts) return refuse(ring_facts.error());
  auto client =
      Client::add(shared_, facts(*table_facts, *ring_facts), table->get(), ring->get(), std::move(*memory));
  if (!client) return refuse(client.error());
  Result<UniqueFd> introduction;
  if (shared_.kernel.task_work()) introduction = detail::make_introduction();
  if (!introduction) return refuse(introduction.error());
  client_ = std::move(*client);
  if (auto refusal = welcome(false)) return refusal;
  for (const auto& [kind, fd] : {std::pair{ipc::Kind::give_table, table->get()},
                                 {ipc::Kind::give_ring, ring->get()},
                                 {ipc::Kind::give_introduction, introduction->get()}}) {
    if (fd < 0) continue;
    if (auto refusal = send(ipc::send_frame(socket_.get(), ipc::Header{kind, hello_id_}, fd))) return refusal;
  }
  return std::nullopt;
}

// It shows the table and the ring that it has: only the daemon makes such maps and gives each pair to one
// client, so whoever has them, in the process that had them, is that client. If no daemon remembers it, they
// serve anew.
Connection::Refusal Connection::resume(UniqueFd ring) {
  const UniqueFd table = std::move(offered_table_);
  const auto refuse = [&](const Error& error) -> Refusal {
    if (auto refusal = reply(hello_id_, fail(error))) return refusal;
    return error.message();
  };
  const auto table_facts = map_facts(table.get()), ring_facts = map_facts(ring.get());
  if (!table_facts || !is_table(*table_facts)) return refuse(wrong(EINVAL, "that is no table of ours"));
  if (!ring_facts || !is_ring(*ring_facts)) return refuse(wrong(EINVAL, "that is no ring of ours"));
  client_ = find_survivor_(peer_, table_facts->id, ring_facts->id);
  if (client_) {
    ++shared_.roll.resumed;
    client_->set_connected(true);  // last: who sees that counts on the rest
    return welcome(true);
  }
  if (table_facts->entries > shared_.slots || ring_facts->entries > shared_.ring_bytes)
    return refuse(wrong(EDQUOT, "table or ring are longer than they may be by now"));
  auto memory = Client::reserve(shared_, peer_.uid, table_facts->entries, ring_facts->entries);
  if (!memory) return refuse(memory.error());
  auto client =
      Client::add(shared_, facts(*table_facts, *ring_facts), table.get(), ring.get(), std::move(*memory));
  if (!client) return refuse(client.error());
  client_ = std::move(*client);
  return welcome(false);
}

Connection::Refusal Connection::welcome(bool resumed) {
  state_ = State::serving;
  const ipc::Welcome frame{{ipc::Kind::welcome, hello_id_},
                           ipc::kVersion,
                           ipc::kAbi,
                           client_ ? client_->facts().slots : 0,
                           client_ ? client_->facts().ring_bytes : 0,
                           resumed ? 1U : 0U,
                           shared_.kernel.task_work() ? 1U : 0U};
  return send(ipc::send_frame(socket_.get(), frame));
}

Connection::Refusal Connection::answer_to(ipc::Kind kind, ipc::Frame& frame) {
  switch (kind) {
    case ipc::Kind::watch: {
      const auto request = frame.as<ipc::Watch>();
      if (!request) break;
      // Answered when the descriptor has been closed, so that it keeps no connection open behind its owner's
      // back.
      const auto done = watch(*request, std::move(frame.descriptor));
      return reply(request->header.id, done);
    }
    case ipc::Kind::unwatch:
      if (const auto request = frame.as<ipc::Unwatch>()) {
        if (client_) client_->unwatch(request->cookie);
        return std::nullopt;
      }
      break;
    case ipc::Kind::reads:
      if (const auto request = frame.as<ipc::Reads>()) {
        Result<void> done = fail(wrong(ENOTCONN, "this connection has no table"));
        if (client_) done = client_->wait_for_reads(request->on != 0);
        return reply(request->header.id, done);
      }
      break;
    case ipc::Kind::status:
      if (const auto request = frame.as<ipc::Header>()) return tell_status(request->id);
      break;
    case ipc::Kind::missed:
      if (const auto request = frame.as<ipc::Header>())
        return send(ipc::send_frame(socket_.get(),
                                    ipc::Count{{ipc::Kind::count, request->id}, shared_.kernel.missed()}));
      break;
    default:
      return "a frame of unknown kind " + std::to_string(static_cast<std::uint32_t>(kind));
  }
  return "a frame of the wrong length, kind " + std::to_string(static_cast<std::uint32_t>(kind));
}

Result<void> Connection::watch(const ipc::Watch& frame, UniqueFd socket) {
  if (!client_) return fail(wrong(ENOTCONN, "this connection has no table"));
  if (!socket) return fail(wrong(EBADF, "WATCH without a descriptor"));
  const auto cookie = cookie_of_tcp(socket.get());
  if (!cookie) return fail(cookie.error());
  if (*cookie != frame.cookie)
    return fail(wrong(ESTALE, "the descriptor is another socket than the one that is meant"));
  return client_->watch(*cookie, frame.slot, frame.generation);
}

Connection::Refusal Connection::tell_status(std::uint32_t id) {
  const std::string text = status_text(shared_, peer_.uid);
  const auto until = std::chrono::steady_clock::now() + kReading;
  for (std::size_t at = 0; at == 0 || at < text.size(); at += ipc::Text{}.part.size()) {
    ipc::Text frame{};
    const std::size_t length = std::min(text.size() - at, frame.part.size());
    frame.header = {ipc::Kind::text, id};
    frame.more = at + length < text.size() ? 1 : 0;
    frame.length = static_cast<std::uint32_t>(length);
    text.copy(frame.part.data(), length, at);
    int failed = 0;
    while ((failed = ipc::send_frame(socket_.get(), frame)) == EAGAIN && waits_for_room(until)) {
    }
    if (auto refusal = send(failed)) return refusal;
  }
  return std::nullopt;
}

Connection::Refusal Connection::reply(std::uint32_t id, const Result<void>& done) {
  ipc::Reply frame{};
  frame.header = {ipc::Kind::reply, id};
  if (!done) {
    const int code =
        done.error().code().category() == std::system_category() ? done.error().code().value() : EINVAL;
    frame.error = static_cast<std::uint32_t>(code);
    frame.length =
        static_cast<std::uint32_t>(done.error().message().copy(frame.message.data(), frame.message.size()));
  }
  return send(ipc::send_frame(socket_.get(), frame));
}

// Others of the same user wait, too.
bool Connection::waits_for_room(std::chrono::steady_clock::time_point until) const noexcept {
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
  pollfd entry{socket_.get(), POLLOUT, 0};
  return left > 0 && ::poll(&entry, 1, static_cast<int>(left)) > 0;
}

Connection::Refusal Connection::send(int failed) const {
  if (failed == 0) return std::nullopt;
  if (failed == EAGAIN) return "it does not read its answers";
  return "";  // it has gone
}

}  // namespace sockalarm::daemon
