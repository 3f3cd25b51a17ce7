// SPDX-License-Identifier: Apache-2.0
#include "observe/observer.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <exception>
#include <optional>
#include <utility>

#include "observe/observer_programs.h"
#include "observe_abi.h"

namespace sockalarm::observe {
namespace {

using std::chrono::nanoseconds;

nanoseconds ns(std::uint64_t value) { return nanoseconds(static_cast<std::int64_t>(value)); }

// The programs' clock.
nanoseconds monotonic_now() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return std::chrono::seconds(now.tv_sec) + nanoseconds(now.tv_nsec);
}

// The records' times are CLOCK_MONOTONIC, which says nothing outside of this host.
class WallClock {
 public:
  WallClock() : offset_(std::chrono::system_clock::now() - monotonic_now()) {}
  std::chrono::system_clock::time_point at(std::uint64_t monotonic) const {
    return std::chrono::time_point_cast<std::chrono::system_clock::duration>(offset_ + ns(monotonic));
  }

 private:
  std::chrono::time_point<std::chrono::system_clock, nanoseconds> offset_;
};

bool is_ipv4(const std::uint32_t (&address)[4]) {
  return address[0] == 0 && address[1] == 0 && address[2] == __builtin_bswap32(0xffff);
}

Endpoint endpoint(const std::uint32_t (&address)[4], std::uint16_t port) {
  Endpoint result;
  const bool ipv4 = is_ipv4(address);
  std::memcpy(result.address.data(), ipv4 ? &address[3] : &address[0], ipv4 ? 4 : 16);
  result.port = port;
  return result;
}

std::optional<nanoseconds> between(std::uint64_t from, std::uint64_t to) {
  if (from == 0 || to < from) return std::nullopt;
  return ns(to - from);
}

ConnectionEnd to_end(const sockalarm_observe_end& record, const WallClock& clock) {
  ConnectionEnd end;
  end.sequence = record.sequence;
  end.cookie = record.cookie;
  end.ended_at = clock.at(record.ended_at);
  end.latency = std::max(monotonic_now() - ns(record.recorded_at), nanoseconds::zero());
  end.age = between(record.established_at, record.ended_at);
  end.age_at_departure = between(record.established_at, record.departed_at);
  end.orphaned = ns(record.orphaned);
  end.cause = static_cast<Cause>(record.cause);
  end.verdict = static_cast<Verdict>(record.verdict);
  end.direction = static_cast<Direction>(record.direction);
  end.family = is_ipv4(record.endpoints.peer) ? AF_INET : AF_INET6;
  end.local = endpoint(record.endpoints.local, record.endpoints.local_port);
  end.peer = endpoint(record.endpoints.peer, record.endpoints.peer_port);
  end.cgroup = record.cgroup;
  end.pid = record.pid;
  end.command.assign(record.command, ::strnlen(record.command, sizeof record.command));
  end.bytes_received = record.bytes_received;
  end.bytes_sent = record.bytes_sent;
  end.unread = record.unread;
  end.unsent = record.unsent;
  end.error = static_cast<int>(record.error);
  return end;
}

sockalarm_observe_service to_kernel(const ServiceKey& key) {
  sockalarm_observe_service kernel{};
  kernel.cgroup = key.cgroup;
  kernel.cause = static_cast<std::uint8_t>(key.cause);
  kernel.verdict = static_cast<std::uint8_t>(key.verdict);
  kernel.direction = static_cast<std::uint8_t>(key.direction);
  return kernel;
}

ServiceMetrics to_metrics(const sockalarm_observe_service& key, const sockalarm_observe_metrics& values) {
  ServiceMetrics metrics;
  metrics.key = {key.cgroup, static_cast<Cause>(key.cause), static_cast<Verdict>(key.verdict),
                 static_cast<Direction>(key.direction)};
  metrics.ends = values.ends;
  metrics.bytes_received = values.bytes_received;
  metrics.bytes_sent = values.bytes_sent;
  metrics.orphaned = ns(values.orphaned);
  metrics.age = ns(values.age);
  std::copy(std::begin(values.ages), std::end(values.ages), metrics.ages.begin());
  std::copy(std::begin(values.orphaned_times), std::end(values.orphaned_times),
            metrics.orphaned_times.begin());
  return metrics;
}

// These give an errno, or 0. Entries that come or go meanwhile may be left out.
int read_one_by_one(int map, std::vector<ServiceMetrics>& all) {
  sockalarm_observe_service key{}, next{};
  for (const void* from = nullptr; bpf_map_get_next_key(map, from, &next) == 0; from = &key) {
    key = next;
    sockalarm_observe_metrics values{};
    if (bpf_map_lookup_elem(map, &key, &values) == 0) all.push_back(to_metrics(key, values));
  }
  return errno == ENOENT ? 0 : errno;
}

// By BPF_MAP_LOOKUP_BATCH (Linux 5.6), which gives whole buckets: ENOSPC if the next one alone is too large,
// ENOENT with the last ones (kernel/bpf/hashtab.c).
int read_batches(int map, std::vector<ServiceMetrics>& all) {
  std::uint32_t size = 256;
  std::uint32_t bucket = 0, next = 0;  // what the kernel goes on from; only it knows what that means
  std::vector<sockalarm_observe_service> keys;
  std::vector<sockalarm_observe_metrics> values;
  for (bool first = true;;) {
    keys.resize(size);
    values.resize(size);
    std::uint32_t count = size;
    const int result = bpf_map_lookup_batch(map, first ? nullptr : &bucket, &next, keys.data(), values.data(),
                                            &count, nullptr);
    const int error = result == 0 ? 0 : errno;
    if (error == ENOSPC) {
      size *= 2;
      continue;
    }
    if (error != 0 && error != ENOENT) return error;
    for (std::uint32_t i = 0; i < count; ++i) all.push_back(to_metrics(keys[i], values[i]));
    if (error == ENOENT) return 0;
    bucket = next;
    first = false;
  }
}

struct RingDeleter {
  void operator()(ring_buffer* ring) const noexcept { ring_buffer__free(ring); }
};

}  // namespace

