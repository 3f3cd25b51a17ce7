// SPDX-License-Identifier: Apache-2.0
#include "fuzz/kernel_side_in_memory.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>

#include "core/bpf_programs.h"
#include "daemon/kernel_side.h"

namespace sockalarm {
namespace {

struct Kernel {
  std::map<std::uint64_t, sockalarm_registration> registry;
  std::map<std::uint32_t, sockalarm_client> clients;
  std::set<std::uint32_t> readers;
  bool nonsense = false;
};

Kernel& kernel() {
  static Kernel one;
  return one;
}

constexpr const char *kTable = "table", *kRing = "ring";

Result<UniqueFd> make_file(const char* name, std::size_t bytes) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC));
  if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
    return fail(Error::from_errno(errno, "memfd_create()"));
  return fd;
}

std::string name_of(int fd) {
  char target[64]{};
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  return ::readlink(link.c_str(), target, sizeof target - 1) > 0 ? target : "";
}

}  // namespace

namespace fuzz {

std::size_t registered() noexcept { return kernel().registry.size(); }
std::size_t clients() noexcept { return kernel().clients.size(); }
std::size_t readers() noexcept { return kernel().readers.size(); }
bool nonsense_registered() noexcept { return kernel().nonsense; }

}  // namespace fuzz

namespace detail {

Result<UniqueFd> make_table(std::uint32_t slots) {
  return make_file(kTable, slots * sizeof(sockalarm_watch_state));
}
Result<UniqueFd> make_ring(std::size_t bytes) { return make_file(kRing, bytes); }
Result<UniqueFd> make_introduction() { return UniqueFd(); }  // no task work here

}  // namespace detail

namespace daemon {

Result<MapFacts> map_facts(int fd) {
  const std::string name = name_of(fd);
  struct stat status{};
  if (!name.starts_with("/memfd:") || ::fstat(fd, &status) != 0)
    return fail(Error::from_errno(EINVAL, "a descriptor that is no BPF map"));
  const bool table = name.starts_with("/memfd:table");
  const auto bytes = static_cast<std::uint32_t>(status.st_size),
             id = static_cast<std::uint32_t>(status.st_ino);
  const auto slot = static_cast<std::uint32_t>(sizeof(sockalarm_watch_state));
  return MapFacts{table ? 1U : 2U, id, table ? slot : 0U, table ? bytes / slot : bytes, 0};
}

bool is_table(const MapFacts& facts) noexcept { return facts.type == 1; }
bool is_ring(const MapFacts& facts) noexcept { return facts.type == 2; }

Result<std::unique_ptr<KernelSide>> KernelSide::open(const std::string& directory, Sizes sizes) {
  std::unique_ptr<KernelSide> side(new KernelSide(directory));
  side->sizes_ = sizes;
  return side;
}

Result<std::uint32_t> KernelSide::add(const sockalarm_client& facts, int /*table*/, int /*ring*/) {
  for (std::uint32_t index = 0; index < sizes_.clients; ++index)
    if (kernel().clients.emplace(index, facts).second) return index;
  return fail(Error::from_errno(ENOSPC, "clients"));
}

void KernelSide::remove(std::uint32_t index) noexcept {
  kernel().clients.erase(index);
  kernel().readers.erase(index);
}

Result<void> KernelSide::watch(std::uint64_t cookie, const sockalarm_registration& where) {
  const auto owner = kernel().clients.find(where.client);
  if (owner == kernel().clients.end() || where.slot == 0 || where.slot >= owner->second.slots || cookie == 0)
    kernel().nonsense = true;
  const auto known = kernel().registry.find(cookie);
  if (known != kernel().registry.end() && known->second.client != where.client)
    return fail(Error::from_errno(EBUSY, "another client watches this socket"));
  kernel().registry[cookie] = where;
  return {};
}

void KernelSide::unwatch(std::uint64_t cookie) noexcept { kernel().registry.erase(cookie); }

Result<void> KernelSide::wait_for_reads(std::uint32_t index, bool on) {
  if (on)
    kernel().readers.insert(index);
  else
    kernel().readers.erase(index);
  return {};
}

std::array<std::uint64_t, kLostCauses> KernelSide::lost() const { return {}; }
std::uint64_t KernelSide::missed() const noexcept { return 0; }

}  // namespace daemon
}  // namespace sockalarm
