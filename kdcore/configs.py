"""A recipe's sections for networks, optimiser and schedule; `kdcore.models` and `kdcore.optim` build them.

Reading a recipe needs neither timm nor torchvision, whose import takes longer than everything else here: a command that
only looks at recipes does not wait for them, and one that trains lets Ray start meanwhile.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from kdcore.errors import Refused, did_you_mean
from kdcore.importing import importing
from kdcore.local_dir import WEIGHTS, read_local_dir
from kdcore.located import local_file
from kdcore.named_models import (
    HF_HUB,
    LOCAL_DIR,
    OWN_PREFIXES,
    TORCHVISION,
    builder_of,
    check_hub,
    check_torchvision,
    module_of,
    names_if_unknown,
)
from kdcore.section import Section


class PathField:
    """Marks, in an annotation, a field that names a file or a folder; code that moves a recipe resolves such paths.

    prefix: what precedes the path; a value without it is not a path. only_with: neither is a value that contains none
    of these strings.
    """

    def __init__(self, prefix: str = "", only_with: tuple[str, ...] = ()) -> None:
        self.prefix, self.only_with = prefix, only_with

    def path_in(self, value: str) -> str | None:
        """Return the path in a field's value; None if it is not a path."""
        is_path = value.startswith(self.prefix) and (not self.only_with or any(s in value for s in self.only_with))
        return value.removeprefix(self.prefix) if is_path else None


PATH = PathField()
MODEL = PathField(prefix=LOCAL_DIR)
PLUGINS = PathField(only_with=("/", "\\", ".py"))

# Arguments of `timm.create_model` that other fields set, or with which it would not make a classifier of RGB images.
_OWN_ARGS = {"model_name", "num_classes", "pretrained", "checkpoint_path"}
_NO_ARGS = {"in_chans": "images have 3 channels", "features_only": "a network without a classifier cannot be trained"}

RUN_WEIGHTS = "student.safetensors"  # in a run's folder
_IN_FOLDERS = (RUN_WEIGHTS, WEIGHTS)  # the weights in a run's folder, and in an export's


