"""Sweeps: what a space means, what trials share, and that a sweep cut off anywhere ends as if it had not been."""

import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from ray.tune.search import Searcher

from cluster.assembly import open_data
from cluster.config import RunConfig
from cluster.recipe import parse, validated
from cluster.resources import run_resources as resources
from cluster.stored_teacher import TRAIN
from cluster.sweep.caches import Caches, stored
from cluster.sweep.config import Asha, SweepConfig, load_sweep
from cluster.sweep.journal import SweepJournal, Trial
from cluster.sweep.plan import DRIVER, SweepPlan, local_concurrency, places
from cluster.sweep.run import claimed
from cluster.sweep.search import Judge, Proposals
from cluster.sweep.space import LayerScores, base_of, configured, described, settle
from cluster.sweep.trial import telling
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from kdcore.quality.score import Quality

KD = [{"term": "ce", "weight": 0.5}, {"term": "kd", "weight": 0.5, "temperature": 4.0}]
TTM = [{"term": "ce", "weight": 1.0}, {"term": "ttm", "weight": 7.0, "gamma": 0.3}]
PAIRS = [{"student": "layer2", "teacher": "layer2"}]
MSE = {"term": "feature_mse", "weight": 1.0, "pairs": PAIRS}


def sweep(**fields: Any) -> SweepConfig:
    """A sweep over two temperatures, with fields changed."""
    return validated(SweepConfig, {"name": "s", "space": {"temperature": [1, 4]}} | fields, "space.yaml")


@pytest.fixture
def recipes(recipe, tmp_path):
    """A function that gives a recipe with a teacher and held-out images, with fields changed."""
    torch.manual_seed(7)
    model = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    teacher = {"model": "cifar_resnet8", "checkpoint": str(tmp_path / "teacher.safetensors")}

    def make(**changes: Any) -> RunConfig:
        own = {"teacher": teacher, "method": KD, "data__held_out": 0.25, "data__loader": "reference"}
        return parse(recipe(**own | {"train__epochs": 9, "scaling__num_workers": 0} | changes))

    return make


