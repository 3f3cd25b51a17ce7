// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/watcher.h>

#include <string>
#include <utility>

namespace sockalarm {
namespace {

template <typename T>
struct Names;
template <>
struct Names<SourceKind> {
  static constexpr const char* what = "source";
  static constexpr std::pair<SourceKind, std::string_view> list[] = {
      {SourceKind::automatic, "automatic"}, {SourceKind::automatic, "auto"}, {SourceKind::daemon, "daemon"},
      {SourceKind::kernel, "kernel"},       {SourceKind::epoll, "epoll"},    {SourceKind::poll, "poll"}};
};
template <>
struct Names<Delivery> {
  static constexpr const char* what = "delivery";
  static constexpr std::pair<Delivery, std::string_view> list[] = {{Delivery::automatic, "automatic"},
                                                                   {Delivery::automatic, "auto"},
                                                                   {Delivery::task_work, "task_work"},
                                                                   {Delivery::sigio, "sigio"},
                                                                   {Delivery::dispatcher, "dispatcher"}};
};
template <>
struct Names<Waking> {
  static constexpr const char* what = "waking";
  static constexpr std::pair<Waking, std::string_view> list[] = {
      {Waking::sleep, "sleep"}, {Waking::adaptive, "adaptive"}, {Waking::spin, "spin"}};
};

// The first name of a value is the one that is written; all are read.
template <typename T>
std::string_view name_of(T value) noexcept {
  for (const auto& [known, name] : Names<T>::list)
    if (known == value) return name;
  return "unknown";
}

template <typename T>
Result<T> parse(std::string_view text) {
  std::string names;
  for (const auto& [value, name] : Names<T>::list) {
    if (text == name) return value;
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  return fail(Error(Errc::invalid_text, std::string("unknown ") + Names<T>::what + " '" + std::string(text) +
                                            "'; use one of " + names));
}

}  // namespace

std::string_view to_string(SourceKind kind) noexcept { return name_of(kind); }
std::string_view to_string(Delivery delivery) noexcept { return name_of(delivery); }
std::string_view to_string(Waking waking) noexcept { return name_of(waking); }
Result<SourceKind> parse_source(std::string_view text) { return parse<SourceKind>(text); }
Result<Delivery> parse_delivery(std::string_view text) { return parse<Delivery>(text); }
Result<Waking> parse_waking(std::string_view text) { return parse<Waking>(text); }

}  // namespace sockalarm
