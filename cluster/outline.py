"""A run's parts where only shapes are asked for: sizes, taps, costs. No weight is drawn and nothing is multiplied."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from cluster.assembly import Assembly, assemble
from cluster.images import image_size
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from kdcore.errors import Refused
from kdcore.rehearsal import check_network

Made = TypeVar("Made")
CPU, META = torch.device("cpu"), torch.device("meta")


@contextmanager
def without_values() -> Iterator[None]:
    """Let the body make its tensors on torch's meta device, those of weight files too."""
    with META, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
        yield


def outline(config: RunConfig) -> Assembly:
    """Assemble a run on torch's meta device, whose tensors have shapes and no values; on the CPU where one is needed.

    Refused for a network that cannot take the run's images, or answers with something else than logits.
    """

    def assembled(device: torch.device) -> Assembly:
        run = assemble(config, Rank(0, 1, device))
        _check_networks(run)
        return run

    return on_meta_or_cpu(assembled)


def on_meta_or_cpu(make: Callable[[torch.device], Made]) -> Made:
    """Return what is made on torch's meta device, or, where something needs a value, on the CPU.

    A network may need a value while it is built or called, and so may weight files; it then raises whatever it likes.
    What does not fit is said by the CPU, too.
    """
    try:
        with without_values():
            return make(META)
    except Exception as error:
        if isinstance(error, Refused) and error.__cause__ is None:  # for a name or a shape, which no value changes
            raise
    return make(CPU)


def _check_networks(run: Assembly) -> None:
    """Refuse a network that cannot take the images of its run, or answers with something else than logits."""
    for network in run.networks:
        seen = run.config if network is run.student else run.for_teacher.config
        check_network(network, image_size(seen))
