# SPDX-License-Identifier: Apache-2.0
"""The Markdown page, from results.json alone."""
import targets
import words
from plots import NAMES


def number(value):
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.3f}"


def figure(value, unit=""):
    if value is None:
        return "-"
    text = number(value["median"])
    low, high = number(value["low"]), number(value["high"])
    if not low == high == text:
        text += f" ({low} to {high})"
    return f"{text} {unit}".rstrip()


def cell(row, key, unit=""):
    if row is None:
        return "-"
    if "not_available" in row:
        return "not available"
    value = row.get(key)
    return figure(value, unit) if isinstance(value, dict) else "-"


def cells(row, *keys):
    return [cell(row, key) for key in keys]


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    padded = [list(row) + [""] * (len(header) - len(row)) for row in rows]
    return "\n" + "\n".join(lines + ["| " + " | ".join(row) + " |" for row in padded]) + "\n"


def contenders(header, keys, rows):
    return table(["", *header], [[NAMES.get(name, name), *cells(row, *keys)] for name, row in rows.items()])


def by_source(rows, lines):
    sources = ("kernel", "epoll", "poll")
    return table(["", *sources], [[what, *(cell(rows.get(source), key) for source in sources)] for key, what in lines])


def rows_of(results, section):
    return results["sections"].get(section, {}).get("rows", {})


def settings_of(results, section):
    return results["sections"].get(section, {}).get("settings", {})


def reasons(rows):
    """Below a table: why some of its rows have no figures."""
    lines = [
        f"\nNot available, {NAMES.get(name, name)}: {row['not_available']}.\n"
        for name, row in rows.items()
        if isinstance(row, dict) and "not_available" in row
    ]
    return "".join(lines)


def plot(drawn, name, what):
    return f"\n![{what}]({name})\n" if name in drawn else ""


def verdicts(results):
    rows = []
    for verdict in results["targets"]:
        measured = figure(verdict["measured"], verdict["unit"]) if verdict["measured"] else "not available"
        if verdict["why_not"] == "not measured":
            measured = "not measured"
        bound = {">=": "at least", "<=": "at most"}[verdict["target"][:2]] + verdict["target"][2:]
        bound = "none" if bound == "at most 0" else f"{bound} {verdict['unit']}".rstrip()
        rows.append([verdict["what"], bound, measured, targets.in_words(verdict["met"])])
    return "## What was promised\n" + table(["what", "target", "measured", ""], rows)


def asking(results, drawn):
    rows = rows_of(results, "nanoseconds")
    baselines = ("poll_rdhup", "recv_peek", "tcp_info")
    asked = [
        [f"`Watch::{name}()`", cell(rows.get(name), "ns")]
        + [cell(rows.get(name), f"times_cheaper_than_{baseline}", "x") for baseline in baselines]
        for name in ("peer_gone", "seen")
    ]
    calls = ("`poll(fd, POLLRDHUP, 0)`", "`recv(MSG_PEEK \\| MSG_DONTWAIT)`", "`getsockopt(TCP_INFO)`", "an empty loop")
    asked += [[call, cell(rows.get(name), "ns")] for name, call in zip((*baselines, "empty_loop"), calls)]
    header = ["", "ns", "cheaper than poll", "cheaper than recv", "cheaper than TCP_INFO"]
    picture = plot(drawn, "asking.svg", "Nanoseconds of asking and arming")
    return words.ASKING + table(header, asked) + picture + arming(results) + requests(results) + machine_code(results)


def arming(results):
    rows = rows_of(results, "nanoseconds")
    lines = []
    for name, source in (
        ("kernel", "kernel"),
        ("kernel_dispatcher", "kernel, signals by the dispatcher"),
        ("kernel_sigio", "kernel, sigio"),
        ("epoll", "epoll"),
        ("epoll_sigio", "epoll, sigio"),
        ("poll", "poll"),
    ):
        row = rows.get(f"arm_cancel/{name}")
        counted = rows_of(results, "counts").get(name, {})
        counted = counted if "not_available" in counted else counted.get("arm_cancel")
        line = [source, cell(row, "ns"), cell(rows.get(f"start_cancel/{name}"), "ns")]
        line += [cell(row, f"times_cheaper_than_{baseline}", "x") for baseline in ("epoll_add_del", "io_uring_add_remove")]
        lines.append(line + cells(counted, "syscalls_each", "allocations_each"))
    lines.append(["`epoll_ctl` add + del", cell(rows.get("epoll_add_del"), "ns")])
    lines.append(["io_uring poll add + remove, one system call", cell(rows.get("io_uring_add_remove"), "ns")])
    header = ["source", "arm + scope end, ns", "start + cancel, ns", "cheaper than epoll_ctl", "cheaper than io_uring"]
    return words.ARMING + table(header + ["system calls", "allocations"], lines)


