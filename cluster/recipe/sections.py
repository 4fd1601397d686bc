"""The sections of a run's configuration, each a frozen, strict model whose fields say what they mean.

The text below a field is its description: `python -m ops fields` shows it, and so do the comments of
`python -m ops recipes NAME` and the reference page.

Not here: what must hold between sections (`cluster.recipe.config`), how recipes are read (`cluster.recipe.reading`),
and the sections of the packages below (`kdcore.configs`, `kdcore.terms`, `pipelines.views.policy`,
`pipelines.cache.columns`).
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from kdcore.configs import PATH, ModelConfig
from kdcore.credentials import without_credentials
from kdcore.errors import Refused
from kdcore.located import local_file
from kdcore.named_models import LOCAL_DIR, module_of
from kdcore.section import Section, refuse_idle
from pipelines.cache.columns import Storage
from pipelines.data.broken import Check, OnBroken
from pipelines.data.images import MAX_PIXELS
from pipelines.views.sampling import Sampling


class DataConfig(Section):
    """The images: where they lie, in whatever container, and how they are read."""

    root: Annotated[str, PATH]
    """A folder, or a URI such as `s3://bucket/folder`. It holds each split as class folders `<split>/<class>/<image>`,
    WebDataset tars, plain or compressed, Parquet with an image column, a CSV of path and label (in a folder only), or a
    pack (`python -m ops data pack`), which an object store serves fastest. Images without labels serve methods that
    read none."""
    train_split: str = "train"
    """The split of the training images: a folder below `root`, or a word in its files' names."""
    val_split: str = "val"
    """The split of the validation images: a folder below `root`, or a word in its files' names."""
    multi_label: bool = False
    """Whether an image may show several classes, or none: a column `labels` of a CSV holds their names with | between
    them, one of lists in Parquet their names or numbers. Each class is then a yes or no: the method has `bce` for the
    labels and `binary_kd` for a teacher's logits, and networks are judged by mAP."""
    images_per_class: int | None = Field(default=None, ge=1)
    """How many training images of each class are used, chosen by the view seed; fewer are part of more. Not given:
    all."""
    sampling: Sampling = "images"
    """How often the images of each class are shown. `images`: each once an epoch. `classes`: every class equally often,
    whatever its size (class-balanced sampling); `sqrt`: in proportion to the square root of its size, half-way between.
    The length of an epoch stays the same. Each time an image is shown, it is in its next view, and it is not repeated
    before all others of its class were shown. Partners for mixing are drawn from all images, whatever the sampling."""
    held_out: float = Field(default=0.0, ge=0, lt=1)
    """The fraction of each class's training images that is held out for choosing the best checkpoint: of a class with
    two images or more at least one and never all, of a class with one image none."""
    loader: Literal["dali", "reference", "resident"] = "dali"
    """What decodes and augments: `dali`; `reference`, which is Pillow, slower, and needs no DALI; or `resident`, which
    holds all images in the device's memory, decoded and resized once, and takes images of one size that every view
    shows whole or by a padded crop, such as CIFAR's."""
    decode: Literal["auto", "cpu", "gpu"] = "auto"
    """Where DALI decodes. Choose `gpu` only if `doctor` finds that it decodes correctly there; `auto` means the CPU
    until issue 55 of nvImageCodec is closed."""
    num_threads: int = Field(default=2, ge=1)
    """CPU threads of each worker that read and decode."""
    prefetch: int = Field(default=2, ge=2)
    """Batches that each worker prepares ahead of the one in use."""
    mean: tuple[float, float, float] | None = None
    """The mean of R, G and B in [0, 1] that images are normalised by. Not given: the student network's own."""
    std: tuple[float, float, float] | None = None
    """The standard deviation of R, G and B in [0, 1] that images are normalised by. Not given: the student network's
    own."""
    evaluation_size: int | None = Field(default=None, ge=1)
    """The side of validation images in pixels. Not given: `views.size`."""
    evaluation_batch: int | None = Field(default=None, ge=1)
    """How many validation images a network sees at once, which changes no result beyond rounding. Not given: as many as
    have the pixels of 128 images of 224 x 224, at most 1,024; fewer if a worker's share of memory is below 13 GB."""
    crop_pct: float = Field(default=0.875, gt=0, le=1)
    """How validation images are cropped: the shorter side is resized to size / crop_pct, then the centre is taken. With
    `views.crop: padded`, 1 is used instead."""
    evaluation_interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How validation images are resized, for the teacher as for the student."""
    copies_dir: Annotated[str | None, PATH] = None
    """The folder in which a node keeps what it has read of images in an object store. Not given: one of this
    user's in the machine's temporary folder, `stillhouse-images-UID`."""
    copies_bytes: int | None = Field(default=None, ge=0)
    """The most bytes that a node keeps in `copies_dir`. Not given: half of what is free when the first copy starts."""
    window_shards: int | None = Field(default=None, ge=1)
    """For images in an object store that do not fit a node's disk: shards (files of a pack or tars) that are shuffled
    together, one such window after the other, so that a node needs room for two windows. Not given: all images are
    shuffled together."""
    on_broken: OnBroken = "refuse"
    """What is done about broken images: `refuse` them by name, or `skip` them. Up to 1 % of a split is then left out
    when it is indexed, and as many that break later are shown as black pictures; all are listed with the run."""
    check: Check = "headers"
    """What is read of each image at indexing: its `headers`, or all of it (`decode`), which also finds damaged pixels
    and takes one core 0.2 ms for a JPEG of 224x224, 1.3 ms for one of 500x375."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Pixels that an image may have; a larger one, which takes seconds to decode, counts as broken."""

    @model_validator(mode="after")
    def _check_idle(self) -> DataConfig:
        if self.loader != "dali" and self.decode == "gpu":  # `cpu` is what the others do
            refuse_idle(self, ["decode"], "loader: dali")
        return self

    @property
    def name(self) -> str:
        """The name of the images: the last part of their location."""
        return PurePath(without_credentials(self.root).partition("?")[0]).name


