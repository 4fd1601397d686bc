"""`export`: files that answer like the student, in plain timm and torch, in ONNX Runtime, from MLflow."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub._commit_api
import mlflow
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch

import ops.export.write
from cluster.assembly import assemble
from cluster.evaluation import load_student
from cluster.rank import Rank
from cluster.recipe.reading import load_recipe
from cluster.training.launch import launch
from kdcore.errors import Refused
from ops.__main__ import main
from ops.export.files import NEEDED
from ops.export.registry import default_name, log_version, using_store
from ops.export.write import sample_images
from tests.ops.conftest import small_run
from tests.ops.hub import TOKEN, hub_server


@pytest.fixture(scope="module")
def expected(finished):
    """(validation images [120,3,32,32], the student's logits for them)."""
    return answers(finished / "out" / "kd-0")


@torch.no_grad()
def answers(run):
    parts = assemble(load_recipe(run / "recipe.yaml"), Rank(0, 1, torch.device("cpu")))
    images = sample_images(parts, 1000)
    return images, load_student(parts, run / "student.safetensors")(images)


def elsewhere(folder, code: str) -> None:
    """Runs code in another process, in another folder, where this project cannot be imported."""
    guard = "import gc, importlib.util; gc.disable(); assert not importlib.util.find_spec('kdcore')\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", guard + code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


COMPARE = """
import torch, safetensors.torch
case = safetensors.torch.load_file("case.safetensors")
with torch.no_grad():
    logits = model(case["images"])
torch.testing.assert_close(logits, case["logits"], rtol=1e-4, atol=1e-5)
assert len(logits) >= 100
"""


def test_plain_timm_and_torch_load_it(exported, expected):
    """By the line that the model card gives, as a local folder, and as a program; none of them knows this project."""
    images, logits = expected
    safetensors.torch.save_file({"images": images, "logits": logits}, exported / "case.safetensors")
    line = next(line for line in (exported / "README.md").read_text().splitlines() if "timm.create_model(" in line)
    local = "model = timm.create_model('local-dir:.', pretrained=True).eval()"
    program = "model = torch.export.load('model.pt2').module()"
    elsewhere(exported, f"import timm\n{line}\n{COMPARE}\n{local}\n{COMPARE}\n{program}\n{COMPARE}")


def test_onnx_parity(exported, expected):
    """On all 120 validation images at once, and one by one: the batch is free."""
    images, logits = expected
    assert len(images) == 120
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"images": images.numpy()})[0]
    np.testing.assert_allclose(found, logits.numpy(), rtol=1e-3, atol=1e-4)
    assert (found.argmax(1) == logits.numpy().argmax(1)).all()
    single = session.run(["logits"], {"images": images[:1].numpy()})[0]
    np.testing.assert_allclose(single[0], found[0], rtol=1e-4, atol=1e-5)


def test_preprocessing_is_stated(exported):
    config = json.loads((exported / "config.json").read_text())
    assert config["architecture"] == "test_resnet"
    assert config["label_names"] == ["class0", "class1", "class2"]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert config["pretrained_cfg"]["crop_pct"] == 0.875
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]


def test_the_model_card(exported, finished):
    """Teacher with fingerprint and licence, data, preprocessing, numbers over the three seeds, recipe."""
    card = (exported / "README.md").read_text()
    top1 = [
        json.loads((finished / "out" / f"kd-{s}" / "result.json").read_text())["metrics"]["val/top1"] for s in range(3)
    ]
    assert f"{np.mean(top1):.2%} ± {np.std(top1, ddof=1):.2%} (n = 3)" in card
    for part in (
        "`cifar_resnet8`, weights with SHA-256",
        "Licence: not stated",
        "fingerprint",
        "covers 36 x 36 pixels",
        "cut out the centre of\n32 x 32, scale",
        "temperature: 4.0",
        "## Intended use",
    ):
        assert part in card, part