def requests(results):
    rows = rows_of(results, "nanoseconds")
    sources = ("kernel", "epoll", "poll")
    lines = [
        [what, *(cell(rows.get(f"{name}/{source}"), "ns") for source in sources)]
        for name, what in (
            ("request", "a `Request`"),
            ("request_call", "a `Request` with one `call`"),
            ("call", "one more `call`"),
            ("shield", "a `Shield`"),
        )
    ]
    return words.REQUESTS + table(["", *sources], lines)


def machine_code(results):
    rows = rows_of(results, "machine_code")
    lines = [
        [f"`{source}`", *cells(rows.get(name), "loads", "branches"), f"`{rows.get(name, {}).get('code', '-')}`"]
        for name, source in (("peer", "if (peer.gone()) leave();"), ("value", "return watch.peer_gone();"), ("decision", "if (watch.peer_gone()) leave();"))
    ]
    return words.MACHINE_CODE + table(["", "loads", "branches", "code"], lines)


def direct(results, drawn):
    text, settings = words.DIRECT, settings_of(results, "direct")
    header = ["p50 µs", "p90 µs", "p99 µs", "max µs", "p50 to epoll thread", "p90 to epoll thread", "directly", "missed"]
    keys = ["p50_us", "p90_us", "p99_us", "max_us", "p50_to_epoll", "p90_to_epoll", "direct_share", "missed"]
    hogs, samples = settings.get("hogs"), settings.get("samples_loaded")
    for load, what, count in (
        ("idle", "The machine idle", settings.get("samples_idle")),
        ("loaded", f"Beside {hogs} processes that compute, the peer computing on as well", samples),
        (
            "loaded_peer_sleeps",
            f"Beside {hogs} processes that compute, the peer going to sleep as soon as it has closed",
            samples,
        ),
    ):
        rows = rows_of(results, "direct").get(load, {})
        text += f"\n{what}, {count} samples per run:\n" + contenders(header, keys, rows)
        text += reasons(rows) if load == "idle" else ""
    return text + plot(drawn, "direct.svg", "Delay of the signal")


def callback(results, drawn):
    text, by_count = words.CALLBACK, rows_of(results, "callback").get("watches", {})
    header = ["p50 µs", "p90 µs", "p99 µs", "p50 to epoll thread", "p50 to one watch", "FIN seen after, µs"]
    keys = ["p50_us", "p90_us", "p99_us", "p50_to_epoll", "p50_to_one_watch", "p50_until_seen_us"]
    for count in sorted(by_count, key=int):
        rows = by_count[count]
        text += f"\n{int(count):,} {'watch' if count == '1' else 'watches'}:\n" + contenders(header, keys, rows)
        text += reasons(rows) if count == "1" else ""
    text += words.AFTER_ACTIVITY.format(gap=settings_of(results, "callback").get("gap_us"))
    keys = ["p50_us", "p90_us", "p50_to_epoll"]
    text += contenders(
        ["p50 µs", "p90 µs", "p50 to epoll thread"], keys, rows_of(results, "callback").get("after_activity", {})
    )
    return text + plot(drawn, "watches.svg", "Delay of the call against the number of watches")


def steps(results, _):
    rows = rows_of(results, "steps")
    header = ["close() to FIN, µs", "to the interrupt of the ring", "to the wake-up", "until it runs", "until the function", "all", "woken on the CPU of the FIN"]
    keys = ["close_to_fin_us", "fin_to_interrupt_us", "fin_to_waking_us", "waking_to_running_us", "running_to_called_us", "all_us", "woken_on_the_same_cpu"]
    return words.STEPS + contenders(header, keys, rows) + words.STEPS_REASON + reasons(rows)


