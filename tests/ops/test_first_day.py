"""The diary of a first day: its commands are taken as they stand, and what they took is written down as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch

from kdcore.models import count_parameters
from ops import catalog
from ops.benchmarks.first_day import STUDENT, Day, parameters_of, timed_command
from ops.benchmarks.tables import first_day_table
from ops.command_line.parser import build_parser


@pytest.fixture
def day(image_folder: Path, tmp_path: Path) -> Day:
    return Day(image_folder, tmp_path / "lite0.pth", tmp_path / "day", size=64, epochs=2)


def test_every_command_is_taken(day: Day) -> None:
    parser, recipes = build_parser(), {}
    for step, words in day.commands().items():
        args = parser.parse_args(words)
        if getattr(args, "recipe", None):
            recipes[step] = catalog.load(args.recipe, args.overrides)
    assert list(recipes) == ["fine-tune", "alone", "distil", "sweep"]
    assert recipes["fine-tune"].student.new_head
    assert recipes["distil"].teacher is not None
    assert recipes["distil"].teacher.checkpoint == str(day.runs / "teacher" / "student.safetensors")
    assert {one.scaling.num_workers for one in recipes.values()} == {0}


def test_a_command_is_timed_and_its_end_is_kept(tmp_path: Path) -> None:
    done = timed_command(["recipes", "kd"], tmp_path / "kd.log")
    assert done["status"] == 0
    assert 0.05 < done["cpu_seconds"] < 60
    assert "temperature: 4" in (tmp_path / "kd.log").read_text()
    assert timed_command(["recipes", "kdd"], tmp_path / "kdd.log")["status"] == 2
    assert "no such recipe" in (tmp_path / "kdd.log").read_text()


def test_parameters_are_counted_without_statistics(tmp_path: Path) -> None:
    import timm

    network = timm.create_model(STUDENT, num_classes=3)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "student.safetensors")
    assert parameters_of(tmp_path / "student.safetensors") == count_parameters(network)


def test_the_table() -> None:
    step = {"status": 0, "wall_seconds": 30.4, "cpu_seconds": 12.0}
    row = {"top1": 0.5, "agreement": None, "parameters": 4000, "p50_ms": 1.5, "ratio": 1.0}
    found = {
        "facts": {"machine": "2 cores"},
        "setting": {"images_per_class": 100, "size": 64, "epochs": 2},
        "steps": {"fine-tune": step, "distil": step | {"status": 1}},
        "table": {"teacher": row, "kd": row | {"agreement": 0.25, "parameters": 1000, "ratio": 4.0}},
    }
    table = first_day_table(found)
    assert "| distil | 1 | 30 | 12 |\n| 2 commands | | 61 | 24 |" in table
    assert "| kd | 50.00% | 25.00% | 1,000 | 1/4.0 | 1.50 |" in table
