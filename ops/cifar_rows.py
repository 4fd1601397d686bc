"""The rows of the CIFAR-100 tables: 13 pairs of networks and 19 methods, each written once, and combined here.

`cifar100/<teacher>-<student>/<method>` is a row; `cifar100/<network>/alone` trains a network by itself, which is how
the teachers are made. A method that has hyper-parameters of its own for each pair (`SETTINGS`) has a row only where
they are published. What all rows share is in recipes/cifar100/common.yaml.

Not here: the ImageNet rows and those of the feature-only paper, which are plain files in recipes/.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.recipe import merge, read_recipe
from ops.cifar_tables import NETWORKS, PAIRS, SETTINGS, TOP1

UNPACK = "python -m ops data cifar100 --from DIR --to data/cifar100"
COMMON = Path(__file__).parent / "recipes" / "cifar100" / "common.yaml"


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, by their names in `NETWORKS`."""

    teacher: str
    student: str

    @property
    def stages(self) -> list[dict[str, str]]:
        """The ends of both networks' stages, paired from shallow to deep."""
        taps = zip(NETWORKS[self.student].stages, NETWORKS[self.teacher].stages, strict=True)
        return [{"student": student, "teacher": teacher} for student, teacher in taps]


Sections = dict[str, Any]  # sections of a recipe
CLASSIFIER_INPUTS = {"student": "classifier_input", "teacher": "classifier_input"}


def term(name: str, weight: float, **fields: Any) -> dict[str, Any]:
    """Return a term as it stands in a recipe."""
    return {"term": name, "weight": weight, **fields}


def terms(*parts: dict[str, Any]) -> Sections:
    """Return the `method` section of these terms."""
    return {"method": list(parts)}


def beside_labels(*parts: dict[str, Any]) -> Sections:
    """Return the `method` section of these terms beside a cross-entropy of weight 1."""
    return terms(term("ce", 1), *parts)


def kd(pair: Pair) -> Sections:
    return terms(term("ce", 0.1), term("kd", 0.9, temperature=4))


def fitnet(pair: Pair) -> Sections:
    return beside_labels(term("fitnet", 100, pairs=pair.stages[1:2]))


def at(pair: Pair) -> Sections:
    return beside_labels(term("at", 1000, pairs=pair.stages))


def sp(pair: Pair) -> Sections:
    return beside_labels(term("sp", 3000, pairs=pair.stages[-1:]))


def vid(pair: Pair) -> Sections:
    return beside_labels(term("vid", 1, pairs=pair.stages))


def rkd(pair: Pair) -> Sections:
    return beside_labels(term("rkd", 1, distance_weight=25, angle_weight=50))


def pkt(pair: Pair) -> Sections:
    return beside_labels(term("pkt", 30000))


def crd(pair: Pair) -> Sections:
    return beside_labels(term("crd", 0.8))


def reviewkd(pair: Pair, weight: float) -> Sections:
    return beside_labels(term("reviewkd", weight, warmup_epochs=20, pairs=[*pair.stages, CLASSIFIER_INPUTS]))


def dist(pair: Pair) -> Sections:
    return beside_labels(term("dist", 1, temperature=4))


def dkd(pair: Pair, non_target_weight: float) -> Sections:
    return beside_labels(term("dkd", 1, warmup_epochs=20, temperature=4, non_target_weight=non_target_weight))


def lskd(pair: Pair, temperature: float, weight: float) -> Sections:
    return beside_labels(term("lskd", weight, temperature=temperature))


def ttm(pair: Pair, gamma: float, weight: float) -> Sections:
    return beside_labels(term("ttm", weight, gamma=gamma))


def wttm(pair: Pair, gamma: float, weight: float) -> Sections:
    return beside_labels(term("wttm", weight, gamma=gamma))


def wttm_crd(pair: Pair, gamma: float, weight: float) -> Sections:
    return beside_labels(term("wttm", weight, gamma=gamma), term("crd", 0.8))


def simkd(pair: Pair) -> Sections:
    return {"student": {"classifier": "reused", "factor": 2}, **terms(term("simkd", 1))}


def feature_only(pair: Pair) -> Sections:
    return beside_labels(term("feature_only", 1, pairs=pair.stages))


