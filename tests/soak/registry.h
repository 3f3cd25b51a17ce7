// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bpf/bpf.h>
#include <linux/bpf.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

// The kernel's registries of watched sockets: no longer than what is watched.
namespace sockalarm::soak {

inline long registry_entries(int map) {
  long count = 0;
  std::uint64_t key = 0, next = 0;
  for (int more = ::bpf_map_get_next_key(map, nullptr, &next); more == 0 && count < 1'000'000; ++count) {
    key = next;
    more = ::bpf_map_get_next_key(map, &key, &next);
  }
  return count;
}

// Of all Watchers of this process that have one; -1: none has. By the numbers of descriptors: a copy would
// hold what others close meanwhile.
inline long own_registry_entries() {
  long count = -1;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    if (std::filesystem::read_symlink(entry.path(), gone).string().find("bpf-map") == std::string::npos)
      continue;
    const int fd = std::atoi(entry.path().filename().c_str());
    bpf_map_info info{};
    std::uint32_t length = sizeof info;
    if (::bpf_obj_get_info_by_fd(fd, &info, &length) == 0 && std::string_view(info.name) == "registry")
      count = (count < 0 ? 0 : count) + registry_entries(fd);
  }
  return count;
}

}  // namespace sockalarm::soak
