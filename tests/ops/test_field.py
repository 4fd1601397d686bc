"""Public reports of the field that failed here before (`ops/benchmarks/FIELD.md`); each test names its report.

Those on broken checkpoints are in tests/cluster/training/test_recovery.py, those on families in test_families.py.
"""

import inspect
import shutil
import signal
import socket
import subprocess

import pytest
import ray
import safetensors.torch
import timm
import torch
import yaml
from torch._inductor import cpp_builder

from cluster.nodes.start import TOO_SLOW, join_cluster, start_ray
from cluster.recipe.reading import configure, load_recipe, parse, to_yaml
from cluster.training.launch import check_run, launch
from kdcore.checkpoints import load_tensors, to_safetensors
from kdcore.configs import ModelConfig
from kdcore.errors import Refused, RunFailed
from kdcore.models import build_model
from kdcore.optim import build_optimizer
from ops.train import summary
from tests.conftest import small_recipe, write_image_folder

KD = {"teacher": {"model": "cifar_resnet8", "random": True}, "method": [{"term": "kd", "weight": 1, "temperature": 4}]}


def test_numbers_without_a_point(recipe, tmp_path):
    """trl#1450, LlamaFactory#4014: YAML 1.1 reads 1e-8 as a text, and the optimiser compares it with a number."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe()) + "about: {title: x}\n")
    config = load_recipe(path, ["optimizer={opt: adamw, lr: 1e-3, args: {eps: 1e-6, betas: [9e-1, 0.99]}}"])
    assert config.optimizer.args == {"eps": 1e-6, "betas": [0.9, 0.99]}
    build_optimizer(config.optimizer, torch.nn.Linear(1, 1))


def test_a_text_that_looks_like_a_number_stays_one(recipe):
    config = configure(recipe(), ["name='1e5'"], "recipe")
    assert config.name == "1e5"
    assert parse(yaml.safe_load(to_yaml(config))) == config


def flatten(folder):
    """Lay a split's images side by side, as ILSVRC's validation images come."""
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.rename(folder / f"ILSVRC2012_val_{number:08}.png")
    for path in folder.iterdir():
        if path.is_dir():
            path.rmdir()


def test_validation_images_that_lie_flat(tmp_path, caplog):
    """pytorch-image-models#1081, pytorch/examples#550: the run ended well and had measured nothing."""
    root = write_image_folder(tmp_path / "images")
    flatten(root / "val")
    changes = {"scaling__num_workers": 0, "train__max_steps": 1}
    with pytest.raises(Refused, match="nothing to judge the student by; sort them into the class folders"):
        check_run(parse(small_recipe(root, tmp_path / "alone", **changes)))
    result = launch(parse(small_recipe(root, tmp_path / "out", **changes, **KD)))
    assert "val/top1" not in result.metrics
    assert "agreement with the teacher" in summary(result)


def test_one_class(tmp_path):
    """pyskl#93, yolov5#3064: right on every image from the first epoch on, at a loss of 0."""
    root = write_image_folder(tmp_path / "images", classes=1)
    with pytest.raises(Refused, match="has one class, 'class0'"):
        check_run(parse(small_recipe(root, tmp_path / "out")))


def test_a_term_that_is_wrong_is_the_only_complaint(recipe):
    """verl#7769 sets the temperature: 0 brought a second complaint, that the method has no terms."""
    with pytest.raises(Refused) as refused:
        parse(recipe(method=[{"term": "kd", "weight": 1, "temperature": 0}]))
    assert "temperature" in str(refused.value)
    assert "at least 1 item" not in str(refused.value)


def test_a_temporary_folder_with_a_long_path(tmp_path, monkeypatch):
    """verl#1120, ray#7945: a job's own folder, in which no socket's path fits; a traceback before."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(Refused, match=r"too long a path .*RAY_TMPDIR=/tmp"):
        start_ray(num_cpus=1, include_dashboard=False)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_no_cluster_answers(monkeypatch, scheme):
    """vllm#15385, ray#45570: the address of yesterday's cluster; minutes of retries, then a traceback."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{port}")
    with pytest.raises(Refused, match=r"no Ray cluster answers there .*unset it"):
        join_cluster()


def test_the_address_of_a_dashboard(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(Refused, match="submit --address"):
        join_cluster()


def test_rays_message_is_known():
    """By its words alone is a slow start told from a broken one."""
    assert TOO_SLOW in inspect.getsource(ray._private.node)


@pytest.mark.parametrize("slow_starts", [1, 2])
def test_ray_that_is_slow_to_start(monkeypatch, slow_starts):
    """Ray raises a bare Exception after its 30 seconds, and leaves what it has started: ended, and begun anew."""
    left, bystander = [], subprocess.Popen(["sleep", "60"])

    def init(*args, **options):
        if len(left) < slow_starts:
            left.append(subprocess.Popen(["sleep", "60"]))
            raise Exception("The current node timed out during startup.\nThe GCS has become overloaded.")

    monkeypatch.setattr(ray, "init", init)
    if slow_starts == 1:
        start_ray()
    else:
        with pytest.raises(RunFailed, match=r"Ray did not start \(The current node timed out .* just slow") as failed:
            start_ray()
        assert "\n" not in str(failed.value)
        left.pop().kill()  # the second attempt's, which Ray ends with this process
    assert [one.wait(5) for one in left] == [-signal.SIGKILL]
    assert bystander.poll() is None
    bystander.kill()


def test_tensors_that_share_memory(tmp_path):
    """LlamaFactory#10137, Megatron-Bridge#919: safetensors writes none; the run ended after its training."""
    torch.manual_seed(0)
    network = timm.create_model("coat_tiny", num_classes=3)
    path, theirs = tmp_path / "weights.safetensors", tmp_path / "theirs.safetensors"
    path.write_bytes(to_safetensors(network.state_dict()))
    safetensors.torch.save_model(network, str(theirs))
    for file in (path, theirs):
        loaded = load_tensors(file)
        assert loaded.keys() == network.state_dict().keys()
        built = build_model(ModelConfig(model="coat_tiny", checkpoint=str(file)), ("a", "b", "c"))
        assert all(torch.equal(a, b) for a, b in zip(built.parameters(), network.parameters(), strict=True))


def test_a_simkd_student_as_a_teacher(recipe, tmp_path):
    """SimKD#14: the file of the student that was distilled, given as a teacher; the remedy named another network."""
    changes = KD | {"method": [{"term": "simkd", "weight": 1}], "student__classifier": "reused"}
    result = launch(parse(recipe(scaling__num_workers=0, train__max_steps=1, **changes)))
    weights = shutil.copy(f"{result.run_dir}/student.safetensors", tmp_path)
    with pytest.raises(Refused, match=r"of a SimKD student.* student.classifier=own"):
        build_model(ModelConfig(model="cifar_resnet8", checkpoint=str(weights)), ("a", "b", "c"))


def test_a_machine_without_a_compiler(recipe, monkeypatch, tmp_path):
    """GLiNER#148, pytorch#92745: torch.compile's traceback, at the first step."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    cpp_builder.cpp_compiler_search.cache_clear()
    with pytest.raises(Refused, match=r"no C\+\+ compiler .*train.compile=false"):
        check_run(parse(recipe(train__compile=True)))
