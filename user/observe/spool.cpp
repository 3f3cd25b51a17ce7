// SPDX-License-Identifier: Apache-2.0
#include "observe/spool.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <optional>
#include <sstream>

#include "observe/spool_format.h"

namespace sockalarm::observe {
namespace {

using namespace spool_format;
using std::chrono::nanoseconds;

constexpr std::string_view kSuffix = ".spool";
constexpr std::uint64_t kParts = 8;  // segments in a full spool, at least
constexpr std::uint64_t kShortestSegment = 8192;
constexpr mode_t kMode = 0600;
constexpr std::string_view kOwnFolder = "; a spool needs a local folder that this process can write to";

nanoseconds now_by(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return std::chrono::seconds(now.tv_sec) + nanoseconds(now.tv_nsec);
}

std::array<char, 36> boot_id() {
  std::array<char, 36> id{};
  std::ifstream("/proc/sys/kernel/random/boot_id").read(id.data(), id.size());
  return id;
}

// When it was made, by CLOCK_BOOTTIME. Of another boot only the clock can tell: one that went back makes the
// segment as young as can be.
nanoseconds created_by_boottime(const Header& header) {
  if (header.boot == boot_id()) return nanoseconds(header.created_since_boot);
  const nanoseconds age = now_by(CLOCK_REALTIME) - nanoseconds(header.created);
  return now_by(CLOCK_BOOTTIME) - std::max(age, nanoseconds(0));
}

bool says_full(const Error& error) {
  return error.code().category() == std::system_category() &&
         (error.code().value() == ENOSPC || error.code().value() == EDQUOT);
}

Error not_written(int error, const std::filesystem::path& file) {
  const Error said = Error::from_errno(error, "the spool, " + file.string());
  return says_full(said) ? Error(said.code(), said.message() +
                                                  "; until there is room again, or the broker has taken what "
                                                  "is there, records are lost")
                         : said;
}

// Who has the lock, by proc_locks(5): not of another PID namespace, nor where a file system shows another
// device or inode there.
std::optional<std::string> holder_of(int lock) {
  struct stat status{};
  if (::fstat(lock, &status) != 0) return std::nullopt;
  char wanted[64];
  std::snprintf(wanted, sizeof wanted, "%02x:%02x:%llu", major(status.st_dev), minor(status.st_dev),
                static_cast<unsigned long long>(status.st_ino));
  std::ifstream locks("/proc/locks");
  for (std::string line; std::getline(locks, line);) {
    std::istringstream words(line);
    std::string number, type, kind, access, pid, file;
    words >> number >> type >> kind >> access >> pid >> file;
    if (type == "FLOCK" && file == wanted && pid.find_first_not_of("0123456789") == std::string::npos &&
        pid != "0")
      return pid;
  }
  return std::nullopt;
}

}  // namespace

Spool::Spool(Options options, Losses& losses)
    : options_(std::move(options)),
      segment_bytes_(std::clamp(options_.max_bytes / kParts, kShortestSegment, kLongestSegment)),
      losses_(losses) {}

Spool::~Spool() = default;

Result<std::unique_ptr<Spool>> Spool::open(Options options, Losses& losses) {
  if (options.max_bytes < kParts * kShortestSegment || options.max_age <= std::chrono::seconds(0))
    return fail(Error(Errc::invalid_options, "a spool of " + std::to_string(options.max_bytes) +
                                                 " bytes and " + std::to_string(options.max_age.count()) +
                                                 " s; at least 65536 bytes and 1 s"));
  std::error_code error;
  std::filesystem::create_directories(options.folder, error);
  if (error)
    return fail(Error(error, "the folder of the spool, " + options.folder.string() + ": " + error.message() +
                                 std::string(kOwnFolder)));
  std::unique_ptr<Spool> spool(new Spool(std::move(options), losses));
  if (auto locked = spool->take_lock(); !locked) return fail(locked.error());
  if (auto recovered = spool->recover(); !recovered) return fail(recovered.error());
  return spool;
}

Result<void> Spool::take_lock() {
  const std::string file = (options_.folder / "lock").string();
  lock_ = UniqueFd(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, kMode));
  if (!lock_) {
    const Error error = Error::from_errno(errno, "the spool, " + file);
    return fail(Error(error.code(), error.message() + std::string(kOwnFolder)));
  }
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) == 0) return {};
  const int error = errno;
  if (error != EWOULDBLOCK) return fail(Error::from_errno(error, "flock() of " + file));
  const auto holder = holder_of(lock_.get());
  return fail(Error(std::error_code(error, std::system_category()),
                    "another process" + (holder ? ", " + *holder + "," : "") + " has the spool " +
                        options_.folder.string() + "; end that one, or give each a folder of its own"));
}

