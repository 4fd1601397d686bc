"""`predict` and `benchmark`: what a student sees in any photograph, and how long it takes; the exported script too."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image

from cluster.assembly import assemble
from cluster.evaluation import load_student
from cluster.rank import Rank
from cluster.recipe.reading import load_recipe
from ops.__main__ import main
from ops.export import photo_script
from ops.export.latency import ROUNDS, Subject, let_take_turns
from ops.export.write import sample_images
from pipelines.data import coding


@pytest.fixture(scope="module")
def photos(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with the validation images under other names, text, and an image that is cut off."""
    folder = tmp_path_factory.mktemp("photos")
    for number, path in enumerate(sorted((finished / "images" / "val").rglob("*.png"))):
        target = folder / f"album{number % 3}" / f"photo {number:03}.png"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    (folder / "notes.txt").write_text("no photograph")
    (folder / "album0" / "broken.png").write_bytes(path.read_bytes()[:60])
    return folder


@torch.no_grad()
def expected_of(run: Path) -> torch.Tensor:
    """The student's probabilities for the validation images, in the index's order: [120,3]."""
    parts = assemble(load_recipe(run / "recipe.yaml"), Rank(0, 1, torch.device("cpu")))
    return load_student(parts, run / "student.safetensors")(sample_images(parts, 1000)).softmax(dim=1)


def test_predict_gives_what_validation_sees(finished, photos, tmp_path, capsys):
    run, file, picture = finished / "out" / "kd-0", tmp_path / "deep" / "found.json", tmp_path / "grid.png"
    command = ["predict", str(run), str(photos), "--top", "2", "--output", str(file), "--picture", str(picture)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "album0/broken.png is a PNG that is cut short" in printed
    assert "notes.txt" not in printed
    assert "and 90 more" in printed
    found = {Path(one["photo"]).name: one["classes"] for one in json.loads(file.read_text())}
    expected = expected_of(run)
    assert len(found) == len(expected) == 120
    for number, probabilities in enumerate(expected):
        classes = found[f"photo {number:03}.png"]
        assert len(classes) == 2
        assert classes[0]["class"] == f"class{int(probabilities.argmax())}"
        assert classes[0]["probability"] == pytest.approx(float(probabilities.max()), abs=1e-5)
    assert matplotlib.image.imread(picture).std() > 0.05


@pytest.mark.parametrize("name", ["photo 001.png", "download"])
def test_predict_one_photograph(finished, photos, tmp_path, capsys, name):
    photo = shutil.copyfile(photos / "album1" / "photo 001.png", tmp_path / name)
    assert main(["predict", str(finished / "out" / "kd-0"), str(photo)]) == 0
    printed = capsys.readouterr().out
    assert name in printed
    assert printed.count("%") == 3


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["{run}", "/nowhere"], "/nowhere: no such file or folder; give a photograph, or a folder of them"),
        (["{run}", "{empty}"], "holds no photograph that can be read"),
        (["{run}", "{empty}", "--top", "0"], "--top 0: at least one class a photograph"),
        (["{run}", "{empty}", "--picture", "grid.txt"], "--picture grid.txt: give a name that ends in .png or .jpg"),
        (["kd", "{empty}"], "kd is a recipe; give the folder of a finished run"),
    ],
)
def test_predict_refuses(words, refusal, finished, tmp_path, capsys):
    named = {"run": str(finished / "out" / "kd-0"), "empty": str(tmp_path)}
    assert main(["predict", *(word.format(**named) for word in words)]) == 2
    assert refusal in capsys.readouterr().err


def test_the_exported_script_needs_nothing_of_this_project(finished, exported, photos):
    """Its likeliest class and probability are those of `predict`, from the export's folder alone."""
    run = finished / "out" / "kd-0"
    names = sorted(photos.rglob("photo*.png"), key=lambda path: path.name)
    words = ["predict.py", *map(str, names)]
    code = f"import sys, runpy; sys.argv = {words!r}; runpy.run_path('predict.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=exported, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 120
    for line, probabilities in zip(lines, expected_of(run), strict=True):
        name, share = line.split("\t")[1].split(" ")
        assert name == f"class{int(probabilities.argmax())}"
        assert float(share.rstrip("%")) / 100 == pytest.approx(float(probabilities.max()), abs=2e-3)


