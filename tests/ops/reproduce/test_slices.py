"""Which runs of a folder are those that are asked for, and what is said of those that diverged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cluster.provenance import COMMIT
from cluster.tracking.folder import RunFolder
from kdcore.errors import Refused
from ops.command_line.parser import build_parser
from ops.reproduce import cifar100, paper3, slices
from ops.reproduce.cifar100 import Place
from ops.reproduce.lane import FAILED
from ops.reproduce.paper3 import Slice
from ops.reproduce.paper3_results import collect
from ops.reproduce.paper3_state import State
from ops.reproduce.slices import conclude, num_finished, runs_of, summary, unfinished

FACTS = {"gpus": [], "machine": "3 cores", "commit": "abcdef0123456789"}


def begin(chosen: Slice | Place, row: str, seed: int) -> RunFolder:
    """Make a run's folder as its start leaves it."""
    config = chosen.configure(row, seed)
    folder = RunFolder.of(config)
    folder.path.mkdir(parents=True)
    folder.write_recipe(config)
    return folder


def finish(chosen: Slice | Place, row: str, seed: int, top1: float = 0.5) -> RunFolder:
    folder = begin(chosen, row, seed)
    folder.weights.write_bytes(b"weights")
    about = {"facts": FACTS, "seed": seed, "steps": 1, "train_seconds": 1.0, "deployed_parameters": 1, "teacher": None}
    folder.write_result({**about, "curve": [{"epoch": 1, "top1": top1}], "final": {"top1": top1, "images": 1000}})
    return folder


def diverge(chosen: Slice | Place, row: str, seed: int) -> RunFolder:
    folder = begin(chosen, row, seed)
    (folder.path / FAILED).write_text(json.dumps({"name": folder.path.name, "step": 417, "error": "the loss is nan"}))
    return folder


def pilot(state: Path, *overrides: str, rows: tuple[str, ...] = ("alone",), seeds: int = 1) -> Slice:
    return Slice("pilot", State(state), overrides, rows, range(seeds))


def test_a_finished_run_of_another_recipe_is_not_the_one_that_is_asked_for(tmp_path):
    """That of a trial with other settings, and as well one of the recipe as it was before it was edited."""
    finish(pilot(tmp_path, "train.epochs=1"), "alone", 0)
    trial, real = pilot(tmp_path, "train.epochs=1"), pilot(tmp_path)
    assert unfinished(trial.runs, trial.configure, trial.folder) == []
    with pytest.raises(Refused) as refused:
        unfinished(real.runs, real.configure, real.folder)
    assert str(refused.value) == (
        f"{tmp_path}/pilot-alone-seed0 holds a run of another recipe (train.epochs: 1 there, 15 now); give another "
        "--state, or delete that folder"
    )


