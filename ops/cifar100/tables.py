"""The CIFAR-100 tables as data: networks, pairs, hyper-parameters by pair, published numbers."""

from __future__ import annotations

from dataclasses import dataclass

THREE_STAGES, FOUR_STAGES = ("layer1", "layer2", "layer3"), ("layer1", "layer2", "layer3", "layer4")
VGG = ("layer2", "layer3", "layer4", "layer5")  # its first stage counts as the stem


@dataclass(frozen=True)
class Network:
    """top1: published, trained alone; stages: the taps at the ends of its stages; lr: for its training."""

    top1: float
    stages: tuple[str, ...] = THREE_STAGES
    lr: float = 0.05


NETWORKS = {
    "resnet20": Network(69.06),
    "resnet32": Network(71.14),
    "resnet56": Network(72.34),
    "resnet110": Network(74.31),
    "resnet8x4": Network(72.50),
    "resnet32x4": Network(79.42),
    "resnet50": Network(79.34, FOUR_STAGES),
    "wrn_16_2": Network(73.26),
    "wrn_40_1": Network(71.98),
    "wrn_40_2": Network(75.61),
    "vgg8": Network(70.36, VGG),
    "vgg13": Network(74.64, VGG),
    "mobilenetv2_half": Network(64.60, FOUR_STAGES, lr=0.01),
    "shufflenetv1": Network(70.50, lr=0.01),
    "shufflenetv2": Network(71.82, lr=0.01),
}

# <teacher>-<student>: seven of one family, six of different ones. The columns of both tables below, in this order.
PAIRS = (
    *("wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1", "resnet56-resnet20", "resnet110-resnet20", "resnet110-resnet32"),
    *("resnet32x4-resnet8x4", "vgg13-vgg8"),
    *("vgg13-mobilenetv2_half", "resnet50-mobilenetv2_half", "resnet50-vgg8"),
    *("resnet32x4-shufflenetv1", "resnet32x4-shufflenetv2", "wrn_40_2-shufflenetv1"),
)


def table(text: str) -> dict[str, dict[str, str]]:
    """Return {row: {pair: cell}} of a table of words; "-" is an empty cell, which is left out."""
    rows = (line.split() for line in text.strip().splitlines())
    return {name: {pair: cell for pair, cell in zip(PAIRS, cells, strict=True) if cell != "-"} for name, *cells in rows}


# Pairs of one family: ITRD's order of the entropy is 1.01 for them, and 1.5 for the others.
SAME_FAMILY = PAIRS[:7]
# Pairs whose second stages give maps of unequal size.
UNEQUAL_STAGES = PAIRS[8:]

# Hyper-parameters by pair. ttm, wttm, wttm-crd, wttm-itrd: gamma, weight; itrd: weight of the mutual information; dkd:
# weight of the non-target part; lskd: temperature, weight; dkd-lskd: temperature, weights of the two parts; mlkd-lskd:
# weight; rld: weight of the part on the other classes; reviewkd: weight; kd-nd: weights of kd, nd; dkd-nd: weights of
# dkd's two parts, of nd; wkd-l: temperature, weight; wkd-f: weight of the means, weight; wkd: both.
SETTINGS = table("""
ttm      0.1,101 0.1,76  0.3,7   0.2,8   0.1,33  0.1,100 0.1,45   0.2,16  0.2,20 0.1,70 0.2,12    0.4,40 0.3,8
wttm     0.1,4   0.1,3   0.3,1.5 0.2,2   0.1,1.5 0.1,3   0.1,2.25 0.2,3   0.2,5  0.1,2  0.2,1.4   0.4,16 0.3,3
itrd     1       1       1       1       1       1       1        1       0      0      1         1      0
wttm-crd 0.1,4   0.1,2   0.3,0.6 0.2,1.4 0.2,1   0.2,4   0.2,4    0.3,4.2 0.3,3  0.1,3  0.2,0.4   0.4,12 0.2,0.16
wttm-itrd 0.3,6  0.4,0.08 0.5,5  0.3,1.5 0.3,0.015 0.1,1.5 0.1,0.5 0.3,0.03 0.2,0.02 0.1,1 0.3,0.6 0.4,0.8 0.1,0.2
dkd      6       6       2       -       2       8       6        6       8      -      8         8      8
rld      8       8       8       8       8       8       8        8       8      -      -         8      -
lskd     2,9     2,9     2,9     4,12    2,9     2,9     3,9      3,9     3,1    -      -         2,9    -
dkd-lskd 2,12,24 2,12,24 3,12,24 2,15,30 2,15,30 2,9,72  2,15,30  3,9,18  2,15,30 -     -         2,9,72 -
mlkd-lskd 9      9       9       9       9       9       6        6       9      -      -         6      -
reviewkd 5       5       0.6     -       1       5       -        -       -      -      5         8      5
kd-nd    -       1,1.5   1,2     -       -       3.5,2   -        -       -      -      2.5,1.5   -      -
dkd-nd   -       1,6,1   2.5,4,3.5 -     -       2,8,0.5 -        -       -      -      0.5,8,4   -      -
wkd-l    -       -       -       -       -       8,200   -        -       -      -      -         -      6,200
wkd-f    -       -       -       -       -       4,0.08  -        -       -      -      -         -      -
wkd      -       -       -       -       -       8,200,8,0.08 -   -       -      -      -         -      -
""")

