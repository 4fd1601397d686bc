"""PAPERS.md is what the recipes and the result files say, and nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ops import catalog
from ops.benchmarks import papers
from ops.reproduce.slices import summary


def run(seed: int, last: float, best: float, finished: bool = True) -> dict[str, Any]:
    facts = {
        "gpus": ["NVIDIA H200"],
        "machine": "16 cores x86_64, 128 GiB",
        "python": "3.12.3",
        "packages": {"torch": "2.11.0", "timm": "1.0.31", "numpy": "2.5.2"},
        "commit": "0123456789abcdef",
    }
    ends = {"last": {"epoch": 240.0, "top1": last}, "best": {"epoch": 200.0, "top1": best}}
    known = {"facts": facts, "deployed_parameters": 1_234_567} if finished else {}
    return {"name": f"wttm-seed{seed}", "finished": finished, **ends, **known}


def diverged(seed: int) -> dict[str, Any]:
    return {"name": f"wttm-seed{seed}", "finished": False, "last": None, "best": None, "failed_step": 417}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(papers, "RESULTS", tmp_path)
    return tmp_path


def test_the_page_is_fresh():
    assert papers.PAGE.read_text() == papers.generate(), "run make pages"


def test_without_results_nothing_is_claimed(results):
    page = papers.generate()
    assert "| wttm | 76.06 ± 0.27 | - | - | 0 |" in page
    assert "| alone | 72.50; 73.09 ± 0.30 | - | - | 0 |" in page
    assert "Run on:" not in page
    assert "a whole schedule of 12 epochs\n\nNot run." in page
    assert "**0 of " in page
    assert "| resnet34-resnet18-wttm | 72.19 | - | - | - | - |" in page


def test_runs_become_a_row(results):
    """Mean and sample standard deviation by hand; an unfinished run does not count, and is named."""
    runs = [run(0, 0.75, 0.76), run(1, 0.76, 0.77), run(2, 0.7, 0.7, finished=False)]
    (results / "cifar100.json").write_text(json.dumps({"rows": {"wttm": summary(runs)}}))
    page = papers.generate()
    assert "| wttm | 76.06 ± 0.27 | 76.50 ± 0.71 | 75.50 ± 0.71 | 2 |" in page
    assert "* 2 runs: NVIDIA H200, 16 cores x86_64, 128 GiB, Python 3.12.3, torch 2.11.0" in page
    assert "commit 0123456789ab" in page
    assert "Begun: wttm-seed2 (epoch 240)." in page
    assert "**1 of " in page, "76.50 is at most half a point below 76.06"
    assert "Not run to the end: teacher, alone, kd, dkd, ttm, simkd" in page


def test_runs_that_diverged_are_on_the_page(results):
    runs = [run(0, 0.75, 0.76), diverged(1)]
    (results / "cifar100.json").write_text(json.dumps({"rows": {"wttm": summary(runs), "kd": summary([diverged(0)])}}))
    page = papers.generate()
    assert "| wttm | 76.06 ± 0.27 | 76.00 | 75.00 | 1 (1 of 2 diverged) |" in page
    assert "| kd | 73.33; 74.42 ± 0.05 | - | - | 0 (1 of 1 diverged) |" in page
    assert "Diverged: wttm-seed1 (step 417), wttm-seed0 (step 417)." in page
    assert "Begun:" not in page


def test_a_changed_row_reproduces_no_published_one(results, monkeypatch):
    """Nor does it hide that the row as published does; how many seeds that rests on is said."""
    reached, missed = summary([run(0, 0.76, 0.77)]), summary([run(0, 0.5, 0.5)])
    monkeypatch.setitem(papers.cifar100.ROWS, "wttm-changed", (papers.cifar100.ROWS["wttm"][0], ["train.epochs=480"]))
    (results / "cifar100.json").write_text(json.dumps({"rows": {"wttm": reached, "wttm-changed": missed}}))
    assert "**1 of " in papers.generate()
    assert "published rows are reproduced** (wttm, n = 1): run here" in papers.generate()
    (results / "cifar100.json").write_text(json.dumps({"rows": {"wttm": missed, "wttm-changed": reached}}))
    assert "**0 of " in papers.generate()


def test_beyond_the_papers(results):
    """What was held out chooses, the test set judges, and both are shown; so is what has not been run."""
    (results / "cifar100_held_out.json").write_text(
        json.dumps({"rows": {row: summary([run(0, 0.78, 0.79)]) for row in ("wttm", "simkd-wttm")}})
    )
    (results / "cifar100.json").write_text(
        json.dumps({"rows": {"simkd-wttm": summary([run(0, 0.75, 0.76), run(1, 0.76, 0.77)])}})
    )
    page = papers.generate()
    assert "| simkd-wttm | 1,234,567 | 78.00 | 76.50 ± 0.71 | 75.50 ± 0.71 | 2 |" in page
    assert "| wttm | 1,234,567 | 78.00 | - | - | 0 |" in page
    assert "Not run: simkd-wttm-weak, simkd-longer," in page


def test_the_short_schedule(results):
    """Beside the numbers of the whole one."""
    runs = [run(0, 0.61, 0.61), run(1, 0.62, 0.62)]
    rows = {
        "kd": {"top1": {"n": 2, "mean": 0.615, "stdev": 0.0071}, "runs": runs},
        "dkd": {"top1": None, "runs": []},
        "dist": {"top1": None, "runs": [diverged(0)]},
    }
    rows = {row: {"recipe": f"cifar100/resnet56-resnet20/{row}", **one} for row, one in rows.items()}
    (results / "paper3_short_schedule.json").write_text(json.dumps({"rows": rows}))
    page = papers.generate()
    assert "| kd | 70.66 | 61.50 ± 0.71 | 2 |" in page
    assert "| dist | 71.75 | - | 0 (1 of 1 diverged) |" in page
    assert "| dkd | 71.97 |" not in page


def test_every_recipe_of_the_tables_is_on_the_page(results):
    page = papers.generate()
    for name in catalog.names():
        if name.startswith(("cifar100/", "imagenet/", "feature_only/")) and "resnet32x4-resnet8x4" not in name:
            assert name.rpartition("/")[2] in page, name


def test_methods_that_are_missing_are_named_with_the_reason(results):
    page = papers.generate()
    for method in ("AEKT", "DSKD", "DPK", "RSM-DKD"):
        assert re.search(rf"^\* {method}[^:]*: \S.*\.$", page, re.MULTILINE), method
    highest = next(line for line in page.splitlines() if "Highest published" in line)
    assert all(source in highest for source in ("2403.01427", "2203.14001", "2402.11148", "neither a formula nor code"))


def test_every_difference_of_a_recipe_is_on_the_page(results):
    page = papers.generate()
    differences = {
        text for name in catalog.names() if name.startswith("imagenet/") for text in catalog.about(name).differs
    }
    assert len(differences) > 5
    assert [text for text in differences if f": {text}\n" not in page] == []
