// SPDX-License-Identifier: Apache-2.0
#include "observe/jsonl_sink.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>

#include "observe/record.h"

namespace sockalarm::observe {
namespace {

constexpr auto kTend = std::chrono::seconds(1);

// All of it, or says how much less.
Result<void> write_all(int fd, const std::string& file, std::string_view text, std::size_t& written) {
  written = 0;
  while (written < text.size()) {
    const ssize_t count = ::write(fd, text.data() + written, text.size() - written);
    if (count >= 0)
      written += static_cast<std::size_t>(count);
    else if (errno != EINTR)
      return fail(Error::from_errno(errno, "write() to " + file));
  }
  return {};
}

}  // namespace

Result<void> DescriptorSink::write(const Record& record) {
  std::size_t written = 0;
  // What was cut off stays a line of its own, so that it spoils no other.
  auto result = writer_.write((amid_line_ ? "\n" : "") + record.json + "\n", written);
  if (!result && written > 0) amid_line_ = true;
  if (result) amid_line_ = false;
  return result;
}

Result<std::unique_ptr<RotatingFileSink>> RotatingFileSink::open(Options options) {
  std::unique_ptr<RotatingFileSink> sink(new RotatingFileSink(std::move(options)));
  if (auto opened = sink->reopen(); !opened) return fail(opened.error());
  const auto folder = sink->options_.file.parent_path();
  if (::faccessat(AT_FDCWD, folder.empty() ? "." : folder.c_str(), W_OK | X_OK, AT_EACCESS) != 0)
    return fail(Error::from_errno(errno, "the folder of " + sink->options_.file.string() +
                                             ", in which files are renamed, so it has to be writable"));
  return sink;
}

Result<void> RotatingFileSink::reopen() {
  constexpr mode_t kMode = 0640;
  // Of a pipe without a reader that would wait, but for O_NONBLOCK.
  UniqueFd opened(
      ::open(options_.file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, kMode));
  struct stat status{};
  if (!opened || ::fstat(opened.get(), &status) != 0)
    return fail(Error::from_errno(errno, options_.file.string()));
  if (!S_ISREG(status.st_mode))
    return fail(Error(Errc::invalid_options,
                      options_.file.string() + " is not a file that could rotate; give a regular one"));
  fd_ = std::move(opened);
  size_ = static_cast<std::uint64_t>(status.st_size);
  return {};
}

// To the file of that name, if it is another one by now.
Result<void> RotatingFileSink::follow_name() {
  struct stat named{}, open{};
  if (!fd_ || ::stat(options_.file.c_str(), &named) != 0 || ::fstat(fd_.get(), &open) != 0 ||
      named.st_dev != open.st_dev || named.st_ino != open.st_ino)
    return reopen();
  size_ = static_cast<std::uint64_t>(open.st_size);
  return {};
}

// Those up to the first that is missing move, from behind: what an attempt that failed has moved stays there.
Result<void> RotatingFileSink::rotate() {
  const auto numbered = [&](unsigned number) {
    return options_.file.string() + (number == 0 ? "" : "." + std::to_string(number));
  };
  const auto fails = [&](const std::error_code& error, const std::string& what) {
    return fail(Error(error, options_.file.string() + " grows beyond its " +
                                 std::to_string(options_.max_bytes) + " bytes, for " + what +
                                 " failed: " + error.message() + "; see to its folder"));
  };
  std::error_code error;
  if (options_.keep == 0) {
    std::filesystem::remove(options_.file, error);
    return error ? fails(error, "removing it") : reopen();
  }
  unsigned last = 1;
  while (last < options_.keep &&
         std::filesystem::exists(std::filesystem::symlink_status(numbered(last), error)))
    ++last;
  for (; last > 0; --last) {
    std::filesystem::rename(numbered(last - 1), numbered(last), error);
    if (error) return fails(error, "renaming " + numbered(last - 1) + " to " + numbered(last));
  }
  return reopen();
}

// As long as there is a file, what fails here costs no record: it is told of, and tried again later.
void RotatingFileSink::tend(std::size_t coming) {
  tended_ = Clock::now();
  auto done = follow_name();
  if (done && too_long_with(coming)) done = rotate();
  if (!done && !failing_ && options_.on_error) options_.on_error(done.error());
  failing_ = !done;
}

Result<void> RotatingFileSink::write(const Record& record) {
  const std::string line = record.json + "\n";
  if (!fd_)
    if (auto opened = reopen(); !opened) return opened;
  if ((too_long_with(line.size()) && !failing_) || Clock::now() - tended_ >= kTend) tend(line.size());
  std::size_t written = 0;
  auto result = write_all(fd_.get(), options_.file.string(), line, written);
  if (result) {
    size_ += written;
  } else if (struct stat status{};
             written > 0 &&
             (::fstat(fd_.get(), &status) != 0 ||  // somebody may have cut it meanwhile
              ::ftruncate(fd_.get(), std::max<off_t>(status.st_size - static_cast<off_t>(written), 0)) !=
                  0)) {
    fd_.reset();  // half a line stays; its size is asked for anew
  }
  return result;
}

Result<void> RotatingFileSink::flush() {
  if (fd_) tend(0);
  return {};
}

Result<void> JournalSink::connect() {
  const std::string path = path_.string();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return fail(Error::from_errno(ENAMETOOLONG, "the journal, " + path));
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  UniqueFd made(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!made || ::connect(made.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return fail(Error::from_errno(errno, "the journal, " + path));
  fd_ = std::move(made);
  return {};
}

// A datagram of lines FIELD=VALUE: https://systemd.io/JOURNAL_NATIVE_PROTOCOL. No value has a line's end in
// it. Of a connected socket poll(2) says when the journal has room.
Result<void> JournalSink::write(const Record& record) {
  const std::string message = "MESSAGE=" + record.json + "\nPRIORITY=6\nSYSLOG_IDENTIFIER=sockalarmd" +
                              "\nSOCKALARM_EVENT_ID=" + record.id +
                              "\nSOCKALARM_CAUSE=" + std::string(text(record.cause)) + "\n";
  for (bool fresh = false;;) {
    if (!fd_) {  // or the journal has begun a new socket
      if (auto connected = connect(); !connected) return connected;
      fresh = true;
    }
    if (auto ready = stop_.wait_writable(fd_.get()); !ready) return ready;
    if (::send(fd_.get(), message.data(), message.size(), MSG_NOSIGNAL) >= 0) return {};
    const int error = errno;
    if (error == EAGAIN || error == EINTR) continue;
    fd_.reset();
    if (fresh) return fail(Error::from_errno(error, "the journal, " + path_.string()));
  }
}

}  // namespace sockalarm::observe