Result<void> Spool::recover() {
  const MutexLock lock(mutex_);
  const std::string acknowledged = (options_.folder / "acknowledged").string();
  acknowledged_file_ = UniqueFd(::open(acknowledged.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, kMode));
  if (!acknowledged_file_) return fail(Error::from_errno(errno, acknowledged));
  Acknowledged noted;
  const auto whole = read_whole(acknowledged_file_.get(), noted, 0);
  if (!whole) return fail(whole.error().with_context(acknowledged));
  if (*whole && noted.crc == crc32c(bytes_of(noted.number)))
    acknowledged_ = noted.number;
  else if (*whole)
    tell_damage(acknowledged, "not the number of a record and its CRC; all that is there is sent again");
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (std::filesystem::directory_iterator at(options_.folder, error), end; !error && at != end;
       at.increment(error))
    if (at->path().extension() == kSuffix) files.push_back(at->path());
  if (error)
    return fail(
        Error(error, "the folder of the spool, " + options_.folder.string() + ": " + error.message()));
  std::sort(files.begin(), files.end());
  for (const auto& file : files)
    if (auto recovered = recover_segment(file); !recovered) return recovered;
  next_ = acknowledged_ + 1;
  if (!segments_.empty()) next_ = std::max(next_, segments_.back().end());
  settle();
  synced_ = acknowledged_;
  read_next_ = acknowledged_ + 1;
  note_state();
  return {};
}

Result<void> Spool::recover_segment(const std::filesystem::path& file) {
  const auto unreadable = [&](const Error& error) { return fail(error.with_context(file.string())); };
  const UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status{};
  if (!fd || ::fstat(fd.get(), &status) != 0) return fail(Error::from_errno(errno, file.string()));
  Header header;
  const auto whole = read_whole(fd.get(), header, 0);
  if (!whole) return unreadable(whole.error());
  const auto earliest = segments_.empty() ? std::uint64_t{1} : segments_.back().end();
  if (!*whole || !header.valid() || header.first < earliest) {
    // Made, and not yet written to; or damaged.
    if (status.st_size > static_cast<off_t>(sizeof header)) {
      ++losses_.spool_corrupt;
      tell_damage(file, "no header of a segment that begins at record " + std::to_string(earliest) +
                            " or later; the file is removed, and what its " + std::to_string(status.st_size) +
                            " bytes held is lost");
    }
    std::error_code ignored;
    std::filesystem::remove(file, ignored);
    return {};
  }
  Segment segment{header.first, 0, sizeof header, created_by_boottime(header), file};
  for (;;) {
    const auto bytes = read_frame(fd.get(), segment.size, segment.end());
    if (!bytes) return unreadable(bytes.error());
    if (!*bytes) break;
    segment.size += sizeof(Frame) + (*bytes)->size();
    ++segment.count;
  }
  // Less than a record is a write amid which the process died; a whole one with other bytes is damage.
  Frame frame;
  const auto rest = static_cast<std::uint64_t>(status.st_size) - segment.size;
  const auto next = read_whole(fd.get(), frame, segment.size);
  if (!next) return unreadable(next.error());
  if (*next && sizeof frame + frame.length <= rest) {
    ++losses_.spool_corrupt;
    tell_damage(file, "no whole record " + std::to_string(segment.end()) + " at byte " +
                          std::to_string(segment.size) + "; the " + std::to_string(segment.count) +
                          " before it are kept, the " + std::to_string(rest) + " bytes from it on are lost");
  }
  segments_.push_back(std::move(segment));
  return {};
}

