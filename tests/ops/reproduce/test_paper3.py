"""`reproduce paper3`: its rows are what they say, and killed it equals an undisturbed one."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from kdcore.batch import Needs
from kdcore.errors import Refused
from ops.benchmarks.attack_processes import Started
from ops.reproduce import paper3, paper3_page
from ops.reproduce.experiments import CHOSEN, EXPERIMENTS, LAYERS
from ops.reproduce.paper3 import Slice
from ops.reproduce.paper3_state import (
    CLASSES,
    State,
    copy_weights,
    find_weights,
    link_images,
    only_one,
    prepare_cifar,
    prepare_images,
)

SMALL = [
    "teacher.image_size=32",
    "views.size=16",
    "train.epochs=2",
    "train.batch_size=8",
    "train.evaluate_every_epochs=1",
    "cache.rows_per_shard=20",
    "optimizer.lr=0.001",
]
ROWS = ["alone", "feature_only", "simkd"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training and one validation picture of each of the 20 classes."""
    root, rng = tmp_path_factory.mktemp("twenty"), np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 100, (20, 20, 3)) + 7 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), path)
    return path


def start(data: Path, weights: Path, state: Path, minutes: float = 5) -> Started:
    """Start a slice of the pilot in a process of its own."""
    rows = ["--experiments", "pilot", "--rows", *ROWS, "--seeds", "0", "--side-by-side", "2"]
    places = ["--data", str(data), "--weights", str(weights), "--state", str(state), "--minutes", str(minutes)]
    log = state.with_name(f"{state.name}-{time.monotonic_ns()}.log")
    return Started(["reproduce", "paper3", *rows, *places, *SMALL], log)


def run(data: Path, weights: Path, state: Path, minutes: float = 5) -> str:
    started = start(data, weights, state, minutes)
    assert started.wait() == 0, started.said()
    return started.said()


def outcome(state: Path) -> Any:
    """What the runs have come to, but for times and facts of the machine."""
    content = json.loads((state / "results" / "paper3_pilot.json").read_text())
    for one in content["rows"].values():
        for finished in one["runs"]:
            finished.pop("facts")
            finished.pop("train_seconds")
    return content["setting"], content["rows"]


