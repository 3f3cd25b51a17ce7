#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# installed.sh SOURCE BUILD CXX LINUX: installs BUILD into a folder of its own and builds and runs programs against it:
# one by find_package() and by pkg-config, and, if LINUX is ON, the examples of README.md and sockalarm.h.
set -euo pipefail
source=$1 build=$2 cxx=$3 linux=$4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$build" --prefix "$work/prefix" >"$work/log"

cmake -S "$source/tests/contract/outside" -B "$work/outside" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_CXX_COMPILER="$cxx" >>"$work/log"
cmake --build "$work/outside" >>"$work/log"
"$work/outside/outside"
"$work/outside/databases"
if [ -x "$work/outside/outside_c" ]; then "$work/outside/outside_c"; fi
if [ -x "$work/outside/outside_request" ]; then "$work/outside/outside_request"; fi

PKG_CONFIG_PATH=$(dirname "$(find "$work/prefix" -name sockalarm.pc)")
export PKG_CONFIG_PATH
read -ra flags < <(pkg-config --cflags --libs --static sockalarm)

by_pkg_config() {  # MODULE SOURCE [OPTION]...
  local module=$1 file=$2 module_flags
  shift 2
  pkg-config --validate "$module"
  read -ra module_flags < <(pkg-config --cflags --libs --static "$module")
  "$cxx" -std=c++20 "$@" "$source/tests/contract/outside/$file" -o "$work/by-pkg-config-$module" "${module_flags[@]}"
  "$work/by-pkg-config-$module"
}
by_pkg_config sockalarm main.cpp
if [ -f "$PKG_CONFIG_PATH/sockalarm-c.pc" ]; then
  pkg-config --validate sockalarm-c
  read -ra c_flags < <(pkg-config --cflags --libs sockalarm-c)
  "${CC:-cc}" -std=c11 -pedantic -Wall -Wextra -Werror "$source/tests/contract/outside/main.c" -o "$work/by-pkg-config-c" "${c_flags[@]}"
  LD_LIBRARY_PATH=$(pkg-config --variable=libdir sockalarm-c) "$work/by-pkg-config-c"
fi

run_example() {  # the text is on stdin
  mkdir "$work/$1"
  cat >"$work/$1/example.inc"
  [ -s "$work/$1/example.inc" ] || { echo "no example found: $1" >&2; exit 1; }
  "$cxx" -std=c++20 -D_GNU_SOURCE -I "$work/$1" "$source/tests/contract/outside/example.cpp" -o "$work/$1/example" "${flags[@]}"
  "$work/$1/example"
}
if [ "$linux" = ON ]; then  # they send signals to threads
  awk '/^```cpp/ { inside = 1; next } /^```/ && inside { exit } inside' "$source/README.md" | run_example readme
  sed -n 's|^//   ||p' "$source/include/sockalarm/sockalarm.h" | run_example header
fi

while read -r page; do
  man --warnings -l "$page" 2>&1 >/dev/null | (! grep .) || { echo "man does not like $page" >&2; exit 1; }
done < <(find "$work/prefix" -path '*/man/man?/*')
for text in LICENSE.md Apache-2.0.txt GPL-2.0-only.txt; do
  [ -n "$(find "$work/prefix" -name "$text" -size +0)" ] || { echo "$text is not installed" >&2; exit 1; }
done
for component in postgres mariadb; do
  if [ -e "$PKG_CONFIG_PATH/sockalarm-$component.pc" ]; then
    by_pkg_config "sockalarm-$component" databases.cpp "-DOUTSIDE_${component^^}"
  fi
done
if [ -f "$PKG_CONFIG_PATH/sockalarm-request.pc" ]; then
  by_pkg_config sockalarm-request request.cpp
fi
if [ -x "$work/prefix/sbin/sockalarmd" ]; then
  "$work/prefix/sbin/sockalarmd" --version
  units=$work/prefix/lib/systemd/system
  grep -qx "ExecStart=$work/prefix/sbin/sockalarmd --bpffs /run/sockalarm/bpf/pins" "$units/sockalarmd.service"
  ls "$units/sockalarmd.socket" "$units/run-sockalarm-bpf.mount" "$work/prefix/lib/sysusers.d/sockalarm.conf" >>"$work/log"
  if command -v systemd-analyze >/dev/null; then
    # What does not hold any more in the unit is found by systemd itself; nothing is started.
    SYSTEMD_UNIT_PATH="$units:" systemd-analyze verify --man=no "$units/sockalarmd.service" 2>&1 | (! grep sockalarm)
    # docs/daemon.md explains what remains; 12 is 1.2.
    systemd-analyze security --offline=yes --threshold=12 "$units/sockalarmd.service" >>"$work/log"
  fi
fi
if [ -x "$work/prefix/bin/sockalarm" ]; then "$work/prefix/bin/sockalarm" --version; fi
