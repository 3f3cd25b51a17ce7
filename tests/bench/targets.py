# SPDX-License-Identifier: Apache-2.0
"""What the project promises, against what was measured."""
import figures

SLEEP, SPIN, ADAPTIVE = "sockalarm_sleep", "sockalarm_spin", "sockalarm_adaptive"

# (name, what, unit, at least or at most, bound, path of the figure)
TARGETS = [
    (
        "asking_ratio",
        "`peer_gone()` is cheaper than `poll(fd, POLLRDHUP, 0)`",
        "x",
        ">=",
        500,
        ("nanoseconds", "rows", "peer_gone", "times_cheaper_than_poll_rdhup"),
    ),
    ("asking_ns", "`peer_gone()` takes", "ns", "<=", 2, ("nanoseconds", "rows", "peer_gone", "ns")),
    ("asking_loads", "`Peer::gone()`: loads of memory", "", "<=", 1, ("machine_code", "rows", "peer", "loads")),
    ("asking_branches", "`Peer::gone()`: branches", "", "<=", 1, ("machine_code", "rows", "peer", "branches")),
    (
        "arming_ratio",
        "arm + cancel is cheaper than `epoll_ctl` add + del",
        "x",
        ">=",
        50,
        ("nanoseconds", "rows", "arm_cancel/kernel", "times_cheaper_than_epoll_add_del"),
    ),
    ("arming_ns", "arm + cancel takes", "ns", "<=", 50, ("nanoseconds", "rows", "arm_cancel/kernel", "ns")),
    (
        "arming_syscalls",
        "arm + cancel: system calls in 100,000 rounds",
        "",
        "<=",
        0,
        ("counts", "rows", "kernel", "arm_cancel", "syscalls"),
    ),
    (
        "arming_allocations",
        "arm + cancel: allocations in 100,000 rounds",
        "",
        "<=",
        0,
        ("counts", "rows", "kernel", "arm_cancel", "allocations"),
    ),
    (
        "request_ns",
        "a request with one call that does nothing takes",
        "ns",
        "<=",
        2000,
        ("nanoseconds", "rows", "request_call/kernel", "ns"),
    ),
    (
        "task_work_idle",
        "task work to an epoll thread, idle, p50",
        "of it",
        "<=",
        1.0,
        ("direct", "rows", "idle", "sockalarm_task_work", "p50_to_epoll"),
    ),
    (
        "sigio_idle",
        "sigio to an epoll thread, idle, p50",
        "of it",
        "<=",
        0.4,
        ("direct", "rows", "idle", "sockalarm_sigio", "p50_to_epoll"),
    ),
    (
        "task_work_loaded",
        "task work in a thread of short slices to an epoll thread, 8 hogs, p90",
        "of it",
        "<=",
        0.4,
        ("direct", "rows", "loaded", "sockalarm_task_work_slice", "p90_to_epoll"),
    ),
    (
        "sigio_loaded",
        "sigio in a thread of short slices to an epoll thread, 8 hogs, p90",
        "of it",
        "<=",
        0.4,
        ("direct", "rows", "loaded", "sockalarm_sigio_slice", "p90_to_epoll"),
    ),
    *[
        (
            f"missed_{load}_{way}",
            f"{words}, {load}: signals that never came",
            "",
            "<=",
            0,
            ("direct", "rows", load, f"sockalarm_{way}", "missed"),
        )
        for load in ("idle", "loaded")
        for way, words in (
            ("task_work", "task work"),
            ("sigio", "sigio"),
            ("task_work_slice", "task work, short slices"),
            ("sigio_slice", "sigio, short slices"),
        )
    ],
    (
        "spin_callback",
        "callback, `spin`, to an epoll thread, p50",
        "of it",
        "<=",
        0.6,
        ("callback", "rows", "watches", "1", SPIN, "p50_to_epoll"),
    ),
    (
        "sleep_callback",
        "callback, `sleep`, to an epoll thread, p50",
        "of it",
        "<=",
        1.7,
        ("callback", "rows", "watches", "1", SLEEP, "p50_to_epoll"),
    ),
    *[
        (
            f"flat_{name}",
            f"callback, `{name}`, 9,000 watches to one",
            "of it",
            "<=",
            1.2,
            ("callback", "rows", "watches", "9000", who, "p50_to_one_watch"),
        )
        for name, who in (("sleep", SLEEP), ("spin", SPIN))
    ],
    *[
        (
            f"storm_{name}",
            f"storm, `{name}`: until the last alarm ran, to the time of the closes",
            "of it",
            "<=",
            1.2,
            ("storm", "rows", who, "last_alarm_to_closes"),
        )
        for name, who in (("sleep", SLEEP), ("adaptive", ADAPTIVE), ("spin", SPIN))
    ],
    *[
        (
            f"unwatched_{variant}_{entries}",
            f"cost to a cycle that nobody watches ({variant} close, {words})",
            "%",
            "<=",
            3,
            ("unwatched", "rows", variant, entries, "overhead_percent"),
        )
        for variant in ("fin", "reset")
        for entries, words in (("no_entries", "no entries"), ("100000_entries", "100,000 entries"))
    ],
    *[
        (
            f"observed_{state}",
            f"throughput lost at about 20,000 ends/s on loopback, {words}",
            "%",
            "<=",
            bound,
            ("observed", "rows", "with_work", state, "throughput_lost_percent"),
        )
        for state, words, bound in (
            ("matching_nothing", "observer whose filters match nothing", 2),
            ("everything", "every end observed, recorded and read", 5),
        )
    ],
    ("memory_shared", "shared memory per watch", "bytes", "<=", 64, ("memory", "rows", "kernel", "shared_per_watch")),
    ("memory_user", "user space per watch", "bytes", "<=", 256, ("memory", "rows", "kernel", "user_space_per_watch")),
    ("load", "from nothing to the first watch", "ms", "<=", 100, ("load", "rows", "kernel", "to_first_watch_ms")),
]


def judge(results):
    verdicts = []
    for name, what, unit, direction, bound, path in TARGETS:
        figure = figures.find(results, *path)
        met = None
        if figure is not None:
            # What must never happen may not happen in a single run.
            value = figure["high"] if bound == 0 else figure["median"]
            met = value >= bound if direction == ">=" else value <= bound
        verdicts.append(
            {
                "name": name,
                "section": path[0],
                "what": what,
                "unit": unit,
                "target": f"{direction} {bound}",
                "measured": figure,
                "why_not": None if figure else figures.why_not(results, *path) or "not measured",
                "met": met,
            }
        )
    return verdicts


def in_words(met):
    return {True: "met", False: "not met", None: "no figure"}[met]
