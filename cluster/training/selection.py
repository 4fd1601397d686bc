"""Which weights a run deploys, and when it has waited long enough for better ones.

Both are functions of the scores of its evaluations, which are the same on every rank and are kept in every checkpoint:
all ranks end at one step, and a run that was cut off while it waited goes on waiting where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

# What weights are chosen by: the first of these that an evaluation has.
SCORES = ("top1", "mAP", "agreement", "knn_top1", "neighbour_agreement")


class Choice(Protocol):
    """How a run chooses its weights, and how long it waits for better ones: a recipe's `train` section, for one."""

    @property
    def select(self) -> str: ...
    @property
    def patience_epochs(self) -> int | None: ...
    @property
    def evaluate_every_epochs(self) -> int: ...


def score_of(select: str, metrics: Mapping[str, float]) -> float:
    """Return the score of an evaluation, {split/name: value}, on the split that the recipe chooses by."""
    names = (f"{select}/{name}" for name in SCORES)
    return next(metrics[name] for name in names if name in metrics)


def patience_is_over(train: Choice, steps_per_epoch: int, step: int, best_step: int) -> bool:
    """Return whether the run ends for lack of a better score: at its last evaluation, up to a step, patience was over.

    best_step: the steps done at the evaluation of the best score; 0 before the first.
    """
    patience = train.patience_epochs
    evaluated = step - step % (train.evaluate_every_epochs * steps_per_epoch)
    return patience is not None and best_step > 0 and evaluated - best_step >= patience * steps_per_epoch


def step_of_end(train: Choice, steps_per_epoch: int, rows: Iterable[Mapping[str, float]]) -> int | None:
    """Return the step at which patience was over, by the evaluations in a run's journal; None where it was not."""
    best, best_step = -1.0, 0
    for row in rows:
        if (score := score_of(train.select, row)) > best:
            best, best_step = score, int(row["step"])
        if patience_is_over(train, steps_per_epoch, int(row["step"]), best_step):
            return int(row["step"])
    return None
