// SPDX-License-Identifier: Apache-2.0
// The components, as far as they were installed: OUTSIDE_POSTGRES, OUTSIDE_MARIADB. Without a server: what is
// said of a connection that is not there.
#include <sockalarm/mariadb.h>
#include <sockalarm/postgres.h>

#include <cstdio>

int main() {
  bool fine = true;
#if OUTSIDE_POSTGRES
  const sockalarm::Action cancel = sockalarm::postgres::cancel_query(nullptr);
  fine &= cancel.error() != nullptr && std::puts(cancel.error()->message().c_str()) >= 0;
#endif
#if OUTSIDE_MARIADB
  const sockalarm::Action kill = sockalarm::mariadb::kill_query(nullptr);
  fine &= kill.error() != nullptr && std::puts(kill.error()->message().c_str()) >= 0;
#endif
  return fine ? 0 : 1;
}
