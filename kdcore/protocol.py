"""What a network must have to be trained, to teach, or to be exported here; timm's networks have it all.

    forward(images [B,3,H,W]) -> logits [B,K]           always
    forward_features, forward_head                      for the tap `forward_features`, and for SimKD; both together
    get_classifier() -> nn.Module                       for the tap `classifier_input`, and for terms that read the
                                                        classifier; without it, the one linear layer with K outputs
    output_fmt = "NHWC"                                 where its maps are [B,H,W,C]: taps hand them out as [B,C,H,W]
    pretrained_cfg = {"mean": (...), "std": (...)}      what images are normalised by; without it, ImageNet's
    no_weight_decay() -> set of parameters' names       optional

Taps work on every module, whatever else the network has.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from kdcore.errors import Refused


def conform(network: Any, name: str, num_classes: int) -> nn.Module:
    """Return the network with what it lacks filled in: its number of classes, and what images are normalised by.

    Refused if it is not a network. name: what the recipe calls it.
    """
    if not isinstance(network, nn.Module):
        raise Refused(
            f"model {name!r} returns a {type(network).__name__}, not a torch.nn.Module; return the network from it"
        )
    if next(network.parameters(), None) is None:
        raise Refused(f"model {name!r} returns a {type(network).__name__} without parameters; return a whole network")
    if not hasattr(network, "num_classes"):
        network.num_classes = num_classes  # type: ignore[assignment]
    statistics = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    own = getattr(network, "pretrained_cfg", None) or {}
    if not statistics.keys() <= own.keys():
        network.pretrained_cfg = {**statistics, **own}  # type: ignore[assignment]
    return network


def has_features(network: nn.Module) -> bool:
    """Whether the network says where its features end and its head begins."""
    return hasattr(network, "forward_features") and hasattr(network, "forward_head")


def find_classifier(network: nn.Module) -> nn.Module | None:
    """Return the network's last layer: the one it names, else its one linear layer with an output per class."""
    if hasattr(network, "get_classifier"):
        found = network.get_classifier()  # type: ignore[operator]
        return found if isinstance(found, nn.Module) else None
    outputs = int(network.num_classes)  # type: ignore[arg-type]
    linear = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == outputs]
    return linear[0] if len(linear) == 1 else None


def require_logits(network: nn.Module, answer: object, in_training: bool) -> None:
    """Refuse a network's answer to images unless it is one tensor [B,K]; some give more in training alone."""
    if isinstance(answer, Tensor) and answer.ndim == 2:
        return
    found = f"a tensor {list(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
    name = type(network).__name__
    if in_training:
        raise Refused(
            f"{name} answers images with {found} in training, not with logits [B,K]; have it return these alone (some "
            "of torchvision's do with student.args={aux_logits: false})"
        )
    raise Refused(
        f"{name} answers images with {found}, not with logits [B,K]; leave out the args that make it do so, or take "
        "another model"
    )


def check_answers(network: nn.Module, images: Tensor, logits: Tensor) -> None:
    """Refuse a network whose logits [B,K] of the images do not match its classes, or what its two halves give."""
    name = type(network).__name__
    if int(network.num_classes) == 0:  # type: ignore[arg-type]
        if logits.shape[1] == 0:
            raise Refused(f"{name} answers with features of width 0; have it return its features for num_classes=0")
        return  # a network without a head: these are features
    if logits.shape[1] != int(network.num_classes):  # type: ignore[arg-type]
        raise Refused(
            f"{name} answers with {logits.shape[1]} logits where {network.num_classes} classes are asked for; have it "
            "take num_classes"
        )
    if not has_features(network) or type(network).__module__.startswith(("timm.", "kdcore.")):
        return
    with torch.no_grad():
        halves = network.forward_head(network.forward_features(images))  # type: ignore[operator]
    if not torch.allclose(halves, logits, rtol=1e-3, atol=1e-4):
        raise Refused(
            f"{name}: forward_head(forward_features(images)) is not forward(images); make forward call the two"
        )
