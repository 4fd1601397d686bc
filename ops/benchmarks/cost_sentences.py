"""The sentences of cluster's page on what a cache, a sweep, a start with workers and a checkpoint cost."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import median
from typing import Any

OWN_SECONDS = 2.5  # the goal: what a start may take beyond a bare Ray Train script


def cache_sentence(found: dict[str, Any]) -> str:
    """Return what a step with cached targets and the build of a cache take."""
    step, build = (
        found["results"][key] for key in ("step: cached over no teacher", "build: over the bare forward pass")
    )
    return wrapped(
        f"On {found['facts']['machine']}, without a GPU (`make bench-cache`), a training step with cached targets "
        f"takes {spread(step)} of one without any teacher (n = {step['n']} pairs), a build {spread(build)} of the "
        f"teacher's bare forward passes (n = {build['n']})."
    )


def sweep_sentence(found: dict[str, Any]) -> str:
    """Return how much longer a sweep takes with an online teacher than with one cache."""
    online, cached = (found["rows"][name] for name in ("online", "cache"))
    return wrapped(
        f"On the digits, under a ResNet-20 teacher and with ASHA on, {online['trials']} runs took "
        f"{found['online_over_cached_seconds']:.2f} times as long with an online teacher as with one cache, including "
        f"the time to build it ({online['seconds']:.0f} s against {cached['seconds']:.0f} s, n = {found['n']}, "
        f"{found['facts']['machine']}, `ops/benchmarks/sweep.py`); starting the runs' processes accounts for "
        "much of both."
    )


def start_sentence(found: dict[str, Any]) -> str:
    """Return what two workers' start took, and how far it is above a bare Ray Train job's."""
    here, bare = (found["cpu_seconds"][f"{name}, 2"]["values"] for name in ("here", "ray"))
    own = [ours - theirs for ours, theirs in zip(here, bare, strict=True)]
    return wrapped(
        f"By the end of their first step, two workers have used {median(here):.1f} s of CPU, {median(own):.1f} s more "
        f"than those of a Ray Train job that does nothing else; the goal of at most {OWN_SECONDS:g} s more is "
        f"{verdict([taken <= OWN_SECONDS for taken in own])} (medians, n = {len(own)}, {found['facts']['machine']}, "
        "[results](../ops/benchmarks/results/startup_workers.json))."
    )


def checkpoint_sentence(found: dict[str, Any]) -> str:
    """Return how long a checkpoint blocks training."""
    number, held = found["checkpoint"]["parameters"], found["checkpoint"]["held_seconds"]
    return wrapped(
        f"A checkpoint of {number / 1e6:.1f} million parameters with momentum and moving average blocks training for "
        f"{spread(held)} s (n = {held['n']}, {found['facts']['machine']}, `make bench-scale`), and is written in the "
        "background."
    )


def verdict(reached: Sequence[bool]) -> str:
    """Return a goal's verdict; reached: by each round. It is missed where more rounds miss it than reach it."""
    if 2 * sum(reached) < len(reached):
        return "**missed**"
    return "met" if all(reached) else f"met in {sum(reached)} of {len(reached)} rounds"


def spread(found: dict[str, Any]) -> str:
    """Return a mean and its standard deviation."""
    return f"{found['mean']:.2f} ± {found['stdev']:.2f}"


def wrapped(text: str) -> str:
    """Return a paragraph of a page."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"
