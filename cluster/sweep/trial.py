"""One trial of a sweep, in a process of its own: a run as any other, whose validations Ray Tune hears about."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.batches import Batches
from cluster.config import RunConfig
from cluster.images import open_data
from cluster.polling import polling
from cluster.recipe import assign, parse
from cluster.tracking.folder import RunFolder, flat_fields
from cluster.tracking.journal import read_journal
from cluster.training.crash import crash_of, death_of
from cluster.training.launch import launch
from cluster.training.recovery import last_line
from cluster.training.selection import step_of_end
from kdcore.credentials import without_credentials
from kdcore.errors import ClusterFailed, Refused, RunFailed

POLL_SECONDS = 0.2


def train_trial(payload: dict[str, Any], credentials: Mapping[str, str]) -> None:
    """Train the payload's run. What it raises is its result; what ends this process Tune tries again.

    credentials: {dotted key: value} of the addresses in its recipe with what was cut out of the payload.
    """
    payload = copy.deepcopy(payload)  # Tune writes its own with every report
    for key, address in credentials.items():
        if flat_fields(payload["config"]).get(key) == without_credentials(address):
            assign(payload["config"], key, address)
    config = parse(payload["config"])
    try:
        with reporting_validations(config, tune.report):
            if config.scaling.num_workers:
                launch_run(payload)
            else:
                ray.get(task_for(config).remote(payload))
    except Exception as error:
        cause = getattr(error, "cause", error)
        tune.report({"error": error_text(cause), "is_lost": is_loss(cause)})


def launch_run(payload: dict[str, Any]) -> None:
    """Train the payload's run, here or on its workers."""
    launch(parse(payload["config"]), command=payload["command"], tags=payload["tags"])


def task_for(config: RunConfig) -> Any:
    """Return `launch_run` as a Ray task, in another process: beside Tune there is no place for a run of num_workers 0.

    Outside of the resources that Tune gives a trial, which has none to give, as Ray Train's workers are.
    """
    scaling = config.scaling
    return ray.remote(launch_run).options(
        num_cpus=scaling.cpus_per_worker,
        num_gpus=scaling.gpus_per_worker if scaling.use_gpu else 0,
        max_retries=0,
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),
    )


def is_loss(error: BaseException) -> bool:
    """Return whether a run ended for the fault of what it ran on: another start may come to its end."""
    return isinstance(error, ClusterFailed) or (death_of(error) is not None and not isinstance(error, RayTaskError))


def error_text(error: BaseException) -> str:
    """Return an error's last line, with its kind where that says more."""
    kind = "" if isinstance(error, Refused | RunFailed) else f"{type(error).__name__}: "
    return crash_of(error, None) or kind + last_line(error)


@contextmanager
def reporting_validations(config: RunConfig, report: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Report every validation of a run once and in order, from a thread, until the run has ended.

    They are read from the run's own journal, where each is before anything follows from it. Those of an attempt that
    was cut off are reported too, as if for the first time.
    """
    reported = 0

    def look() -> None:
        nonlocal reported
        for row in validations(config):
            if row["step"] > reported:
                reported = row["step"]
                report(row)

    with polling(look, POLL_SECONDS):
        yield


def is_of_student(metric: str) -> bool:
    """Return whether a metric is a validation of the student on held-out images, not one of its teacher."""
    return metric.startswith("held_out/") and not metric.startswith("held_out/teacher_")


def validations(config: RunConfig) -> Iterator[dict[str, Any]]:
    """Yield the validations in a run's journal: epoch, step, whether it is the last, and every metric."""
    rows = [row for row in read_journal(RunFolder.of(config).metrics) if any(map(is_of_student, row))]
    if rows:
        num_images = len(open_data(config, reuse_index=True)["train"])
        steps_per_epoch = Batches.of(config, num_images, max(1, config.scaling.num_workers)).steps_per_epoch
        last_step = min(steps_per_epoch * config.train.epochs, config.train.max_steps or float("inf"))
        if config.train.patience_epochs is not None:
            last_step = min(last_step, step_of_end(config, steps_per_epoch, rows) or last_step)
        for row in rows:
            metrics = {name: value for name, value in row.items() if name.startswith(("held_out/", "val/"))}
            epoch = row["step"] / steps_per_epoch
            yield {"epoch": epoch, "step": row["step"], "last": row["step"] >= last_step, **metrics}
