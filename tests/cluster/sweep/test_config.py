"""What SPACE.yaml may say, and what is refused."""

import pytest

from cluster.sweep.config import load_sweep
from kdcore.errors import Refused
from tests.cluster.sweep.conftest import PAIRS, sweep

REFUSED = {
    "metric": ({"metric": "val/top1"}, r"val/top1 would choose on the validation set.*data.held_out=0.02"),
    "unknown metric": ({"metric": "held_out/accuracy"}, r"'held_out/accuracy' is not a metric; take one of held_out/"),
    "unknown key": ({"seed_s": [1]}, r"space.yaml: unknown key 'seed_s'; did you mean seeds"),
    "a range in a grid": ({"space": {"weight": {"uniform": [0, 1]}}}, r"weight is a range, which a grid cannot list"),
    "an unknown range": ({"space": {"weight": {"normal": [0, 1]}}}, r"write a list of values, or \{uniform"),
    "a range of one end": ({"space": {"weight": {"uniform": [1]}}}, r"uniform takes \[low, high\], not \[1\]"),
    "a range backwards": (
        {"space": {"weight": {"uniform": [2, 1]}}, "search": "tpe", "num_points": 3},
        r"from low to high, not from 2.0 to 1.0",
    ),
    "a logarithm of 0": (
        {"space": {"weight": {"log_uniform": [0, 1]}}, "search": "random", "num_points": 3},
        r"space.weight.low: .*greater than 0",
    ),
    "no number of points": ({"search": "tpe"}, r"search: tpe has no end; set num_points"),
    "a number for a grid": ({"num_points": 3}, r"the number of points in a grid is fixed"),
    "the seed": ({"space": {"seed": [0, 1]}}, r"seed cannot be searched: give seeds: \[0, 1, ...\]"),
    "the choice of weights": ({"space": {"train.select": ["last", "held_out"]}}, r"train.select cannot be searched"),
    "one seed twice": ({"seeds": [1, 1]}, r"seeds \[1, 1\]: one is listed twice"),
    "a rule by its former key": (
        {"asha": {"grace_epochs": 2}},
        r"asha is one of several stopping rules; write stop: \{rule: asha, grace_epochs: 2\}",
    ),
    "an unknown rule": ({"stop": {"rule": "meridian"}}, r"stop: unknown stopping rule 'meridian'; did you mean median"),
    "a field of no rule": ({"stop": {"rule": "asha", "min_runs": 2}}, r"unknown key 'stop.min_runs'"),
    "layers of two kinds": (
        {"space": {"layers": {"ranked": 2, "pairs": [[{"student": "a", "teacher": "b"}]]}}},
        r"give either pairs.* or ranked",
    ),
    "taps that are not ranked": (
        {"space": {"layers": {"pairs": [PAIRS], "taps": ["layer3"]}}},
        r"taps=\('layer3',\) has no effect without ranked: N",
    ),
    "a student's taps that are not ranked": (
        {"space": {"layers": {"pairs": [PAIRS], "student_taps": ["layer3"]}}},
        r"student_taps=\('layer3',\) has no effect without ranked: N",
    ),
    "no layers": ({"space": {"layers": []}}, r"space.layers.pairs: .* at least 1 item"),
    "a choice of none": ({"space": {"layers": [PAIRS, []]}}, r"space.layers.pairs.1: .* at least 1 item"),
    "a value twice": (
        {"space": {"temperature": [1, 4, 1.0]}},
        r"space.temperature.values: 1.0 is listed twice; remove it",
    ),
    "layers twice": ({"space": {"layers": [PAIRS, PAIRS]}}, r"space.layers.pairs: .* is listed twice"),
    "a size twice": ({"space": {"layers": {"ranked": 2, "sizes": [1, 1]}}}, r"space.layers.sizes: 1 is listed twice"),
    "a fraction among integers": (
        {"space": {"train.epochs": {"integers": [8.5, 10]}}, "search": "random", "num_points": 1},
        r"space.train.epochs.low: integers go from one whole number to another, and 8.5 is not one",
    ),
    "too many layers at once": ({"space": {"layers": {"ranked": 2, "sizes": [3]}}}, r"sizes 3 of the 2 best layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_space_is_refused(case):
    fields, message = REFUSED[case]
    with pytest.raises(Refused, match=message):
        sweep(**fields)


def test_a_space_as_a_file(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("name: s\nspace: {weight: [1, 2]}\nstop: {rule: asha, grace_epochs: 2}\n")
    assert load_sweep(path) == sweep(space={"weight": [1, 2]}, stop={"rule": "asha", "grace_epochs": 2})


def test_layers_may_be_a_list():
    """Their quality is measured all the same: the pictures of a sweep show it."""
    assert sweep(space={"layers": [PAIRS]}) == sweep(space={"layers": {"pairs": [PAIRS]}})


def test_which_scores_are_better():
    assert sweep().mode == "max"
    assert sweep(metric="held_out/nll").mode == "min"
