"""The command: its plan, its options, as a job."""

import json
from contextlib import nullcontext
from statistics import median
from types import SimpleNamespace

import pytest
import ray

from cluster.cache.outlook import Outlook, Speeds
from cluster.sweep.journal import Trial
from kdcore.errors import Refused
from ops.__main__ import main
from ops.submit import submit
from ops.sweep import command as sweep_command
from tests.ops.sweep.conftest import ROOT


def test_the_plan(command, tmp_path, capsys):
    """Runs, cache with its size, hours, break-even: all of it without Ray, and nothing else is begun."""
    space = {"temperature": [1, 4], "layers": {"ranked": 2, "images": 30}, "optimizer.lr": [0.1, -1]}
    assert main(command("--plan", space=space, seeds=[0, 1], stop={"rule": "asha", "reduction_factor": 2})) == 0
    shown = capsys.readouterr().out
    for part in (
        "8 points (grid) x 2 seeds = 16",
        "held_out/top1 on 25% of the training images",
        "to be built",
        "4 views",
        "with the teacher online",
        "paid for",
        "optimizer.lr: Input should be greater than 0 (got -1)",
    ):
        assert part in shown, part
    assert not ray.is_initialized()
    assert sorted(path.name for path in (tmp_path / "out" / "s").iterdir() if path.is_file()) == [
        "layers.json",
        "speeds.json",
    ]


def test_the_plan_of_what_the_command_refuses(command, tmp_path, capsys):
    (tmp_path / "out" / "s").mkdir(parents=True)
    (tmp_path / "out" / "s" / "space.json").write_text(json.dumps({"name": "s", "space": {"temperature": [1, 4]}}))
    assert main(command("--plan", space={"temperature": [1, 2]})) == 2
    assert "holds another sweep (space.temperature is [1, 4] there and [1, 2] now)" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out" / "s").iterdir()] == ["space.json"]


def test_the_plan_counts_what_is_left(monkeypatch):
    """Of 5 runs 3 at a time 4 have ended: one run's time, which was that of 5."""
    speeds = Outlook(Speeds(1, 1, 1, overlap=False), 60, 1, 1, 1, 1)
    monkeypatch.setattr(sweep_command, "measured_speeds", lambda plan: speeds)
    caches = SimpleNamespace(missing=list, groups=[])
    plan = SimpleNamespace(base=SimpleNamespace(teachers=()), sweep=SimpleNamespace(stop=None), caches=caches)
    times = [sweep_command.cost_rows(plan, 3, num_left)[0][1].split(" with ")[0] for num_left in (1, 3, 4, 0)]
    assert times[0] == times[1] != times[2]
    assert times[3] == "none: every run has ended"


def test_options_before_and_after(command, capsys):
    """key=value may stand behind options; what is no key=value is refused."""
    with pytest.raises(SystemExit):
        main(command("--concurrent", "2", "nonsense", space={"weight": [1]}))
    assert "unrecognized arguments: nonsense" in capsys.readouterr().err


def test_as_a_job(command, monkeypatch):
    """The space's file is looked for where the job finds the tree."""
    sent = []
    monkeypatch.setattr("ops.submit.submit_job", lambda address, words, *more: sent.append(words) or 0)
    words = command(space={"temperature": [1]})
    with pytest.raises(Refused, match=r"lies outside"):
        submit("http://head:8265", None, [], [], None, False, None, words)
    inside = "ops/recipes/demo/common.yaml"  # any file of the tree
    words = ["sweep", "kd", "--space", str(ROOT / inside), "data.root=/shared", "output_dir=/shared/out"]
    more = [*words, "teacher.checkpoint=/shared/t.safetensors"]
    assert submit("http://head:8265", None, [], [], None, False, None, more) == 0
    assert sent[0][:7] == ["python", "-m", "ops", "sweep", "kd", "--space", inside]


@pytest.mark.parametrize(
    ("ends", "status", "hint"),
    [
        (("finished", "stopped"), 0, ""),
        (("finished", "lost"), 1, "the same command retries the 1 lost"),
        (("failed", "failed"), 1, "--retry-failed also those that failed"),
        (("lost", "failed"), 1, "the same command retries the 1 lost; --retry-failed also those that failed"),
    ],
)
def test_the_exit_status_says_whether_all_runs_ended_well(ends, status, hint, command, monkeypatch, capsys):
    """A sweep exited 0 with runs that nobody would see again."""
    trials = [Trial(f"00{i}-seed0", i, {}, 0, end=end, reason=f"why {end}") for i, end in enumerate(ends)]
    monkeypatch.setattr(sweep_command, "run", lambda *args: [SimpleNamespace(trials=trials)])
    monkeypatch.setattr(sweep_command, "show_plan", lambda *args: None)
    monkeypatch.setattr(sweep_command, "sweep_session", lambda *args: nullcontext())
    monkeypatch.setattr(sweep_command, "concurrency", lambda *args: 1)
    assert main(command(space={"temperature": [1]})) == status
    shown = capsys.readouterr().out
    for trial in trials:
        assert (f"{trial.name} {trial.end}: why {trial.end}" in shown) == (trial.end in ("failed", "lost"))
    assert hint in shown


@pytest.mark.parametrize(("stop", "more"), [(None, ""), ({"rule": "asha"}, "; less with runs that are stopped early")])
def test_the_plan_says_what_is_not_in_its_hours(stop, more, monkeypatch):
    """'At most 0 s' was promised of runs whose processes take 12 s each."""
    measured = json.loads((ROOT / "ops" / "benchmarks" / "results" / "trials.json").read_text())
    assert round(median(measured["seconds"]["beyond training"]["values"])) == sweep_command.RUN_SECONDS
    speeds = Outlook(Speeds(1e4, 1e4, 1e4, overlap=False), 100, 1, 1, 1, 1)
    monkeypatch.setattr(sweep_command, "measured_speeds", lambda plan: speeds)
    plan = SimpleNamespace(
        base=SimpleNamespace(teachers=()),
        sweep=SimpleNamespace(stop=stop),
        num_trials=2,
        caches=SimpleNamespace(missing=list, groups=[]),
    )
    first, second = sweep_command.cost_rows(plan, 1, 2)
    assert first == ["expected training", f"under 1 s with the teacher online{more}"]
    assert second == ["not in it", "Ray's start, and what each run's processes take: 12 s a run where it was measured"]
