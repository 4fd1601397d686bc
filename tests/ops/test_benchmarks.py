"""What the benchmarks run is what they say: rows resolve to the recipes, estimates follow their formula."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch

from kdcore.errors import Refused
from ops.benchmarks import cache, comparisons, dry_run, seconds, step, tables, trials
from ops.reproduce import cifar100, slices
from ops.reproduce.cifar100 import Place

PAIRS = [{"student": "layer1", "teacher": "layer3.4"}, {"student": "layer2", "teacher": "layer3.3"}]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A state with a teacher that is trained and scored."""
    (tmp_path / "teacher-seed0").mkdir()
    (tmp_path / "teacher-seed0" / "student.safetensors").touch()
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "method.yaml").write_text(json.dumps({"method": [{"pairs": PAIRS}, {"term": "ce"}]}))
    return Place(tmp_path, "data")


@pytest.mark.parametrize("row", cifar100.ROWS)
def test_every_row_is_the_tables_setting(row, place):
    config = place.configure(row, 2)
    assert (config.train.epochs, config.train.batch_size, config.train.precision) == (240, 64, "float32")
    assert (config.optimizer.opt, config.optimizer.lr, config.optimizer.weight_decay) == ("momentum", 0.05, 5e-4)
    assert config.schedule.milestones == (150, 180, 210)
    assert (config.name, config.seed, config.data.loader) == (f"{row}-seed2", 2, "resident")
    assert config.student.model == ("cifar_resnet32x4" if row == "teacher" else "cifar_resnet8x4")
    assert (config.teacher is None) == (row in ("teacher", "alone"))


@pytest.mark.parametrize("row", cifar100.BEYOND)
def test_what_goes_beyond_is_the_same_pair(row, place, tmp_path):
    """Chosen on images held out, in a folder of its own; longer where it says so, with rates that drop at the same
    shares of the run."""
    final = place.configure(row, 1)
    chosen = Place(tmp_path, "data", held_out=0.1).configure(row, 1)
    assert (final.data.held_out, chosen.data.held_out) == (0.0, 0.1)
    assert (final.run_dir, chosen.run_dir) == (tmp_path / f"{row}-seed1", tmp_path / "held_out" / f"{row}-seed1")
    assert chosen.teacher.checkpoint == str(tmp_path / "teacher-seed0" / "student.safetensors")
    times = 2 if "longer" in row else 1
    assert final.train.epochs == 240 * times
    assert final.schedule.milestones == tuple(times * epoch for epoch in (150, 180, 210))
    assert (final.views.mixup_alpha > 0) == ("mixed" in row)
    assert (final.student.classifier == "reused") == ("simkd" in row)
    assert ("wttm" in [term.term for term in final.method]) == ("wttm" in row)


def test_feature_rows_differ_in_layers_and_in_who_sees_the_labels(place):
    terms = {row: place.configure(row, 0).method[1] for row in cifar100.ROWS if row.startswith("feature_only")}
    assert {row: term.term for row, term in terms.items()} == {
        "feature_only": "feature_only",
        "feature_only-ce": "feature_mse",
        "feature_only-q": "feature_only",
        "feature_only-q-ce": "feature_mse",
    }
    for row, term in terms.items():
        pairs = [pair.model_dump() for pair in term.pairs]
        standard = [{"student": f"layer{i}", "teacher": f"layer{i}"} for i in (1, 2, 3)]
        assert pairs == (PAIRS if row in cifar100.BY_QUALITY else standard)


def test_a_student_waits_for_its_teacher(place, tmp_path):
    (tmp_path / "teacher-seed0" / "student.safetensors").unlink()
    with pytest.raises(Refused, match=r"kd has no teacher in .* yet; run --rows teacher to its end first"):
        place.configure("kd", 0)
    assert place.configure("alone", 0).teacher is None


