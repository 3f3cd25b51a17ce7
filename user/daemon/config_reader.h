// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/toml.h"

namespace sockalarm::daemon {

// Reads one file and remembers the first thing that is wrong with it. What is not there stays as it is.
class ConfigReader {
 public:
  explicit ConfigReader(std::string path) : path_(std::move(path)) {}

  template <class Number>
  void number(const toml::table& table, std::string_view key, std::int64_t least, std::int64_t most,
              Number& into) {
    const toml::node* const node = table.get(key);
    if (node == nullptr) return;
    const auto value = node->value_exact<std::int64_t>();
    if (!value || *value < least || *value > most)
      return refuse(*node, std::string(key) + " must be a number from " + std::to_string(least) + " to " +
                               std::to_string(most));
    into = static_cast<Number>(*value);
  }

  void one_of(const toml::table& table, std::string_view key, const std::vector<std::string>& values,
              std::string& into) {
    text(table, key, into);
    if (std::find(values.begin(), values.end(), into) != values.end()) return;
    std::string all;
    for (const std::string& value : values) all += (all.empty() ? "" : ", ") + value;
    refuse(*table.get(key), std::string(key) + " must be one of " + all);
  }

  void text(const toml::table& table, std::string_view key, std::string& into, bool may_be_empty = false) {
    const toml::node* const node = table.get(key);
    if (node == nullptr) return;
    const auto value = node->value_exact<std::string>();
    if (!value || (value->empty() && !may_be_empty))
      return refuse(*node, std::string(key) + " must be a text");
    into = *value;
  }

  void flag(const toml::table& table, std::string_view key, bool& into) {
    const toml::node* const node = table.get(key);
    if (node == nullptr) return;
    const auto value = node->value_exact<bool>();
    if (!value) return refuse(*node, std::string(key) + " must be true or false");
    into = *value;
  }

  // Calls `take` with each node of a list; it gives what is wrong with it, or nothing.
  template <class Take>
  void list(const toml::table& table, std::string_view key, Take take) {
    const toml::node* const node = table.get(key);
    if (node == nullptr) return;
    const toml::array* const array = node->as_array();
    if (array == nullptr) return refuse(*node, std::string(key) + " must be a list: [ ... ]");
    for (const toml::node& element : *array)
      if (const std::string wrong = take(element); !wrong.empty())
        refuse(element, std::string(key) + ": " + wrong);
  }

  // What is misspelt would be ignored in silence else.
  template <class Names>
  void only(const toml::table& table, const Names& known) {
    for (const auto& [key, node] : table) {
      bool found = false;
      std::string names;
      for (const std::string_view name : known) {
        found |= name == key.str();
        names += (names.empty() ? "" : ", ") + std::string(name);
      }
      if (!found) refuse(node, "unknown key '" + std::string(key.str()) + "'; known here: " + names);
    }
  }

  const toml::table& section(const toml::table& table, std::string_view key) {
    static const toml::table kEmpty;
    const toml::node* const node = table.get(key);
    if (node == nullptr) return kEmpty;
    if (const toml::table* const found = node->as_table()) return *found;
    refuse(*node, std::string(key) + " must be a table: [" + std::string(key) + "]");
    return kEmpty;
  }

  void refuse(const toml::node& node, const std::string& why) {
    if (problem_.empty())
      problem_ = path_ + ", line " + std::to_string(node.source().begin.line) + ": " + why;
  }
  const std::string& problem() const noexcept { return problem_; }

 private:
  const std::string path_;
  std::string problem_;
};

}  // namespace sockalarm::daemon