Result<void> Spool::begin_segment() {
  char name[32];
  std::snprintf(name, sizeof name, "%020llu", static_cast<unsigned long long>(next_));
  Segment segment{next_, 0, sizeof(Header), now_by(CLOCK_BOOTTIME),
                  options_.folder / (name + std::string(kSuffix))};
  // A segment of that number had no whole record.
  writing_ = UniqueFd(::open(segment.file.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, kMode));
  if (!writing_) return fail(not_written(errno, segment.file));
  Header header;
  header.first = next_;
  header.created = now_by(CLOCK_REALTIME).count();
  header.created_since_boot = segment.created.count();
  header.boot = boot_id();
  header.crc = header.right_crc();
  const ssize_t written = ::write(writing_.get(), &header, sizeof header);
  if (written != static_cast<ssize_t>(sizeof header)) {
    const int error = written < 0 ? errno : ENOSPC;
    writing_.reset();
    ::unlink(segment.file.c_str());
    return fail(not_written(error, segment.file));
  }
  if (!segments_.empty() && segments_.back().first == segment.first) segments_.pop_back();
  segments_.push_back(std::move(segment));
  return {};
}

Result<std::uint64_t> Spool::append(std::string_view bytes) {
  const MutexLock lock(mutex_);
  auto number = append_locked(bytes);
  if (!number) ++losses_.spool_write;
  note_state();
  return number;
}

Result<std::uint64_t> Spool::append_locked(std::string_view bytes) {
  const std::size_t size = sizeof(Frame) + bytes.size();
  if (sizeof(Header) + size > segment_bytes_)
    return fail(Error(Errc::message_too_large, "a record of " + std::to_string(bytes.size()) +
                                                   " bytes, for a spool with segments of " +
                                                   std::to_string(segment_bytes_) +
                                                   "; a larger spool has longer ones, up to 16 MiB"));
  apply_caps(size);
  auto number = write_record(bytes);
  if (!number && says_full(number.error()) && free_acknowledged()) number = write_record(bytes);
  return number;
}

// A segment that is written to stays when all of it is acknowledged, for what comes next. On a full disk it
// would stay for ever: nothing comes, so nothing is acknowledged.
bool Spool::free_acknowledged() {
  const bool has_records =
      std::any_of(segments_.begin(), segments_.end(), [](const Segment& s) { return s.count > 0; });
  if (acknowledged_ + 1 != next_ || !has_records) return false;
  writing_.reset();
  settle();
  return true;
}

Result<std::uint64_t> Spool::write_record(std::string_view bytes) {
  const std::size_t size = sizeof(Frame) + bytes.size();
  const bool full = writing_ && segments_.back().size + size > segment_bytes_;
  const bool old =
      writing_ && now_by(CLOCK_BOOTTIME) - segments_.back().created > nanoseconds(options_.max_age) / kParts;
  if (!writing_ || full || (old && segments_.back().count > 0)) {
    writing_.reset();
    if (auto begun = begin_segment(); !begun) return fail(begun.error());
  }
  Segment& segment = segments_.back();
  Frame frame{static_cast<std::uint32_t>(bytes.size()), frame_crc(next_, bytes)};
  std::array<iovec, 2> parts{iovec{&frame, sizeof frame},
                             iovec{const_cast<char*>(bytes.data()), bytes.size()}};
  const ssize_t written =
      ::pwritev(writing_.get(), parts.data(), parts.size(), static_cast<off_t>(segment.size));
  if (written != static_cast<ssize_t>(size)) {
    const int error = written < 0 ? errno : ENOSPC;
    // What is there of it goes; if that fails too, it is a torn end, and the next record begins another
    // segment.
    if (::ftruncate(writing_.get(), static_cast<off_t>(segment.size)) != 0) writing_.reset();
    return fail(not_written(error, segment.file));
  }
  segment.size += size;
  ++segment.count;
  return next_++;
}

