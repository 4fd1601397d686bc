"""What the scripts behind the CIFAR-100 tables train with, row by row."""

from __future__ import annotations

from typing import Any

from tests.ops.published.base import ABSENT, Published, term

COLUMNS = (
    *("wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1", "resnet56-resnet20", "resnet110-resnet20", "resnet110-resnet32"),
    *("resnet32x4-resnet8x4", "vgg13-vgg8", "vgg13-mobilenetv2_half", "resnet50-mobilenetv2_half", "resnet50-vgg8"),
    *("resnet32x4-shufflenetv1", "resnet32x4-shufflenetv2", "wrn_40_2-shufflenetv1"),
)


def column(text: str) -> dict[str, tuple[float, ...]]:
    """{pair: numbers} of a row with a cell for each pair; "-" is none."""
    cells = dict(zip(COLUMNS, text.split(), strict=True))
    return {pair: tuple(float(n) for n in cell.split(",")) for pair, cell in cells.items() if cell != "-"}


def stages(pair: str) -> list[str]:
    """The ends of the stages, as the recipes write them."""
    first = {"vgg": range(2, 6), "mobilenet": range(1, 5), "resnet50": range(1, 5)}
    teacher, student = pair.split("-")
    names = [
        [f"layer{i}" for i in next((taps for start, taps in first.items() if network.startswith(start)), range(1, 4))]
        for network in (student, teacher)
    ]
    return [f"{s} > {t}" for s, t in zip(*names, strict=True)]


REPDISTILLER = "RepDistiller: train_student.py and scripts"
CRD_PROTOCOL = {
    "views.size": 32,
    "views.crop": "padded",
    "optimizer.opt": "momentum",
    "optimizer.lr": 0.05,
    "optimizer.weight_decay": 5e-4,
    "optimizer.decay_all": True,
    "schedule.sched": "multistep",
    "schedule.milestones": [150, 180, 210],
    "train.epochs": 240,
    "train.batch_size": 64,
    "train.precision": "float32",
}
OF_ALL_ROWS = ("the best epoch's on the test set", "partial batch is left out", "normalised by statistics")
SLOW = ("mobilenetv2_half", "shufflenetv1", "shufflenetv2")  # trained at 0.01
WARM = {"warmup_epochs": 20.0}
BY_STEP = "rises with every step"

GAMMAS = {  # arXiv 2402.11148, appendix A.4: gamma, beta
    "ttm": column(
        "0.1,101 0.1,76 0.3,7 0.2,8 0.1,33 0.1,100 0.1,45 0.2,16 0.2,20 0.1,70 0.2,12 0.4,40 0.3,8",
    ),
    "wttm": column("0.1,4 0.1,3 0.3,1.5 0.2,2 0.1,1.5 0.1,3 0.1,2.25 0.2,3 0.2,5 0.1,2 0.2,1.4 0.4,16 0.3,3"),
    "wttm-crd": column("0.1,4 0.1,2 0.3,0.6 0.2,1.4 0.2,1 0.2,4 0.2,4 0.3,4.2 0.3,3 0.1,3 0.2,0.4 0.4,12 0.2,0.16"),
    "wttm-itrd": column(
        "0.3,6 0.4,0.08 0.5,5 0.3,1.5 0.3,0.015 0.1,1.5 0.1,0.5 0.3,0.03 0.2,0.02 0.1,1 0.3,0.6 0.4,0.8 0.1,0.2"
    ),
}
DKD_BETA = column("6 6 2 - 2 8 6 6 8 - 8 8 8")  # mdistiller: configs/cifar100/dkd
LSKD_LOGS = column("2,9 2,9 2,9 4,12 2,9 2,9 3,9 3,9 3,1 - - 2,9 -")  # names of logs: base temperature, weight
DKD_LOGS = column("2,12,2 2,12,2 3,12,2 2,15,2 2,15,2 2,9,8 2,15,2 3,9,2 2,15,2 - - 2,9,8 -")  # and non-target weight
MLKD_LOGS = column("9 9 9 9 9 9 6 6 9 - - 6 -")
REVIEWKD_WEIGHTS = column("5 5 0.6 - 1 5 - - - - 5 8 5")  # dvlab: README
KD_ND = column("- 1,1.5 1,2 - - 3.5,2 - - - - 2.5,1.5 - -")  # train_cifar.sh: kd, nd
DKD_ND = column("- 1,6,1 2.5,4,3.5 - - 2,8,0.5 - - - - 0.5,8,4 - -")  # tckd, nckd, nd
ITRD_MUTUAL = column("1 1 1 1 1 1 1 1 0 0 1 1 0")
CE, CE_LSKD = term("ce", 1.0), term("ce", 0.1)


