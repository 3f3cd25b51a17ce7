// SPDX-License-Identifier: Apache-2.0
#include "daemon/kernel_side.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <sstream>
#include <unordered_map>
#include <utility>

#include "core/bpf_programs.h"

namespace sockalarm::daemon {
namespace {

using detail::BpfPrograms;
using detail::explain;

constexpr const char* kReadsLink = "link_on_read";
constexpr const char* kProgramsId = "programs_id";  // a symbolic link: a BPF file system has no plain files

struct Expected {
  const char* name;
  std::size_t value_size;
};
constexpr std::array<Expected, 6> kMaps = {{{"registry", sizeof(sockalarm_registration)},
                                            {"watch_tables", sizeof(std::uint32_t)},
                                            {"event_rings", sizeof(std::uint32_t)},
                                            {"clients", sizeof(sockalarm_client)},
                                            {"late_wakes", sizeof(sockalarm_late_wake)},
                                            {"lost", sizeof(std::uint64_t)}}};

Result<void> pin(int fd, const std::string& path) {
  if (bpf_obj_pin(fd, path.c_str()) == 0) return {};
  return fail(explain(errno, "pinning " + path, ""));
}

Result<void> remove_all(const std::string& path) {
  std::error_code failed;
  std::filesystem::remove_all(path, failed);
  if (failed) return fail(Error(failed, "removing " + path + ": " + failed.message()));
  return {};
}

std::string own_hash() {
  std::ostringstream text;
  text << "-" << std::hex << detail::programs_hash();
  return text.str();
}

Result<void> pin_all(const BpfPrograms& programs, const std::string& directory) {
  for (const Expected& map : kMaps)
    if (auto ok = pin(programs.map_fd(map.name), directory + "/" + map.name); !ok) return ok;
  for (const char* program : {"introduce_thread", "on_read", "on_set_state"}) {
    if (!programs.loaded(program)) continue;
    if (auto ok = pin(programs.program_fd(program), directory + "/" + program); !ok) return ok;
  }
  for (const auto& attached : programs.attached()) {
    const std::string path = directory + "/link_" + attached.program;
    if (auto ok = pin(bpf_link__fd(attached.link.get()), path); !ok) return ok;
  }
  const std::string id = directory + "/" + kProgramsId;
  if (::symlink((SOCKALARM_VERSION + own_hash()).c_str(), id.c_str()) != 0)
    return fail(Error::from_errno(errno, id));
  return {};
}

}  // namespace

Result<MapFacts> map_facts(int fd) {
  bpf_map_info info{};
  std::uint32_t length = sizeof info;
  if (bpf_obj_get_info_by_fd(fd, &info, &length) != 0)
    return fail(Error::from_errno(errno, "a descriptor that is no BPF map"));
  return MapFacts{info.type, info.id, info.value_size, info.max_entries, info.map_flags};
}

bool is_table(const MapFacts& facts) noexcept {
  return facts.type == BPF_MAP_TYPE_ARRAY && facts.value_size == sizeof(sockalarm_watch_state) &&
         facts.flags == (BPF_F_MMAPABLE | BPF_F_INNER_MAP);
}

bool is_ring(const MapFacts& facts) noexcept {
  return facts.type == BPF_MAP_TYPE_RINGBUF && facts.flags == 0;
}

Result<std::unique_ptr<KernelSide>> KernelSide::open(const std::string& directory, Sizes sizes) {
  std::unique_ptr<KernelSide> side(new KernelSide(directory));
  if (auto ok = side->lock(); !ok) return fail(ok.error());
  if (auto ok = side->trust(); !ok) return fail(ok.error());
  side->idle_ = UniqueFd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!side->idle_) return fail(Error::from_errno(errno, "timerfd_create()"));
  side->adopted_ = ::access(side->pinned("").c_str(), F_OK) == 0;
  if (!side->adopted_)
    if (auto ok = side->load(sizes); !ok) return fail(ok.error());
  if (auto ok = side->adopt(); !ok) return fail(ok.error());
  return side;
}

