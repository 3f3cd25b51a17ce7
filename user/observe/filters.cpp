// SPDX-License-Identifier: Apache-2.0
#include "observe/filters.h"

#include <arpa/inet.h>

#include <algorithm>
#include <string>

#include "base/text.h"

namespace sockalarm::observe {
namespace {

constexpr unsigned kIpv4In = 96;  // bits before the address in ::ffff:a.b.c.d

tl::unexpected<Error> bad_prefix(std::string_view text) {
  return fail(Error(Errc::invalid_text, "'" + std::string(text) +
                                            "' is no network: expected ADDRESS/LENGTH such as 10.0.0.0/8 or "
                                            "2001:db8::/32, without bits beyond the length"));
}

bool has_bits_beyond(const Prefix& prefix) {
  for (unsigned bit = prefix.length; bit < 128; ++bit)
    if ((prefix.address[bit / 8] >> (7 - bit % 8) & 1) != 0) return true;
  return false;
}

template <class T>
std::uint32_t bits(const std::vector<T>& values) {
  std::uint32_t all = 0;
  for (const T value : values) all |= 1U << static_cast<unsigned>(value);
  return values.empty() ? ~0U : all;
}

}  // namespace

Result<Prefix> parse_prefix(std::string_view text) {
  Prefix prefix;
  const std::size_t slash = text.find('/');
  const std::string address(text.substr(0, slash));
  unsigned before = 0;
  if (::inet_pton(AF_INET, address.c_str(), &prefix.address[12]) == 1) {
    prefix.address[10] = prefix.address[11] = 0xff;
    before = kIpv4In;
  } else if (::inet_pton(AF_INET6, address.c_str(), prefix.address.data()) != 1) {
    return bad_prefix(text);
  }
  prefix.length = 128 - before;
  if (slash != std::string_view::npos) {
    const auto length = parse_number<unsigned>(text.substr(slash + 1));
    if (!length || *length > 128 - before) return bad_prefix(text);
    prefix.length = *length;
  }
  prefix.length += before;
  if (has_bits_beyond(prefix)) return bad_prefix(text);
  return prefix;
}

Result<sockalarm_observe_filter> to_kernel(const Filter& filter, std::uint32_t sets_in_maps) {
  sockalarm_observe_filter kernel{};
  kernel.sets = sets_in_maps;
  for (const PortRange range : filter.ports) {
    if (range.first > range.last)
      return fail(Error(Errc::invalid_options, "ports " + std::to_string(range.first) + "-" +
                                                   std::to_string(range.last) +
                                                   ": the first must not be greater than the last"));
    kernel.sets |= SOCKALARM_FILTER_PORTS;
    for (unsigned port = range.first; port <= range.last; ++port)
      kernel.ports[port / 64] |= std::uint64_t{1} << (port % 64);
  }
  if (filter.one_in == 0 || filter.minimum_orphaned.count() < 0)
    return fail(Error(Errc::invalid_options,
                      "of a filter, one_in must be 1 or more, and minimum_orphaned must not be negative"));
  kernel.directions = bits(filter.directions);
  kernel.causes = bits(filter.causes);
  kernel.one_in = filter.one_in;
  kernel.minimum_orphaned = static_cast<std::uint64_t>(filter.minimum_orphaned.count());
  return kernel;
}

}  // namespace sockalarm::observe
