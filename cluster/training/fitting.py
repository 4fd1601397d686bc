"""The driver of a run's workers: Ray Train, from plain values only.

Neither torch nor MLflow nor the recipe's sections are imported here, so that a process that only waits for workers,
such as each trial of a sweep, holds no more than Ray.

Not here: what is checked, written and tracked before and afterwards (`cluster.training.launch`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from pyarrow.fs import LocalFileSystem
from ray.train.constants import RAY_TRAIN_ENABLE_STATE_TRACKING
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.constants import ENABLE_NCCL_HANG_DETECTOR_ENV_VAR, NCCL_RAS_CONFIRM_DURATION_S_ENV_VAR
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.error_text import last_line
from cluster.nodes.errors import crash_of
from cluster.nodes.versions import refuse_other_versions
from cluster.provenance import JOB_VARIABLE
from cluster.tracking.folder import RunFolder
from cluster.training.checkpoint_files import checkpoint_place, refusing_silence
from cluster.training.placement import Placement
from cluster.training.process_group import ProcessGroup
from cluster.training.recovery import Recovery, failure_of, leave_out_broken, restore_checkpoint_list
from cluster.training.worker_task import WorkerTask
from kdcore.errors import ClusterFailed
from kdcore.importing import importing


@dataclass(frozen=True)
class Job:
    """What the driver of a run's workers knows of it.

    each: {resource: amount} of a worker; task: what every worker gets; the rest as in the recipe.
    """

    name: str
    run_dir: str
    storage: str
    keep: int
    each: dict[str, float]
    num_workers: int
    min_workers: int | None
    max_failures: int
    timeout_seconds: float
    patience_seconds: float
    resize_seconds: float
    task: WorkerTask

    @property
    def uses_gpu(self) -> bool:
        """Whether each worker takes a GPU, or a part of one."""
        return self.each.get("GPU", 0) > 0


class Trainer(DataParallelTrainer):
    """Ray Train's trainer, whose torch is imported only by its workers.

    Without Ray Data, whose manager is a process of 115 MB per run, even where it is given no data set.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if not isinstance(one, DatasetsCallback)]


def train(payload: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank of a run, on a node with the driver's libraries; return the run's final metrics (rank 0's)."""
    task = WorkerTask(**payload)
    refuse_other_versions(task.versions)
    with importing("cluster.training.worker"):
        from ray.train.torch.config import TorchConfigContextManager

        from cluster.training.worker import train_worker

    with TorchConfigContextManager():
        return train_worker(task)


def set_up_ray_train(job: Job) -> None:
    """Set the environment variables that Ray Train reads; those that are already set stay, except the first."""
    # Its own synchronisation of the ranks (at every checkpoint) would otherwise wait forever.
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(job.timeout_seconds)
    if JOB_VARIABLE in os.environ or (ray.is_initialized() and sum(node["Alive"] for node in ray.nodes()) > 1):
        # The dashboard's page of runs costs a process of 115 MB per cluster: not where one machine trains by itself.
        os.environ.setdefault(RAY_TRAIN_ENABLE_STATE_TRACKING, "1")
    if job.uses_gpu:
        # Writes where each rank hangs, before the process group's own timeout ends the run; needs NCCL's `ncclras`.
        os.environ.setdefault(ENABLE_NCCL_HANG_DETECTOR_ENV_VAR, "1")
        os.environ.setdefault(NCCL_RAS_CONFIRM_DURATION_S_ENV_VAR, str(job.timeout_seconds / 2))


def fit(job: Job, board: Any) -> dict[str, Any]:
    """Train to the end, with Ray Train; return what rank 0 returned. board: where the workers report progress."""
    crash_file = RunFolder(Path(job.run_dir)).crash
    with refusing_silence(job.storage):
        filesystem, path = checkpoint_place(job.storage, job.name)
        folder = Path(path) if isinstance(filesystem, LocalFileSystem) else None
        if folder:
            restore_checkpoint_list(folder)
        else:
            leave_out_broken(filesystem, path)
    set_up_ray_train(job)
    trainer = Trainer(
        train,
        train_loop_config=vars(replace(job.task, board=board)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(job.min_workers, job.num_workers) if job.min_workers else job.num_workers,
            use_gpu=job.uses_gpu,
            resources_per_worker=job.each,
            elastic_resize_monitor_interval_s=job.resize_seconds,
        ),
        backend_config=ProcessGroup("nccl" if job.uses_gpu else "gloo", int(job.timeout_seconds)),
        run_config=ray.train.RunConfig(
            name=job.name,
            storage_path=job.storage,
            # Of the controller's own errors, waiting for a place is retried: `Placement` ends it.
            failure_config=ray.train.FailureConfig(max_failures=job.max_failures, controller_failure_limit=-1),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=job.keep),
            callbacks=[Recovery(folder), Placement(job, job.each, board, crash_file)],
        ),
    )
    try:
        return trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise failure_of(error, job.num_workers, board, crash_file) from error
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:  # of Ray Train's controller
        cause = crash_of(error, None) or last_line(error)
        raise ClusterFailed(f"Ray Train's controller, which runs next to the driver, ended: {cause}") from error