struct Observer::Impl {
  // Called through C, which no exception may pass.
  static int on_record(void* self, void* data, std::size_t size) {
    auto* const impl = static_cast<Impl*>(self);
    sockalarm_observe_end record;
    if (size < sizeof record) return 0;
    std::memcpy(&record, data, sizeof record);
    try {
      (*impl->sink)(to_end(record, *impl->clock));
      // A negative number ends it; this record counts as read.
      return ++impl->count < impl->most ? 0 : -ECANCELED;
    } catch (...) {
      impl->thrown = std::current_exception();
      return -ECANCELED;
    }
  }

  // What was left is of no use if nobody wakes for it: libbpf's epoll instance hears of records as they come
  // only. A change of its entry makes it look again.
  void look_again() const {
    epoll_event entry{};
    entry.events = EPOLLIN;
    ::epoll_ctl(ring_buffer__epoll_fd(ring.get()), EPOLL_CTL_MOD, programs.ring(), &entry);
  }

  ObserverPrograms programs;
  std::size_t room = 0;  // records
  std::unique_ptr<ring_buffer, RingDeleter> ring;
  // while read() runs
  const std::function<void(const ConnectionEnd&)>* sink = nullptr;
  const WallClock* clock = nullptr;
  std::size_t count = 0, most = 0;
  std::exception_ptr thrown;
};

Observer::Observer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Observer::~Observer() = default;

