// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "observe/cgroup_walk.h"

namespace sockalarm::observe {

// Whose work a socket was. What is not known is empty.
struct Workload {
  std::string service;    // a systemd unit, RUNTIME-SHORT_ID of a container, the slice of a user; on one line
  std::string container;  // 64 hexadecimal digits
  std::string pod;        // uid of a Kubernetes pod
  bool of_user = false;   // below the slice of a user, who may have chosen the container's name
  bool operator==(const Workload&) const = default;
};

// From a path below the root of cgroup v2, as systemd, Docker, containerd, CRI-O, Podman and the kubelet form
// it, with systemd's driver or by cgroupfs.
//
// A name says who somebody is only where none but the host's systemd or root could choose it, so: the
// outermost unit counts, for what is below belongs to whom it was delegated to, but the outermost container
// in it counts before it; everything of a user is one service, as user-1000.slice. And a service is to be one
// label, so units that have another number each time are without it: run-*.service of systemd-run(1),
// sshd@.service of the connections of a socket with Accept=yes.
Workload workload_of(std::string_view cgroup_path);

// Paths of cgroups by their id. One thread.
class CgroupPaths {
 public:
  // Finds where cgroup v2 is mounted. Errors: nowhere, or not the host's.
  static Result<CgroupPaths> open();
  CgroupPaths() = default;  // knows none

  // Below the root, with a leading slash; empty: there is no such cgroup any more, or its path is too long to
  // be told. By open_by_handle_at(2), which needs CAP_DAC_READ_SEARCH; without it by walking the tree. An
  // error, as of too many open files or a walk that goes on: it could not be found out now.
  Result<std::optional<std::string>> path(std::uint64_t cgroup);
  // Whether it is there now: it may have gone, and still be known by the sockets that it had.
  bool exists(std::uint64_t cgroup);
  // The other way round. Errors: there is no such cgroup.
  Result<std::uint64_t> id(const std::string& path) const;

 private:
  Result<UniqueFd> by_handle(std::uint64_t cgroup, bool& permitted) const;  // none: it has gone
  Result<std::optional<std::string>> path_of(const UniqueFd& opened) const;

  std::string root_;
  CgroupWalk walk_{""};
  UniqueFd root_fd_;
};

// Workloads by the id of the cgroup, the last used remembered: an id is never used again, and a cgroup of v2
// cannot be renamed, so what was found stays true, also that there is none any more. What could not be found
// out is asked again the next time. One thread.
class Attribution {
 public:
  using PathOf = std::function<Result<std::optional<std::string>>(std::uint64_t cgroup)>;
  // May give the service of a workload a better name, as of a container by its runtime; asked once per
  // cgroup, but not of a user's. The thread that reads records waits for it: it asks nobody who may be slow.
  using Resolver = std::function<void(Workload&)>;

  explicit Attribution(PathOf path_of, Resolver resolver = {}, std::size_t capacity = 4096)
      : path_of_(std::move(path_of)), resolver_(std::move(resolver)), capacity_(capacity) {}

  // Valid until the next call. Null: it could not be found out now.
  const Workload* find(std::uint64_t cgroup);
  const Workload& of(std::uint64_t cgroup);  // the same, for now an empty one

 private:
  using Entry = std::pair<std::uint64_t, Workload>;

  const Workload unknown_;
  PathOf path_of_;
  Resolver resolver_;
  std::size_t capacity_;
  std::list<Entry> recent_;  // the last used first
  std::unordered_map<std::uint64_t, std::list<Entry>::iterator> entries_;
};

}  // namespace sockalarm::observe