def test_runs_are_summed_up(place, tmp_path, monkeypatch, capsys):
    """A finished run counts by its last and by its best epoch; one that is under way is listed."""

    def curve(*top1: float) -> list[dict[str, float]]:
        return [{"epoch": float(number), "top1": value} for number, value in enumerate(top1, 1)]

    for seed, rates in ((0, (0.1, 0.5, 0.4)), (1, (0.2, 0.3, 0.6))):
        folder = tmp_path / f"kd-seed{seed}"
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps({"curve": curve(*rates), "steps": 3}))
    (tmp_path / "kd-seed2" / "step-00000002").mkdir(parents=True)
    (tmp_path / "kd-seed2" / "step-00000002" / "progress.json").write_text(json.dumps({"curve": curve(0.9)}))
    found = slices.summary(slices.runs_of(tmp_path, "kd", partial(place.configure, "kd")))
    assert found["top1"]["last"]["values"] == [0.4, 0.6]
    assert found["top1"]["best"]["values"] == [0.5, 0.6]
    assert [(run["name"], run["finished"]) for run in found["runs"]] == [
        ("kd-seed0", True),
        ("kd-seed1", True),
        ("kd-seed2", False),
    ]
    assert slices.summary([])["top1"] == {"last": None, "best": None}
    monkeypatch.setattr("ops.facts.RESULTS", tmp_path / "results")
    cifar100.write_results(place, ["alone", "kd"], "small")
    written = json.loads((tmp_path / "results" / "small.json").read_text())
    assert written["rows"]["kd"]["top1"]["last"]["mean"] == pytest.approx(0.5)
    assert "alone" not in written["rows"]
    assert torch.backends.cpu.get_cpu_capability() in written["facts"]["machine"]  # what rounding depends on
    assert "50.00% ± 14.14%" in capsys.readouterr().out


def test_the_estimate_of_a_full_run():
    """ResNet-34 to ResNet-18: 100 epochs of 1,281,167 images at 3,482 and 6,530 images/s, 84 % of it on each GPU."""
    found = dry_run.full_run("imagenet/resnet34-resnet18-wttm", 2000)
    assert found["epochs"] == 100
    gpus, images = 8 * 6.72 / 8, 1_281_167
    assert found["gpus"]["8"]["online_hours"] == pytest.approx(images * 100 * (1 / 3482 + 1 / 6530) / gpus / 3600)
    assert found["gpus"]["8"]["build_hours"] == pytest.approx(images * 50 / 6530 / gpus / 3600)
    assert found["gpus"]["8"]["cached_hours"] == pytest.approx(images * 100 / 3482 / gpus / 3600)
    assert found["gpus"]["8"]["cache_bytes"] == images * 50 * 2000
    assert found["gpus"]["64"]["online_hours"] == pytest.approx(found["gpus"]["8"]["online_hours"] / 8)
    assert dry_run.full_run(dry_run.LITE0, 2000) is None


def test_the_page_has_the_tables_of_the_result_files():
    for page in tables.PARTS:
        assert tables.with_parts(page) == page.read_text(), "run make pages"


def test_a_table_stands_between_its_marks():
    page = tables.between("above <a> old <b> below", "<a>", "<b>", "new")
    assert page == "above <a>\n\nnew\n<b> below"
    with pytest.raises(AssertionError, match="are on the page"):
        tables.between("<b> without <a>", "<a>", "<b>", "new")


def test_the_page_of_comparisons_is_of_the_result_files(tmp_path):
    """Its figure too. Every goal is of a comparison that was made."""
    found = comparisons.comparisons()
    assert comparisons.PAGE.read_text() == comparisons.page_text(found), "run make pages"
    assert comparisons.GOALS.keys() <= {(one.work, one.peer) for one in found}
    drawn = tmp_path / comparisons.FIGURE.name
    comparisons.save_reproducibly(comparisons.draw(found), drawn)
    assert drawn.read_bytes() == comparisons.FIGURE.read_bytes()


def test_a_goal_is_met_in_all_rounds_or_some_or_missed():
    """Missed where more rounds miss it than reach it."""
    work, peer = next(iter(comparisons.GOALS))
    found = [
        comparisons.Comparison(work, peer, ratios, "").verdict
        for ratios in ([0.9, 0.96, 0.98], [0.9, 0.98], [0.9, 0.98, 0.99], [0.98, 2.0])
    ]
    assert found == [
        *("0.97: **missed**", "0.97: met in 1 of 2 rounds", "0.97: met in 2 of 3 rounds", "0.97: met"),
    ]


