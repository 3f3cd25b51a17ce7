#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run.sh EXAMPLE EXPECTED [ARGUMENT]...: starts an example server, lets curl give up on it, and waits for a line.
set -euo pipefail
example=$1 expected=$2
shift 2
. "$(dirname "$0")/server.sh"
serve "$example" "$@"
curl --silent --max-time 0.3 "http://127.0.0.1:$port/" >/dev/null && { echo "curl got an answer"; exit 1; }
await "$expected"
