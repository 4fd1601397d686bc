"""The command on a small recipe, without Ray: measured, given, assumed, and refused in one line."""

import json
import re

import pytest
import ray
import yaml

from ops.__main__ import main

GIVEN = ["--images-per-second", "640", "--num-images", "50000", "--num-classes", "10"]


@pytest.fixture
def path(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(train__batch_size=512, train__micro_batch=16)))
    return str(path)


def test_a_cluster_and_data_that_are_not_here(path, capsys):
    options = ["--mtbf-hours", "1000", "--link-gbit", "8", "--link-microseconds", "0", "--json", "data.root=nowhere"]
    assert main(["capacity", path, "--gpus", "32", *GIVEN, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["gpus"], found["nodes"]) == (32, 4)
    sources = {name: one["source"] for name, one in found["inputs"].items()}
    assert sources["images_per_second"] == sources["mtbf_hours"] == "given"
    assert sources["image_kb"] == sources["restart_seconds"] == "assumed"
    assert sources["write_mb_per_second"] == "measured here"
    assert found["workload"]["total_steps"] == 2 * (50_000 // 512)
    estimate, num_bytes = found["estimate"], found["workload"]["reduced_bytes"]
    assert estimate["compute_seconds"] == pytest.approx(16 / 640)
    assert estimate["all_reduce_seconds"] == pytest.approx(2 * 31 / 32 * num_bytes / 1e9)
    assert estimate["mtbf_seconds"] == pytest.approx(1000 * 3600 / 32)
    assert estimate["cost"] is None
    assert not ray.is_initialized()


def test_the_recipes_own_images_and_this_machines_speed(path, capsys):
    options = ["--seconds", "0.1", "--cost-per-gpu-hour", "3", "train.batch_size=32"]
    assert main(["capacity", path, "--gpus", "2", "--nodes", "1", *options]) == 0
    shown = capsys.readouterr().out
    assert "run on 2 GPUs of 1 nodes" in shown
    assert re.search(r"num images +│ +48 │ measured here", shown)
    assert sum("measured here" in line for line in shown.splitlines()) == 6
    assert "cost" in shown


def test_the_table_says_when_the_recipe_would_give_up(path, capsys):
    options = ["--mtbf-hours", "0.2", "--restart-seconds", "5", "data.root=nowhere", "scaling.max_failures=0"]
    assert main(["capacity", path, "--gpus", "8", *GIVEN, *options, "checkpoint.every_steps=5"]) == 0
    assert "scaling.max_failures=0 would end" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "0"], "--gpus 0: a run takes at least 1"),
        (["--gpus", "8", "--nodes", "3"], "8 GPUs cannot be spread evenly over 3 nodes"),
        (["--gpus", "8", "--nodes", "0"], "8 GPUs cannot be spread evenly over 0 nodes"),
        (["--gpus", "8", "--mtbf-hours", "-1"], "--mtbf-hours -1: give a number above 0"),
        (["--gpus", "8", "--mtbf-hours", "nan"], "--mtbf-hours nan"),
        (["--gpus", "8", "--link-gbit", "0"], "--link-gbit 0"),
        (["--gpus", "8", "--repair-minutes", "-2"], "give 0 or more"),
        (["--gpus", "64"], "fewer than scaling.num_workers 64"),
        (["--gpus", "8", "--num-images", "100"], "batch_size 512 is more than 100 training images"),
    ],
)
def test_refused_in_one_line(words, said, path, capsys):
    assert main(["capacity", path, *GIVEN, *words, "data.root=nowhere"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_data_that_are_not_here_cannot_be_measured(path, capsys):
    assert main(["capacity", path, "--gpus", "8", *GIVEN[2:], "data.root=nowhere"]) == 2
    assert "give --images-per-second" in capsys.readouterr().err
