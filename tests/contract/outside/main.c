/* SPDX-License-Identifier: Apache-2.0 */
/* What a user's program in C looks like. An argument: where the daemon listens. */
#include <sockalarm/sockalarm_c.h>
#include <stdio.h>

int main(int argc, char** argv) {
  char text[512];
  sockalarm_context* context;
  const sockalarm_options options = {.size = sizeof options, .daemon_socket = argc > 1 ? argv[1] : NULL};
  if (sockalarm_context_new(&options, &context) < 0 ||
      sockalarm_context_describe(context, text, sizeof text) < 0) {
    fprintf(stderr, "%s\n", sockalarm_error_text());
    return 1;
  }
  printf("C, version %s: %s\n", sockalarm_version(), text);
  sockalarm_context_free(context);
  return 0;
}
