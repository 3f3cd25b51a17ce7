# SPDX-License-Identifier: Apache-2.0
# To be sourced: serve EXAMPLE [ARGUMENT]... starts an example server, ended with the script, and sets $port.
await() {  # a line that contains $1; prints all until then
  while read -t 60 -r line <&"${server[0]}"; do
    echo "$line"
    case "$line" in *"$1"*) return 0 ;; esac
  done
  echo "'$1' did not come"
  return 1
}

serve() {
  local example=$1
  shift
  coproc server { exec "$example" 0 "$@"; }
  pid=$server_PID
  trap 'kill "$pid" 2>/dev/null || true' EXIT
  await "listening on port "
  port=${line##* }
}
