# SPDX-License-Identifier: Apache-2.0
"""From the close() of a peer to a function on the background thread, step by step, by the kernel's tracepoints (tracefs(5)).

Tracing makes every step dearer, so the sums are larger than what bench_callback measures; what matters is how they divide.
"""
import os
import pathlib
import re
import statistics
import subprocess
import sys

KINDS = ("sockalarm_sleep", "sockalarm_on_epoll", "epoll_thread")
EVENTS = ("syscalls/sys_enter_close", "sock/inet_sock_set_state", "irq_vectors/irq_work_entry", "sched/sched_waking", "sched/sched_switch")
# In a mount namespace of its own, and in a trace instance of its own: nobody else's tracing is touched.
SCRIPT = """set -e
mount -t tracefs tracefs /sys/kernel/tracing
cd /sys/kernel/tracing
mkdir instances/sockalarm
finish() { cd /; for e in $EVENTS; do echo 0 >$I/events/$e/enable; done; rmdir $I; umount /sys/kernel/tracing; }
I=/sys/kernel/tracing/instances/sockalarm
trap finish EXIT
echo mono >$I/trace_clock
echo 16384 >$I/buffer_size_kb
for e in $EVENTS; do echo 1 >$I/events/$e/enable; done
"$PROGRAM" --quick --only "$KIND" --out /dev/null >/dev/null 2>&1
echo 0 >$I/tracing_on
cat $I/trace
"""
LINE = re.compile(r"^\s*(?P<comm>.{1,16})-(?P<pid>\d+)\s+\[(?P<cpu>\d+)\] \S+\s+(?P<time>\d+\.\d+): (?P<event>\w+)[:(] ?(?P<rest>.*)$")


def parse(text):
    for line in text.splitlines():
        if match := LINE.match(line):
            event = match.groupdict()
            yield int(event["pid"]), int(event["cpu"]), float(event["time"]) * 1e6, event["event"], event["rest"]


def field(rest, name):
    match = re.search(rf"\b{name}=(\S+)", rest)
    return match.group(1) if match else None


def samples(text):
    """For each FIN: times of the steps, as far as they were seen before the next FIN."""
    closed_at, sample = {}, None
    for pid, cpu, time, event, rest in parse(text):
        if event in ("sys_close", "sys_enter_close"):
            closed_at[pid] = time
        elif event == "inet_sock_set_state" and field(rest, "newstate") == "TCP_CLOSE_WAIT":
            if sample and "called" in sample:
                yield sample
            sample = {"closer": pid, "cpu": cpu, "close": closed_at.get(pid), "fin": time}
            sample = sample if sample["close"] is not None else None
        elif sample is None or "called" in sample:
            continue
        elif event == "irq_work_entry" and cpu == sample["cpu"] and "woken" not in sample:
            sample.setdefault("interrupt", time)
        elif event == "sched_waking" and pid == sample["closer"] and "woken" not in sample:
            sample.update(woken=time, handler=int(field(rest, "pid")), same_cpu=int(field(rest, "target_cpu")) == cpu)
        elif event == "sched_switch" and "woken" in sample and field(rest, "next_pid") == str(sample["handler"]):
            sample.setdefault("runs", time)
        elif event == "sched_waking" and pid == sample.get("handler") and "runs" in sample:
            sample["called"] = time  # the function tells the thread that measures


def steps_of(found):
    def step(begin, end):
        times = [s[end] - s[begin] for s in found if begin in s and end in s]
        return round(statistics.median(times), 1) if times else None

    steps = {
        "close_to_fin_us": step("close", "fin"),
        "fin_to_interrupt_us": step("fin", "interrupt"),
        "fin_to_waking_us": step("fin", "woken"),
        "waking_to_running_us": step("woken", "runs"),
        "running_to_called_us": step("runs", "called"),
        "all_us": step("close", "called"),
    }
    steps["woken_on_the_same_cpu"] = round(sum(s["same_cpu"] for s in found) / len(found), 2)
    steps["samples"] = len(found)
    return {name: value for name, value in steps.items() if value is not None}


def trace(program, kind):
    environment = {**os.environ, "EVENTS": " ".join(EVENTS), "PROGRAM": str(program), "KIND": kind}
    done = subprocess.run(["unshare", "-m", "bash", "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise OSError(f"tracing is not to be had: {done.stderr.strip() or done.returncode}")
    return done.stdout


def measure(build):
    rows = {}
    for kind in KINDS:
        try:
            found = list(samples(trace(pathlib.Path(build).resolve() / "tests/bench/bench_callback", kind)))
            rows[kind] = steps_of(found) if found else {"not_available": "no close() was seen to its end"}
        except (OSError, subprocess.SubprocessError) as error:
            rows[kind] = {"not_available": str(error)}
    return {"settings": {}, "rows": rows}


if __name__ == "__main__":
    import json

    print(json.dumps(measure(sys.argv[1]), indent=1))
