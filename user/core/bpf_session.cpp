// SPDX-License-Identifier: Apache-2.0
#include "core/bpf_session.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <cap-ng.h>
#include <fcntl.h>
#include <linux/btf.h>
#include <pthread.h>
#include <sockalarm/unique_fd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdarg>
#include <cstring>
#include <fstream>
#include <mutex>
#include <optional>
#include <sstream>
#include <tuple>
#include <utility>

#include "core/ring_reader.h"
#include "sockalarm.skel.h"
#include "sockalarm_task_work.skel.h"

namespace sockalarm::detail {
namespace {

constexpr std::uint32_t kClient = 0;  // this process; the registry's `client` counts from here
constexpr const char* kBtfFile = "/sys/kernel/btf/vmlinux";

// Collects what libbpf says in this thread while it lives. libbpf's print function is global to the process,
// so other threads' messages go where they went before, and there is one collector at a time.
class LibbpfMessages {
 public:
  LibbpfMessages() : lock_(mutex()) {
    previous_ = libbpf_set_print(&LibbpfMessages::print);
    current_ = this;
  }
  ~LibbpfMessages() {
    current_ = nullptr;
    libbpf_set_print(previous_);
  }
  LibbpfMessages(const LibbpfMessages&) = delete;
  LibbpfMessages& operator=(const LibbpfMessages&) = delete;

  // The last warning is the one that says what failed.
  const std::string& last() const noexcept { return last_; }

 private:
  static int print(libbpf_print_level level, const char* format, va_list arguments) {
    if (current_ == nullptr) return previous_ != nullptr ? previous_(level, format, arguments) : 0;
    if (level != LIBBPF_WARN) return 0;
    std::array<char, 512> line{};
    const int n = vsnprintf(line.data(), line.size(), format, arguments);
    if (n > 0) current_->last_.assign(line.data());
    while (!current_->last_.empty() && current_->last_.back() == '\n') current_->last_.pop_back();
    return n;
  }

  // Held across fork(2), so that a child does not find it in the hands of a thread that it has not got. Never
  // destroyed: a fork may come while the process exits.
  static std::mutex& mutex() {
    static auto* const one = [] {
      static std::mutex* made = new std::mutex;
      ::pthread_atfork([] { made->lock(); }, [] { made->unlock(); }, [] { made->unlock(); });
      return made;
    }();
    return *one;
  }

  static thread_local LibbpfMessages* current_;
  static libbpf_print_fn_t
      previous_;  // set under the mutex; read by libbpf's callers in any thread meanwhile
  const std::lock_guard<std::mutex> lock_;
  std::string last_;
};
thread_local LibbpfMessages* LibbpfMessages::current_ = nullptr;
libbpf_print_fn_t LibbpfMessages::previous_ = nullptr;

// Memory of a file or of the kernel.
class Mapping {
 public:
  Mapping() = default;
  Mapping(void* address, std::size_t length) noexcept : address_(address), length_(length) {}
  Mapping(Mapping&& other) noexcept
      : address_(std::exchange(other.address_, nullptr)), length_(std::exchange(other.length_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(address_, other.address_);
    std::swap(length_, other.length_);
    return *this;
  }
  ~Mapping() {
    if (address_ != nullptr) ::munmap(address_, length_);
  }

  static Result<Mapping> of(int fd, std::size_t length, int protection, std::size_t offset, const char* what,
                            int flags = MAP_SHARED) {
    void* address = ::mmap(nullptr, length, protection, flags, fd, static_cast<off_t>(offset));
    if (address == MAP_FAILED) return fail(Error::from_errno(errno, std::string("mmap() of the ") + what));
    return Mapping(address, length);
  }
  void* get() const noexcept { return address_; }

  // From here on memory of this process alone, with the first `used` bytes as they are now. For a forked
  // child.
  void detach(std::size_t used) noexcept {
    void* copy = ::mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED) return;  // then it goes on seeing what the parent's slots mean
    std::memcpy(copy, address_, used);
    ::mremap(copy, length_, length_, MREMAP_MAYMOVE | MREMAP_FIXED, address_);
  }

