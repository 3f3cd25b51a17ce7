#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# installed.sh SOURCE BUILD CXX: installs BUILD into a folder of its own and builds and runs a program against it, by
# find_package() and by pkg-config.
set -euo pipefail
source=$1 build=$2 cxx=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$build" --prefix "$work/prefix" >"$work/log"

cmake -S "$source/tests/contract/outside" -B "$work/outside" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_CXX_COMPILER="$cxx" >>"$work/log"
cmake --build "$work/outside" >>"$work/log"
"$work/outside/outside"

PKG_CONFIG_PATH=$(dirname "$(find "$work/prefix" -name sockalarm.pc)")
export PKG_CONFIG_PATH
pkg-config --validate sockalarm
# shellcheck disable=SC2046
"$cxx" -std=c++20 "$source/tests/contract/outside/main.cpp" -o "$work/by-pkg-config" $(pkg-config --cflags --libs --static sockalarm)
"$work/by-pkg-config"
if [ -x "$work/prefix/bin/sockalarm" ]; then "$work/prefix/bin/sockalarm" --version; fi
