"""The rows of the CIFAR-100 tables: 13 pairs of networks and 27 methods, each written once and combined here.

`cifar100/<teacher>-<student>/<method>` is a row; `cifar100/<network>/alone` trains a network by itself, which is how
the teachers are made. A method that has hyper-parameters of its own for each pair (`SETTINGS`) has a row only where
they are published. What all rows share is in recipes/cifar100/common.yaml.

Not here: the methods (`ops.cifar100.methods`); the ImageNet rows and those of the feature-only paper, which are plain
files in recipes/.
"""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from pathlib import Path

from cluster.recipe.files import merge, read_recipe
from ops.cifar100.methods import CRD_PAPER, CRD_TABLE, METHODS
from ops.cifar100.tables import NETWORKS, PAIRS, SETTINGS, STRONG_VIEWS, TOP1, UNEQUAL_STAGES
from ops.cifar100.terms import NetworkPair, Sections, beside_labels

COMMON = Path(__file__).parents[1] / "recipes" / "cifar100" / "common.yaml"

DIFFERS = (
    "published numbers are the best epoch's on the test set, from teachers that the authors trained; here the last "
    "epoch's weights are deployed",
    "an epoch's last, partial batch is left out, which the published loaders keep",
    "images are normalised by statistics that differ from the published loaders' by up to 0.0003",
)


def names() -> list[str]:
    """Return the names of all rows: networks alone, then pair by pair."""
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
    made = {"name": f"{networks}-{method}", "about": about(name), **deepcopy(_shared())}
    if method == "alone":
        return merge(made, student_sections(networks) | beside_labels())
    pair, settings = NetworkPair(*networks.split("-")), SETTINGS.get(method, {}).get(networks, "")
    merge(made, student_sections(pair.student))
    merge(made, {"teacher": {"model": f"cifar_{pair.teacher}", "checkpoint": weights_of(pair.teacher)}})
    return merge(made, METHODS[method].sections(pair, *json.loads(f"[{settings}]")))


@cache
def _shared() -> Sections:
    """Return what all rows start from, read from its file once."""
    return read_recipe(COMMON)


def student_sections(network: str) -> Sections:
    """Return the sections of a network that is trained as a student."""
    return {"student": {"model": f"cifar_{network}"}, "optimizer": {"lr": NETWORKS[network].lr}}


def weights_of(network: str) -> str:
    """Return the path of the weights that the network's own row writes."""
    return f"outputs/cifar100/{network}-alone/student.safetensors"


def about(name: str) -> Sections:
    """Return what a row follows and what it is expected to reach, as its recipe's `about` section."""
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
    pair, made = NetworkPair(*networks.split("-")), METHODS[method]
    return {
        "title": f"{pair.teacher} teaches {pair.student} on CIFAR-100: {method}.",
        "paper": made.paper,
        **shared,
        "teacher": f"python -m ops train cifar100/{pair.teacher}/alone, or teacher.checkpoint=FILE of your own",
        "expected": expected(pair, networks, method),
        "source": made.source,
        "differs": [*DIFFERS, *made.differs, *(made.unequal if networks in UNEQUAL_STAGES else ())],
    }


def expected(pair: NetworkPair, networks: str, method: str) -> Sections:
    """Return the published numbers of a row, with both networks' accuracy when trained alone."""
    found = {"top1": TOP1.get(method, {}).get(networks), "stdev": TOP1.get(f"{method}±", {}).get(networks)}
    known = {key: float(number) for key, number in found.items() if number is not None}
    known |= {"teacher": NETWORKS[pair.teacher].top1, "alone": NETWORKS[pair.student].top1}
    if method == "mlkd-lskd":
        return known | {"note": f"{STRONG_VIEWS[networks]} is published for a second, strongly augmented view"}
    return known
