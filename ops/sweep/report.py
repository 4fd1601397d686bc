"""What a sweep amounts to: its points ranked, its best recipe, and everything about it as one JSON file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse, to_yaml
from cluster.score_text import score_text
from cluster.sweep.journal import Trial
from cluster.sweep.plan import SweepPlan
from cluster.sweep.space import LAYERS, describe, label
from cluster.training.selection import SCORES
from kdcore.errors import Refused
from ops.console import percent, table
from ops.response import ScoredPoint
from pipelines.files import finite_or_null, read_object, write_json, write_text

SUMMARY = "sweep.json"
# The fields of a run's result that it keeps.
RESULT_FIELDS = ("metrics", "steps", "train_seconds", "wall_seconds", "images_per_second")


@dataclass(frozen=True, kw_only=True)
class PointResult(ScoredPoint):
    """A scored point with its number and its trials."""

    number: int
    trials: Sequence[Trial]

    @property
    def stdev(self) -> float | None:
        """The deviation over seeds, if every seed finished."""
        return statistics.stdev(self.scores) if self.whole and len(self.scores) > 1 else None

    @property
    def epoch(self) -> float:
        """The epoch that every run has reached."""
        return min(trial.epoch for trial in self.trials)


def ranked(plan: SweepPlan, trials: Iterable[Trial]) -> list[PointResult]:
    """Rank points: first those whose seeds all finished, by their mean; then the others, by how far they got.

    Points without any score are last.
    """
    groups: dict[int, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.number, []).append(trial)
    results = [result_of(plan, number, group) for number, group in groups.items()]
    sign = 1 if plan.sweep.mode == "max" else -1

    def key(result: PointResult) -> tuple[Any, ...]:
        if result.mean is None:
            return (True, False, -result.epoch, 0, result.number)
        return (False, not result.whole, 0 if result.whole else -result.epoch, -sign * result.mean, result.number)

    return sorted(results, key=key)


def result_of(plan: SweepPlan, number: int, trials: Sequence[Trial]) -> PointResult:
    """Return what the trials of a point amount to."""
    scores = {trial.name: plan.score(trial) for trial in trials}
    finished = [s for trial in trials if trial.end == "finished" and (s := scores[trial.name]) is not None]
    others = [s for trial in trials if trial.end != "finished" and (s := scores[trial.name]) is not None]
    return PointResult(
        point=trials[0].point, scores=finished, reached=others, num_runs=len(trials), number=number, trials=trials
    )


def result_table(plan: SweepPlan, results: Sequence[PointResult]) -> Table:
    """Return a table with one row per point, best first."""
    fields = list(plan.space.axes)
    quality = plan.scores if LAYERS in fields else None
    val = validation_rate(results)
    columns = ["", *headings(fields), *(["Q"] if quality else []), plan.sweep.metric, val, "runs"]
    rows = []
    for rank, result in enumerate(results, start=1):
        row = [str(rank), *(label(result.point[name]) for name in fields)]
        if quality:
            row.append(f"{quality.of(result.point[LAYERS]):.4f}")
        rows.append([*row, mean_text(result, plan.sweep.metric), validation_text(result, val), ends_of_runs(result)])
    return table(f"{plan.sweep.name}: best by {plan.sweep.metric}", columns, rows)


def headings(fields: Sequence[str]) -> list[str]:
    """Return the fields by their last words, where those tell them apart."""
    last = [name.rpartition(".")[2] for name in fields]
    return last if len(set(last)) == len(last) else list(fields)


def mean_text(result: PointResult, metric: str) -> str:
    """Return a point's mean, with the deviation over seeds where it has one."""
    if result.mean is None:
        return "-"
    shown = score_text(metric, result.mean)
    return f"{shown} ± {score_text(metric, result.stdev)}" if result.stdev is not None else shown


