// SPDX-License-Identifier: Apache-2.0
#include "cli/event_text.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/number_text.h"

namespace sockalarm::cli {
namespace {

using Json = nlohmann::json;

// Columns of text are as wide as most of what stands in them; what is wider moves the rest of its line.
constexpr std::size_t kTime = 24, kHost = 16, kCause = 11, kVerdict = 17, kService = 24, kEnds = 44, kAge = 7,
                      kBytes = 17;

std::string text_of(const Json& record, const char* field) {
  const auto found = record.find(field);
  const auto* const text = found == record.end() ? nullptr : found->get_ptr<const std::string*>();
  return text == nullptr || text->empty() ? "-" : escaped(*text);
}

// Of the nanoseconds three digits are enough for people.
std::string time_of(const Json& record) {
  std::string time = text_of(record, "timestamp");
  if (const std::size_t dot = time.find('.');
      dot != std::string::npos && time.size() > dot + 4 && time.back() == 'Z')
    time.replace(dot + 4, std::string::npos, "Z");
  return time;
}

std::string number_of(const Json& record, const char* field, std::string (*shown)(double)) {
  const auto found = record.find(field);
  return found == record.end() || !found->is_number() ? "-" : shown(found->get<double>());
}

std::string whole(double number) {
  char text[400];  // a double has at most 309 digits before the point
  std::snprintf(text, sizeof text, "%.0f", number);
  return text;
}

std::string end_of(const Json& record, const char* address, const char* port) {
  const std::string name = text_of(record, address);
  return (name.find(':') == std::string::npos ? name : "[" + name + "]") + ":" +
         number_of(record, port, whole);
}

std::string ends_of(const Json& record) {
  const std::string direction = text_of(record, "sockalarm.direction");
  const char* const arrow = direction == "inbound" ? " <- " : direction == "outbound" ? " -> " : " -- ";
  return end_of(record, "network.local.address", "network.local.port") + arrow +
         end_of(record, "network.peer.address", "network.peer.port");
}

std::string holder_of(const Json& record) {
  const std::string command = text_of(record, "process.executable.name");
  return number_of(record, "process.pid", whole) + (command == "-" ? "" : " " + command);
}

}  // namespace

std::string event_heading(bool with_host) {
  return left("TIME", kTime) + " " + (with_host ? left("HOST", kHost) + " " : "") + left("CAUSE", kCause) +
         " " + left("VERDICT", kVerdict) + " " + left("SERVICE", kService) + " " +
         left("LOCAL <- PEER", kEnds) + " " + right("AGE", kAge) + " " + right("ORPHANED", kAge + 1) + " " +
         right("IN/OUT", kBytes) + "  PID COMMAND";
}

std::string event_text(const Json& record, bool with_host) {
  std::string host = text_of(record, "host.name");
  if (host == "-") host = text_of(record, "host.id");
  return left(time_of(record), kTime) + " " + (with_host ? left(host, kHost) + " " : "") +
         left(text_of(record, "sockalarm.cause"), kCause) + " " +
         left(text_of(record, "sockalarm.verdict"), kVerdict) + " " +
         left(text_of(record, "service.name"), kService) + " " + left(ends_of(record), kEnds) + " " +
         right(number_of(record, "sockalarm.age", time_text), kAge) + " " +
         right(number_of(record, "sockalarm.orphaned", time_text), kAge + 1) + " " +
         right(number_of(record, "sockalarm.bytes_received", bytes_text) + "/" +
                   number_of(record, "sockalarm.bytes_sent", bytes_text),
               kBytes) +
         "  " + holder_of(record);
}

std::string event_json(std::string_view line, const Json& record) {
  const bool plain =
      std::all_of(line.begin(), line.end(), [](char byte) { return byte >= ' ' && byte <= '~'; });
  return plain ? std::string(line) : record.dump(-1, ' ', true);
}

}  // namespace sockalarm::cli
