# SPDX-License-Identifier: Apache-2.0
"""From the JSON of single runs to figures with a spread.

A figure is {"median", "low", "high"}. A measuring program that works in rounds gives median and quartiles of its rounds:
their medians over the runs are the figure. A plain number becomes the median, lowest and highest of the runs.
"""
import statistics

SPREAD = {"median", "q1", "q3"}
FIGURE = {"median", "low", "high"}


def rounded(value):
    return None if value is None else float(f"{value:.4g}")


def numbers(values):
    return [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]


def median(values):
    values = numbers(values)
    return rounded(statistics.median(values)) if values else None


def merge(runs):
    """The same value from several runs, whatever its shape."""
    first = runs[0]
    if isinstance(first, dict):
        good = [run for run in runs if "not_available" not in run]
        if not good:
            return first
        if set(good[0]) == SPREAD:
            return {
                "median": median(r["median"] for r in good),
                "low": median(r["q1"] for r in good),
                "high": median(r["q3"] for r in good),
            }
        keys = list(dict.fromkeys(key for run in good for key in run))
        return {key: merge([run[key] for run in good if key in run]) for key in keys}
    if isinstance(first, (str, bool, list)):
        return first
    values = numbers(runs)
    return {"median": median(values), "low": rounded(min(values, default=None)), "high": rounded(max(values, default=None))}


def find(results, *path):
    """The figure at a path below "sections"; None if it is not there."""
    at = results["sections"]
    for key in path:
        if not isinstance(at, dict) or key not in at:
            return None
        at = at[key]
    return at if isinstance(at, dict) and FIGURE <= set(at) and at["median"] is not None else None


def why_not(results, *path):
    """The reason that stands where a figure should; None if there is none."""
    at = results["sections"]
    for key in path:
        if not isinstance(at, dict):
            return None
        if "not_available" in at:
            return at["not_available"]
        if key not in at:
            return None
        at = at[key]
    return at.get("not_available") if isinstance(at, dict) else None
