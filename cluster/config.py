"""The configuration of a run: one frozen, strict model, resolved once, the same on every rank.

A recipe (YAML) plus `key=value` overrides becomes a `RunConfig`; it is written beside the run and into MLflow, goes
through Ray as a plain dictionary and is validated again in every worker. What the machine decides (world size, device)
is no part of it.

Not here: how recipes are read, overridden and written (`cluster.recipe`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from kdcore.batch import Needs
from kdcore.configs import ModelConfig, OptimizerConfig, ScheduleConfig
from kdcore.errors import Refused
from kdcore.terms import Term, parse_term
from pipelines.cache.columns import Storage
from pipelines.cache.local import is_remote
from pipelines.views.policy import ViewPolicy


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """An image folder `root` with <split>/<class>/<image>.

    held_out: this fraction of the training images, class by class, is kept back for choosing the best checkpoint.
    loader: 'dali'; 'reference' (Pillow, slower, needs no DALI); or 'resident', for images of one size that are not
    resized (CIFAR): all of them lie in the device's memory. decode: where DALI decodes; 'auto' is the GPU
    where the worker has one. num_threads: DALI's threads per worker. mean, std: of RGB in [0,1]; the student's own
    where not given. evaluation_size, crop_pct: how validation images are cut (the shorter side is resized to
    size / crop_pct and the centre is taken).
    """

    root: str
    train_split: str = "train"
    val_split: str = "val"
    held_out: float = Field(default=0.0, ge=0, lt=1)
    loader: Literal["dali", "reference", "resident"] = "dali"
    decode: Literal["auto", "cpu", "gpu"] = "auto"
    num_threads: int = Field(default=2, ge=1)
    prefetch: int = Field(default=2, ge=1)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    evaluation_size: int | None = Field(default=None, ge=1)
    crop_pct: float = Field(default=0.875, gt=0, le=1)


class StudentConfig(ModelConfig):
    """The network to train. classifier 'reused': SimKD's student, whose own classifier is replaced by a projector
    (bottleneck of teacher channels / factor) and the teacher's frozen classifier."""

    classifier: Literal["own", "reused"] = "own"
    factor: int = Field(default=2, ge=1)


class TeacherConfig(ModelConfig):
    """The teacher. source: 'online', it answers beside the student; 'cache', its answers are read from the recipe's
    cache, and its weights are not needed (where they are there, the cache is checked against them)."""

    source: Literal["online", "cache"] = "online"

    @property
    def cached(self) -> bool:
        return self.source == "cache"

    def check(self) -> None:
        if not self.cached:
            super().check()

    @property
    def has_weights(self) -> bool:
        """Whether its weights lie on this machine."""
        files = [path for path in (self.checkpoint, self.class_indices) if path is not None]
        return self.checkpoint is not None and all(Path(path).is_file() for path in files)


class CacheConfig(Storage):
    """A cache of the teacher's outputs in `dir`: a folder, or to read from, a URI such as s3://bucket/folder.

    What the recipe's method reads is stored. taps, and head (what SimKD reuses of a teacher), add to it for the sake
    of other recipes. rows_per_shard: by default what fits in 128 MiB, at most 16,384. batch_size: images of one forward
    pass of the build. trust: read a cache that other versions of the libraries have built. copies_dir: where a machine
    keeps its copy of a remote cache.
    """

    dir: str
    taps: tuple[str, ...] = ()
    head: bool = False
    rows_per_shard: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=128, ge=1)
    trust: bool = False
    copies_dir: str | None = None

    def at(self, base: Path) -> CacheConfig:
        """With its folders absolute."""
        folder = self.dir if is_remote(self.dir) else str((base / self.dir).absolute())
        copies = str((base / self.copies_dir).absolute()) if self.copies_dir else None
        return self.model_copy(update={"dir": folder, "copies_dir": copies})


class TrainConfig(Section):
    """batch_size: images of one optimiser step over all workers.

    micro_batch: images of one forward pass; a worker runs several of them a step and adds their gradients. Batch norm
    and batch-coupled losses see one micro-batch, so a recipe that states it means the same on any number of workers.
    Not given: each worker's share of the batch. precision 'auto': bfloat16 autocast on devices that have it, else
    float32. ema_decay: evaluate and deploy an exponential moving average of the student. clip_norm: of the whole
    gradient. select: which weights are deployed: the last, or the best on held-out training images; 'val' chooses on
    the validation set, which makes its accuracy optimistic.
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = True
    clip_norm: float | None = Field(default=None, gt=0)
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    ema_warmup: bool = False
    select: Literal["last", "held_out", "val"] = "last"
    evaluate_every_epochs: int = Field(default=1, ge=1)
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens where the loss, the gradient or the weights are not finite any more: 'stop' ends the run; 'skip'
    leaves out the steps whose gradient is not finite, and waits for the device at every step to know."""
    max_skipped: float = Field(default=0.01, ge=0, le=1)
    """The share of the run's steps that 'skip' may leave out before the run ends."""
    max_steps: int | None = Field(default=None, ge=1)


class ScalingConfig(Section):
    """Workers and what each of them takes. use_gpu None: GPUs where the cluster has enough of them.

    num_workers 0: one worker in this very process, without a cluster and without checkpoints; for small experiments.
    min_workers: go on with fewer, down to this number, while there is no room for all; looked at again when workers are
    lost, and every resize_seconds. max_failures: how often workers may be lost. timeout_seconds: how long ranks wait
    for each other.
    """

    num_workers: int = Field(default=1, ge=0)
    min_workers: int | None = Field(default=None, ge=1)
    resize_seconds: float = Field(default=60, gt=0)
    use_gpu: bool | None = None
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=1, gt=0)
    max_failures: int = Field(default=2, ge=-1)
    timeout_seconds: float = Field(default=600, gt=0)

    @model_validator(mode="after")
    def _check_range(self) -> ScalingConfig:
        if self.min_workers and self.min_workers > self.num_workers:
            raise Refused(f"min_workers {self.min_workers} is more than num_workers {self.num_workers}; lower it")
        return self


