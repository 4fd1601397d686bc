"""The script for a GPU, as far as it runs without one: its parts on a CPU, with small networks, for no time."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kdcore.errors import Refused
from ops.benchmarks import gpu, gpu_bench, gpu_regions, gpu_teacher, gpu_train

SMALL = {"model": "cifar_resnet8", "args": {"widths": [4, 4, 8, 16]}}
TEACHER = {**SMALL, "random": True}
PAIRS = {
    name: {"student": SMALL, "teacher": TEACHER, "views": {**pair["views"], "size": 32}, "batch": 8, "last": "layer3"}
    for name, pair in gpu_bench.PAIRS.items()
}


@pytest.fixture
def bench(tmp_path, monkeypatch) -> gpu.Bench:
    for module in (gpu, gpu_bench, gpu_teacher, gpu_train):
        monkeypatch.setattr(module, "PAIRS", PAIRS)
    monkeypatch.setattr(gpu_train, "EPOCHS", 1)
    monkeypatch.setattr(gpu_train, "TURNS", 1)
    monkeypatch.setattr(gpu_bench, "REPEATS", 2)
    pictures = gpu_bench.write_pictures(tmp_path / "pictures", 16, (32, 32))
    monkeypatch.setattr(gpu_bench, "write_pictures", lambda *arguments: pictures)
    return gpu_bench.Bench(torch.device("cpu"), 0.0, tmp_path, pictures)


def test_parts(bench, tmp_path):
    """Each writes its numbers beside the others', with the machine's facts; what takes a GPU's decoder is left out."""
    parts = [name for name in gpu.PARTS if name not in ("regions", "decode", "deterministic")]
    gpu.measure(parts, bench, tmp_path)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found) == parts
    assert [part for part in parts if "error" in found[part]] == [], found
    assert found["graphs"].keys() >= {"launched", "graph", "facts", "seconds"}
    timings = [
        found["graphs"]["launched"],
        found["evaluation"]["cache"],
        *found["optimizers"]["resnet18, sgd"].values(),
    ]
    assert all(0 < one["range"][0] <= one["median"] <= one["range"][1] for one in timings)
    assert {name for pair in PAIRS for name in found["streams"][pair]} == {"before", "beside"}
    for pair in PAIRS:
        of_teacher = found["weights"][pair]
        assert of_teacher["launches"]["kept"] < of_teacher["launches"]["cast"]
        assert of_teacher["same_logits"]
    (of_runs,) = (found["train"][pair] for pair in PAIRS if pair in found["train"])
    assert of_runs["same_losses"]
    assert of_runs["graph"]["median"] > 0


def test_a_part_that_fails_is_written_down(bench, tmp_path, monkeypatch):
    def fails(bench):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setitem(gpu.PARTS, "graphs", fails)
    monkeypatch.setitem(gpu.PARTS, "waits", lambda bench: {"waits": 0})
    gpu.measure(["graphs", "waits"], bench, tmp_path)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["graphs"]["error"] == "RuntimeError: out of memory"
    assert found["waits"]["waits"] == 0


def test_regions_are_compared_picture_by_picture(tmp_path, monkeypatch):
    """By both decoders, here the CPU's twice; then one whose pictures are turned over."""
    real, turned = gpu_regions.build_loader, False

    def on_the_cpu(*arguments, decode, **rest):
        loader = real(*arguments, decode="cpu", **{**rest, "device": torch.device("cpu")})
        load = loader.load
        if turned and decode == "gpu":
            loader.load = lambda requests: (replace(b, images=b.images.flip(2)) for b in load(requests))
        return loader

    monkeypatch.setattr(gpu_regions, "build_loader", on_the_cpu)
    pictures = gpu_bench.write_pictures(tmp_path / "pictures", 8, (60, 40))
    found = gpu_regions.compare(pictures, 20, size=32)
    assert (found["images"], found["regions"], found["regions_wrong"]) == (8, 24, 0)
    assert found["largest_pixel_of_255"] == 0
    turned = True
    assert gpu_regions.compare(pictures, 20, size=32)["regions_wrong"] == 24


def test_how_the_process_of_regions_ended(bench, monkeypatch):
    done = SimpleNamespace(returncode=0, stdout='{"regions": 7}\n', stderr=f"{gpu_regions.DECLINED} may\n" * 3)
    monkeypatch.setattr(gpu_regions.subprocess, "run", lambda *_, **__: done)
    assert gpu_regions.regions(bench) == {"regions": 7, "times_declined": 3}
    done.returncode, done.stderr = -11, ""
    assert gpu_regions.regions(bench) == {"error": "the process ended with -11: nothing was said"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(Refused, match="this benchmark needs a GPU, and this machine has none"):
        gpu.main()
