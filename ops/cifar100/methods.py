"""The methods of the CIFAR-100 tables: what each adds to a recipe, its paper, its source, and where it differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ops.cifar100 import terms as adds
from ops.cifar100.terms import Sections


@dataclass(frozen=True)
class Method:
    """A method of the tables.

    sections: what it adds to a pair's recipe, from the pair and its cell of `SETTINGS`; paper: the method's; source: of
    the hyper-parameters and of the numbers in `TOP1`; differs: where it departs from the published script, beyond what
    all rows do (`DIFFERS`); unequal: likewise, for the pairs whose second stages are of unequal size.
    """

    sections: Callable[..., Sections]
    paper: str
    source: str
    differs: tuple[str, ...] = ()
    unequal: tuple[str, ...] = ()


CRD_PAPER = 'Tian et al., "Contrastive Representation Distillation", arXiv 1910.10699'
TTM_PAPER = 'Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv 2402.11148'
ND_PAPER = (
    'Wang et al., "Improving Knowledge Distillation via Regularizing Feature Norm and Direction", arXiv 2305.17007'
)
CRD_TABLE = "Tian et al., arXiv 1910.10699, table as in the README of their code"
TTM_TABLE = "Zheng and Yang, arXiv 2402.11148, CIFAR-100 tables and appendix A.4"
LSKD_TABLE = "Sun et al., arXiv 2403.01427, tables as in the README of their code"
ND_SOURCE = "the README and scripts of the authors' code, with its default of two GPUs"
ND_DIFFERS = (
    "class means are not rounded to four decimals, as the authors' file of them is",
    "the student's own classifier begins with PyTorch's bias, theirs with 0",
)
WKD_PAPER = (
    'Lv et al., "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", arXiv 2412.08139'
)
WKD_SOURCE = "the authors' configurations and README"
WKD_DIFFERS = ("float32; the authors run the networks in float16 autocast",)
BY_STEP = "the weight of the term rises with every step; the authors' with every epoch, by 1/20"
DKD_SOURCE = f"{TTM_TABLE} (it quotes them); the non-target weights are those of the DKD authors' code"

METHODS = {
    "kd": Method(adds.kd, 'Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531', CRD_TABLE),
    "fitnet": Method(
        adds.fitnet,
        'Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550',
        CRD_TABLE,
        unequal=(
            "the larger map is pooled before a 1x1 regressor; the tables' regressor is a strided or transposed "
            "convolution",
        ),
    ),
    "at": Method(adds.at, 'Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv 1612.03928', CRD_TABLE),
    "sp": Method(adds.sp, 'Tung and Mori, "Similarity-Preserving Knowledge Distillation", arXiv 1907.09682', CRD_TABLE),
    "vid": Method(adds.vid, 'Ahn et al., "Variational Information Distillation", arXiv 1904.05835', CRD_TABLE),
    "rkd": Method(adds.rkd, 'Park et al., "Relational Knowledge Distillation", arXiv 1904.05068', CRD_TABLE),
    "pkt": Method(adds.pkt, 'Passalis and Tefas, "Probabilistic Knowledge Transfer", arXiv 1803.10837', CRD_TABLE),
    "crd": Method(adds.crd, CRD_PAPER, CRD_TABLE),
    "reviewkd": Method(
        adds.reviewkd,
        'Chen et al., "Distilling Knowledge via Knowledge Review", arXiv 2104.09044',
        "the authors' scripts, for the weight",
        (
            "half the batch and half the rate of the authors' scripts, and no Nesterov momentum, as in all rows here",
            "stages are tapped behind their last activation, the published runs' before it",
            BY_STEP,
        ),
    ),
    "dist": Method(
        adds.dist,
        'Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536',
        f"{TTM_TABLE} (it quotes them; the DIST authors give 74.43 ± 0.24 for wrn_40_2-wrn_40_1); the weight of 2 is "
        "that of the configurations in the DIST authors' training code",
    ),
    "dkd": Method(
        adds.dkd, 'Zhao et al., "Decoupled Knowledge Distillation", arXiv 2203.08679', DKD_SOURCE, (BY_STEP,)
    ),
    "rld": Method(
        adds.rld,
        'Sun et al., "Knowledge Distillation with Refined Logits", arXiv 2408.07703',
        "the configurations of the authors' code; its README has no numbers",
        (BY_STEP,),
    ),
    "lskd": Method(
        adds.lskd, 'Sun et al., "Logit Standardization in Knowledge Distillation", arXiv 2403.01427', LSKD_TABLE
    ),
    "dkd-lskd": Method(
        adds.dkd_lskd,
        'Sun et al., "Logit Standardization in Knowledge Distillation", arXiv 2403.01427 (DKD + LSKD)',
        f"{LSKD_TABLE}; temperature and weights from the names of the logs beside it",
        (
            "temperature and weights are those that name the released logs; the released script would leave the "
            "temperature at 4 and square the weight of the part on the other classes",
            BY_STEP,
        ),
    ),
    "mlkd-lskd": Method(
        adds.mlkd_lskd,
        'Sun et al., "Logit Standardization in Knowledge Distillation", arXiv 2403.01427 (MLKD + LSKD)',
        f"{LSKD_TABLE}; the weight from the names of the logs beside it",
        (
            "one view of each sample a step, cropped and flipped; the authors add a second one by AutoAugment, and "
            "compare both",
        ),
    ),
    "itrd": Method(
        adds.itrd,
        'Miles et al., "Information Theoretic Representation Distillation", arXiv 2112.00459',
        "the README of the authors' code; weights and order of the entropy from the appendix of Zheng and Yang, arXiv "
        "2402.11148",
    ),
    "wkd-l": Method(
        adds.wkd_l,
        f"{WKD_PAPER} (WKD-L)",
        f"{WKD_SOURCE}; copies of the configuration for resnet32x4-resnet8x4 in other repositories have weights of 600 "
        "and 800",
        WKD_DIFFERS,
    ),
    "wkd-f": Method(adds.wkd_f, f"{WKD_PAPER} (WKD-F)", WKD_SOURCE, WKD_DIFFERS),
    "wkd": Method(adds.wkd, f"{WKD_PAPER} (WKD-L + WKD-F)", WKD_SOURCE, WKD_DIFFERS),
    "ttm": Method(adds.ttm, TTM_PAPER, TTM_TABLE),
    "wttm": Method(adds.wttm, TTM_PAPER, TTM_TABLE),
    "wttm-crd": Method(adds.wttm_crd, TTM_PAPER, TTM_TABLE),
    "wttm-itrd": Method(adds.wttm_itrd, TTM_PAPER, TTM_TABLE),
    "simkd": Method(
        adds.simkd,
        'Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", arXiv 2203.14001',
        "resnet8x4: the README of the authors' code (teachers of their own); shufflenetv1: the README of NORM's code, "
        f"quoting them; the others: {LSKD_TABLE}",
        (
            "the teacher is that of all rows here; the authors trained their own, of 79.42 for resnet32x4, and write "
            "WRNs as wide ResNets, whose last map a WRN gives behind its last batch norm and ReLU",
        ),
    ),
    "feature_only": Method(
        adds.feature_only,
        'Cooper et al., "Logit-Based Losses Limit the Effectiveness of Feature Knowledge Distillation", '
        "arXiv 2511.14981",
        "none: the paper's own pairs are the recipes in feature_only/; stages are paired with stages here",
        (
            "SGD for 240 epochs with crops and flips, as in all rows here; the paper has AdamW for 50 epochs, and no "
            "augmentation in its main experiments",
        ),
    ),
    "kd-nd": Method(adds.kd_nd, f"{ND_PAPER} (KD++)", ND_SOURCE, (*ND_DIFFERS, BY_STEP)),
    "dkd-nd": Method(adds.dkd_nd, f"{ND_PAPER} (DKD++)", ND_SOURCE, (*ND_DIFFERS, BY_STEP)),
}