class TrackingConfig(Section):
    """MLflow. uri None: MLFLOW_TRACKING_URI, or else a SQLite store in the output folder.

    every_steps: how often training metrics are logged.
    record_batches: write every step's sample ids and losses beside the run (large; for tests and audits)."""

    uri: str | None = None
    experiment: str = "stillhouse"
    every_steps: int = Field(default=10, ge=1)
    system_metrics: bool = True
    record_batches: bool = False


class CheckpointConfig(Section):
    """every_steps None: at the end of every epoch. keep: how many checkpoints stay. storage: where they lie: a folder,
    or a URI that pyarrow.fs knows, such as s3://bucket/folder; None: with the run, in output_dir."""

    storage: str | None = None
    every_steps: int | None = Field(default=None, ge=1)
    keep: int = Field(default=2, ge=1)


class RunConfig(Section):
    """Everything that decides what a run computes.

    view_seed: of what the data look like (views, order, held-out slice); None: the run's seed. Runs of several seeds
    that read one cache share it.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output_dir: str = "outputs"
    seed: int = Field(default=0, ge=0, lt=2**32)
    view_seed: int | None = Field(default=None, ge=0, lt=2**32)
    data: DataConfig
    views: ViewPolicy
    student: StudentConfig
    teacher: TeacherConfig | None = None
    cache: CacheConfig | None = None
    method: tuple[Annotated[SerializeAsAny[Term], BeforeValidator(parse_term)], ...] = Field(min_length=1)
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    scaling: ScalingConfig = ScalingConfig()
    tracking: TrackingConfig = TrackingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def needs(self) -> Needs:
        return Needs.union(term.needs() for term in self.method if term.weight > 0)

    @property
    def plan_seed(self) -> int:
        """The seed of the view plan."""
        return self.seed if self.view_seed is None else self.view_seed

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.name

    @property
    def storage(self) -> str:
        """Where the checkpoints of runs lie, each run's under its name: a folder or a URI."""
        return self.checkpoint.storage or str(Path(self.output_dir).absolute())

    @model_validator(mode="after")
    def _check_across(self) -> RunConfig:
        train, views = self.train, self.views
        if all(term.weight == 0 for term in self.method):
            raise Refused("method: every term has weight 0, so nothing would be learnt; give one a positive weight")
        if self.teacher is None and (self.needs.teacher or self.student.classifier == "reused"):
            wants = [t.term for t in self.method if t.needs().teacher] or ["student.classifier: reused"]
            raise Refused(f"{', '.join(wants)} needs a teacher; add a 'teacher:' section with a model")
        if self.teacher and self.teacher.cached:
            require_cache(self.cache, views)
        if train.micro_batch and train.batch_size % train.micro_batch:
            raise Refused(
                f"train.batch_size {train.batch_size} is no multiple of train.micro_batch {train.micro_batch}; "
                f"take {train.batch_size // train.micro_batch * train.micro_batch or train.micro_batch}"
            )
        if self.scaling.min_workers and not train.micro_batch:
            raise Refused(
                "scaling.min_workers lets the number of workers change, and with it what one forward pass holds; set "
                "train.micro_batch"
            )
        micro_batch_size(train, max(1, self.scaling.num_workers), views.mixes)
        if self.needs.hard_labels and views.mixes:
            coupled = [t.term for t in self.method if t.needs().hard_labels]
            raise Refused(
                f"{', '.join(coupled)} has no meaning for mixed images; set views.mixup and views.cutmix to 0"
            )
        if train.select == "held_out" and self.data.held_out == 0:
            raise Refused("train.select is held_out, but data.held_out is 0; keep back a fraction such as 0.02")
        if (self.data.mean is None) != (self.data.std is None):
            raise Refused("data.mean and data.std belong together; give both or neither")
        return self


def require_cache(cache: CacheConfig | None, views: ViewPolicy) -> CacheConfig:
    """The recipe's cache section. Refused where there is none, or where the number of views is open."""
    if cache is None:
        raise Refused("the recipe has no cache; add a 'cache:' section, such as {dir: outputs/cache}")
    if views.num_views is None:
        raise Refused(
            "a cache holds a fixed number of views, but views.num_views is open; set it, such as views.num_views=50 "
            "(a run then shows view `epoch mod num_views`)"
        )
    return cache


def micro_batch_size(train: TrainConfig, num_workers: int, mixes: bool) -> int:
    """The micro-batch that this number of workers runs; Refused with the remedy where the batch cannot be shared."""
    micro_batch = train.micro_batch
    if micro_batch is None:
        if train.batch_size % num_workers:
            raise Refused(
                f"train.batch_size {train.batch_size} cannot be shared by {num_workers} workers; take a multiple, "
                "or set train.micro_batch"
            )
        micro_batch = train.batch_size // num_workers
    if train.batch_size // micro_batch < num_workers:
        raise Refused(
            f"train.batch_size {train.batch_size} is {train.batch_size // micro_batch} micro-batches of {micro_batch}, "
            f"fewer than scaling.num_workers {num_workers}; take a smaller train.micro_batch or fewer workers"
        )
    if mixes and micro_batch % 2:
        raise Refused(
            f"mixed images come in pairs, so the micro-batch must be even, not {micro_batch}; change train.micro_batch "
            "or train.batch_size"
        )
    return micro_batch
