/* SPDX-License-Identifier: Apache-2.0 */
/* In C: a server whose handler blocks, here in nanosleep(2). When the client leaves, a signal gets the thread
 * out of its system call.
 *
 *   c_server [PORT [kernel|epoll|poll]]      curl --max-time 1 http://127.0.0.1:PORT/
 */
#define _POSIX_C_SOURCE 200809L

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <sockalarm/sockalarm_c.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void give_up(const char* why) {
  fprintf(stderr, "c_server: %s\n", why);
  exit(1);
}

static void check(int result) {
  if (result < 0) give_up(sockalarm_error_text());
}

static void interrupt_only(int number) { (void)number; }

static int listen_on_loopback(int port) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address;
  socklen_t length = sizeof address;
  memset(&address, 0, sizeof address);
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons((in_port_t)port);
  if (bind(listener, (struct sockaddr*)&address, length) != 0 || listen(listener, 64) != 0 ||
      getsockname(listener, (struct sockaddr*)&address, &length) != 0)
    give_up("cannot listen");
  printf("listening on port %d\n", ntohs(address.sin_port));
  return listener;
}

static void handle(sockalarm_context* context, const sockalarm_actions* actions, int client) {
  const struct timespec work = {30, 0};
  sockalarm_watch* watch;
  sockalarm_alarm* alarm;
  sockalarm_peer peer;
  char request[4096], what[64];

  check(sockalarm_watch_new(context, client, &watch)); /* once per connection */
  peer = sockalarm_watch_peer(watch);
  if (recv(client, request, sizeof request, 0) > 0) {
    check(sockalarm_alarm_new(watch, actions, SOCKALARM_EVENT_SHUT, 0, &alarm)); /* per request */
    if (!sockalarm_peer_gone(peer) && nanosleep(&work, NULL) != 0 && errno == EINTR)
      printf("the blocked thread is back\n");
    sockalarm_alarm_free(alarm); /* from here on no signal comes */
    if (sockalarm_peer_gone(peer)) {
      check(sockalarm_events_text(sockalarm_peer_seen(peer), what, sizeof what));
      printf("request given up: %s\n", what);
    } else {
      const char answer[] = "HTTP/1.0 200 OK\r\n\r\ndone\n";
      send(client, answer, sizeof answer - 1, MSG_NOSIGNAL);
    }
  }
  sockalarm_watch_free(watch);
}

int main(int argc, char** argv) {
  struct sigaction interrupt;
  sockalarm_options options = {0};
  sockalarm_context* context;
  sockalarm_actions* actions;
  char text[1024];
  int listener;

  setvbuf(stdout, NULL, _IOLBF, 0);
  memset(&interrupt, 0, sizeof interrupt);
  interrupt.sa_handler = interrupt_only; /* without SA_RESTART: its only purpose is EINTR */
  sigaction(SIGALRM, &interrupt, NULL);

  options.size = sizeof options;
  if (argc > 2) check(options.source = sockalarm_source_parse(argv[2]));
  check(sockalarm_context_new(&options, &context));
  check(sockalarm_context_describe(context, text, sizeof text));
  printf("%s\n", text);
  /* Twice, for a signal that comes just before the system call does not end it. */
  check(sockalarm_actions_parse("sig:ALRM; sleep:10ms; sig:ALRM", &actions));

  listener = listen_on_loopback(argc > 1 ? atoi(argv[1]) : 0);
  for (;;) {
    const int client = accept(listener, NULL, NULL);
    if (client < 0) continue;
    handle(context, actions, client);
    close(client);
  }
}
