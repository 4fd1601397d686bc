"""The configuration of a run: one frozen, strict model, resolved once, the same on every rank.

A recipe (YAML) plus `key=value` overrides becomes a `RunConfig`; it is written beside the run and into MLflow, goes
through Ray as a plain dictionary and is validated again in every worker. What the machine decides (world size, device)
is no part of it.
"""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

from cluster.cache_config import CacheConfig, TeacherConfig, require_cache
from kdcore.batch import Needs
from kdcore.configs import ModelConfig, OptimizerConfig, ScheduleConfig
from kdcore.terms import Term, parse_term
from pipelines.cache.local import is_remote
from pipelines.views.plan import ViewPolicy

Model = TypeVar("Model", bound=BaseModel)


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
            raise ValueError(f"min_workers {self.min_workers} is more than num_workers {self.num_workers}; lower it")
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
            raise ValueError("method: every term has weight 0, so nothing would be learnt; give one a positive weight")
        if self.teacher is None and (self.needs.teacher or self.student.classifier == "reused"):
            wants = [t.term for t in self.method if t.needs().teacher] or ["student.classifier: reused"]
            raise ValueError(f"{', '.join(wants)} needs a teacher; add a 'teacher:' section with a model")
        if self.teacher and self.teacher.cached:
            require_cache(self.cache, views)
        if train.micro_batch and train.batch_size % train.micro_batch:
            raise ValueError(
                f"train.batch_size {train.batch_size} is no multiple of train.micro_batch {train.micro_batch}; "
                f"take {train.batch_size // train.micro_batch * train.micro_batch or train.micro_batch}"
            )
        if self.scaling.min_workers and not train.micro_batch:
            raise ValueError(
                "scaling.min_workers lets the number of workers change, and with it what one forward pass holds; set "
                "train.micro_batch"
            )
        check_workers(train, max(1, self.scaling.num_workers), views.mixes)
        if self.needs.hard_labels and views.mixes:
            coupled = [t.term for t in self.method if t.needs().hard_labels]
            raise ValueError(
                f"{', '.join(coupled)} has no meaning for mixed images; set views.mixup and views.cutmix to 0"
            )
        if train.select == "held_out" and self.data.held_out == 0:
            raise ValueError("train.select is held_out, but data.held_out is 0; keep back a fraction such as 0.02")
        if (self.data.mean is None) != (self.data.std is None):
            raise ValueError("data.mean and data.std belong together; give both or neither")
        return self


def check_workers(train: TrainConfig, num_workers: int, mixes: bool) -> int:
    """The micro-batch that this number of workers runs; ValueError with the remedy where the batch cannot be shared."""
    micro_batch = train.micro_batch
    if micro_batch is None:
        if train.batch_size % num_workers:
            raise ValueError(
                f"train.batch_size {train.batch_size} cannot be shared by {num_workers} workers; take a multiple, "
                "or set train.micro_batch"
            )
        micro_batch = train.batch_size // num_workers
    if train.batch_size // micro_batch < num_workers:
        raise ValueError(
            f"train.batch_size {train.batch_size} is {train.batch_size // micro_batch} micro-batches of {micro_batch}, "
            f"fewer than scaling.num_workers {num_workers}; take a smaller train.micro_batch or fewer workers"
        )
    if mixes and micro_batch % 2:
        raise ValueError(
            f"mixed images come in pairs, so the micro-batch must be even, not {micro_batch}; change train.micro_batch "
            "or train.batch_size"
        )
    return micro_batch


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """The configuration of a YAML recipe with `dotted.key=value` overrides; ValueError in one line for what is wrong.

    A recipe may start from another one with `base: other.yaml` (or a list of them, later ones winning); mappings are
    merged, everything else is replaced.
    """
    return configure(read_recipe(Path(path)), overrides, str(path))


def configure(recipe: Mapping[str, Any], overrides: Sequence[str], source: str) -> RunConfig:
    """The configuration of a recipe's mapping with overrides; source names the recipe in errors."""
    data = copy.deepcopy(dict(recipe))
    for override in overrides:
        apply_override(data, override)
    return parse(data, source)