def test_a_build_measured_by_the_clock_is_marked(monkeypatch):
    """As are the published ones, until they are measured again."""
    content = comparisons.read("cache")
    assert cache.CPU_SECONDS not in content["build"]
    (row,) = [line for line in comparisons.table_text(list(comparisons.of_builds())).splitlines() if "a build" in line]
    assert "], wall time | 5 |" in row
    content["build"][cache.CPU_SECONDS] = 1.0
    monkeypatch.setattr(comparisons, "read", lambda name: content)
    assert not next(comparisons.of_builds()).is_wall_time


def test_goals_in_seconds_and_what_nobody_measured(monkeypatch):
    """A goal of so many seconds, one of somebody else's seconds and some more, and a row for what is not there."""
    of_start = {"show": [2.0, 4.0, 3.0], "wrong tap": [4.0, 5.0, 6.0], "imports": [1.0, 1.0, 1.0]}
    of_workers = {"here, 1": [9.0, 10.0, 11.0], "ray, 1": [8.0, 7.6, 8.9]}
    found = {"startup": of_start, "startup_workers": of_workers}
    monkeypatch.setattr(seconds, "values", lambda name, key: found.get(name, {}))
    shown, refused, one, two, *others = seconds.rows()
    assert (
        "| 3.0 [2.0, 4.0] s | `import torch, timm` alone: 1.0 [1.0, 1.0] s | 3 s: met in 2 of 3 rounds | 3 |" in shown
    )
    assert "| 3 s: **missed** |" in refused
    assert "2.5 s: met (+2.1 s)" in one
    assert "with 2 workers, first step included | not measured |" in two
    assert all("not measured" in line for line in others)


def test_steps_that_are_compared_do_the_same(tmp_path, monkeypatch):
    """The loop by hand, timm's task and the product's loop, online and cached: the same weights after a step."""
    monkeypatch.setitem(step.PAIRS, "small", ("cifar_resnet8", "cifar_resnet8", 32, 8, 1))
    monkeypatch.setattr(step, "DistributedDataParallel", lambda model, **_: NotParallel(model))
    found = step.subjects(tmp_path, "small")
    before = {name: torch.cat([p.detach().flatten() for p in one.student.parameters()]) for name, one in found.items()}
    times = step.measure(found, rounds=0, number=1)
    after = {name: torch.cat([p.detach().flatten() for p in one.student.parameters()]) for name, one in found.items()}
    assert times == {name: [] for name in found}
    for name in ("bare", "timm", "online", "cached", "averaged", "parallel"):
        assert torch.equal(before[name], before["bare"])
        torch.testing.assert_close(after[name] - before[name], after["bare"] - before["bare"], rtol=2e-3, atol=2e-5)
    assert not torch.allclose(after["alone"], after["bare"])


def test_a_trials_seconds_beyond_its_training():
    """Two trials in 60 s behind a start of 20, whose steps took 8 and 12 s: 20 s of each were something else."""
    points = [{"trials": [{"result": {"train_seconds": taken}}]} for taken in (8.0, 12.0)]
    assert trials.beyond_training({"seconds": 80.0, "before_the_first_run_seconds": 20.0, "points": points}) == 20.0


class NotParallel(torch.nn.Module):
    """In the place of DDP, which wants a process group."""

    def __init__(self, module):
        super().__init__()
        self.module, self.forward, self.no_sync = module, module.forward, nullcontext


def test_the_benchmark_of_the_cache_removes_its_own_folder_alone(tmp_path, monkeypatch):
    (tmp_path / "thesis").touch()
    monkeypatch.setattr("sys.argv", ["cache", "--output", str(tmp_path), "--threads", str(torch.get_num_threads())])
    for part in ("measure_reading", "measure_building"):
        monkeypatch.setattr(cache, part, lambda folder, rounds: (folder / "made").touch() or {"results": {}})
    monkeypatch.setattr(cache, "write", lambda *_: tmp_path)
    cache.main()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]