def nd_optimizer(pair: Pair) -> Sections:
    """Return the authors' optimiser: Nesterov's momentum, at twice the rate of the tables.

    That is 0.1, and 0.02 for ShuffleNet.
    """
    return {"optimizer": {"opt": "sgd", "lr": 2 * NETWORKS[pair.student].lr}}


def kd_nd(pair: Pair, kd_weight: float, nd_weight: float) -> Sections:
    return nd_optimizer(pair) | beside_labels(term("kd", kd_weight, temperature=4), term("nd", nd_weight))


def dkd_nd(pair: Pair, target_weight: float, non_target_weight: float, nd_weight: float) -> Sections:
    decoupled = {"temperature": 4, "target_weight": target_weight, "non_target_weight": non_target_weight}
    return nd_optimizer(pair) | beside_labels(term("dkd", 1, warmup_epochs=20, **decoupled), term("nd", nd_weight))


@dataclass(frozen=True)
class Method:
    """A method of the tables: a row for every pair of networks."""

    sections: Callable[..., Sections]
    """What it adds to a pair's recipe, from the pair and its cell of `SETTINGS`."""
    paper: str
    """The publication of the method."""
    source: str
    """Where the hyper-parameters and the numbers in `TOP1` are published."""
    differs: tuple[str, ...] = ()
    """Where it departs from the published script, beyond what all rows do (`DIFFERS`)."""


CRD_PAPER = 'Tian et al., "Contrastive Representation Distillation", arXiv 1910.10699'
TTM_PAPER = 'Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv 2402.11148'
ND_PAPER = (
    'Wang et al., "Improving Knowledge Distillation via Regularizing Feature Norm and Direction", arXiv 2305.17007'
)
CRD_TABLE = "Tian et al., arXiv 1910.10699, table as in the README of their code"
TTM_TABLE = "Zheng and Yang, arXiv 2402.11148, CIFAR-100 tables and appendix A.4"
LSKD_TABLE = "Sun et al., arXiv 2403.01427, tables as in the README of their code"
ND_SOURCE = "the README and scripts of the authors' code"
ND_DIFFERS = ("a batch of 64 in all; the authors' 64 are those of each of two GPUs by default",)
DKD_SOURCE = f"{TTM_TABLE} (it quotes them); the non-target weights are those of the DKD authors' code"

DIFFERS = (
    "published numbers are the best epoch's on the test set, from teachers that the authors trained; here the last "
    "epoch's weights are deployed",
)

METHODS = {
    "kd": Method(kd, 'Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531', CRD_TABLE),
    "fitnet": Method(fitnet, 'Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550', CRD_TABLE),
    "at": Method(at, 'Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv 1612.03928', CRD_TABLE),
    "sp": Method(sp, 'Tung and Mori, "Similarity-Preserving Knowledge Distillation", arXiv 1907.09682', CRD_TABLE),
    "vid": Method(vid, 'Ahn et al., "Variational Information Distillation", arXiv 1904.05835', CRD_TABLE),
    "rkd": Method(rkd, 'Park et al., "Relational Knowledge Distillation", arXiv 1904.05068', CRD_TABLE),
    "pkt": Method(pkt, 'Passalis and Tefas, "Probabilistic Knowledge Transfer", arXiv 1803.10837', CRD_TABLE),
    "crd": Method(crd, CRD_PAPER, CRD_TABLE),
    "reviewkd": Method(
        reviewkd,
        'Chen et al., "Distilling Knowledge via Knowledge Review", arXiv 2104.09044',
        "the authors' scripts, for the weight",
        (
            "half the batch and half the rate of the authors' scripts, and no Nesterov momentum, as in all rows here",
            "stages are tapped behind their last activation, the published runs' before it",
        ),
    ),
    "dist": Method(
        dist,
        'Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536',
        f"{TTM_TABLE} (it quotes them); both weights are 1, the default of the DIST authors' code",
    ),
    "dkd": Method(dkd, 'Zhao et al., "Decoupled Knowledge Distillation", arXiv 2203.08679', DKD_SOURCE),
    "lskd": Method(lskd, 'Sun et al., "Logit Standardization in Knowledge Distillation", arXiv 2403.01427', LSKD_TABLE),
    "ttm": Method(ttm, TTM_PAPER, TTM_TABLE),
    "wttm": Method(wttm, TTM_PAPER, TTM_TABLE),
    "wttm-crd": Method(wttm_crd, TTM_PAPER, TTM_TABLE),
    "simkd": Method(
        simkd,
        'Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", arXiv 2203.14001',
        "resnet8x4: the README of the authors' code (teachers of their own); shufflenetv1: the README of NORM's code, "
        f"quoting them; the others: {LSKD_TABLE}",
    ),
    "feature_only": Method(
        feature_only,
        'Cooper et al., "Logit-Based Losses Limit the Effectiveness of Feature Knowledge Distillation", '
        "arXiv 2511.14981",
        "none: the paper's own pairs are the recipes in feature_only/; stages are paired with stages here",
        (
            "SGD for 240 epochs with crops and flips, as in all rows here; the paper has AdamW for 50 epochs, and no "
            "augmentation in its main experiments",
        ),
    ),
    "kd-nd": Method(kd_nd, f"{ND_PAPER} (KD++)", ND_SOURCE, ND_DIFFERS),
    "dkd-nd": Method(dkd_nd, f"{ND_PAPER} (DKD++)", ND_SOURCE, ND_DIFFERS),
}


