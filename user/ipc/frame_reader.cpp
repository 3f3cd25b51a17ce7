// SPDX-License-Identifier: Apache-2.0
#include "ipc/frame_reader.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <string>
#include <utility>

#include "ipc/scm_rights.h"

namespace sockalarm::ipc {
namespace {

using Outcome = FrameReader::Outcome;

Result<Outcome> failed_read(const Error& error) {
  if (would_block(error)) return Outcome::nothing;
  return fail(error.with_context("receiving from the peer"));
}

Result<Outcome> ended(const FrameDecoder& decoder) {
  if (decoder.between_messages()) return Outcome::end;
  return fail(Error(Errc::malformed_frame, "the peer ended amid a message"));
}

Result<Outcome> fed(const Result<bool>& complete) {
  if (!complete) return fail(complete.error());
  return *complete ? Outcome::message : Outcome::progress;
}

tl::unexpected<Error> too_many_fds(std::size_t wanted) {
  return fail(Error(Errc::message_too_large, "the peer sent more than the " + std::to_string(wanted) +
                                                 " descriptors that were left to the limit"));
}

}  // namespace

Result<Outcome> FrameReader::read(int socket, FrameDecoder& decoder) {
  return decoder.in_header() ? read_header(socket, decoder) : read_payload(socket, decoder);
}

Result<Outcome> FrameReader::look(int socket, const FrameDecoder& decoder) {
  for (;;) {
    std::byte one{};
    const ssize_t size = ::recv(socket, &one, 1, MSG_PEEK | MSG_DONTWAIT);
    if (size > 0) return Outcome::progress;
    if (size == 0) return ended(decoder);
    if (errno != EINTR) return failed_read(Error::from_errno(errno, "recv"));
  }
}

Result<Outcome> FrameReader::read_payload(int socket, FrameDecoder& decoder) {
  const std::size_t wanted = decoder.wanted_bytes();
  if (buffer_.size() < wanted) buffer_.resize(wanted);
  const auto received = receive_with_fds(socket, std::span(buffer_).first(wanted), 0);
  if (!received) return failed_read(received.error());
  if (received->size == 0) return ended(decoder);
  if (received->fds_truncated)  // an honest peer sends them with a header only
    return fail(Error(Errc::malformed_frame, "the peer sent what is no frame: descriptors amid the payload"));
  return fed(decoder.feed(std::span(buffer_).first(received->size), {}));
}

#if SOCKALARM_LINUX

Result<FrameReader> FrameReader::create() { return FrameReader(); }

Result<Outcome> FrameReader::read_header(int socket, FrameDecoder& decoder) {
  HeaderBytes peeked{}, taken{};
  const std::size_t wanted_fds = decoder.wanted_fds();
  auto received =
      receive_with_fds(socket, std::span(peeked).first(decoder.wanted_bytes()), wanted_fds, Take::peek);
  if (!received) return failed_read(received.error());
  if (received->size == 0) return ended(decoder);
  // When the bytes asked for end with a message, Linux' peek (unix_stream_read_generic(), to 6.18 at least)
  // goes on to the next one that has descriptors and installs those, too. They must not be taken for ours,
  // nor waited for.
  bool none_announced = false;
  if (received->size == kHeaderSize) {
    const auto header = parse_header(peeked);
    if (!header) return fail(header.error());
    none_announced = header->fds == 0;
  }
  if (none_announced) received->fds.clear();
  if (received->fds_truncated && !none_announced) {
    if (received->fds.size() == wanted_fds) return too_many_fds(wanted_fds);
    return Outcome::no_room;  // those that came are closed here, the message waits
  }
  const auto consumed = receive_with_fds(socket, std::span(taken).first(received->size), 0);
  if (!consumed) return fail(consumed.error().with_context("taking a message that was there"));
  if (consumed->size != received->size || peeked != taken)
    return fail(Error(Errc::malformed_frame, "somebody else reads from this socket, too"));
  // `fds_truncated` now only says whether descriptors were with the bytes consumed.
  if (!consumed->fds_truncated) received->fds.clear();
  if (consumed->fds_truncated && received->fds.empty())
    return fail(
        Error(Errc::malformed_frame, "the peer sent what is no frame: descriptors that were not announced"));
  return fed(decoder.feed(std::span(taken).first(consumed->size), std::move(received->fds)));
}

#else

bool FrameReader::have_reserve() noexcept {
  if (!reserve_) reserve_.reset(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0));
  if (!reserve_ && errno == EBADF) reserve_.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  return bool(reserve_);
}

Result<FrameReader> FrameReader::create() {
  FrameReader made;
  if (!made.have_reserve()) return fail(Error::from_errno(errno, "keeping a descriptor in reserve"));
  return made;
}

Result<Outcome> FrameReader::read_header(int socket, FrameDecoder& decoder) {
  // The reserve is given up only when there is something to receive.
  const auto there = look(socket, decoder);
  if (!there || *there != Outcome::progress) return there;
  if (!have_reserve()) return Outcome::no_room;
  HeaderBytes bytes{};
  const std::size_t wanted_fds = std::min(decoder.wanted_fds(), kFdsPerFrame);
  reserve_.reset();
  auto received = receive_with_fds(socket, std::span(bytes).first(decoder.wanted_bytes()), wanted_fds);
  have_reserve();
  if (!received) return failed_read(received.error());
  if (received->size == 0) return ended(decoder);
  if (received->fds_truncated && received->fds.size() == wanted_fds) return too_many_fds(wanted_fds);
  if (received->fds_truncated)
    return fail(Error(Errc::descriptors_lost, "another thread took the room that was kept for a descriptor"));
  return fed(decoder.feed(std::span(bytes).first(received->size), std::move(received->fds)));
}

#endif

}  // namespace sockalarm::ipc
