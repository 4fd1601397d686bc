"""Building a network from its recipe: timm's registry (which knows this project's CIFAR networks too) and weights.

Not here: the networks themselves (`kdcore.networks`), and SimKD's student graph (`kdcore.reused`).
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

import kdcore.networks  # noqa: F401  registers the CIFAR networks with timm


class ModelConfig(BaseModel):
    """A network and where its weights come from.

    model: a name that `timm.create_model` knows. checkpoint: a .safetensors file, or a torch file of tensors only (no
    pickled object is ever loaded). checkpoint_keys: 'positions' matches tensors by order and shape, for files whose
    names differ from timm's. pretrained: timm's own weights, which timm downloads. class_indices: a JSON file
    {class folder: index in the network's classifier}, which keeps those rows of the classifier, in the data's order.
    args: further arguments of `timm.create_model`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    checkpoint: str | None = None
    checkpoint_keys: Literal["names", "positions"] = "names"
    pretrained: bool = False
    class_indices: str | None = None
    args: dict[str, Any] = Field(default_factory=dict)

    def check(self) -> None:
        """ValueError where the model or one of its files is unknown; builds nothing."""
        if not timm.is_model(self.model):
            near = difflib.get_close_matches(self.model, timm.list_models(), n=4, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists the names"
            raise ValueError(f"unknown model {self.model!r}; {hint}")
        for path in (self.checkpoint, self.class_indices):
            if path is not None and not Path(path).is_file():
                raise ValueError(f"{path}: no such file, named by the model {self.model!r} of the recipe")
        if self.pretrained and self.checkpoint:
            raise ValueError(f"model {self.model!r}: give either pretrained or a checkpoint, not both")


def build_model(config: ModelConfig, class_names: list[str] | tuple[str, ...]) -> nn.Module:
    """The network with one output per class name, its weights loaded."""
    config.check()
    checkpoint = load_tensors(config.checkpoint) if config.checkpoint else None
    own_classes = {} if config.class_indices else {"num_classes": len(class_names)}
    model: nn.Module = timm.create_model(config.model, pretrained=config.pretrained, **own_classes, **config.args)
    if checkpoint is not None:
        _load_weights(model, checkpoint, config)
    if config.class_indices:
        indices = json.loads(Path(config.class_indices).read_text())
        missing = [name for name in class_names if name not in indices]
        if missing:
            raise ValueError(f"{config.class_indices} has no index for the class folder {missing[0]!r}")
        keep_classes(model, [indices[name] for name in class_names])
    return model


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a torch file; never a pickled object."""
    if str(path).endswith(".safetensors"):
        return safetensors.torch.load_file(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path}: not a file of tensors ({type(error).__name__}); convert it to .safetensors"
        ) from error
    loaded = loaded.get("state_dict", loaded)
    return {name: tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}


def _load_weights(model: nn.Module, checkpoint: dict[str, Tensor], config: ModelConfig) -> None:
    """Strictly: every tensor of the network is in the file, with its shape, and the file has no other."""
    own = model.state_dict()
    if config.checkpoint_keys == "positions":
        if len(own) != len(checkpoint):
            raise ValueError(f"{config.checkpoint}: {len(checkpoint)} tensors, but {config.model} has {len(own)}")
        suffixes = [(a, b) for a, b in zip(own, checkpoint, strict=True) if a.split(".")[-1] != b.split(".")[-1]]
        if suffixes:
            raise ValueError(f"{config.checkpoint}: at one position stand {suffixes[0][1]!r} and {suffixes[0][0]!r}")
        checkpoint = dict(zip(own, checkpoint.values(), strict=True))
    wrong = sorted(set(own) ^ set(checkpoint)) or [n for n in own if own[n].shape != checkpoint[n].shape]
    if wrong:
        name = wrong[0]
        shapes = {
            side: list(t[name].shape) if name in t else "absent" for side, t in (("network", own), ("file", checkpoint))
        }
        raise ValueError(
            f"{config.checkpoint} does not fit {config.model} with {model.num_classes} classes: {len(wrong)} tensors "
            f"differ, the first is {name!r} (network: {shapes['network']}, file: {shapes['file']})"
        )
    model.load_state_dict(checkpoint)


def classifier_of(model: nn.Module) -> nn.Linear:
    """The network's linear classifier. ValueError where it has none."""
    classifier = model.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"{type(model).__name__}: its classifier is a {type(classifier).__name__}, not one linear layer"
        )
    return classifier


def keep_classes(model: nn.Module, indices: list[int]) -> None:
    """Reduces the network's classifier to the given rows, in their order, in place."""
    old = classifier_of(model)
    if max(indices) >= old.out_features:
        raise ValueError(f"class index {max(indices)} is beyond the classifier's {old.out_features} rows")
    new = nn.Linear(old.in_features, len(indices), bias=old.bias is not None)
    with torch.no_grad():
        new.weight.copy_(old.weight[indices])
        if old.bias is not None:
            new.bias.copy_(old.bias[indices])
    name = next(n for n, module in model.named_modules() if module is old)
    model.set_submodule(name, new)
    model.num_classes = len(indices)  # type: ignore[assignment]


def input_statistics(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std (of RGB in [0,1]) that the network's weights were trained with."""
    config = timm.data.resolve_model_data_config(model)
    return tuple(config["mean"]), tuple(config["std"])


def count_parameters(module: nn.Module) -> int:
    """Parameters, trained or not; running statistics are not parameters."""
    return sum(p.numel() for p in module.parameters())
