#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The dashboard and the alerts in deploy/ ask for what docs/export.md says there is. deploy_test.py REPOSITORY"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path()


def listed():
    """Metrics of the table in docs/export.md, and which of them are histograms."""
    table = re.search(r"\n\| metric \|.*?\n\n|\n\| metric \|.*\Z", (ROOT / "docs/export.md").read_text(), re.DOTALL).group()
    names, histograms = set(), set()
    for line in table.splitlines():
        here = set(re.findall(r"`(sockalarm_[a-z_]+)`", line))
        names |= here
        if "histogram" in line:
            histograms |= here
    return names | {name + end for name in histograms for end in ("_bucket", "_sum", "_count")}


def used(text):
    return set(re.findall(r"\bsockalarm_[a-z_]+", text))


def expressions(panels):
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


class Deploy(unittest.TestCase):
    def setUp(self):
        self.alerts = ROOT / "deploy/prometheus/alerts.yml"
        self.dashboard = json.loads((ROOT / "deploy/grafana/sockalarm.json").read_text())

    def promtool(self, *arguments):
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_the_rules_are_right_and_do_what_their_tests_say(self):
        self.promtool("check", "rules", self.alerts)
        self.promtool("test", "rules", self.alerts.with_name("alerts_test.yml"))

    def test_each_alert_is_tested_both_ways(self):
        tests = self.alerts.with_name("alerts_test.yml").read_text()
        alerts = re.findall(r"- alert: (\w+)", self.alerts.read_text())
        self.assertGreater(len(alerts), 4)
        for alert in alerts:
            self.assertRegex(tests, rf"alertname: {alert}\n")
            self.assertRegex(tests, rf"alertname: {alert}, eval_time: \w+, exp_alerts: \[\]")

    def test_every_metric_is_one_that_there_is(self):
        known = listed()
        self.assertIn("sockalarm_orphaned_seconds_bucket", known)
        asked = {name for expression in expressions(self.dashboard["panels"]) for name in used(expression)}
        asked |= {name for variable in self.dashboard["templating"]["list"] for name in used(json.dumps(variable["query"]))}
        asked |= used(re.sub(r"alert: \w+|.*(summary|description):.*", "", self.alerts.read_text()))
        asked |= {name for series in re.findall(r"series: '(\w+)\{", self.alerts.with_name("alerts_test.yml").read_text()) for name in used(series)}
        self.assertGreater(len(asked), 10)
        self.assertEqual(sorted(asked - known), [])

    def test_the_dashboard_asks_what_prometheus_understands(self):
        rules = []
        for i, expression in enumerate(expressions(self.dashboard["panels"])):
            for variable, value in (("$__rate_interval", "5m"), ("$__range", "1h"), ("$instance", ".*"), ("$service", ".*")):
                expression = expression.replace(variable, value)
            self.assertNotIn("$", expression)
            rules.append({"record": f"test:{i}", "expr": expression})
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)  # JSON is YAML
            file.flush()
            self.promtool("check", "rules", file.name)

    def test_the_dashboard_is_whole(self):
        panels = self.dashboard["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        places = set()
        for panel in panels:
            at = panel["gridPos"]
            self.assertLessEqual(at["x"] + at["w"], 24)
            here = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(places & here, panel["title"])
            places |= here
            for target in panel.get("targets", ()):
                self.assertEqual(target["datasource"]["uid"], "${datasource}")


if __name__ == "__main__":
    ROOT = pathlib.Path(sys.argv.pop(1))
    unittest.main()
