#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""c_symbols.py REPOSITORY LIBRARY: libsockalarm_c has what its headers declare, of a version, and nothing else; and
sockalarm_c(3) names all of it."""
import pathlib
import re
import subprocess
import sys

include = pathlib.Path(sys.argv[1], "include/sockalarm")
declared, inline = set(), set()
for header in include.glob("*_c.h"):
    text = header.read_text()
    found = re.findall(r"^SOCKALARM_C_API[^;(]*?(\w+)\(", text, re.MULTILINE)
    if len(found) != len(re.findall(r"^SOCKALARM_C_API", text, re.MULTILINE)):
        sys.exit(f"{header.name}: a declaration that this check does not understand")
    declared.update(found)
    inline.update(re.findall(r"^static inline [^;(]*?(\w+)\(", text, re.MULTILINE))

dynamic = subprocess.run(["readelf", "--wide", "--dynamic", sys.argv[2]], check=True, capture_output=True, text=True).stdout
soname = re.search(r"SONAME\).*\[(.*)\]", dynamic)
wrong = [] if soname and re.fullmatch(r"libsockalarm_c\.so\.\d+", soname[1]) else ["SONAME is " + str(soname and soname[1])]

symbols = subprocess.run(["nm", "--dynamic", "--defined-only", "--with-symbol-versions", sys.argv[2]],
                         check=True, capture_output=True, text=True).stdout
exported = set()
for line in symbols.splitlines():
    _, kind, name = line.split()
    if kind == "A":
        continue  # the version's own name
    symbol, _, version = name.partition("@@")
    exported.add(symbol)
    if kind != "T" or not re.fullmatch(r"SOCKALARM_C_\d+\.\d+", version):
        wrong.append(f"exported: {kind} {name}")
wrong += [f"declared, but not exported: {name}" for name in sorted(declared - exported)]
wrong += [f"exported, but not declared: {name}" for name in sorted(exported - declared)]
page = pathlib.Path(sys.argv[1], "docs/man/sockalarm_c.3").read_text()
listed = set(re.findall(r"^\.BR (sockalarm_\w+) \(\)", page, re.MULTILINE))
wrong += [f"not in sockalarm_c(3): {name}" for name in sorted((declared | inline) - listed)]
wrong += [f"in sockalarm_c(3), but not declared: {name}" for name in sorted(listed - declared - inline)]
print("\n".join(wrong) or f"{len(exported)} functions")
sys.exit(1 if wrong or not exported else 0)
