#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A lock that is left out does not compile: clang's thread safety analysis, by the annotations of base/mutex.h.

lock_removed.py FILE... -- COMPILER FLAG...

Compiles each file as it is, which must give no warning, and once for every lock in it without that lock, which must.
"""
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys

LOCK = re.compile(r"\b(?:MutexLock|CoreLock) (\w+)\([^;]*\);")
ANALYSIS = ["-x", "c++", "-fsyntax-only", "-Wthread-safety", "-Wthread-safety-beta"]
# What stands in for the lock, so that unlock() and lock() of it still compile.
NO_LOCK = "struct NoLock { void lock() {} void unlock() {} };\n#line 1\n"


def diagnostics(compiler, text):
    run = subprocess.run([*compiler, *ANALYSIS, "-"], input=text, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"lock_removed: {' '.join(compiler)} fails:\n{run.stderr}")
    return run.stderr


def failures(file, compiler, pool):
    text = pathlib.Path(file).read_text()
    locks = list(LOCK.finditer(text))
    if not locks:
        return [f"{file}: no lock found in it"]
    found = [f"{file}: as it is:\n{said}"] if (said := diagnostics(compiler, text)) else []

    def without(lock):
        said = diagnostics(compiler, NO_LOCK + text[:lock.start()] + f"NoLock {lock[1]}{{}};" + text[lock.end():])
        if "[-Wthread-safety" not in said:
            line = text.count("\n", 0, lock.start()) + 1
            return f"{file}:{line}: compiles without a warning when this lock is left out: {lock[0]}"
    return found + [failure for failure in pool.map(without, locks) if failure]


if "--" not in sys.argv:
    sys.exit(__doc__)
split = sys.argv.index("--")
with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as all_cores:
    wrong = [one for file in sys.argv[1:split] for one in failures(file, sys.argv[split + 1:], all_cores)]
print("\n".join(wrong) or "no lock can be left out")
sys.exit(1 if wrong else 0)