def test_runs_of_another_recipe_are_not_published(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(slices, "warn_once", said.append)
    finish(pilot(tmp_path, "train.epochs=1"), "alone", 0)
    finish(pilot(tmp_path), "alone", 1, 0.25)
    (tmp_path / "pilot-alone-seed2.old").mkdir()
    found = json.loads(collect("pilot", tmp_path, tmp_path / "results").read_text())
    assert [run["name"] for run in found["rows"]["alone"]["runs"]] == ["pilot-alone-seed1"]
    assert found["rows"]["alone"]["top1"]["values"] == [0.25]
    assert len(said) == 1
    assert said[0].startswith(f"left out: {tmp_path}/pilot-alone-seed0 holds a run of another recipe (train.epochs:")


def test_a_run_that_was_carried_out_otherwise_is_the_same(tmp_path):
    """On a machine with more cores, without Ray, with a comment in its recipe."""
    here = pilot(tmp_path)
    finish(pilot(tmp_path, "data.num_threads=7", "scaling.num_workers=0", "about.title=before"), "alone", 0)
    assert unfinished(here.runs, here.configure, here.folder) == []
    assert len(runs_of(tmp_path, "pilot-alone", lambda seed: here.configure("alone", seed))) == 1


def test_a_trial_of_the_cifar_rows_is_not_published(tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(cifar100, "write", lambda name, content, folder: written.update({name: (content, folder)}))
    trial, real = Place(tmp_path, "images", 0.0, ["train.epochs=1"]), Place(tmp_path, "images")
    finish(trial, "alone", 0)
    cifar100.write_results(real, ["alone"], "cifar100")
    assert written["cifar100"] == ({"rows": {}}, None)
    cifar100.write_results(trial, ["alone"], "cifar100")
    content, folder = written["cifar100"]
    assert (content["rows"]["alone"]["top1"]["last"]["n"], folder) == (1, tmp_path)
    with pytest.raises(Refused, match=r"train\.epochs: 1 there, 240 now"):
        unfinished([("alone", 0)], real.configure, real.folder)


def test_runs_that_diverged_are_named_and_fail_the_command(tmp_path, capsys):
    chosen = pilot(tmp_path, seeds=2)
    finish(chosen, "alone", 0)
    folder = diverge(chosen, "alone", 1)
    assert unfinished(chosen.runs, chosen.configure, chosen.folder) == []
    assert conclude([], map(RunFolder, sorted(tmp_path.iterdir()))) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"pilot-alone-seed1 diverged: the loss is nan; to try it again, delete {folder.path / FAILED}" in said
    assert "this is done, but for 1 diverged run" in said
    assert conclude([], [chosen.folder("alone", 0)]) == 0
    assert capsys.readouterr().out.strip().endswith("this is done")


def test_a_command_that_has_nothing_left_to_run_says_it_again(tmp_path, monkeypatch, capsys):
    """A second call, which runs nothing, has the exit status of a failed run, too."""
    diverge(pilot(tmp_path), "alone", 0)
    monkeypatch.setattr(State, "published", lambda self, overrides: tmp_path)
    monkeypatch.setattr(paper3, "prepare_images", lambda *_, needed: None)
    monkeypatch.setattr(paper3, "run_slice", lambda *_, **__: pytest.fail("there is nothing to run"))
    monkeypatch.setenv(COMMIT, "of the image")
    nothing = {"data": None, "weights": None, "cifar": None, "cifar_weights": None, "commit": "abc", "again": False}
    status = paper3.reproduce(["pilot"], ["alone"], [0], 0, 1, str(tmp_path), overrides=[], **nothing)
    assert status == 1
    assert "pilot-alone-seed0 diverged" in capsys.readouterr().out
    assert "Diverged: pilot-alone-seed0 (step 417)." in (tmp_path / "PAPER3.md").read_text()
    assert os.environ[COMMIT] == "abc"


def test_published_runs_are_not_run_again_unless_that_is_asked_for():
    for words, again in (([], False), (["--again"], True)):
        assert build_parser().parse_args(["reproduce", "paper3", *words]).again is again


def test_diverged_runs_are_counted(tmp_path):
    place = Place(tmp_path, "images")
    finish(place, "alone", 0, 0.75)
    diverge(place, "alone", 1)
    (tmp_path / "alone-seed1" / "step-00000400").mkdir()
    progress = {"curve": [{"epoch": 1.0, "top1": 0.1}], "total_loss": 0.0}
    (tmp_path / "alone-seed1" / "step-00000400" / "progress.json").write_text(json.dumps(progress))
    diverge(place, "alone", 2)
    runs = runs_of(tmp_path, "alone", lambda seed: place.configure("alone", seed))
    assert [run.get("failed_step") for run in runs] == [None, 417, 417]
    assert [run["last"] for run in runs] == [{"epoch": 1, "top1": 0.75}, {"epoch": 1.0, "top1": 0.1}, None]
    assert num_finished(runs) == "1 (2 of 3 diverged)"
    assert num_finished(runs[:1]) == "1"
    assert summary(runs)["top1"]["last"]["values"] == [0.75]
