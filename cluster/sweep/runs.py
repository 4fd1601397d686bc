"""What needs torch, MLflow and the recipe in a sweep's runs: what a trial gets, and how its run begins and ends.

Not here: the process that does this for all trials (`cluster.sweep.manager`), and what a trial's own process does
(`cluster.sweep.trial`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cluster.batches import Batches
from cluster.images import open_data
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import assign, parse
from cluster.sweep.trial import RunValidations, TrialTask
from cluster.tracking.delivery import deliver_rest
from cluster.tracking.fields import flat_fields
from cluster.tracking.folder import RunFolder
from cluster.tracking.run import close_run, open_run
from cluster.training.check import check_run
from cluster.training.fitting import Job
from cluster.training.launch import RunResult, continued, has_checkpoint, job_of, launch
from kdcore.credentials import public, without_credentials
from pipelines.files import write_text
from pipelines.leases import Fence


def task_of(name: str, config: RunConfig, command: str, tags: Mapping[str, str]) -> TrialTask:
    """Return what the process of the trial `name` gets."""
    scaling = config.scaling
    in_one_process = {
        "num_cpus": scaling.cpus_per_worker,
        "num_gpus": scaling.gpus_per_worker if scaling.use_gpu else 0,
    }
    return TrialTask(
        name=name,
        config=public(config.model_dump(mode="json")),  # Tune writes it to files
        command=command,
        tags=dict(tags),
        run_dir=str(config.run_dir),
        validations=validations_of(config),
        resources=None if scaling.num_workers else in_one_process,
    )


def validations_of(config: RunConfig) -> RunValidations:
    """Return where a run's validations will be found."""
    train = config.train
    num_images = len(open_data(config, reuse_index=True)["train"])
    steps_per_epoch = Batches.of(config, num_images).steps_per_epoch
    return RunValidations(
        path=str(RunFolder.of(config).metrics),
        steps_per_epoch=steps_per_epoch,
        last_step=train.total_steps(steps_per_epoch),
        select=train.select,
        patience_epochs=train.patience_epochs,
        evaluate_every_epochs=train.evaluate_every_epochs,
    )


def config_of(task: TrialTask, credentials: Mapping[str, str]) -> RunConfig:
    """Return the recipe of a trial, with the credentials in its addresses."""
    plain = copy.deepcopy(task.config)
    for key, address in credentials.items():
        if flat_fields(plain).get(key) == without_credentials(address):
            assign(plain, key, address)
    return parse(plain)


def launch_trial(task: TrialTask, credentials: Mapping[str, str]) -> None:
    """Train the trial's run in this process."""
    launch(config_of(task, credentials), command=task.command, tags=task.tags)


def open_trial(task: TrialTask, credentials: Mapping[str, str], fence: Fence) -> Job | None:
    """Check the trial's run, make its folder and its entries in the trackers; None where it is finished already.

    fence: of the lease that the trial's process has on the run's folder.
    """
    config = config_of(task, credentials)
    if continued(config) is not None:
        deliver_rest(config)
        return None
    folder = RunFolder.of(config)
    folder.error.unlink(missing_ok=True)
    folder.claim(config, check_run(config), has_checkpoint(config))
    open_run(config, task.command, task.tags)
    return job_of(config, fence)


def finish_trial(
    task: TrialTask, credentials: Mapping[str, str], final: Mapping[str, Any], wall_seconds: float
) -> None:
    """Write the result of the trial's run. final: what rank 0 returned; wall_seconds: of the whole run."""
    config = config_of(task, credentials)
    close_run(config, "FINISHED", asdict(RunResult.of(config, final, wall_seconds)))


def fail_trial(task: TrialTask, credentials: Mapping[str, str], error: str | None) -> None:
    """Write down how the trial's run ended. error: the line that ended it; None for a fault of the program."""
    config = config_of(task, credentials)
    if error is not None:
        write_text(RunFolder.of(config).error, error)
    close_run(config, "FAILED" if error is not None else "KILLED")
