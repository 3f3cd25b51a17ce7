#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run_workers.sh WORKERS: two workers answer in turn; one is killed, and a new one answers in its place.
set -euo pipefail
coproc server { exec "$1" 0 2; }
pid=$server_PID
trap 'kill "$pid" 2>/dev/null || true' EXIT

await() {  # a line that contains $1; prints all until then
  while read -t 60 -r line <&"${server[0]}"; do
    echo "$line"
    case "$line" in *"$1"*) return 0 ;; esac
  done
  echo "'$1' did not come"
  return 1
}
ask() { curl --silent --show-error --max-time 60 "http://127.0.0.1:$port/"; }

await "listening on port "
port=${line##* }
first=$(ask) second=$(ask) third=$(ask)
echo "$first, $second, $third"
[ "$first" != "$second" ] && [ "$first" = "$third" ]
kill -KILL "${second##* }"  # a child of the example's
await "a worker has died"
fourth=$(ask) fifth=$(ask)
echo "$fourth, $fifth"
[ "$fourth" != "$second" ] && [ "$fifth" != "$second" ] && [ "$fourth" != "$fifth" ]
