# SPDX-License-Identifier: Apache-2.0
"""`sockalarm top` on a terminal, and pictures of that."""
import base64
import fcntl
import html
import os
import pty
import re
import select
import signal
import struct
import termios
import time

from browser import Browser
from fake_observer import PATIENCE

FRAME = "\x1b[J"  # ends each


class Screen:
    """A command on a terminal of its own."""

    def __init__(self, test, command, size=(24, 80)):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv("/bin/sh", ["sh", "-c", 'read go; exec "$@"', "sh", *command])
        self.all, self.status, self.test = "", None, test
        test.addCleanup(self.close)
        self.before = termios.tcgetattr(self.terminal)
        self.resize(*size)
        os.write(self.terminal, b"\n")

    def resize(self, rows, columns):
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read_until(self, wanted):
        """What was written until there is such a piece; what follows it is left for the next."""
        limit = time.monotonic() + PATIENCE
        while (at := self.all.find(wanted)) < 0:
            ready, _, _ = select.select([self.terminal], [], [], max(0, limit - time.monotonic()))
            self.test.assertTrue(ready, f"{wanted!r} did not come; there is {self.all!r}")
            try:
                piece = os.read(self.terminal, 65536)
            except OSError:  # nobody has the other end any more
                piece = b""
            self.test.assertTrue(piece, f"{wanted!r} did not come before the end; there is {self.all!r}")
            self.all += piece.decode()
        text, self.all = self.all[:at + len(wanted)], self.all[at + len(wanted):]
        return text

    def ended(self):
        _, self.status = os.waitpid(self.pid, 0)
        return self.status

    def close(self):
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.terminal)


def photograph(frame, file):
    """What a terminal shows of a frame of `top`, which uses few of its sequences, as a PNG."""
    styles = {"1": "font-weight: bold", "7": "background: #ddd; color: #111", "1;31": "font-weight: bold; color: #f66"}
    lines = []
    for line in frame.replace("\x1b[H", "").replace(FRAME, "").replace("\r", "").split("\n"):
        style, text = re.fullmatch(r"(?:\x1b\[([0-9;]+)m)?(.*?)\x1b\[K(?:\x1b\[m)?", line).groups()
        lines.append(f'<span style="{styles.get(style, "")}">{html.escape(text)}</span>')
    page = ('<body style="margin: 0; background: #111"><pre style="margin: 0; padding: 12px; display: inline-block; '
            'font: 14px/1.35 monospace; color: #ddd">' + "\n".join(lines) + "</pre></body>")
    browser = Browser()
    try:
        browser.begin()
        browser.open("data:text/html;base64," + base64.b64encode(page.encode()).decode())
        size = browser.evaluate("(() => { const box = document.querySelector('pre').getBoundingClientRect();"
                                "return [Math.ceil(box.width), Math.ceil(box.height)]; })()")
        browser.picture(file, *size)
        browser.end()
    finally:
        browser.close()
