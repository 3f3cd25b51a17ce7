# SPDX-License-Identifier: Apache-2.0
"""Chromium without a window, spoken to by its debugging pipe (DevTools protocol: JSON objects that end in NUL)."""
import base64
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading

from fake_observer import PATIENCE


class Browser:
    def __init__(self):
        program = shutil.which("chromium")
        if program is None:
            raise SystemExit("there is no chromium: scripts/setup test")
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # Descriptors 3 and 4 are what it takes. As root it has no sandbox; the only page is the test's own.
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-breakpad",
                   "--no-proxy-server", "--hide-scrollbars", f"--user-data-dir={self._folder.name}", "--remote-debugging-pipe", "about:blank"]
        with open(self._folder.name + "/log", "wb") as log:
            self._process = subprocess.Popen(["bash", "-c", f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"', "bash", *command],
                                             pass_fds=(to_browser, from_browser), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             start_new_session=True, env=dict(os.environ, HOME=self._folder.name))
        os.close(to_browser)
        os.close(from_browser)
        self._next, self._waiting, self.events, self._session = 0, {}, queue.Queue(), None
        self._target = None
        self._reader = threading.Thread(target=self._read_all)
        self._reader.start()

    def _read_all(self):
        rest = b""
        while piece := os.read(self._read, 1 << 16):
            *whole, rest = (rest + piece).split(b"\0")
            for message in map(json.loads, whole):
                if "id" in message:
                    self._waiting.pop(message["id"]).put(message)
                else:
                    self.events.put(message)

    def begin(self):
        """A tab, of which everything is said until end()."""
        self._target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        self.come_events()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")

    def end(self):
        self._session = None
        self.call("Target.closeTarget", targetId=self._target)

    def call(self, method, **parameters):
        self._next += 1
        answer = self._waiting[self._next] = queue.Queue()
        message = {"id": self._next, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = answer.get(timeout=PATIENCE)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def evaluate(self, script):
        """Its value; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait_for_event("Page.loadEventFired")

    def wait_for_event(self, method):
        """What else came before it is returned, too."""
        events = []
        while not events or events[-1]["method"] != method:
            events.append(self.events.get(timeout=PATIENCE))
        return events

    def come_events(self):
        events = []
        while not self.events.empty():
            events.append(self.events.get())
        return events

    def wait_until(self, condition):
        """Looked at whenever the document changes."""
        self.evaluate("new Promise((resolve, reject) => {"
                      f"const check = () => {{ if ({condition}) {{ watcher.disconnect(); resolve(); }} }};"
                      "const watcher = new MutationObserver(check);"
                      f"setTimeout(() => reject(new Error('it stays ' + document.body.innerText)), {PATIENCE * 900});"
                      "watcher.observe(document, {subtree: true, childList: true, characterData: true, attributes: true});"
                      "check(); })")

    def picture(self, file, width, height):
        """Of the page as a PNG; without a height all of it."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height or 900, deviceScaleFactor=1, mobile=False)
        height = height or self.evaluate("document.documentElement.scrollHeight")
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True,
                            clip={"x": 0, "y": 0, "width": width, "height": height, "scale": 1})
        with open(file, "wb") as png:
            png.write(base64.b64decode(picture["data"]))

    def close(self):
        self._session = None
        try:
            self.call("Browser.close")
            self._process.wait(PATIENCE)
        finally:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)  # the session is its own: what it left behind
            except ProcessLookupError:
                pass
            self._process.wait()
            os.close(self._write)
            self._reader.join()
            os.close(self._read)
            self._folder.cleanup()