def storm(results, _):
    rows = rows_of(results, "storm")
    header = [
        "closes took, ms",
        "last alarm",
        "after the last close, ms",
        "wake-ups",
        "records lost, swept for",
        "incomplete",
    ]
    keys = ["closes_ms", "last_alarm_to_closes", "lag_ms", "wakeups", "records_lost", "incomplete"]
    head = words.STORM.format(sockets=settings_of(results, "storm").get("sockets", 0))
    return head + contenders(header, keys, rows) + reasons(rows)


def unwatched(results, drawn):
    names = {
        "nothing_loaded": "nothing loaded",
        "nothing_loaded_again": "nothing loaded, again",
        "empty_programs": "empty programs in the same places",
        "no_entries": "loaded, nobody watched",
        "100000_entries": "loaded, 100,000 others watched",
    }
    text = words.UNWATCHED
    for variant, what in (("fin", "Closed by FIN from both sides"), ("reset", "Closed by a reset")):
        rows = rows_of(results, "unwatched").get(variant, {})
        if "not_available" in rows:
            text += f"\n{what}: not available, {rows['not_available']}.\n"
            continue
        keys = ["ns_per_cycle", "overhead_percent", "uncertainty_percent"]
        lines = [[names.get(name, name), *cells(row, *keys)] for name, row in rows.items()]
        text += f"\n{what}:\n" + table(["", "ns per cycle", "more, %", "certain to, %"], lines)
    return text + plot(drawn, "unwatched.svg", "Cost to connections that nobody watches")


def observed(results, _):
    names = {
        "nothing": "no observer",
        "nothing_again": "no observer, again",
        "matching_nothing": "an observer, filters match nothing",
        "everything": "everything observed, recorded and read",
    }
    text = words.OBSERVED
    for variant, what in (
        ("with_work", "With so much work for each request that it is about 20,000 ends/s"),
        ("without_work", "Without any work, as fast as the machine can"),
    ):
        rows = rows_of(results, "observed").get(variant, {})
        if "not_available" in rows:
            text += f"\n{what}: not available, {rows['not_available']}.\n"
            continue
        keys = ["ends_per_second", "throughput_lost_percent", "cpu_us", "by_cpu_time_percent", "uncertainty_by_cpu_time_percent"]
        lines = [[names.get(name, name), *cells(row, *keys)] for name, row in rows.items()]
        header = ["", "ends/s", "throughput lost, %", "processor time per connection, µs", "lost by that, %", "certain to, %"]
        text += f"\n{what}:\n" + table(header, lines)
    return text


def memory(results, _):
    rows = rows_of(results, "memory")
    lines = [
        ("user_space_per_watch", "user space per watch: heap with malloc's own share, and the Watch"),
        ("heap_per_watch", "of it heap"),
        ("sizeof_watch", "of it the Watch"),
        ("user_space_per_armed_alarm", "more per armed alarm"),
        ("shared_per_watch", "shared with the kernel per watch"),
        ("registry_per_entry", "kernel registry per entry"),
        ("registry_per_place", "kernel registry per entry that there is room for"),
    ]
    head = words.MEMORY.format(watches=settings_of(results, "memory").get("watches", 0))
    return head + by_source(rows, lines) + reasons(rows)


def loading(results, _):
    rows = rows_of(results, "load")
    lines = [
        ("to_first_watch_ms", "to the first watch"),
        ("create_ms", "of it `Watcher::create()`"),
        ("first_watch_ms", "of it the first `watch()`"),
        ("destroy_ms", "to end it"),
    ]
    text = words.LOADING + by_source(rows, lines)
    steps = rows.get("kernel", {}).get("steps_ms", {})
    if steps:
        text += "\nWhat `create()` of the kernel source is spent on:\n"
        text += table(["step", "ms"], [[name, figure(value)] for name, value in steps.items()])
    return text + reasons(rows)


NEIGHBOURS = {
    "alone": "alone",
    "beside_a_burner": "beside a busy process",
    "beside_a_chatter": "beside two that wake each other",
    "fuzzed_frames": "beside fuzzed frames",
    "wrong_versions": "beside wrong versions",
    "no_descriptor": "beside WATCH without a descriptor",
    "many_descriptors": "beside 253 descriptors at a time",
    "wrong_descriptors": "beside descriptors of the wrong kinds",
    "anothers_socket": "beside sockets of another user, passed on",
    "garbage": "beside garbage in table and ring",
    "coming_and_going": "beside connecting and disconnecting",
    "never_reading": "beside a client that never reads",
    "exhausting": "beside exhausted quotas",
    "beside_a_hammer": "beside many of these at random",
}


