"""What each method of the CIFAR-100 tables adds to a pair's recipe: its terms and other training settings.

Each is a function of the pair and of the pair's settings in `ops.cifar100.tables`. Not here: the methods' papers,
sources and differences (`ops.cifar100.methods`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ops.cifar100.tables import NETWORKS, SAME_FAMILY, SETTINGS


@dataclass(frozen=True)
class NetworkPair:
    """A teacher and a student, by their names in `NETWORKS`."""

    teacher: str
    student: str

    def __str__(self) -> str:
        return f"{self.teacher}-{self.student}"

    @property
    def stages(self) -> list[dict[str, str]]:
        """The ends of both networks' stages, paired from shallow to deep."""
        taps = zip(NETWORKS[self.student].stages, NETWORKS[self.teacher].stages, strict=True)
        return [{"student": student, "teacher": teacher} for student, teacher in taps]


Sections = dict[str, Any]  # sections of a recipe
CLASSIFIER_INPUTS = {"student": "classifier_input", "teacher": "classifier_input"}


def term(name: str, weight: float, **fields: Any) -> dict[str, Any]:
    """Return a term as a recipe lists it."""
    return {"term": name, "weight": weight, **fields}


def terms(*parts: dict[str, Any]) -> Sections:
    return {"method": list(parts)}


def beside_labels(*parts: dict[str, Any]) -> Sections:
    """Return the `method` section of these terms and a cross-entropy of weight 1."""
    return terms(term("ce", 1), *parts)


def kd(pair: NetworkPair) -> Sections:
    return terms(term("ce", 0.1), term("kd", 0.9, temperature=4))


def fitnet(pair: NetworkPair) -> Sections:
    return beside_labels(term("fitnet", 100, pairs=pair.stages[1:2]))


def at(pair: NetworkPair) -> Sections:
    return beside_labels(term("at", 1000, pairs=pair.stages))


def sp(pair: NetworkPair) -> Sections:
    return beside_labels(term("sp", 3000, pairs=pair.stages[-1:]))


def vid(pair: NetworkPair) -> Sections:
    return beside_labels(term("vid", 1, pairs=pair.stages))


def rkd(pair: NetworkPair) -> Sections:
    return beside_labels(term("rkd", 1, distance_weight=25, angle_weight=50))


def pkt(pair: NetworkPair) -> Sections:
    return beside_labels(term("pkt", 30000))


def crd(pair: NetworkPair) -> Sections:
    return beside_labels(term("crd", 0.8))


def reviewkd(pair: NetworkPair, weight: float) -> Sections:
    return beside_labels(term("reviewkd", weight, warmup_epochs=20, pairs=[*pair.stages, CLASSIFIER_INPUTS]))


def dist(pair: NetworkPair) -> Sections:
    return beside_labels(term("dist", 2, temperature=4))


def dkd(pair: NetworkPair, non_target_weight: float) -> Sections:
    return beside_labels(term("dkd", 1, warmup_epochs=20, temperature=4, non_target_weight=non_target_weight))


def lskd(pair: NetworkPair, temperature: float, weight: float) -> Sections:
    return terms(term("ce", 0.1), term("lskd", weight, temperature=temperature))


def dkd_lskd(pair: NetworkPair, temperature: float, target_weight: float, non_target_weight: float) -> Sections:
    weights = {"target_weight": target_weight, "non_target_weight": non_target_weight}
    standardised = term("dkd", 1, warmup_epochs=20, temperature=temperature, **weights, standardise=True)
    return beside_labels(standardised)


def mlkd_lskd(pair: NetworkPair, weight: float) -> Sections:
    """Return MLKD on standardised logits, at the authors' base temperature of 2 and at 3, 5, 2 and 6.

    They train for 480 epochs at half the tables' learning rate.
    """
    training = {"optimizer": {"lr": NETWORKS[pair.student].lr / 2}, "train": {"epochs": 480}}
    mlkd = term("mlkd", weight, temperatures=[2, 2, 3, 5, 6], standardise=True)
    return training | terms(term("ce", 0.1), mlkd)