def itrd(pair: str) -> dict[str, Any]:
    """alpha_it 1.01 for the seven pairs of one family, 1.5 (the script's default) for the others."""
    alpha = 1.01 if COLUMNS.index(pair) < 7 else 1.5
    (mutual,) = ITRD_MUTUAL[pair]
    return term("itrd", 1.0, alpha=alpha) | ({} if mutual == 1 else {"method.itrd.mutual_weight": mutual})


def wkd(logits: tuple[float, float] | None, features: tuple[float, float] | None) -> dict[str, Any]:
    """logits: temperature, weight; features: MEAN_COV_RATIO, weight. COSINE_DECAY_EPOCH is 150."""
    found = dict(CE)
    if logits:
        found |= term("nkd", 1.0, non_target_weight=0.0)  # -p_t log q_t, which the script adds with weight 1
        found |= term("wkd_l", logits[1], temperature=logits[0], decay_from_epoch=150.0)
    if features:
        found |= term("wkd_f", features[1], mean_weight=features[0], decay_from_epoch=150.0)
    return found


def cifar(method: str, pair: str) -> Published:
    """A row of the CIFAR-100 tables."""
    student = pair.split("-")[-1]
    fields = {**CRD_PROTOCOL, "student.model": f"cifar_{student}"}
    if student in SLOW:
        fields["optimizer.lr"] = 0.01
    if method == "alone":
        return Published(REPDISTILLER, fields | CE, unseen=OF_ALL_ROWS)
    fields["teacher.model"] = f"cifar_{pair.split('-')[0]}"
    source, own, differs, unseen = method_of(method, pair)
    return Published(source, fields | own, differs, (*OF_ALL_ROWS, *unseen))


