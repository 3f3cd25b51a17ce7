// SPDX-License-Identifier: Apache-2.0
#include "observe/attribution.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>

#include "base/cgroup2.h"
#include "base/text.h"

namespace sockalarm::observe {
namespace {

constexpr std::size_t kContainerId = 64, kShortId = 12;
constexpr int kKernfsHandle = 0xfe;  // FILEID_KERNFS: 64-bit id, since Linux 5.5

bool hexadecimal(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool without_suffix(std::string_view& name, std::string_view suffix) {
  if (!name.ends_with(suffix)) return false;
  name.remove_suffix(suffix.size());
  return true;
}

// docker-ID.scope, cri-containerd-ID.scope, crio-ID.scope, libpod-ID.scope; ID by cgroupfs, below /docker or
// the pod; and SLICE:cri-containerd:ID. Not crio-conmon-ID.scope: that is the monitor of a container.
bool take_container(std::string_view name, std::string_view parent, std::string& service,
                    std::string& container) {
  without_suffix(name, ".scope");
  if (name.size() < kContainerId) return false;
  const std::string_view id = name.substr(name.size() - kContainerId);
  std::string_view runtime = name.substr(0, name.size() - kContainerId);
  if (!hexadecimal(id)) return false;
  if (runtime.empty()) {
    runtime = parent == "docker" ? parent : std::string_view("container");
  } else {
    if (runtime.back() != '-' && runtime.back() != ':') return false;
    runtime.remove_suffix(1);
    runtime = runtime.substr(runtime.rfind(':') + 1);
    if (runtime.ends_with("conmon")) return false;
  }
  container = id;
  service = std::string(runtime) + "-" + std::string(id.substr(0, kShortId));
  return true;
}

// podUID by cgroupfs, kubepods-burstable-podUID.slice by systemd, whose names have no hyphens inside. The uid
// of a static pod is a hash, without hyphens altogether.
void take_pod(std::string_view name, Workload& workload) {
  name = name.substr(0, name.find(':'));
  const bool slice = without_suffix(name, ".slice");
  const auto at = slice ? name.rfind("-pod") : name.starts_with("pod") ? 0 : std::string_view::npos;
  if (at == std::string_view::npos) return;
  std::string uid(name.substr(at + (slice ? 4 : 3)));
  std::replace(uid.begin(), uid.end(), '_', '-');
  std::string digits = uid;
  std::erase(digits, '-');
  if (digits.size() == 32 && hexadecimal(digits)) workload.pod = uid;
}

bool is_unit(std::string_view name) {
  return name.ends_with(".service") || name.ends_with(".scope") || name.ends_with(".socket");
}

// user-UID.slice below user.slice (systemd-logind.service(8)).
bool is_slice_of_user(std::string_view name, std::string_view parent) {
  constexpr std::string_view kUser = "user-";
  if (parent != "user.slice" || !name.starts_with(kUser) || !without_suffix(name, ".slice")) return false;
  name.remove_prefix(kUser.size());
  return !name.empty() && name.find_first_not_of("0123456789") == std::string_view::npos;
}

// systemd-run(1) without --unit: run-u7, run-rHEX, run-p7-i8.
bool is_transient(std::string_view name) {
  constexpr std::string_view kRun = "run-";
  if (!name.starts_with(kRun)) return false;
  name.remove_prefix(kRun.size());
  if (name.size() < 2 || (name[0] != 'u' && name[0] != 'r' && name[0] != 'p')) return false;
  return name.find_first_not_of("0123456789abcdefi-", 1) == std::string_view::npos;
}

// NUMBER-LOCAL-REMOTE, or NUMBER-PID-UID on a Unix socket: systemd.socket(5), Accept=.
bool is_connection(std::string_view instance) {
  const auto first = instance.find('-');
  return first != std::string_view::npos && first > 0 &&
         instance.find('-', first + 1) != std::string_view::npos &&
         instance.substr(0, first).find_first_not_of("0123456789") == std::string_view::npos &&
         instance.find_first_not_of("0123456789abcdef.:-") == std::string_view::npos;
}

std::string unit_label(std::string_view unit) {
  const auto dot = unit.rfind('.'), at = unit.find('@');
  const std::string_view name = unit.substr(0, dot), suffix = unit.substr(dot);
  if (is_transient(name)) return "run-*" + std::string(suffix);
  if (name.size() > kContainerId && name[name.size() - kContainerId - 1] == '-' &&
      hexadecimal(name.substr(name.size() - kContainerId)))  // conmon's
    return std::string(name.substr(0, name.size() - kContainerId)) + "*" + std::string(suffix);
  if (at < dot && is_connection(name.substr(at + 1)))
    return std::string(unit.substr(0, at + 1)) + std::string(suffix);
  return std::string(unit);
}

// A path made by hand has no bound: no longer than a unit's name may be.
std::string cut(std::string name) {
  constexpr std::size_t kLongest = 255;
  constexpr std::string_view kMore = "...";
  if (name.size() <= kLongest) return name;
  std::size_t end = kLongest - kMore.size();
  while ((static_cast<unsigned char>(name[end]) & 0xc0) == 0x80) --end;  // amid a character
  return name.replace(end, std::string::npos, kMore);
}

// LXC makes the cgroup of a container itself, and its systemd makes slices in it.
bool is_of_lxc(std::string_view name) { return name.starts_with("lxc.payload."); }

}  // namespace

Workload workload_of(std::string_view path) {
  Workload workload;
  while (path.starts_with('/')) path.remove_prefix(1);
  const std::string_view whole = path;
  std::string_view parent;
  bool below_slices = true;  // as all units of the host's systemd are
  while (!path.empty()) {
    const std::string_view name = path.substr(0, path.find('/'));
    path.remove_prefix(std::min(path.size(), name.size() + 1));
    if (name.empty()) continue;
    if (!workload.of_user && workload.container.empty()) take_pod(name, workload);
    if (below_slices && is_slice_of_user(name, parent)) {
      workload.of_user = true;
      workload.service = name;
      below_slices = false;
    } else if (std::string service;
               workload.container.empty() && take_container(name, parent, service, workload.container)) {
      if (!workload.of_user) workload.service = service;
      below_slices = false;
    } else if (below_slices && (is_unit(name) || is_of_lxc(name))) {
      workload.service = is_unit(name) ? unit_label(name) : std::string(name);
      below_slices = false;
    } else if (!name.ends_with(".slice")) {
      below_slices = false;
    }
    parent = name;
  }
  // Made by hand, or a slice: with its slashes it is no unit's name.
  if (workload.service.empty()) workload.service = whole;
  return workload;
}

Result<CgroupPaths> CgroupPaths::open() {
  const auto root = cgroup2_root();
  if (!root)
    return fail(Error(Errc::unsupported,
                      "no cgroup v2 is mounted; attribution needs one, usually at /sys/fs/cgroup"));
  CgroupPaths paths;
  paths.root_ = *root;
  paths.walk_ = CgroupWalk(*root);
  paths.root_fd_ = UniqueFd(::open(root->c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!paths.root_fd_) return fail(Error::from_errno(errno, *root));
  return paths;
}

Result<UniqueFd> CgroupPaths::by_handle(std::uint64_t cgroup, bool& permitted) const {
  alignas(file_handle) char space[sizeof(file_handle) + sizeof cgroup] = {};
  auto* const handle = reinterpret_cast<file_handle*>(space);
  handle->handle_bytes = sizeof cgroup;
  handle->handle_type = kKernfsHandle;
  std::memcpy(space + offsetof(file_handle, f_handle), &cgroup, sizeof cgroup);
  UniqueFd opened(::open_by_handle_at(root_fd_.get(), handle, O_PATH | O_CLOEXEC));
  const int failed = opened ? 0 : errno;
  permitted = failed != EPERM && failed != EOPNOTSUPP && failed != EINVAL;
  if (permitted && failed != 0 && failed != ESTALE)
    return fail(Error::from_errno(failed, "open_by_handle_at() of a cgroup"));
  return opened;
}

Result<std::optional<std::string>> CgroupPaths::path_of(const UniqueFd& opened) const {
  std::error_code error;
  std::string path =
      std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(opened.get()), error).string();
  if (error == std::errc::filename_too_long) return std::nullopt;
  if (error) return fail(Error(error, "the path of a cgroup: " + error.message()));
  if (!path.starts_with(root_)) return std::nullopt;
  path.erase(0, root_.size());
  constexpr std::string_view kDeleted =
      " (deleted)";  // d_path(): removed, but the name still says whose it was
  if (path.ends_with(kDeleted)) path.erase(path.size() - kDeleted.size());
  return path.empty() ? "/" : path;
}

Result<std::optional<std::string>> CgroupPaths::path(std::uint64_t cgroup) {
  if (!root_fd_) return std::nullopt;
  bool permitted = false;
  const auto opened = by_handle(cgroup, permitted);
  if (!permitted) return walk_.path(cgroup);
  if (!opened) return fail(opened.error());
  if (!*opened) return std::nullopt;
  return path_of(*opened);
}

bool CgroupPaths::exists(std::uint64_t cgroup) {
  if (!root_fd_) return false;
  bool permitted = false;
  const auto opened = by_handle(cgroup, permitted);
  if (!permitted) return walk_.exists(cgroup);
  if (!opened) return true;  // that it has gone is not known
  if (!*opened) return false;
  const auto found = path_of(*opened);
  if (!found || !*found) return true;
  const auto now = id(**found);
  return now && *now == cgroup;
}

Result<std::uint64_t> CgroupPaths::id(const std::string& path) const {
  if (!root_fd_)
    return fail(
        Error(Errc::unsupported, "the cgroup '" + path + "' cannot be found without the host's cgroup v2"));
  struct stat status{};
  if (!path.starts_with('/') || ::stat((root_ + path).c_str(), &status) != 0 || !S_ISDIR(status.st_mode))
    return fail(Error(Errc::invalid_options, "there is no cgroup '" + path + "' below " + root_ +
                                                 "; write it with a slash before, as in /proc/PID/cgroup"));
  return status.st_ino;
}

const Workload* Attribution::find(std::uint64_t cgroup) {
  if (cgroup == 0) return &unknown_;
  if (const auto known = entries_.find(cgroup); known != entries_.end()) {
    recent_.splice(recent_.begin(), recent_, known->second);
    return &known->second->second;
  }
  const auto path = path_of_(cgroup);
  if (!path) return nullptr;
  Workload workload;
  if (*path) {
    workload = workload_of(**path);
    if (resolver_ && !workload.of_user) resolver_(workload);
    workload.service = cut(on_one_line(workload.service));
  }
  if (entries_.size() >= capacity_) {
    entries_.erase(recent_.back().first);
    recent_.pop_back();
  }
  recent_.emplace_front(cgroup, std::move(workload));
  entries_[cgroup] = recent_.begin();
  return &recent_.front().second;
}

const Workload& Attribution::of(std::uint64_t cgroup) {
  const Workload* const found = find(cgroup);
  return found != nullptr ? *found : unknown_;
}

}  // namespace sockalarm::observe