def test_the_registered_model_predicts_the_same(exported, expected, store, finished):
    images, logits = expected
    with using_store(store):
        model = mlflow.pyfunc.load_model("models:/test_resnet-images/1")
    np.testing.assert_allclose(model.predict(images.numpy())["logits"], logits.numpy(), rtol=1e-3, atol=1e-4)
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 3, 32, 32)
    client = mlflow.MlflowClient(store)
    version = client.get_model_version("test_resnet-images", "1")
    assert version.tags["method"] == "ce+kd"
    assert version.description.startswith("# kd-0")
    assert client.get_run((finished / "out" / "kd-0" / "mlflow_run_id").read_text()).info.status == "FINISHED"


def test_no_image_leaves_with_the_files(exported, store):
    """torch.export and MLflow keep an example of what a network is shown."""
    (example,), _ = torch.export.load(exported / "model.pt2").example_inputs
    assert example.shape == (2, 3, 32, 32)
    assert not example.any()
    with using_store(store):
        folder = mlflow.artifacts.download_artifacts("models:/test_resnet-images/1")
        kept = mlflow.models.Model.load(folder).load_input_example(folder)
    assert np.shape(kept) == (2, 3, 32, 32)
    assert not np.any(kept)


def test_no_folder_of_this_machine_leaves_with_the_programs(exported, small_files):
    """torch notes at every operation the line of Python that it came from."""
    read = {path: path.read_bytes() for folder in (exported, small_files) for path in folder.glob("*.onnx")}
    with zipfile.ZipFile(exported / "model.pt2") as file:
        read |= {Path(name): file.read(name) for name in file.namelist()}
    assert {path.name for path in read} >= {"model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.json"}
    own = (str(Path(ops.__path__[0]).parent).encode(), b"site-packages", b"torch/nn/modules")
    assert not [(path, part) for path, content in read.items() for part in own if part in content]


def test_the_same_weights_are_registered_once(exported, finished, tmp_path, capsys):
    assert main(["export", str(finished / "out" / "kd-0"), "-o", str(tmp_path)]) == 0
    assert "registered already: models:/test_resnet-images/1" in capsys.readouterr().out


def test_simkd_is_loaded_in_one_line(finished, tmp_path):
    """Its graph is not timm's: the program holds it whole, the teacher's classifier included."""
    student = {"model": "cifar_resnet8", "args": {"widths": [4, 4, 8, 16]}, "classifier": "reused"}
    method = [{"term": "simkd", "weight": 1.0}]
    config = small_run(finished, "simkd", method, 0, student=student, train={"max_steps": 2})
    launch(config.model_copy(update={"output_dir": str(tmp_path / "out")}))
    assert main(["export", str(tmp_path / "out" / "simkd"), "-o", str(tmp_path / "exported")]) == 0
    images, logits = answers(tmp_path / "out" / "simkd")
    safetensors.torch.save_file({"images": images, "logits": logits}, tmp_path / "exported" / "case.safetensors")
    elsewhere(tmp_path / "exported", f"import torch\nmodel = torch.export.load('model.pt2').module()\n{COMPARE}")
    assert "ends in its teacher's own classifier" in (tmp_path / "exported" / "README.md").read_text()
    assert json.loads((tmp_path / "exported" / "lineage.json").read_text())["in_timm"] is False