// By descriptors of its own: a segment may meanwhile be complete, or gone. So are the names of the files.
Result<void> Spool::sync() {
  std::vector<std::filesystem::path> files;
  std::uint64_t through = 0;
  {
    const MutexLock lock(mutex_);
    for (const Segment& segment : segments_)
      if (segment.end() > synced_ + 1 && segment.count > 0) files.push_back(segment.file);
    through = next_ - 1;
    if (through == synced_) return {};
  }
  files.push_back(options_.folder);
  for (const auto& file : files) {
    const UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd && errno == ENOENT) continue;
    if (!fd || ::fdatasync(fd.get()) != 0)
      return fail(Error::from_errno(errno, "fdatasync() of the spool, " + file.string()));
  }
  const MutexLock lock(mutex_);
  synced_ = std::max(synced_, through);
  return {};
}

bool Spool::open_for_reading() {
  const auto at = std::find_if(segments_.begin(), segments_.end(),
                               [next = read_next_](const Segment& s) { return s.end() > next; });
  if (at == segments_.end()) return false;
  if (reading_ && reading_first_ == at->first) return true;
  reading_ = UniqueFd(::open(at->file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!reading_) {  // too many open files, an error of the disk: later
    ++read_errors_;
    return false;
  }
  reading_first_ = reading_number_ = at->first;
  read_offset_ = sizeof(Header);
  read_next_ = std::max(read_next_, at->first);
  return true;
}

// Of the open segment; after a restart, past what was acknowledged.
std::optional<std::string> Spool::read_next() {
  for (;;) {
    auto bytes = read_frame(reading_.get(), read_offset_, reading_number_);
    if (!bytes) {
      ++read_errors_;
      return std::nullopt;
    }
    if (!*bytes) {
      give_up_segment();
      return std::nullopt;
    }
    read_offset_ += sizeof(Frame) + (*bytes)->size();
    if (reading_number_++ < read_next_) continue;
    ++read_next_;
    return std::move(*bytes);
  }
}

// Somebody else has written to the file: what is left of the segment cannot be found.
void Spool::give_up_segment() {
  const auto segment = std::find_if(segments_.begin(), segments_.end(),
                                    [first = reading_first_](const Segment& s) { return s.first == first; });
  ++losses_.spool_corrupt;
  tell_damage(segment->file, "record " + std::to_string(reading_number_) + " is no more at byte " +
                                 std::to_string(read_offset_) + ", where it was written; all from " +
                                 std::to_string(read_next_) + " to " + std::to_string(segment->end() - 1) +
                                 " are lost");
  for (; read_next_ < segment->end(); ++read_next_) beyond_.insert(read_next_);
  if (segment->first == segments_.back().first)
    writing_.reset();  // what is appended to it would be lost, too
  settle();
  reading_.reset();
}

std::vector<Spool::Entry> Spool::read(std::size_t at_most) {
  const MutexLock lock(mutex_);
  std::vector<Entry> entries;
  while (entries.size() < at_most && open_for_reading()) {
    const auto errors = read_errors_;
    if (auto bytes = read_next())
      entries.push_back({read_next_ - 1, std::move(*bytes)});
    else if (read_errors_ != errors)
      break;
  }
  note_state();
  return entries;
}

void Spool::acknowledge(std::uint64_t number) {
  const MutexLock lock(mutex_);
  if (number <= acknowledged_ || number >= next_) return;
  beyond_.insert(number);
  settle();
  note_state();
}

// What is done with goes. Numbers between two segments were lost with the damaged end of the first.
void Spool::settle() {
  const std::uint64_t before = acknowledged_;
  for (;;) {
    if (!segments_.empty()) acknowledged_ = std::max(acknowledged_, segments_.front().first - 1);
    beyond_.erase(beyond_.begin(), beyond_.upper_bound(acknowledged_));
    while (!beyond_.empty() && *beyond_.begin() == acknowledged_ + 1) {
      beyond_.erase(beyond_.begin());
      ++acknowledged_;
    }
    const bool written_to = segments_.size() == 1 && writing_;
    if (segments_.empty() || segments_.front().end() > acknowledged_ + 1 || written_to) break;
    remove_oldest();
  }
  if (acknowledged_ == before) return;
  const Acknowledged note{acknowledged_, crc32c(bytes_of(acknowledged_)), 0};
  // Best effort: without it some are delivered again.
  [[maybe_unused]] const ssize_t written = ::pwrite(acknowledged_file_.get(), &note, sizeof note, 0);
}

// The disk has its bytes back when nobody has it open.
void Spool::remove_oldest() {
  const Segment& oldest = segments_.front();
  if (reading_first_ == oldest.first) reading_.reset();
  ::unlink(oldest.file.c_str());
  segments_.pop_front();
}

void Spool::drop_oldest(Losses::Count& count) {
  const Segment oldest = segments_.front();
  if (segments_.size() == 1) writing_.reset();
  remove_oldest();
  if (const auto from = std::max(oldest.first, acknowledged_ + 1); from < oldest.end()) {
    const auto done = std::distance(beyond_.lower_bound(from), beyond_.lower_bound(oldest.end()));
    count += oldest.end() - from - static_cast<std::uint64_t>(done);
    for (auto number = from; number < oldest.end(); ++number) beyond_.insert(number);
    read_next_ = std::max(read_next_, oldest.end());
  }
  settle();
}

void Spool::apply_caps(std::uint64_t incoming) {
  const auto is_over = [&]() REQUIRES(mutex_) {  // anew each time: with the oldest others may go, too
    std::uint64_t bytes = incoming;
    for (const Segment& segment : segments_) bytes += segment.size;
    return bytes > options_.max_bytes;
  };
  while (!segments_.empty() && is_over()) drop_oldest(losses_.spool_size);
  const auto now = now_by(CLOCK_BOOTTIME);
  while (!segments_.empty() && now - segments_.front().created > options_.max_age)
    drop_oldest(losses_.spool_age);
}

void Spool::drop_too_old() {
  const MutexLock lock(mutex_);
  apply_caps(0);
  note_state();
}

void Spool::tell_damage(const std::filesystem::path& file, const std::string& what) const {
  if (options_.on_damage)
    options_.on_damage(Error(
        std::make_error_code(std::errc::io_error),
        "the spool, " + file.string() + ": " + what + "; look at the disk, and for who else writes there"));
}

void Spool::note_state() {
  State state;
  std::optional<nanoseconds> oldest_created;
  for (const Segment& segment : segments_) {
    state.bytes += segment.size;
    const auto from = std::max(segment.first, acknowledged_ + 1);
    if (from >= segment.end()) continue;
    state.pending += segment.end() - from;
    if (!oldest_created) oldest_created = segment.created;
  }
  state.pending -= beyond_.size();
  state.read_errors = read_errors_;
  const MutexLock lock(state_mutex_);
  state_ = state;
  oldest_created_ = oldest_created;
}

Spool::State Spool::state() const {
  const nanoseconds now = now_by(CLOCK_BOOTTIME);
  const MutexLock lock(state_mutex_);
  State state = state_;
  if (oldest_created_) state.oldest = now - *oldest_created_;
  return state;
}

}  // namespace sockalarm::observe
