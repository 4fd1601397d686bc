"""What the scripts behind the ImageNet tables train with."""

from __future__ import annotations

from typing import Any

from tests.ops.published.base import ABSENT, Published, term

CE = term("ce", 1.0)
TORCHDISTILL = "torchdistill: configs of ImageNet"
IMAGENET_PROTOCOL = {
    "optimizer.opt": "momentum",
    "optimizer.lr": 0.1,
    "optimizer.weight_decay": 1e-4,
    "optimizer.decay_all": True,
    "schedule.sched": "multistep",
    "schedule.milestones": [30, 60, 90],
    "train.epochs": 100,
    "train.batch_size": 256,
    "train.micro_batch": 64,
    "train.precision": "float32",
}
LAST = "partial batch of an epoch is left out"
HALF = {"train.batch_size": (256, "0.2 for batches of 512"), "optimizer.lr": (0.1, "0.2 for batches of 512")}
TWICE = {"train.batch_size": 512, "optimizer.lr": 0.2}
STUDENTS = {
    "resnet18": {"student.model": "resnet18", "student.args.zero_init_last": False},  # torchvision's, as published
    "mobilenetv1": {"student.model": "mobilenetv1"},
}


def imagenet(name: str) -> Published:
    teacher, student, method = name.split("-", 2)
    if student == "deit_tiny":
        return deit(method)
    fields = {**IMAGENET_PROTOCOL, **STUDENTS[student], "teacher.model": f"{teacher}.tv_in1k"}
    if method == "wttm":
        gamma, weight = (0.7, 3.5) if student == "mobilenetv1" else (0.8, 1.6)
        fields["train.micro_batch"] = 256
        differs = {"train.micro_batch": (64, "batch norm sees 64 images")}
        return Published(TORCHDISTILL, fields | CE | term("wttm", weight, gamma=gamma), differs, (LAST,))
    if method == "kd":
        own = term("ce", 0.5) | term("kd", 0.5, temperature=1.0)
        return Published("mdistiller: configs/imagenet", fields | own | TWICE, HALF, (LAST,))
    if method == "dkd":  # WARMUP 1 counts epochs from 1: none
        own = CE | term("dkd", 1.0, temperature=1.0, non_target_weight=0.5 if student == "resnet18" else 2.0)
        return Published("mdistiller: configs/imagenet", fields | own | TWICE, HALF, (LAST,))
    if method == "rld":
        own = CE | term("rld", 1.0, temperature=1.0, correlation_weight=0.5 if student == "resnet18" else 2.0)
        return Published("RLD: configs/imagenet", fields | own | TWICE, HALF, (LAST,))
    if method == "reviewkd":
        taps = [*(f"layer{i} > layer{i}" for i in range(1, 5)), "classifier_input > classifier_input"]
        return Published(
            "dvlab ReviewKD", fields | CE | term("reviewkd", 1.0, pairs=taps), {}, ("last activation", LAST)
        )
    if method == "dist":
        fields |= {"optimizer.opt": ABSENT, "optimizer.decay_all": ABSENT, "train.micro_batch": 32}
        return Published(
            "image_classification_sota: resnet_dist.yaml", fields | CE | term("dist", 2.0, temperature=1.0)
        )
    if method == "nkd":
        fields["train.micro_batch"] = 32
        own = CE | term("nkd", 1.0, non_target_weight=1.5)
        return Published("cls_KD: res34_distill_res18_img.py", fields | own, {}, ("teacher is mmcls's",))
    if method == "simkd":
        fields |= {
            "train.epochs": 120,
            "views.scale": [0.1, 1.0],
            "views.ratio": [0.8, 1.25],
            "student.classifier": "reused",
        }
        return Published("SimKD: scripts", fields | term("simkd", 1.0), {}, ("trained their own for 120 epochs",))
    assert method in ("wkd-l", "wkd-f", "wkd"), method
    return Published("WKD: configs/imagenet", fields | imagenet_wkd(student, method), {}, ("float16 autocast", LAST))


def imagenet_wkd(student: str, method: str) -> dict[str, Any]:
    """Without COSINE_DECAY_EPOCH the script's default is 0: a decay over the whole run."""
    small = student == "resnet18"
    found = dict(CE)
    if method != "wkd-f":
        weight = (30.0 if method == "wkd-l" else 10.0) if small else 25.0
        sharpness = {} if small else {"sharpness": 2.0}
        found |= term("nkd", 1.0, non_target_weight=0.0)
        found |= term("wkd_l", weight, temperature=2.0, decay_from_epoch=0.0, **sharpness)
    if method != "wkd-l":
        weight = (0.02 if method == "wkd-f" else 1.0) if small else 0.005
        start = 0.0 if small or method == "wkd" else 30.0
        found |= term("wkd_f", weight, grid=4, projector="bottleneck", decay_from_epoch=start)
    return found


def deit(method: str) -> Published:
    fields: dict[str, Any] = {
        "views.interpolation": "bicubic",
        "views.auto_augment": "rand-m9-mstd0.5-inc1",
        "views.erase_probability": 0.25,
        "views.erase_fill": "noise",
        "data.evaluation_interpolation": "bicubic",
        "student.model": "deit_tiny_patch16_224",
        "teacher.model": "deit3_small_patch16_224.fb_in22k_ft_in1k",
        "optimizer.opt": "adamw",
        "optimizer.lr": 1e-3,
        "optimizer.weight_decay": 0.05,
        "schedule.warmup_epochs": 20.0,
        "schedule.warmup_lr": 1e-6,
        "schedule.warmup_prefix": True,
        "schedule.min_lr": 1e-5,
        "train.epochs": 300,
        "train.batch_size": 1024,
        "train.micro_batch": 256,
        "train.clip_norm": 5.0,
        "method.ce.weight": 1.0,
        "method.ce.label_smoothing": 0.1,
        "method.wttm.weight": None,  # not published
        "method.wttm.gamma": None,
    }
    named = "not published; tune them"
    differs: dict[str, tuple[Any, str]] = {"method.wttm.weight": (1.6, named), "method.wttm.gamma": (0.8, named)}
    unseen: tuple[str, ...] = ("bfloat16",)
    if method == "wttm-vitkd":
        fields |= term("vitkd", 1.0)
        unseen += ("mask token does not decay",)
    return Published("cls_KD: deit-s3_distill_deit-t_img.py", fields, differs, unseen)
