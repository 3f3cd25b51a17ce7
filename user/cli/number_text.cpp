// SPDX-License-Identifier: Apache-2.0
#include "cli/number_text.h"

#include <cmath>
#include <cstdio>
#include <iterator>

namespace sockalarm::cli {
namespace {

std::string printed(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

// Three digits that count.
std::string three(double value) {
  return printed(value < 9.995 ? "%.2f" : value < 99.95 ? "%.1f" : "%.0f", value);
}

std::string pair(double larger, char unit, double smaller, char of) {
  char text[64];
  std::snprintf(text, sizeof text, "%.0f%c%02.0f%c", larger, unit, smaller, of);
  return text;
}

bool begins_character(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) != 0x80; }

}  // namespace

std::string rate_text(double per_second) { return per_second == 0 ? "0" : three(per_second); }

std::string time_text(double seconds) {
  if (seconds == 0) return "0s";
  if (seconds < 0.0009995) return printed("%.0fus", seconds * 1e6);
  if (seconds < 0.9995) return three(seconds * 1e3) + "ms";
  if (seconds < 59.95) return three(seconds) + "s";
  const double whole = std::round(seconds), minutes = std::floor(whole / 60),
               hours = std::floor(minutes / 60), days = std::floor(hours / 24);
  if (hours < 1) return pair(minutes, 'm', whole - minutes * 60, 's');
  if (days < 1) return pair(hours, 'h', minutes - hours * 60, 'm');
  return pair(days, 'd', hours - days * 24, 'h');
}

std::string bytes_text(double bytes) {
  if (bytes < 1000) return printed("%.0fB", bytes);
  static constexpr const char* kUnits[] = {"kB", "MB", "GB", "TB", "PB", "EB"};
  std::size_t unit = 0;
  for (bytes /= 1000; bytes >= 999.5 && unit + 1 < std::size(kUnits); ++unit) bytes /= 1000;
  return three(bytes) + kUnits[unit];
}

std::size_t width(std::string_view text) {
  std::size_t characters = 0;
  for (const char byte : text) characters += begins_character(byte) ? 1 : 0;
  return characters;
}

std::string left(std::string text, std::size_t columns) {
  const std::size_t is = width(text);
  if (is < columns) text.append(columns - is, ' ');
  return text;
}

std::string right(std::string text, std::size_t columns) {
  const std::size_t is = width(text);
  if (is < columns) text.insert(0, columns - is, ' ');
  return text;
}

std::string cut(std::string_view text, std::size_t columns) {
  if (width(text) <= columns) return std::string(text);
  if (columns == 0) return {};
  std::size_t end = 0;
  for (std::size_t characters = 0; end < text.size(); ++end)
    if (begins_character(text[end]) && characters++ == columns - 1) break;
  return std::string(text.substr(0, end)) + "…";
}

}  // namespace sockalarm::cli