Result<void> KernelSide::lock() {
  constexpr auto kBpfFs = 0xcafe4a11;  // BPF_FS_MAGIC, include/uapi/linux/magic.h
  if (::mkdir(directory_.c_str(), 0700) != 0 && errno != EEXIST)
    return fail(Error::from_errno(
        errno, "making " + directory_ + " (as root, on a BPF file system: mount -t bpf bpf /sys/fs/bpf)"));
  lock_ = UniqueFd(::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct statfs system{};
  if (!lock_ || ::fstatfs(lock_.get(), &system) != 0) return fail(Error::from_errno(errno, directory_));
  if (static_cast<std::uint32_t>(system.f_type) != kBpfFs)
    return fail(Error(Errc::invalid_options,
                      directory_ + " is not on a BPF file system (mount -t bpf bpf /sys/fs/bpf)"));
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0)
    return fail(Error::from_errno(EBUSY, directory_ + " is in use by another daemon"));
  return {};
}

// Whoever may write there could put anything in the place of what is pinned. A BPF file system that is
// mounted without mode= lets everybody make directories in it, this one too.
Result<void> KernelSide::trust() const {
  struct stat status{};
  if (::fstat(lock_.get(), &status) != 0) return fail(Error::from_errno(errno, directory_));
  if ((status.st_uid == 0 || status.st_uid == ::geteuid()) && (status.st_mode & (S_IWGRP | S_IWOTH)) == 0)
    return {};
  return fail(
      Error(Errc::invalid_options, directory_ + " belongs to user " + std::to_string(status.st_uid) +
                                       ", or others may write there; it must belong to root or user " +
                                       std::to_string(::geteuid()) + " and be writable by nobody else"));
}

Result<void> KernelSide::load(Sizes sizes) const {
  const detail::KernelBtf btf;
  auto programs = BpfPrograms::load({sizes.sockets, sizes.clients}, btf, true);
  if (!programs) return fail(programs.error());
  if (auto ok = programs->attach(); !ok) return ok;
  // Always, and not when somebody waits for it: clients' dead sockets go from the registry by it, also while
  // no daemon is there.
  if (!programs->attach_closing())
    return fail(Error(Errc::unsupported, "neither the release hook nor tcp_destroy_sock can be attached"));
  // Whole or not at all: who is killed halfway leaves something that nobody takes for complete.
  const std::string half_made = directory_ + "/new";
  if (auto ok = remove_all(half_made); !ok) return ok;
  if (::mkdir(half_made.c_str(), 0700) != 0) return fail(Error::from_errno(errno, half_made));
  if (auto ok = pin_all(*programs, half_made); !ok) {
    [[maybe_unused]] auto removed = remove_all(half_made);
    return ok;
  }
  if (::rename(half_made.c_str(), (directory_ + "/" + kLayout).c_str()) != 0)
    return fail(Error::from_errno(errno, "renaming " + half_made));
  return {};
}

Result<UniqueFd> KernelSide::get(const std::string& name) const {
  UniqueFd fd(bpf_obj_get(pinned(name).c_str()));
  if (!fd) return fail(explain(errno, pinned(name), ""));
  return fd;
}

Result<void> KernelSide::adopt() {
  const std::array<UniqueFd*, kMaps.size()> into = {&registry_, &watch_tables_, &event_rings_,
                                                    &clients_,  &late_wakes_,   &lost_};
  std::array<std::uint32_t, kMaps.size()> entries{};
  for (std::size_t i = 0; i < kMaps.size(); ++i) {
    auto map = get(kMaps[i].name);
    if (!map) return fail(map.error());
    const auto facts = map_facts(map->get());
    if (!facts) return fail(facts.error());
    if (facts->value_size != kMaps[i].value_size)
      return fail(Error(Errc::unsupported,
                        pinned(kMaps[i].name) + " is of another release; remove it: sockalarmd --remove"));
    entries[i] = facts->entries;
    *into[i] = std::move(*map);
  }
  sizes_ = {entries[0], std::min({entries[1], entries[2], entries[3], entries[4]})};
  taken_.resize(sizes_.clients);
  if (auto program = get("introduce_thread")) introduce_ = std::move(*program);
  if (auto program = get("on_read")) on_read_ = std::move(*program);
  auto ends = get("on_set_state");
  if (!ends) return fail(ends.error());
  on_set_state_ = std::move(*ends);
  if (auto link = get(kReadsLink)) reads_ = std::move(*link);
  std::error_code unknown;
  programs_ = std::filesystem::read_symlink(pinned(kProgramsId), unknown).string();
  if (unknown) programs_ = "unknown";
  current_ = programs_.ends_with(own_hash());
  return {};
}

