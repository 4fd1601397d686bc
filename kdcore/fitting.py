"""Loading a file of weights into a network strictly, or all of it except the classifier; remedies if it does not fit.

Not here: how files are read and names matched (`kdcore.checkpoints`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from kdcore.checkpoints import fit_names, load_tensors
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.located import local_file
from kdcore.protocol import find_classifier
from kdcore.remarks import warn_once

WORDNET_ID = re.compile(r"n\d{8}")  # what ImageNet's class folders are called
Remedy = Callable[[int | None], str]
TF_OUTPUTS = 1001  # of classifiers from TensorFlow: 0 is the background, i + 1 is ImageNet-1k's class i


def load_weights(model: nn.Module, config: ModelConfig, class_names: Sequence[str] = ()) -> None:
    """Load a recipe's file: every tensor is in both, in the same shape; with `new_head`, except the classifier's.

    Refused for a file that does not fit, with the remedy for data of these classes.
    """
    path = str(config.checkpoint)
    checkpoint = load_tensors(local_file(path))
    if config.checkpoint_keys == "positions":
        checkpoint = by_position(model.state_dict(), checkpoint, config)
    name = f"{config.model} with {model.num_classes} classes"
    if config.new_head:
        if not classifier_names(model):
            raise Refused(
                f"new_head: {config.model} does not say which layer is its classifier; give it get_classifier(), or "
                "leave out new_head"
            )
        load_all_but_classifier(model, checkpoint, path, name)
        warn_once(f"{path}: the classifier of {name} starts afresh (new_head); all else is taken from the file")
    else:
        load_fitting(model, checkpoint, path, name, partial(remedy_for_classes, config, class_names))


def by_position(own: dict[str, Tensor], checkpoint: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return a file's tensors under the network's names, matched by position. Refused where they do not match."""
    if len(own) != len(checkpoint):
        raise Refused(f"{config.checkpoint}: {len(checkpoint)} tensors, but {config.model} has {len(own)}")
    suffixes = [(a, b) for a, b in zip(own, checkpoint, strict=True) if a.split(".")[-1] != b.split(".")[-1]]
    if suffixes:
        raise Refused(
            f"{config.checkpoint}: its tensors are not those of {config.model}, at one position {suffixes[0][1]!r} and "
            f"{suffixes[0][0]!r}; give weights of this network"
        )
    return dict(zip(own, checkpoint.values(), strict=True))


def load_fitting(
    model: nn.Module, checkpoint: dict[str, Tensor], path: str | Path, name: str, for_classes: Remedy | None = None
) -> None:
    """Load a file's tensors, under the network's names or some that `fit_names` understands. Refused for others.

    name: what the network is called in an error; for_classes: the remedy for a classifier with that many outputs, or,
    for None, for a file without one.
    """
    own, classifier = model.state_dict(), classifier_names(model)
    fitted = fit_names(own, checkpoint, path)
    in_order = _fits_by_position(own, checkpoint, classifier)
    _require_fit(own, fitted, f"{path} does not fit {name}", in_order, classifier, for_classes)
    model.load_state_dict(fitted)


def load_all_but_classifier(model: nn.Module, checkpoint: dict[str, Tensor], path: str | Path, name: str) -> None:
    """Load a file's tensors except its classifier's; the network's own, if it has one, keeps its initial weights."""
    own, classifier = model.state_dict(), classifier_names(model)
    prefixes = tuple(f"{layer}." for layer in classifier)
    body = {key: tensor for key, tensor in own.items() if not key.startswith(prefixes)}
    fitted = fit_names(body, checkpoint, path)
    fitted = {key: tensor for key, tensor in fitted.items() if not key.startswith(prefixes)}
    _require_fit(body, fitted, f"{path} does not fit {name}", _fits_by_position(own, checkpoint, classifier))
    model.load_state_dict(own | fitted)


def load_backbone(model: nn.Module, config: ModelConfig) -> None:
    """Load a file into a network that has no classifier; the file's, if it has one, is left out."""
    path, prefixes = str(config.checkpoint), tuple(f"{layer}." for layer in classifier_names(model))
    checkpoint = {name: t for name, t in load_tensors(local_file(path)).items() if not name.startswith(prefixes)}
    if config.checkpoint_keys == "positions":
        checkpoint = by_position(model.state_dict(), checkpoint, config)
    load_all_but_classifier(model, checkpoint, path, config.model)


