// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace sockalarm::cli {

// Lines out of pieces of a stream. One that is longer than `most` is left out, whole, and counted.
class LineReader {
 public:
  explicit LineReader(std::size_t most) : most_(most) {}

  template <class OnLine>
  void add(std::string_view piece, OnLine on_line) {
    while (!piece.empty()) {
      const std::size_t end = piece.find('\n');
      const std::string_view part = piece.substr(0, end);
      too_long_ = too_long_ || line_.size() + part.size() > most_;
      if (too_long_)
        line_.clear();
      else
        line_ += part;
      if (end == std::string_view::npos) return;
      piece.remove_prefix(end + 1);
      if (too_long_)
        ++left_out_;
      else
        on_line(std::string_view(line_));
      line_.clear();
      too_long_ = false;
    }
  }
  void clear() {
    line_.clear();
    too_long_ = false;
  }
  std::uint64_t left_out() const { return left_out_; }

 private:
  const std::size_t most_;
  std::string line_;
  bool too_long_ = false;
  std::uint64_t left_out_ = 0;
};

}  // namespace sockalarm::cli
