"""Running a sweep: first its caches, then its trials by Ray Tune, at the end their results.

A sweep's name is its identity. Started again after whatever ended it, it goes on from its journal: runs that have ended
are not run again, runs that were under way continue from their checkpoints. With one run at a time its table is that of
an uninterrupted sweep. With several, the scores that successive halving and TPE have seen when they decide depend on
which run was faster, in every sweep; but here, too, what was decided stays decided.

Tune's own restore is not used. It keeps pickles of the search, and restores the searcher and the scheduler as of its
last save, seconds before the kill: what was decided in between would be decided again, from other runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.error import TuneError

from cluster.cache.job import build
from cluster.cache.progress import Watcher
from cluster.nodes.resources import ray_session
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import validated
from cluster.sweep.axes import written_axis
from cluster.sweep.config import SweepConfig
from cluster.sweep.journal import Event, SweepJournal, Trial
from cluster.sweep.manager import start_manager
from cluster.sweep.plan import SweepPlan
from cluster.sweep.room import local_concurrency, nodes_here, trial_resources
from cluster.sweep.runs import task_of
from cluster.sweep.scheduler import EarlyStopping
from cluster.sweep.search import Proposals
from cluster.sweep.space import parent_of
from cluster.sweep.tracking import SweepRecord
from cluster.sweep.trial import train_trial
from cluster.tracking.fields import flat_fields
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.training.launch import continued
from kdcore.credentials import has_credentials
from kdcore.errors import Refused
from pipelines.files import make_folder, read_json, write_json
from pipelines.leases import leased
from pipelines.nested import differences, in_short

REMEDY = "delete it: the sweep then writes it again"
JOURNAL, SPACE, TUNE = "journal.jsonl", "space.json", "tune"
MAX_LOST_PROCESSES = 2  # of a trial, which is started again after each


@contextmanager
def sweep_session(config: RunConfig, asked: int | None) -> Iterator[None]:
    """Enter a Ray cluster as for a run; one that is started here has room for `asked` runs at a time."""
    workers = config.scaling.num_ranks * local_concurrency(config, asked)
    scaling = config.scaling.model_copy(update={"num_workers": workers})
    with ray_session(config.model_copy(update={"scaling": scaling}), stops_runs=True):
        yield


@contextmanager
def exclusive_folder(plan: SweepPlan) -> Iterator[None]:
    """Reserve the sweep's folder for this process. Refused where another is at work, or it holds another sweep."""
    folder = plan.parent.run_dir
    make_folder(folder, "output_dir")
    with leased(folder, "sweep"):
        mark_folder(plan)
        yield


def mark_folder(plan: SweepPlan) -> None:
    """Mark the folder as this sweep's. Refused where it holds one of another recipe or space."""
    require_same_sweep(plan.recipe, plan.sweep)
    folder = plan.parent.run_dir
    RunFolder(folder).write_recipe(plan.parent)
    write_json(folder / SPACE, sweep_identity(plan.sweep))


def require_same_sweep(recipe: RunConfig, sweep: SweepConfig) -> None:
    """Refuse a sweep whose folder holds one of another recipe or space. Nothing is written.

    Seeds may be added where nothing is decided by scores: each is more runs of the same points.
    """
    parent = parent_of(recipe, sweep)
    continued(parent)
    folder = parent.run_dir
    if not has_begun(folder):
        return
    # Read as a sweep, so that fields that came later have their defaults.
    theirs = validated(SweepConfig, read_json(folder / SPACE, REMEDY), str(folder / SPACE))
    changed = differences(sweep_identity(theirs), sweep_identity(sweep))
    adds_seeds = [field for field, _, _ in changed] == ["seeds"] and set(theirs.seeds) < set(sweep.seeds)
    if not changed or (adds_seeds and sweep.decides_by is None):
        return
    field, there, here = changed[0]
    why = f", and {sweep.decides_by} has decided by the runs with those seeds" if adds_seeds else ""
    raise Refused(
        f"{folder} holds another sweep ({field} is {in_short(there)} there and {in_short(here)} now{why}); choose "
        "another name, or delete that folder"
    )


def has_begun(folder: Path) -> bool:
    """Return whether a sweep has begun in a folder: what was measured for it there holds for the whole of it."""
    return (folder / SPACE).exists()


def sweep_identity(sweep: SweepConfig) -> dict[str, Any]:
    """Return what identifies a sweep, as SPACE.yaml has it; not how many runs go at a time."""
    plain = sweep.model_dump(mode="json", exclude={"concurrent", "space"})
    return plain | {"space": {field: written_axis(axis) for field, axis in sweep.space.items()}}


