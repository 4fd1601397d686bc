"""A checkpoint is written while training goes on: what it holds is the state as it was, not as it becomes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cluster.assembly import assemble
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.training.checkpoint import STATE, STUDENT
from cluster.training.loop import TrainingLoop, new_state
from cluster.training.saving import LocalSaver
from tests.disks import noting_syncs


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of nested dictionaries and lists, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [tensor for one in inside for tensor in tensors_in(one)]


def test_a_step_leaves_an_earlier_snapshot_as_it_is(recipe: Callable[..., dict[str, Any]]) -> None:
    """Of the networks, the optimiser's momentum, and the moving average."""
    data = {"data__loader": "reference", "train__ema_decay": 0.5, "train__micro_batch": 8}
    run = assemble(parse(recipe(**data)), Rank(0, 1, torch.device("cpu")))
    loop, batches = TrainingLoop(run, new_state(run)), run.train_batches(0)
    loop.step(batches)  # before it, the optimiser keeps nothing
    snapshot = loop.state.snapshot({}).state
    parts = {name: tensors_in(snapshot[name]) for name in ("distiller", "optimizer", "ema")}
    before = {name: [tensor.clone() for tensor in tensors] for name, tensors in parts.items()}
    loop.step(batches)
    later = loop.state.snapshot({}).state
    for name, tensors in parts.items():
        assert all(map(torch.equal, tensors, before[name])), name
        assert not all(map(torch.equal, tensors, tensors_in(later[name]))), f"the step has changed nothing in {name}"


def test_a_checkpoint_is_on_the_disk_before_an_older_one_goes(
    recipe: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power would otherwise leave the names of new files without content, and no older ones."""
    changes = {"data__loader": "reference", "scaling__num_workers": 0, "checkpoint__keep": 1}
    config = parse(recipe(**changes))
    run, folder = assemble(config, Rank(0, 1, torch.device("cpu"))), Path(config.storage) / config.name
    state, saver = new_state(run), LocalSaver(run)
    saver.save(state)
    older, newer = folder / "step-00000000", folder / "step-00000001"
    synced = noting_syncs(monkeypatch, lambda: older.exists())
    state.step = 1
    saver.save(state)
    assert synced == [(path, True) for path in (newer / STATE, newer / STUDENT, newer, folder)]
    assert list(folder.iterdir()) == [newer]