def rld(pair: NetworkPair, correlation_weight: float) -> Sections:
    return beside_labels(term("rld", 1, warmup_epochs=20, temperature=4, correlation_weight=correlation_weight))


def itrd_term(pair: NetworkPair, mutual_weight: float) -> dict[str, Any]:
    alpha = 1.01 if str(pair) in SAME_FAMILY else 1.5
    return term("itrd", 1, alpha=alpha, correlation_weight=2, mutual_weight=mutual_weight)


def itrd(pair: NetworkPair, mutual_weight: float) -> Sections:
    return beside_labels(itrd_term(pair, mutual_weight))


WKD_DECAY = {"decay_from_epoch": 150}


def wkd_l_terms(temperature: float, weight: float) -> list[dict[str, Any]]:
    """Return the paper's WKD-L, whose part on the label is NKD's and does not decay."""
    moved = term("wkd_l", weight, temperature=temperature, sharpness=1, **WKD_DECAY)
    return [term("nkd", 1, non_target_weight=0), moved]


def wkd_f_term(mean_weight: float, weight: float) -> dict[str, Any]:
    return term("wkd_f", weight, mean_weight=mean_weight, grid=1, projector="conv1x1", **WKD_DECAY)


def wkd_l(pair: NetworkPair, temperature: float, weight: float) -> Sections:
    return beside_labels(*wkd_l_terms(temperature, weight))


def wkd_f(pair: NetworkPair, mean_weight: float, weight: float) -> Sections:
    return beside_labels(wkd_f_term(mean_weight, weight))


def wkd(pair: NetworkPair, temperature: float, logit_weight: float, mean_weight: float, weight: float) -> Sections:
    return beside_labels(*wkd_l_terms(temperature, logit_weight), wkd_f_term(mean_weight, weight))


def ttm(pair: NetworkPair, gamma: float, weight: float) -> Sections:
    return beside_labels(term("ttm", weight, gamma=gamma))


def wttm(pair: NetworkPair, gamma: float, weight: float) -> Sections:
    return beside_labels(term("wttm", weight, gamma=gamma))


def wttm_crd(pair: NetworkPair, gamma: float, weight: float) -> Sections:
    return beside_labels(term("wttm", weight, gamma=gamma), term("crd", 0.8))


def wttm_itrd(pair: NetworkPair, gamma: float, weight: float) -> Sections:
    return beside_labels(term("wttm", weight, gamma=gamma), itrd_term(pair, float(SETTINGS["itrd"][str(pair)])))


def simkd(pair: NetworkPair) -> Sections:
    return {"student": {"classifier": "reused", "factor": 2}, **terms(term("simkd", 1))}


def feature_only(pair: NetworkPair) -> Sections:
    return beside_labels(term("feature_only", 1, pairs=pair.stages))


def nd_training(pair: NetworkPair) -> Sections:
    """Return the authors' training settings: Nesterov momentum, twice the tables' batch and learning rate.

    Their script multiplies its batch of 64 by the number of GPUs, two by default; batch norm sees the 64 of one.
    """
    return {
        "optimizer": {"opt": "sgd", "lr": 2 * NETWORKS[pair.student].lr},
        "train": {"batch_size": 128, "micro_batch": 64},
    }


def kd_nd(pair: NetworkPair, kd_weight: float, nd_weight: float) -> Sections:
    kd = term("kd", kd_weight, warmup_epochs=20, temperature=4)
    return nd_training(pair) | beside_labels(kd, term("nd", nd_weight))


def dkd_nd(pair: NetworkPair, target_weight: float, non_target_weight: float, nd_weight: float) -> Sections:
    decoupled = {"temperature": 4, "target_weight": target_weight, "non_target_weight": non_target_weight}
    return nd_training(pair) | beside_labels(term("dkd", 1, warmup_epochs=20, **decoupled), term("nd", nd_weight))
