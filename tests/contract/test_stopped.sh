#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Who ends scripts/test ends what it has started, too. Usage: test_stopped.sh SOURCES
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/scripts" "$work/bin"
cp "$1/scripts/test" "$work/scripts"
printf '#!/bin/sh\n' >"$work/scripts/setup"
# In the place of what builds: one with a child of its own, that tells when both are there.
cat >"$work/bin/cmake" <<'SCRIPT'
#!/bin/sh
sleep 300 &
echo "$$ $!" >"$PIPE"
wait
SCRIPT
chmod +x "$work/scripts/setup" "$work/bin/cmake"
mkfifo "$work/pipe"

for signal in TERM HUP; do
  PATH="$work/bin:$PATH" PIPE="$work/pipe" "$work/scripts/test" release >/dev/null 2>&1 &
  script=$!
  read -r builder child <"$work/pipe"
  kill -"$signal" "$script"
  status=0
  wait "$script" || status=$?
  [ "$status" -eq $((128 + $(kill -l "$signal"))) ] || { echo "SIG$signal: it ended with $status"; exit 1; }
  for process in "$builder" "$child"; do
    # Gone, or dead and not yet waited for by init.
    for ((i = 0; i < 100; i++)); do
      state=$(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$process/status" 2>/dev/null) || true
      case "$state" in "" | Z) break ;; esac
      sleep 0.1
    done
    case "$state" in "" | Z) ;; *) kill "$builder" "$child"; echo "SIG$signal: process $process is left"; exit 1 ;; esac
  done
done
