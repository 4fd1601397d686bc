"""`evaluate`: of a run, of a file of weights, of a recipe; files, pictures, and the run's page in MLflow."""

import json
import shutil
from types import SimpleNamespace

import mlflow
import pytest

from cluster.tracking.folder import RunFolder
from ops.__main__ import main
from ops.evaluation import image_names
from ops.evaluation.image_names import changed_views, name_images
from ops.export.model_card import evaluations, latencies
from tests.ops.conftest import METHODS, small_run


def evaluation(folder, name: str = "val") -> dict:
    return json.loads((folder / "evaluation" / f"{name}.json").read_text())


def test_a_run(finished, store, capsys):
    run = finished / "out" / "features-0"
    assert main(["evaluate", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "linear CKA" in shown
    assert "per class" in shown
    assert [cell.strip() for cell in shown.partition("class0")[2].split("│")[1:2]] == ["40"]
    found = evaluation(run)
    result = json.loads((run / "result.json").read_text())["metrics"]
    assert found["metrics"]["student"]["top1"] == pytest.approx(result["val/top1"])
    assert found["metrics"]["student"]["kl"] == pytest.approx(result["val/kl"], rel=1e-4)
    student = found["metrics"]["student"]
    assert student["class_mean_top1"] == pytest.approx(student["top1"])  # of classes of one size
    assert [row["class"] for row in found["classes"]] == ["class0", "class1", "class2"]
    assert {(pair["student"], pair["teacher"]) for pair in found["cka"]} >= {("layer1", "layer2")}
    for picture in ("val-reliability.png", "val-cka.png", "val-student-classes.png", "val-teacher-classes.png"):
        assert (run / "evaluation" / picture).read_bytes().startswith(b"\x89PNG")
    client, run_id = mlflow.MlflowClient(store), (run / "mlflow_run_id").read_text()
    metrics = client.get_run(run_id).data.metrics
    assert metrics["evaluation/val/ece"] == pytest.approx(found["metrics"]["student"]["ece"])
    assert metrics["evaluation/val/teacher_top1"] == pytest.approx(result["val/teacher_top1"])
    assert "evaluation/val.json" in {file.path for file in client.list_artifacts(run_id, "evaluation")}


def test_a_file_of_weights_with_a_recipe(finished, tmp_path, capsys):
    run = finished / "out" / "kd-0"
    weights = tmp_path / "copy.safetensors"
    shutil.copyfile(run / "student.safetensors", weights)
    assert main(["evaluate", str(weights)]) == 2
    assert "say how the network is built: --recipe RECIPE" in capsys.readouterr().err
    assert main(["evaluate", str(weights), "--recipe", str(run / "recipe.yaml")]) == 0
    found = json.loads((tmp_path / "copy-evaluation" / "val.json").read_text())
    result = json.loads((run / "result.json").read_text())["metrics"]
    assert found["metrics"]["student"]["top1"] == pytest.approx(result["val/top1"])


def test_the_teacher_of_a_recipe(finished, tmp_path):
    recipe = finished / "out" / "kd-0" / "recipe.yaml"
    assert main(["evaluate", str(recipe), f"output_dir={tmp_path}"]) == 0
    found = json.loads((tmp_path / "evaluation" / "recipe" / "val.json").read_text())
    assert list(found["metrics"]) == ["teacher"]


def test_other_images_by_a_variant(finished, tmp_path):
    """Two of the three classes, as ImageNet-A has 200 of 1,000."""
    run = tmp_path / "run"
    shutil.copytree(finished / "out" / "kd-1", run)
    (run / "mlflow_run_id").unlink()
    images = tmp_path / "some"
    for name in ("class0", "class2"):
        shutil.copytree(finished / "images" / "val" / name, images / name)
    assert main(["evaluate", str(run), "--data", str(images), "--variant", "a"]) == 0
    (path,) = (run / "evaluation").glob("a-*.json")
    found = evaluation(run, path.stem)
    assert path.stem == f"a-{found['fingerprint'][:8]}"
    assert [row["class"] for row in found["classes"]] == ["class0", "class2"]
    assert found["metrics"]["student"]["images"] == 80


@pytest.mark.parametrize(
    ("data", "variant", "fingerprint", "training", "name"),
    [
        (None, None, "f" * 64, "t", "val"),
        (None, None, "f" * 64, None, "val"),
        (None, "real", "f" * 64, "t", "real"),
        ("/the/same/images", None, "f" * 64, "t", "val"),
        ("/other/val", None, "a" * 64, "t", "val-aaaaaaaa"),
        ("/another/val/", None, "b" * 64, "t", "val-bbbbbbbb"),
        ("s3://bucket/cats&dogs", None, "a" * 64, "t", "cats-dogs-aaaaaaaa"),
        ("/imagenetv2", "v2", "a" * 64, "t", "v2-aaaaaaaa"),
        (None, None, "f" * 64, "another run's", "val-ffffffff"),  # the recipe's data are not what the run was given
    ],
)
def test_two_sets_of_images_never_have_one_name(monkeypatch, tmp_path, data, variant, fingerprint, training, name):
    """The split's name is that of the run's own validation images, wherever they lie; a folder's is not enough."""
    images = {split: SimpleNamespace(fingerprint=digits * 64) for split, digits in (("train", "7"), ("val", "f"))}
    monkeypatch.setattr(image_names, "open_data", lambda config, reuse_index: images)
    if training is not None:
        facts = {"data": "7" * 64 if training == "t" else training}
        (tmp_path / "facts.json").write_text(json.dumps(facts))
    config = SimpleNamespace(data=SimpleNamespace(val_split="val"))
    target = SimpleNamespace(index=SimpleNamespace(fingerprint=fingerprint))
    assert name_images(config, RunFolder(tmp_path), target, data, variant) == name


@pytest.mark.parametrize(
    ("size", "split", "name"),
    [(32, "val", "val"), (24, "val", "val-views-"), (32, "images/val", "images-val"), (24, "a:b", "a-b-views-")],
)
def test_other_views_of_the_images_have_another_name(monkeypatch, tmp_path, size, split, name):
    """So that no override replaces a run's own results; the name is one part of a path and of a metric."""
    own = small_run(tmp_path, "run", METHODS["alone"], 0)
    own = own.model_copy(update={"data": own.data.model_copy(update={"val_split": split})})
    RunFolder(tmp_path).write_recipe(own)
    images = {split: SimpleNamespace(fingerprint="7" * 64) for split in ("train", "val")}
    monkeypatch.setattr(image_names, "open_data", lambda config, reuse_index: images)
    config = own.model_copy(update={"views": own.views.model_copy(update={"size": size})})
    target, changed = SimpleNamespace(index=images["val"]), changed_views(config, RunFolder(tmp_path))
    assert (changed is None) == (size == 32)
    assert name_images(config, RunFolder(tmp_path), target, None, None) == name + (changed or "")[:8]


def test_the_card_has_no_numbers_of_other_views(tmp_path):
    """Neither those of overrides on a card of the run's own views, nor the other way round."""
    (tmp_path / "evaluation").mkdir()
    for name, views in {"val": None, "val-views-cccccccc": "c" * 64}.items():
        content = {"images": name, "fingerprint": "a" * 64, "metrics": {"student": {"images": 15, "top1": 0.5}}}
        (tmp_path / "evaluation" / f"{name}.json").write_text(json.dumps({**content, "views": views}))
    found = {
        changed: [one["images"] for one in evaluations(tmp_path, "a" * 64, changed)] for changed in (None, "c" * 64)
    }
    assert found == {None: ["val"], "c" * 64: ["val-views-cccccccc"]}
    row = {"network": "student", "size": [32, 32], "device": "cpu"}
    (tmp_path / "benchmark.json").write_text(json.dumps({"rows": [row]}))
    assert latencies(tmp_path, (24, 24)) is None
    assert latencies(tmp_path, (32, 32)) == {"rows": [row], "on_gpu": False}


def test_the_card_takes_no_other_images_for_the_validation_split(tmp_path):
    """Nor of results as earlier versions wrote them, where any folder of the name could be meant."""
    (tmp_path / "evaluation").mkdir()
    for name, fingerprint in {"val": "a" * 64, "test-bbbbbbbb": "b" * 64}.items():
        content = {"images": name, "fingerprint": fingerprint, "metrics": {"student": {"images": 15, "top1": 0.5}}}
        (tmp_path / "evaluation" / f"{name}.json").write_text(json.dumps(content))
    named = {own: [one["images"] for one in evaluations(tmp_path, own * 64)] for own in "ac"}
    assert named == {"a": ["test-bbbbbbbb", "val"], "c": ["test-bbbbbbbb", "val-aaaaaaaa"]}


def test_a_run_that_is_not_finished(finished, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").touch()
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "not finished; continue it with train" in capsys.readouterr().err
