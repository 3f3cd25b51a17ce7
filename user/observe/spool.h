// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "observe/losses.h"

namespace sockalarm::observe {

// A queue on the disk, for what must not be lost while nobody takes it. What append() has taken is read
// again, also after a kill -9, until it is acknowledged or a cap drops it, which is counted; after the host
// lost its power, what was appended before the last sync(). At least once: what was acknowledged shortly
// before may come again.
//
// A folder of segments named after the number of their first record. Each has a header, then per record its
// length, a CRC-32C and the bytes. A segment that was not ended in order may have a torn record at its end,
// which append() has not confirmed; it is left out, and a restart begins a new segment. A file `acknowledged`
// has the number up to which all is done. One process at a time (a lock says so), any thread.
class Spool {
 public:
  struct Options {
    std::filesystem::path folder;
    std::uint64_t max_bytes = 256ULL << 20;  // the oldest segment goes beyond this
    std::chrono::seconds max_age{24 *
                                 3600};  // of a segment: up to an eighth more than that of its last record
    // Of a damaged file, what became of it; by whoever calls, who must not call the spool from it.
    std::function<void(const Error&)> on_damage{};
  };
  struct Entry {
    std::uint64_t number;  // ascending
    std::string bytes;
  };
  struct State {
    std::uint64_t bytes = 0;
    std::uint64_t pending = 0;  // records not acknowledged; after a restart those that are in the files
    std::chrono::nanoseconds oldest{};  // age of the oldest segment with such a record
    std::uint64_t read_errors = 0;      // of the disk, not of what stands there: read() tries again
  };

  // Makes the folder; continues where another process stopped. A file that the disk cannot read is an error:
  // it may be whole. `losses` outlives the spool.
  static Result<std::unique_ptr<Spool>> open(Options options, Losses& losses);
  Spool(const Spool&) = delete;
  Spool& operator=(const Spool&) = delete;
  ~Spool();

  // An error: not taken, counted as spool_write, what was there before is whole. The longest is an eighth of
  // max_bytes, or 16 MiB. On a full disk what is acknowledged makes room.
  Result<std::uint64_t> append(std::string_view bytes);
  // What append() has taken before, to the disk. append() does not wait for it.
  Result<void> sync();

  // The next ones after those that were read, oldest first; none: there are no more now, or they cannot be
  // read now.
  std::vector<Entry> read(std::size_t at_most);
  // In any order; twice does no harm.
  void acknowledge(std::uint64_t number);

  void drop_too_old();  // append() does so as well
  // As after the last call of the others that has ended: it waits for none of them, nor for the disk.
  State state() const;

 private:
  struct Segment {
    std::uint64_t first = 0, count = 0;  // of records
    std::uint64_t size = 0;              // bytes of whole records and the header
    std::chrono::nanoseconds created{};  // by the clock of ages(): may be negative
    std::filesystem::path file;
    std::uint64_t end() const noexcept { return first + count; }
  };

  explicit Spool(Options options, Losses& losses);
  Result<void> take_lock();
  Result<void> recover();
  Result<void> recover_segment(const std::filesystem::path& file) REQUIRES(mutex_);
  Result<void> begin_segment() REQUIRES(mutex_);
  Result<std::uint64_t> append_locked(std::string_view bytes) REQUIRES(mutex_);
  Result<std::uint64_t> write_record(std::string_view bytes) REQUIRES(mutex_);
  bool free_acknowledged() REQUIRES(mutex_);
  void drop_oldest(Losses::Count& count) REQUIRES(mutex_);
  void remove_oldest() REQUIRES(mutex_);
  void apply_caps(std::uint64_t incoming) REQUIRES(mutex_);
  void settle() REQUIRES(mutex_);
  bool open_for_reading() REQUIRES(mutex_);
  std::optional<std::string> read_next() REQUIRES(mutex_);
  void give_up_segment() REQUIRES(mutex_);
  void tell_damage(const std::filesystem::path& file, const std::string& what) const;
  void note_state() REQUIRES(mutex_);

  const Options options_;
  const std::uint64_t segment_bytes_;
  Losses& losses_;
  Mutex mutex_;  // held over system calls, for as long as the disk takes
  UniqueFd lock_;
  UniqueFd acknowledged_file_ GUARDED_BY(mutex_);
  UniqueFd writing_ GUARDED_BY(mutex_), reading_ GUARDED_BY(mutex_);
  std::deque<Segment> segments_ GUARDED_BY(mutex_);  // oldest first; writing_ is the last one, if it is open
  std::uint64_t next_ GUARDED_BY(mutex_) = 1;        // the number of the next record
  std::uint64_t acknowledged_ GUARDED_BY(mutex_) = 0;    // all up to this one
  std::uint64_t synced_ GUARDED_BY(mutex_) = 0;          // the same
  std::set<std::uint64_t> beyond_ GUARDED_BY(mutex_);    // acknowledged though an older one is not
  std::uint64_t read_next_ GUARDED_BY(mutex_) = 1;       // the number read() goes on with
  std::uint64_t reading_first_ GUARDED_BY(mutex_) = 0;   // the segment that reading_ is open on
  std::uint64_t reading_number_ GUARDED_BY(mutex_) = 0;  // the number of the record at read_offset_
  std::uint64_t read_offset_ GUARDED_BY(mutex_) = 0;
  std::uint64_t read_errors_ GUARDED_BY(mutex_) = 0;

  // What state() says. Whoever has mutex_ writes it, by note_state(), before letting go of that; whoever asks
  // reads it. Its mutex is taken last and held over no system call.
  mutable Mutex state_mutex_;
  State state_ GUARDED_BY(state_mutex_);  // but for the age
  std::optional<std::chrono::nanoseconds> oldest_created_ GUARDED_BY(state_mutex_);
};

}  // namespace sockalarm::observe
