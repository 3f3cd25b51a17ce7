#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run.sh EXAMPLE EXPECTED [ARGUMENT]...: starts an example server, lets curl give up on it, and waits for a line.
set -euo pipefail
example=$1 expected=$2
shift 2
coproc server { exec "$example" 0 "$@"; }
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
await "listening on port "
port=${line##* }
curl --silent --max-time 0.3 "http://127.0.0.1:$port/" >/dev/null && { echo "curl got an answer"; exit 1; }
await "$expected"
