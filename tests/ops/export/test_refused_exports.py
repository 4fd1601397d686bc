"""`export` refuses what it cannot stand for, and leaves the folder as it was or marked as incomplete."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

import ops.export.write
from kdcore.errors import Refused
from ops.__main__ import main
from ops.export.files import NEEDED, SIGNATURE


def test_a_file_of_weights_cannot_be_exported(finished, tmp_path, capsys):
    """It was, and ended with advice that deletes it: the files next to a run's weights belong to the export too."""
    weights = finished / "out" / "kd-0" / "student.safetensors"
    assert main(["export", str(weights), "-o", str(tmp_path)]) == 2
    assert (
        "is a file of weights, which does not say how good they are; give the run's folder" in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_a_recipe_cannot_be_exported(finished, tmp_path, capsys):
    assert main(["export", str(finished / "out" / "kd-0" / "recipe.yaml"), "-o", str(tmp_path)]) == 2
    assert "is a recipe; give the folder of a finished run" in capsys.readouterr().err


def test_cut_off_over_an_earlier_export(finished, tmp_path, monkeypatch, capsys):
    """All files of an earlier export are taken away before anything is written; what somebody added stays."""
    added = {"LICENSE", "model.int4.onnx", "notes.txt"}
    for name in ("README.md", "model.onnx", "model.int8.onnx", "model.fp16.onnx", "lineage.json", SIGNATURE, *added):
        (tmp_path / name).write_text("of another export")

    def cut_off(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(ops.export.write, "write_programs", cut_off)
    assert main(["export", str(finished / "out" / "kd-0"), "-o", str(tmp_path)]) == 130
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert left == {*added, "model.safetensors", "config.json", "lineage.json"}
    assert (tmp_path / "model.safetensors").read_bytes()[:5] != b"of an"
    monkeypatch.undo()
    capsys.readouterr()
    assert main(["export", str(finished / "out" / "kd-0"), "-o", str(tmp_path)]) == 0
    (written,) = re.findall(r"written: ((?:\S+, )*\S+)", " ".join(capsys.readouterr().out.split()))
    assert {Path(name).name for name in written.split(", ")} == set(NEEDED), "and nothing that somebody added"


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_files_of_somebody_elses_are_not_an_earlier_export(name, finished, tmp_path, capsys):
    (tmp_path / name).write_text("of a project")
    assert main(["export", str(finished / "out" / "kd-0"), "-o", str(tmp_path)]) == 2
    assert f"{name} does not belong to an export; give an empty or new folder" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "of a project"


def test_a_network_that_answers_nan_is_refused_before_anything_is_written(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished / "out" / "kd-0", run)
    tensors = safetensors.torch.load_file(run / "student.safetensors")
    tensors["fc.weight"][0, 0] = torch.nan
    safetensors.torch.save_file(tensors, run / "student.safetensors")
    assert main(["export", str(run), "-o", str(tmp_path / "exported")]) == 2
    assert "student.safetensors: the student's logits for 120 of 120 validation images are not finite" in said(capsys)
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 3.0])
def test_a_file_that_answers_otherwise_is_refused(monkeypatch, tmp_path, wrong):
    """NaN is less than no tolerance, and more than none."""
    logits = torch.tensor([[1.0, 2.0]])
    parts = SimpleNamespace(config=SimpleNamespace(data=SimpleNamespace(multi_label=False)))
    job = SimpleNamespace(parts=parts, images=torch.zeros(1, 3, 2, 2), logits=logits, folder=tmp_path)
    answer = logits.clone()
    answer[0, 0] = wrong
    monkeypatch.setattr(ops.export.write, "exported_networks", lambda job: {"model.pt2": lambda images: answer})
    with pytest.raises(Refused, match=r"model\.pt2 gives other outputs than the student"):
        ops.export.write.compare_files(job)


def said(capsys) -> str:
    """All that was printed as an error, in one line."""
    return " ".join(capsys.readouterr().err.split())
