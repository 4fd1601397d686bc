"""The layers of a network that are worth tapping: where its blocks end, found by their structure and by running it."""

from __future__ import annotations

from typing import Any

import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

_LISTS = (nn.Sequential, nn.ModuleList)


def block_taps(model: nn.Module, image_size: tuple[int, int] | None = None) -> list[str]:
    """Return the layers worth scoring, in the order they run: the ends of blocks, and activations outside blocks.

    A block is a member of an nn.Sequential or nn.ModuleList that has convolutions or linear layers inside, unless it
    holds such a list of blocks itself (then it is a stage): the residual and transformer blocks of timm's networks
    and of this project's. In a plain network the activations remain; in some others (RegNet, DLA) they do too, and taps
    are better given by hand. Modules that do not run exactly once or do not give one tensor are left out, and so are
    the two names that every network has: append "classifier_input" by hand where it is wanted.

    image_size [H,W]: of the blank images that are run in eval mode; None takes what the weights were made for.
    """
    blocks = {name for name, module in _members(model) if _computes(module) and not _is_stage(module)}
    activations = {name for name, module in model.named_modules() if _is_activation(module)}
    inside = tuple(f"{block}." for block in blocks)
    candidates = {name for name in blocks | activations if not name.startswith(inside)}
    finished = _execution_order(model, candidates, image_size)
    return [name for name in finished if finished.count(name) == 1]


def _members(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules in a list of modules, with their paths."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, _LISTS)]
    return [(f"{name}.{key}".lstrip("."), child) for name, module in lists for key, child in module.named_children()]


def _computes(module: nn.Module) -> bool:
    """Whether it is a composite with weights of its own, not a mere list."""
    inner = [m for m in module.modules() if m is not module]
    return not isinstance(module, _LISTS) and any(isinstance(m, (nn.Conv2d, nn.Linear)) for m in inner)


def _is_stage(module: nn.Module) -> bool:
    return any(_computes(m) for child in module.children() if isinstance(child, _LISTS) for m in child.children())


def _is_activation(module: nn.Module) -> bool:
    defined_in = type(module).__module__
    return not any(module.children()) and defined_in.startswith(("torch.nn.modules.activation", "timm.layers.activ"))


def _execution_order(model: nn.Module, names: set[str], image_size: tuple[int, int] | None) -> list[str]:
    """Return the names of modules that gave one tensor, in the order they finished in a pass of two blank images."""
    size = image_size or resolve_model_data_config(model)["input_size"][1:]
    finished: list[str] = []

    def hook(name: str) -> Any:
        return lambda module, args, output: finished.append(name) if isinstance(output, Tensor) else None

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(2, 3, *size, device=next(model.parameters()).device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return finished