Result<void> KernelSide::remove(const std::string& directory) {
  KernelSide side(directory);
  if (auto ok = side.lock(); !ok) return ok;
  for (const char* name : {"new", kLayout})
    if (auto ok = remove_all(directory + "/" + name); !ok) return ok;
  return {};
}

Result<sockalarm_client> KernelSide::facts_of(std::uint32_t index) const {
  sockalarm_client facts{};
  if (bpf_map_lookup_elem(clients_.get(), &index, &facts) == 0) return facts;
  return fail(Error::from_errno(errno, "reading the list of clients"));
}

Result<std::vector<KernelSide::Survivor>> KernelSide::survivors() {
  const MutexLock lock(mutex_);
  std::vector<Survivor> found;
  std::unordered_map<std::uint32_t, std::size_t> by_index;
  for (std::uint32_t index = 0; index < sizes_.clients; ++index) {
    const auto facts = facts_of(index);
    if (!facts) return fail(facts.error());
    if ((facts->flags & SOCKALARM_CLIENT_USED) == 0) continue;
    by_index[index] = found.size();
    found.push_back({index, *facts, {}});
    taken_[index] = true;
    readers_ += (facts->flags & SOCKALARM_CLIENT_READS) != 0 ? 1 : 0;
  }
  std::vector<std::uint64_t> nobodys;
  std::uint64_t cookie = 0;
  // Entries go meanwhile, and from one that has gone the kernel begins anew: no cookie is taken twice.
  std::unordered_map<std::uint64_t, bool> known;
  for (int more = bpf_map_get_next_key(registry_.get(), nullptr, &cookie); more == 0;
       more = bpf_map_get_next_key(registry_.get(), &cookie, &cookie)) {
    sockalarm_registration where{};
    if (known[cookie] || bpf_map_lookup_elem(registry_.get(), &cookie, &where) != 0) continue;
    known[cookie] = true;
    const auto owner = by_index.find(where.client);
    (owner != by_index.end() ? found[owner->second].cookies : nobodys).push_back(cookie);
  }
  for (const std::uint64_t one : nobodys) unwatch(one);
  if (auto ok = set_reads(readers_ > 0); !ok) return fail(ok.error());
  return found;
}

// The list first and last: whatever is in the outer maps or the registry has an owner there.
Result<std::uint32_t> KernelSide::add(const sockalarm_client& facts, int table, int ring) {
  std::uint32_t index = 0;
  {
    const MutexLock lock(mutex_);
    const auto free = std::find(taken_.begin(), taken_.end(), false);
    if (free == taken_.end())
      return fail(Error(std::error_code(ENOSPC, std::system_category()),
                        "there are " + std::to_string(taken_.size()) + " clients, which is the limit"));
    *free = true;
    index = static_cast<std::uint32_t>(free - taken_.begin());
  }
  Result<void> done;
  if (bpf_map_update_elem(clients_.get(), &index, &facts, BPF_ANY) != 0)
    done = fail(explain(errno, "writing the list of clients", ""));
  if (done) done = detail::insert_map(watch_tables_.get(), index, table, "watch_table");
  if (done) done = detail::insert_map(event_rings_.get(), index, ring, "event_ring");
  if (done) return index;
  remove(index);
  return fail(done.error());
}

void KernelSide::remove(std::uint32_t index) noexcept {
  [[maybe_unused]] auto quiet = wait_for_reads(index, false);
  bpf_map_delete_elem(event_rings_.get(), &index);
  bpf_map_delete_elem(watch_tables_.get(), &index);
  const sockalarm_client nobody{};
  bpf_map_update_elem(clients_.get(), &index, &nobody, BPF_ANY);
  const MutexLock lock(mutex_);
  taken_[index] = false;
}

