#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`sockalarm top`, `events` and the page before a real sockalarmd --observe.
real_observer_test.py SOCKALARM SOCKALARMD [RealObserver|Page]"""
import json
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

from browser import Browser
from fake_observer import PATIENCE
from screen import FRAME, Screen

SOCKALARM = SOCKALARMD = ""


class Observer:
    """That sees the connections of one port, and nobody else's."""

    def __init__(self, folder, port, listen=""):
        self.socket = folder + "/observe.sock"
        with open(folder + "/observe.toml", "w", encoding="ascii") as config:
            config.write(f'[observe]\nsocket = "{self.socket}"\nlisten = "{listen}"\n[observe.filter]\nports = [{port}]\n')
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(folder + "/notify")
            ready.settimeout(PATIENCE)
            with open(folder + "/log", "a", encoding="ascii") as self.log:
                self.process = subprocess.Popen([SOCKALARMD, "--observe", "--config", config.name], stdin=subprocess.DEVNULL,
                                                stdout=self.log, stderr=self.log, env=dict(os.environ, NOTIFY_SOCKET=folder + "/notify"))
            told = b""
            while b"READY=1" not in told:
                try:
                    told = ready.recv(512)
                except socket.timeout:
                    self.kill()
                    with open(folder + "/log", encoding="utf-8") as log:
                        raise SystemExit("sockalarmd --observe does not get ready: " + log.read()) from None
        os.unlink(folder + "/notify")

    def kill(self):
        self.process.kill()
        self.process.wait()


class Scene(unittest.TestCase):
    LISTEN = ""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.port = self.listener.getsockname()[1]
        self.begin()
        self.addCleanup(lambda: self.observer.kill())

    def begin(self):
        self.observer = Observer(self.folder, self.port, self.LISTEN)

    def abort(self):
        """A client that resets the connection amid the work; it has the address that is returned."""
        client = socket.create_connection(("127.0.0.1", self.port))
        served, _ = self.listener.accept()
        address = client.getsockname()
        client.sendall(b"question")
        served.recv(100)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        self.assertRaises(ConnectionResetError, served.recv, 100)
        served.close()
        return address


class RealObserver(Scene):
    def command(self, *arguments):
        return [SOCKALARM, *arguments, "--socket", self.observer.socket]

    def top(self):
        done = subprocess.run(self.command("top", "--once", "--json", "--all", "--interval", "100ms"), capture_output=True, text=True,
                              timeout=PATIENCE, check=True)
        return json.loads(done.stdout)

    def start_events(self, *arguments):
        events = subprocess.Popen(self.command("events", "--json", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        def clean_up():
            events.kill()
            events.communicate()
        self.addCleanup(clean_up)
        return events

    def wait_until_followed(self, events):
        """Records come from the moment of asking, which a test only sees by one that has come."""
        while True:
            self.abort()
            ready, _, _ = select.select([events.stdout], [], [], 0.05)
            if ready:
                return json.loads(events.stdout.readline())

    def test_what_happened_is_what_is_shown(self):
        for _ in range(5):
            self.abort()
        top = self.top()
        self.assertEqual(top["all"]["aborts"], 5)
        self.assertEqual(top["all"]["causes"], {"peer_reset": 5})
        self.assertEqual(top["all"]["ends"], 10)  # both ends of each are here
        self.assertEqual({stage: count for stage, count in top["lost"].items() if stage not in ("late", "missed")},
                         dict.fromkeys(set(top["lost"]) - {"late", "missed"}, 0))
        text = subprocess.run(self.command("top", "--once", "--interval", "100ms"), capture_output=True, text=True, timeout=PATIENCE, check=True)
        self.assertIn("aborts/s", text.stdout)

    def test_top_shows_each_abort_as_it_comes(self):
        screen = Screen(self, self.command("top"))

        def wait_for(aborts):  # per second: none, or one since the look before
            while ("\n0 aborts/s" in screen.read_until(FRAME)) == aborts:
                pass
        after = []
        for _ in range(10):
            wait_for(False)
            self.abort()
            left = time.monotonic()
            wait_for(True)
            after.append(time.monotonic() - left)
        print(f"in top after {min(after):.2f} to {max(after):.2f} s")

    def test_events_come_filtered_and_follow_the_next_observer(self):
        events = self.start_events("--follow", "--filter", "verdict=abandoned", "--filter", "prefix=127.0.0.0/8",
                                   "--filter", f"port={self.port}", "--filter", "cause=peer_reset", "--filter", f"pid={os.getpid()}")
        for _ in range(2):
            record = self.wait_until_followed(events)
            self.assertEqual(record["schema"], "sockalarm.connection_ended.v1")
            self.assertEqual((record["network.local.port"], record["process.pid"]), (self.port, os.getpid()))
            self.assertEqual(record["sockalarm.bytes_received"], len(b"question"))
            self.observer.kill()
            self.assertIn("the observer has gone", events.stderr.readline())
            self.begin()
            self.assertIn("the observer is back", events.stderr.readline())
        wanted = self.abort()[1]
        while json.loads(events.stdout.readline())["network.peer.port"] != wanted:
            pass


class Page(Scene):
    """In Chromium, from the observer's own server, with the policy that it sends."""

    def setUp(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.LISTEN = "127.0.0.1:%d" % free.getsockname()[1]
        super().setUp()
        self.browser = Browser()
        self.addCleanup(self.browser.close)
        self.browser.begin()
        self.addCleanup(self.browser.end)

    def test_shows_each_abort_as_it_comes(self):
        self.browser.open(f"http://{self.LISTEN}/")
        after = []
        for aborts in range(1, 11):
            self.abort()
            left = time.monotonic()
            # The sixth column is all aborts of the service; the client's end of a connection is none.
            self.browser.wait_until("document.querySelectorAll('#services tbody tr').length === 1 && "
                                    f"document.querySelector('#services tbody tr').cells[5].textContent === '{aborts}'")
            after.append(time.monotonic() - left)
        print(f"on the page after {min(after):.2f} to {max(after):.2f} s")
        self.assertEqual(self.browser.evaluate("document.getElementById('news').textContent"), "")


if __name__ == "__main__":
    SOCKALARM, SOCKALARMD = sys.argv.pop(1), sys.argv.pop(1)
    unittest.main()
