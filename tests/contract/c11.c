/* SPDX-License-Identifier: Apache-2.0 */
/* The C headers as a program in C11 sees them, before any other header. */
#include <sockalarm/sockalarm_c.h>
#include <sockalarm/sockalarm_request_c.h>

int uses_inline(const sockalarm_watch* watch);
int uses_inline(const sockalarm_watch* watch) {
  return sockalarm_peer_gone(sockalarm_watch_peer(watch)) ? 1 : 0;
}