 private:
  void* address_ = nullptr;
  std::size_t length_ = 0;
};

std::size_t page_size() { return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)); }

std::string missing_capabilities() {
  std::string missing;
  const auto has = [](unsigned capability) {
    return capng_have_capability(CAPNG_EFFECTIVE, capability) != 0;
  };
  capng_clear(CAPNG_SELECT_BOTH);
  if (capng_get_caps_process() != 0 || has(CAP_SYS_ADMIN)) return missing;
  for (const auto& [capability, name] : {std::pair<unsigned, const char*>{CAP_BPF, "CAP_BPF"},
                                         {CAP_PERFMON, "CAP_PERFMON"},
                                         {CAP_NET_ADMIN, "CAP_NET_ADMIN"}}) {
    if (!has(capability)) missing += (missing.empty() ? "" : ", ") + std::string(name);
  }
  return missing;
}

Error explain(int failed, const std::string& what, const std::string& libbpf_says) {
  if (failed == EPERM || failed == EACCES) {
    const std::string missing = missing_capabilities();
    return Error(
        std::error_code(failed, std::system_category()),
        what + (missing.empty()
                    ? ": refused although the capabilities are there: a user namespace, seccomp or kernel "
                      "lockdown forbids bpf(2)"
                    : ": this process lacks " + missing + " (run as root or grant them: setcap " +
                          "cap_bpf,cap_perfmon,cap_net_admin+ep PROGRAM)"));
  }
  const Error error = Error::from_errno(failed, what);
  return libbpf_says.empty() ? error : Error(error.code(), error.message() + " (" + libbpf_says + ")");
}

// The root of the cgroup v2 hierarchy, wherever it is mounted (proc_pid_mountinfo(5)).
std::optional<std::string> cgroup2_root() {
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string id, parent, device, root, mount_point, word, type;
    fields >> id >> parent >> device >> root >> mount_point;
    while (fields >> word && word != "-") {
    }
    fields >> type;
    if (type == "cgroup2" && root == "/") return mount_point;
  }
  return std::nullopt;
}

// In a container's cgroup namespace "/" is not the host's root, and a hook there misses sockets made
// elsewhere.
bool in_initial_cgroup_namespace() {
  constexpr ino_t kInitial = 0xEFFFFFFB;  // PROC_CGROUP_INIT_INO, include/linux/proc_ns.h
  struct stat status{};
  return ::stat("/proc/self/ns/cgroup", &status) == 0 && status.st_ino == kInitial;
}

// Whether the release hook will hear of every socket that is closed on this host.
bool release_suffices() { return cgroup2_root() && in_initial_cgroup_namespace(); }

// Which names this kernel's type information has. Only its strings are looked through: parsing all of it
// takes longer than loading the programs. A name that is there as a whole string is there as what we take it
// for.
class KernelBtf {
 public:
  KernelBtf() {
    const UniqueFd file(::open(kBtfFile, O_RDONLY | O_CLOEXEC));
    struct stat status{};
    if (!file || ::fstat(file.get(), &status) != 0) {
      error_ = errno;
      return;
    }
    const auto size = static_cast<std::size_t>(status.st_size);
    // Since 6.16. Read it where it cannot be mapped: sysfs gives a page per call.
    if (auto mapped = Mapping::of(file.get(), size, PROT_READ, 0, "type information", MAP_PRIVATE)) {
      mapping_ = std::move(*mapped);
      names_ = strings_of({static_cast<const char*>(mapping_.get()), size});
    } else {
      content_.resize(size);
      std::size_t done = 0;
      for (ssize_t n = 1; n > 0 && done < size; done += static_cast<std::size_t>(std::max<ssize_t>(n, 0)))
        n = ::read(file.get(), content_.data() + done, size - done);
      content_.resize(done);
      names_ = strings_of(content_);
    }
    if (names_.empty()) error_ = ENOENT;
  }

  int error() const noexcept { return error_; }
  bool has_function(std::string_view name) const { return has(name); }
  bool has_tracepoint(std::string_view name) const { return has("btf_trace_" + std::string(name)); }

