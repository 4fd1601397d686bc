"""A sweep's folder belongs to one sweep, and to one process; what ends a sweep is said as it is."""

import errno
import json
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from ray.tune.error import TuneError

from cluster.recipe.reading import parse
from cluster.sweep import run
from cluster.sweep.journal import SweepJournal
from cluster.sweep.plan import SweepPlan
from cluster.sweep.run import JOURNAL, exclusive_folder, require_same_sweep, run_tune, sweep_identity, trials_so_far
from cluster.sweep.scheduler import EarlyStopping
from cluster.sweep.search import Proposals
from cluster.sweep.space import parent_of
from kdcore.errors import Refused
from tests.cluster.sweep.conftest import planned, sweep


def test_the_name_belongs_to_one_sweep(recipes):
    """And its folder to one process at a time."""
    in_use = r"is in use by process \d+ .* at sweep since"
    with exclusive_folder(planned(recipes())), pytest.raises(Refused, match=in_use):
        enter(planned(recipes()))
    enter(planned(recipes(), concurrent=2))
    with pytest.raises(Refused, match=r"holds another sweep \(space.temperature is .* choose another name"):
        enter(planned(recipes(), space={"temperature": [1, 2]}))
    with pytest.raises(Refused, match=r"holds a run of another recipe \(seed: 0 there, 1 now\)"):
        enter(planned(recipes(seed=1)))


def test_the_kind_of_a_range_is_part_of_a_sweep(recipes):
    """A uniform range is not a log-uniform one of the same ends; what stands in the folder is what SPACE.yaml says."""
    space = {"temperature": {"uniform": [1, 4]}, "method.1.weight": [0.1, 1.0]}
    plan = planned(recipes(), space=space, search="random", num_points=2)
    enter(plan)
    assert json.loads((plan.parent.run_dir / "space.json").read_text())["space"] == space
    with pytest.raises(Refused, match=r"space.temperature.uniform is \[1.0, 4.0\] there"):
        enter(planned(recipes(), space=space | {"temperature": {"log_uniform": [1, 4]}}, search="random", num_points=2))


def test_a_field_that_came_later_makes_no_other_sweep(recipes):
    """A folder from before there was the field `stop` belongs to the same sweep while that is off."""
    plan = planned(recipes())
    enter(plan)
    path = plan.parent.run_dir / "space.json"
    earlier = {name: value for name, value in json.loads(path.read_text()).items() if name != "stop"}
    path.write_text(json.dumps(earlier | {"asha": None}))  # which was its only rule
    enter(planned(recipes()))
    with pytest.raises(Refused, match=r"holds another sweep \(stop"):
        enter(planned(recipes(), stop={"rule": "median"}))


@pytest.mark.parametrize(
    ("seeds", "more", "message"),
    [
        ([0, 1, 2], {}, None),
        ([2, 1, 0], {"space": {"temperature": {"uniform": [1, 4]}}, "search": "random", "num_points": 2}, None),
        ([0], {}, r"\(seeds is \[0, 1\] there and \[0\] now\); choose"),
        ([1, 0], {}, r"\(seeds is \[0, 1\] there and \[1, 0\] now\); choose"),
        (
            [0, 1, 2],
            {"stop": {"rule": "asha"}},
            r"now, and stop: asha has decided by the runs",
        ),
        (
            [0, 1, 2],
            {"search": "tpe", "num_points": 2},
            r"now, and search: tpe has decided by the runs",
        ),
    ],
)
def test_seeds_may_be_added_where_nothing_is_decided(seeds, more, message, recipe):
    recipe, begun = parse(recipe()), sweep(seeds=[0, 1], **more)
    folder = parent_of(recipe, begun).run_dir
    folder.mkdir(parents=True)
    (folder / "space.json").write_text(json.dumps(sweep_identity(begun)))
    with pytest.raises(Refused, match=message) if message else nullcontext():
        require_same_sweep(recipe, sweep(seeds=seeds, **more))


def enter(plan: SweepPlan) -> None:
    with exclusive_folder(plan):
        pass


def test_who_looks_at_a_sweep_that_runs_takes_nothing_from_its_journal(recipes):
    """`sweep --plan` reads it, in the middle of a line, too; what the sweep writes then is in the same file."""
    plan = planned(recipes())
    journal = SweepJournal(plan.parent.run_dir / JOURNAL)
    journal.open()
    journal.begin("000-seed0", 0, {"temperature": 1}, 0)
    journal.file.write('{"event": "begin", "trial": "001-')
    journal.file.flush()
    assert trials_so_far(plan).keys() == {"000-seed0"}
    journal.file.write('seed0", "number": 1, "point": {"temperature": 4}, "seed": 0}\n')
    journal.file.close()
    assert trials_so_far(plan).keys() == {"000-seed0", "001-seed0"}


ASKED: dict[str, Callable[[Proposals, EarlyStopping], object]] = {
    "the next trial": lambda proposals, stopping: proposals.suggest("second"),
    "a trial's end": lambda proposals, stopping: proposals.on_trial_complete("first"),
    "a report": lambda proposals, stopping: stopping.on_trial_result(
        None, SimpleNamespace(config={"name": "000-seed0"}), {"step": 4, "epoch": 1, "last": False}
    ),
    "what nobody knows": lambda proposals, stopping: proposals.on_trial_complete("unknown"),
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_refusal_stays_one(asked, recipes, monkeypatch):
    """Of a full disk, while Tune asks, which makes of every error one of its own; a fault of the program stays that."""
    plan = planned(recipes())
    journal = SweepJournal(plan.parent.run_dir / "journal.jsonl")
    proposals = Proposals(plan.space, journal, plan.score, vars, lambda trial: {})
    stopping = EarlyStopping(plan.sweep, journal)
    journal.open()
    proposals.suggest("first")
    journal.file = MagicMock(**{"write.side_effect": OSError(errno.ENOSPC, "No space left on device")})

    def fit() -> None:
        try:
            ASKED[asked](proposals, stopping)
        except Exception as error:
            raise TuneError("Traceback (most recent call last): ...") from error

    monkeypatch.setattr(run, "tune", MagicMock(**{"Tuner.return_value.fit": fit}))
    monkeypatch.setattr(run, "nodes_here", list)
    expected = (TuneError, "^Traceback") if asked == "what nobody knows" else (Refused, r"journal.jsonl cannot be writ")
    with pytest.raises(expected[0], match=expected[1]):
        run_tune(plan, proposals, stopping, concurrent=1)
