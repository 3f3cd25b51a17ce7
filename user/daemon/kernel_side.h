// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "sockalarm_abi.h"

namespace sockalarm::daemon {

inline constexpr std::size_t kLostCauses = SOCKALARM_LOST_CAUSES;

// The programs and maps of all clients, pinned in a BPF file system: they outlive this process, and the next
// one takes over what it finds. Nothing here is memory that a client can write. Any thread.
class KernelSide {
 public:
  struct Sizes {
    std::uint32_t sockets, clients;
  };
  // Takes over what is pinned in that directory; loads, attaches and pins where there is nothing. Errors: the
  // directory is not on a BPF file system, others may write there, another daemon has it (EBUSY), what is
  // missing to load.
  static Result<std::unique_ptr<KernelSide>> open(const std::string& directory, Sizes sizes);
  // Unpins everything there, so it ends with its last user.
  static Result<void> remove(const std::string& directory);

  bool adopted() const noexcept { return adopted_; }
  Sizes sizes() const noexcept { return sizes_; }
  bool task_work() const noexcept { return bool(introduce_); }
  // What is pinned, as VERSION-HASH, and whether that does what this daemon's own programs do.
  const std::string& programs() const noexcept { return programs_; }
  bool current() const noexcept { return current_; }

  // A client that was there before this daemon.
  struct Survivor {
    std::uint32_t index;
    sockalarm_client facts;
    std::vector<std::uint64_t> cookies;
  };
  // Once, at the start; what belongs to nobody is removed.
  Result<std::vector<Survivor>> survivors();

  // Makes room for a client and answers its index. Table and ring are lent.
  Result<std::uint32_t> add(const sockalarm_client& facts, int table, int ring);
  void remove(std::uint32_t index) noexcept;  // after its watches

  // EBUSY: another client watches that socket.
  Result<void> watch(std::uint64_t cookie, const sockalarm_registration& where);
  void unwatch(std::uint64_t cookie) noexcept;

  // Whether that client waits for eof with data pending; the program on the receive path is attached while
  // one does, and for a second after. Attaching and detaching holds up all processors for a moment: who asks
  // for it over and over must not slow others down.
  Result<void> wait_for_reads(std::uint32_t index, bool on);
  int idle() const noexcept { return idle_.get(); }  // lent: readable when detach_idle() is to be called
  void detach_idle() noexcept;

  std::array<std::uint64_t, kLostCauses> lost() const;
  // Runs of the program on the state changes that the kernel left out since it was loaded.
  std::uint64_t missed() const noexcept;

 private:
  explicit KernelSide(std::string directory) : directory_(std::move(directory)) {}
  Result<void> lock();
  Result<void> trust() const;
  Result<void> load(Sizes sizes) const;
  Result<void> adopt() NO_THREAD_SAFETY_ANALYSIS;  // by open(): nobody else has it yet
  std::string pinned(const std::string& name) const { return directory_ + "/" + kLayout + "/" + name; }
  Result<UniqueFd> get(const std::string& name) const;
  Result<sockalarm_client> facts_of(std::uint32_t index) const;
  Result<void> set_reads(bool on) REQUIRES(mutex_);

  static constexpr const char* kLayout =
      "v1";  // of what is pinned: names, and the structs of sockalarm_abi.h

  const std::string directory_;
  UniqueFd lock_;
  bool adopted_ = false;
  Sizes sizes_{};
  std::string programs_;
  bool current_ = false;
  UniqueFd idle_;  // timerfd(2)
  UniqueFd registry_, watch_tables_, event_rings_, clients_, late_wakes_, lost_, introduce_, on_read_,
      on_set_state_;
  Mutex mutex_;
  std::vector<bool> taken_ GUARDED_BY(mutex_);  // indices
  std::size_t readers_ GUARDED_BY(mutex_) = 0;
  UniqueFd reads_ GUARDED_BY(mutex_);  // the link
};

// What the kernel says of a map that somebody gave us; a descriptor of anything else is refused.
struct MapFacts {
  std::uint32_t type, id, value_size, entries, flags;
};
Result<MapFacts> map_facts(int fd);
bool is_table(const MapFacts& facts) noexcept;
bool is_ring(const MapFacts& facts) noexcept;

}  // namespace sockalarm::daemon
