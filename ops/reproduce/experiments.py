"""The experiments of `reproduce paper3`: which rows each of them has, in which setting, and what a row tests.

A row is a recipe with some changes; all rows of an experiment are run with the same seeds, so that their differences
are paired. Nothing is tuned: hyper-parameters are the papers', as the recipes say.

Not here: how they are run (`ops.reproduce.paper3`), and their results (`ops.reproduce.paper3_results`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

CIFAR_PAIR = "cifar100/resnet56-resnet20"
FULL = 229  # training images per class
AMOUNTS = (10, 30, 100)
VIEWS = (1, 2, 8, 50)
PILOT_VIEWS = (1, 4, 15)  # over 15 epochs, each of which shows an image in one view
# The layers of highest quality Q of the teacher, which the recipes with layers chosen by Q read.
CHOSEN = ("blocks.3.0", "blocks.3.1", "blocks.5.0", "blocks.6.0")
CIFAR_CACHE = {"dir": "", "head": True, "taps": ("forward_features",)}
CROPS_CACHE = {"dir": "", "features": "int8", "rows_per_shard": 512, "taps": CHOSEN}
# Every block of EfficientNet-Lite0, with its stem and its last convolution.
LAYERS = (
    "bn1.act",
    *("blocks.0.0", "blocks.1.0", "blocks.1.1", "blocks.2.0", "blocks.2.1", "blocks.3.0", "blocks.3.1", "blocks.3.2"),
    *("blocks.4.0", "blocks.4.1", "blocks.4.2", "blocks.5.0", "blocks.5.1", "blocks.5.2", "blocks.5.3", "blocks.6.0"),
    "bn2.act",
)


@dataclass(frozen=True)
class Claim:
    """A published statement that a row tests: that it is above, or below, another row."""

    text: str
    against: str
    sign: Literal["above", "below"]


@dataclass(frozen=True)
class Row:
    """A recipe with some changes. cache: the name of the cache that it reads; claim: what it tests, if anything."""

    recipe: str
    changes: tuple[str, ...] = ()
    cache: str = "one_view"
    claim: Claim | None = None


@dataclass(frozen=True)
class Experiment:
    """Rows that are run with the same seeds.

    changes: of every row; builders: {cache: the row that builds it}, whose recipe reads, or names in `cache.taps`, what
    any row reads; baselines: {row: the row that it is compared with}, where that is not `alone`; numbers: those that
    row names end in, where the experiment is a curve over them, and label: what they count; of_layers: whether each row
    is a layer of the teacher, whose quality should predict the accuracy.
    """

    title: str
    question: str
    rows: Mapping[str, Row]
    num_seeds: int
    builders: Mapping[str, str]
    changes: tuple[str, ...] = ()
    baselines: Mapping[str, str] = field(default_factory=dict)
    numbers: tuple[int, ...] = ()
    label: str = ""
    of_layers: bool = False

    def baseline(self, row: str) -> str:
        """Return the row that a row is compared with."""
        return self.baselines.get(row, "alone")


def paper3(row: str, claim: Claim | None = None) -> Row:
    """Return a row that is one of the recipes in recipes/paper3, unchanged."""
    return Row(f"paper3/{row}", claim=claim)


FEATURES_ALONE = "features alone teach more than labels do"
LIMITED = "losses of labels or logits at the backbone limit the distillation of features"
REGIME = {
    "alone": paper3("alone"),
    "feature_only": paper3("feature_only", Claim(FEATURES_ALONE, "alone", "above")),
    "kd": paper3("kd", Claim("softened logits teach more than labels alone (Hinton)", "alone", "above")),
    "feature_only-ce": paper3("feature_only-ce", Claim(LIMITED, "feature_only", "below")),
    "base_fkd": paper3(
        "base_fkd", Claim("feature_only is above the base of feature distillation", "feature_only", "below")
    ),
    "feature_only-ce-kd": paper3("feature_only-ce-kd", Claim(LIMITED, "feature_only", "below")),
    "feature_only-standard": paper3(
        "feature_only-standard", Claim("layers chosen by Q teach more than the ends of stages", "feature_only", "below")
    ),
    "feature_only-standardised": paper3("feature_only-standardised"),
    "simkd": paper3("simkd", Claim("SimKD is above KD (the SimKD paper)", "kd", "above")),
    "wttm": paper3("wttm", Claim("WTTM is above KD (the WTTM paper)", "kd", "above")),
}
PILOT_EPOCHS = ("train.epochs=15", "train.evaluate_every_epochs=5")
PILOT = ("views.size=32", *PILOT_EPOCHS)
LARGE = ("views.size=224", "student.args.widths=[64, 64, 128, 256, 512]")
MAIN = ("alone", "feature_only", "kd", "feature_only-ce")


def amounts() -> dict[str, Row]:
    """Return the main rows with few images per class; those with all images are the regime's."""
    return {
        f"{row}-{amount}": Row(f"paper3/{row}", (f"data.images_per_class={amount}",), f"one_view-{amount}")
        for amount in AMOUNTS
        for row in MAIN
    }


