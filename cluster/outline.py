"""A run's parts where only shapes are asked for: sizes, taps, costs. No weight is drawn and nothing is multiplied."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cluster.assembly import Assembly, assemble
from cluster.images import image_size
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from kdcore.errors import Refused
from kdcore.layout import NETWORK_ERRORS
from kdcore.rehearsal import check_network

CPU, META = torch.device("cpu"), torch.device("meta")


@contextmanager
def without_values() -> Iterator[None]:
    """Let the body make its tensors on torch's meta device, those of weight files too."""
    with META, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
        yield


def outline(config: RunConfig) -> Assembly:
    """Assemble a run on torch's meta device, whose tensors have shapes and no values; on the CPU where one is needed.

    A network may need a value while it is built or called, and so may weight files. Refusals, too, come from the CPU,
    with its messages.
    """
    try:
        with without_values():
            run = assemble(config, Rank(0, 1, META))
        _check_networks(run)
    except (Refused, *NETWORK_ERRORS):
        run = assemble(config, Rank(0, 1, CPU))
        _check_networks(run)
    return run


def _check_networks(run: Assembly) -> None:
    """Refuse a network that cannot take the images of its run, or answers with something else than logits."""
    for network in run.networks:
        seen = run.config if network is run.student else run.for_teacher.config
        check_network(network, image_size(seen))
