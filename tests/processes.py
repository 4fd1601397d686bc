"""Processes of a test, each forked from one that has imported torch and the project, which takes its seconds once."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from typing import Any

import torch.multiprocessing as mp

from ops.benchmarks.attack_processes import PRELOAD

if (LAST := "tests.preloaded") not in PRELOAD:
    PRELOAD.append(LAST)


def forking() -> ForkServerContext:
    """The context of processes that begin with what a command imports."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def exit_code_of(function: Callable[..., None], *args: Any) -> int | None:
    """Call a function in a process; return how that ended: negative, the signal that killed it."""
    process = forking().Process(target=function, args=args)
    process.start()
    process.join()
    return process.exitcode


def run_ranks(function: Callable[..., None], *args: Any, num_ranks: int = 2) -> None:
    """Call a function with (rank, *args) in every rank's process; raise what one of them raises."""
    forking()
    mp.start_processes(function, args=args, nprocs=num_ranks, start_method="forkserver")