def names() -> list[str]:
    """Return every row: networks alone, then pair by pair."""
    alone = [f"cifar100/{network}/alone" for network in NETWORKS]
    return alone + [
        f"cifar100/{pair}/{method}"
        for pair in PAIRS
        for method in METHODS
        if method not in SETTINGS or pair in SETTINGS[method]
    ]


def recipe(name: str) -> Sections:
    """Return the complete recipe of a row, as a mapping."""
    _, networks, method = name.split("/")
    made = {"name": f"{networks}-{method}", "about": about(name), **read_recipe(COMMON)}
    if method == "alone":
        return merge(made, networks_alone(networks) | beside_labels())
    pair, settings = Pair(*networks.split("-")), SETTINGS.get(method, {}).get(networks, "")
    merge(made, networks_alone(pair.student))
    merge(made, {"teacher": {"model": f"cifar_{pair.teacher}", "checkpoint": checkpoint(pair.teacher)}})
    return merge(made, METHODS[method].sections(pair, *json.loads(f"[{settings}]")))


def networks_alone(network: str) -> Sections:
    """Return the sections of a network that is trained as a student."""
    return {"student": {"model": f"cifar_{network}"}, "optimizer": {"lr": NETWORKS[network].lr}}


def checkpoint(network: str) -> str:
    """Return the file of weights that the network's own row leaves behind."""
    return f"outputs/cifar100/{network}-alone/student.safetensors"


def about(name: str) -> Sections:
    """Return what a row follows and is expected to reach, as its recipe's `about` section."""
    _, networks, method = name.split("/")
    shared = {
        "data": "python -m ops data cifar100 --from DIR --to data/cifar100",
        "hardware": "one worker with one GPU",
    }
    if method == "alone":
        return {
            "title": f"{networks} on CIFAR-100, from labels alone.",
            "paper": CRD_PAPER,
            **shared,
            "expected": {"top1": NETWORKS[networks].top1},
            "source": CRD_TABLE,
            "differs": list(DIFFERS),
        }
    pair, made = Pair(*networks.split("-")), METHODS[method]
    return {
        "title": f"{pair.teacher} teaches {pair.student} on CIFAR-100: {method}.",
        "paper": made.paper,
        **shared,
        "teacher": f"python -m ops train cifar100/{pair.teacher}/alone, or teacher.checkpoint=FILE of your own",
        "expected": expected(pair, networks, method),
        "source": made.source,
        "differs": [*DIFFERS, *made.differs],
    }


def expected(pair: Pair, networks: str, method: str) -> Sections:
    """Return the published numbers of a row, beside both networks' own accuracy."""
    found = {"top1": TOP1.get(method, {}).get(networks), "stdev": TOP1.get(f"{method}±", {}).get(networks)}
    known = {key: float(number) for key, number in found.items() if number is not None}
    return {**known, "teacher": NETWORKS[pair.teacher].top1, "alone": NETWORKS[pair.student].top1}
