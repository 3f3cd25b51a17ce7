# SPDX-License-Identifier: Apache-2.0
"""scripts/bench runs from end to end and writes what it promises. No expectation of any figure. smoke_test.py BUILD"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import page
import run
import targets

EXPECTED = {
    "nanoseconds": [
        "peer_gone",
        "seen",
        "arm_cancel/kernel",
        "arm_cancel/epoll",
        "arm_cancel/poll",
        "request_call/kernel",
        "shield/kernel",
        "poll_rdhup",
        "recv_peek",
        "tcp_info",
        "epoll_add_del",
        "io_uring_add_remove",
    ],
    "counts": ["kernel", "epoll", "poll"],
    "direct": ["idle", "loaded", "loaded_peer_sleeps"],
    "callback": ["watches", "after_activity"],
    "storm": ["sockalarm_sleep", "sockalarm_adaptive", "sockalarm_spin", "sockalarm_on_epoll", "epoll_thread"],
    "unwatched": ["fin", "reset"],
    "observed": ["without_work", "with_work"],
    "memory": ["kernel", "epoll", "poll"],
    "load": ["kernel", "epoll", "poll"],
    "daemon": ["many_watches", *page.NEIGHBOURS],
    "steps": ["sockalarm_sleep", "sockalarm_on_epoll", "epoll_thread"],
    "machine_code": ["peer", "value", "decision"],
    "io_socketalarm": ["io_socketalarm"],
}


def main():
    build = pathlib.Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        subprocess.run([sys.executable, "-B", run.__file__, "--build", str(build), "--out", folder, "--quick"], check=True)
        results = json.loads((out / "results.json").read_text())
        text = (out / "README.md").read_text()
    problems = [f"no section {name}" for name in run.SECTIONS if name not in results["sections"]]
    for name, rows in EXPECTED.items():
        there = results["sections"].get(name, {}).get("rows", {})
        problems += [f"{name}: no row {row}" for row in rows if row not in there]
        problems += [
            f"{name}: nothing about {key}"
            for key in ("measured", "runs", "settings")
            if key not in results["sections"][name]
        ]
    problems += [
        f"machine: no {key}"
        for key in ("cpu", "cores", "kernel", "virtual_machine", "compiler")
        if key not in results["machine"]
    ]
    if [verdict["name"] for verdict in results["targets"]] != [target[0] for target in targets.TARGETS]:
        problems.append("not every target has a verdict")
    if os.environ.get("SOCKALARM_REQUIRE_KERNEL") == "1":
        refused = results["sections"]["memory"]["rows"]["kernel"].get("not_available")
        problems += [f"the kernel source was not measured: {refused}"] if refused else []
    for heading in ("## Asking and arming", "## How to repeat"):
        if heading not in text:
            problems.append(f"the page has no '{heading}'")
    print("\n".join(problems) or "everything is there")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
