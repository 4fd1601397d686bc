"""Fingerprints of a network's weights, whatever file they lie in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cluster.recipe.config import RunConfig
from cluster.recipe.plugins import fingerprints_of
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.located import local_file
from pipelines.nested import flat, in_short


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over the names, types, shapes and bits of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_fingerprint(model: nn.Module) -> str:
    """Return the fingerprint of a network's parameters and buffers."""
    return tensors_fingerprint(model.state_dict())


def starting_weights(config: RunConfig) -> dict[str, dict[str, str]]:
    """Return {network: {what: fingerprint}} of the files that a run starts from.

    A network without a file, and a teacher whose answers come from a cache (which has its own identity), are left out;
    so is a file that is not here, as may happen for a finished run.
    """
    models: dict[str, ModelConfig | None] = {
        "student": config.student,
        "teacher": config.teacher if config.teacher and not config.teacher.cached else None,
    }
    models |= {f"teachers.{member.name}": member for member in config.read_teachers if not member.cached}
    return {name: found for name, model in models.items() if model and (found := _fingerprints(model))}


def starting_facts(config: RunConfig) -> dict[str, Any]:
    """Return what a run is a function of besides its recipe: its weights and, where it names some, its own code."""
    plugins = fingerprints_of(config)
    return {"weights": starting_weights(config), **({"plugins": plugins} if plugins else {})}


def refuse_other_weights(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse weights that this worker has read and that are not the driver's. Both: as `starting_weights` gives them.

    A worker that is started again, or is on another node, may find something else in the same place.
    """
    here, there = flat(ours), flat(theirs)
    for name in sorted(here.keys() & there.keys()):
        if here[name] != there[name]:
            raise Refused(
                f"the file of {name} is not the one that the run began with ({in_short(here[name])} on this worker, "
                f"{in_short(there[name])} there): it was overwritten, or differs on this node; restore it, or give the "
                "run another name to start afresh"
            )


def _fingerprints(model: ModelConfig) -> dict[str, str]:
    found = {}
    if model.weights_file is not None and model.weights_file.is_file():
        from kdcore.checkpoints import load_tensors  # only here: timm takes longer to import than everything else here

        found["checkpoint"] = tensors_fingerprint(load_tensors(model.weights_file))
    if model.class_indices and (path := local_file(model.class_indices)).is_file():
        found["class_indices"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