class ModelConfig(Section):
    """A network and where its weights come from."""

    # For errors: what the section is called; how a file of weights is made; whether the classifier may know nothing of
    # the data's classes, and what to do about weights of other classes.
    section: ClassVar[str] = "model"
    makes_one: ClassVar[str] = ""
    may_start_fresh: ClassVar[bool] = True
    fresh: ClassVar[str] = "give new_head: true, and its classifier starts afresh"

    model: Annotated[str, MODEL]
    """A name that `timm.create_model` knows, the project's CIFAR networks among them; or where a network is from:
    `package.module:function` (your own code), `torchvision:NAME`, `hf-hub:OWNER/NAME`, or `local-dir:FOLDER`, which an
    export has written."""
    checkpoint: Annotated[str | None, PATH] = None
    """A file of weights, or its URI: safetensors, or a torch file of tensors only (no pickled object is ever
    loaded)."""
    checkpoint_keys: Literal["names", "positions"] = "names"
    """How the file's tensors are matched: by their names, or by order and shape (`positions`), for files whose names
    differ from timm's."""
    pretrained: bool = False
    """Whether to start from timm's own weights, which timm downloads."""
    new_head: bool = False
    """Whether the network's classifier starts afresh, whatever the file of weights has: to fine-tune a network of other
    classes. Downloaded weights with another number of classes do not need it."""
    class_indices: Annotated[str | None, PATH] = None
    """A JSON file, or its URI, {class folder: index in the network's classifier}: those rows of the classifier are
    kept, in the data's order."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `timm.create_model`, of torchvision's function or of your own; with `class_indices` also
    `num_classes`, that of the whole classifier."""

    def check(self) -> None:
        """Refused where the model or one of its files is unknown; builds nothing."""
        self._check_name()
        if self.pretrained and self.checkpoint:
            raise Refused(
                f"model {self.model!r}: give pretrained or a checkpoint, not both: {self.section}.checkpoint=null "
                f"for the weights that are downloaded, {self.section}.pretrained=false for the file"
            )
        for name in ("checkpoint", "class_indices"):
            path = getattr(self, name)
            if path is not None and local_file(path).is_dir():
                inside = next(
                    (f"{path.rstrip('/')}/{file}" for file in _IN_FOLDERS if (local_file(path) / file).is_file()),
                    "FILE",
                )
                raise Refused(
                    f"{path}: a folder, where the model {self.model!r} of the recipe names a file; give "
                    f"{self.section}.{name}={inside if name == 'checkpoint' else 'FILE'}"
                )
            if path is not None and not local_file(path).is_file():
                others = f"{self.makes_one}; {self.section}.checkpoint=null for a network that needs no file"
                raise Refused(
                    f"{path}: no such file, named by the model {self.model!r} of the recipe; give "
                    f"{self.section}.{name}=FILE{others if name == 'checkpoint' else ''}"
                )
        self._check_new_head()
        if taken := _OWN_ARGS & self.args.keys() - ({"num_classes"} if self.class_indices else set()):
            raise Refused(
                f"model {self.model!r}: args has {min(taken)!r}, which the recipe sets elsewhere; leave it out"
            )
        if wrong := _NO_ARGS.keys() & self.args.keys():
            raise Refused(f"model {self.model!r}: args has {min(wrong)!r}, but {_NO_ARGS[min(wrong)]}; leave it out")

    def _check_new_head(self) -> None:
        """Refuse `new_head` without a file of weights, and together with rows kept from the file's classifier."""
        if self.new_head and self.class_indices:
            raise Refused(
                f"model {self.model!r}: class_indices keeps rows of the file's classifier, and new_head none of it; "
                "leave one of them out"
            )
        if self.new_head and self.weights_file is None:
            raise Refused(
                f"model {self.model!r}: new_head is for weights from a file, and there is none; give checkpoint=FILE, "
                "or leave new_head out (downloaded weights get a new classifier by themselves)"
            )

    @property
    def weights_file(self) -> Path | None:
        """The file of weights that the network starts from, if one is named."""
        if self.model.startswith(LOCAL_DIR):
            return Path(self.model.removeprefix(LOCAL_DIR)).expanduser() / WEIGHTS
        return local_file(self.checkpoint) if self.checkpoint else None

    def resolved(self) -> Self:
        """Return the section with `local-dir:` replaced by the folder's architecture, arguments and weights."""
        if not self.model.startswith(LOCAL_DIR):
            return self
        if self.pretrained or self.checkpoint:
            setting = "pretrained=false" if self.pretrained else "checkpoint=null"
            raise Refused(f"model {self.model!r} has weights of its own; set {self.section}.{setting}")
        found = read_local_dir(self.model)
        args = {**found.args, **self.args}
        if self.class_indices:
            args.setdefault("num_classes", found.num_classes)
        own = {"model": found.architecture, "checkpoint": str(found.weights), "args": args}
        return self.model_copy(update=own)

    def without_files(self) -> Self:
        """Return the section of the same architecture that reads no file and downloads nothing.

        `local-dir:` stays, as the architecture is in the folder; `resolved` replaces it.
        """
        args = {name: value for name, value in self.args.items() if name != "num_classes"}  # of class_indices
        no_files = {"pretrained": False, "checkpoint": None, "class_indices": None, "new_head": False}
        return self.model_copy(update={**no_files, "args": args})

    def _check_name(self) -> None:
        if self.model.startswith(LOCAL_DIR):
            self.resolved().check()
        elif self.model.startswith(HF_HUB):
            check_hub(self.model)
        elif self.model.startswith(TORCHVISION):
            check_torchvision(self.model)
        elif module_of(self.model) is not None:
            builder_of(self.model)
            if self.pretrained:
                raise Refused(
                    f"model {self.model!r}: pretrained means weights that timm or torchvision downloads; give your "
                    "own as checkpoint=FILE, or load them in that function"
                )
        else:
            self._check_timm()

    def _check_timm(self) -> None:
        if (known := names_if_unknown(self.model)) is not None:
            raise Refused(_unknown(self.model, known))
        with importing("timm"):
            import timm

            import kdcore.networks  # noqa: F401  registers the CIFAR networks with timm

        if not timm.is_model(self.model):
            raise Refused(_unknown(self.model, timm.list_models()))
        name, dot, tag = self.model.partition(".")
        tags = [known.partition(".")[2] for known in timm.list_models(f"{name}.*", pretrained=True)]
        if dot and tag not in tags:
            near = difflib.get_close_matches(tag, tags, n=4, cutoff=0.3) or tags[:4]
            hint = f"it has {', '.join(near)}" if near else f"leave the tag out: {name}"
            raise Refused(f"model {self.model!r}: {name} has no pretrained weights called {tag!r}; {hint}")


