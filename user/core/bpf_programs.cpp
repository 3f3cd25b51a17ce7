// SPDX-License-Identifier: Apache-2.0
#include "core/bpf_programs.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <cap-ng.h>
#include <elf.h>
#include <fcntl.h>
#include <linux/btf.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstddef>
#include <cstring>
#include <tuple>
#include <utility>

#include "base/cgroup2.h"
#include "base/mutex.h"
#include "core/watch_state.h"
#include "sockalarm.skel.h"
#include "sockalarm_task_work.skel.h"

namespace sockalarm::detail {
namespace {

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
  static Mutex& mutex() {
    static auto* const one = [] {
      static Mutex* made = new Mutex;
      ::pthread_atfork([]() ACQUIRE(*made) { made->lock(); }, []() RELEASE(*made) { made->unlock(); },
                       []() RELEASE(*made) { made->unlock(); });
      return made;
    }();
    return *one;
  }

  static thread_local LibbpfMessages* current_;
  static libbpf_print_fn_t
      previous_;  // set under the mutex; read by libbpf's callers in any thread meanwhile
  const MutexLock lock_;
  std::string last_;
};
thread_local LibbpfMessages* LibbpfMessages::current_ = nullptr;
libbpf_print_fn_t LibbpfMessages::previous_ = nullptr;

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

}  // namespace

Error explain(int failed, const std::string& what, const std::string& libbpf_says) {
  if (failed == EPERM || failed == EACCES) {
    const std::string missing = missing_capabilities();
    return Error(
        std::error_code(failed, std::system_category()),
        what + (missing.empty()
                    ? ": refused although the capabilities are there: a user namespace, seccomp or kernel "
                      "lockdown forbids bpf(2), or the verifier refuses a program" +
                          (libbpf_says.empty() ? "" : " (" + libbpf_says + ")")
                    : ": this process lacks " + missing + " (run as root or grant them: setcap " +
                          "cap_bpf,cap_perfmon,cap_net_admin+ep PROGRAM)"));
  }
  const Error error = Error::from_errno(failed, what);
  return libbpf_says.empty() ? error : Error(error.code(), error.message() + " (" + libbpf_says + ")");
}

bool release_suffices() { return cgroup2_root().has_value(); }