def daemon(results, _):
    rows, settings = rows_of(results, "daemon"), settings_of(results, "daemon")
    many = rows.get("many_watches")
    steps = {
        "connect": "connecting (without sockalarm)",
        "watch": "watching",
        "arm": "arming",
        "fire": "closing by the peers, firing",
        "drop": "cancelling, unwatching, closing",
    }
    text = words.DAEMON.format(clients=settings.get("clients", 0), each=settings.get("each", 0))
    lines = [[what, *cells(many, f"{key}_us_per_watch", f"{key}_daemon_cpu_us_per_watch")] for key, what in steps.items()]
    text += table(["µs per watch", "from start to end", "processor time of sockalarmd"], lines)
    sizes = {
        "client_bytes_per_watch": "client, per watch",
        "client_bytes_per_armed_watch": "client, per watch with an armed alarm",
        "table_bytes_per_watch": "shared table",
        "daemon_bytes_per_watch": "sockalarmd",
        "registry_bytes_per_place": "kernel registry, per watch that there is room for",
    }
    text += table(["memory", "bytes"], [[what, cell(many, key)] for key, what in sizes.items()])
    header = ["an alarm of a client", "p50 µs", "p90 µs", "p50 of alone", "p90 of alone", "p50 of two", "p90 of two", "deeds/s"]
    keys = ["p50_us", "p90_us", "p50_to_alone", "p90_to_alone", "p50_to_chatter", "p90_to_chatter", "per_second"]
    return text + table(header, [[what, *cells(rows.get(name), *keys)] for name, what in NEIGHBOURS.items()]) + reasons(rows)


def ancestor(results, _):
    row = rows_of(results, "io_socketalarm").get("io_socketalarm", {"not_available": "not measured"})
    if "not_available" in row:
        return f"{words.ANCESTOR}: {row['not_available']}.\n"
    header = ["arm + cancel, ns", "close to handler, p50 µs", "p90 µs", "p99 µs", "missed"]
    keys = ["arm_cancel_ns", "p50_us", "p90_us", "p99_us", "missed"]
    return f"{words.ANCESTOR}, version {row.get('version')}, measured in Perl:\n" + table(header, [cells(row, *keys)])


def machine(results):
    facts, sections = results["machine"], results["sections"].values()
    kind = "a virtual machine" if facts["virtual_machine"] else "no virtual machine"
    days = sorted({section["measured"] for section in sections})
    stolen = max((section["stolen_percent"] or 0 for section in sections), default=0)
    rows = [
        ["processor", f"{facts['cpu']}, {facts['cores']} cores, {kind}"],
        ["memory", f"{facts['memory_gib']} GiB"],
        ["kernel", facts["kernel"]],
        ["Meltdown", f"{facts['meltdown']} (page table isolation makes every system call dearer)"],
        ["compiler", f"{facts['compiler']}, {facts['build_type']}"],
        ["version", ", ".join(dict.fromkeys(section["commit"] for section in sections))],
        ["measured", " to ".join(dict.fromkeys((days[0], days[-1])))],
        ["runs of a section", ", ".join(str(runs) for runs in sorted({section["runs"] for section in sections}))],
        ["load before", str(results["load_before"])],
        ["time taken by other virtual machines", f"at most {stolen} % of a section"],
    ]
    return "## The machine\n" + table(["", ""], rows)


PARTS = {
    "nanoseconds": asking,
    "direct": direct,
    "callback": callback,
    "steps": steps,
    "storm": storm,
    "unwatched": unwatched,
    "observed": observed,
    "memory": memory,
    "load": loading,
    "daemon": daemon,
    "io_socketalarm": ancestor,
}


def render(results, drawn):
    quick = any(section["quick"] for section in results["sections"].values())
    parts = [words.HEAD + (words.QUICK if quick else ""), verdicts(results)]
    parts += [part(results, drawn) for name, part in PARTS.items() if name in results["sections"]]
    return "\n".join(parts + [machine(results), words.REPEAT])
