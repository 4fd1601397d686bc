"""The sections of a run's configuration that say how it goes: steps, workers, tracking and checkpoints.

Not here: the sections of what it reads, its networks, images and cache (`cluster.recipe.sections`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdcore.configs import PATH
from kdcore.errors import Refused
from kdcore.section import Section, refuse_idle


class TrainConfig(Section):
    """How long and in which batches to train, in which precision, and which weights to keep."""

    epochs: int = Field(ge=1)
    """Passes over the training images."""
    batch_size: int = Field(ge=1)
    """Images of one optimiser step over all workers."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Images of one forward pass; a worker runs several of them a step and adds their gradients. Batch norm and
    batch-coupled losses see one micro-batch, so a recipe that states it means the same on any number of workers. Not
    given: each worker's share of the batch."""
    last_batch: Literal["drop", "keep"] = "drop"
    """What happens to the images left over at an epoch's end. `drop`: they are skipped, different ones in each epoch.
    `keep`: they form a last, smaller batch, whose gradient is the mean over them, at the same learning rate; what
    batch norm and losses that compare images see is then smaller, too."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the networks compute in, and the layers of losses. `auto`: bfloat16 autocast on GPUs that have it, else
    float32. Losses themselves are computed in float32 throughout, and so are the embeddings of `crd` and `itrd`, of
    whose products they are made."""
    channels_last: bool = True
    """Whether images and convolutions lie in memory channels-last, which is faster on most devices."""
    compile: bool = False
    """Whether to run the step through `torch.compile`."""
    cuda_graph: bool = False
    """Whether a step's forward and backward pass run as one CUDA graph, captured after the first few steps, once no
    term's weight is warming up or decaying. Pays off for small images, where launching kernels takes longer than
    running them. Requires one worker, one teacher, one micro-batch per step, and terms that draw no random numbers per
    sample. Without effect on a CPU."""
    deterministic: bool = True
    """Whether to take kernels that give the same bits twice; false is faster on GPUs."""
    clip_norm: float | None = Field(default=None, gt=0)
    """The largest norm of the whole gradient; a larger one is scaled down to it. Not given: no clipping."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """The decay per step of an exponential moving average of the student, which is then what is evaluated and deployed.
    Not given: no average."""
    ema_warmup: bool = False
    """Whether the average's decay rises to `ema_decay` over the first steps, as in timm. Without effect where there is
    no average."""
    select: Literal["last", "held_out", "val"] = "last"
    """Which weights are deployed: the last, or the best by top-1 (by mAP where images have several labels) on held-out
    training images (`held_out`) or on the validation set (`val`, which makes its accuracy optimistic)."""
    patience_epochs: int | None = Field(default=None, ge=1)
    """Epochs without a better score of the images that `select` names, after which the run ends; the best weights are
    deployed. With `held_out`, what is reported of the validation set stays a fair estimate, at the price of images that
    are not trained on; with `val`, the accuracy reported is the best of many, and optimistic. The schedule stays that
    of `epochs`. Not given: the run goes to its end."""
    evaluate_every_epochs: int = Field(default=1, ge=1)
    """Epochs from one evaluation to the next; the end of the run is evaluated in any case."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens when the loss, the gradient or the weights stop being finite: 'stop' ends the run; 'skip' leaves out
    steps whose gradient is not finite, which requires waiting for the device in every step."""
    max_skipped: float = Field(default=0.01, ge=0, le=1)
    """The share of the run's steps that 'skip' may leave out before the run ends. Without effect with 'stop'."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps after which the run ends, however many epochs are left; the schedule stays that of `epochs`."""

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the optimiser steps of a whole run."""
        steps = steps_per_epoch * self.epochs
        return min(steps, self.max_steps or steps)


class ScalingConfig(Section):
    """How many workers train, and what each of them takes of the cluster."""

    num_workers: int = Field(default=1, ge=0)
    """Number of workers. 0: train in this process, without a Ray cluster: for a laptop, a notebook or a debugger.
    Progress, checkpoints and exact resumption are the same."""
    min_workers: int | None = Field(default=None, ge=1)
    """Go on with fewer workers, down to this number, while there is no room for all. Not given: always
    `num_workers`."""
    resize_seconds: float = Field(default=60, gt=0)
    """With `min_workers`: seconds between checks for room for more workers."""
    use_gpu: bool | None = None
    """Whether workers use GPUs. Not given: yes, if the cluster has enough of them."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """CPU cores that each worker takes."""
    gpus_per_worker: float = Field(default=1, gt=0)
    """GPUs that each worker takes where it takes any: 1, or a part of one, so that the runs of a sweep share a GPU; the
    workers of one run cannot. Runs that share one take turns on it, unless NVIDIA's MPS is started on its node
    (`nvidia-cuda-mps-control -d`): small networks' kernels then run side by side."""
    max_failures: int = Field(default=2, ge=-1)
    """How often workers may be lost before the run fails; -1: any number of times."""
    timeout_seconds: float = Field(default=600, gt=0)
    """Seconds that workers wait for one another before they are considered lost."""
    patience_seconds: float = Field(default=1200, gt=0)
    """Seconds that a run waits for room on the cluster before it fails, while nodes start or others end; what it waits
    for is said after ten seconds."""

    @property
    def num_ranks(self) -> int:
        """How many processes train: the workers, or this process."""
        return max(1, self.num_workers)

    @model_validator(mode="after")
    def _check_range(self) -> ScalingConfig:
        if self.min_workers is None:
            refuse_idle(self, ["resize_seconds"], "min_workers")
        if self.min_workers and self.min_workers > self.num_workers:
            raise Refused(f"min_workers {self.min_workers} is more than num_workers {self.num_workers}; lower it")
        if self.gpus_per_worker > 1:
            raise Refused(
                f"gpus_per_worker {self.gpus_per_worker:g}: a worker computes on one GPU; take 1, and more num_workers"
            )
        if self.gpus_per_worker < 1 and self.num_workers > 1 and self.use_gpu is not False:
            raise Refused(
                f"gpus_per_worker {self.gpus_per_worker:g} would put {self.num_workers} workers of a run on one GPU, "
                "which NCCL refuses; take 1, or num_workers: 1 (the runs of a sweep then share a GPU)"
            )
        return self


class TrackingConfig(Section):
    """What is recorded of a run, and where."""

    uri: str | None = None
    """MLflow's address. Not given: the environment's MLFLOW_TRACKING_URI, else that of the run's first start, or else a
    SQLite store in `output_dir`. Recipes written by a run omit it; the run's folder has it in `mlflow_store`. Passwords
    are never stored: to resume the run, set them in the environment again."""
    experiment: str = "stillhouse"
    """The experiment in MLflow that the run belongs to."""
    every_steps: int = Field(default=10, ge=1)
    """Optimiser steps between two rows of training metrics."""
    system_metrics: bool = True
    """Whether to record the machine's use of CPU, memory, disk, network and GPU."""
    also: tuple[str, ...] = ()
    """Trackers in addition to MLflow: `tensorboard` writes event files into the run's folder; further ones can be
    registered (`cluster.tracking.tracker`)."""
    record_batches: bool = False
    """Whether to write every step's sample ids and losses into the run's folder; large, for tests and audits."""


class CheckpointConfig(Section):
    """When checkpoints are written, where, and how many stay."""

    storage: Annotated[str | None, PATH] = None
    """Where checkpoints lie: a folder, or a URI that `pyarrow.fs` knows, such as s3://bucket/folder. Not given: with
    the run, in `output_dir`."""
    every_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps from one checkpoint to the next. Not given: the steps of an epoch."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest checkpoints stay."""
