// SPDX-License-Identifier: Apache-2.0
#include <re2/re2.h>
#include <sockalarm/policy.h>

#include "core/action_text.h"
#include "request/path_expression.h"

namespace sockalarm {
namespace {

tl::unexpected<Error> refuse(const std::string& key, const std::string& what) {
  return fail(Error(Errc::invalid_policy, key + ": " + what));
}

Result<void> check_limit(const std::string& key, std::chrono::nanoseconds limit) {
  if (limit.count() >= 0) return {};
  return refuse(key, std::to_string(limit.count()) + " ns; expected 0 (none) or more");
}

}  // namespace

Result<void> check_policy(const Policy& policy) {
  if (auto ok = check_limit("limit", policy.limit); !ok) return ok;
  if (auto ok = check_limit("call_limit", policy.call_limit); !ok) return ok;
  if (policy.forward && policy.call_limit.count() == 0)
    return refuse("forward", "needs call_limit, which every forwarded call is to have");
  if (!policy.on || !events::shut.contains(policy.on))
    return refuse("on", to_string(policy.on) +
                            "; expected some of fin, reset, timeout, error: what tells that a client left");
  for (std::size_t i = 0; i < policy.overrides.size(); ++i) {
    const std::string key = "override[" + std::to_string(i) + "]";
    const PathLimit& one = policy.overrides[i];
    if (auto ok = check_limit(key + ".limit", one.limit); !ok) return ok;
    const re2::RE2 expression(one.path, detail::path_options());
    if (!expression.ok())
      return refuse(key + ".path",
                    "'" + one.path + "' is no regular expression of RE2: " + expression.error());
  }
  return {};
}

}  // namespace sockalarm
