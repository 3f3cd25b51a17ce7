/* SPDX-License-Identifier: Apache-2.0 */
#include <sockalarm/sockalarm_c.h>
#include <stdio.h>

int main(void) {
  char text[512];
  sockalarm_context* context;
  if (sockalarm_context_new(NULL, &context) < 0 ||
      sockalarm_context_describe(context, text, sizeof text) < 0) {
    fprintf(stderr, "%s\n", sockalarm_error_text());
    return 1;
  }
  printf("C, version %s: %s\n", sockalarm_version(), text);
  sockalarm_context_free(context);
  return 0;
}
