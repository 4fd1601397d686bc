"""Narrow ResNets at photo size run contiguous on a CPU, where torch 2.15 would crash."""

import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F

from cluster.assembly import assemble
from cluster.memory_format import (
    CRASHING,
    CRASHING_WITH_AVX512,
    crashing_convolution,
    crashing_shapes,
    runs_channels_last,
    to_device,
)
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.training.launch import launch
from cluster.training.loop import new_state
from kdcore.configs import ModelConfig
from kdcore.models import build_model

CPU = torch.device("cpu")
BACKWARD = """
import torch
from cluster.memory_format import crashing_shapes
channels = crashing_shapes()[0] // 2
conv = torch.nn.Conv2d(channels, 8, 1, stride=2, bias=False).to(memory_format=torch.channels_last)
images = torch.randn(4, channels, 64, 64).contiguous(memory_format=torch.channels_last).requires_grad_()
for _ in range(5):
    conv(images).sum().backward()
"""


def test_torch_still_crashes():
    """Fails when torch has mended it: then the rule of `cluster.memory_format` can go."""
    done = subprocess.run([sys.executable, "-c", BACKWARD], capture_output=True, check=False)
    assert done.returncode < 0, "torch has mended the backward of narrow 1x1 convolutions; drop the rule"


def test_a_cpu_with_avx512_and_one_without(monkeypatch):
    if platform.machine() == "x86_64":
        assert "avx512_f" in torch.cpu.get_capabilities(), "torch names it in another way; so must crashing_shapes"
    for has_it, shapes in ((True, CRASHING_WITH_AVX512), (False, CRASHING)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has_it=has_it: {"avx512_f": has_it})
        assert crashing_shapes() == shapes


def test_the_rule(recipe, monkeypatch):
    narrow = timm.create_model("cifar_resnet8", widths=[4, 4, 8, 16])
    assert crashing_convolution(narrow, 8) == "layer2.0.downsample.0"
    assert crashing_convolution(narrow, 4) is None
    assert crashing_convolution(timm.create_model("resnet18"), 16) is None
    large, small = parse(recipe(views__size=64)), parse(recipe(views__size=32))
    for shapes, small_runs in ((CRASHING_WITH_AVX512, True), (CRASHING, False)):
        monkeypatch.setattr("cluster.memory_format.crashing_shapes", lambda shapes=shapes: shapes)
        assert not runs_channels_last(large, narrow, CPU)
        assert runs_channels_last(small, narrow, CPU) == small_runs
        assert runs_channels_last(large, narrow, torch.device("cuda"))


@pytest.mark.parametrize(
    "changes",
    [
        {"views__size": 46},  # the least side seen to crash
        {"views__size": 16, "views__sizes": [[1, [16, 64]]]},
        {
            "views__size": 16,
            "teacher": {"model": "cifar_resnet8", "random": True, "image_size": 64},
            "method": [{"term": "kd", "weight": 1.0, "temperature": 4.0}],
        },
    ],
)
def test_the_largest_image_of_a_run_counts(recipe, monkeypatch, changes):
    monkeypatch.setattr("cluster.memory_format.crashing_shapes", lambda: CRASHING_WITH_AVX512)
    narrow = timm.create_model("cifar_resnet8", widths=[4, 4, 8, 16])
    assert not runs_channels_last(parse(recipe(**changes)), narrow, CPU)


@pytest.mark.parametrize("changes", [{"views__size": 64}, {"train__channels_last": False}])
def test_batches_follow(recipe, changes):
    parts = assemble(parse(recipe(scaling__num_workers=0, **changes)), Rank(0, 1, CPU))
    batch = next(parts.train_batches(0))
    assert batch.images.is_contiguous()
    assert parts.student.conv1.weight.is_contiguous()


def test_a_narrow_student_of_photos_trains(recipe):
    """It killed its worker in seconds: a segmentation fault, or "double free"."""
    result = launch(parse(recipe(views__size=128, train__max_steps=2, scaling__num_workers=0)))
    assert result.steps == 2


def test_tensors_of_five_dimensions_stay():
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.Conv2d(4, 8, 3))
    to_device(network, CPU, channels_last=True)
    assert network[1].weight.is_contiguous(memory_format=torch.channels_last)


def batch_norm_gradient(columns: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    weight, bias = torch.ones(columns.shape[1]), torch.zeros(columns.shape[1])
    columns = columns.detach().requires_grad_()
    return torch.autograd.grad(F.batch_norm(columns, None, None, weight, bias, training=True), columns, gradient)[0]


def test_torch_still_gives_wrong_gradients():
    """Fails when torch has mended it: then `kdcore.reused.TokenBatchNorm` can be a batch norm again."""
    generator = torch.Generator().manual_seed(0)
    columns, gradient = torch.randn(2, 4, 8, 5, 1, generator=generator)
    other_strides = gradient.transpose(1, 2).contiguous().transpose(1, 2)
    right = batch_norm_gradient(columns, gradient)
    assert not torch.allclose(batch_norm_gradient(columns, other_strides), right, atol=0.1)
    three = batch_norm_gradient(columns.squeeze(-1), other_strides.squeeze(-1)).unsqueeze(-1)
    torch.testing.assert_close(three, right)


@pytest.mark.parametrize("channels_last", [True, False])
def test_gradients_are_the_slopes_of_the_loss(recipe, tmp_path, channels_last):
    """SimKD between ViTs: the projector's batch norms gave wrong gradients, silently, where networks lay contiguous."""
    vit = {"model": "test_vit", "args": {"img_size": 32, "patch_size": 8}}
    torch.manual_seed(3)
    weights = tmp_path / "teacher.safetensors"
    safetensors.torch.save_file(build_model(ModelConfig(**vit), ("a", "b", "c")).state_dict(), weights)
    config = parse(
        recipe(
            views__size=32,
            student=vit | {"classifier": "reused"},
            teacher=vit | {"checkpoint": str(weights)},
            method=[{"term": "simkd", "weight": 1.0}],
            data__loader="reference",
            scaling__num_workers=0,
            train__channels_last=channels_last,
        )
    )
    run = assemble(config, Rank(0, 1, torch.device("cpu")))
    distiller = new_state(run).distiller.train().double()
    assert distiller.teacher is not None
    distiller.teacher.model.double()
    batch = next(run.train_batches(0))
    batch = replace(batch, images=batch.images.double())
    distiller(batch).loss.backward()
    for name, parameter in distiller.named_parameters():
        if parameter.grad is None or not parameter.grad.norm() > 1e-6:
            continue
        direction = parameter.grad / parameter.grad.norm()
        values = []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                parameter.add_(direction, alpha=step)
                values.append(float(distiller(batch).loss))
            parameter.add_(direction, alpha=1e-5)
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(parameter.grad.norm()), rel=1e-3), name
