#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: tests/package/abi.sh LIBRARY [--renew]

Compares the binary interface of a libsockalarm_c.so that has debug information with that of the last release,
tests/package/libsockalarm_c.abi: fails if a program that was linked with that one may not run with this one. What is
added is no difference. With --renew it is written anew: after a release with additions, or with a new soname.

Example:
  tests/package/abi.sh build/user/c_abi/libsockalarm_c.so
TEXT
}

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  "") usage >&2; exit 1 ;;
esac
here=$(dirname "$(realpath "$0")")
baseline=$here/libsockalarm_c.abi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Only what the C headers show: the types of handles are private, and all C++ is.
mkdir "$work/include"
cp "$here"/../../include/sockalarm/*_c.h "$work/include"
abidw --headers-dir "$work/include" --drop-private-types --exported-interfaces-only --no-corpus-path --no-comp-dir-path \
  --no-show-locs --no-elf-needed --no-parameter-names --drop-undefined-syms --type-id-style hash \
  --out-file "$work/dump" "$1"
# The licence in the second line: abidiff knows the file by its first.
sed -E -e "s|(<abi-instr [^>]*path=')[^']*/(user/)|\1\2|" -e '1a <!-- SPDX-License-Identifier: Apache-2.0 -->' "$work/dump" >"$work/now.abi"

if [ "${2:-}" = --renew ]; then
  cp "$work/now.abi" "$baseline"
  exit 0
fi
# An empty comparison would find no difference.
grep -q "<function-decl name='sockalarm_context_new'" "$work/now.abi" || { echo "$1: no debug information" >&2; exit 1; }
status=0
abidiff --no-added-syms "$baseline" "$work/now.abi" || status=$?
[ $((status & 3)) -eq 0 ] || { echo "abidiff could not compare (exit status $status)" >&2; exit 1; }  # abidiff(1)
if [ $status -ne 0 ]; then
  cat >&2 <<TEXT
$1 does not keep what $baseline promises.
A change that old programs do not see, as a struct growing at its end does where it begins with its size, is renewed:
  $0 $1 --renew
Any other needs a new soname, which is the major version.
TEXT
  exit 1
fi
echo "compatible"
