"""What a published script trains with, and what of it is not ours.

These tables are a second entry of every number, typed from the sources and not from the recipes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kdcore.terms import REGISTRY

ABSENT = object()  # ours leaves the field at its default


@dataclass(frozen=True)
class Published:
    """A script, by its source.

    fields: what it sets beside the defaults, which `DEFAULTS` pins; differs: {field that is not as published: (ours,
    words of the sentence in `about.differs` that says so)}; unseen: words of the sentences about differences that no
    field shows (of loaders, teachers, arithmetic).
    """

    source: str
    fields: dict[str, Any]
    differs: dict[str, tuple[Any, str]] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()

    @property
    def ours(self) -> dict[str, Any]:
        """What the recipe must hold: the published values, but for those that differ."""
        changed = {name: ours for name, (ours, _) in self.differs.items()}
        return {name: value for name, value in {**self.fields, **changed}.items() if value is not ABSENT}

    @property
    def words(self) -> set[str]:
        """Words of every sentence that `about.differs` must hold."""
        return {*self.unseen, *(words for _, words in self.differs.values())}


def term(name: str, weight: float, **values: Any) -> dict[str, Any]:
    return {f"method.{name}.{key}": value for key, value in {"weight": weight, **values}.items()}


# What recipes leave at its default, and the scripts have too.
DEFAULTS = {
    "views.size": 224,
    "views.crop": "resized",
    "views.scale": (0.08, 1.0),
    "views.ratio": (3 / 4, 4 / 3),
    "views.padding": 4,
    "views.flip_probability": 0.5,
    "views.interpolation": "bilinear",
    "data.crop_pct": 0.875,
    "data.evaluation_interpolation": "bilinear",
    "student.classifier": "own",
    "student.factor": 2,
    "optimizer.opt": "sgd",  # timm's, with Nesterov's momentum
    "optimizer.momentum": 0.9,
    "optimizer.decay_all": False,
    "schedule.sched": "cosine",
    "schedule.warmup_epochs": 0.0,
    "schedule.decay_rate": 0.1,
    "train.clip_norm": None,
    "train.ema_decay": None,
    "train.precision": "auto",
}
TERM_DEFAULTS: dict[str, dict[str, Any]] = {
    **{name: {"warmup_epochs": 0.0, "decay_from_epoch": None} for name in REGISTRY},
    "rkd": {"distance_weight": 25.0, "angle_weight": 50.0},
    "crd": {"dim": 128, "num_negatives": 16384, "momentum": 0.5, "temperature": 0.07, "negatives": "other_classes"},
    "vid": {"initial_variance": 5.0},
    "dkd": {"target_weight": 1.0, "standardise": False},
    "nkd": {"temperature": 1.0},
    "rld": {"confidence_weight": 1.0, "confidence_temperature": 1.0},
    "dist": {"inter_weight": 1.0, "intra_weight": 1.0},
    "itrd": {"correlation_weight": 2.0, "mutual_weight": 1.0},
    "wkd_l": {"sharpness": 1.0, "regularisation": 0.05, "iterations": 10},
    "wkd_f": {"mean_weight": 2.0, "grid": 1, "projector": "conv1x1"},
    "vitkd": {"mimic_weight": 3e-5, "generation_weight": 3e-6, "mask_ratio": 0.5},
}
