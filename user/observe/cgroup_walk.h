// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace sockalarm::observe {

// Paths of cgroups by their id, for who may not open them by a handle: one walk over the tree finds all. It
// goes on only while somebody asks for what is not known, for `kSlice` at a time and a tenth of the time in
// all, for it is the thread that reads records that asks. One thread.
//
// What was found stays true: an id is never used again, and a cgroup of v2 cannot be renamed. What cannot be
// read, as below a path beyond PATH_MAX, is left out.
class CgroupWalk {
 public:
  using Clock = std::chrono::steady_clock;
  using Now = std::function<Clock::time_point()>;

  // Knows about `most` that are asked for, and as many that are not yet.
  explicit CgroupWalk(std::string root, Now now = Clock::now, std::size_t most = 1 << 16)
      : root_(std::move(root)), now_(std::move(now)), most_(most) {}

  // Below the root, also of one that has gone meanwhile; empty: a walk that began after this was asked has
  // not found it. An error: it has not ended yet, ask again.
  Result<std::optional<std::string>> path(std::uint64_t cgroup);
  // A stat(2) where the path is known.
  bool exists(std::uint64_t cgroup);

  static constexpr std::chrono::milliseconds kSlice{10};
  static constexpr int kRest = 9;  // times as long as a slice took

 private:
  void go_on();
  bool visit(const std::string& path);

  std::string root_;
  Now now_;
  std::size_t most_;
  std::unordered_map<std::uint64_t, std::string> paths_;
  std::unordered_map<std::uint64_t, std::uint64_t> asked_;  // what was not known: the walk that will tell
  std::uint64_t begun_ = 0, ended_ = 0;                     // walks
  std::vector<std::string> left_;                           // of the one that is under way
  Clock::time_point next_;
};

}  // namespace sockalarm::observe