def holds_more(config: ModelConfig, model: nn.Module) -> bool:
    """Return whether a recipe's file has more tensors, such as a classifier's, than a network without a classifier."""
    return len(load_tensors(local_file(str(config.checkpoint)))) > len(model.state_dict())


def refuse_fresh_classifier(model: nn.Module, config: ModelConfig, class_names: Sequence[str]) -> None:
    """Refuse downloaded weights of other classes for a network that has to know the data's.

    timm and torchvision leave the classifier freshly initialised if the number of classes differs.
    """
    rows = (getattr(model, "pretrained_cfg", None) or {}).get("num_classes")
    if not config.may_start_fresh and rows is not None and rows != len(class_names):
        raise Refused(f"{config.model} for {len(class_names)} classes: {remedy_for_classes(config, class_names, rows)}")


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of the network's last layers: one, or two as in DeiT; empty if that is not known."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    if named:
        return (named,) if isinstance(named, str) else tuple(named)
    layer = find_classifier(model)
    return tuple(name for name, module in model.named_modules() if module is layer and name)


def remedy_for_classes(config: ModelConfig, class_names: Sequence[str], num_outputs: int | None) -> str:
    """Return the remedy for weights whose classifier is of other classes than the data; None: they have none.

    The classes of data in ImageNet's folders may be among the weights'; a user's own classes are not.
    """
    if num_outputs is None:
        without = "" if config.may_start_fresh else f"; or set {config.section}.head=none, with terms on features alone"
        return f"the file has no classifier: {config.fresh}{without}"
    if not class_names or not all(WORDNET_ID.fullmatch(name) for name in class_names):
        return f"its classifier has {num_outputs} outputs, for other classes than the data's: {config.fresh}"
    background = ", where 0 is the background and i + 1 is ImageNet's i" if num_outputs == TF_OUTPUTS else ""
    return (
        f"its classifier has {num_outputs} outputs: where the data's classes are among them, give args: "
        f"{{num_classes: {num_outputs}}}, and class_indices, a file that maps class folders to outputs{background}; "
        f"otherwise {config.fresh}"
    )


def _require_fit(
    own: dict[str, Tensor],
    checkpoint: dict[str, Tensor],
    complaint: str,
    in_order: bool,
    classifier: tuple[str, ...] = (),
    for_classes: Remedy | None = None,
) -> None:
    """Refuse unless both have the same names and shapes.

    in_order: whether the file would fit by order; classifier: the paths of the network's last layers.
    """
    names = sorted(own.keys() ^ checkpoint.keys())
    wrong = names or [name for name in own if own[name].shape != checkpoint[name].shape]
    if not wrong:
        return
    network, file = (list(t[wrong[0]].shape) if wrong[0] in t else "absent" for t in (own, checkpoint))
    if {name.partition(".")[0] for name in checkpoint} == {"student", "projector", "head"}:
        remedy = (
            "the file is of a SimKD student, which is a backbone, a projector and another network's classifier: it "
            "fits only a student of its own recipe; for a teacher, train with student.classifier=own"
        )
    elif names and in_order:
        remedy = "its tensors have other names, but the same order and shapes: take checkpoint_keys: positions"
    elif names and for_classes and all(name in own and name.rpartition(".")[0] in classifier for name in names):
        remedy = for_classes(None)
    elif names:
        remedy = "name the network that the file belongs to"
    elif for_classes and all(name.rpartition(".")[0] in classifier for name in wrong):
        remedy = for_classes(checkpoint[wrong[0]].shape[0])
    else:
        remedy = "name the network, and the args, that the file belongs to"
    raise Refused(
        f"{complaint}: {len(wrong)} tensors differ, the first is {wrong[0]!r} (network: {network}, file: {file}); "
        f"{remedy}"
    )


def _fits_by_position(own: dict[str, Tensor], checkpoint: dict[str, Tensor], classifier: tuple[str, ...]) -> bool:
    """Return whether two networks' tensors match in order: in last names, and in shapes except the classifier's."""
    return len(own) == len(checkpoint) and all(
        a.rpartition(".")[2] == b.rpartition(".")[2]
        and (a.rpartition(".")[0] in classifier or own[a].shape == checkpoint[b].shape)
        for a, b in zip(own, checkpoint, strict=True)
    )