def test_the_exported_script_refuses_what_predict_refuses(tmp_path):
    """An image of 16 bits, whose brightness Pillow would cut off; the modes are those of the index."""
    assert set(photo_script.MODES) == {mode for modes in coding._ALIKE.values() for mode in modes}
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"^a PNG image of mode I;16; convert it to 8-bit RGB$"):
        photo_script.prepare(path, {})


def test_the_exported_script_leaves_out_what_it_cannot_read(exported, tmp_path):
    """The others have their line; the exit status says that one is missing."""
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(tmp_path / "deep.png")
    for name in ("first.jpg", "cut.jpg", "last.jpg"):
        Image.new("RGB", (200, 100), "red").save(tmp_path / name)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:700])
    (tmp_path / "text.jpg").write_text("no image")
    names = [str(tmp_path / name) for name in ("first.jpg", "cut.jpg", "deep.png", "text.jpg", "none.jpg", "last.jpg")]
    done = subprocess.run([sys.executable, "predict.py", *names], cwd=exported, capture_output=True, text=True)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [names[0], names[-1]]
    said = done.stderr.splitlines()
    assert [line.split(": ")[1] for line in said] == names[1:-1]
    assert all(line.startswith("left out: ") for line in said)
    assert done.returncode == 1


def test_a_photograph_of_another_shape_is_cut_alike(finished, exported, tmp_path, capsys):
    """Tall and wide photographs, larger than the network's input, through the script and through `predict`."""
    run, folder = finished / "out" / "kd-0", tmp_path / "photos"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, size in (("tall", (333, 90)), ("wide", (101, 257)), ("square", (64, 64))):
        noise = torch.randint(0, 255, (size[0] // 8, size[1] // 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    assert main(["predict", str(run), str(folder), "--output", str(tmp_path / "found.json")]) == 0
    done = subprocess.run(
        [sys.executable, "predict.py", *(str(path) for path in sorted(folder.iterdir()))],
        cwd=exported,
        capture_output=True,
        text=True,
        check=True,
    )
    for line, one in zip(done.stdout.splitlines(), json.loads((tmp_path / "found.json").read_text()), strict=True):
        path, *classes = line.split("\t")
        assert path == one["photo"]
        shares = {name: float(share.rstrip("%")) / 100 for name, share in (text.split(" ") for text in classes)}
        for expected in one["classes"]:
            assert shares[expected["class"]] == pytest.approx(expected["probability"], abs=5e-3)


def test_benchmark_measures_student_and_teacher(finished, capsys):
    run = finished / "out" / "kd-1"
    command = ["benchmark", str(run), "--batches", "1", "4", "--forms", "torch", "onnx", "--seconds", "0.05"]
    assert main(command) == 0
    content = json.loads((run / "benchmark.json").read_text())
    rows = {(row["network"], row["form"], row["batch"]): row for row in content["rows"]}
    assert rows.keys() == {(n, f, b) for n in ("student", "teacher") for f in ("torch", "onnx") for b in (1, 4)}
    for row in rows.values():
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["p50_ms"])
    ratio = rows["teacher", "torch", 1]["p50_ms"] / rows["student", "torch", 1]["p50_ms"]
    assert f"{ratio:.2f}x" in capsys.readouterr().out


def test_the_model_card_has_the_latencies(finished, tmp_path):
    run = finished / "out" / "kd-2"
    assert main(["benchmark", str(run), "--batches", "2", "--forms", "torch", "--seconds", "0.02"]) == 0
    row = json.loads((run / "benchmark.json").read_text())["rows"][0]
    assert main(["export", str(run), "-o", str(tmp_path)]) == 0
    card = (tmp_path / "README.md").read_text()
    assert f"| torch | cpu | 2 | {row['p50_ms']:.2f} ms | {row['p95_ms']:.2f} ms |" in card
    assert "float32, 32 x 32 pixels:" in card


def test_all_subjects_take_turns():
    calls: list[str] = []
    subjects = [
        Subject(name, "torch", "cpu", 1, (8, 8), 0, lambda name=name: calls.append(name))
        for name in ("student", "teacher")
    ]
    let_take_turns(subjects, 0.0)
    assert calls == ["student", "teacher"]  # at least once, however short the time
    let_take_turns(subjects, 0.01)
    changes = sum(one != other for one, other in itertools.pairwise(calls))
    assert changes == 2 * ROUNDS + 1
