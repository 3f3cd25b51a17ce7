#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run_workers.sh WORKERS: two workers answer in turn; one is killed, and a new one answers in its place.
set -euo pipefail
. "$(dirname "$0")/server.sh"
ask() { curl --silent --show-error --max-time 60 "http://127.0.0.1:$port/"; }

serve "$1" 2
first=$(ask) second=$(ask) third=$(ask)
echo "$first, $second, $third"
[ "$first" != "$second" ] && [ "$first" = "$third" ]
kill -KILL "${second##* }"  # a child of the example's
await "a worker has died"
fourth=$(ask) fifth=$(ask)
echo "$fourth, $fifth"
[ "$fourth" != "$second" ] && [ "$fifth" != "$second" ] && [ "$fourth" != "$fifth" ]
