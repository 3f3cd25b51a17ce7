// SPDX-License-Identifier: Apache-2.0
#include <bpf/bpf.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <utility>

#include "core/bpf_programs.h"
#include "core/bpf_session.h"
#include "core/session_memory.h"

namespace sockalarm::detail {
namespace {

constexpr std::uint32_t kClient = 0;  // this process; the registry's `client` counts from here

// The programs loaded by this process, for itself.
class LoadedSession final : public BpfSession {
 public:
  LoadedSession(BpfPrograms programs, std::unique_ptr<SessionMemory> memory)
      : programs_(std::move(programs)), memory_(std::move(memory)) {}

  Result<void> attach() {
    if (delivers_) {
      if (const auto self = introduce_thread())
        tgid_ = self->tgid;
      else
        delivers_ = fail(self.error());
    }
    return programs_.attach();
  }

  std::span<WatchState> table() noexcept override { return memory_->table(); }
  Result<void> delivers() const override { return delivers_; }
  Result<sockalarm_thread> introduce_thread() noexcept override {
    sockalarm_thread self{};
    bpf_test_run_opts options{};
    options.sz = sizeof options;
    options.ctx_in = &self;
    options.ctx_size_in = sizeof self;
    if (bpf_prog_test_run_opts(programs_.program_fd("introduce_thread"), &options) != 0)
      return fail(explain(errno, "running the program that tells a thread its id", ""));
    return self;
  }

  int ring_fd() const noexcept override { return memory_->ring_fd(); }
  void drain(std::vector<sockalarm_record>& out) override { memory_->reader().drain(out); }
  bool pending() const noexcept override { return memory_->reader().pending(); }
  std::uint64_t bad_records() const noexcept override { return memory_->reader().bad(); }

  Result<void> enroll(std::uint64_t cookie, std::uint32_t slot, std::uint32_t generation,
                      int /*fd*/) override {
    memory_->remember(slot, generation);
    const sockalarm_registration where{kClient, slot, generation, tgid_, 0};
    if (bpf_map_update_elem(programs_.map_fd("registry"), &cookie, &where, BPF_ANY) == 0) return {};
    return fail(explain(errno, "registering a socket with the kernel", ""));
  }
  void dismiss(std::uint64_t cookie, std::uint32_t /*slot*/) noexcept override {
    bpf_map_delete_elem(programs_.map_fd("registry"),
                        &cookie);  // ENOENT: the kernel had forgotten it already
  }

  bool watch_reads(bool on) override {
    if (!programs_.has_reads()) return false;
    if (!on) {
      reads_.reset();
    } else if (!reads_) {
      auto link = programs_.attach_reads();
      if (link) reads_ = std::move(*link);
    }
    return !on || reads_ != nullptr;
  }

  bool watch_closing() override { return programs_.attach_closing(); }
  std::uint64_t missed_runs() noexcept override {
    return detail::missed_runs(programs_.program_fd("on_set_state"));
  }

  // The links go, else the child would keep the programs attached after the parent's end.
  void after_fork() noexcept override {
    reads_.reset();
    programs_ = BpfPrograms();
    memory_->after_fork();
  }

  std::string& times() noexcept { return times_; }

 private:
  std::uint32_t tgid_ = 0;  // in the initial pid namespace; 0 without task work: no thread may be signalled
  BpfPrograms programs_;
  Result<void> delivers_ = programs_.delivers();
  Link reads_;
  std::unique_ptr<SessionMemory> memory_;
};

Result<std::unique_ptr<SessionMemory>> make_memory(const BpfPrograms& programs, std::uint32_t slots,
                                                   std::size_t ring_bytes) {
  auto table = make_table(slots);
  if (!table) return fail(table.error());
  auto ring = make_ring(ring_bytes);
  if (!ring) return fail(ring.error());
  for (const auto& [outer, inner] : {std::pair{"watch_tables", table->get()}, {"event_rings", ring->get()}})
    if (auto ok = insert_map(programs.map_fd(outer), kClient, inner, outer); !ok) return fail(ok.error());
  return SessionMemory::map(table->get(), slots, std::move(*ring), ring_bytes);
}

}  // namespace

Result<std::unique_ptr<BpfSession>> BpfSession::open(std::uint32_t slots, std::size_t ring_bytes,
                                                     bool direct) {
  auto before = std::chrono::steady_clock::now();
  std::string times;
  const auto passed = [&](const char* step) {
    const auto now = std::chrono::steady_clock::now();
    times += (times.empty() ? "kernel source: " : ", ") + std::string(step) + " " +
             std::to_string((now - before) / std::chrono::microseconds(1)) + " us";
    before = now;
  };
  const KernelBtf btf;
  passed("names");
  auto programs = BpfPrograms::load({.sockets = slots, .clients = 1}, btf, direct);
  if (!programs) return fail(programs.error());
  passed("loaded");
  auto memory = make_memory(*programs, slots, std::bit_ceil(std::max(ring_bytes, page_size())));
  if (!memory) return fail(memory.error());
  passed("maps");
  auto session = std::make_unique<LoadedSession>(std::move(*programs), std::move(*memory));
  if (auto ok = session->attach(); !ok) return fail(ok.error());
  passed("attached");
  session->times() = std::move(times);
  return std::unique_ptr<BpfSession>(std::move(session));
}

std::vector<Feature> BpfSession::probe() { return probe_programs(); }

}  // namespace sockalarm::detail