def augmented(title: str, size: int, numbers: tuple[int, ...], changes: tuple[str, ...] = ()) -> Experiment:
    """Return the main rows with crops and flips, with few or many views: always the first ones of one cache."""
    views = f"views={{size: {size}, crop: resized, flip_probability: 0.5}}"
    return Experiment(
        title,
        "How much of the gain remains over a baseline with crops and flips, and how many cached views does it take?",
        {
            f"{row}-{number}": Row(f"paper3/{row}", (f"views.num_views={number}",), "crops")
            for number in numbers
            for row in MAIN
        },
        3,
        {"crops": f"kd-{numbers[-1]}"},
        ("data.loader=dali", views, f"cache={json.dumps(CROPS_CACHE)}", *changes),
        {f"{row}-{number}": f"alone-{number}" for number in numbers for row in MAIN},
        numbers,
        "cached views",
    )


def layer_row(tap: str) -> Row:
    """Return the row whose student learns its last map from one layer of the teacher."""
    pairs = [{"student": "layer4", "teacher": tap}]
    method = [{"term": "feature_only", "weight": 1, "pairs": pairs}, {"term": "ce", "weight": 1}]
    return Row("paper3/feature_only", (f"method={json.dumps(method)}",), "layers")


def single_layers(title: str, changes: tuple[str, ...] = ()) -> Experiment:
    """Return a row for every layer of the teacher, and the student alone."""
    return Experiment(
        title,
        "Do layers of higher quality Q teach better, one at a time?",
        {"alone": Row("paper3/alone", cache="layers"), **{tap: layer_row(tap) for tap in LAYERS}},
        3,
        {"layers": "bn2.act"},
        ("cache.features=int8", f"cache.taps={json.dumps(LAYERS)}", *changes),
        of_layers=True,
    )


def short_schedule() -> dict[str, Row]:
    """Return the rows of CIFAR-100."""
    claims = {
        "dkd": Claim("DKD is above KD (the DKD paper)", "kd", "above"),
        "dist": Claim("DIST is above KD (the DIST paper)", "kd", "above"),
        "wttm": Claim("WTTM is above KD (the WTTM paper)", "kd", "above"),
        "simkd": Claim("SimKD is above KD (the SimKD paper)", "kd", "above"),
        "kd": Claim("softened logits teach more than labels alone (Hinton)", "alone", "above"),
    }
    warmup = {"dkd": ("method.1.warmup_epochs=1",)}  # 20 of 240 epochs in the recipe
    students = {
        row: Row(f"{CIFAR_PAIR}/{row}", warmup.get(row, ()), "cifar100", claims[row])
        for row in ("kd", "dkd", "dist", "wttm", "simkd")
    }
    return {"alone": Row("cifar100/resnet20/alone"), **students}


EXPERIMENTS: dict[str, Experiment] = {
    "pilot": Experiment(
        "E1 in small: 32 pixels, 15 epochs",
        "Does the feature-only paper's claim show at all, at a fraction of E1's cost?",
        REGIME,
        3,
        {"one_view": "base_fkd"},
        PILOT,
    ),
    "regime": Experiment(
        "E1, the regime of the paper",
        "A teacher with ImageNet's weights, a student from random ones, no augmentation: do features alone teach more "
        "than labels and logits?",
        REGIME,
        5,
        {"one_view": "base_fkd"},
    ),
    "regime_large": Experiment(
        "E1 at full width and 224 pixels",
        "Does the claim hold for the paper's own width, on images as large as the teacher sees?",
        {row: replace(REGIME[row], cache="one_view-large") for row in MAIN},
        3,
        {"one_view-large": "kd"},
        LARGE,
    ),
    "amount": Experiment(
        "E2, how much data",
        "Does the gain change with the number of images, as it would if the teacher made up for missing images? The "
        "number of epochs stays the same, so fewer images also mean fewer steps.",
        amounts(),
        3,
        {f"one_view-{amount}": f"kd-{amount}" for amount in AMOUNTS},
        (),
        {f"{row}-{amount}": f"alone-{amount}" for amount in AMOUNTS for row in MAIN},
        AMOUNTS,
        "training images of a class",
    ),
    "short_schedule": Experiment(
        "E5, a whole short schedule on CIFAR-100",
        "Which methods differ measurably after a 12-epoch one-cycle schedule, resnet56 teaching resnet20?",
        short_schedule(),
        3,
        {"cifar100": "kd"},
        (
            "train.epochs=12",
            "train.evaluate_every_epochs=4",
            "views.num_views=12",
            "schedule={sched: onecycle}",
            f"cache={json.dumps(CIFAR_CACHE)}",
        ),
    ),
    "pilot_layers": single_layers("E4 in small: 32 pixels, 15 epochs", PILOT),
    "layers": single_layers("E4, does Q predict?"),
    "pilot_augmentation": augmented("E3 in small: 32 pixels, 15 epochs", 32, PILOT_VIEWS, PILOT_EPOCHS),
    "augmentation": augmented("E3, with augmentation", 64, VIEWS),
}
