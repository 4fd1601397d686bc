"""What the code of the feature-only paper trains with."""

from __future__ import annotations

from typing import Any

from tests.ops.published.base import Published, term

FEATURE_ONLY_PROTOCOL = {
    "views.size": 32,
    "views.crop": "padded",
    "views.padding": 0,
    "views.flip_probability": 0.0,
    "views.num_views": 1,
    "optimizer.opt": "adamw",
    "optimizer.weight_decay": 0.01,
    "optimizer.decay_all": True,
    "schedule.sched": "onecycle",
    "train.epochs": 50,
    "train.batch_size": 128,
    "train.precision": "float32",
}
VIT = {
    "model": "vit_base_patch16_224",
    "args.img_size": 32,
    "args.patch_size": 4,
    "args.global_pool": "avg",
    "args.pool_include_prefix": True,
    "args.fc_norm": False,
    "args.weight_init": "jax",
}
ETT = VIT | {
    "model": "vit_tiny_patch16_224",
    "args.depth": 8,
    "args.num_heads": 6,
    "args.embed_dim": 192,
    "args.mlp_ratio": 3,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet34": {"model": "cifar_resnet34"},
    "resnet9": {"model": "cifar_resnet9"},
    "mobilenetv2": {"model": "cifar_mobilenetv2"},
    "vgg19": {"model": "cifar_vgg19_hidden"},
    "vgg11": {"model": "cifar_vgg11_hidden"},
    "vit_b": VIT,
    "vit_ett": ETT,
}
MAX_LR = {"resnet34": 0.0075, "resnet9": 0.0075, "mobilenetv2": 0.0075, "vgg19": 0.005, "vgg11": 0.005}
MAX_LR |= {"vit_b": 1e-4, "vit_ett": 1e-3}
# The generalised layers of the paper's configurations, as taps here: student's; teacher's by quality; by stages' ends.
RESNET34 = ["layer3.4", "layer3.5", "layer4.0", "layer4.1"], ["layer1.2", "layer2.3", "layer3.5", "layer4.2"]
LAYERS = {
    "resnet9": ([f"layer{i}" for i in range(1, 5)], *RESNET34),
    "mobilenetv2": (["blocks.1.1", "blocks.2.2", "blocks.4.2", "blocks.6.0"], *RESNET34),
    "vgg11": (
        [f"layer{i}" for i in range(2, 6)],
        ["layer4", "layer5.2", "layer5.5", "layer5"],
        [f"layer{i}" for i in range(2, 6)],
    ),
    "vit_ett": (
        [f"blocks.{i}" for i in (0, 2, 4, 6)],
        [f"blocks.{i}" for i in (6, 9, 10, 11)],
        [f"blocks.{i}" for i in (1, 3, 7, 9)],
    ),
}


def feature_only(name: str) -> Published:
    networks, *standard = name.removesuffix("-standard").split("-"), name.endswith("-standard")
    student = networks[-1]
    fields = {**FEATURE_ONLY_PROTOCOL, "optimizer.lr": MAX_LR[student], **term("ce", 1.0)}
    fields |= {f"student.{key}": value for key, value in NETWORKS[student].items()}
    unseen: tuple[str, ...] = ("attention's output layers",) if student.startswith("vit") else ()
    if len(networks) == 1:
        return Published("KD_wo_CE", fields, {}, ("trained from random weights here; the paper fine-tunes", *unseen))
    fields |= {f"teacher.{key}": value for key, value in NETWORKS[networks[0]].items()}
    own, *theirs = LAYERS[student]
    pairs = [f"{s} > {t}" for s, t in zip(own, theirs[standard[0]], strict=True)]
    trained = ("the teacher is trained from random weights",)
    return Published("KD_wo_CE", fields | term("feature_only", 1.0, pairs=pairs), {}, (*trained, *unseen))
