// SPDX-License-Identifier: Apache-2.0
#include "observe/cgroup_walk.h"

#include <dirent.h>
#include <sys/stat.h>

#include <cerrno>
#include <iterator>
#include <memory>
#include <string_view>
#include <utility>

namespace sockalarm::observe {

Result<std::optional<std::string>> CgroupWalk::path(std::uint64_t cgroup) {
  if (const auto known = paths_.find(cgroup); known != paths_.end()) return known->second;
  if (asked_.size() >= most_ && !asked_.contains(cgroup)) asked_.clear();
  const std::uint64_t telling = asked_.try_emplace(cgroup, begun_ + 1).first->second;
  if (telling > ended_) {
    go_on();
    if (const auto found = paths_.find(cgroup); found != paths_.end()) return found->second;
  }
  if (telling <= ended_) return std::nullopt;
  return fail(Error::from_errno(EAGAIN, "a walk over " + root_));
}

bool CgroupWalk::exists(std::uint64_t cgroup) {
  const auto known = paths_.find(cgroup);
  if (known == paths_.end()) {
    const auto found = path(cgroup);
    return !found || found->has_value();
  }
  struct stat status{};
  if (::stat((root_ + known->second).c_str(), &status) == 0) return status.st_ino == cgroup;
  return errno != ENOENT && errno != ENODEV && errno != ENOTDIR;
}

void CgroupWalk::go_on() {
  const auto begin = now_();
  if (begin < next_) return;
  if (left_.empty()) {
    ++begun_;
    if (paths_.size() >= most_) paths_.clear();
    struct stat status{};
    if (::stat(root_.c_str(), &status) == 0) paths_[status.st_ino] = "/";
    left_.emplace_back();
  }
  auto now = begin;
  for (bool may = true; may && !left_.empty() && now - begin < kSlice; now = now_()) {
    std::string path = std::move(left_.back());
    left_.pop_back();
    may = visit(path);
    if (!may) left_.push_back(std::move(path));
  }
  if (left_.empty()) ended_ = begun_;
  next_ = now + kRest * (now - begin);
}

// Of kernfs the entries say all: their kind, and in the number of the inode the id, where ino_t has 64 bits
// (kernfs_fop_readdir()). False: there is no memory or no descriptor now.
bool CgroupWalk::visit(const std::string& path) {
  const auto passing = [] { return errno == EMFILE || errno == ENFILE || errno == ENOMEM; };
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir((root_ + path).c_str()), ::closedir);
  if (!folder) return !passing();
  std::vector<std::string> below;
  for (;;) {
    errno = 0;
    const dirent* const entry = ::readdir(folder.get());
    if (entry == nullptr && passing()) return false;
    if (entry == nullptr) break;
    const std::string_view name = entry->d_name;
    if (entry->d_type != DT_DIR || name == "." || name == "..") continue;
    below.push_back(path + "/" + std::string(name));
    const bool asked = asked_.erase(entry->d_ino) != 0;
    if (asked || paths_.size() < most_) paths_.insert_or_assign(entry->d_ino, below.back());
  }
  left_.insert(left_.end(), std::make_move_iterator(below.begin()), std::make_move_iterator(below.end()));
  return true;
}

}  // namespace sockalarm::observe
