// SPDX-License-Identifier: Apache-2.0
#include "observe/observer_programs.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "observe.skel.h"

namespace sockalarm::observe {
namespace {

using detail::explain;

static_assert(int(Cause::peer_fin) == SOCKALARM_CAUSE_PEER_FIN &&
              int(Cause::local) == SOCKALARM_CAUSE_LOCAL && int(Cause::refused) == SOCKALARM_CAUSE_REFUSED);
static_assert(int(Verdict::abandoned) == SOCKALARM_VERDICT_ABANDONED &&
              int(Verdict::local) == SOCKALARM_VERDICT_LOCAL);
static_assert(int(Direction::inbound) == SOCKALARM_DIRECTION_INBOUND &&
              int(Direction::outbound) == SOCKALARM_DIRECTION_OUTBOUND);

Result<UniqueFd> make_set(bpf_map_type type, const char* name, std::size_t key_size, std::size_t entries) {
  bpf_map_create_opts options{};
  options.sz = sizeof options;
  options.map_flags = type == BPF_MAP_TYPE_LPM_TRIE ? BPF_F_NO_PREALLOC : 0;
  UniqueFd map(bpf_map_create(type, name, static_cast<std::uint32_t>(key_size), 1,
                              static_cast<std::uint32_t>(std::max<std::size_t>(entries, 1)), &options));
  if (!map) return fail(explain(errno, std::string("creating map ") + name, ""));
  return map;
}

Result<void> add(const UniqueFd& set, const void* key, const char* what) {
  const std::uint8_t there = 1;
  if (bpf_map_update_elem(set.get(), key, &there, BPF_ANY) == 0) return {};
  return fail(explain(errno, std::string("filling the set of ") + what, ""));
}

Result<UniqueFd> make_cgroup_set(const std::vector<std::uint64_t>& cgroups) {
  auto set = make_set(BPF_MAP_TYPE_HASH, "cgroup_set", sizeof(std::uint64_t), cgroups.size());
  for (const std::uint64_t id : cgroups) {
    if (!set) break;
    if (auto ok = add(*set, &id, "cgroups"); !ok) return fail(ok.error());
  }
  return set;
}

Result<UniqueFd> make_prefix_set(const std::vector<Prefix>& prefixes) {
  auto set = make_set(BPF_MAP_TYPE_LPM_TRIE, "prefix_set", sizeof(sockalarm_observe_prefix), prefixes.size());
  for (const Prefix& prefix : prefixes) {
    if (!set) break;
    sockalarm_observe_prefix key{.length = prefix.length, .address = {}};
    std::memcpy(key.address, prefix.address.data(), sizeof key.address);
    if (auto ok = add(*set, &key, "prefixes"); !ok) return fail(ok.error());
  }
  return set;
}

struct Hook {
  const char* program;
  const char* tracepoint;
  const char* without;  // what is lost; null: nothing can be done
};
// In this order: what a connection's first event relies on is there before it, and the kernel calls those of
// one tracepoint in it.
constexpr Hook kHooks[] = {
    {"observe_read", "tcp_rcv_space_adjust",
     "whether a request was answered is judged by times of the kernel's clock tick"},
    {"observe_going", "tcp_destroy_sock", nullptr},
    {"observe_destroy", "tcp_destroy_sock", nullptr},
    {"observe_nested", "tcp_destroy_sock", nullptr},
    {"observe_error", "inet_sk_error_report", "an error may go unnoticed if a change of state was missed"},
    {"observe_state", "inet_sock_set_state", nullptr},
};

}  // namespace

void ObserverPrograms::Deleter::operator()(observe_bpf* skeleton) const noexcept {
  observe_bpf__destroy(skeleton);
}

Result<ObserverPrograms> ObserverPrograms::load(const Options& options, const Filter& filter) {
  ObserverPrograms programs;
  const auto left_out = [&](const char* name) {
    return std::find(options.without.begin(), options.without.end(), name) != options.without.end();
  };
  std::string no_release =
      "the release hook hears not of every socket here (no cgroup v2, or not the host's)";
  if (detail::release_suffices() && !left_out("observe_release")) {
    const auto loaded = programs.try_load(options, filter, true);
    if (loaded) return programs;
    no_release = loaded.error().message();
  }
  if (auto loaded = programs.try_load(options, filter, false); !loaded) return fail(loaded.error());
  programs.limits_.push_back("the last local close is seen when this host says that it is done: " +
                             no_release);
  return programs;
}

Result<void> ObserverPrograms::try_load(const Options& options, const Filter& filter, bool with_release) {
  links_.clear();
  limits_.clear();
  active_cgroups_.reset();
  const detail::KernelBtf btf;
  if (btf.error() != 0)
    return fail(Error::from_errno(btf.error(), "this kernel's type information (CONFIG_DEBUG_INFO_BTF)"));
  if (auto ok = detail::check_realtime(); !ok) return ok;
  auto opened = detail::run_quietly("opening the BPF object", [&] {
    skeleton_.reset(observe_bpf__open());
    return skeleton_ ? 0 : -errno;
  });
  if (!opened) return opened;
  const bool reads =
      options.reads && btf.has_tracepoint("tcp_rcv_space_adjust") &&
      std::find(options.without.begin(), options.without.end(), "observe_read") == options.without.end();
  for (const Hook& hook : kHooks) {
    const bool there = btf.has_tracepoint(hook.tracepoint);
    const bool wanted = std::string_view(hook.program) != "observe_read" || reads;
    bpf_program__set_autoload(bpf_object__find_program_by_name(skeleton_->obj, hook.program),
                              there && wanted);
    if (there) continue;
    if (hook.without == nullptr)
      return fail(Error(Errc::unsupported, std::string("this kernel has no tracepoint ") + hook.tracepoint));
    limits_.push_back(std::string(hook.without) + ": this kernel has no tracepoint " + hook.tracepoint);
  }
  bpf_program__set_autoload(skeleton_->progs.observe_release, with_release);
  skeleton_->rodata->has_release = with_release ? 1 : 0;
  const bool has_timers = !detail::is_realtime_kernel();
  if (!has_timers)
    limits_.emplace_back("each record may wake the reader: a realtime kernel has no timers for programs");
  skeleton_->rodata->wake_after_ns = has_timers ? static_cast<std::uint64_t>(options.latency.count()) : 0;
  skeleton_->rodata->wake_at_bytes = options.ring_bytes / 4;
  skeleton_->bss->sequence.next = options.first_sequence;
  bpf_map__set_max_entries(skeleton_->maps.ends, options.ring_bytes);
  bpf_map__set_max_entries(skeleton_->maps.metrics, options.services);
  if (auto ok = detail::run_quietly("loading the observer's BPF programs",
                                    [&] { return observe_bpf__load(skeleton_.get()); });
      !ok)
    return ok;
  if (auto ok = set_filter(filter); !ok) return ok;
  return attach(options, with_release);
}

Result<void> ObserverPrograms::attach(const Options& options, bool with_release) {
  if (with_release) {
    auto link = detail::attach_release(skeleton_->progs.observe_release);
    if (!link) return fail(link.error());
    links_.push_back(std::move(*link));
  }
  for (const Hook& hook : kHooks) {
    const bpf_program* const program = bpf_object__find_program_by_name(skeleton_->obj, hook.program);
    if (bpf_program__fd(program) < 0) continue;
    if (std::find(options.without.begin(), options.without.end(), hook.program) != options.without.end())
      continue;
    auto link = detail::attach_tracepoint(program, hook.tracepoint);
    if (!link) return fail(link.error());
    links_.push_back(std::move(*link));
  }
  return {};
}

Result<void> ObserverPrograms::set_filter(const Filter& filter) {
  auto cgroups = make_cgroup_set(filter.cgroups);
  if (!cgroups) return fail(cgroups.error());
  const auto prefixes = make_prefix_set(filter.prefixes);
  if (!prefixes) return fail(prefixes.error());
  const auto kernel = to_kernel(filter, (filter.cgroups.empty() ? 0 : SOCKALARM_FILTER_CGROUPS) |
                                            (filter.prefixes.empty() ? 0 : SOCKALARM_FILTER_PREFIXES));
  if (!kernel) return fail(kernel.error());

  std::uint32_t& active = skeleton_->bss->active_filter;
  const std::uint32_t next = active ^ 1U;
  const int cgroup_sets = bpf_map__fd(skeleton_->maps.cgroup_sets);
  // A program that began before the last change may still read `next`. This changes nothing, but an update of
  // a map of maps returns only after the programs that run have ended (since 5.0, maybe_wait_bpf_programs()).
  if (active_cgroups_)
    if (auto ok = detail::insert_map(cgroup_sets, active, active_cgroups_.get(), "cgroup_set"); !ok)
      return ok;
  if (auto ok = detail::insert_map(cgroup_sets, next, cgroups->get(), "cgroup_set"); !ok) return ok;
  if (auto ok =
          detail::insert_map(bpf_map__fd(skeleton_->maps.prefix_sets), next, prefixes->get(), "prefix_set");
      !ok)
    return ok;
  if (bpf_map_update_elem(bpf_map__fd(skeleton_->maps.filters), &next, &*kernel, BPF_ANY) != 0)
    return fail(explain(errno, "writing the filter", ""));
  active_cgroups_ = std::move(*cgroups);
  __atomic_store_n(&active, next, __ATOMIC_SEQ_CST);  // which cannot fail
  return {};
}

int ObserverPrograms::ring() const noexcept { return bpf_map__fd(skeleton_->maps.ends); }
int ObserverPrograms::metrics() const noexcept { return bpf_map__fd(skeleton_->maps.metrics); }
int ObserverPrograms::losses() const noexcept { return bpf_map__fd(skeleton_->maps.losses); }

std::uint64_t ObserverPrograms::missed() const noexcept {
  std::uint64_t all = 0;
  for (const Hook& hook : kHooks) {
    const int fd = bpf_program__fd(bpf_object__find_program_by_name(skeleton_->obj, hook.program));
    if (fd >= 0) all += detail::missed_runs(fd);
  }
  return all;
}

}  // namespace sockalarm::observe
