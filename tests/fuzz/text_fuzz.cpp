// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/action.h>
#include <sockalarm/address.h>
#include <sockalarm/event.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "fuzz/checks.h"

// The text forms of actions, events and addresses. Checked: whatever is accepted is written as a text that is
// accepted and means the same; an error has a message; no descriptor leaks.
namespace {

using namespace sockalarm;
using fuzz::lowest_free;
using fuzz::require;

void chain(std::string_view text) {
  const auto parsed = ActionChain::parse(text);
  if (!parsed) return require(!parsed.error().message().empty());
  const std::string written = to_string(*parsed);
  const auto again = ActionChain::parse(written);
  require(bool(again) && again->size() == parsed->size() && to_string(*again) == written);
  // A descriptor that nobody has open makes an action that never runs, whose reason is told when it is armed.
  for (std::size_t i = 0; i < parsed->size(); ++i) require((*parsed)[i] == (*again)[i]);
}

void event_set(std::string_view text) {
  const auto parsed = parse_events(text);
  if (!parsed) return require(!parsed.error().message().empty());
  const auto again = parse_events(to_string(*parsed));
  require(bool(again) && *again == *parsed);
}

void address(std::string_view text) {
  const auto parsed = SocketAddress::parse(text);
  if (!parsed) return require(!parsed.error().message().empty());
  const auto again = SocketAddress::parse(to_string(*parsed));
  require(bool(again) && to_string(*again) == to_string(*parsed));
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const int before = lowest_free();
  switch (data[0] % 3) {
    case 0:
      chain(text);
      break;
    case 1:
      event_set(text);
      break;
    default:
      address(text);
      break;
  }
  require(lowest_free() == before);
  return 0;
}
