// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/unique_fd.h>
