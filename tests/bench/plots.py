# SPDX-License-Identifier: Apache-2.0
"""SVG plots, drawn by gnuplot. A plot whose figures are not there is left out."""
import shutil
import subprocess

import figures

STYLE = """set terminal svg noenhanced size 760,{height} font 'sans-serif,13' background '#ffffff'
set grid back lc rgb '#dddddd'
set border 3
set tics nomirror
set key below
"""
COLOURS = ["#1b6ca8", "#4fa3d1", "#0b3954", "#7a9e7e", "#c8553d", "#e9a03b", "#8d6a9f", "#555555", "#999999"]
NAMES = {
    "sockalarm_task_work": "sockalarm, task work",
    "sockalarm_task_work_slice": "sockalarm, task work, short slice",
    "sockalarm_sigio": "sockalarm, sigio",
    "sockalarm_sigio_slice": "sockalarm, sigio, short slice",
    "sockalarm_sigio_on_epoll": "sockalarm on epoll, sigio",
    "sockalarm_dispatcher": "sockalarm, dispatcher",
    "sockalarm_dispatcher_slice": "sockalarm, dispatcher, short slice",
    "sockalarm_dispatcher_fifo": "sockalarm, dispatcher, SCHED_FIFO",
    "sockalarm_sleep": "sockalarm, sleep",
    "sockalarm_adaptive": "sockalarm, adaptive",
    "sockalarm_spin": "sockalarm, spin",
    "sockalarm_on_epoll": "sockalarm on epoll, sleep",
    "epoll_thread": "epoll thread",
    "epoll_thread_fifo": "epoll thread, SCHED_FIFO",
    "epoll_thread_slice": "epoll thread, short slices",
    "poll_thread": "poll thread",
    "io_uring_thread": "io_uring thread",
    "plain_f_setsig": "F_SETSIG by hand",
    "plain_f_setsig_slice": "F_SETSIG by hand, short slice",
}


def gnuplot(path, script, height=420):
    """True if it was drawn. The same figures give the same file."""
    if shutil.which("gnuplot") is None:
        return False
    text = STYLE.format(height=height) + script
    done = subprocess.run(["gnuplot"], input=text, capture_output=True, text=True)
    if done.returncode != 0 or "</svg>" not in done.stdout:
        raise ValueError(f"gnuplot: {done.stderr.strip()}")
    head, _, rest = done.stdout.partition("<svg")
    path.write_text(head + "<!-- SPDX-License-Identifier: Apache-2.0 -->\n<svg" + rest)
    return True


def shown(figure):
    value = figure["median"]
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def block(name, rows):
    return f"${name} << EOD\n" + "\n".join(rows) + "\nEOD\n"


def asking(results, path):
    wanted = [
        ("peer_gone", "Watch::peer_gone()"),
        ("seen", "Watch::seen()"),
        ("arm_cancel/kernel", "arm + cancel"),
        ("recv_peek", "recv(MSG_PEEK)"),
        ("poll_rdhup", "poll(POLLRDHUP)"),
        ("tcp_info", "getsockopt(TCP_INFO)"),
        ("io_uring_add_remove", "io_uring poll add + remove"),
        ("epoll_add_del", "epoll_ctl add + del"),
    ]
    rows = []
    for row, label in reversed(wanted):
        figure = figures.find(results, "nanoseconds", "rows", row, "ns")
        if figure:
            ours = row in ("peer_gone", "seen", "arm_cancel/kernel")
            rows.append(
                f'"{label}" {figure["median"]} {figure["low"]} {figure["high"]} '
                f'{int(COLOURS[0 if ours else 4][1:], 16)} "{shown(figure)}"'
            )
    if not rows:
        return False
    return gnuplot(
        path,
        block("data", rows)
        + """set title 'Asking and arming: nanoseconds, logarithmic'
unset key
set logscale x
set format x '%g'
set xlabel 'ns per call'
set yrange [-0.6:"""
        + str(len(rows) - 0.4)
        + """]
set offsets 0, 0, 0, 0
plot $data using (0.1):0:(0.1):2:($0-0.35):($0+0.35):5:ytic(1) with boxxyerror fs solid 0.9 lc rgb variable, \\
     $data using ($2*1.25):0:6 with labels left
""",
    )


