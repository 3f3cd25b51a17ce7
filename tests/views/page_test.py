#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The observer's page in a real browser, before an observer that says what the test wants. page_test.py PAGE_TEXT

SOCKALARM_SCREENSHOT=FILE.png: also write the picture that docs/images has."""
import json
import os
import subprocess
import sys
import unittest

from browser import Browser
from fake_observer import FakeObserver, busy_host, end, totals

PAGE_TEXT = ""
ROWS = "JSON.stringify([...document.querySelectorAll('#%s tbody tr')].map(row => [...row.cells].map(cell => cell.textContent)))"


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        policy, _, page = subprocess.run([PAGE_TEXT], check=True, capture_output=True).stdout.partition(b"\n")
        cls.served = {"page": page, "page_headers": [("Content-Security-Policy", policy.decode())]}
        cls.browser = Browser()
        cls.addClassCleanup(cls.browser.close)

    def setUp(self):
        self.observer = FakeObserver(**self.served)
        self.url = self.observer.url
        self.addCleanup(lambda: self.observer.stop())
        self.browser.begin()
        self.addCleanup(self.browser.end)

    def open(self, *answers):
        self.observer.serve(*answers)
        self.browser.open(self.url)

    def text(self, name):
        return self.browser.evaluate(f"document.getElementById('{name}').textContent")

    def rows(self, name):
        return json.loads(self.browser.evaluate(ROWS % name))

    def wait_for_text(self, name, value):
        self.browser.wait_until(f"document.getElementById('{name}').textContent === {value!r}")

    def test_shows_what_is_served_and_changes_with_it(self):
        self.open(totals(10, [end("nginx.service", count=5, orphaned=2), end("idle", "peer_fin", "idle_close", 20)]))
        self.wait_for_text("aborts-rate", "0.50")
        self.assertEqual(self.text("over"), "Rates since the observer's start")
        self.observer.serve(totals(12, [end("nginx.service", count=9, orphaned=5), end("nginx.service", "timeout", count=1, orphaned=60),
                                        end("idle", "peer_fin", "idle_close", 40), end("b", "peer_fin", count=1)]))
        self.wait_for_text("aborts-rate", "3.00")
        # All of an answer is drawn at once, so the rest is there now.
        self.assertEqual([self.text(name) for name in ("host", "orphaned-rate", "orphaned-total", "ends-rate", "over", "news")],
                         ["web-1", "31.5s", "1m05s", "13.0", "Rates over the last 2.00s", ""])
        self.assertEqual(self.rows("services"), [["nginx.service", "2.50", "31.5s", "1m05s", "2.50", "10", "10", ""],
                                                 ["b", "0.50", "0s", "0s", "0.50", "1", "1", ""]])
        self.assertEqual(self.rows("causes"), [["peer_reset", "2.00", "9", ""], ["timeout", "0.50", "1", ""], ["peer_fin", "0.50", "1", ""]])
        self.assertEqual(self.browser.evaluate("document.querySelectorAll('#services polyline')[0].getAttribute('points')"), "119,4.0")
        self.assertFalse(self.browser.evaluate("document.getElementById('lost-none').hidden"))
        self.assertTrue(self.browser.evaluate("document.getElementById('spool').hidden"))

        self.browser.evaluate("document.getElementById('idle').click()")
        self.assertEqual([row[0] for row in self.rows("services")], ["nginx.service", "b", "idle"])
        self.browser.evaluate("document.querySelector('[data-key=ends]').click()")
        self.assertEqual([row[0] for row in self.rows("services")], ["idle", "nginx.service", "b"])
        self.assertEqual(self.browser.evaluate("document.querySelectorAll('th[aria-sort]').length"), 1)

    def test_a_service_that_goes_takes_nothing_from_the_rates_of_all(self):
        self.open(totals(10, [end("a", count=100, orphaned=50), end("b", "timeout", count=5, orphaned=1)]))
        self.wait_for_text("aborts-rate", "10.5")
        self.observer.serve(totals(12, [end("b", "timeout", count=9, orphaned=3)], evicted=[end("", count=100, orphaned=50)]))
        self.wait_for_text("aborts-rate", "2.00")
        self.assertEqual([self.text(name) for name in ("orphaned-rate", "orphaned-total", "ends-rate")], ["1.00s", "53.0s", "2.00"])
        self.assertEqual(self.rows("causes"), [["peer_reset", "0", "100", ""], ["timeout", "2.00", "9", ""]])
        self.observer.serve(totals(14, [end("b", "timeout", count=9, orphaned=3), end("a", count=6)], evicted=[end("", count=100, orphaned=50)]))
        self.wait_for_text("aborts-rate", "3.00")

    def test_looks_more_than_once_a_second_and_not_at_all_while_nobody_sees_it(self):
        def see(state):
            self.browser.evaluate(f"Object.defineProperty(document, 'visibilityState', {{get: () => '{state}', configurable: true}});"
                                  "document.dispatchEvent(new Event('visibilitychange'))")
        self.open(totals(10, [end("a", count=5)]))
        self.wait_for_text("aborts-rate", "0.50")
        see("hidden")
        self.pass_time(10_000)
        asked = self.observer.asked
        self.pass_time(10_000)
        self.assertEqual(self.observer.asked, asked)
        self.observer.serve(totals(20, [end("a", count=40)]))
        see("visible")
        self.pass_time(500)
        self.assertEqual((self.observer.asked, self.text("aborts-rate")), (asked + 1, "3.50"))
        self.observer.serve(totals(21, [end("a", count=42)]))
        self.pass_time(1000)
        self.assertEqual((self.observer.asked, self.text("aborts-rate")), (asked + 2, "2.00"))
        self.pass_time(10_000)
        self.assertEqual(self.observer.asked, asked + 13)

    def pass_time(self, milliseconds):
        """The page's clock, which from now on stands still otherwise and during its fetches."""
        self.browser.call("Emulation.setVirtualTimePolicy", policy="pauseIfNetworkFetchesPending", budget=milliseconds)
        self.browser.wait_for_event("Emulation.virtualTimeBudgetExpired")

    def test_losses_the_spool_and_limits_are_shown(self):
        spool = {"bytes": 1_500_000, "pending": 300, "oldest_seconds": 4.5, "connected": False}
        self.open(totals(10, lost={"ring": 3}), totals(11, lost={"ring": 10, "sink": 1}, spool=spool, limits=["no release hook"]))
        self.browser.wait_until("document.querySelectorAll('#lost tbody tr').length === 2")
        self.assertEqual(self.rows("lost"), [["ring", "7", "10"], ["sink", "1", "1"]])
        self.assertEqual([self.text("spool-" + name) for name in ("connected", "pending", "bytes", "oldest")], ["no", "300", "1.50MB", "4.50s"])
        self.assertEqual(self.browser.evaluate("document.querySelector('#limits').innerText.includes('no release hook')"), True)
        self.assertTrue(self.browser.evaluate("document.getElementById('lost-none').hidden"))

    def test_tells_when_the_observer_has_gone_and_when_another_is_there(self):
        self.open(totals(10, [end("a", count=5)]))
        self.wait_for_text("aborts-rate", "0.50")
        port = self.observer.port
        self.observer.stop()
        self.browser.wait_until("document.getElementById('news').textContent.startsWith('No answer from the observer since')")
        self.assertTrue(self.browser.evaluate("document.body.classList.contains('old')"))
        self.assertEqual(self.text("aborts-rate"), "0.50")
        self.observer = FakeObserver(port=port, answers=[totals(4, [end("a", count=1)], started="2026-11-27T04:00:00.000000000Z")], **self.served)
        self.wait_for_text("news", "The observer was started anew at 2026-11-27T04:00:00.000000000Z.")
        self.assertEqual(self.text("aborts-rate"), "0.25")
        self.assertFalse(self.browser.evaluate("document.body.classList.contains('old')"))
        self.observer.serve(503)
        self.browser.wait_until("document.getElementById('news').textContent.endsWith('it answered 503')")

    def test_a_name_is_never_more_than_text_and_nothing_is_fetched_from_elsewhere(self):
        name = "<img src=x onerror=\"window.taken=1\"><script>window.taken=2</script>"
        spool = {"bytes": name, "pending": name, "oldest_seconds": name, "connected": name}
        self.open(totals(10, [end(name, name, count=1)], started=name, host={"name": name, "region": name}, version=name, limits=[name],
                         lost={name: 1}, spool=spool), totals(11, [end(name, name, count=2)], started=name + "2", host={"name": name}))
        self.wait_for_text("news", f"The observer was started anew at {name}2.")
        self.assertEqual([self.rows("services")[0][0], self.rows("causes")[0][0], self.text("host")], [name] * 3)
        self.assertEqual(self.browser.evaluate("[window.taken, document.images.length, document.scripts.length]"), [None, 0, 1])
        # Nor would it run if it were more: the policy has the hash of one script.
        self.browser.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.taken=3\">')")
        self.browser.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.taken=4'}))")
        self.assertIsNone(self.browser.evaluate("window.taken"))

    def test_complains_of_nothing_and_asks_nobody_else(self):
        self.open(totals(10, [end("a", count=5)]), totals(11, [end("a", count=6)]))
        self.wait_for_text("aborts-rate", "1.00")
        events = self.browser.come_events()
        for event in events:
            self.assertNotIn(event["method"], ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"), event)
        asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        self.assertEqual([url for url in asked if not url.startswith((self.url, "data:"))], [])

    def test_is_for_dark_rooms_and_for_screen_readers_too(self):
        self.open(totals(10, [end("a", count=5)]))
        self.wait_for_text("aborts-rate", "0.50")
        colours = []
        for scheme in ("light", "dark"):
            self.browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            colours.append(self.browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        self.assertNotEqual(*colours)
        self.browser.call("Emulation.setEmulatedMedia", features=[])
        self.assertEqual(self.browser.evaluate(
            "[...document.querySelectorAll('table')].every(t => t.caption && [...t.querySelectorAll('th')].every(h => h.scope))"
            " && [...document.querySelectorAll('svg')].every(s => s.getAttribute('role') === 'img' && s.hasAttribute('aria-label'))"
            " && [...document.querySelectorAll('section')].every(s => document.getElementById(s.getAttribute('aria-labelledby')))"), True)

    def test_odd_answers_are_survived(self):
        for odd in ({}, [], None, {"schema": "sockalarm.totals.v1", "ends": [None, 1, {"count": "x"}], "lost": None, "limits": 3, "host": None}):
            self.open(odd, totals(10, [end("a", count=5)]))
            self.wait_for_text("aborts-rate", "0.50")

    @unittest.skipUnless("SOCKALARM_SCREENSHOT" in os.environ, "nobody asked for a picture")
    def test_picture(self):
        self.open(busy_host(0))
        self.wait_for_text("host", "web-1")
        # A second is what the page waits; a picture need not.
        self.browser.evaluate("clearTimeout(timer)")
        for i in range(1, 121):
            self.observer.serve(busy_host(i))
            self.browser.evaluate("look().then(() => clearTimeout(timer))")
        self.browser.picture(os.environ["SOCKALARM_SCREENSHOT"], 1180, None)


if __name__ == "__main__":
    PAGE_TEXT = sys.argv.pop(1)
    unittest.main()
