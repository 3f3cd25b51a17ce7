// SPDX-License-Identifier: Apache-2.0
#include "observe/spool_format.h"

#include <unistd.h>

#include <cerrno>

namespace sockalarm::observe::spool_format {

Result<std::size_t> read_at(int fd, char* into, std::size_t size, std::uint64_t offset) {
  std::size_t done = 0;
  while (done < size) {
    const ssize_t count = ::pread(fd, into + done, size - done, static_cast<off_t>(offset + done));
    if (count == 0) break;
    if (count > 0)
      done += static_cast<std::size_t>(count);
    else if (errno != EINTR)
      return fail(Error::from_errno(errno, "pread() of the spool"));
  }
  return done;
}

Result<std::optional<std::string>> read_frame(int fd, std::uint64_t offset, std::uint64_t number) {
  Frame frame;
  const auto whole = read_whole(fd, frame, offset);
  if (!whole) return fail(whole.error());
  if (!*whole || frame.length > kLongestSegment) return std::nullopt;
  std::string bytes(frame.length, '\0');
  const auto size = read_at(fd, bytes.data(), bytes.size(), offset + sizeof frame);
  if (!size) return fail(size.error());
  if (*size != bytes.size() || frame.crc != frame_crc(number, bytes)) return std::nullopt;
  return bytes;
}

}  // namespace sockalarm::observe::spool_format
