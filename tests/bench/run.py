# SPDX-License-Identifier: Apache-2.0
"""Runs the measuring programs again and again and writes results.json, the page and the plots. See scripts/bench."""
import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import figures
import machine
import machine_code
import page
import plots
import steps
import targets

ROOT = pathlib.Path(__file__).resolve().parents[2]
FORMAT = 1
# Sections in the order of the page. Those of counts need no repetition.
PROGRAMS = ["nanoseconds", "counts", "direct", "callback", "storm", "unwatched", "observed", "memory", "load", "daemon"]
ONCE = {"counts", "machine_code", "memory"}  # and their figures do not vary
SECTIONS = PROGRAMS + ["steps", "machine_code", "io_socketalarm"]
PATIENCE_S = 1800


def say(text):
    print(text, flush=True)


def run_program(build, name, quick):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [str(build / f"tests/bench/bench_{name}"), "--out", out.name] + (["--quick"] if quick else [])
        subprocess.run(command, check=True, timeout=PATIENCE_S)
        return json.loads(pathlib.Path(out.name).read_text())


def run_perl(quick):
    script = pathlib.Path(__file__).with_name("io_socketalarm.pl")
    try:
        there = subprocess.run(["perl", "-MIO::SocketAlarm", "-e", "1"], capture_output=True).returncode == 0
    except OSError:
        there = False
    if not there:
        return {
            "settings": {},
            "rows": {"io_socketalarm": {"not_available": "perl and IO::SocketAlarm are not installed here"}},
        }
    done = subprocess.run(
        ["perl", str(script)] + (["--quick"] if quick else []),
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return json.loads(done.stdout)


def run_once(build, name, quick):
    if name == "machine_code":
        return machine_code.measure(build)
    if name == "steps":
        return steps.measure(build)
    if name == "io_socketalarm":
        return run_perl(quick)
    return run_program(build, name, quick)


def run_section(build, name, quick, runs):
    runs = 1 if name in ONCE else runs
    results, ticks = [], machine.cpu_ticks()
    for number in range(1, runs + 1):
        say(f"{name}: run {number} of {runs}")
        results.append(run_once(build, name, quick))
    all_ticks, stolen = (after - before for after, before in zip(machine.cpu_ticks(), ticks))
    return {
        "measured": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": machine.commit(ROOT),
        "quick": quick,
        "runs": runs,
        # What others took from this machine meanwhile; more than a little spoils every latency.
        "stolen_percent": figures.rounded(100 * stolen / max(1, all_ticks)),
        "settings": results[0]["settings"],
        "rows": figures.merge([result["rows"] for result in results]),
    }


def earlier(path, facts):
    """Sections of an earlier run, for --only; those of another machine are not to stand beside ours."""
    try:
        old = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return old["sections"] if old.get("format") == FORMAT and old.get("machine") == facts else {}


def measure(arguments):
    facts = machine.facts(arguments.build)
    names = arguments.only or SECTIONS
    path = arguments.out / "results.json"
    load = machine.load_average()
    if load > 0.5 and not arguments.quick:
        say(f"bench: this machine is busy (load {load:.1f}): the figures will be worse than they are")
    sections = earlier(path, facts) if arguments.only else {}
    for name in names:
        try:
            sections[name] = run_section(arguments.build, name, arguments.quick, arguments.runs)
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            sys.exit(f"bench: {name} failed: {error}")
        results = {
            "format": FORMAT,
            "machine": facts,
            "load_before": round(load, 1),
            "sections": {name: sections[name] for name in SECTIONS if name in sections},
        }
        results["targets"] = targets.judge(results)
        path.write_text(json.dumps(results, indent=1) + "\n")  # minutes of work: kept if the next section fails
    return results


def print_summary(verdicts):
    say("")
    refused = {}
    for verdict in verdicts:
        figure = verdict["measured"]
        if figure is None and verdict["why_not"] == "not measured":
            continue
        if figure is None:
            refused.setdefault(verdict["why_not"], []).append(verdict)
        shown = page.figure(figure, verdict["unit"]) if figure else "not available"
        met, what = targets.in_words(verdict["met"]), verdict["what"].replace("`", "")
        target = f"{verdict['target']} {verdict['unit']}".strip()
        say(f"{met:9} {what}: {shown} (target {target})")
    for why_not, of in refused.items():
        say(f"not available, {len(of)} of them: {why_not}")


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build", help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", type=pathlib.Path, default=ROOT / "docs/benchmarks", help="folder of results.json, README.md and the plots"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a minute instead of some 50: shows that it runs, its figures say little"
    )
    parser.add_argument(
        "--only", type=lambda text: text.split(","), help="sections, separated by commas: " + ", ".join(SECTIONS)
    )
    parser.add_argument("--runs", type=int, help="of each section (default 5, with --quick 1)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target that was measured is not met")
    parser.add_argument("--page-only", action="store_true", help="make page and plots from the results.json that is there")
    arguments = parser.parse_args()
    if unknown := set(arguments.only or []) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    arguments.runs = arguments.runs or (1 if arguments.quick else 5)
    if os.geteuid() != 0:
        say("bench: not root: what needs BPF or real-time priority will say 'not available'")
    arguments.out.mkdir(parents=True, exist_ok=True)

    path = arguments.out / "results.json"
    results = json.loads(path.read_text()) if arguments.page_only else measure(arguments)
    if arguments.page_only:
        results["targets"] = targets.judge(results)
        path.write_text(json.dumps(results, indent=1) + "\n")
    drawn = plots.draw(results, arguments.out)
    (arguments.out / "README.md").write_text(page.render(results, drawn))
    verdicts = [verdict for verdict in results["targets"] if verdict["section"] in (arguments.only or SECTIONS)]
    print_summary(verdicts)
    say(f"written: {arguments.out}/results.json, README.md, {', '.join(drawn) or 'no plots'}")
    if arguments.check and any(verdict["met"] is False for verdict in verdicts):
        sys.exit(1)


if __name__ == "__main__":
    main()