class StudentConfig(ModelConfig):
    """The network to train."""

    section: ClassVar[str] = "student"
    fresh: ClassVar[str] = "give student.new_head=true, and its classifier starts afresh"

    classifier: Literal["own", "reused"] = "own"
    """`own` trains the network's classifier. `reused` is SimKD's student: a projector and the teacher's frozen
    classifier take its place."""
    factor: int = Field(default=2, ge=1)
    """With `classifier: reused`, the projector's bottleneck has the teacher's channels divided by this."""


class TeacherConfig(ModelConfig):
    """The network to learn from."""

    section: ClassVar[str] = "teacher"
    makes_one: ClassVar[str] = "; `python -m ops train teacher data.root=FOLDER` makes one"
    may_start_fresh: ClassVar[bool] = False
    fresh: ClassVar[str] = (
        "a teacher has to know the data's classes: fine-tune it on them first (python -m ops train teacher "
        "data.root=FOLDER student.model=NAME student.pretrained=false student.checkpoint=FILE student.new_head=true), "
        "and give that run's student.safetensors as teacher.checkpoint"
    )

    source: Literal["online", "cache"] = "online"
    """`online`: the teacher runs alongside the student. `cache`: its outputs are read from the recipe's cache; its
    weights are then not needed, but if they are available, the cache is checked against them."""
    head: Literal["own", "none"] = "own"
    """`none`: the network without its classifier, so only terms on features can read it: for a foundation model, such
    as DINOv2 or SigLIP, whose classes are not the data's. Students are then also rated by their features."""
    random: bool = False
    """Whether the teacher may have fresh, random weights, for a test of speed or of a method; a teacher that has
    neither `checkpoint` nor `pretrained`, nor is from a folder or your own code, is refused otherwise."""
    image_size: int | None = Field(default=None, ge=1)
    """The side in pixels of the images that the teacher sees: the same views as the student's, in another resolution.
    Online, every image is then decoded for each of the two. Not given: `views.size`."""

    @property
    def cached(self) -> bool:
        return self.source == "cache"

    def check(self) -> None:
        """Refuse what `ModelConfig.check` refuses, and a teacher without weights."""
        if self.cached:
            return
        super().check()
        if self.new_head:
            raise Refused(f"teacher {self.model!r}: with new_head it answers at random; {self.fresh}")
        if self.head == "none" and self.class_indices:
            raise Refused(
                f"teacher {self.model!r}: head is none, so no output stands for a class; leave class_indices out"
            )
        brings_its_own = self.is_folder or module_of(self.model) is not None
        if not (self.checkpoint or self.pretrained or self.random or brings_its_own):
            raise Refused(
                f"teacher {self.model!r} has no weights, so there is nothing to learn from it; give "
                "teacher.checkpoint=FILE or teacher.pretrained=true (teacher.random=true takes fresh weights)"
            )

    def without_files(self) -> Self:
        """Return the section of the same architecture with random weights, which `check` takes."""
        return super().without_files().model_copy(update={"random": True})

    @property
    def is_random(self) -> bool:
        """Whether it has fresh, random weights, as `random` asks for."""
        return self.random and not (self.checkpoint or self.pretrained or self.cached or self.is_folder)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of a network with its weights."""
        return self.model.startswith(LOCAL_DIR)

    @property
    def has_weights(self) -> bool:
        """Whether its weights lie on this machine."""
        files = [self.weights_file, local_file(self.class_indices) if self.class_indices else self.weights_file]
        return all(path is not None and path.is_file() for path in files)

    @property
    def lacks_weights(self) -> bool:
        """Whether it names files of weights that do not lie on this machine."""
        return self.weights_file is not None and not self.has_weights


class CacheConfig(Storage):
    """Where the teacher's outputs are stored, what is stored besides what the method reads, and how."""

    dir: Annotated[str, PATH]
    """The cache's folder; to read from, also a URI such as s3://bucket/folder."""
    taps: tuple[str, ...] = ()
    """Further taps of the teacher to store, for use by other recipes."""
    head: bool = False
    """Whether to store what SimKD reuses of a teacher also where this recipe does not need it."""
    rows_per_shard: int | None = Field(default=None, ge=1)
    """Rows of one file. Not given: as many as fit in 128 MiB, at most 16,384."""
    batch_size: int = Field(default=128, ge=1)
    """Images of one forward pass of the teacher while the cache is built."""
    trust: bool = False
    """Whether to accept a cache that was built with other library versions."""
    copies_dir: Annotated[str | None, PATH] = None
    """The folder for this machine's copies of remote caches. Not given: the machine's temporary folder."""