 private:
  static std::string_view strings_of(std::string_view btf) {
    btf_header header{};
    if (btf.size() < sizeof header) return {};
    std::memcpy(&header, btf.data(), sizeof header);
    const std::uint64_t begin = std::uint64_t{header.hdr_len} + header.str_off;
    return header.magic == BTF_MAGIC && begin < btf.size() ? btf.substr(begin, header.str_len)
                                                           : std::string_view{};
  }
  bool has(std::string_view name) const {
    std::string whole(1, '\0');
    whole.append(name).push_back('\0');
    return ::memmem(names_.data(), names_.size(), whole.data(), whole.size()) != nullptr;
  }

  Mapping mapping_;
  std::string content_;     // where it cannot be mapped
  std::string_view names_;  // of one of the two
  int error_ = 0;
};

struct ObjectDeleter {
  void operator()(bpf_object* object) const noexcept { bpf_object__close(object); }
};

// The BPF object, of which there are two with the same maps and programs (sockalarm.bpf.c), by name.
class Object {
 public:
  static Object open(bool task_work) {
    std::size_t size = 0;
    const void* bytes =
        task_work ? sockalarm_task_work_bpf__elf_bytes(&size) : sockalarm_bpf__elf_bytes(&size);
    bpf_object_open_opts options{};
    options.sz = sizeof options;
    options.object_name = "sockalarm";
    Object object;
    object.object_.reset(bpf_object__open_mem(bytes, size, &options));
    return object;
  }

  explicit operator bool() const noexcept { return object_ != nullptr; }
  void reset() noexcept { object_.reset(); }
  void autoload(const char* name, bool on) const noexcept { bpf_program__set_autoload(program(name), on); }
  int load() const noexcept { return -bpf_object__load(object_.get()); }

  bpf_program* program(const char* name) const noexcept {
    return bpf_object__find_program_by_name(object_.get(), name);
  }
  bool loaded(const char* name) const noexcept {
    return program(name) != nullptr && bpf_program__fd(program(name)) >= 0;
  }
  bpf_map* map(const char* name) const noexcept { return bpf_object__find_map_by_name(object_.get(), name); }

 private:
  std::unique_ptr<bpf_object, ObjectDeleter> object_;
};

struct LinkDeleter {
  void operator()(bpf_link* link) const noexcept { bpf_link__destroy(link); }
};
using Link = std::unique_ptr<bpf_link, LinkDeleter>;

Result<Link> attach(const bpf_program* program, const std::string& hook) {
  const LibbpfMessages messages;
  Link link(bpf_program__attach(program));
  if (!link) return fail(explain(errno, "attaching to " + hook, messages.last()));
  return link;
}

