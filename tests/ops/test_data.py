"""`data show`, `pack` and `verify` as they are typed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ops.__main__ import main
from tests.conftest import write_image_folder


def test_show_pack_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, index = write_image_folder(tmp_path / "images"), ["--index", str(tmp_path / "index")]
    pack = str(tmp_path / "pack")
    assert main(["data", "show", str(images), *index]) == 0
    shown = capsys.readouterr().out
    assert "image folder" in shown
    assert "train: 16 images of the smallest class (class0), 16 of the largest (class0)" in shown
    assert main(["data", "pack", str(images), "-o", pack, *index]) == 0
    assert f"data.root={pack}" in capsys.readouterr().out
    assert main(["data", "verify", pack]) == 0
    assert "every byte is what was packed" in capsys.readouterr().out
    assert main(["data", "show", pack, "--split", "val", "--relist", *index]) == 0
    again = capsys.readouterr().out
    fingerprint = next(line for line in shown.splitlines() if "val" in line).split("│")[-2].strip()
    assert fingerprint in again


def test_show_of_classes_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_image_folder(tmp_path / "images")
    for file in sorted((images / "train" / "class1").iterdir())[2:]:
        file.unlink()
    shutil.rmtree(images / "val" / "class2")
    assert main(["data", "show", str(images), "--index", str(tmp_path / "index")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "train: 2 images of the smallest class (class1), 16 of the largest (class0)" in shown
    expected = f"the splits in {images} differ in 1 class; the first, 'class2', is in the training split only"
    assert f"no run can use these together: {expected}" in shown


def test_show_lists_what_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every split, and the first 20; the others are shown."""
    images = write_image_folder(tmp_path / "images")
    shutil.copytree(images / "val", images / "test")
    for number in range(22):
        (images / "train" / "class1" / f"bad{number:02}.png").write_bytes(b"x")
    (images / "val" / "class0" / "worse.png").write_bytes(b"x")
    splits = [word for split in ("train", "val", "test") for word in ("--split", split)]
    assert main(["data", "show", str(images), "--index", str(tmp_path / "index"), *splits]) == 2
    said = capsys.readouterr()
    named = [line.partition(" cannot")[0].rpartition("/")[2] for line in said.out.splitlines() if "broken: " in line]
    assert named == [*(f"bad{number:02}.png" for number in range(20)), "worse.png"]
    assert "and 2 more broken images of train" in said.out
    assert "test: 5 images of the smallest class" in said.out
    assert "bad00.png cannot be read as an image" in said.err
    assert said.err.endswith("; likewise for 21 more files\n")


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, complaint in (
        (["show", str(tmp_path / "nowhere")], "nowhere: no such folder"),
        (["pack", str(tmp_path), "-o", str(tmp_path / "x"), "--shard-mib", "0"], "--shard-mib 0: give at least 1"),
        (["verify", str(tmp_path)], "/train is not a pack: it has no index.arrow; `python -m ops data show"),
    ):
        assert main(["data", *words]) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("teacher", "complaint"),
    [
        (None, "the recipe has no teacher"),
        ({"checkpoint": "gone.safetensors"}, "its teacher 'cifar_resnet8' has no weights here"),
        ({"source": "cache", "random": True}, "its teacher 'cifar_resnet8' has no weights here"),
    ],
)
def test_a_teacher_that_cannot_answer_is_refused_before_packing(tmp_path, capsys, teacher, complaint):
    """Hours of packing went before."""
    import yaml

    from tests.conftest import small_recipe

    images = write_image_folder(tmp_path / "images")
    recipe = small_recipe(images, tmp_path / "out", scaling__num_workers=0, views__num_views=1)
    if teacher is not None:
        recipe["teacher"] = {"model": "cifar_resnet8"} | teacher
        recipe["cache"] = {"dir": str(tmp_path / "cache")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ["data", "pack", str(images), "-o", str(tmp_path / "pack"), "--index", str(tmp_path / "index")]
    assert main([*command, "--teacher", str(tmp_path / "recipe.yaml")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "pack").exists()


@pytest.mark.slow
def test_what_a_teacher_loses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured on the images themselves: nothing by moving them, something by storing them at the lowest quality."""
    import safetensors.torch
    import torch
    import yaml

    from kdcore.configs import ModelConfig
    from kdcore.models import build_model
    from tests.conftest import small_recipe  # and a teacher that has seen nothing: it answers, which is enough here

    images = write_image_folder(tmp_path / "images")
    torch.manual_seed(7)
    teacher = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    safetensors.torch.save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    recipe = small_recipe(images, tmp_path / "out", scaling__num_workers=0)
    recipe["teacher"] = {"model": "cifar_resnet8", "checkpoint": str(tmp_path / "teacher.safetensors")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ["data", "pack", str(images), "-o", str(tmp_path / "pack"), "--index", str(tmp_path / "index")]
    assert main([*command, "--quality", "1", "--teacher", str(tmp_path / "recipe.yaml")]) == 0
    assert "the teacher's top-1 on 15 validation images: " in capsys.readouterr().out
