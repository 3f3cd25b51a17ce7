// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <chrono>

namespace sockalarm::detail {

enum class Heirs { same, none };  // what threads and programs get that this thread starts

Result<void> set_time_slice(std::chrono::nanoseconds slice, Heirs heirs);

}  // namespace sockalarm::detail
