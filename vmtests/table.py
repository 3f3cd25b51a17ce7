# SPDX-License-Identifier: Apache-2.0
"""The table of kernels, features and results in docs/kernels.md; made by `vmtests/run --table FILE`."""

TOP = """<!-- Written by vmtests/run --table. Change vmtests/table.py, not this file. -->
# Kernels

What each kernel gives, found out there by `sockalarm doctor`, and how the tests went. All but *native* are Debian's
kernels in QEMU's software emulation: *-rt* are realtime ones (PREEMPT_RT), *+lockdown* is locked down, confidentiality
(kernel_lockdown(7)). *native* is the kernel of the machine that made this table. Repeat with

```sh
{command}
```

"""

PART = """
*Selected*: on the day of the table only those were run there, by `--filter`.
"""

FEATURES = """
What a *no* means and what to do about it, `sockalarm doctor` says on your machine. Without the kernel source everything
works by epoll, with the same meaning ([sources.md](sources.md)); without task work the dispatcher sends signals, or
signal-driven I/O does ([delivery.md](delivery.md)).
"""

LATENCY = """
## How soon

From a peer's `close()` to the signal handler of a thread that is blocked in `recv()`: the median of {samples} samples,
as a ratio to an epoll thread that sends the signal, measured in the same run on the same kernel. *Load* is how many
processes of others wanted the machine's processors meanwhile (the load average at the end): beside many the ratios say
little. In an emulated machine everything takes longer, and not all by the same factor, so only the order of magnitude
counts there. [benchmarks](benchmarks/README.md) has the careful figures.

"""

# In the rows of bench_direct, beside the epoll thread that they are compared with.
CONTENDERS = [
    ("sockalarm_dispatcher", "kernel source, dispatcher"),
    ("sockalarm_task_work", "kernel source, task work"),
    ("sockalarm_sigio", "kernel source, signal-driven I/O"),
    ("sockalarm_sigio_on_epoll", "epoll source, signal-driven I/O"),
]


def row(*cells):
    return "| " + " | ".join(cells) + " |\n"


def table(head, rows):
    return row("", *head) + row(*["---"] * (len(head) + 1)) + "".join(row(*cells) for cells in rows)


def features(column):
    return {feature["name"]: feature for feature in column["doctor"]["features"]}


def ratio(column, contender):
    figure = column["direct"].get("rows", {}).get("idle", {}).get(contender, {}).get("p50_to_epoll")
    return "-" if figure is None else f"{figure:.2f}"


# The test programs of vmtests/run, by what the table calls them together.
SUITES = {
    "privileged tests passed": ["privileged_tests", "suite", "request_suite"],
    "tests with a daemon passed": ["suite_by_daemon", "daemon_tests"],
    "tests of what is refused passed": ["degradation", "privileges_0", "privileges_1"],
}


def passed(column, suites):
    ends = [end for suite in suites for end in column["ends"].get(suite, [])]
    shaky = ends.count("shaky")
    text = f"{ends.count('passed') + shaky} of {len(ends)}" if ends else "-"
    return text + (" selected" if ends and column["part"] else "") + (f", {shaky} at the second try" if shaky else "")


def write(path, columns, command):
    """columns: per kernel its name, the day, how the tests of each suite ended, and what doctor and bench_direct said."""
    head = [column["name"] for column in columns]
    rows = [
        ["kernel", *(features(c)["system"]["detail"].split()[1] for c in columns)],
        ["tested", *(c["day"] for c in columns)],
        *([words, *(passed(c, suites) for c in columns)] for words, suites in SUITES.items()),
        ["source chosen as root", *(c["doctor"]["source"] for c in columns)],
        ["signals are delivered by", *(c["doctor"]["delivery"].replace("_", " ") for c in columns)],
    ]
    # What depends on the machine or on a daemon says nothing about the kernel.
    for name in (n for n in features(columns[-1]) if n not in ("system", "daemon source", "descriptors", "capabilities")):
        found = [features(column).get(name) for column in columns]
        rows.append([name, *("-" if f is None else "yes" if f["available"] else "**no**" for f in found)])
    samples = columns[-1]["direct"].get("settings", {}).get("samples_idle", "some")
    part = PART if any(column["part"] for column in columns) else ""
    text = TOP.format(command=command) + table(head, rows) + part + FEATURES + LATENCY.format(samples=samples)
    rows = [[words, *(ratio(c, name) for c in columns)] for name, words in CONTENDERS]
    text += table(head, [*rows, ["load", *(c["load"] for c in columns)]])
    path.write_text(text)
