# SPDX-License-Identifier: Apache-2.0
"""Counts loads and branches of Peer::gone() and Watch::peer_gone() in the code that the compiler made of peer_gone_probe.cpp."""
import re
import subprocess

FUNCTIONS = {"peer": "sockalarm_probe_peer", "value": "sockalarm_probe_value", "decision": "sockalarm_probe_decision"}


def instructions(text, function):
    body = re.search(rf"<{function}>:\n(.*?)(?:\n\n|\Z)", text, re.DOTALL)
    lines = [line.split(":", 1)[1].strip() for line in body.group(1).splitlines() if ":" in line] if body else []
    return [line for line in lines if not re.match(r"(nop|xchg\s+%ax,%ax|data16|cs nop|endbr|int3|lea\b)", line)]


def is_load(line):
    # AT&T order: a memory operand that is not the destination of a plain mov, or is only looked at.
    name, _, operands = line.partition(" ")
    if "(" not in operands or name.startswith(("j", "call")):
        return False
    to_memory = re.search(r",\s*[^,()]*\([^)]*\)$", operands) is not None
    return not (to_memory and name.startswith("mov"))


def is_branch(line):
    return re.match(r"j(?!mp)[a-z]+\s", line) is not None


def measure(build):
    try:
        text = subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", str(build / "tests/bench/peer_gone_probe.o")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return {"settings": {}, "rows": {name: {"not_available": str(error)} for name in FUNCTIONS}}
    rows = {}
    for name, function in FUNCTIONS.items():
        code = instructions(text, function)
        if "x86-64" not in text or not code:
            rows[name] = {"not_available": "the code is counted on x86-64 only"}
            continue
        rows[name] = {
            "loads": sum(map(is_load, code)),
            "branches": sum(map(is_branch, code)),
            "code": "; ".join(re.sub(r"\s+", " ", line) for line in code),
        }
    return {"settings": {}, "rows": rows}
