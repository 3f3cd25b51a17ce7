#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every row of docs/ancestry.md names a test that exists. ancestry.py REPOSITORY"""
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
sources = "".join(file.read_text() for file in sorted((root / "tests").rglob("*_test.cpp")))
tests = {f"{suite}.{name}" for suite, name in re.findall(r"^TEST(?:_[PF])?\((\w+), (\w+)\)", sources, re.MULTILINE)}
rows = [line for line in (root / "docs/ancestry.md").read_text().splitlines() if line.startswith("|") and "---" not in line]
rows = [row for row in rows if "| feature |" not in row]
wrong = [row for row in rows if not (named := re.search(r"`(\w+\.\w+)` \|$", row)) or named[1] not in tests]
print("\n".join(wrong) or f"{len(rows)} rows, each with its test")
sys.exit(1 if wrong or not rows else 0)
