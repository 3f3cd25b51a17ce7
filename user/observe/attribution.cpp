// SPDX-License-Identifier: Apache-2.0
#include "observe/attribution.h"

#include <fcntl.h>
#include <mntent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

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
bool take_container(std::string_view name, std::string_view parent, Workload& workload) {
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
  workload.container = id;
  workload.service = std::string(runtime) + "-" + std::string(id.substr(0, kShortId));
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

// The sessions of a user are one service; their numbers would be many.
void take_unit(std::string_view name, std::string_view parent, Workload& workload) {
  if (name.starts_with("session-") && name.ends_with(".scope") && parent.ends_with(".slice"))
    workload.service = parent;
  else if (name.ends_with(".service") || name.ends_with(".scope") || name.ends_with(".socket"))
    workload.service = name;
}

}  // namespace

Workload workload_of(std::string_view path) {
  Workload workload;
  std::string_view parent;
  while (!path.empty()) {
    const std::string_view name = path.substr(0, path.find('/'));
    path.remove_prefix(std::min(path.size(), name.size() + 1));
    if (name.empty()) continue;
    take_pod(name, workload);
    if (!take_container(name, parent, workload)) take_unit(name, parent, workload);
    parent = name;
  }
  if (workload.service.empty()) workload.service = parent;
  return workload;
}

Result<CgroupPaths> CgroupPaths::open() {
  const std::unique_ptr<FILE, int (*)(FILE*)> mounts(::setmntent("/proc/self/mounts", "re"), ::endmntent);
  if (!mounts) return fail(Error::from_errno(errno, "/proc/self/mounts"));
  CgroupPaths paths;
  mntent entry{};
  char buffer[4096];
  while (::getmntent_r(mounts.get(), &entry, buffer, sizeof buffer) != nullptr) {
    if (std::strcmp(entry.mnt_type, "cgroup2") != 0) continue;
    paths.root_ = entry.mnt_dir;
    paths.root_fd_ = UniqueFd(::open(entry.mnt_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (paths.root_fd_) return paths;
  }
  return fail(
      Error(Errc::unsupported, "no cgroup v2 is mounted; attribution needs one, usually at /sys/fs/cgroup"));
}

std::optional<std::string> CgroupPaths::by_handle(std::uint64_t cgroup, bool& permitted) const {
  alignas(file_handle) char space[sizeof(file_handle) + sizeof cgroup] = {};
  auto* const handle = reinterpret_cast<file_handle*>(space);
  handle->handle_bytes = sizeof cgroup;
  handle->handle_type = kKernfsHandle;
  std::memcpy(space + offsetof(file_handle, f_handle), &cgroup, sizeof cgroup);
  const UniqueFd opened(::open_by_handle_at(root_fd_.get(), handle, O_PATH | O_CLOEXEC));
  permitted = opened || errno == ESTALE;
  if (!opened) return std::nullopt;
  std::error_code error;
  std::string path =
      std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(opened.get()), error).string();
  if (error || !path.starts_with(root_)) return std::nullopt;
  path.erase(0, root_.size());
  constexpr std::string_view kDeleted =
      " (deleted)";  // d_path(): removed, but the name still says whose it was
  if (path.ends_with(kDeleted)) path.erase(path.size() - kDeleted.size());
  return path.empty() ? "/" : path;
}

std::optional<std::string> CgroupPaths::by_walk(std::uint64_t cgroup) const {
  // The number of the inode is the id where ino_t has 64 bits (kernfs_ino()).
  const auto has_id = [&](const std::string& path) {
    struct stat status{};
    return ::stat(path.c_str(), &status) == 0 && status.st_ino == cgroup;
  };
  if (has_id(root_)) return "/";
  std::error_code error;
  const auto skip = std::filesystem::directory_options::skip_permission_denied;
  for (std::filesystem::recursive_directory_iterator at(root_, skip, error), end; at != end;
       at.increment(error)) {
    if (error) break;
    if (at->is_directory(error) && has_id(at->path().string()))
      return at->path().string().substr(root_.size());
  }
  return std::nullopt;
}

std::optional<std::string> CgroupPaths::path(std::uint64_t cgroup) const {
  bool permitted = false;
  auto found = by_handle(cgroup, permitted);
  return permitted ? found : by_walk(cgroup);
}

bool CgroupPaths::exists(std::uint64_t cgroup) const {
  const auto found = path(cgroup);
  const auto now = found ? id(*found) : fail(Error(Errc::unsupported, ""));
  return now && *now == cgroup;
}

Result<std::uint64_t> CgroupPaths::id(const std::string& path) const {
  struct stat status{};
  if (!path.starts_with('/') || ::stat((root_ + path).c_str(), &status) != 0 || !S_ISDIR(status.st_mode))
    return fail(Error(Errc::invalid_options, "there is no cgroup '" + path + "' below " + root_ +
                                                 "; write it with a slash before, as in /proc/PID/cgroup"));
  return status.st_ino;
}

const Workload& Attribution::of(std::uint64_t cgroup) {
  if (const auto known = entries_.find(cgroup); known != entries_.end()) {
    recent_.splice(recent_.begin(), recent_, known->second);
    return known->second->second;
  }
  Workload workload;
  if (const auto path = cgroup == 0 ? std::nullopt : path_of_(cgroup)) {
    workload = workload_of(*path);
    if (resolver_) resolver_(workload);
  }
  if (entries_.size() >= capacity_) {
    entries_.erase(recent_.back().first);
    recent_.pop_back();
  }
  recent_.emplace_front(cgroup, std::move(workload));
  entries_[cgroup] = recent_.begin();
  return recent_.front().second;
}

}  // namespace sockalarm::observe