# Published top-1 and, where it is given, its standard deviation.
TOP1 = table("""
kd       74.92 73.54 70.66 70.67 73.08 73.33 72.98 67.37 67.35 73.81 74.07 74.45 74.83
fitnet   73.58 72.24 69.21 68.99 71.06 73.50 71.02 64.14 63.16 70.69 73.59 73.54 73.73
at       74.08 72.77 70.55 70.22 72.31 73.44 71.43 59.40 58.58 71.84 71.73 72.73 73.32
sp       73.83 72.43 69.67 70.04 72.69 72.94 72.68 66.30 68.08 73.34 73.48 74.56 74.52
vid      74.11 73.30 70.38 70.16 72.61 73.09 71.23 65.56 67.57 70.30 73.38 73.40 73.61
rkd      73.35 72.22 69.61 69.25 71.82 71.90 71.48 64.52 64.43 71.50 72.28 73.21 72.21
pkt      74.54 73.45 70.34 70.25 72.61 73.64 72.88 67.13 66.52 73.01 74.10 74.69 73.89
crd      75.48 74.14 71.16 71.46 73.48 75.51 73.94 69.73 69.11 74.30 75.11 75.65 76.05
itrd     76.12 75.18 71.47 71.99 74.26 76.69 74.93 70.39 71.34 75.49 76.69 77.40 77.09
dist     75.51 74.73 71.75 71.65 73.69 76.31 73.89 68.50 68.66 74.11 76.34 77.35 76.40
dkd      76.24 74.81 71.97 -     74.11 76.32 74.68 69.71 70.35 -     76.45 77.07 76.70
lskd     76.11 74.37 71.43 71.48 74.17 76.62 74.36 68.61 69.02 -     -     75.56 -
dkd-lskd 76.39 74.89 72.32 71.85 74.29 77.01 74.81 69.98 70.45 -     -     77.37 -
ttm      76.23 74.32 71.83 71.46 73.97 76.17 74.33 68.98 69.24 74.87 74.18 76.57 75.39
ttm±     0.15  0.31  0.16  0.16  0.23  0.28  0.07  -     -     -     -     -     -
wttm     76.37 74.58 71.92 71.67 74.13 76.06 74.44 69.16 69.59 74.82 74.37 76.55 75.42
wttm±    0.10  0.26  0.40  0.28  0.37  0.27  0.19  -     -     -     -     -     -
wttm-crd 76.61 74.94 72.20 72.13 74.52 76.65 74.71 70.30 70.84 75.30 75.82 77.04 76.86
wttm-itrd 76.65 75.34 72.16 72.20 74.36 77.36 75.13 70.70 71.56 76.00 77.03 77.68 77.44
simkd    75.53 74.53 71.05 71.06 73.92 78.08 74.89 69.44 69.97 -     77.18 78.39 -
simkd±   -     -     -     -     -     0.15  -     -     -     -     -     -     -
kd-nd    -     -     72.53 -     -     75.54 -     -     -     -     -     -     -
dkd-nd   -     -     -     -     -     76.28 -     -     -     -     -     -     -
wkd-l    -     -     -     -     -     76.53 -     -     -     -     -     -     -
wkd-f    -     -     -     -     -     76.77 -     -     -     -     -     -     -
wkd      -     -     -     -     -     77.28 -     -     -     -     -     -     -
""")

# Published with a second, strongly augmented view of every sample.
STRONG_VIEWS = table("""
mlkd-lskd 76.95 75.56 72.33 72.27 74.32 78.28 75.22 70.94 71.19 -   -     78.76 -
""")["mlkd-lskd"]

# {recipe: top-1} where a source other than the recipe's gives a different number.
ALSO_SOURCE = "the SimKD authors' own runs (README of their code), with a teacher of theirs"
ALSO = {
    "cifar100/resnet8x4/alone": "73.09 ± 0.30",
    "cifar100/resnet32x4-resnet8x4/kd": "74.42 ± 0.05",
}
# The highest top-1 published for a pair, by any method, with its source and how much of it is public.
HIGHEST = {
    "resnet32x4-resnet8x4": "78.55 ± 0.10 (RSM-DKD, a manuscript of 2026: neither a formula nor code of it was found, "
    "so it has no row and is not verified); with formula and code, 78.28 (MLKD + LSKD, Sun et al., arXiv 2403.01427: "
    "strongly augmented views, 480 epochs) and, of 240 epochs of crops and flips, 78.08 (SimKD, Chen et al., arXiv "
    "2203.14001, from a teacher of theirs) and 77.36 (WTTM + ITRD, Zheng and Yang, arXiv 2402.11148)"
}
# Published methods that have no term here, and why.
MISSING = {
    "AEKT (Park and Lee, arXiv 2409.01679)": "only its abstract was found: no formula, no code, no table",
    "DSKD (Luo et al., arXiv 2202.07846)": "only its abstract was found; the official repository is empty",
    "DPK (Qiu et al., arXiv 2206.06067)": "the official repository is empty; of its Swin encoders and decoder only an "
    "unverified re-implementation was found, and the numbers quoted for it could not be traced to a source",
    "RSM-DKD (manuscript, 2026)": "neither a formula nor code was found",
    "DeepKD / CRLD (2025)": "formulas and code are public, but no number to compare a run with; its decoupled momenta "
    "are an optimiser of its own, not a term",
    "GKD, IKD (object detection)": "no code was found",
}