def direct(results, path):
    order = [
        "sockalarm_task_work_slice",
        "sockalarm_sigio_slice",
        "sockalarm_task_work",
        "sockalarm_sigio",
        "sockalarm_sigio_on_epoll",
        "sockalarm_dispatcher",
        "sockalarm_dispatcher_fifo",
        "plain_f_setsig",
        "epoll_thread",
        "epoll_thread_fifo",
        "epoll_thread_slice",
        "poll_thread",
        "io_uring_thread",
    ]
    rows = []
    for name in order:
        values = [
            figures.find(results, "direct", "rows", load, name, quantile)
            for load, quantile in (("idle", "p50_us"), ("idle", "p90_us"), ("loaded", "p50_us"), ("loaded", "p90_us"))
        ]
        if all(values):
            rows.append(f'"{NAMES[name].replace(", ", chr(92) + "n")}" ' + " ".join(str(v["median"]) for v in values))
    if not rows:
        return False
    series = [("idle, p50", COLOURS[1]), ("idle, p90", COLOURS[0]), ("8 hogs, p50", COLOURS[5]), ("8 hogs, p90", COLOURS[4])]
    bars = ", \\\n     ".join(
        f"$data using {i + 2}:xtic(1) title '{title}' lc rgb '{colour}'" for i, (title, colour) in enumerate(series)
    )
    return gnuplot(
        path,
        block("data", rows)
        + f"""set title 'From the close() of a peer process to the signal handler of a blocked thread'
set style data histograms
set style histogram clustered gap 1
set style fill solid 0.9
set logscale y
set ylabel 'µs, logarithmic'
set xtics rotate by -40 font ',11'
plot {bars}
""",
        520,
    )


def watches(results, path):
    table = results["sections"].get("callback", {}).get("rows", {}).get("watches", {})
    counts = sorted((int(count) for count in table))
    blocks, lines = "", []
    for i, name in enumerate(
        ["sockalarm_spin", "sockalarm_adaptive", "sockalarm_sleep", "sockalarm_on_epoll", "epoll_thread", "poll_thread"]
    ):
        rows = []
        for count in counts:
            figure = figures.find(results, "callback", "rows", "watches", str(count), name, "p50_us")
            if figure:
                rows.append(f"{count} {figure['median']} {figure['low']} {figure['high']}")
        if rows:
            blocks += block(f"data{i}", rows)
            lines.append(
                f"$data{i} using 1:2:3:4 with yerrorlines title '{NAMES[name]}' lc rgb '{COLOURS[i]}' lw 2 pt 7 ps 0.6"
            )
    if not lines:
        return False
    return gnuplot(
        path,
        blocks
        + f"""set title 'From the close() of a peer process to a function on the background thread, p50'
set logscale xy
set xrange [0.8:{max(counts) * 1.3}]
set xlabel 'watches in one process'
set ylabel 'µs, logarithmic'
set format y '%g'
plot """
        + ", \\\n     ".join(lines)
        + "\n",
    )


def unwatched(results, path):
    rows = []
    for variant in ("fin", "reset"):
        for entries, label in (
            ("nothing_loaded_again", "nothing loaded"),
            ("empty_programs", "empty programs"),
            ("no_entries", "no entries"),
            ("100000_entries", "100,000 entries"),
        ):
            figure = figures.find(results, "unwatched", "rows", variant, entries, "overhead_percent")
            if figure:
                rows.append(f'"{label}\\n{variant} close" {figure["median"]} {figure["low"]} {figure["high"]}')
    if not rows:
        return False
    return gnuplot(
        path,
        block("data", rows)
        + f"""set title 'What a connect/accept/close cycle costs more, when nobody watches it'
unset key
set style fill solid 0.9
set boxwidth 0.5
set xtics font ',11'
set xrange [-0.6:{len(rows) - 0.4}]
set ylabel 'percent'
plot $data using 0:2:xtic(1) with boxes lc rgb '{COLOURS[1]}', \\
     $data using 0:2:3:4 with yerrorbars lc rgb '{COLOURS[2]}' pt 7 ps 0.3, \\
     3 lc rgb '{COLOURS[4]}' dt 2
""",
    )


def draw(results, out):
    """Names of the plots that were drawn."""
    return [
        name
        for name, plot in (
            ("asking.svg", asking),
            ("direct.svg", direct),
            ("watches.svg", watches),
            ("unwatched.svg", unwatched),
        )
        if plot(results, out / name)
    ]
