// SPDX-License-Identifier: Apache-2.0
// What the page's test serves: a line with the policy, then the page, as the daemon has them.
#include <iostream>

#include "observe/page.h"

int main() { std::cout << sockalarm::observe::page_policy() << '\n' << sockalarm::observe::page(); }
