"""Points of a space, and the runs that they make."""

import copy
import json

import numpy as np
import pytest

from cluster.sweep.space import (
    Space,
    build_space,
    describe,
    refuse_overwriting,
    run_config,
    shared_recipe,
    with_all_views,
)
from kdcore.errors import Refused
from tests.cluster.sweep.conftest import KD, MSE, PAIRS, scores, sweep

TTM = [{"term": "ce", "weight": 1.0}, {"term": "ttm", "weight": 7.0, "gamma": 0.3}]


FOUR = {"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.7}


def test_a_grid_is_every_combination():
    points = build_space(sweep(space={"temperature": [1, 4], "optimizer.lr": [0.1, 0.2, 0.3]}), None).points()
    assert points == [{"temperature": t, "optimizer.lr": lr} for t in (1, 4) for lr in (0.1, 0.2, 0.3)]


def test_random_points():
    """The same ones for a seed, within their ranges; of a finite space none twice."""
    space = {"weight": {"log_uniform": [0.01, 100]}, "train.epochs": {"integers": [2, 3]}}
    fields = {"space": space, "search": "random", "num_points": 400}
    points = build_space(sweep(**fields), None).points()
    assert points == build_space(sweep(**fields), None).points() != build_space(sweep(**fields, seed=1), None).points()
    assert all(0.01 <= point["weight"] <= 100 for point in points)
    assert {point["train.epochs"] for point in points} == {2, 3}
    assert 140 < sum(point["weight"] < 1 for point in points) < 260  # half of the logarithms
    drawn = build_space(sweep(search="random", num_points=2), None).points()
    assert sorted(point["temperature"] for point in drawn) == [1, 4]
    with pytest.raises(Refused, match="num_points is 3, but the space has only 2 points"):
        build_space(sweep(search="random", num_points=3), None).points()
    whole = {"temperature": [1, 4], "train.epochs": {"integers": [2, 4]}}
    drawn = build_space(sweep(space=whole, search="random", num_points=6), None).points()
    assert sorted(map(describe, drawn)) == [f"temperature {t}, train.epochs {n}" for t in (1, 4) for n in (2, 3, 4)]
    with pytest.raises(Refused, match="num_points is 7, but the space has only 6 points; set num_points=6"):
        build_space(sweep(space=whole, search="random", num_points=7), None).points()


@pytest.mark.parametrize("num_axes", [2, 3, 9])
def test_random_points_of_lists(num_axes, monkeypatch):
    """Those of the whole grid in a random order, as begun sweeps have them, without making it: a billion are too many,
    and are drawn one by one."""
    lists = {f"optimizer.args.{name}": [name, *range(9)] for name in "abcdefghi"[:num_axes]}
    space = build_space(sweep(space=lists, search="random", num_points=20), None)
    grid = space.grid_points() if num_axes < 9 else []
    monkeypatch.setattr(Space, "grid_points", lambda self: pytest.fail("the whole grid was made"))
    points = space.points()
    if grid:
        assert points == [grid[i] for i in np.random.default_rng(0).permutation(len(grid))[:20]]
    assert len({json.dumps(point) for point in points}) == 20
    assert all(point[axis] in values for point in points for axis, values in lists.items())


def test_the_word_temperature(recipes):
    base = shared_recipe(recipes(), sweep())
    assert run_config(base, {"temperature": 2}, "r", 0).method[1].temperature == 2
    base = shared_recipe(recipes(method=TTM), sweep())
    assert run_config(base, {"temperature": 5}, "r", 0).method[1].gamma == pytest.approx(0.2)
    with pytest.raises(Refused, match="gamma"):
        run_config(base, {"temperature": 0.5}, "r", 0)  # gamma 2
    with pytest.raises(Refused, match=r"^temperature: 0 is not a number above 0"):
        run_config(base, {"temperature": 0}, "r", 0)
    base = shared_recipe(recipes(method=[{"term": "crd", "weight": 1.0}]), sweep())
    with pytest.raises(Refused, match="temperature: the recipe has no term on logits"):
        run_config(base, {"temperature": 0.5}, "r", 0)
    with pytest.raises(Refused, match=r"unknown key 'method.0.weigth'; did you mean weight"):
        run_config(base, {"temperature": 0.5, "method.0.weigth": 1}, "r", 0)


def test_the_word_weight(recipes):
    run = run_config(shared_recipe(recipes(), sweep()), {"weight": 0.9}, "r", 0)
    assert [term.weight for term in run.method] == [0.5, 0.9]
    with pytest.raises(Refused, match=r"2 terms that read a teacher \(method.1.weight, method.2.weight\)"):
        run_config(shared_recipe(recipes(method=[*KD, MSE]), sweep()), {"weight": 0.9}, "r", 0)


def test_any_field_and_the_seed(recipes):
    """The views stay those of the recipe's own seed, so that all seeds can read one cache."""
    point = {"optimizer.lr": 1e-5, "method.1.temperature": 3, "train.clip_norm": None}
    run = run_config(shared_recipe(recipes(seed=11), sweep()), point, "r", 5)
    assert (run.optimizer.lr, run.method[1].temperature, run.train.clip_norm) == (1e-5, 3, None)
    assert (run.name, run.seed, run.plan_seed) == ("r", 5, 11)
    assert run.run_dir.parent.name == "s"
    for field, message in {
        "optimizer.rl": "unknown key 'optimizer.rl'",
        "method.7.weight": "'7' is not an item",
    }.items():
        with pytest.raises(Refused, match=message):
            run_config(shared_recipe(recipes(), sweep()), {field: 1}, "r", 0)


def test_a_cached_run_sees_all_the_views_of_its_epochs(recipes):
    """Its own epochs count, and how many views each shows; never fewer than the recipe's, and a given number stays."""
    whole = recipes().views.model_dump(mode="json")
    for point, expected in (
        ({"train.epochs": 3}, 9),
        ({"train.epochs": 12}, 12),
        ({"views.repeats": 2}, 18),
        ({"views.repeats": 2, "train.epochs": 3}, 10),
        ({"views": whole}, 9),
        ({"views": whole | {"num_views": 2}}, 2),
        ({"views.num_views": 4, "train.epochs": 12}, 4),
    ):
        run = run_config(shared_recipe(recipes(), sweep()), point, "r", 0)
        assert with_all_views(run, 9).views.num_views == expected, point


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"temperature": [1], "method.1.temperature": [2]}, "method.1.temperature and temperature both set method.1.t"),
        ({"weight": [0.1], "method.1.weight": [0.2]}, "method.1.weight and weight both set method.1.weight"),
        ({"layers": [PAIRS], "method.2.pairs.0.teacher": ["x"]}, "both set method.2.pairs.0.teacher; take one of them"),
    ],
)
def test_two_axes_that_set_one_field(space, message, recipes):
    method = [*KD, MSE] if "layers" in space else KD
    base = shared_recipe(recipes(method=method), sweep())
    with pytest.raises(Refused, match=f"^space: .*{message}"):
        refuse_overwriting(base, build_space(sweep(space=space), None))


