"""Checkpoints that are not what they seem: whatever a run's folder holds, no code of its writer is carried out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.training.checkpoint import read_state
from cluster.training.checkpoint_files import STATE
from kdcore.errors import Refused


class Payload:
    """What, once unpickled, has made a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"step": 1, "distiller": Payload(mark)}, tmp_path / STATE)
    with pytest.raises(Refused, match=STATE):
        read_state(tmp_path)
    assert not mark.exists()
    torch.load(tmp_path / STATE, weights_only=False)
    assert mark.exists(), "the payload does run where pickles are trusted"