def _unknown(model: str, known: Sequence[str]) -> str:
    """Return the text that refuses an unknown model, with the known names nearest to it."""
    hint = did_you_mean(model, known, "timm.list_models() lists the names", n=4, cutoff=0.5)
    of_cifar = (
        ""
        if model.startswith(OWN_PREFIXES)
        else " (this project's for images of 32 pixels are cifar_resnet20 and so on)"
    )
    return f"unknown model {model!r}; {hint}{of_cifar}"


class OptimizerConfig(Section):
    """The optimiser, from timm's factory."""

    opt: str = "sgd"
    """timm's name of the optimiser: sgd, adamw, lamb, ... Note: timm's `sgd` uses Nesterov momentum; `momentum` is
    SGD with plain momentum."""
    lr: float = Field(gt=0)
    """The learning rate of a whole batch, before the schedule."""
    weight_decay: float = Field(default=0.0, ge=0)
    """The weight decay, as the optimiser defines it."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """The momentum of optimisers that have one; `schedule.sched: onecycle` has its own, and takes no other here."""
    decay_all: bool = False
    """Whether every parameter decays, as in the CIFAR recipes of the field. False: as in timm, all but biases, norms
    and what the network names."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimiser, such as `{fused: true}` for PyTorch's own: one kernel for a whole step, a
    third of AdamW's time on a GPU. `{layer_decay: 0.75}` multiplies the rate by that factor from each of the
    student's layers to the one before it, as timm counts them."""


CYCLED_MOMENTUM = (0.95, 0.85)  # of `onecycle`: at its ends, and where the rate is highest
# The fields that each schedule reads; any other that is set would be silently ignored.
_READS = {
    "cosine": {"warmup_epochs", "warmup_lr", "warmup_prefix", "min_lr"},
    "multistep": {"warmup_epochs", "warmup_lr", "milestones", "decay_rate"},
    "constant": {"warmup_epochs", "warmup_lr"},
    "onecycle": set(),
}


class ScheduleConfig(Section):
    """The learning-rate schedule: timm's schedules, or OneCycle.

    Durations are epochs of the whole run, of which the warm-up is a part. A field that the schedule does not read is
    refused.
    """

    sched: Literal["cosine", "multistep", "constant", "onecycle"] = "cosine"
    """The schedule: `cosine` falls to `min_lr`; `multistep` drops at the `milestones`; `constant` does not fall;
    `onecycle` rises for 30 % of the steps, then falls, while the momentum (or the first of `betas`) goes from 0.95 to
    0.85 and back."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs over which the rate rises linearly from `warmup_lr`."""
    warmup_lr: float = Field(default=1e-5, ge=0)
    """The rate at the first step of the warm-up."""
    warmup_prefix: bool = False
    """With `cosine`: whether it begins after the warm-up and spans the remaining epochs. False: it begins at epoch 0,
    and the warm-up replaces its first epochs."""
    min_lr: float = Field(default=0.0, ge=0)
    """The rate that `cosine` ends at."""
    milestones: tuple[int, ...] = ()
    """With `multistep`: the epochs, counted from 0, whose first step has the lower rate."""
    decay_rate: float = Field(default=0.1, gt=0, le=1)
    """With `multistep`: what the rate is multiplied by at each milestone."""

    @model_validator(mode="after")
    def _check_fields(self) -> ScheduleConfig:
        reads = _READS[self.sched]
        for name, field in type(self).model_fields.items():
            if name not in {"sched", *reads} and getattr(self, name) != field.default:
                raise Refused(
                    f"{name} has no meaning for sched {self.sched!r}, which reads "
                    f"{', '.join(sorted(reads)) or 'nothing else'}; leave it out"
                )
        if self.sched == "multistep" and not self.milestones:
            raise Refused("sched 'multistep' needs milestones: the epochs at which the rate drops")
        if any(later <= earlier for earlier, later in zip((0, *self.milestones), self.milestones, strict=False)):
            raise Refused(f"milestones {list(self.milestones)} must be above 0 and ascend")
        return self
