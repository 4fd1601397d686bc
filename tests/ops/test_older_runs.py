"""A rule of training that is newer than a run keeps nobody from the run, and every such run from being started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cluster.recipe.reading import parse
from cluster.tracking.folder import RunFolder
from cluster.training.check import check_run
from cluster.training.launch import launch
from kdcore.errors import Refused
from ops.__main__ import main
from ops.evaluation.subjects import find_subject
from ops.reproduce.lane import Lane

SAID = r"optimizer.momentum=0, but schedule.sched=onecycle sets the momentum of every step"
RESULT = {"name": "run", "run_dir": "", "mlflow_run_id": "1", "metrics": {}, "steps": 1}
RESULT |= {"train_seconds": 1.0, "images_per_second": 1.0, "wall_seconds": 1.0}


@pytest.fixture
def older(recipe: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """A recipe of before the rule that one cycle takes no other momentum."""
    return recipe(schedule={"sched": "onecycle"}, optimizer__momentum=0.0, scaling__num_workers=0)


def test_a_finished_run_is_read(older: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    config = parse(older)
    folder = RunFolder.of(config)
    folder.claim(config)
    assert main(["show", str(folder.recipe), "--seconds", "0.01"]) == 2  # it is not finished
    folder.weights.touch()
    folder.write_result(RESULT)
    assert find_subject(str(folder.path), None, []).config.schedule.sched == "onecycle"
    assert launch(config).steps == 1
    assert main(["show", str(folder.recipe), "--seconds", "0.01"]) == 0


def test_no_such_run_is_started(older: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, path = parse(older), tmp_path / "older.yaml"
    path.write_text(yaml.safe_dump(older))
    for start in (check_run, launch, lambda config: Lane(config, torch.device("cpu"))):
        with pytest.raises(Refused, match=SAID):
            start(config)
    assert RunFolder.of(config).state() == "new"
    for words in (["train"], ["submit", "--address", "http://127.0.0.1:9", "train"], ["capacity", "--gpus", "1"]):
        assert main([*words, str(path)]) == 2
        assert SAID in " ".join(capsys.readouterr().err.split())