def method_of(method: str, pair: str) -> tuple[str, dict[str, Any], dict[str, tuple[Any, str]], tuple[str, ...]]:
    """(source, its fields, what differs, what differs unseen)."""
    taps, plain = (
        stages(pair),
        {
            "kd": term("ce", 0.1) | term("kd", 0.9, temperature=4.0),
            "at": CE | term("at", 1000.0, pairs=stages(pair)),
            "sp": CE | term("sp", 3000.0, pairs=stages(pair)[-1:]),
            "vid": CE | term("vid", 1.0, pairs=stages(pair)),
            "rkd": CE | term("rkd", 1.0),
            "pkt": CE | term("pkt", 30000.0),
            "crd": CE | term("crd", 0.8),
        },
    )
    if method in plain:
        return REPDISTILLER, plain[method], {}, ()
    if method == "fitnet":
        unequal = ("pooled before a 1x1 regressor",) if COLUMNS.index(pair) >= 8 else ()
        return REPDISTILLER, CE | term("fitnet", 100.0, pairs=taps[1:2]), {}, unequal
    if method in GAMMAS:
        gamma, weight = GAMMAS[method][pair]
        kind = "ttm" if method == "ttm" else "wttm"
        beside = {"wttm-crd": term("crd", 0.8), "wttm-itrd": itrd(pair)}.get(method, {})
        return "TTM: train_student.py; appendix A.4", CE | term(kind, weight, gamma=gamma) | beside, {}, ()
    if method == "itrd":
        return "ITRD: README (-b 1 -r 1 --lambda_corr 2 --lambda_mutual 1 --alpha_it 1.01)", CE | itrd(pair), {}, ()
    if method == "reviewkd":
        reviewed = term(
            "reviewkd", REVIEWKD_WEIGHTS[pair][0], **WARM, pairs=[*taps, "classifier_input > classifier_input"]
        )
        half = "half the batch and half the rate"
        rate = {"optimizer.opt": "sgd", "train.batch_size": 128, "optimizer.lr": 0.02 if "shuffle" in pair else 0.1}
        ours = {"optimizer.opt": "momentum", "train.batch_size": 64, "optimizer.lr": rate["optimizer.lr"] / 2}
        differs = {name: (value, half) for name, value in ours.items()}
        return "dvlab ReviewKD: README", CE | reviewed | rate, differs, ("behind their last activation", BY_STEP)
    if method == "dist":
        return "image_classification_sota: dist_cifar.yaml", CE | term("dist", 2.0, temperature=4.0), {}, ()
    if method == "dkd":
        own = term("dkd", 1.0, **WARM, temperature=4.0, non_target_weight=DKD_BETA[pair][0])
        return "mdistiller: configs/cifar100/dkd", CE | own, {}, (BY_STEP,)
    if method == "rld":
        own = term("rld", 1.0, **WARM, temperature=4.0, correlation_weight=8.0)
        return "RLD: cfg.py", CE | own, {}, (BY_STEP,)
    if method == "lskd":
        temperature, weight = LSKD_LOGS[pair]
        source = "logit-standardization-KD: cfg.py (CE_WEIGHT 0.1), README's logs"
        return source, CE_LSKD | term("lskd", weight, temperature=temperature), {}, ()
    if method == "dkd-lskd":
        temperature, weight, beta = DKD_LOGS[pair]
        script = {"temperature": 4.0, "target_weight": weight, "non_target_weight": weight**2}
        own = term("dkd", 1.0, **WARM, **script, standardise=True)
        named = "those that name the released logs"
        differs: dict[str, tuple[Any, str]] = {
            "method.dkd.temperature": (temperature, named),
            "method.dkd.non_target_weight": (weight * beta, named),
        }
        return "logit-standardization-KD: tools/train.py", CE | own, differs, (BY_STEP,)
    if method == "mlkd-lskd":
        own = term("mlkd", MLKD_LOGS[pair][0], temperatures=[2.0, 2.0, 3.0, 5.0, 6.0], standardise=True)
        rate = 0.01 if pair.endswith(SLOW) else 0.05
        script = {"train.epochs": 480, "optimizer.lr": rate / 2}
        return "logit-standardization-KD: configs/cifar100/mlkd", CE_LSKD | own | script, {}, ("one view of each",)
    if method == "simkd":
        reused = {"student.classifier": "reused"} | term("simkd", 1.0)
        return "SimKD: scripts", reused, {}, ("the teacher is that of all rows",)
    if method in ("wkd-l", "wkd-f", "wkd"):
        logits = {"resnet32x4-resnet8x4": (8.0, 200.0), "wrn_40_2-shufflenetv1": (6.0, 200.0)}[pair]
        features = (8.0 if method == "wkd" else 4.0, 0.08)
        own = wkd(None if method == "wkd-f" else logits, None if method == "wkd-l" else features)
        return "WKD: configs/cifar100", own, {}, ("float16 autocast",)
    if method in ("kd-nd", "dkd-nd"):
        training = {"train.batch_size": 128, "train.micro_batch": 64, "optimizer.opt": ABSENT}
        training["optimizer.lr"] = 0.02 if pair.endswith(SLOW) else 0.1
        if method == "kd-nd":
            kd_weight, nd_weight = KD_ND[pair]
            own = term("kd", kd_weight, **WARM, temperature=4.0)
        else:
            target, non_target, nd_weight = DKD_ND[pair]
            own = term("dkd", 1.0, **WARM, temperature=4.0, target_weight=target, non_target_weight=non_target)
            if target == 1:
                del own["method.dkd.target_weight"]
        unseen = ("not rounded to four decimals", "begins with PyTorch's bias", BY_STEP)
        return "KD-via-ND: CIFAR/train_cifar.sh", CE | own | term("nd", nd_weight) | training, {}, unseen
    assert method == "feature_only", method
    script = {"train.epochs": 50, "optimizer.opt": "adamw", "train.batch_size": 128}
    differs = {
        name: (CRD_PROTOCOL[name], "SGD for 240 epochs")
        for name in ("train.epochs", "optimizer.opt", "train.batch_size")
    }
    return "KD_wo_CE: other pairs, other schedule", CE | term("feature_only", 1.0, pairs=taps) | script, differs, ()
