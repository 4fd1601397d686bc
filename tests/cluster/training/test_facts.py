"""What must be as it was for a checkpoint to be continued: its images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow.fs import LocalFileSystem

from cluster.assembly import Assembly, assemble
from cluster.images import image_facts
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.training.checkpoint import checkpoint_facts
from cluster.training.loop import new_state
from kdcore.errors import Refused

CPU = torch.device("cpu")
Make = Callable[..., dict[str, Any]]


def begin(recipe: dict[str, Any]) -> Assembly:
    return assemble(parse(recipe), Rank(0, 1, CPU))


def save(run: Assembly, folder: Path, without: str = "") -> None:
    """Write a checkpoint of a run's first weights, as an earlier version did that did not know one of the facts."""
    facts = {name: fact for name, fact in checkpoint_facts(run).items() if name != without}
    new_state(run).snapshot(facts).write(LocalFileSystem(), str(folder))


def restore(run: Assembly, folder: Path) -> None:
    new_state(run).restore(folder, checkpoint_facts(run))


@pytest.mark.parametrize("split", ["val", "held_out"])
def test_other_images_to_judge_by_are_another_run(split: str, recipe: Make, image_folder: Path, tmp_path: Path) -> None:
    """The best weights are chosen by scores, which would be compared across two sets."""
    root = shutil.copytree(image_folder, tmp_path / "images")
    changes = {"data__root": str(root), "data__held_out": 0.2}
    run = begin(recipe(**changes))
    save(run, tmp_path / "saved")
    save(run, tmp_path / "early", without="validation")
    place = Path(run.indexes[split].names(torch.arange(1).numpy())[0])
    shutil.copy(root / "val" / "class1" / "003.png", place)
    changed = begin(recipe(**changes))
    assert image_facts(changed.indexes)["data"] == image_facts(run.indexes)["data"]
    with pytest.raises(Refused, match=rf"its validation\.{split} is \w{{16}}\.\.\., this run's is"):
        restore(changed, tmp_path / "saved")
    restore(changed, tmp_path / "early")
