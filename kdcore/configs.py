"""What a recipe says of networks, optimiser and schedule; `kdcore.models` and `kdcore.optim` build them.

Reading a recipe needs neither timm nor torchvision, whose import takes longer than everything else here: a command that
only looks at recipes does not wait for them, and one that trains lets Ray start meanwhile.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdcore.errors import Refused

# Arguments of `timm.create_model` that other fields stand for.
_OWN_ARGS = {"model_name", "num_classes", "pretrained", "checkpoint_path"}


class ModelConfig(BaseModel):
    """A network and where its weights come from.

    model: a name that `timm.create_model` knows. checkpoint: a .safetensors file, or a torch file of tensors only (no
    pickled object is ever loaded). checkpoint_keys: 'positions' matches tensors by order and shape, for files whose
    names differ from timm's. pretrained: timm's own weights, which timm downloads. class_indices: a JSON file
    {class folder: index in the network's classifier}, which keeps those rows of the classifier, in the data's order.
    args: further arguments of `timm.create_model`; with class_indices also num_classes, that of the whole classifier.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    checkpoint: str | None = None
    checkpoint_keys: Literal["names", "positions"] = "names"
    pretrained: bool = False
    class_indices: str | None = None
    args: dict[str, Any] = Field(default_factory=dict)

    def check(self) -> None:
        """Refused where the model or one of its files is unknown; builds nothing."""
        import timm

        import kdcore.networks  # noqa: F401  registers the CIFAR networks with timm

        if not timm.is_model(self.model):
            near = difflib.get_close_matches(self.model, timm.list_models(), n=4, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists the names"
            raise Refused(f"unknown model {self.model!r}; {hint}")
        for path in (self.checkpoint, self.class_indices):
            if path is not None and not Path(path).is_file():
                raise Refused(f"{path}: no such file, named by the model {self.model!r} of the recipe")
        if self.pretrained and self.checkpoint:
            raise Refused(f"model {self.model!r}: give either pretrained or a checkpoint, not both")
        if taken := _OWN_ARGS & self.args.keys() - ({"num_classes"} if self.class_indices else set()):
            raise Refused(
                f"model {self.model!r}: args has {min(taken)!r}, which the recipe sets elsewhere; leave it out"
            )


class OptimizerConfig(BaseModel):
    """timm's optimiser `opt` (sgd, adamw, lamb, ...). Beware: timm's 'sgd' has Nesterov's momentum; 'momentum' is the
    plain one. momentum: for the optimisers that have one. decay_all: weight decay on every parameter, as the CIFAR
    recipes of the field do; timm leaves out biases, norms and what the network names. args: further arguments of the
    optimiser."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    opt: str = "sgd"
    lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    decay_all: bool = False
    args: dict[str, Any] = Field(default_factory=dict)


# What each schedule reads; another field that is set would be skipped in silence.
_READS = {
    "cosine": {"warmup_epochs", "warmup_lr", "min_lr"},
    "multistep": {"warmup_epochs", "warmup_lr", "milestones", "decay_rate"},
    "constant": {"warmup_epochs", "warmup_lr"},
    "onecycle": set(),
}


class ScheduleConfig(BaseModel):
    """timm's schedule, or OneCycle. Durations are epochs of the whole run, of which the warm-up is a part. milestones:
    epochs whose first step has the lower rate, counted from 0. A field that the schedule does not read is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sched: Literal["cosine", "multistep", "constant", "onecycle"] = "cosine"
    warmup_epochs: float = Field(default=0.0, ge=0)
    warmup_lr: float = Field(default=1e-5, ge=0)
    min_lr: float = Field(default=0.0, ge=0)
    milestones: tuple[int, ...] = ()
    decay_rate: float = Field(default=0.1, gt=0, le=1)

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
