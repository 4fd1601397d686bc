"""`make demo`: the three runs, the table and the line that opens MLflow."""

import pytest
import timm
import torch
from rich.console import Console

from cluster.training.launch import RunResult
from kdcore.checkpoints import load_tensors
from ops.__main__ import main
from ops.console import table
from ops.demo.run import COLUMNS, row

SMALL = [
    *("views.size=32", "train.epochs=1", "train.batch_size=8", "train.micro_batch=4", "scaling.num_workers=0"),
    *("schedule.warmup_epochs=0", "tracking.system_metrics=false"),
]


@pytest.fixture(autouse=True)
def measured_briefly(monkeypatch):
    """Steps and latencies, for tenths of a second; how right the numbers are is shown elsewhere."""
    monkeypatch.setattr("ops.demo.run.MEASURED_SECONDS", 0.1)
    monkeypatch.setattr("ops.demo.run.LATENCY_SECONDS", 0.1)


def shown_rows(text: str) -> dict[str, list[str]]:
    """{first column: other columns} of the table that was printed; a cell's lines follow one another."""
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        first, *cells = [cell.strip() for cell in line.split("│")[1:-1]] if line.startswith("│") else [""]
        if first:
            rows[first] = cells
        elif cells:
            title, above = rows.popitem()
            rows[title] = [" ".join([one, other]).strip() for one, other in zip(above, cells, strict=True)]
    return rows


def test_a_table_of_several_seeds_is_as_narrow_as_of_one():
    def result(seed: int) -> RunResult:
        metrics = {"val/top1": 0.889 + 0.02 * seed, "val/agreement": 0.889 + 0.06 * seed}
        return RunResult("run", "", "", metrics, 1, 1.0, 1.0, 112.0 + 30 * seed)

    networks = {"parameters": 5214, "p50_ms": 0.28}, {"parameters": 78042, "p50_ms": 0.47}
    shown = {}
    for seeds in (1, 2):
        made = table("", COLUMNS, [row("student distilled", [result(seed) for seed in range(seeds)], *networks)])
        console = Console(width=200)
        with console.capture() as capture:
            console.print(made)
        shown[seeds] = capture.get()
        assert max(map(len, shown[seeds].splitlines())) <= 80
    of_two = ["89.90% ±1.00%", "91.90% ±3.00%", "5,214", "1/15.0", "0.28", "127 ±15"]
    assert shown_rows(shown[2]) == {"student distilled": of_two}
    assert shown_rows(shown[1])["student distilled"][0] == "88.90%"


@pytest.mark.ray
@pytest.mark.slow
def test_digits(tmp_path, capsys, ray_cluster):
    """The embedded digits through Ray Train with 2 workers and DALI, 20 steps each; a table of 80 columns."""
    assert main(["demo", "--output", str(tmp_path), "train.epochs=1", "train.max_steps=20"]) == 0
    shown = capsys.readouterr().out
    rows = shown_rows(shown)
    assert list(rows) == ["teacher", "student alone", "student distilled"]
    assert max(len(line) for line in shown.splitlines() if line.startswith(("│", "┏"))) <= 80
    for top1, agreement, parameters, ratio, milliseconds, wall_seconds in rows.values():
        assert float(milliseconds) > 0
        assert parameters == ("78,042" if agreement == "-" else "5,214")
        assert 5 < float(top1.rstrip("%")) <= 100
        assert agreement == "-" or 0 <= float(agreement.rstrip("%")) <= 100
        assert ratio == ("-" if agreement == "-" else "1/15.0")
        assert float(wall_seconds) > 0
    assert "the student has 1/15.0 of the teacher's parameters and answers" in shown
    assert f"MLflow: .venv/bin/python -m ops ui --store {tmp_path}" in shown
    assert len(list((tmp_path / "digits").rglob("*.png"))) == 5000
    assert len(list((tmp_path / "digits" / "val").rglob("*.png"))) == 1000


def test_own_folder(tmp_path, capsys, image_folder):
    """One's own images and a teacher's file of other classes, in this process, over two seeds.

    The teacher is fine-tuned from the file.
    """
    torch.manual_seed(0)
    weights = tmp_path / "other.pth"
    torch.save({"state_dict": timm.create_model("test_resnet", num_classes=1000).state_dict()}, weights)
    words = ["demo", "--data", str(image_folder), "--teacher", "test_resnet", "--teacher-weights", str(weights)]
    words += ["--student", "cifar_resnet8", "--seeds", "2", "--output", str(tmp_path / "out")]
    assert main([*words, *SMALL, "optimizer.lr=1.0e-9"]) == 0
    shown = capsys.readouterr().out
    assert f"teacher: test_resnet, fine-tuned from {weights}, on 48 images in 6 steps: about" in shown
    assert "a teacher that has seen ImageNet" not in shown
    assert "±" in shown_rows(shown)["student distilled"][0]
    assert "the worst distilled seed is" in shown
    made = load_tensors(tmp_path / "out" / "teacher" / "student.safetensors")
    given = load_tensors(weights)
    assert made["fc.weight"].shape[0] == 3
    assert torch.allclose(made["conv1.0.weight"], given["conv1.0.weight"], atol=1e-5)


def test_own_folder_by_defaults(tmp_path, capsys, image_folder, monkeypatch):
    """What is said before the first run, at which it is ended: of a teacher from scratch, and what would be better."""

    def end(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ops.demo.run.ray_session", end)
    assert main(["demo", "--data", str(image_folder), "--output", str(tmp_path), *SMALL]) == 130
    shown = capsys.readouterr().out
    assert "teacher: resnet34, trained from scratch, on 48 images in 6 steps: about" in shown
    assert "a teacher that has seen ImageNet learns a folder better" in shown


def test_teacher_without_data(capsys):
    assert main(["demo", "--teacher", "resnet18"]) == 2
    assert "give --data FOLDER too" in capsys.readouterr().err
