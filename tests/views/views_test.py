#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`sockalarm top` and `events` before an observer that says what the test wants. views_test.py SOCKALARM

SOCKALARM_SCREENSHOT=FILE.png: also write the picture of `top` that docs/images has."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import termios
import unittest

from fake_observer import PATIENCE, FakeObserver, busy_host, end, record, totals
from screen import FRAME, Screen, photograph

SOCKALARM = ""
RESTORED = "\x1b[?7h\x1b[?25h\x1b[?1049l"


class Views(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.socket = folder.name + "/observe.sock"
        self.observer = None
        self.addCleanup(lambda: self.observer and self.observer.stop())
        self.begin()

    def begin(self, *answers):
        self.observer = FakeObserver(self.socket, answers=answers)

    def stop(self):
        self.observer.stop()
        self.observer = None

    def run_cli(self, command, *arguments, where=None):
        return subprocess.run([SOCKALARM, command, *(where or ["--socket", self.socket]), *arguments], capture_output=True,
                              text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)

    def start_cli(self, command, *arguments):
        process = subprocess.Popen([SOCKALARM, command, "--socket", self.socket, *arguments], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)

        def clean_up():
            process.kill()
            process.communicate()
        self.addCleanup(clean_up)
        return process


class Top(Views):
    def test_once_has_the_rates_of_one_interval(self):
        self.observer.serve(totals(10, [end("a", count=4, orphaned=1), end("b", "peer_fin", "idle_close", 10)]),
                            totals(12, [end("a", count=10, orphaned=4), end("b", "peer_fin", "idle_close", 30)], lost={"ring": 3}))
        done = self.run_cli("top", "--once", "--json", "--interval", "100ms")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        top = json.loads(done.stdout)
        self.assertEqual(top["interval_seconds"], 2)
        self.assertEqual([row["service"] for row in top["services"]], ["a"])
        self.assertEqual(top["services"][0]["aborts_per_second"], 3)
        self.assertEqual(top["services"][0]["causes_per_second"], {"peer_reset": 3})
        self.assertEqual(top["services"][0]["orphaned_seconds_per_second"], 1.5)
        self.assertEqual((top["all"]["ends_per_second"], top["all"]["ends"]), (13, 40))
        self.assertEqual(top["newly_lost"], {"ring": 3})

    def test_figures_of_the_same_moment_are_no_rates(self):
        # They are kept for a moment, for all who ask.
        first, second = totals(10, [end("a", count=4)]), totals(12, [end("a", count=10)])
        self.observer.serve(first, second, second, second)
        top = self.start_cli("top", "--json", "--interval", "100ms")
        shown = [json.loads(top.stdout.readline()) for _ in range(4)]
        self.assertEqual([(table["interval_seconds"], table["all"]["aborts_per_second"]) for table in shown], [(10, 0.4)] + [(2, 3)] * 3)

    def test_by_url_too(self):
        with FakeObserver() as observer:
            observer.serve(totals(10, [end("a", count=4, orphaned=1)]))
            done = self.run_cli("top", "--once", "--all", "--interval", "100ms", where=["--url", observer.url + "/"])
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("\nSERVICE", done.stdout)
        self.assertIn("\na ", done.stdout)
        self.assertNotIn("\x1b", done.stdout)

    def test_where_nobody_answers_it_says_so(self):
        self.stop()
        done = self.run_cli("top")
        self.assertEqual(done.returncode, 2)
        self.assertIn(self.socket, done.stderr)
        with FakeObserver() as other:
            done = self.run_cli("top", where=["--url", other.url + "/elsewhere"])
            self.assertEqual(done.returncode, 2)
            self.assertIn("answered 404: no such page", done.stderr)
        for arguments, words in ((["--interval", "1ms"], "too short"), (["--interval", "x"], "'x' is not a time"),
                                 (["--sort", "x"], "expected orphaned"), (["--url", "ftp://x"], "is none")):
            done = self.run_cli("top", *arguments)
            self.assertEqual(done.returncode, 125)
            self.assertIn(words, done.stderr)

    def test_without_a_terminal_tables_follow_each_other_and_a_restart_is_told(self):
        self.observer.serve(totals(10, [end("a", count=4)]), totals(11, [end("a", count=6)]))
        top = self.start_cli("top", "--interval", "100ms", "--json")
        first, second = (json.loads(top.stdout.readline()) for _ in range(2))
        self.assertEqual([first["all"]["aborts_per_second"], second["all"]["aborts_per_second"]], [0.4, 2])
        self.stop()
        self.assertIn("the observer has gone", top.stderr.readline())
        self.begin(totals(2, [end("a", count=1)], started="2026-11-27T04:00:00.000000000Z"))
        self.assertIn("the observer was started anew at 2026-11-27T04", top.stderr.readline())
        while not (later := json.loads(top.stdout.readline()))["restarted"]:
            self.assertEqual(later["started_at"], "2026-11-27T03:00:00.000000000Z")
        self.assertEqual(later["all"]["aborts_per_second"], 0.5)


class TopOnATerminal(Views):
    def start(self, *arguments, **others):
        screen = Screen(self, [SOCKALARM, "top", "--socket", self.socket, *(arguments or ("--interval", "1h"))], **others)
        screen.read_until("\x1b[?1049h")
        return screen

    def test_q_gives_the_terminal_back(self):
        self.observer.serve(totals(10, [end("a", count=4)]))
        screen = self.start()
        self.assertIn("\r\na ", screen.read_until(FRAME))
        self.assertNotEqual(termios.tcgetattr(screen.terminal)[3], screen.before[3])
        os.write(screen.terminal, b"xq")
        screen.read_until(RESTORED)
        self.assertEqual(screen.ended(), 0)
        self.assertEqual(termios.tcgetattr(screen.terminal), screen.before)

    def test_so_does_a_signal(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            screen = self.start()
            screen.read_until(FRAME)
            os.kill(screen.pid, number)
            screen.read_until(RESTORED)
            self.assertEqual(screen.ended(), number)
            self.assertEqual(termios.tcgetattr(screen.terminal), screen.before)
        screen = self.start()
        screen.read_until(FRAME)
        os.write(screen.terminal, b"\x03")  # Ctrl-C
        screen.read_until(RESTORED)
        self.assertEqual(screen.ended(), signal.SIGINT)

    def test_another_size_is_drawn_at_once(self):
        self.observer.serve(totals(10, [end(f"service-{i}", count=4) for i in range(100)]))
        screen = self.start()  # the next look is in an hour
        self.assertEqual(screen.read_until(FRAME).count("\n"), 23)
        screen.resize(10, 60)
        frame = screen.read_until(FRAME)
        self.assertEqual(frame.count("\n"), 9)
        self.assertIn("... 95 more", frame)
        self.assertTrue(all(len(line) <= 60 + len("\x1b[K\x1b[m\x1b[1m\x1b[H") for line in frame.split("\r\n")))

    def test_ctrl_z_gives_it_back_until_it_goes_on(self):
        screen = self.start()
        screen.read_until(FRAME)
        os.write(screen.terminal, b"\x1a")
        screen.read_until(RESTORED)
        self.assertTrue(os.WIFSTOPPED(os.waitpid(screen.pid, os.WUNTRACED)[1]))
        self.assertEqual(termios.tcgetattr(screen.terminal), screen.before)
        os.kill(screen.pid, signal.SIGCONT)
        screen.read_until("\x1b[?1049h")
        screen.read_until(FRAME)

    def test_an_observer_that_goes_and_comes_back_is_shown(self):
        self.observer.serve(totals(10, [end("a", count=4)]))
        screen = self.start("--interval", "100ms")
        screen.read_until(FRAME)
        self.stop()
        screen.read_until("the observer has gone, the figures are old: ")
        self.begin(totals(1, [], started="2026-11-27T04:00:00.000000000Z"))
        screen.read_until("the observer was started anew at 2026-11-27T04:00:00.000000000Z")
        os.write(screen.terminal, b"q")
        screen.read_until(RESTORED)

    @unittest.skipUnless("SOCKALARM_SCREENSHOT" in os.environ, "nobody asked for a picture")
    def test_picture(self):
        self.observer.serve(busy_host(119))
        screen = self.start("--interval", "1s", size=(14, 116))
        screen.read_until(FRAME)
        self.observer.serve(busy_host(120))
        while "rates over 1.00s" not in (frame := screen.read_until(FRAME)):
            pass
        photograph(frame, os.environ["SOCKALARM_SCREENSHOT"])

    def test_a_name_cannot_reach_the_terminal(self):
        self.observer.serve(totals(10, [end("x\x1b[2J\n\x9b1m", "peer\x1b[2J", count=4)], limits=["\x1b]0;title\a"]))
        frame = self.start().read_until(FRAME)
        self.assertIn("x\\x1b[2J\\x0a\\xc2\\x9b1m", frame)
        for bad in ("\x1b[2J", "\x1b]", "\x9b", "\a"):
            self.assertNotIn(bad, frame)


class Events(Views):
    def test_prints_what_the_filters_want_and_tells_of_losses(self):
        events = self.start_cli("events", "--filter", "verdict=abandoned", "--filter", "min-orphaned=1s")
        reader = self.observer.reader()
        lines = [record(), record(sockalarm__orphaned=0.5), {"schema": "sockalarm.lost.v1", "lost": 7},
                 {"schema": "of.a.newer.one"}, record(service__name="b.service")]
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        reader.put(text[:300])  # the middle of a line
        reader.put(text[300:])
        reader.put("end")
        out, errors = events.communicate(timeout=PATIENCE)
        self.assertEqual(events.returncode, 0)
        self.assertEqual([line.split()[3] for line in out.splitlines()], ["nginx.service", "b.service"])
        self.assertEqual(errors, "sockalarm events: 7 records are missing here: they were read too slowly\n")

    def test_json_is_what_came_and_no_name_reaches_the_terminal(self):
        events = self.start_cli("events", "--json", "--count", "2")
        hostile, plain = record(service__name="x\x9b1m"), json.dumps(record(), separators=(", ", ":"))
        self.observer.reader().put((json.dumps(hostile, ensure_ascii=False) + "\n" + plain + "\n" + plain + "\n").encode())
        out, _ = events.communicate(timeout=PATIENCE)
        self.assertEqual(events.returncode, 0)
        first, second = out.splitlines()  # and no third
        self.assertEqual(json.loads(first), hostile)
        self.assertTrue(first.isascii())
        self.assertEqual(second, plain)

    def test_each_record_is_printed_as_it_comes(self):
        events = self.start_cli("events")
        reader = self.observer.reader()
        for name in ("a", "b"):
            reader.put(json.dumps(record(service__name=name)).encode() + b"\n")
            self.assertEqual(events.stdout.readline().split()[3], name)

    def test_a_stream_that_is_broken_off_is_an_error(self):
        events = self.start_cli("events")
        self.observer.reader().put("break off")
        _, errors = events.communicate(timeout=PATIENCE)
        self.assertEqual(events.returncode, 2)
        self.assertIn(self.socket, errors)

    def test_follow_goes_on_with_the_next_observer(self):
        events = self.start_cli("events", "--follow", "--count", "2")
        self.observer.reader().put(json.dumps(record()).encode() + b"\n")
        self.assertIn("nginx.service", events.stdout.readline())
        self.stop()
        self.assertIn("the observer has gone", events.stderr.readline())
        self.begin()
        self.observer.reader().put(json.dumps(record(service__name="later")).encode() + b"\n")
        self.assertIn("the observer is back", events.stderr.readline())
        self.assertIn("later", events.stdout.readline())
        self.assertEqual(events.wait(PATIENCE), 0)

    def test_says_why_not(self):
        self.observer.readers = 0
        done = self.run_cli("events", "--follow")
        self.assertEqual(done.returncode, 2)
        self.assertIn("answered 503: too many readers", done.stderr)
        for arguments, words in ((["--filter", "colour=red"], "no key 'colour'; expected cause"), (["--count", "0"], "'0'"),
                                 (["--count", "x"], "'x'")):
            done = self.run_cli("events", *arguments)
            self.assertEqual(done.returncode, 125)
            self.assertIn(words, done.stderr)

    def test_lines_that_are_no_records_are_told_of(self):
        events = self.start_cli("events", "--count", "1")
        reader = self.observer.reader()
        reader.put(b"no\x1b[2J\n" + b"x" * (2 << 20) + b"\n[1]\n" + json.dumps(record()).encode() + b"\n")
        out, errors = events.communicate(timeout=PATIENCE)
        self.assertEqual(len(out.splitlines()), 1)
        for words in ("no record: no\\x1b[2J\n", "too long", "no record: [1]\n"):
            self.assertIn(words, errors)


if __name__ == "__main__":
    SOCKALARM = sys.argv.pop(1)
    unittest.main()
