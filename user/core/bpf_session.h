// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/diagnostics.h>
#include <sockalarm/result.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/log_hook.h"
#include "core/watch_state.h"

namespace sockalarm::detail {

// The BPF programs at work for this process: its table and ring, its registrations, whoever loaded them. The
// destructor ends it.
class BpfSession {
 public:
  // slots: length of the table, slot 0 included. Errors name the missing privilege or kernel feature.
  // direct: with the programs that deliver signals by task work, if this kernel has it.
  static Result<std::unique_ptr<BpfSession>> open(std::uint32_t slots, std::size_t ring_bytes, bool direct);
  // As a client of the daemon that listens there; needs no privilege. slots and ring_bytes are wishes. log:
  // told by tend() when the daemon is lost and when it is back; may be empty.
  static Result<std::unique_ptr<BpfSession>> join(const std::string& socket, std::uint32_t slots,
                                                  std::size_t ring_bytes, LogHook log);
  // One row for each program and map type, as far as they can be tried here.
  static std::vector<Feature> probe();

  virtual ~BpfSession() = default;

  virtual std::span<WatchState> table() noexcept = 0;
  sockalarm_table_header& header() noexcept {
    return *reinterpret_cast<sockalarm_table_header*>(&table().front());
  }
  // Whether signals are delivered by task work; else why not.
  virtual Result<void> delivers() const = 0;
  // Which thread calls, in the initial pid namespace. Only where delivers().
  virtual Result<sockalarm_thread> introduce_thread() noexcept = 0;
  virtual int ring_fd() const noexcept = 0;
  // Appends the records that are complete. One thread.
  virtual void drain(std::vector<sockalarm_record>& out) = 0;
  virtual bool pending() const noexcept = 0;  // is there one, even one that is not complete?
  virtual std::uint64_t bad_records() const noexcept = 0;

  // fd: a descriptor of that socket, lent.
  virtual Result<void> enroll(std::uint64_t cookie, std::uint32_t slot, std::uint32_t generation, int fd) = 0;
  virtual void dismiss(std::uint64_t cookie, std::uint32_t slot) noexcept = 0;
  // Attach or detach the program on the receive path. False: not to be had here.
  virtual bool watch_reads(bool on) = 0;
  // Attach, once and for all, the program that raises `closed`. False: not to be had here.
  virtual bool watch_closing() = 0;
  // Runs that the kernel left out so far: each may have been news. One system call.
  virtual std::uint64_t missed_runs() noexcept = 0;
  virtual void after_fork() noexcept = 0;

  // What the dispatcher must wait for beside the ring, to call tend() when it is readable; -1: nothing.
  // tend() appends the cookies of sockets of which something may have been missed.
  virtual int tended_fd() const noexcept { return -1; }
  virtual void tend(std::vector<std::uint64_t>& /*unseen*/) {}

  BpfSession(const BpfSession&) = delete;
  BpfSession& operator=(const BpfSession&) = delete;

  // What open() spent its time on, for a log.
  const std::string& times() const noexcept { return times_; }

 protected:
  BpfSession() = default;
  std::string times_;
};

}  // namespace sockalarm::detail
