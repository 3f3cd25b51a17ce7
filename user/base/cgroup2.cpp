// SPDX-License-Identifier: Apache-2.0
#include "base/cgroup2.h"

#include <sys/stat.h>

#include <fstream>
#include <sstream>

namespace sockalarm {
namespace {

// Of what is shown as "/": a container has a namespace of its own, in which a cgroup far below is the root,
// and the host's, if it is mounted there, is "/../..". The host's has the first number that kernfs gives
// (fs/kernfs/dir.c, kernfs_create_root()).
constexpr ino_t kRootId = 1;

// A space, tab, line's end or backslash of a path is \040 and so on.
std::string unescaped(const std::string& field) {
  std::string path;
  for (std::size_t at = 0; at < field.size(); ++at) {
    const auto digits = field.substr(at, 4);
    if (digits.size() == 4 && digits[0] == '\\' &&
        digits.find_first_not_of("01234567", 1) == std::string::npos) {
      path += static_cast<char>(std::stoi(digits.substr(1), nullptr, 8));
      at += 3;
    } else {
      path += field[at];
    }
  }
  return path;
}

}  // namespace

std::optional<std::string> cgroup2_root() {
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string id, parent, device, root, mount_point, word, type;
    fields >> id >> parent >> device >> root >> mount_point;
    while (fields >> word && word != "-") {
    }
    fields >> type;
    if (type != "cgroup2") continue;
    std::string path = unescaped(mount_point);
    struct stat status{};
    if (::stat(path.c_str(), &status) == 0 && status.st_ino == kRootId) return path;
  }
  return std::nullopt;
}

}  // namespace sockalarm
