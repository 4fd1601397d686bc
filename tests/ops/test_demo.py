"""`make demo`: the three runs, the table and the line that opens MLflow."""

import pytest

from ops.__main__ import main


def shown_rows(text: str) -> dict[str, list[str]]:
    """{first column: other columns} of the table that was printed."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.ray
@pytest.mark.slow
def test_digits(tmp_path, capsys, ray_cluster):
    """The embedded digits through Ray Train with 2 workers and DALI, one epoch each."""
    assert main(["demo", "--output", str(tmp_path), "train.epochs=1"]) == 0
    shown = capsys.readouterr().out
    rows = shown_rows(shown)
    assert list(rows) == ["teacher", "student alone", "student distilled"]
    for top1, agreement, parameters, milliseconds, images_per_second, wall_seconds in rows.values():
        assert float(milliseconds) > 0
        assert parameters == ("78,042" if agreement == "-" else "5,214")
        assert 5 < float(top1.rstrip("%")) <= 100
        assert agreement == "-" or 0 <= float(agreement.rstrip("%")) <= 100
        assert float(images_per_second.replace(",", "")) > 0
        assert float(wall_seconds) > 0
    assert "the student has 1/15.0 of the teacher's parameters and answers" in shown
    assert f"MLflow: .venv/bin/python -m ops ui --store {tmp_path}" in shown
    assert len(list((tmp_path / "digits").rglob("*.png"))) == 5000
    assert len(list((tmp_path / "digits" / "val").rglob("*.png"))) == 1000


def test_own_folder(tmp_path, capsys, image_folder):
    """One's own image folder, in this process, over two seeds."""
    small = ["views.size=32", "train.epochs=1", "train.batch_size=8", "train.micro_batch=4", "scaling.num_workers=0"]
    small += ["schedule.warmup_epochs=0", "tracking.system_metrics=false"]
    assert main(["demo", "--data", str(image_folder), "--seeds", "2", "--output", str(tmp_path), *small]) == 0
    shown = capsys.readouterr().out
    assert "±" in shown_rows(shown)["student distilled"][0]
    assert "the worst distilled seed is" in shown


def test_teacher_without_data(capsys):
    assert main(["demo", "--teacher", "resnet18"]) == 2
    assert "give --data FOLDER too" in capsys.readouterr().err
