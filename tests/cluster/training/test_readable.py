"""Checkpoints hold only what is read from them again, whatever an optimiser or a network from elsewhere keeps."""

from collections import OrderedDict, deque
from enum import Enum
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.optim import OptimInfo
from timm.optim._optim_factory import default_registry
from torch import nn

from cluster.recipe.reading import parse
from cluster.training.checkpoint import STATE, TrainState, read_state, whole_checkpoints
from cluster.training.launch import launch
from cluster.training.readable import refuse_unreadable
from kdcore.errors import Refused, RunFailed


class Phase(Enum):
    """What an optimiser may think of."""

    WARM = 1


class WindowSGD(torch.optim.SGD):
    """Keeps the norms of its last gradients."""

    def step(self, closure: Any = None) -> None:
        """Take a step."""
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("window", deque(maxlen=3)).append(0.0)


class Counting(nn.Linear):
    """A layer with a state of its own."""

    def get_extra_state(self) -> Any:
        """Return what a checkpoint is to hold."""
        return {"phase": [Phase.WARM]}

    def set_extra_state(self, state: Any) -> None:
        """Take it back."""


def test_what_is_read_again_is_kept():
    """As timm's optimisers and torch's modules have it."""
    tensors = {"one": torch.ones(2), "two": nn.Parameter(torch.ones(2)), "tuple": (torch.ones(1), 2)}
    plain = [1, 2.0, "three", None, True, 1j, b"x", {4}, torch.float32, torch.Size([1]), OrderedDict(a=1)]
    refuse_unreadable("optimizer Own", {0: tensors, 1: plain})
    for name in ("adamw", "lamb", "lookahead_radam"):
        model = nn.Linear(2, 2)
        optimizer = timm.optim.create_optimizer_v2(model, name, lr=0.1)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        refuse_unreadable(name, optimizer.state_dict())


@pytest.mark.parametrize(
    ("state", "kind", "place"),
    [
        ({0: {"window": deque([1])}}, "collections.deque", "0.window"),
        ({"a": [1, np.float64(2)]}, "numpy.float64", "a.1"),
        ({"a": {"b": (1, Phase.WARM)}}, r"\S+\.Phase", "a.b.1"),
        ({"a": lambda: 1}, "function", "a"),
        ({"a": range(3)}, "range", "a"),
        ({"a": {np.int64(1): 2}}, "numpy.int64", "a"),
    ],
)
def test_what_is_not_read_again_is_named_with_its_place(state, kind, place):
    with pytest.raises(Refused, match=rf"^optimizer Own keeps a {kind} in its state \({place}\), .*keep tensors"):
        refuse_unreadable("optimizer Own", state)


def test_a_networks_own_state_is_looked_at():
    network = nn.Sequential(Counting(2, 2))
    state = TrainState(network, torch.optim.SGD(network.parameters(), 0.1), None)
    with pytest.raises(Refused, match=r"the run's distiller keeps a .*Phase in its state \(0._extra_state.phase.0\)"):
        state.snapshot({})


def test_a_run_whose_optimiser_keeps_more_ends_after_its_first_step(recipe, monkeypatch):
    """Not at its first checkpoint, which may be an epoch later; none is written."""
    own = OptimInfo(name="windowsgd", opt_class=WindowSGD, description="", has_momentum=True)
    monkeypatch.setitem(default_registry._optimizers, own.name, own)
    config = parse(recipe(scaling__num_workers=0, optimizer__opt="windowsgd", data__loader="reference"))
    with pytest.raises(
        (Refused, RunFailed), match=r"optimizer WindowSGD keeps a collections.deque in its state"
    ) as run:
        launch(config)
    assert "step 2 of" in str(run.value)
    assert not whole_checkpoints(config)


def test_a_whole_checkpoint_that_is_not_read_is_not_called_damaged(tmp_path):
    """One of before it was refused to write such; there is none to go back to, so none is to be deleted."""
    torch.save({"optimizer": deque([1])}, tmp_path / STATE)
    with pytest.raises(Refused, match=r"state.pt is whole, but holds collections.deque, .*another name") as refused:
        read_state(tmp_path)
    assert "delete" not in str(refused.value)
    assert "\x1b" not in str(refused.value)
