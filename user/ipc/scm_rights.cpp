// SPDX-License-Identifier: Apache-2.0
#include "ipc/scm_rights.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

namespace sockalarm::ipc {
namespace {

#ifdef MSG_NOSIGNAL
constexpr int kSendFlags = MSG_DONTWAIT | MSG_NOSIGNAL;
#else
constexpr int kSendFlags = MSG_DONTWAIT;  // macOS: whoever owns the socket has set SO_NOSIGPIPE
#endif
#ifdef MSG_CMSG_CLOEXEC
constexpr int kReceiveFlags = MSG_DONTWAIT | MSG_CMSG_CLOEXEC;
#else
constexpr int kReceiveFlags = MSG_DONTWAIT;
#endif

// Aligned for cmsghdr, large enough for all a message may carry.
struct ControlBuffer {
  alignas(cmsghdr) std::array<unsigned char, CMSG_SPACE(kMaxFdsPerSend * sizeof(int))> bytes;
};

// Does this control message consist of descriptors that the kernel has installed?
bool carries_fds(const cmsghdr& header) {
  if (header.cmsg_level != SOL_SOCKET) return false;
#if SOCKALARM_LINUX
  // A peer that holds a duplicate of our socket may set SO_PASSPIDFD (Linux 6.5) on it.
  constexpr int kScmPidfd = 4;
  if (header.cmsg_type == kScmPidfd) return true;
#endif
  return header.cmsg_type == SCM_RIGHTS;
}

void collect(msghdr& message, std::size_t max_fds, Received& received) {
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (!carries_fds(*header) || header->cmsg_len < CMSG_LEN(0)) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int number = -1;
      std::memcpy(&number, CMSG_DATA(header) + i * sizeof(int), sizeof number);
      UniqueFd fd(number);
      if (!fd) continue;  // SCM_PIDFD may hold an error
      if (header->cmsg_type != SCM_RIGHTS) continue;
      if (received.fds.size() == max_fds) {
        received.fds_truncated = true;  // alignment left room for one more than asked for
        continue;
      }
#ifndef MSG_CMSG_CLOEXEC
      ::fcntl(fd.get(), F_SETFD, FD_CLOEXEC);
#endif
      received.fds.push_back(std::move(fd));
    }
  }
}

}  // namespace

Result<std::size_t> send_with_fds(int socket, std::span<const iovec> bytes, std::span<const int> fds) {
  if (fds.size() > kMaxFdsPerSend)
    return fail(Error::from_errno(EINVAL, "sending " + std::to_string(fds.size()) +
                                              " descriptors at once, at most " +
                                              std::to_string(kMaxFdsPerSend) + " are possible"));
  ControlBuffer control;
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(bytes.data());  // sendmsg(2) only reads it
  message.msg_iovlen = static_cast<decltype(message.msg_iovlen)>(bytes.size());
  if (!fds.empty()) {
    message.msg_control = control.bytes.data();
    message.msg_controllen = static_cast<decltype(message.msg_controllen)>(CMSG_SPACE(fds.size_bytes()));
    std::memset(control.bytes.data(), 0, CMSG_SPACE(fds.size_bytes()));
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = static_cast<decltype(header->cmsg_len)>(CMSG_LEN(fds.size_bytes()));
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  for (;;) {
    const ssize_t sent = ::sendmsg(socket, &message, kSendFlags);
    if (sent >= 0) return static_cast<std::size_t>(sent);
    if (errno != EINTR) return fail(Error::from_errno(errno, "sendmsg"));
  }
}

Result<std::size_t> send_with_fds(int socket, std::span<const std::byte> bytes, std::span<const int> fds) {
  const iovec whole{const_cast<std::byte*>(bytes.data()), bytes.size()};  // as above
  return send_with_fds(socket, std::span(&whole, 1), fds);
}

Result<Received> receive_with_fds(int socket, std::span<std::byte> buffer, std::size_t max_fds, Take take) {
  ControlBuffer control;
  max_fds = std::min(max_fds, kMaxFdsPerSend);
  Received received;
  received.fds.reserve(max_fds);  // before the kernel has given us anything that an exception would leak
  iovec whole{buffer.data(), buffer.size()};
  for (;;) {
    msghdr message{};
    message.msg_iov = &whole;
    message.msg_iovlen = 1;
    if (max_fds > 0) {
      message.msg_control = control.bytes.data();
      // CMSG_LEN, not CMSG_SPACE: Linux fills padding with one descriptor more.
      message.msg_controllen = static_cast<decltype(message.msg_controllen)>(CMSG_LEN(max_fds * sizeof(int)));
    }
    const ssize_t size = ::recvmsg(socket, &message, kReceiveFlags | (take == Take::peek ? MSG_PEEK : 0));
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) return fail(Error::from_errno(errno, "recvmsg"));
    received.size = static_cast<std::size_t>(size);
    received.fds_truncated = (message.msg_flags & MSG_CTRUNC) != 0;
    received.data_truncated = (message.msg_flags & MSG_TRUNC) != 0;
    if (max_fds > 0) collect(message, max_fds, received);
    return received;
  }
}

bool would_block(const Error& error) noexcept {
  return error.code() == std::error_code(EAGAIN, std::system_category()) ||
         error.code() == std::error_code(EWOULDBLOCK, std::system_category());
}

bool is_temporary(const Error& error) noexcept {
  if (would_block(error)) return true;
  constexpr std::array kTemporary{ENOBUFS, ENOMEM, EMFILE, ENFILE, ETOOMANYREFS};
  return error.code().category() == std::system_category() &&
         std::find(kTemporary.begin(), kTemporary.end(), error.code().value()) != kTemporary.end();
}

}  // namespace sockalarm::ipc