@pytest.mark.slow
@pytest.mark.long
def test_killed_and_continued_is_undisturbed(data, weights, tmp_path):
    """Killed while the cache is built, and when the first run has its result; then a slice of ten milliseconds."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert "this is done" in run(data, weights, whole)
    for path in ("cache/**/*.arrow", "*/result.json"):
        started = start(data, weights, broken)
        while started.is_running and not list(broken.glob(path)):
            time.sleep(0.02)
        assert started.is_running, "it was done before it could be killed"
        started.kill()
    assert "to be continued by the same command: pilot-" in run(data, weights, broken, minutes=1 / 6000)
    assert "this is done" in run(data, weights, broken)
    assert outcome(broken) == outcome(whole)
    assert (broken / "PAPER3.md").read_text().split("Run on")[0] == (whole / "PAPER3.md").read_text().split("Run on")[0]
    finished = [one for row in ROWS for one in outcome(whole)[1][row]["runs"]]
    assert [one["finished"] for one in finished] == [True] * 3
    journals = [
        [{**json.loads(line), "time": 0} for line in (state / "pilot-simkd-seed0" / "metrics.jsonl").open()]
        for state in (whole, broken)
    ]
    assert journals[0] == journals[1]
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{broken}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("paper3-pilot").experiment_id])
    assert {one.info.run_name.partition(":")[0] for one in found} == {one["name"] for one in finished}
    assert {one.info.status for one in found} == {"FINISHED"}
    assert all("val/top1" in one.data.metrics for one in found)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_row_is_a_run_whose_cache_holds_what_it_reads(name, tmp_path):
    chosen = Slice(name, State(tmp_path), [], None, None)
    experiment = chosen.experiment
    configs = {row: chosen.configure(row) for row in experiment.rows}
    for row, config in configs.items():
        assert (config.name, config.plan_seed, config.train.batch_size) == (
            f"{name}-{row}-seed0",
            0,
            config.train.batch_size,
        )
        assert experiment.baseline(row) in experiment.rows
        if (claim := experiment.rows[row].claim) is not None:
            assert claim.against in experiment.rows
        if config.teacher is None or not config.needs.reads_teacher:
            continue
        assert config.cache.dir == str(tmp_path / "cache" / experiment.rows[row].cache)
        builder = chosen.configure(experiment.builders[experiment.rows[row].cache])
        held = builder.needs | Needs(teacher_taps=frozenset(builder.cache.taps))
        assert config.needs.teacher_taps <= held.teacher_taps
        assert held.teacher_logits or not config.needs.teacher_logits
        assert builder.views.num_views >= config.views.num_views
        assert builder.for_teacher.views.appearance() == config.for_teacher.views.appearance()
        assert builder.data.images_per_class == config.data.images_per_class
        assert builder.cache.logits == "dense" or builder.cache.sparse_bytes < 2 * len(CLASSES), "as a build refuses"
        if config.student.classifier == "reused":
            assert builder.cache.head or builder.student.classifier == "reused"


def test_the_regime_is_the_papers(tmp_path):
    """No augmentation, one view, AdamW under one cycle, 50 epochs in batches of 128; seeds share views and cache."""
    chosen = Slice("regime", State(tmp_path), [], None, None)
    for row, seed in chosen.runs:
        config = chosen.configure(row, seed)
        assert (config.optimizer.opt, config.optimizer.lr, config.optimizer.weight_decay) == ("adamw", 0.0075, 0.01)
        assert (config.schedule.sched, config.train.epochs, config.train.batch_size) == ("onecycle", 50, 128)
        assert (config.views.padding, config.views.flip_probability, config.views.num_views) == (0, 0, 1)
        assert (config.seed, config.plan_seed, config.train.select) == (seed, 0, "last")
    assert len(chosen.runs) == 5 * 10
    terms = {row: [term.term for term in chosen.configure(row).method] for row in EXPERIMENTS["regime"].rows}
    assert terms["feature_only"] == ["feature_only", "ce"]
    assert terms["feature_only-ce"] == ["feature_mse", "ce"]
    pairs = {row: chosen.configure(row).method[0].pairs for row in terms if row.startswith("feature_only")}
    assert pairs["feature_only"] == pairs["feature_only-ce"] == pairs["feature_only-ce-kd"]
    assert tuple(pair.teacher for pair in pairs["feature_only"]) == CHOSEN
    assert chosen.configure("base_fkd").method[0].pairs == pairs["feature_only-standard"]


def test_layers_are_chosen_by_the_scores_that_are_published():
    """The four of highest Q, in the order of depth."""
    scores = json.loads((paper3_page.BENCHMARKS / "results" / "paper3_layers.json").read_text())["scores"]
    best = sorted(scores, key=lambda tap: scores[tap]["q"])[-4:]
    assert tuple(tap for tap in scores if tap in best) == CHOSEN
    assert set(scores) == set(LAYERS)


def test_rows_and_states_that_there_are_not(tmp_path):
    with pytest.raises(Refused, match="--rows dkd: no row of pilot; take of alone, feature_only"):
        _ = Slice("pilot", State(tmp_path), [], ["dkd"], None).runs
    with pytest.raises(Refused, match=r"nowhere.pth: no such file of weights"):
        copy_weights(find_weights("nowhere.pth"), tmp_path / "weights.pth")
    with pytest.raises(Refused, match=r"images does not exist; name the folder of the 20 classes, or of ImageNet"):
        prepare_images(State(tmp_path), None, None, needed=True)
    with pytest.raises(Refused, match=r"cifar100 does not exist; say with --cifar where it is"):
        prepare_cifar(State(tmp_path), None, None, needed=True)
    with (
        only_one(State(tmp_path)),
        pytest.raises(Refused, match="another process is at work"),
        only_one(State(tmp_path)),
    ):
        pass


def test_the_20_classes_of_a_larger_folder(data, tmp_path):
    (tmp_path / "imagenet").mkdir()
    for split in ("train", "val"):
        (tmp_path / "imagenet" / split).mkdir()
        for name in [*CLASSES, "n09999999"]:
            (tmp_path / "imagenet" / split / name).mkdir()
    link_images(tmp_path / "imagenet", tmp_path / "images")
    assert sorted(os.listdir(tmp_path / "images" / "val")) == sorted(CLASSES)  # noqa: PTH208
    (tmp_path / "imagenet" / "val" / "n03888257").rmdir()
    with pytest.raises(Refused, match="has no class folder n03888257, which is one of the 20"):
        link_images(tmp_path / "imagenet", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_cifar_as_this_project_writes_it_and_as_the_hub_has_it(tmp_path):
    chosen = Slice("short_schedule", State(tmp_path), [], None, None)
    assert chosen.configure("kd").data.val_split == "test"
    (tmp_path / "cifar100" / "val").mkdir(parents=True)
    assert chosen.configure("kd").data.val_split == "val"


def test_without_mlflow_runs_wait_in_their_folders(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(paper3.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(paper3, "open_run", lambda *_: pytest.fail("there is no MLflow"))
    monkeypatch.setattr(paper3, "warn_once", said.append)
    paper3.track(Slice("pilot", State(tmp_path), [], None, None).configure("alone"))
    assert said == ["MLflow is not installed here; the same command brings the runs to it where it is"]


def test_runs_that_finish_together_are_one_page(tmp_path, monkeypatch):
    written: list[Path] = []
    monkeypatch.setattr(paper3, "track", lambda config: None)
    monkeypatch.setattr(paper3, "collect", lambda *_: None)
    monkeypatch.setattr(paper3, "write_page", written.append)
    chosen = Slice("pilot", State(tmp_path), ["train.epochs=1"], None, None)
    for _ in range(3):
        chosen.finished(SimpleNamespace(config=None))
    assert written == [tmp_path]
    chosen.report()
    assert len(written) == 2
    monkeypatch.setattr(paper3, "REPORT_SECONDS", -1.0)
    chosen.finished(SimpleNamespace(config=None))
    assert len(written) == 3


def test_calls_side_by_side_write_one_file_by_turns(tmp_path, monkeypatch):
    """The second waits for the first to have read and written."""
    entered, leave = threading.Event(), threading.Event()
    order: list[str] = []

    def slow(*_):
        order.append("begins")
        entered.set()
        assert leave.wait(60)
        order.append("ends")

    monkeypatch.setattr(paper3, "collect", slow)
    monkeypatch.setattr(paper3, "write_page", lambda folder: None)
    slices = [Slice("pilot", State(tmp_path), ["train.epochs=1"], None, None) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(one.report) for one in slices]
        assert entered.wait(60)
        assert order == ["begins"]
        leave.set()
        for call in calls:
            call.result()
    assert order == ["begins", "ends"] * 2
