"""Blows that fall on a run as soon as it has come to a step, and a look at how it went on from each."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

STEPS = 72  # of a run: long enough to be hit where it is meant to be


@dataclass
class Blow:
    """Something to be killed as soon as the run has come to a step."""

    step: int
    strike: Callable[[], None]
    struck_at: int = 0
    reached: int = 0  # what those who were struck had come to by then: they go on while the blow falls
    continued_at: int = 0


class Blows:
    """Watches a run and strikes blow after blow, each once the run has gone on from the one before.

    began_at: the step of a checkpoint that it went on from before the first blow.
    """

    def __init__(self, *blows: Blow) -> None:
        self.blows = blows
        self.began_at = 0

    def __call__(self, state: dict[str, Any], messages: list[str]) -> None:
        struck = [blow for blow in self.blows if blow.struck_at]
        if struck and not struck[-1].reached:
            struck[-1].reached = max(struck[-1].struck_at, state.get("step", 0))
        for message in messages:
            if found := re.match(r"continuing at step (\d+)", message):
                if struck:
                    struck[-1].continued_at = int(found[1])
                else:
                    self.began_at = int(found[1])
        waiting = [blow for blow in self.blows if not blow.struck_at]
        gone_on = not struck or struck[-1].continued_at
        if waiting and gone_on and waiting[0].step <= state.get("step", 0):
            waiting[0].struck_at = state["step"]
            waiting[0].strike()

    def check(self) -> None:
        """Each fell in the middle of the run, which went on from a checkpoint before it, not from the start."""
        for blow in self.blows:
            assert blow.step <= blow.struck_at < STEPS
            assert 0 < blow.continued_at <= blow.reached + 4


def random_steps(seed: int, number: int) -> list[int]:
    """One in each of `number` equal parts of the run, none near its ends."""
    width = (STEPS - 24) // number
    offsets = np.random.default_rng(seed).integers(0, width, size=number)
    return [10 + part * width + int(offset) for part, offset in enumerate(offsets)]