Result<std::unique_ptr<Observer>> Observer::open(const ObserverOptions& options) {
  constexpr std::size_t kMost = std::size_t{1} << 30;
  if (options.ring_bytes > kMost || options.services == 0 || options.latency.count() < 0)
    return fail(Error(Errc::invalid_options,
                      "of an observer, ring_bytes may be at most 2^30, services must be 1 or more, latency "
                      "must not be negative"));
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t ring_bytes = std::bit_ceil(std::max(options.ring_bytes, page));
  auto programs = ObserverPrograms::load({.ring_bytes = static_cast<std::uint32_t>(ring_bytes),
                                          .services = options.services,
                                          .latency = options.latency,
                                          .reads = options.exact_progress,
                                          .first_sequence = options.first_sequence,
                                          .without = options.without},
                                         options.filter);
  if (!programs) return fail(programs.error());
  auto impl = std::make_unique<Impl>();
  impl->programs = std::move(*programs);
  impl->room = ring_bytes / (BPF_RINGBUF_HDR_SZ + sizeof(sockalarm_observe_end));
  impl->ring.reset(ring_buffer__new(impl->programs.ring(), Impl::on_record, impl.get(), nullptr));
  if (!impl->ring) return fail(detail::explain(errno, "mapping the observer's ring", ""));
  return std::unique_ptr<Observer>(new Observer(std::move(impl)));
}

const std::vector<std::string>& Observer::limits() const noexcept { return impl_->programs.limits(); }
int Observer::fd() const noexcept { return ring_buffer__epoll_fd(impl_->ring.get()); }

Result<std::size_t> Observer::read(const std::function<void(const ConnectionEnd&)>& sink, std::size_t most) {
  if (most == 0) return 0;
  const WallClock clock;
  impl_->sink = &sink;
  impl_->clock = &clock;
  impl_->count = 0;
  impl_->most = std::min(most, impl_->room);
  const int result = ring_buffer__consume(impl_->ring.get());
  if (result == -ECANCELED) impl_->look_again();
  if (impl_->thrown) std::rethrow_exception(std::exchange(impl_->thrown, nullptr));
  if (result < 0 && result != -ECANCELED)
    return fail(Error::from_errno(-result, "reading the observer's ring"));
  return impl_->count;
}

Result<void> Observer::set_filter(const Filter& filter) { return impl_->programs.set_filter(filter); }

Result<std::vector<ServiceMetrics>> Observer::metrics() const {
  std::vector<ServiceMetrics> all;
  int error = read_batches(impl_->programs.metrics(), all);
  if (error != 0) {
    all.clear();
    error = read_one_by_one(impl_->programs.metrics(), all);
  }
  if (error != 0) return fail(Error::from_errno(error, "reading the observer's metrics"));
  return all;
}

Result<void> Observer::forget(const ServiceKey& key) {
  const sockalarm_observe_service kernel = to_kernel(key);
  if (bpf_map_delete_elem(impl_->programs.metrics(), &kernel) == 0 || errno == ENOENT) return {};
  return fail(Error::from_errno(errno, "forgetting a service"));
}

Result<KernelLosses> Observer::losses() const {
  std::array<std::uint64_t, SOCKALARM_OBSERVE_LOSSES> sums{};
  const int processors = libbpf_num_possible_cpus();
  if (processors < 0) return fail(Error::from_errno(-processors, "counting processors"));
  std::vector<std::uint64_t> values(static_cast<std::size_t>(processors));
  for (std::uint32_t loss = 0; loss < sums.size(); ++loss) {
    if (bpf_map_lookup_elem(impl_->programs.losses(), &loss, values.data()) != 0)
      return fail(Error::from_errno(errno, "reading the observer's losses"));
    for (const std::uint64_t value : values) sums[loss] += value;
  }
  return KernelLosses{.records = sums[SOCKALARM_OBSERVE_LOST_RECORD],
                      .states = sums[SOCKALARM_OBSERVE_LOST_STATE],
                      .metrics = sums[SOCKALARM_OBSERVE_LOST_METRICS],
                      .late = sums[SOCKALARM_OBSERVE_FOUND_LATE],
                      .missed = impl_->programs.missed()};
}

}  // namespace sockalarm::observe
