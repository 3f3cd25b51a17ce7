// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/unique_fd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>

#include "observe/sink.h"
#include "observe/stoppable_writer.h"

namespace sockalarm::observe {

// A JSON object per line to a descriptor, as standard output. Whoever reads a pipe sees whole lines up to
// PIPE_BUF.
class DescriptorSink final : public Sink {
 public:
  explicit DescriptorSink(UniqueFd fd) : writer_(std::move(fd)) {}
  Result<void> write(const Record& record) override;
  Result<void> flush() override { return {}; }
  void stop() noexcept override { writer_.stop(); }

 private:
  StoppableWriter writer_;
  bool amid_line_ = false;  // the last write stopped there
};

// The same to a file that becomes FILE.1, FILE.1 FILE.2 and so on before it grows beyond `max_bytes`; the one
// beyond `keep` goes. A line is never parted. Where that fails the file grows on. Somebody else may rename,
// remove or cut the file, as logrotate does: a second later, or with the next flush(), lines go to the one of
// that name.
class RotatingFileSink final : public Sink {
 public:
  struct Options {
    std::filesystem::path file;
    std::uint64_t max_bytes = 64ULL << 20;
    unsigned keep = 4;  // beside the current one
    // Of what fails without a record being lost; once per row of failures. By whoever writes.
    std::function<void(const Error&)> on_error{};
  };
  // An error also: the folder cannot be written to, so nothing could be renamed.
  static Result<std::unique_ptr<RotatingFileSink>> open(Options options);

  Result<void> write(const Record& record) override;
  Result<void> flush() override;

 private:
  using Clock = std::chrono::steady_clock;

  explicit RotatingFileSink(Options options) : options_(std::move(options)) {}
  bool too_long_with(std::size_t coming) const noexcept {
    return size_ > 0 && size_ + coming > options_.max_bytes;
  }
  Result<void> reopen();
  Result<void> follow_name();
  Result<void> rotate();
  void tend(std::size_t coming);

  const Options options_;
  UniqueFd fd_;
  std::uint64_t size_ = 0;
  Clock::time_point tended_{};
  bool failing_ = false;  // tend() has told why
};

// The journal of systemd: MESSAGE is the object, SOCKALARM_EVENT_ID and SOCKALARM_CAUSE are fields to search
// by. By the journal's protocol and not by libsystemd, which waits for a journal that hangs without an end.
class JournalSink final : public Sink {
 public:
  explicit JournalSink(std::filesystem::path socket = "/run/systemd/journal/socket")
      : path_(std::move(socket)) {}
  Result<void> write(const Record& record) override;
  Result<void> flush() override { return {}; }
  void stop() noexcept override { stop_.stop(); }

 private:
  Result<void> connect();

  const std::filesystem::path path_;
  UniqueFd fd_;
  StopSignal stop_;
};

}  // namespace sockalarm::observe
