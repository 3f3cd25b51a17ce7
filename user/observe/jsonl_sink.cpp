// SPDX-License-Identifier: Apache-2.0
#include "observe/jsonl_sink.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

#include <cerrno>
#include <string_view>

#include "observe/record.h"

namespace sockalarm::observe {
namespace {

// All of it, or says how much less.
Result<void> write_all(int fd, std::string_view text, std::size_t& written) {
  written = 0;
  while (written < text.size()) {
    const ssize_t count = ::write(fd, text.data() + written, text.size() - written);
    if (count >= 0) {
      written += static_cast<std::size_t>(count);
    } else if (errno == EAGAIN) {  // a standard output that another program made non-blocking
      pollfd ready{fd, POLLOUT, 0};
      ::poll(&ready, 1, -1);
    } else if (errno != EINTR) {
      return fail(Error::from_errno(errno, "write()"));
    }
  }
  return {};
}

}  // namespace

Result<void> DescriptorSink::write(const Record& record) {
  std::size_t written = 0;
  // What was cut off stays a line of its own, so that it spoils no other.
  auto result = write_all(fd_.get(), (amid_line_ ? "\n" : "") + record.json + "\n", written);
  if (!result && written > 0) amid_line_ = true;
  if (result) amid_line_ = false;
  return result;
}

Result<std::unique_ptr<RotatingFileSink>> RotatingFileSink::open(Options options) {
  std::unique_ptr<RotatingFileSink> sink(new RotatingFileSink(std::move(options)));
  if (auto opened = sink->reopen(); !opened) return fail(opened.error());
  return sink;
}

Result<void> RotatingFileSink::reopen() {
  constexpr mode_t kMode = 0640;
  fd_ = UniqueFd(::open(options_.file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, kMode));
  struct stat status{};
  if (!fd_ || ::fstat(fd_.get(), &status) != 0) return fail(Error::from_errno(errno, options_.file.string()));
  size_ = static_cast<std::uint64_t>(status.st_size);
  return {};
}

Result<void> RotatingFileSink::rotate() {
  const auto numbered = [&](unsigned number) {
    return options_.file.string() + "." + std::to_string(number);
  };
  std::error_code error;
  for (unsigned number = options_.keep; number > 1; --number)
    std::filesystem::rename(numbered(number - 1), numbered(number), error);  // the first times there is none
  if (options_.keep > 0)
    std::filesystem::rename(options_.file, numbered(1), error);
  else
    std::filesystem::remove(options_.file, error);
  if (error) return fail(Error(error, "rotating " + options_.file.string()));
  return reopen();
}

Result<void> RotatingFileSink::write(const Record& record) {
  const std::string line = record.json + "\n";
  if (!fd_)
    if (auto opened = reopen(); !opened) return opened;
  if (size_ > 0 && size_ + line.size() > options_.max_bytes)
    if (auto rotated = rotate(); !rotated) return rotated;
  std::size_t written = 0;
  auto result = write_all(fd_.get(), line, written);
  if (result) {
    size_ += written;
  } else if (written > 0 && ::ftruncate(fd_.get(), static_cast<off_t>(size_)) != 0) {
    fd_.reset();  // half a line stays; its size is asked for anew
  }
  return result;
}

Result<void> JournalSink::write(const Record& record) {
  const std::string cause(text(record.cause));
  const int result =
      ::sd_journal_send("MESSAGE=%s", record.json.c_str(), "PRIORITY=6", "SOCKALARM_EVENT_ID=%s",
                        record.id.c_str(), "SOCKALARM_CAUSE=%s", cause.c_str(), nullptr);
  if (result < 0) return fail(Error::from_errno(-result, "sd_journal_send()"));
  return {};
}

}  // namespace sockalarm::observe