REFUSED = {
    "metric": ({"metric": "val/top1"}, r"val/top1 would choose on the validation set.*data.held_out=0.02"),
    "unknown metric": ({"metric": "held_out/f1"}, r"'held_out/f1' is no metric; take one of held_out/top1"),
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
    "no number of points": ({"search": "tpe"}, r"search: tpe goes on for ever; say how many points"),
    "a number for a grid": ({"num_points": 3}, r"a grid has as many points as it has"),
    "the seed": ({"space": {"seed": [0, 1]}}, r"seed cannot be searched: give seeds: \[0, 1, ...\]"),
    "one seed twice": ({"seeds": [1, 1]}, r"seeds \[1, 1\]: one stands there twice"),
    "layers of two kinds": (
        {"space": {"layers": {"ranked": 2, "pairs": [[{"student": "a", "teacher": "b"}]]}}},
        r"give either pairs.* or ranked",
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
    path.write_text("name: s\nspace: {weight: [1, 2]}\nasha: {grace_epochs: 2}\n")
    assert load_sweep(path) == sweep(space={"weight": [1, 2]}, asha={"grace_epochs": 2})


def test_which_scores_are_better():
    assert sweep().mode == "max"
    assert sweep(metric="held_out/nll").mode == "min"


def test_rungs():
    asha = Asha(grace_epochs=2, reduction_factor=3)
    assert [asha.rung(epoch) for epoch in (1, 2, 5.5, 6, 17, 18)] == [0, 2, 2, 6, 6, 18]


def test_a_grid_is_every_combination():
    points = settle(sweep(space={"temperature": [1, 4], "optimizer.lr": [0.1, 0.2, 0.3]}), None).points()
    assert points == [{"temperature": t, "optimizer.lr": lr} for t in (1, 4) for lr in (0.1, 0.2, 0.3)]


def test_random_points():
    """The same ones for a seed, within their ranges; of a finite space none twice."""
    space = {"weight": {"log_uniform": [0.01, 100]}, "train.epochs": {"integers": [2, 3]}}
    fields = {"space": space, "search": "random", "num_points": 400}
    points = settle(sweep(**fields), None).points()
    assert points == settle(sweep(**fields), None).points() != settle(sweep(**fields, seed=1), None).points()
    assert all(0.01 <= point["weight"] <= 100 for point in points)
    assert {point["train.epochs"] for point in points} == {2, 3}
    assert 140 < sum(point["weight"] < 1 for point in points) < 260  # half of the logarithms
    drawn = settle(sweep(search="random", num_points=2), None).points()
    assert sorted(point["temperature"] for point in drawn) == [1, 4]
    with pytest.raises(Refused, match="num_points is 3, but the space has only 2 points"):
        settle(sweep(search="random", num_points=3), None).points()


def test_no_run_of_a_sweep_claims_what_its_recipe_is_expected_to_reach(recipes):
    assert base_of(recipes(about={"expected": {"top1": 71.7}}), sweep()).about is None


def test_the_word_temperature(recipes):
    base = base_of(recipes(), sweep())
    assert configured(base, {"temperature": 2}, "r", 0).method[1].temperature == 2
    base = base_of(recipes(method=TTM), sweep())
    assert configured(base, {"temperature": 5}, "r", 0).method[1].gamma == pytest.approx(0.2)
    with pytest.raises(Refused, match="gamma"):
        configured(base, {"temperature": 0.5}, "r", 0)  # gamma 2
    base = base_of(recipes(method=[{"term": "crd", "weight": 1.0}]), sweep())
    with pytest.raises(Refused, match="temperature: the recipe has no term on logits"):
        configured(base, {"temperature": 0.5}, "r", 0)


def test_the_word_weight(recipes):
    run = configured(base_of(recipes(), sweep()), {"weight": 0.9}, "r", 0)
    assert [term.weight for term in run.method] == [0.5, 0.9]
    with pytest.raises(Refused, match=r"2 terms that read a teacher \(method.1.weight, method.2.weight\)"):
        configured(base_of(recipes(method=[*KD, MSE]), sweep()), {"weight": 0.9}, "r", 0)


def test_any_field_and_the_seed(recipes):
    """The views stay those of the recipe's own seed, so that all seeds can read one cache."""
    point = {"optimizer.lr": 1e-5, "method.1.temperature": 3, "train.clip_norm": None}
    run = configured(base_of(recipes(seed=11), sweep()), point, "r", 5)
    assert (run.optimizer.lr, run.method[1].temperature, run.train.clip_norm) == (1e-5, 3, None)
    assert (run.name, run.seed, run.plan_seed) == ("r", 5, 11)
    assert run.run_dir.parent.name == "s"
    for field, message in {"optimizer.rl": "unknown key 'optimizer.rl'", "method.7.weight": "'7' is no item"}.items():
        with pytest.raises(Refused, match=message):
            configured(base_of(recipes(), sweep()), {field: 1}, "r", 0)


def test_a_recipe_without_held_out_images_is_refused(recipes):
    with pytest.raises(Refused, match=r"data.held_out is 0; set data.held_out=0.02"):
        base_of(recipes(data__held_out=0), sweep())
    with pytest.raises(Refused, match=r"grace_epochs 9 leaves nothing to stop in runs of 9"):
        base_of(recipes(), sweep(asha={"grace_epochs": 9}))


def scores(**q: float) -> LayerScores:
    """Layers whose Q is as given: S alone."""
    quality = {tap: Quality(value, 0.0, 1.0, samples=9, dims=4, effective_dims=2.0) for tap, value in q.items()}
    return LayerScores(quality, ["early", "late"])


FOUR = {"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.7}


def test_ranked_layers():
    """Single layers by Q with the student's last tap; pairs of layers by depth."""
    space = settle(sweep(space={"layers": {"ranked": 3, "sizes": [1, 2]}}), scores(**FOUR))
    shown = [described({"layers": value}) for value in space.axes["layers"].values]
    assert shown == [
        "layers late<b",
        "layers early<b late<d",  # mean Q 0.8
        "layers late<d",
        "layers early<b late<c",  # 0.7, as `late<d`, which comes first
        "layers early<c late<d",  # 0.6
        "layers late<c",
    ]
    with pytest.raises(Refused, match="ranked 5, but the teacher has 4 layers"):
        settle(sweep(space={"layers": {"ranked": 5}}), scores(**FOUR))


def test_given_layers(recipes):
    pairs = [[{"student": "layer3", "teacher": "layer1"}], PAIRS]
    space = settle(sweep(space={"layers": {"pairs": pairs}}), scores(layer1=1.0, layer2=2.0))
    assert space.points() == [{"layers": pairs[0]}, {"layers": pairs[1]}]
    run = configured(base_of(recipes(method=[*KD, MSE]), sweep()), space.points()[0], "r", 0)
    assert [(pair.student, pair.teacher) for pair in run.method[2].pairs] == [("layer3", "layer1")]


def planned(recipe: RunConfig, layer_scores: LayerScores | None = None, **fields: Any) -> SweepPlan:
    return SweepPlan(recipe, sweep(**fields), layer_scores)


def test_one_cache_for_all_that_share_views(recipes):
    """Logits for one point, a tap for another, all seeds: together in one cache, in as many views as epochs."""
    methods = [KD, [KD[0], MSE], [KD[0], {**MSE, "pairs": [{"student": "layer2", "teacher": "layer3"}]}], [KD[0]]]
    plan = planned(recipes(), space={"method": methods}, seeds=[0, 1])
    (build,) = plan.caches.builds()
    assert build.cache.taps == ("layer2", "layer3")
    assert build.needs.teacher_logits
    assert build.views.num_views == 9
    assert build.teacher.source == "online"
    runs = [plan.config(Trial("t", i, point, seed)) for i, point in enumerate(plan.examples) for seed in (0, 1)]
    assert len(runs) == plan.num_trials == 8
    assert {(run.teacher.source, run.cache.dir, run.plan_seed) for run in runs} == {("cache", build.cache.dir, 0)}
    assert plan.caches.missing() == [build]


def test_other_views_need_another_cache(recipes):
    """Refused with the cost; or given their own where that is allowed."""
    space = {"views.flip_probability": [0.5, 0.0], "temperature": [1, 4]}
    with pytest.raises(Refused, match=r"differ in views.flip_probability.*need 2 of about 0.00 GiB.*max_caches: 2"):
        planned(recipes(), space=space)
    plan = planned(recipes(), space=space, max_caches=2)
    first, second = (build.cache.dir for build in plan.caches.builds())
    assert second.startswith(f"{first}-")
    places_ = [plan.config(Trial("t", i, point, 0)).cache.dir for i, point in enumerate(plan.examples)]
    assert places_ == [first, first, second, second]


def test_sweeps_without_a_cache(recipes):
    assert planned(recipes(), teacher="online").caches.builds() == []
    assert planned(recipes(method=[KD[0]]), space={"optimizer.lr": [1, 2]}).caches.builds() == []


def test_what_is_read_of_the_teacher(recipes):
    needs = stored([recipes(method=[*KD, MSE]), recipes(method=[{"term": "simkd", "weight": 1.0}])])
    assert needs.teacher_logits
    assert needs.teacher_taps == {"layer2", "forward_features"}
    assert needs.student_taps == frozenset()


def test_a_point_that_makes_no_run(recipes):
    """One is noted and fails alone; a sweep of nothing else is refused."""
    wrong = [{"student": "layer2", "teacher": "layer9"}]
    space = {"layers": {"pairs": [PAIRS, wrong]}}
    plan = planned(recipes(method=[*KD, MSE]), scores(layer2=1.0, layer9=1.0), space=space)
    ((point, problem),) = plan.problems.items()
    assert "layer9" in point
    assert "CifarResNet has no tap 'layer9'; did you mean layer3" in problem
    with pytest.raises(Refused, match="no tap 'layer9'"):
        plan.config(Trial("t", 1, {"layers": wrong}, 0))
    with pytest.raises(Refused, match=r"none of the sweep's points makes a run: .*unknown key 'optimizer.rl'"):
        planned(recipes(), space={"optimizer.rl": [1, 2]})


def test_the_name_belongs_to_one_sweep(recipes):
    """And its folder to one process at a time."""
    with claimed(planned(recipes())), pytest.raises(Refused, match="another process runs the sweep"):
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
    """A folder from before there was the field `asha` belongs to the same sweep while that is off."""
    plan = planned(recipes())
    enter(plan)
    path = plan.parent.run_dir / "space.json"
    earlier = {name: value for name, value in json.loads(path.read_text()).items() if name != "asha"}
    path.write_text(json.dumps(earlier))
    enter(planned(recipes()))
    with pytest.raises(Refused, match=r"holds another sweep \(asha"):
        enter(planned(recipes(), asha={"grace_epochs": 1}))


def enter(plan: SweepPlan) -> None:
    with claimed(plan):
        pass


def test_no_cluster_is_filled_with_drivers(recipes):
    """The process of a trial takes no core of those that its workers wait for."""
    config = recipes(scaling__num_workers=2, scaling__cpus_per_worker=1.5)
    assert resources(config)["CPU"] == 3
    assert DRIVER["CPU"] == 0
    assert [places(config, {"CPU": cpus}) for cpus in (2.9, 3, 8, 9)] == [0, 1, 2, 3]
    assert resources(recipes())["CPU"] == 1  # num_workers 0: a worker all the same
    assert local_concurrency(config, 5) == 5


class Tune:
    """Stands in for Tune: asks for trials, trains them step by step, in an order of its own, and reports.

    A run's score is a function of its point, seed and epoch alone. stop_after: events in the journal, then the kill.
    """

    def __init__(self, path: Path, config: SweepConfig, concurrent: int = 1, stop_after: int | None = None) -> None:
        self.config, self.concurrent, self.stop_after = config, concurrent, stop_after
        self.journal = SweepJournal(path)
        self.events = 0
        self.proposals = Proposals(settle(config, None), self.journal, self.score, self.payload, lambda trial: {})
        self.judge = Judge(config, self.journal, max_epochs=9)
        self.journal.open()
        self.journal.listen(self.count)

    def count(self, event: Any, trial: Trial) -> None:
        self.events += 1
        if self.events == self.stop_after:
            raise KeyboardInterrupt

    def score(self, trial: Trial) -> float | None:
        return trial.score(self.config.metric, selects_best=False)

    def payload(self, trial: Trial) -> dict[str, Any]:
        if trial.point.get("optimizer.lr", 0) < 0:
            raise Refused("a negative learning rate")
        return {"name": trial.name}

    def run(self) -> dict[str, tuple]:
        """{trial: what became of it} at the end."""
        running: list[tuple[str, Any, Iterator]] = []
        ids = map("tune{}".format, itertools.count())
        turns = itertools.count()
        while self.fill(running, ids):
            self.step(running, next(turns) % len(running))
        return {t.name: (t.point, t.seed, t.end, t.reason, t.reports) for t in self.journal.trials.values()}

    def fill(self, running: list[tuple[str, Any, Iterator]], ids: Iterator[str]) -> bool:
        """Asks for as many trials as may run; whether any does."""
        while len(running) < self.concurrent:
            tune_id = next(ids)
            payload = self.proposals.suggest(tune_id)
            if payload == Searcher.FINISHED:
                break
            trial = self.journal.trials[payload["name"]]
            running.append((tune_id, trial, rows(trial)))
        return bool(running)

    def step(self, running: list[tuple[str, Any, Iterator]], place: int) -> None:
        tune_id, trial, reports = running[place]
        row = next(reports, None)
        stand_in = SimpleNamespace(config={"name": trial.name}, trial_id=tune_id)
        if row is None or self.judge.on_trial_result(None, stand_in, row | {"time_total_s": 1.0}) == "STOP":
            self.proposals.on_trial_complete(tune_id, row)
            del running[place]


def rows(trial: Trial) -> Iterator[dict[str, Any]]:
    """The reports of a run, from its beginning, also where it is continued."""
    for epoch in range(1, 10):
        goodness = sum(zlib.crc32(f"{name} {value:.6f}".encode()) % 97 for name, value in trial.point.items()) / 97
        yield {"epoch": epoch, "step": 4 * epoch, "last": epoch == 9, "held_out/top1": epoch * (goodness + trial.seed)}


SEARCHES = {
    "grid": {"space": {"temperature": [1, 2, 4], "optimizer.lr": [0.1, -1, 0.3]}, "asha": {"reduction_factor": 3}},
    "random": {"space": {"weight": {"uniform": [0, 1]}}, "search": "random", "num_points": 9, "asha": {}},
    "tpe": {"space": {"weight": {"uniform": [0, 1]}, "temperature": [1, 2, 4]}, "search": "tpe", "num_points": 15},
    "tpe with asha": {
        "space": {"weight": {"log_uniform": [0.1, 10]}},
        "search": "tpe",
        "num_points": 14,
        "seeds": [0, 1],
        "asha": {"grace_epochs": 2, "reduction_factor": 2},
    },
}


@pytest.mark.parametrize("search", SEARCHES)
def test_cut_off_anywhere_it_ends_the_same(search, tmp_path):
    """One run at a time: killed after any event, also twice, the table is that of an undisturbed sweep."""
    config = sweep(**SEARCHES[search])
    whole = Tune(tmp_path / "whole", config)
    expected = whole.run()
    ends = [end for _, _, end, _, _ in expected.values()]
    assert ends.count("finished") >= 1
    assert ends.count("stopped") >= 2 or not config.asha
    assert ends.count("failed") == (3 if search == "grid" else 0)
    for cut in range(1, whole.events - 5, 7):
        path = tmp_path / f"cut{cut}"
        for stop_after in (cut, 5):
            with pytest.raises(KeyboardInterrupt):
                Tune(path, config, stop_after=stop_after).run()
        path.write_bytes(path.read_bytes() + b'{"event": "rep')  # a line that was cut off
        assert Tune(path, config).run() == expected, cut


@pytest.mark.parametrize("search", ["grid", "tpe with asha"])
def test_what_was_decided_stays_decided(search, tmp_path):
    """Several runs at a time: after a kill no trial that had ended is touched, and none is lost or run twice."""
    config = sweep(**SEARCHES[search])
    with pytest.raises(KeyboardInterrupt):
        Tune(tmp_path / "j", config, concurrent=3, stop_after=20).run()
    before = SweepJournal(tmp_path / "j")
    before.open()
    ended = {t.name: (t.point, t.seed, t.end, t.reason, t.reports) for t in before.trials.values() if t.end}
    after = Tune(tmp_path / "j", config, concurrent=3).run()
    assert ended
    assert {name: after[name] for name in ended} == ended
    assert len(after) == {"grid": 9, "tpe with asha": 28}[search]
    for _, _, end, _, reports in after.values():
        steps = [row["step"] for row in reports]
        assert steps == list(range(4, 4 * len(steps) + 4, 4))
        assert end != "finished" or len(steps) == 9


def test_why_a_run_was_stopped(tmp_path):
    """Successive halving by hand: at epoch 1 the third run is worse than both others, and only the best half go on."""
    judge = Judge(sweep(asha={"reduction_factor": 2}), journal := SweepJournal(tmp_path / "j"), max_epochs=4)
    journal.open()
    decisions = {}
    for number, score in enumerate((0.5, 0.7, 0.4)):
        name = journal.begin(f"{number}", number, {"temperature": 1}, 0).name
        row = {"epoch": 1.0, "step": 4, "last": False, "held_out/top1": score}
        decisions[name] = judge.on_trial_result(None, SimpleNamespace(config={"name": name}), row)
    assert decisions == {"0": "CONTINUE", "1": "CONTINUE", "2": "STOP"}
    assert journal.trials["2"].reason == (
        "stopped by ASHA at epoch 1, rung 1: held_out/top1 0.4000, 2 of the 2 runs there before it are better, and the "
        "best 1/2 go on"
    )
    last = {"epoch": 4.0, "step": 16, "last": True, "held_out/top1": 0.0}
    assert judge.on_trial_result(None, SimpleNamespace(config={"name": "0"}), last) == "CONTINUE"


def test_tpe_hears_the_mean_over_seeds(tmp_path):
    """And only when every seed of a point has ended."""
    config = sweep(space={"weight": {"uniform": [0, 1]}}, search="tpe", num_points=2, seeds=[0, 1])
    tune = Tune(tmp_path / "j", config)
    told = []
    tune.proposals.source.tell = lambda number, score: told.append((number, score))
    tune.run()
    trials = list(tune.journal.trials.values())
    means = [sum(t.reports[-1]["held_out/top1"] for t in trials[i : i + 2]) / 2 for i in (0, 2)]
    assert told == [(0, pytest.approx(means[0])), (1, pytest.approx(means[1]))]


def test_a_search_that_has_changed_is_noticed(tmp_path):
    """A journal whose points the search would not give now."""
    config = sweep(**SEARCHES["tpe"])
    Tune(tmp_path / "j", config).run()
    with pytest.raises(Refused, match=r"point 0 of this sweep was .*, and the search now gives"):
        Tune(tmp_path / "j", config.model_copy(update={"seed": 1}))


def test_every_validation_is_told_once(recipes):
    """Also those that a killed attempt has written, and those that a new one takes back and writes again."""
    config = recipes(train__epochs=2, train__batch_size=6, train__micro_batch=6)  # 36 images: 6 steps an epoch
    config.run_dir.mkdir(parents=True)
    path, told = config.run_dir / "metrics.jsonl", []

    def write(*steps: int) -> None:
        lines = [json.dumps({"step": step, "held_out/top1": step / 100, "val/top1": 0.5}) for step in steps]
        path.write_text("\n".join([*lines, json.dumps({"step": 13, "train/loss": 1.0}), '{"step": 12, "held']))

    write(6, 9)
    assert len(open_data(config)[TRAIN]) == 36
    with telling(config, told.append):
        write(6)
        write(6, 9, 12)
    assert told == [
        {"epoch": step / 6, "step": step, "last": step == 12, "held_out/top1": step / 100, "val/top1": 0.5}
        for step in (6, 9, 12)
    ]


def test_caches_of_a_search_that_goes_on(recipes):
    """TPE makes up its points: one whose views were not planned for is refused by itself."""
    space = {"temperature": {"uniform": [1, 8]}, "views.flip_probability": [0.5]}
    plan = planned(recipes(), space=space, search="tpe", num_points=4)
    (build,) = plan.caches.builds()
    assert build.needs.teacher_logits
    with pytest.raises(Refused, match="its views or its teacher are others"):
        Caches(plan.sweep, [build]).reading(configured(plan.base, {"views.flip_probability": 0.1}, "r", 0))
