"""`reproduce paper3`: its rows are what they say, killed it equals an undisturbed one, its page holds its results."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from kdcore.batch import Needs
from kdcore.errors import Refused
from ops.reproduce import paper3_page, paper3_results
from ops.reproduce.experiments import CHOSEN, EXPERIMENTS, LAYERS, Claim
from ops.reproduce.identities import write_identities
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

ROOT = Path(__file__).parents[3]
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


def command(data: Path, weights: Path, state: Path, minutes: float) -> list[str]:
    words = [
        "reproduce",
        "paper3",
        "--experiments",
        "pilot",
        "--rows",
        *ROWS,
        "--seeds",
        "0",
        "--side-by-side",
        "2",
    ]
    places = ["--data", str(data), "--weights", str(weights), "--state", str(state), "--minutes", str(minutes)]
    return [sys.executable, "-m", "ops", *words, *places, *SMALL]


def run(data: Path, weights: Path, state: Path, minutes: float = 5) -> str:
    done = subprocess.run(command(data, weights, state, minutes), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def outcome(state: Path) -> Any:
    """What the runs have come to, but for times and facts of the machine."""
    content = json.loads((state / "results" / "paper3_pilot.json").read_text())
    for one in content["rows"].values():
        for finished in one["runs"]:
            finished.pop("facts")
            finished.pop("train_seconds")
    return content["setting"], content["rows"]


@pytest.mark.slow
def test_killed_and_continued_is_undisturbed(data, weights, tmp_path):
    """Killed while the cache is built, and when the first run has its result; then a slice of ten milliseconds."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert "this is done" in run(data, weights, whole)
    for path in ("cache/**/*.arrow", "*/result.json"):
        process = subprocess.Popen(command(data, weights, broken, 5), cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None and not list(broken.glob(path)):
            time.sleep(0.02)
        assert process.poll() is None, "it was done before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
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
        if config.teacher is None or not config.needs.teacher:
            continue
        assert config.cache.dir == str(tmp_path / "cache" / experiment.rows[row].cache)
        builder = chosen.configure(experiment.builders[experiment.rows[row].cache])
        held = builder.needs | Needs(teacher_taps=frozenset(builder.cache.taps))
        assert config.needs.teacher_taps <= held.teacher_taps
        assert held.teacher_logits or not config.needs.teacher_logits
        assert builder.views.num_views >= config.views.num_views
        assert builder.for_teacher.views.appearance() == config.for_teacher.views.appearance()
        assert builder.data.images_per_class == config.data.images_per_class
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


def facts() -> dict[str, Any]:
    return {"machine": "3 cores x86_64, 7 GiB", "commit": "abcdef0123456789"}


def run_of(row: str, seed: int, top1: float) -> dict[str, Any]:
    """A finished run as `slices.runs_of` gives it."""
    return {
        "name": f"regime-{row}-seed{seed}",
        "seed": seed,
        "finished": True,
        "steps": 1750,
        "train_seconds": 301.5,
        "deployed_parameters": 310116,
        "facts": facts(),
        "final": {"top1": top1, "images": 1000},
        "best": {"epoch": 40.0, "top1": top1 + 0.003},
        "teacher": {"top1": 0.94137},
    }


@pytest.mark.parametrize(
    ("values", "sign", "verdict"),
    [
        ([0.10, 0.11, 0.12], "above", "holds"),
        ([0.10, 0.11, 0.12], "below", "contradicted"),
        ([-0.10, -0.11, -0.12], "below", "holds"),
        ([-0.10, 0.11, 0.02], "above", "within seed noise"),
        ([0.10], "above", "one seed decides nothing"),
        ([], "above", "not run"),
    ],
)
def test_what_an_interval_says_of_a_claim(values, sign, verdict):
    these = {seed: 0.5 + value for seed, value in enumerate(values)}
    top1 = {"row": {**these, 7: 0.9}, "other": dict.fromkeys(these, 0.5)}  # a seed that the other has not run
    found = paper3_results.judged(Claim("a claim", "other", sign), "row", top1)
    assert found == {"text": "a claim", "against": "other", "sign": sign, "verdict": verdict}


def test_differences_are_paired():
    """By hand: differences of 0.1, 0.2 and 0.3, Student's t of 2 degrees of freedom at 97.5 % is 4.302653."""
    these, those = {0: 0.5, 1: 0.7, 2: 0.6}, {0: 0.4, 1: 0.5, 2: 0.3}
    found = paper3_results.difference(these, those)
    assert found["n"] == 3
    assert found["mean"] == pytest.approx(0.2)
    assert found["high"] - found["mean"] == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert found["mean"] - found["low"] == pytest.approx(4.302653 * 0.1 / 3**0.5)


def test_published_runs_are_not_run_again(tmp_path, monkeypatch):
    """A second machine, whose state is empty, does what is left; what has changed its recipe is run again."""
    known = {row: [run_of(row, seed, 0.4 + seed / 100) for seed in (0, 1)] for row in ROWS}
    monkeypatch.setattr(paper3_results, "runs_of", lambda state, name: known.get(name.removeprefix("regime-"), []))
    results = tmp_path / "results"
    first = json.loads(paper3_results.collect("regime", tmp_path, results).read_text())
    monkeypatch.setattr(paper3_results, "runs_of", lambda *_: [])
    again = json.loads(paper3_results.collect("regime", tmp_path / "other", results).read_text())
    assert again["rows"] == first["rows"]
    assert again["setting"] == first["setting"]
    assert again["setting"]["epochs"] == 50
    monkeypatch.setattr(State, "published", lambda self, overrides: tmp_path)
    chosen = Slice("regime", State(tmp_path / "other"), [], ROWS, range(3))
    assert chosen.runs_to_do == [(row, 2) for row in ROWS]
    assert Slice("regime", State(tmp_path), ["train.epochs=3"], ROWS, range(3)).runs_to_do == chosen.runs
    monkeypatch.setattr(paper3_results, "runs_of", lambda state, name: [run_of(ROWS[0], 1, 0.9)] * (ROWS[0] in name))
    newer = json.loads(paper3_results.collect("regime", tmp_path, results).read_text())
    assert [run["top1"] for run in newer["rows"][ROWS[0]]["runs"]] == [0.4, 0.9]


NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?")


def test_every_number_of_the_page_is_in_a_result_file(tmp_path, monkeypatch):
    """Beyond what the page says without results: each is the text of a value of a file, as a number or in percent."""
    rng = np.random.default_rng(0)
    for name, experiment in EXPERIMENTS.items():
        runs = {row: [run_of(row, seed, rng.uniform(0.2, 0.6)) for seed in range(3)] for row in experiment.rows}
        monkeypatch.setattr(paper3_results, "runs_of", lambda state, row, runs=runs, n=name: runs[row[len(n) + 1 :]])
        setting = {
            "epochs": 53, "batch_size": 127, "image_size": 61, "teacher_image_size": 223, "lr": 0.0071,
            "optimizer": "adamw", "validation_images": 997, "teacher_top1": 0.94137,
        }  # fmt: skip
        monkeypatch.setattr(paper3_results, "setting", lambda *_, made=setting: made)
        if name == "layers":
            (tmp_path / "layers").mkdir()
            names = ("q", "separation", "information", "efficiency")
            scores = {tap: {name: rng.uniform() for name in names} for tap in experiment.rows}
            (tmp_path / "layers" / "layers.json").write_text(json.dumps(scores))
        paper3_results.collect(name, tmp_path, tmp_path / "results")
    write_identities(tmp_path / "results")
    page = paper3_page.write_page(tmp_path).read_text()
    plain = paper3_page.generate({name: {} for name in (*EXPERIMENTS, "identities")})
    contents = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")]
    known = set().union(*(texts(content) for content in contents))
    said = set(NUMBER.findall(without_names(page))) - set(NUMBER.findall(plain))
    assert len(said) > 200
    assert said - known == set()
    for name in EXPERIMENTS:
        assert (tmp_path / "figures" / f"paper3_{name}.svg").stat().st_size > 1000


def without_names(page: str) -> str:
    """Without names of rows, files and commits, which are no measurements."""
    rows = {row for experiment in EXPERIMENTS.values() for row in experiment.rows}
    for word in sorted([*rows, facts()["commit"][:12], facts()["machine"]], key=len, reverse=True):
        page = page.replace(word, "")
    return re.sub(r"\(figures/[^)]*\)", "", page)


def texts(content: Any) -> set[str]:
    """Every form in which the page may show a value of a result file."""
    if isinstance(content, dict):
        return set().union(*(texts(value) for key, value in content.items() if key != "recipe_digest"))
    if isinstance(content, list):
        return {str(len(content))}.union(*(texts(value) for value in content))
    if isinstance(content, str):
        return set(NUMBER.findall(content))
    if isinstance(content, bool) or content is None:
        return set()
    forms = ("{:.4f}", "{:g}", "{:.0f}", "{:+.2f}", "{:.1e}")
    return {form.format(content) for form in forms} | {f"{100 * content:.2f}", f"{100 * content:+.2f}"}


def test_without_results_nothing_is_claimed():
    page = paper3_page.generate({name: {} for name in (*EXPERIMENTS, "identities")})
    assert page.count("\nNot run.\n") == len(EXPERIMENTS) + 1
    assert "verdict" not in page


def test_the_page_is_fresh():
    folder = paper3_page.BENCHMARKS
    results = {name: paper3_page.result(folder, name) for name in (*EXPERIMENTS, "identities")}
    assert (folder / paper3_page.PAGE).read_text() == paper3_page.generate(results), "run reproduce paper3 --minutes 0"


def test_identities_hold(tmp_path):
    found = json.loads(write_identities(tmp_path).read_text())["identities"]
    assert [one["error"] < 1e-5 for one in found] == [True] * 4
    assert found[3]["error"] == 0
