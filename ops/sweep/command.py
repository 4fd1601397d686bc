"""`sweep`: the plan, then the runs, then the table, the best recipe and the pictures."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from cluster.cache.builder import cache_bytes
from cluster.cache.outlook import Outlook, Speeds, outlook
from cluster.nodes.resources import device_here
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.recipe.sections import CacheConfig
from cluster.sweep.axes import LAYERS, Pairings
from cluster.sweep.caches import asks_the_teacher
from cluster.sweep.config import SweepConfig, load_sweep
from cluster.sweep.journal import Trial
from cluster.sweep.plan import Costs, SweepPlan
from cluster.sweep.room import MANAGER_BYTES, TRIAL_BYTES, concurrency, local_concurrency
from cluster.sweep.run import (
    build_caches,
    exclusive_folder,
    has_begun,
    has_nothing_to_run,
    require_same_sweep,
    run_trials,
    sweep_session,
    trials_so_far,
)
from cluster.sweep.space import LayerScores, label, shared_recipe
from cluster.sweep.tracking import SweepRecord
from cluster.tracking.folder import RunFolder
from kdcore.quality.score import Quality
from ops import catalog, layers
from ops.cache import BuildView
from ops.console import console, duration, say, table
from ops.sweep.plots import plots
from ops.sweep.report import PointResult, are_written, ranked, result_table, write_files
from ops.sweep.view import SweepView
from ops.train import mlflow_hint
from pipelines.cache.local import local_folder
from pipelines.cache.manifest import load_manifest
from pipelines.files import read_json, write_json

MEASURE_SECONDS = 1.0  # of each part: loader, teacher, student
# Of a run besides its training, by itself on 2 cores: the median of benchmarks/results/trials.json, as a test checks.
RUN_SECONDS = 12


def sweep(
    recipe: str,
    overrides: Sequence[str],
    space: str,
    concurrent: int | None,
    plan_only: bool,
    retry_failed: bool,
) -> int:
    """Plan a sweep of a recipe, and run it unless only the plan was asked for.

    Return the exit status: 1 where a run has failed or was lost, after everything else is done.
    """
    started = time.perf_counter()
    config, wanted = catalog.load_here(recipe, overrides), load_sweep(space)
    concurrent = concurrent or wanted.concurrent
    plan = plan_sweep(config, wanted)
    # A cluster has to be asked what fits on it; for a plan only, none is started on this machine.
    here = plan_only and not os.environ.get("RAY_ADDRESS")
    with nullcontext() if here else sweep_session(plan.base, concurrent):
        fitting = local_concurrency(plan.base, concurrent) if here else concurrency(plan.base, concurrent)
        show_plan(plan, fitting, concurrent)
        if plan_only:
            return 0
        command = shlex.join(["python", "-m", "ops", "sweep", recipe, "--space", space, *overrides])
        with exclusive_folder(plan):
            results = run(plan, fitting, command, started, retry_failed)
    without_end = [trial for result in results for trial in result.trials if trial.end in ("failed", "lost")]
    for trial in without_end:
        say(f"{trial.name} {trial.end}: {trial.reason}")
    if without_end:
        say(retry_hint(without_end))
    return 1 if without_end else 0


def plan_sweep(config: RunConfig, wanted: SweepConfig) -> SweepPlan:
    """Return the plan of a sweep. Refused first where its folder holds another, whose measurements do not apply."""
    require_same_sweep(config, wanted)
    return SweepPlan(config, wanted, layer_scores(config, wanted))


def retry_hint(trials: Sequence[Trial]) -> str:
    """Return what can be done about runs that have failed or were lost."""
    lost = sum(trial.end == "lost" for trial in trials)
    ways = [f"the same command retries the {lost} lost"] if lost else []
    return "; ".join([*ways, *(["--retry-failed also those that failed"] if lost < len(trials) else [])])


def run(
    plan: SweepPlan, concurrent: int, command: str, started: float, retry_failed: bool = False
) -> list[PointResult]:
    """Build what is missing, run the trials, show and write the results, and return them, the best first.

    A sweep that is complete, also in its trackers, is only shown.
    """
    trials = trials_so_far(plan).values()
    if has_nothing_to_run(plan, trials, retry_failed) and not has_kept_back(plan.parent.run_dir):
        results = ranked(plan, trials)
        if are_written(plan, results):
            console.print(result_table(plan, results))
            say(mlflow_hint(plan.parent))
            return results
    record = SweepRecord(plan.parent, plan.sweep, command)
    with record.marking_interruption(), BuildView() as build_view:
        build_caches(plan, build_view)
    built = time.perf_counter()
    with SweepView(plan) as view:
        journal = run_trials(plan, record, concurrent, command, view, retry_failed)
    results = ranked(plan, journal.trials.values())
    console.print(result_table(plan, results))
    seconds = {"seconds": time.perf_counter() - started, "before_the_first_run_seconds": built - started}
    files = [*write_files(plan, results, seconds), *plots(plan, results)]
    is_best = results[0].whole and results[0].mean is not None
    best = {"sweep/best": results[0].mean} if results[0].mean is not None and is_best else {}
    record.close(files, best, results[0].point if is_best else None)
    for path in files:
        say(f"written: {path}")
    say(mlflow_hint(plan.parent))
    return results


def has_kept_back(folder: Path) -> bool:
    """Return whether a sweep, or a run of it, has something left for its trackers."""
    return RunFolder(folder).outbox.exists() or any(folder.glob("*/outbox"))


def layer_scores(config: RunConfig, wanted: SweepConfig) -> LayerScores | None:
    """Measure the layers if the space chooses some, once: a sweep that has begun keeps the scores it began with."""
    axis = wanted.space.get(LAYERS)
    if not isinstance(axis, Pairings):
        return None
    kept = Path(config.output_dir) / wanted.name / "layers.json"
    if kept.exists() and has_begun(kept.parent):
        found = read_json(kept, "delete it: it is then measured again")
        return LayerScores({tap: Quality(**q) for tap, q in found["quality"].items()}, found["student_taps"])
    taps = axis.taps
    if axis.pairs is not None:
        taps = tuple(sorted({pair.teacher for pairs in axis.pairs for pair in pairs}))
    online = shared_recipe(config, wanted)
    scores = layers.score(online, taps, axis.student_taps, num_images=axis.images)
    content = {"quality": {tap: asdict(q) for tap, q in scores.quality.items()}}
    write_json(kept, {**content, "student_taps": list(scores.student_taps)})
    return scores


def show_plan(plan: SweepPlan, concurrent: int, asked: int | None) -> None:
    """Show what will be run, what it shares, and what it will cost."""
    console.print(table(f"plan of the sweep {plan.sweep.name}", ["", ""], plan_rows(plan, concurrent, asked)))
    for point, problem in plan.problems.items():
        say(f"not a valid run, counted as failed: {point}: {problem.removeprefix(f'{point}: ')}")


def plan_rows(plan: SweepPlan, concurrent: int, asked: int | None) -> list[list[str]]:
    """Return the rows of the plan. concurrent: runs at a time; asked: how many were asked for."""
    sweep, done = plan.sweep, trials_so_far(plan)
    num_points = plan.num_trials // len(sweep.seeds)
    seeds = f"{len(sweep.seeds)} seed{'s' if len(sweep.seeds) > 1 else ''}"
    ended = sum(trial.end not in (None, "lost") for trial in done.values())
    rows = [[name, axis_text(axis)] for name, axis in plan.space.axes.items()]
    rows += [
        ["runs", f"{num_points} points ({sweep.search}) x {seeds} = {plan.num_trials}"],
        [
            "at a time",
            f"{concurrent}" + (f" (the cluster has no room for {asked})" if asked and asked > concurrent else ""),
        ],
        ["memory beside the workers'", memory_text(concurrent)],
        ["compared by", f"{sweep.metric} on {plan.base.data.held_out:.0%} of the training images"],
    ]
    if done:
        rows.insert(len(plan.space.axes) + 1, ["of these ended", f"{ended}; {len(done) - ended} to be continued"])
    if sweep.stop:
        rows.append(["stopped early", sweep.stop.summary()])
    return rows + cache_rows(plan) + cost_rows(plan, concurrent, plan.num_trials - ended)


def memory_text(concurrent: int) -> str:
    """Return the memory of the processes other than the workers, as a cell shows it."""
    each, shared = decimal(TRIAL_BYTES), decimal(MANAGER_BYTES)
    return f"{decimal(concurrent * TRIAL_BYTES + MANAGER_BYTES)} ({each} a run at a time, {shared} for all)"


def axis_text(axis: Any) -> str:
    """Return an axis as a cell shows it: the first of many values."""
    if not hasattr(axis, "values"):
        return f"{axis.low:g} to {axis.high:g}"
    shown = [label(value) for value in axis.values]
    more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
    return ", ".join(shown[:6]) + more


def cache_rows(plan: SweepPlan) -> list[list[str]]:
    """Return a row or two for each cache: where it is, what is in it, how large."""
    missing = {config.cache.dir for config in plan.caches.missing() if config.cache}
    rows = []
    for build in plan.caches.builds():
        assert build.cache is not None
        needs = build.needs
        content = [*(["logits"] if needs.teacher_logits else []), *sorted(needs.teacher_taps | set(build.cache.taps))]
        state, size = "there already", 0
        if build.cache.dir in missing:
            state, size = "to be built", cache_bytes(build)
        rows.append(["cache", f"{', '.join(content)} in {build.views.num_views} views, {state}"])
        rows.append(["", f"{decimal(size or stored_bytes(build.cache))} in {build.cache.dir}"])
    nothing = "the teacher answers online" if plan.base.all_teachers else "there is no teacher"
    return rows or [["cache", f"none: {nothing}"]]


def stored_bytes(cache: CacheConfig) -> int:
    """Return the bytes of a finished cache, which are known without its teacher."""
    return load_manifest(local_folder(cache.dir, cache.copies_dir)).num_bytes


def cost_rows(plan: SweepPlan, concurrent: int, num_left: int) -> list[list[str]]:
    """Return the hours of the runs that are left, from measured speeds, and when the cache has paid off."""
    if num_left == 0:
        return [["expected training", "none: every run has ended"]]
    if plan.base.teachers:
        return [["expected training", "not measured with several teachers; `cache plan` measures each"]]
    seen = measured_speeds(plan)
    if seen is None:
        return []
    costs = Costs(seen, num_left, concurrent, len(plan.caches.missing()))
    trials = costs.break_even_trials
    paid = "never: the loader is the bottleneck" if trials is None else f"after {trials:.1f} runs"
    online = f"{duration(costs.online_seconds)} with the teacher online"
    cached = f"{duration(costs.cached_seconds)}, {duration(costs.build_seconds)} of it for the cache"
    stopping = "; less with runs that are stopped early" if plan.sweep.stop else ""
    rest = [
        ["not in it", f"Ray's start, and what each run's processes take: {RUN_SECONDS} s a run where it was measured"]
    ]
    if not plan.caches.groups:
        return [["expected training", online + stopping], *rest]
    return [["expected training", cached + stopping], ["", online], *rest, ["the cache is paid for", paid]]


def measured_speeds(plan: SweepPlan) -> Outlook | None:
    """Measure the parts on this machine, once: a sweep that has begun keeps the speeds it began with.

    None where no teacher is asked, or where its weights are not on this machine.
    """
    kept = plan.parent.run_dir / "speeds.json"
    if kept.exists() and has_begun(kept.parent):
        found = read_json(kept, "delete it: it is then measured again")
        return Outlook(**{**found, "speeds": Speeds(**found["speeds"])})
    config = next(iter(plan.caches.builds()), None) or recipe_to_measure(plan.base)
    if config is None or (config.teacher is not None and config.teacher.lacks_weights):
        return None
    seen = outlook(config, device_here(config), MEASURE_SECONDS)
    write_json(kept, asdict(seen))
    return seen


def recipe_to_measure(base: RunConfig) -> RunConfig | None:
    """Return a recipe for measuring where no cache will be built; None where no teacher is asked."""
    if not asks_the_teacher(base):
        return None
    data = base.model_dump(mode="json")
    data["cache"] = {"dir": f"{base.output_dir}/unused"}
    data["views"]["num_views"] = base.train.epochs * base.views.repeats
    return parse(data, base.name)