def test_a_section_and_a_field_of_it(recipes):
    """In either order the field is set within each section, and the point says what it said."""
    method = [KD[0], KD[1] | {"term": "lskd"}]
    values = {"temperature": 2, "method.0.weight": 0.25, "method": method}
    base, space = shared_recipe(recipes(), sweep()), sweep(space={name: [value] for name, value in values.items()})
    refuse_overwriting(base, build_space(space, None))
    before = copy.deepcopy(values)
    run = run_config(base, values, "r", 0)
    assert (run.method[0].weight, run.method[1].temperature, run.method[1].term) == (0.25, 2, "lskd")
    assert values == before


def test_a_recipe_without_held_out_images_is_refused(recipes):
    with pytest.raises(Refused, match=r"data.held_out is 0; set data.held_out=0.02"):
        shared_recipe(recipes(data__held_out=0), sweep())
    with pytest.raises(Refused, match=r"train.select is val: .* set train.select=held_out or train.select=last"):
        shared_recipe(recipes(train__select="val"), sweep())
    with pytest.raises(Refused, match=r"grace_epochs 9 leaves nothing to stop in runs of 9"):
        shared_recipe(recipes(), sweep(stop={"rule": "asha", "grace_epochs": 9}))


def test_ranked_layers():
    """Single layers by Q with the student's last tap; pairs of layers by depth."""
    space = build_space(sweep(space={"layers": {"ranked": 3, "sizes": [1, 2]}}), scores(**FOUR))
    shown = [describe({"layers": value}) for value in space.axes["layers"].values]
    assert shown == [
        "layers late<b",
        "layers early<b late<d",  # mean Q 0.8
        "layers late<d",
        "layers early<b late<c",  # 0.7, as `late<d`, which comes first
        "layers early<c late<d",  # 0.6
        "layers late<c",
    ]
    with pytest.raises(Refused, match="ranked 5, but the teacher has 4 layers"):
        build_space(sweep(space={"layers": {"ranked": 5}}), scores(**FOUR))


def test_given_layers(recipes):
    pairs = [[{"student": "layer3", "teacher": "layer1"}], PAIRS]
    space = build_space(sweep(space={"layers": {"pairs": pairs}}), scores(layer1=1.0, layer2=2.0))
    assert space.points() == [{"layers": pairs[0]}, {"layers": pairs[1]}]
    run = run_config(shared_recipe(recipes(method=[*KD, MSE]), sweep()), space.points()[0], "r", 0)
    assert [(pair.student, pair.teacher) for pair in run.method[2].pairs] == [("layer3", "layer1")]
