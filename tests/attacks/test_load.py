"""Kills at random moments, pairs of processes on one folder, many runs in one process: short; long: `make attack`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ops.benchmarks.attack import subjects
from ops.benchmarks.attack_processes import Subject, kill_and_continue, pair
from ops.benchmarks.attack_soak import footprint, many_runs, many_steps, recipe_of, slope
from tests.conftest import write_image_folder

FLAT = ("open_files", "threads", "children", "shared_memory_mib")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    folder = tmp_path_factory.mktemp("load")
    return subjects(folder, write_image_folder(folder / "images", train=8, val=3))


@pytest.mark.parametrize("name", ["index", "pack", "build", "train"])
def test_killed_at_random_moments(commands: dict[str, Subject], name: str, tmp_path: Path) -> None:
    found = kill_and_continue(commands[name], tmp_path, kills=2, seed=len(name))
    assert found["kills"] == 2


@pytest.mark.ray
@pytest.mark.long
def test_a_sweep_killed_at_a_random_moment(commands: dict[str, Subject], tmp_path: Path) -> None:
    assert kill_and_continue(commands["sweep"], tmp_path, kills=1)["kills"] == 1


@pytest.mark.parametrize("name", ["build", "train", "pack"])
def test_two_of_a_kind_on_one_folder(commands: dict[str, Subject], name: str, tmp_path: Path) -> None:
    assert pair(commands[name], commands[name], tmp_path)["exit_statuses"][0] == 0


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("second", ["sweep", "train"])
def test_a_sweep_and_another_on_one_folder(commands: dict[str, Subject], second: str, tmp_path: Path) -> None:
    ends = pair(commands["sweep"], commands[second], tmp_path)["exit_statuses"]
    assert ends == ([0, 0] if second == "train" else [0, 2])


def test_a_slope_is_one() -> None:
    found = slope(range(20), [100.0] * 10 + [3.0 * run for run in range(10, 20)])
    assert (found["n"], found["first"], found["last"]) == (10, 30.0, 57.0)
    assert found["slope"] == pytest.approx(3.0)
    assert found["plus_minus"] < 1e-9


def small(image_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return recipe_of(image_folder, tmp_path / "out")


def test_runs_leave_no_file_and_no_thread_open(image_folder: Path, tmp_path: Path) -> None:
    short = small(image_folder, tmp_path) | {"train": {"epochs": 1, "max_steps": 2, "batch_size": 8}}
    found = many_runs(short, 6)["by_run"]
    assert not [name for name in FLAT if found[name]["last"] > found[name]["first"]], found
    assert found["allocated_mib"]["last"] - found["allocated_mib"]["first"] < 0.5


def test_steps_leave_nothing_behind(image_folder: Path, tmp_path: Path) -> None:
    recipe = small(image_folder, tmp_path) | {"tracking": {"system_metrics": False, "every_steps": 10}}
    found = many_steps(recipe | {"checkpoint": {"every_steps": 50}}, steps=200, every=20)["by_1000_steps"]
    assert not [name for name in FLAT if found[name]["last"] > found[name]["first"]], found
    assert found["memory_mib"]["last"] - found["memory_mib"]["first"] < 20
    assert found["allocated_mib"]["last"] - found["allocated_mib"]["first"] < 0.5


def test_a_footprint_has_what_is_held(tmp_path: Path) -> None:
    before = footprint()
    with (tmp_path / "file").open("w"):
        held = bytearray(64 * 2**20)
        held[:: 2**12] = b"x" * (64 * 2**8)
        during = footprint()
    assert during["open_files"] == before["open_files"] + 1
    assert during["memory_mib"] > before["memory_mib"] + 60
    assert during["allocated_mib"] == pytest.approx(before["allocated_mib"] + 64, abs=1)
