"""Ranks of a test, each in a process of its own, forked from one that has imported torch and the project once."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch.multiprocessing as mp

from ops.benchmarks.attack_processes import PRELOAD


def run_ranks(function: Callable[..., None], *args: Any, num_ranks: int = 2) -> None:
    """Call a function with (rank, *args) in every rank's process; raise what one of them raises."""
    get_context("forkserver").set_forkserver_preload(PRELOAD)
    mp.start_processes(function, args=args, nprocs=num_ranks, start_method="forkserver")