KernelBtf::KernelBtf() {
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

std::string_view KernelBtf::strings_of(std::string_view btf) {
  btf_header header{};
  if (btf.size() < sizeof header) return {};
  std::memcpy(&header, btf.data(), sizeof header);
  const std::uint64_t begin = std::uint64_t{header.hdr_len} + header.str_off;
  return header.magic == BTF_MAGIC && begin < btf.size() ? btf.substr(begin, header.str_len)
                                                         : std::string_view{};
}

bool KernelBtf::has(std::string_view name) const {
  std::string whole(1, '\0');
  whole.append(name).push_back('\0');
  return ::memmem(names_.data(), names_.size(), whole.data(), whole.size()) != nullptr;
}

void LinkDeleter::operator()(bpf_link* link) const noexcept { bpf_link__destroy(link); }
void ObjectDeleter::operator()(bpf_object* object) const noexcept { bpf_object__close(object); }

namespace {

// The BPF object, of which there are two with the same maps and programs (sockalarm.bpf.c).
bpf_object* open_object(bool task_work) {
  std::size_t size = 0;
  const void* bytes = task_work ? sockalarm_task_work_bpf__elf_bytes(&size) : sockalarm_bpf__elf_bytes(&size);
  bpf_object_open_opts options{};
  options.sz = sizeof options;
  options.object_name = "sockalarm";
  return bpf_object__open_mem(bytes, size, &options);
}

}  // namespace

Result<void> run_quietly(const std::string& what, const std::function<int()>& step) {
  const LibbpfMessages messages;
  if (const int result = step(); result < 0) return fail(explain(-result, what, messages.last()));
  return {};
}

Result<Link> attach_tracepoint(const bpf_program* program, const std::string& hook) {
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

namespace {

Result<UniqueFd> make_map(const char* name, bpf_map_type type, std::uint32_t value_size,
                          std::uint32_t entries, std::uint32_t flags) {
  bpf_map_create_opts options{};
  options.sz = sizeof options;
  options.map_flags = flags;
  UniqueFd map(
      bpf_map_create(type, name, value_size != 0 ? sizeof(std::uint32_t) : 0, value_size, entries, &options));
  if (!map) return fail(explain(errno, std::string("creating map ") + name, ""));
  return map;
}

constexpr const char* kScheduleTaskWork = "bpf_task_work_schedule_signal_impl";

bool has_task_work(const KernelBtf& btf) {
  return btf.has_function(kScheduleTaskWork) && btf.has_function("bpf_task_from_pid");
}

}  // namespace

std::uint64_t programs_hash() {
  // Not by libbpf, whose programs are without the functions that they call before they are loaded.
  std::size_t size = 0;
  const auto* const bytes = static_cast<const unsigned char*>(sockalarm_task_work_bpf__elf_bytes(&size));
  Elf64_Ehdr file{};
  std::memcpy(&file, bytes, sizeof file);
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (unsigned i = 0; i < file.e_shnum; ++i) {
    Elf64_Shdr section{};
    std::memcpy(&section, bytes + file.e_shoff + std::size_t{i} * file.e_shentsize, sizeof section);
    if (section.sh_type != SHT_PROGBITS || (section.sh_flags & SHF_ALLOC) == 0) continue;  // BTF has paths
    for (std::size_t at = 0; at < section.sh_size; ++at)
      hash = (hash ^ bytes[section.sh_offset + at]) * 0x100000001b3;
  }
  return hash;
}

bool is_realtime_kernel() {
  utsname system{};
  return ::uname(&system) == 0 &&
         std::string_view(system.version).find("PREEMPT_RT") != std::string_view::npos;
}

Result<void> check_ring_lock(const btf* kernel) {
  const int ring = btf__find_by_name_kind(kernel, "bpf_ringbuf", BTF_KIND_STRUCT);
  const btf_type* const type = ring > 0 ? btf__type_by_id(kernel, static_cast<__u32>(ring)) : nullptr;
  for (unsigned i = 0; type != nullptr && i < btf_vlen(type); ++i) {
    const btf_member& member = btf_members(type)[i];
    if (std::string_view(btf__name_by_offset(kernel, member.name_off)) != "spinlock") continue;
    const btf_type* const lock = btf__type_by_id(kernel, member.type);
    if (std::string_view(btf__name_by_offset(kernel, lock->name_off)) == "raw_spinlock_t") return {};
  }
  return fail(
      Error(Errc::unsupported,
            "this realtime kernel's BPF rings take a lock that sleeps (CVE-2024-50138); Linux 6.12 or "
            "newer, or a stable kernel with that fixed"));
}

Result<void> check_realtime() {
  if (!is_realtime_kernel()) return {};
  const std::unique_ptr<btf, decltype(&btf__free)> kernel(btf__load_vmlinux_btf(), &btf__free);
  if (!kernel) return fail(Error::from_errno(errno, "reading this kernel's type information"));
  return check_ring_lock(kernel.get());
}

namespace {

// The constants of the programs, which the verifier knows once they are loaded.
int set_constants(const bpf_object* object, const sockalarm_settings& settings) {
  bpf_map* const map = bpf_object__find_map_by_name(object, ".rodata.settings");
  return map == nullptr ? ENOENT : -bpf_map__set_initial_value(map, &settings, sizeof settings);
}

}  // namespace

Result<void> BpfPrograms::try_load(Sizes sizes, const KernelBtf& btf, bool direct, bool with_release) {
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
    no_task_work_ = Error(Errc::unsupported,
                          std::string("this kernel has no ") + kScheduleTaskWork + "() (Linux >= 6.18)");
    direct = false;
  }
  object_.reset(open_object(direct));
  if (!object_) return fail(explain(errno, "opening the BPF object", messages.last()));
  if (const int failed = set_constants(object_.get(), {.without_timers = is_realtime_kernel()}); failed != 0)
    return fail(explain(failed, "setting the constants of the BPF object", messages.last()));
  autoload("on_set_state", true);
  autoload("on_error_report", reports_errors);
  autoload("on_destroy", btf.has_tracepoint("tcp_destroy_sock") && !(with_release && release_suffices()));
  autoload("on_read", btf.has_tracepoint("tcp_rcv_space_adjust"));
  autoload("on_release", with_release);
  if (direct) autoload("introduce_thread", true);
  bpf_map__set_max_entries(map("registry"), sizes.sockets);
  for (const char* name : {"watch_tables", "event_rings", "clients", "late_wakes"})
    bpf_map__set_max_entries(map(name), sizes.clients);
  if (const int failed = -bpf_object__load(object_.get()); failed != 0)
    return fail(explain(failed, "loading the BPF programs", messages.last()));
  if (direct) no_task_work_.reset();
  return {};
}

Result<BpfPrograms> BpfPrograms::load(Sizes sizes, const KernelBtf& btf, bool direct) {
  BpfPrograms programs;
  if (btf.error() == 0)  // once, since it reads all of the type information
    if (auto ok = check_realtime(); !ok) return fail(ok.error());
  Result<void> loaded = fail(Error(Errc::unsupported, "nothing was tried"));
  for (const bool with_task_work : {true, false}) {
    if (with_task_work && !direct) continue;
    for (const bool with_release : {true, false}) {
      loaded = programs.try_load(sizes, btf, with_task_work, with_release);
      if (loaded) return programs;
    }
    if (with_task_work) programs.no_task_work_ = loaded.error();
  }
  return fail(loaded.error());
}

Result<void> BpfPrograms::attach() {
  for (const auto& [name, hook] : {std::pair{"on_error_report", "inet_sk_error_report"},
                                   std::pair{"on_set_state", "inet_sock_set_state"}}) {
    if (!loaded(name)) continue;  // not in this kernel
    auto link = attach_tracepoint(program(name), hook);
    if (!link) return fail(link.error());
    links_.push_back({name, std::move(*link)});
  }
  return {};
}

bool BpfPrograms::attach_closing() {
  if (closing_attached_) return true;
  if (loaded("on_release"))
    if (auto release = attach_release(program("on_release")))
      links_.push_back({"on_release", std::move(*release)});
  if (loaded("on_destroy"))
    if (auto destroy = attach_tracepoint(program("on_destroy"), "tcp_destroy_sock"))
      links_.push_back({"on_destroy", std::move(*destroy)});
  closing_attached_ = links_.back().program == std::string_view("on_release") ||
                      links_.back().program == std::string_view("on_destroy");
  return closing_attached_;
}

std::uint64_t missed_runs(int program) noexcept {
  bpf_prog_info info{};
  std::uint32_t size = sizeof info;
  return bpf_obj_get_info_by_fd(program, &info, &size) == 0 ? info.recursion_misses : 0;  // 0 before 5.12
}

Result<Link> BpfPrograms::attach_reads() const {
  return attach_tracepoint(program("on_read"), "tcp_rcv_space_adjust");
}

Result<void> BpfPrograms::delivers() const {
  if (no_task_work_) return fail(*no_task_work_);
  return {};
}

void BpfPrograms::autoload(const char* name, bool on) const noexcept {
  bpf_program__set_autoload(program(name), on);
}
bpf_program* BpfPrograms::program(const char* name) const noexcept {
  return bpf_object__find_program_by_name(object_.get(), name);
}
bool BpfPrograms::loaded(const char* name) const noexcept { return program_fd(name) >= 0; }
int BpfPrograms::program_fd(const char* name) const noexcept {
  const bpf_program* const found = program(name);
  return found != nullptr ? bpf_program__fd(found) : -1;
}
bpf_map* BpfPrograms::map(const char* name) const noexcept {
  return bpf_object__find_map_by_name(object_.get(), name);
}
int BpfPrograms::map_fd(const char* name) const noexcept { return bpf_map__fd(map(name)); }

Result<UniqueFd> make_table(std::uint32_t slots) {
  return make_map("watch_table", BPF_MAP_TYPE_ARRAY, sizeof(WatchState), slots,
                  BPF_F_MMAPABLE | BPF_F_INNER_MAP);
}
Result<UniqueFd> make_ring(std::size_t bytes) {
  return make_map("event_ring", BPF_MAP_TYPE_RINGBUF, 0, static_cast<std::uint32_t>(bytes), 0);
}
Result<void> insert_map(int outer, std::uint32_t client, int inner, const char* name) {
  if (bpf_map_update_elem(outer, &client, &inner, BPF_ANY) == 0) return {};
  return fail(explain(errno, std::string("inserting map ") + name, ""));
}

Result<UniqueFd> make_introduction() {
  static_assert(sizeof(sockalarm_thread) == 8 && offsetof(sockalarm_thread, tid) == 4);
  constexpr auto kContext = BPF_REG_6;  // survives the call
  const std::array<bpf_insn, 7> code = {
      {{BPF_ALU64 | BPF_MOV | BPF_X, kContext, BPF_REG_1, 0, 0},
       {BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_get_current_pid_tgid},
       {BPF_STX | BPF_MEM | BPF_W, kContext, BPF_REG_0, offsetof(sockalarm_thread, tid), 0},
       {BPF_ALU64 | BPF_RSH | BPF_K, BPF_REG_0, 0, 0, 32},
       {BPF_STX | BPF_MEM | BPF_W, kContext, BPF_REG_0, offsetof(sockalarm_thread, tgid), 0},
       {BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0},
       {BPF_JMP | BPF_EXIT, 0, 0, 0, 0}}};
  bpf_prog_load_opts options{};
  options.sz = sizeof options;
  options.prog_flags = BPF_F_SLEEPABLE;  // the only way for this type
  UniqueFd program(bpf_prog_load(BPF_PROG_TYPE_SYSCALL, "introduce_thread", "Apache-2.0", code.data(),
                                 code.size(), &options));
  if (!program) return fail(explain(errno, "loading the program that tells a thread its id", ""));
  return program;
}

std::vector<Feature> probe_programs() {
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
