"""Images with several labels, from the CSV to the exported file: bce, binary_kd from a cached teacher, mAP, and on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from cluster.assembly import assemble
from cluster.cache.job import build
from cluster.passes import every_image_once
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.tracking.captions import captions_of
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.training.launch import RunResult, launch
from kdcore.errors import Refused
from ops.evaluation.evaluate import evaluate
from ops.evaluation.predict import predict
from ops.export.write import export
from ops.review.page import review
from tests.cluster.training.test_train import interrupt_at_step
from tests.conftest import small_recipe
from tests.multi_label import CLASSES, shown_in, write_pictures

KD = [{"term": "bce", "weight": 0.5, "positive_weights": "balanced"}, {"term": "binary_kd", "weight": 0.5}]
ALONE = [{"term": "bce", "weight": 1.0}]
CPU = torch.device("cpu")

Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def make(root: Path) -> Make:
    """A function that gives a recipe on 96 training and 24 validation pictures."""
    write_pictures(root / "images", train=96)

    def made(name: str, **changes: Any) -> RunConfig:
        own = {
            "name": name,
            "scaling__num_workers": 0,
            "data__loader": "reference",
            "data__multi_label": True,
            "views": {"size": 16, "crop": "padded", "padding": 1},
            "train__epochs": 5,
            "optimizer__lr": 0.1,
            "method": ALONE,
        }
        return parse(small_recipe(root / "images", root / "out", **own | changes))

    return made


@pytest.fixture(scope="module")
def student(make: Make) -> Make:
    """A function that gives the recipe of a student of the cached teacher, on mixed images, chosen by held-out mAP."""
    teacher = make("teacher", data__held_out=0.25)
    launch(teacher)
    own = {
        "method": KD,
        "data__held_out": 0.25,
        "views__num_views": 5,
        "views__mixup_alpha": 0.2,
        "train__select": "held_out",
        "student__args": {"widths": [2, 2, 4, 8]},
        "checkpoint__every_steps": 4,
        "tracking__every_steps": 1,
        "cache": {"dir": str(teacher.run_dir.parent / "cache")},
    }
    network = {
        **teacher.student.model_dump(include={"model", "args"}),
        "checkpoint": str(RunFolder.of(teacher).weights),
    }
    build(make("build", **own, teacher=network))
    return lambda name, **changes: make(name, **own | {"teacher": network | {"source": "cache"}} | changes)


@pytest.fixture(scope="module")
def trained(student: Make) -> tuple[RunConfig, RunResult]:
    config = student("student")
    return config, launch(config)


def test_map_rises_above_chance(trained: tuple[RunConfig, RunResult], root: Path) -> None:
    config, result = trained
    shown = shown_in(root / "images", "val").values()
    chance = np.mean([[name in text.split("|") for name in CLASSES] for text in shown])
    assert result.metrics["val/teacher_mAP"] > chance + 0.2
    assert result.metrics["val/mAP"] > chance + 0.2
    assert {"val/f1", "val/nll", "val/kl", "val/agreement", "held_out/mAP", "train/bce"} <= result.metrics.keys()
    assert not [name for name in result.metrics if "top" in name], "an image has no one class"
    rows = [row for row in read_journal(RunFolder.of(config).metrics) if "held_out/mAP" in row]
    best = max(rows, key=lambda row: row["held_out/mAP"])
    assert best["held_out/mAP"] == result.metrics["held_out/mAP"], "the weights that were best are deployed"


def test_killed_and_continued(student: Make, trained: tuple[RunConfig, RunResult]) -> None:
    config = student("killed")
    with pytest.raises(KeyboardInterrupt):
        launch(config, watch=interrupt_at_step(14))
    said: list[str] = []
    launch(config, watch=lambda state, messages: said.extend(messages))
    assert [line for line in said if line.startswith("continuing at step ")]
    ours, theirs = (safetensors.torch.load_file(RunFolder.of(one).weights) for one in (config, trained[0]))
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_labels_of_mixed_images_are_shares_of_both(student: Make) -> None:
    run = assemble(student("mixed"), Rank(0, 1, CPU))
    train = run.indexes["train"]
    batch = next(run.train_batches(0))
    ids, views = batch.sample_ids.numpy(), batch.views.numpy()
    seen = run.plan.views(views, ids, train.heights[ids], train.widths[ids])
    share = torch.from_numpy(seen.mix_lambda)[:, None]
    partners = run.plan.partner(views, ids)
    expected = share * torch.from_numpy(train.targets(ids)) + (1 - share) * torch.from_numpy(train.targets(partners))
    torch.testing.assert_close(batch.labels, expected.float())
    assert batch.targets is not None
    captions = captions_of(batch, run.classes, batch.targets.logits, multi_label=True)
    assert captions[0][1].startswith("teacher: ")


def test_two_ranks_see_the_same(student: Make) -> None:
    config = student("ranks")
    whole = list(assemble(config, Rank(0, 1, CPU)).train_batches(0))[:6]
    ranks = [list(assemble(config, Rank(number, 2, CPU)).train_batches(0)) for number in range(2)]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    for ours, theirs in zip(whole, together, strict=False):
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.images, theirs.images)


def test_evaluate(trained: tuple[RunConfig, RunResult], capsys: pytest.CaptureFixture[str]) -> None:
    config, result = trained
    assert evaluate(str(config.run_dir), None, None, None, []) == 0
    printed = capsys.readouterr().out
    assert "mAP" in printed
    assert "top-1" not in printed
    found = json.loads((config.run_dir / "evaluation" / "val.json").read_text())
    student, teacher = found["metrics"]["student"], found["metrics"]["teacher"]
    assert student["mAP"] == pytest.approx(result.metrics["val/mAP"])
    assert teacher["mAP"] == pytest.approx(result.metrics["val/teacher_mAP"], abs=0.02), "from float16 in the cache"
    parts = assemble(config, Rank(0, 1, CPU))
    parts.student.load_state_dict(safetensors.torch.load_file(RunFolder.of(config).weights))
    loader = parts.evaluation_loader("val")
    batches = loader.load(every_image_once(24, parts.rank, loader.max_batch))
    with torch.no_grad():
        scores, labels = zip(*((parts.student.eval()(one.images), one.labels) for one in batches), strict=True)
    each = average_precision_score(torch.cat(labels).numpy(), torch.cat(scores).numpy(), average=None)
    assert [row["student"]["average_precision"] for row in found["classes"]] == pytest.approx(list(each), rel=1e-6)
    with pytest.raises(Refused, match="--variant real is of images with one right class"):
        evaluate(str(config.run_dir), None, None, "real", [])


def test_export_and_predict(trained: tuple[RunConfig, RunResult], root: Path, tmp_path: Path) -> None:
    config, result = trained
    assert export(str(config.run_dir), str(tmp_path / "files"), 16, None, ["fp16"], 0.05, []) == 0
    card = (tmp_path / "files" / "README.md").read_text()
    assert f"| mAP | {result.metrics['val/mAP']:.2%} |" in card
    assert "top-1" not in card
    assert "A class's probability is the\nsigmoid of its logit" in card
    photos = root / "images" / "pictures"
    assert (
        predict(str(config.run_dir), str(photos), 1, str(tmp_path / "seen.json"), str(tmp_path / "seen.png"), []) == 0
    )
    seen = {Path(one["photo"]).name: one for one in json.loads((tmp_path / "seen.json").read_text())}
    with Image.open(tmp_path / "seen.png") as picture:
        assert picture.width > 300
    for one in seen.values():
        assert one["named"] == [each["class"] for each in one["classes"] if each["probability"] >= 0.5]
    assert {len(one["named"]) for one in seen.values()} > {1}, "several, or none"
    names = sorted(seen)[:8]
    script = [sys.executable, str(tmp_path / "files" / "predict.py"), *(str(photos / name) for name in names)]
    lines = subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()
    for name, line in zip(names, lines, strict=True):
        _, *classes = line.split("\t")
        assert [one.rpartition(" ")[0] for one in classes] == seen[name]["named"]


def test_review(trained: tuple[RunConfig, RunResult], make: Make, tmp_path: Path) -> None:
    launch(make("alone", train__epochs=1))
    page = tmp_path / "review.html"
    store = str(trained[0].output_dir)
    assert review("stillhouse", store, str(page), None, None, None) == 0
    text = page.read_text()
    assert "val/mAP" in text
    assert "val/top1" not in text.partition("Plotly.newPlot")[0].rpartition("</script>")[2]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"method": [{"term": "ce", "weight": 1.0}]},
            r"the term ce takes one class of each .* take bce for the labels",
        ),
        (
            {
                "method": [*ALONE, {"term": "kd", "weight": 1.0, "temperature": 4}],
                "teacher": {"model": "cifar_resnet8", "random": True},
            },
            "the term kd takes one class of each",
        ),
        ({"data__sampling": "classes"}, r"data\.sampling=classes draws images by their one class, or leave it out"),
        ({"data__images_per_class": 4}, r"data\.images_per_class counts images by their one class"),
        ({"cache": {"dir": "c", "logits": "sparse"}}, r"cache\.logits=sparse keeps what a softmax needs; take dense"),
        ({"ensemble": {"average": "probabilities"}}, r"ensemble\.average=probabilities takes a softmax; take logits"),
    ],
)
def test_what_takes_one_label_is_refused(make: Make, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused, match=f"data.multi_label: images have several labels, .*{sentence}"):
        make("refused", **changes)


def test_recipe_and_images_must_agree(make: Make, image_folder: Path) -> None:
    with pytest.raises(Refused, match=r"have several labels each; set data\.multi_label=true"):
        assemble(make("one", data__multi_label=False), Rank(0, 1, CPU))
    with pytest.raises(
        Refused, match=r"data\.multi_label is true, but the images in .* have one label each; give a CSV"
    ):
        assemble(make("folder", data__root=str(image_folder)), Rank(0, 1, CPU))