def validation_rate(results: Sequence[PointResult]) -> str:
    """Return the rate that the runs have on the validation set: the first of those that weights are chosen by."""
    seen = {name for result in results for trial in result.trials for name in trial.result.get("metrics", ())}
    return next((name for name in (f"val/{score}" for score in SCORES) if name in seen), f"val/{SCORES[0]}")


def validation_text(result: PointResult, metric: str) -> str:
    """Return the mean of a rate on the validation set, by which nothing was chosen."""
    finished = [trial.result["metrics"] for trial in result.trials if trial.end == "finished"]
    values = [metrics[metric] for metrics in finished if metric in metrics]  # absent where no labels were read
    return percent(statistics.fmean(values)) if values else "-"


def ends_of_runs(result: PointResult) -> str:
    """Return how a point's runs ended, with the epoch at which unfinished ones did."""
    words = [
        "finished" if trial.end == "finished" else f"{trial.end or 'interrupted'} at {trial.epoch:g}"
        for trial in result.trials
    ]
    if len(words) == 1:
        return words[0]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def best_recipe(plan: SweepPlan, results: Sequence[PointResult]) -> tuple[RunConfig, str] | None:
    """Return the best point as a recipe, and as the text of a file; None where no point has finished all its runs."""
    if not results or not results[0].whole:
        return None
    best, sweep = results[0], plan.sweep
    data = plan.config(best.trials[0]).model_dump(mode="json")
    data |= {"name": f"{sweep.name}-best", "output_dir": plan.recipe.output_dir}
    config = parse(data, f"{sweep.name}-best")
    text = (
        f"# The best of the {len(results)} points of the sweep {sweep.name}: {describe(best.point)}\n"
        f"# {sweep.metric} {mean_text(best, sweep.metric)}, n = {len(best.scores)} seeds; chosen by that, "
        "so expect less.\n"
        "# The teacher's outputs are in the sweep's cache: keep that, or set teacher.source=online.\n"
    )
    return config, text + to_yaml(config)


def write_files(plan: SweepPlan, results: Sequence[PointResult], facts: dict[str, Any]) -> list[Path]:
    """Write sweep.json, and best.yaml where there is a best; return their paths.

    facts: of this session; if the same results are already written, the facts of the session that measured them stay.
    """
    folder = plan.parent.run_dir
    files = [folder / SUMMARY]
    if not are_written(plan, results):
        write_json(files[0], summary(plan, results, facts))
    if best := best_recipe(plan, results):
        files.append(folder / "best.yaml")
        write_text(files[1], best[1])
    return files


def are_written(plan: SweepPlan, results: Sequence[PointResult]) -> bool:
    """Return whether sweep.json has these very results."""
    ours = json.loads(json.dumps(finite_or_null(summary(plan, results, {}))))
    with suppress(Refused):  # a file that is missing or damaged is written again
        found = read_object(plan.parent.run_dir / SUMMARY, "")
        return found | ours == found
    return False


def summary(plan: SweepPlan, results: Sequence[PointResult], facts: dict[str, Any]) -> dict[str, Any]:
    """Return everything about a sweep as plain values: the points ranked, with the runs of each."""
    return {
        "name": plan.sweep.name,
        "sweep": plan.sweep.model_dump(mode="json"),
        "quality": {tap: quality.q for tap, quality in plan.scores.quality.items()} if plan.scores else {},
        **facts,
        "points": [
            {
                "rank": rank,
                "point": result.point,
                "mean": result.mean,
                "stdev": result.stdev,
                "whole": result.whole,
                "trials": [trial_summary(plan, trial) for trial in result.trials],
            }
            for rank, result in enumerate(results, start=1)
        ],
    }


def trial_summary(plan: SweepPlan, trial: Trial) -> dict[str, Any]:
    """Return everything about a trial as plain values."""
    return {
        "run": f"{plan.sweep.name}-{trial.name}",
        "seed": trial.seed,
        "score": plan.score(trial),
        "end": trial.end,
        "reason": trial.reason,
        "curve": trial.reports,
        "result": {name: trial.result[name] for name in RESULT_FIELDS if name in trial.result},
    }