// Entries of other clients come and go meanwhile; one of `where.client` does not, and is the only one that
// may be replaced.
Result<void> KernelSide::watch(std::uint64_t cookie, const sockalarm_registration& where) {
  int failed = ENOENT;
  while (failed == ENOENT) {
    if (bpf_map_update_elem(registry_.get(), &cookie, &where, BPF_NOEXIST) == 0) return {};
    failed = errno;
    if (failed != EEXIST) break;
    sockalarm_registration known{};
    if (bpf_map_lookup_elem(registry_.get(), &cookie, &known) == 0) {
      if (known.client != where.client)
        return fail(
            Error(std::error_code(EBUSY, std::system_category()), "another client watches this socket"));
      if (bpf_map_update_elem(registry_.get(), &cookie, &where, BPF_EXIST) == 0) return {};
    }
    failed = errno;
  }
  if (failed == E2BIG)
    return fail(Error(std::error_code(ENOSPC, std::system_category()),
                      "there are " + std::to_string(sizes_.sockets) + " watches, which is the limit"));
  return fail(explain(failed, "registering a socket with the kernel", ""));
}

void KernelSide::unwatch(std::uint64_t cookie) noexcept {
  bpf_map_delete_elem(registry_.get(), &cookie);  // ENOENT: the kernel had forgotten it already
}

Result<void> KernelSide::wait_for_reads(std::uint32_t index, bool on) {
  const MutexLock lock(mutex_);
  auto facts = facts_of(index);
  if (!facts) return fail(facts.error());
  const bool before = (facts->flags & SOCKALARM_CLIENT_READS) != 0;
  if (before == on) return {};
  if (on)
    if (auto ok = set_reads(true); !ok) return ok;
  facts->flags ^= SOCKALARM_CLIENT_READS;
  if (bpf_map_update_elem(clients_.get(), &index, &*facts, BPF_ANY) != 0)
    return fail(explain(errno, "writing the list of clients", ""));
  readers_ += on ? 1 : std::size_t(-1);
  if (readers_ == 0 && reads_) {
    const itimerspec second{{0, 0}, {1, 0}};
    ::timerfd_settime(idle_.get(), 0, &second, nullptr);
  }
  return {};
}

void KernelSide::detach_idle() noexcept {
  std::uint64_t expirations = 0;
  [[maybe_unused]] const ssize_t n = ::read(idle_.get(), &expirations, sizeof expirations);
  const MutexLock lock(mutex_);
  if (readers_ == 0) [[maybe_unused]]
    auto detached = set_reads(false);
}

Result<void> KernelSide::set_reads(bool on) {
  if (on == static_cast<bool>(reads_)) return {};
  if (!on) {
    ::unlink(pinned(kReadsLink).c_str());
    reads_.reset();
    return {};
  }
  if (!on_read_) return fail(Error(Errc::unsupported, "this kernel has no tracepoint tcp_rcv_space_adjust"));
  UniqueFd link(bpf_raw_tracepoint_open(nullptr, on_read_.get()));  // the program knows its tracepoint
  if (!link) return fail(explain(errno, "attaching to tcp_rcv_space_adjust", ""));
  if (auto ok = pin(link.get(), pinned(kReadsLink)); !ok) return ok;
  reads_ = std::move(link);
  return {};
}

std::uint64_t KernelSide::missed() const noexcept { return detail::missed_runs(on_set_state_.get()); }

std::array<std::uint64_t, kLostCauses> KernelSide::lost() const {
  std::array<std::uint64_t, kLostCauses> sums{};
  std::vector<std::uint64_t> of_cpus(static_cast<std::size_t>(std::max(libbpf_num_possible_cpus(), 1)));
  for (std::uint32_t cause = 0; cause < sums.size(); ++cause) {
    if (bpf_map_lookup_elem(lost_.get(), &cause, of_cpus.data()) != 0) continue;
    for (const std::uint64_t one : of_cpus) sums[cause] += one;
  }
  return sums;
}

}  // namespace sockalarm::daemon