@pytest.fixture(scope="module")
def small_files(finished, tmp_path_factory):
    """The folder of an export with files of less precision."""
    folder = tmp_path_factory.mktemp("small")
    command = ["export", str(finished / "out" / "kd-1"), "-o", str(folder), "--max-loss", "0.5"]
    assert main([*command, "--precisions", "fp16", "int8"]) == 0
    return folder


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.02), ("int8", 0.3)])
def test_smaller_files_answer_like_the_student(small_files, finished, precision, tolerance):
    """Within their precision, as a share of the logits' range; they name classes and preprocessing too."""
    images, logits = answers(finished / "out" / "kd-1")
    session = onnxruntime.InferenceSession(small_files / f"model.{precision}.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"images": images.numpy()})[0]
    assert 0 < np.abs(found - logits.numpy()).max() < tolerance * np.ptp(logits.numpy())
    exact = onnxruntime.InferenceSession(small_files / "model.onnx", providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == ["class0", "class1", "class2"]
    assert facts == exact.get_modelmeta().custom_metadata_map


def test_int8_weights_are_int8(small_files):
    kinds = [tensor.data_type for tensor in onnx.load(small_files / "model.int8.onnx").graph.initializer]
    assert kinds.count(onnx.TensorProto.INT8) >= 10
    whole, small = ((small_files / name).stat().st_size for name in ("model.onnx", "model.int8.onnx"))
    assert small < 0.7 * whole


def test_a_smaller_file_that_loses_too_much_is_not_kept(finished, tmp_path, capsys):
    command = ["export", str(finished / "out" / "kd-1"), "-o", str(tmp_path), "--precisions", "fp16"]
    assert main([*command, "--max-loss", "-1"]) == 2
    assert "so it was not kept; allow the loss with --max-loss, or leave fp16 out" in capsys.readouterr().err
    assert not (tmp_path / "model.fp16.onnx").exists()


def test_colleagues_may_read_the_files(exported):
    """The umask decides, as for any file."""
    (exported / "beside").write_text("a file as any")
    expected = (exported / "beside").stat().st_mode
    written = [path for path in exported.iterdir() if path.is_file() and path.name != "case.safetensors"]  # a test's
    assert {path.name for path in written if path.stat().st_mode != expected} == set()


def test_a_hub_takes_it(exported, monkeypatch, tmp_path):
    """All files in one commit; what the hub gives back is an export, too, whose weights are those of its lineage."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub._commit_api, "is_xet_available", lambda: False)
    with hub_server() as hub:
        assert main(["push", str(exported), "--to", "somebody/kd", "--hub", hub.address]) == 0
        files = hub.repositories["somebody/kd"].files
    assert set(files) == set(NEEDED)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert main(["lineage", str(tmp_path)]) == 0
    assert str(exported.parent) not in files["README.md"].decode() + files["lineage.json"].decode()


def test_an_export_tells_of_its_own_files(exported):
    """By their digests, but for the card, which is written later, and the file that tells it."""
    told = json.loads((exported / "lineage.json").read_text())
    assert told["in_timm"] is True
    assert set(told["files"]) == set(NEEDED) - {"README.md", "lineage.json"}
    assert told["files"] == {name: hashlib.sha256((exported / name).read_bytes()).hexdigest() for name in told["files"]}


@pytest.mark.parametrize(
    ("model", "data", "name"),
    [
        ("test_resnet", "images", "test_resnet-images"),
        ("own_nets:build", "my photos", "own_nets.build-my-photos"),
        ("local-dir:/x/it's", "images", "it-s-images"),
    ],
)
def test_the_name_of_a_registered_model(model, data, name):
    config = SimpleNamespace(student=SimpleNamespace(model=model), data=SimpleNamespace(name=data))
    assert default_name(config) == name


def test_what_predicts_otherwise_is_not_registered(exported, finished, store, monkeypatch):
    """It is compared before it is a version of anything, and nothing of it stays in the store."""
    other = SimpleNamespace(predict=lambda images: {"logits": np.zeros((len(images), 3))})
    monkeypatch.setattr(mlflow.pyfunc, "load_model", lambda uri: other)
    client, run_id = mlflow.MlflowClient(store), (finished / "out" / "kd-2" / "mlflow_run_id").read_text()
    experiment = client.get_run(run_id).info.experiment_id
    before = {model.model_id for model in client.search_logged_models([experiment])}
    with pytest.raises(Refused, match="gives other predictions than that file, so no version of never was registered"):
        log_version(store, run_id, exported, torch.zeros(2, 3, 32, 32), "never")
    assert client.search_model_versions("name='never'") == []
    assert {model.model_id for model in client.search_logged_models([experiment])} == before
