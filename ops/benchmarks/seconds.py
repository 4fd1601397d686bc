"""The second table of `ops.benchmarks.comparisons`: goals in seconds, not in multiples of another library's time.

A measurement that has not been made is a row that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from ops.benchmarks.cost_sentences import OWN_SECONDS, verdict
from ops.benchmarks.tables import RESULTS, read

HEAD = "| what | here | for comparison | goal | n | source |"
SHOW_SECONDS = 3.0
BARE_RAY = "a bare Ray Train script"
IMPORTS = "`import torch, timm` alone"
TRIAL = "a sweep's trial beyond its training, one at a time"
OTHER_LOADERS = ("torchcodec as a loader", "Ray Data as a loader")


def seconds_text() -> str:
    """Return the table."""
    return "\n".join([HEAD, "|---|--:|--:|---|--:|---|", *rows()]) + "\n"


def rows() -> Iterator[str]:
    """Yield the rows."""
    found = values("startup", "cpu_seconds")
    for name, what in (
        ("show", "`show --seconds 0`, resnet34 > resnet18"),
        ("wrong tap", "the refusal of a wrong tap"),
    ):
        if name not in found:
            yield unmeasured(what)
            continue
        here, imports = found[name], found["imports"]
        goal = f"{SHOW_SECONDS:g} s: {verdict([taken <= SHOW_SECONDS for taken in here])}"
        yield row(what, span(here), f"{IMPORTS}: {span(imports)}", goal, len(here), "startup")
    of_workers = values("startup_workers", "cpu_seconds")
    for number in (1, 2):
        what = f"the start of a run with {number} worker{'s' if number > 1 else ''}, first step included"
        if f"here, {number}" not in of_workers:
            yield unmeasured(what)
            continue
        here, bare = of_workers[f"here, {number}"], of_workers[f"ray, {number}"]
        own = [ours - theirs for ours, theirs in zip(here, bare, strict=True)]
        reached = verdict([taken <= OWN_SECONDS for taken in own])
        goal = f"{BARE_RAY} and {OWN_SECONDS:g} s: {reached} ({median(own):+.1f} s)"
        yield row(what, span(here), f"{BARE_RAY}: {span(bare)}", goal, len(here), "startup_workers")
    over_forecast = values("forecast", "over_forecast")
    if not over_forecast:
        yield unmeasured("the forecast of `cache plan`")
    for name, over in over_forecast.items():
        what = f"the forecast of `cache plan`: {name}"
        yield row(what, span(over, " times the forecast"), "", "", len(over), "forecast")
    others = () if (RESULTS / "loader_others.json").is_file() else OTHER_LOADERS
    yield from map(unmeasured, others)
    of_trials = values("trials", "seconds")
    if not of_trials:
        yield unmeasured(TRIAL)
        return
    beyond, before = of_trials["beyond training"], of_trials["before the first run"]
    yield row(TRIAL, span(beyond), f"before a sweep's first run: {span(before)}", "", len(beyond), "trials")


def values(name: str, key: str) -> dict[str, list[float]]:
    """Return {subject: values} of a result file; empty where it has not been written."""
    content: dict[str, Any] = read(name) if (RESULTS / f"{name}.json").is_file() else {key: {}}
    return {subject: one["values"] for subject, one in content[key].items()}


def row(what: str, here: str, beside: str, goal: str, number: int, source: str) -> str:
    """Return a row of the table."""
    return f"| {what} | {here} | {beside} | {goal} | {number} | [{source}](results/{source}.json) |"


def unmeasured(what: str) -> str:
    """Return the row of something that has not been measured."""
    return f"| {what} | not measured | | | | |"


def span(found: list[float], unit: str = " s") -> str:
    """Return median and range."""
    digits = 1 if unit == " s" else 2
    return f"{median(found):.{digits}f} [{min(found):.{digits}f}, {max(found):.{digits}f}]{unit}"