Result<Link> attach_release(const bpf_program* program) {
  const auto root = cgroup2_root();
  if (!root) return fail(Error(Errc::unsupported, "no cgroup v2 hierarchy is mounted"));
  const UniqueFd directory(::open(root->c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) return fail(Error::from_errno(errno, *root));
  const LibbpfMessages messages;
  Link link(bpf_program__attach_cgroup(program, directory.get()));
  if (!link) return fail(explain(errno, "attaching to cgroup/sock_release at " + *root, messages.last()));
  return link;
}

Result<UniqueFd> make_inner_map(const bpf_map* outer, const char* name, bpf_map_type type,
                                std::uint32_t value_size, std::uint32_t entries, std::uint32_t flags) {
  bpf_map_create_opts options{};
  options.sz = sizeof options;
  options.map_flags = flags;
  UniqueFd map(
      bpf_map_create(type, name, value_size != 0 ? sizeof(std::uint32_t) : 0, value_size, entries, &options));
  if (!map) return fail(explain(errno, std::string("creating map ") + name, ""));
  const int fd = map.get();
  if (bpf_map_update_elem(bpf_map__fd(outer), &kClient, &fd, BPF_ANY) != 0)
    return fail(explain(errno, std::string("inserting map ") + name, ""));
  return map;
}

constexpr const char* kScheduleTaskWork = "bpf_task_work_schedule_signal_impl";

bool has_task_work(const KernelBtf& btf) {
  return btf.has_function(kScheduleTaskWork) && btf.has_function("bpf_task_from_pid");
}

class LoadedSession final : public BpfSession {
 public:
  // direct: the programs that deliver by task work. with_release: the release hook's program type needs
  // CAP_NET_ADMIN, the tracepoints do not.
  Result<void> load(std::uint32_t slots, const KernelBtf& btf, bool direct, bool with_release) {
    const LibbpfMessages messages;
    if (btf.error() != 0) {
      return fail(Error::from_errno(btf.error(), std::string("this kernel's type information (") + kBtfFile +
                                                     ", CONFIG_DEBUG_INFO_BTF) cannot be read"));
    }
    if (!btf.has_tracepoint("inet_sock_set_state"))
      return fail(
          Error(Errc::unsupported, "this kernel has no tracepoint inet_sock_set_state (Linux >= 4.16)"));
    const bool reports_errors = btf.has_tracepoint("inet_sk_error_report");
    if (direct && !has_task_work(btf)) {
      refuse_task_work(Error(Errc::unsupported,
                             std::string("this kernel has no ") + kScheduleTaskWork + "() (Linux >= 6.18)"));
      direct = false;
    }
    object_ = Object::open(direct);
    if (!object_) return fail(explain(errno, "opening the BPF object", messages.last()));
    object_.autoload("on_set_state", true);
    object_.autoload("on_error_report", reports_errors);
    object_.autoload("on_destroy",
                     btf.has_tracepoint("tcp_destroy_sock") && !(with_release && release_suffices()));
    object_.autoload("on_read", btf.has_tracepoint("tcp_rcv_space_adjust"));
    object_.autoload("on_release", with_release);
    if (direct) object_.autoload("introduce_thread", true);
    bpf_map__set_max_entries(object_.map("registry"), slots);
    if (const int failed = object_.load(); failed != 0)
      return fail(explain(failed, "loading the BPF programs", messages.last()));
    if (!direct) return {};
    auto self = introduce_thread();
    if (!self) return fail(self.error());
    tgid_ = self->tgid;
    no_task_work_.reset();
    return {};
  }
  void refuse_task_work(Error why) { no_task_work_ = std::move(why); }

  Result<void> make_maps(std::uint32_t slots, std::size_t ring_bytes) {
    auto table = make_inner_map(object_.map("watch_tables"), "watch_table", BPF_MAP_TYPE_ARRAY,
                                sizeof(WatchState), slots, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
    if (!table) return fail(table.error());
    auto ring = make_inner_map(object_.map("event_rings"), "event_ring", BPF_MAP_TYPE_RINGBUF, 0,
                               static_cast<std::uint32_t>(ring_bytes), 0);
    if (!ring) return fail(ring.error());
    ring_ = std::move(*ring);

    const std::size_t page = page_size();
    auto table_memory =
        Mapping::of(table->get(), sizeof(WatchState) * slots, PROT_READ | PROT_WRITE, 0, "watch table");
    if (!table_memory) return fail(table_memory.error());
    auto consumer = Mapping::of(ring_.get(), page, PROT_READ | PROT_WRITE, 0, "ring's consumer page");
    if (!consumer) return fail(consumer.error());
    auto producer = Mapping::of(ring_.get(), page + 2 * ring_bytes, PROT_READ, page, "ring's data");
    if (!producer) return fail(producer.error());
    table_memory_ = std::move(*table_memory);
    consumer_ = std::move(*consumer);
    producer_ = std::move(*producer);
    table_ = {static_cast<WatchState*>(table_memory_.get()), slots};
    generations_.resize(slots);
    reader_.emplace(static_cast<std::uint64_t*>(consumer_.get()),
                    static_cast<const std::uint64_t*>(producer_.get()), page, ring_bytes);
    return {};
  }

  Result<void> attach_all() {
    for (const auto& [program, hook] : {std::pair{"on_error_report", "inet_sk_error_report"},
                                        std::pair{"on_set_state", "inet_sock_set_state"}}) {
      if (!object_.loaded(program)) continue;  // not in this kernel
      auto link = attach(object_.program(program), hook);
      if (!link) return fail(link.error());
      links_.push_back(std::move(*link));
    }
    return {};
  }

  std::span<WatchState> table() noexcept override { return table_; }
  Result<void> delivers() const override {
    if (no_task_work_) return fail(*no_task_work_);
    return {};
  }
  Result<sockalarm_thread> introduce_thread() noexcept override {
    sockalarm_thread self{};
    bpf_test_run_opts options{};
    options.sz = sizeof options;
    options.ctx_in = &self;
    options.ctx_size_in = sizeof self;
    if (bpf_prog_test_run_opts(bpf_program__fd(object_.program("introduce_thread")), &options) != 0)
      return fail(explain(errno, "running the program that tells a thread its id", ""));
    return self;
  }

  int ring_fd() const noexcept override { return ring_.get(); }
  void drain(std::vector<sockalarm_record>& out) override { reader_->drain(out); }
  bool pending() const noexcept override { return reader_->pending(); }
  std::uint64_t bad_records() const noexcept override { return reader_->bad(); }

  Result<void> enroll(std::uint64_t cookie, std::uint32_t slot, std::uint32_t generation) override {
    generations_[slot] = generation;
    if (slot > highest_slot_.load()) highest_slot_.store(slot);
    const sockalarm_registration where{kClient, slot, generation, tgid_, 0};
    if (bpf_map_update_elem(registry(), &cookie, &where, BPF_ANY) == 0) return {};
    return fail(explain(errno, "registering a socket with the kernel", ""));
  }
  void dismiss(std::uint64_t cookie) noexcept override {
    bpf_map_delete_elem(registry(), &cookie);  // ENOENT: the kernel had forgotten it already
  }

  bool watch_reads(bool on) override {
    if (!object_.loaded("on_read")) return false;
    if (!on) {
      reads_.reset();
    } else if (!reads_) {
      auto link = attach(object_.program("on_read"), "tcp_rcv_space_adjust");
      if (link) reads_ = std::move(*link);
    }
    return !on || reads_ != nullptr;
  }

  bool watch_closing() override {
    if (release_ || destroy_) return true;
    if (object_.loaded("on_release"))
      if (auto release = attach_release(object_.program("on_release"))) release_ = std::move(*release);
    if (object_.loaded("on_destroy"))
      if (auto destroy = attach(object_.program("on_destroy"), "tcp_destroy_sock"))
        destroy_ = std::move(*destroy);
    return release_ || destroy_;
  }

  std::uint64_t missed_runs() const noexcept override {
    bpf_prog_info info{};
    std::uint32_t size = sizeof info;
    const int fd = bpf_program__fd(object_.program("on_set_state"));
    return bpf_obj_get_info_by_fd(fd, &info, &size) == 0 ? info.recursion_misses : 0;  // 0 before 5.12
  }

  // The child's objects still read the table, but its slots will be other sockets' of the parent's, so it
  // gets a copy. The links go, else the child would keep the programs attached after the parent's end.
  void after_fork() noexcept override {
    links_.clear();
    for (Link* link : {&reads_, &release_, &destroy_}) link->reset();
    object_.reset();
    ring_.reset();
    table_memory_.detach(sizeof(WatchState) * (highest_slot_.load() + 1));
    // Until the copy was made the parent may have given slots to other sockets.
    for (std::uint32_t slot = 1; slot <= highest_slot_.load(); ++slot) {
      const std::uint64_t mine = std::uint64_t{generations_[slot]} << 32;
      if ((table_[slot].seen ^ mine) >> 32 != 0) table_[slot].seen = mine;
    }
  }

 private:
  int registry() const noexcept { return bpf_map__fd(object_.map("registry")); }

  std::optional<Error> no_task_work_ =
      Error(Errc::unsupported, "task work was not asked for (Options::delivery)");
  std::uint32_t tgid_ = 0;  // in the initial pid namespace; 0 without task work: no thread may be signalled
  Object object_;
  std::vector<Link> links_;
  Link reads_, release_, destroy_;  // while they are needed
  UniqueFd ring_;
  Mapping table_memory_, consumer_, producer_;
  std::span<WatchState> table_;
  std::atomic<std::uint32_t> highest_slot_{0};  // ever used
  std::vector<std::uint32_t> generations_;      // of the slots, in memory that a forked child has as it was
  std::optional<RingReader> reader_;
};

// From the most that can be had to the least; the last failure is the one to tell.
Result<void> load_the_most(LoadedSession& session, std::uint32_t slots, const KernelBtf& btf, bool direct) {
  Result<void> loaded = fail(Error(Errc::unsupported, "nothing was tried"));
  for (const bool with_task_work : {true, false}) {
    if (with_task_work && !direct) continue;
    for (const bool with_release : {true, false}) {
      loaded = session.load(slots, btf, with_task_work, with_release);
      if (loaded) return loaded;
    }
    if (with_task_work) session.refuse_task_work(loaded.error());
  }
  return loaded;
}

}  // namespace

Result<std::unique_ptr<BpfSession>> BpfSession::open(std::uint32_t slots, std::size_t ring_bytes,
                                                     bool direct) {
  auto session = std::make_unique<LoadedSession>();
  auto before = std::chrono::steady_clock::now();
  std::string& times = session->times_;
  const auto passed = [&](const char* step) {
    const auto now = std::chrono::steady_clock::now();
    times += (times.empty() ? "kernel source: " : ", ") + std::string(step) + " " +
             std::to_string((now - before) / std::chrono::microseconds(1)) + " us";
    before = now;
  };
  const KernelBtf btf;
  passed("names");
  if (auto ok = load_the_most(*session, slots, btf, direct); !ok) return fail(ok.error());
  passed("loaded");
  if (auto ok = session->make_maps(slots, std::bit_ceil(std::max(ring_bytes, page_size()))); !ok)
    return fail(ok.error());
  passed("maps");
  if (auto ok = session->attach_all(); !ok) return fail(ok.error());
  passed("attached");
  return std::unique_ptr<BpfSession>(std::move(session));
}

std::vector<Feature> BpfSession::probe() {
  std::vector<Feature> features;
  const auto add = [&](std::string name, bool available, std::string detail, std::string remedy) {
    features.push_back({std::move(name), available, std::move(detail), available ? "" : std::move(remedy)});
  };
  const KernelBtf btf;
  add("kernel type information", btf.error() == 0,
      btf.error() == 0 ? kBtfFile : Error::from_errno(btf.error(), kBtfFile).message(),
      "a kernel with CONFIG_DEBUG_INFO_BTF, as the distributions build it");
  const std::string missing = missing_capabilities();
  add("capabilities", missing.empty(),
      missing.empty() ? "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN" : "missing: " + missing,
      "run as root, or setcap cap_bpf,cap_perfmon,cap_net_admin+ep PROGRAM");
  for (const auto& [name, what, since] :
       {std::tuple{"inet_sock_set_state", "every end of a connection", "4.16"},
        std::tuple{"inet_sk_error_report", "errors that leave a connection as it was (IP_RECVERR)", "5.14"},
        std::tuple{"tcp_destroy_sock", "stands in for the release hook", "4.15"},
        std::tuple{"tcp_rcv_space_adjust", "eof without asking again and again", "4.15"}}) {
    const bool there = btf.has_tracepoint(name);
    add(std::string("tracepoint ") + name, there, there ? what : std::string("not in this kernel; ") + what,
        std::string("Linux ") + since + " or newer");
  }
  add("task work", has_task_work(btf),
      has_task_work(btf)
          ? "signals are sent in the thread that armed, without a helper thread"
          : std::string("not in this kernel (") + kScheduleTaskWork + "); the dispatcher sends signals",
      "Linux 6.18 or newer; or Options::delivery = sigio");
  const auto root = cgroup2_root();
  add("cgroup v2 for the release hook", root.has_value(), root.value_or("no cgroup v2 hierarchy is mounted"),
      "mount -t cgroup2 none /sys/fs/cgroup/unified; without it closed sockets are noticed a little later");
  return features;
}

}  // namespace sockalarm::detail