def read_recipe(path: Path) -> dict[str, Any]:
    """The mapping of a recipe file with its bases merged in."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=3)
        raise ValueError(f"{path}: no such recipe" + (f"; did you mean {', '.join(near)}?" if near else ""))
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a recipe is a mapping of keys to values")
    bases = data.pop("base", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merge(merged, read_recipe(path.parent / base))
    return merge(merged, data)


def merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, in place: mappings key by key, other values replaced."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            merge(below[key], value)
        else:
            below[key] = value
    return below


def apply_override(data: dict[str, Any], override: str) -> None:
    """Sets one `dotted.key=value` in place; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override {override!r}: write key=value, such as train.epochs=5")
    assign(data, key, yaml.safe_load(text))


def assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Sets one field of nested values by its dotted key, in place; list items are numbered from 0."""
    *parents, last = key.split(".")
    node: Any = data
    for part in parents:
        node = item(node, part, key) if isinstance(node, list) else node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise ValueError(f"{key}: {part!r} is a value, it has no keys below it")
    if isinstance(node, list):
        item(node, last, key)
        node[int(last)] = value
    else:
        node[last] = value


def item(items: list[Any], number: str, key: str) -> Any:
    """An item of a list by its number in a dotted key. ValueError where there is none."""
    if not number.isdecimal() or int(number) >= len(items):
        raise ValueError(f"{key}: {number!r} is no item of a list of {len(items)}; they are numbered from 0")
    return items[int(number)]


def parse(data: Mapping[str, Any], source: str = "recipe") -> RunConfig:
    """A RunConfig from a mapping; ValueError in one line, naming the field and the nearest valid ones."""
    return validated(RunConfig, data, source)


def validated(model: type[Model], data: Mapping[str, Any], source: str) -> Model:
    """A model from a mapping, with errors as for `parse`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{source}: {'; '.join(_sentences(error, model))}") from None


def _sentences(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _fields_at(model, problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=3, cutoff=0.5) or known
            yield f"unknown key {place!r}" + (f"; did you mean {', '.join(near)}?" if near else "")
        elif problem["type"] == "missing":
            yield f"{place} is missing"
        elif problem["type"] == "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            yield f"{place}: {message}" if place else message
        else:
            yield f"{place}: {problem['msg']} (got {problem['input']!r})"


def _fields_at(model: Any, location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        model = next((a for a in _options(field.annotation) if hasattr(a, "model_fields")), None)
    return sorted(getattr(model, "model_fields", {}))


def _options(annotation: Any) -> Iterator[Any]:
    yield annotation
    yield from getattr(annotation, "__args__", ())


def to_yaml(config: RunConfig) -> str:
    """The resolved recipe: every field with its value; `load_recipe` reads it back to an equal RunConfig."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def absolute(config: RunConfig, base: Path) -> RunConfig:
    """The configuration as its workers need it: local paths absolute, for their working directory is another one, and
    the MLflow store that MLFLOW_TRACKING_URI names where the recipe names none."""

    def fixed(model: Any) -> Any:
        paths = {name: str(base / value) for name in ("checkpoint", "class_indices") if (value := getattr(model, name))}
        return model.model_copy(update=paths)

    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    storage = config.checkpoint.storage
    if storage and not is_remote(storage):
        storage = str((base / storage).absolute())
    return config.model_copy(
        update={
            "tracking": config.tracking.model_copy(update={"uri": uri}),
            "output_dir": str((base / config.output_dir).absolute()),
            "data": config.data.model_copy(update={"root": str((base / config.data.root).absolute())}),
            "student": fixed(config.student),
            "teacher": fixed(config.teacher) if config.teacher else None,
            "cache": config.cache.at(base) if config.cache else None,
            "checkpoint": config.checkpoint.model_copy(update={"storage": storage}),
        }
    )