def trials_so_far(plan: SweepPlan) -> dict[str, Trial]:
    """Read the trials of a sweep so far, by name; empty for a new one."""
    journal = SweepJournal(plan.parent.run_dir / JOURNAL)
    journal.read()
    return journal.trials


def is_to_retry(trial: Trial, retry_failed: bool) -> bool:
    """Return whether a trial that has ended is tried again: one that was lost or, if asked for, one that failed."""
    return trial.end == "lost" or (retry_failed and trial.end == "failed")


def has_nothing_to_run(plan: SweepPlan, trials: Collection[Trial], retry_failed: bool) -> bool:
    """Return whether all trials of a sweep are among these and have ended, none of them to be tried again."""
    over = [trial for trial in trials if trial.end is not None and not is_to_retry(trial, retry_failed)]
    return len(over) == plan.num_trials


def build_caches(plan: SweepPlan, watch: Watcher | None) -> None:
    """Build the caches that the runs will read and that are missing."""
    for config in plan.caches.missing():
        build(config, watch)


def run_trials(
    plan: SweepPlan,
    record: SweepRecord,
    concurrent: int,
    command: str,
    watch: Callable[[SweepJournal, Event, Trial], None] | None = None,
    retry_failed: bool = False,
) -> SweepJournal:
    """Run the trials that have not ended yet, and those that were lost; return the journal of all.

    watch: called with every new event; retry_failed: whether those that failed by themselves are tried again, too.
    """
    journal = SweepJournal(plan.parent.run_dir / JOURNAL)

    def prepared(trial: Trial) -> dict[str, Any]:
        return task_of(trial.name, plan.config(trial), command, record.tags(trial)).to_plain()

    def result(trial: Trial) -> dict[str, Any]:
        return RunFolder.of(plan.config(trial)).read_result()

    proposals = Proposals(plan.space, journal, plan.score, prepared, result)
    journal.open()
    journal.listen(record.record_end)
    if watch:
        journal.listen(lambda event, trial: watch(journal, event, trial))
    retry_trials(journal, retry_failed)
    try:
        if proposals.has_more:
            run_tune(plan, proposals, EarlyStopping(plan.sweep, journal), concurrent)
    except BaseException:
        record.mark_interrupted(journal.trials.values())
        raise
    record.finish_runs(journal.trials.values(), plan.config)
    return journal


def retry_trials(journal: SweepJournal, retry_failed: bool) -> None:
    """Have lost trials continued, and where asked for, also those that failed by themselves."""
    for trial in [trial for trial in journal.trials.values() if is_to_retry(trial, retry_failed)]:
        journal.retry(trial.name)


def credentials_of(plan: SweepPlan) -> dict[str, str]:
    """Return {dotted key: value} of the addresses with credentials that the runs of a sweep share."""
    fields = flat_fields(plan.parent.model_dump(mode="json")) | {"tracking.uri": tracking_uri(plan.parent)}
    return {key: value for key, value in fields.items() if isinstance(value, str) and has_credentials(value)}


def run_tune(plan: SweepPlan, proposals: Proposals, stopping: EarlyStopping, concurrent: int) -> None:
    """Let Ray Tune run trials until there are no more proposals.

    Raises what `proposals` and `stopping` refuse, instead of what Tune makes of it.
    """
    folder = plan.parent.run_dir
    shutil.rmtree(folder / TUNE, ignore_errors=True)  # of an attempt that was cut off: the journal knows all of it
    credentials = credentials_of(plan)
    has_workers = plan.base.scaling.num_workers or "scaling.num_workers" in plan.sweep.space
    manager = start_manager(credentials) if has_workers else None
    try:
        tune.Tuner(
            tune.with_resources(
                tune.with_parameters(train_trial, manager=manager, credentials=credentials),
                trial_resources(concurrent, nodes_here()),
            ),
            tune_config=tune.TuneConfig(
                search_alg=proposals, scheduler=stopping, num_samples=-1, max_concurrent_trials=concurrent
            ),
            run_config=tune.RunConfig(
                name=TUNE,
                storage_path=str(folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_LOST_PROCESSES),
            ),
        ).fit()
    except TuneError:
        if refusal := proposals.refusal or stopping.refusal:
            raise refusal from refusal.__cause__
        raise
    finally:
        if manager is not None:
            ray.kill(manager)
    shutil.rmtree(folder / TUNE, ignore_errors=True)
