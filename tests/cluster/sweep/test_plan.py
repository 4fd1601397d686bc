"""A sweep before it starts: points that make no run, and what fits on a cluster."""

import math
import shutil

import pytest

from cluster.nodes.resources import run_resources as resources
from cluster.sweep import room
from cluster.sweep.journal import Trial
from cluster.sweep.room import TRIAL_BYTES, concurrency, local_concurrency, runs_that_fit, trial_resources
from kdcore.errors import Refused
from tests.cluster.sweep.conftest import KD, MSE, PAIRS, planned, scores
from tests.conftest import without_training_labels


def test_a_point_that_makes_no_run(recipes):
    """One is noted and fails alone; a sweep of nothing else is refused."""
    wrong = [{"student": "layer2", "teacher": "layer9"}]
    space = {"layers": {"pairs": [PAIRS, wrong]}}
    plan = planned(recipes(method=[*KD, MSE]), scores(layer2=1.0, layer9=1.0), space=space)
    ((point, problem),) = plan.problems.items()
    assert "layer9" in point
    assert "term feature_mse, pairs: the teacher cifar_resnet8 has no tap 'layer9'; did you mean layer3" in problem
    with pytest.raises(Refused, match="no tap 'layer9'"):
        plan.config(Trial("t", 1, {"layers": wrong}, 0))
    with pytest.raises(Refused, match=r"no point of the sweep is a valid run: .*unknown key 'optimizer.rl'"):
        planned(recipes(), space={"optimizer.rl": [1, 2]})


def test_a_point_that_must_not_be_trained(recipes):
    """Also where another of the same networks, terms and images may be: the optimiser and its schedule alone decide."""
    cycle = recipes(schedule={"sched": "onecycle"})
    ((point, problem),) = planned(cycle, space={"optimizer.momentum": [0.9, 0.5]}, teacher="online").problems.items()
    assert "0.5" in point
    assert "optimizer.momentum=0.5, but schedule.sched=onecycle sets the momentum of every step" in problem


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"temperature": [1, 2], "view_seed": [0, 1]}, "^view_seed cannot be searched: .* different held-out images"),
        ({"data.images_per_class": {"integers": [8, 12]}}, "^data.images_per_class cannot be searched"),
        ({"data": [{}, {"held_out": 0.5}]}, "^data cannot be searched with data.held_out 0.5, as the recipe has 0.25"),
    ],
)
def test_runs_are_compared_on_the_same_images(space, message, recipes):
    recipe, search = recipes(), {}
    if "data" in space:
        space = {"data": [recipe.data.model_dump(mode="json") | changes for changes in space["data"]]}
    if "data.images_per_class" in space:
        search = {"search": "tpe", "num_points": 2}
    with pytest.raises(Refused, match=message):
        planned(recipe, space=space, teacher="online", **search)


def test_what_changes_no_image_can_be_searched(recipes):
    """Among it whole sections that leave the sweep's own fields as they are, and other folders of the same images."""
    recipe = recipes()
    data = recipe.data.model_dump(mode="json")
    shutil.copytree(data["root"], other := f"{data['root']}-copied")
    space = {"data": [data, data | {"num_threads": 3}, data | {"root": other}]}
    assert planned(recipe, space=space, teacher="online").problems == {}


def test_no_cluster_is_filled_with_drivers(recipes):
    """The process of a trial takes no core of those that its workers wait for."""
    config = recipes(scaling__num_workers=2, scaling__cpus_per_worker=1.5)
    assert resources(config)["CPU"] == 3
    assert trial_resources(1, [{"memory": 1e10}])["CPU"] == 0
    assert [runs_that_fit(config, {"CPU": cpus}) for cpus in (2.9, 3, 8, 9)] == [0, 1, 2, 3]
    assert resources(recipes())["CPU"] == 1  # num_workers 0: a worker all the same
    assert local_concurrency(config, 5) == 5


NODES = [{"memory": 15 * 2**30}, {"memory": 3 * 2**30, "CPU": 64}, {"CPU": 64}]  # a head, and two others


def test_memory_counts(recipes, monkeypatch):
    """Cores for 128 runs, memory for 34: no head is filled with more processes than it holds."""
    config = recipes()
    monkeypatch.setattr(room, "nodes_here", lambda: NODES)
    monkeypatch.setattr(room.ray, "cluster_resources", lambda: {"CPU": 128})
    monkeypatch.setattr(room, "resources_to_come", dict)
    assert concurrency(config, None) == concurrency(config, 64) == 34
    assert concurrency(config, 4) == 4
    assert trial_resources(34, NODES)["memory"] == TRIAL_BYTES
    assert trial_resources(1, [{"memory": 5e8}])["memory"] == 1, "one goes whatever there is"
    monkeypatch.setattr(room, "nodes_here", lambda: [{"memory": 5e8}])
    assert concurrency(config, None) == 1


def test_a_cluster_that_grows_counts_as_what_it_can_become(recipes, monkeypatch):
    """The same number of runs at any moment: before its first node is there, and with a part of them."""
    there: dict[str, float] = {}
    monkeypatch.setattr(room.ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(room, "nodes_here", lambda: [{"memory": 5e8}])
    monkeypatch.setattr(room, "resources_to_come", dict)
    with pytest.raises(Refused, match="a run takes 1 CPU, and the cluster has 0 CPU, 0 GPU; lower"):
        concurrency(recipes(), None)
    monkeypatch.setattr(room, "resources_to_come", lambda: {"CPU": 8.0, "GPU": 0.0})
    for cpus in (0.0, 2.0):
        there["CPU"] = cpus
        assert (concurrency(recipes(), None), concurrency(recipes(), 4)) == (8, 4)
    assert trial_resources(8, room.nodes_here())["memory"] == TRIAL_BYTES, "they wait for nodes that hold them"
    with pytest.raises(Refused, match="a run takes 9 CPU, and the cluster has 8 CPU, 0 GPU at most; lower"):
        concurrency(recipes(scaling__cpus_per_worker=9), None)
    monkeypatch.setattr(room, "resources_to_come", lambda: {"CPU": math.inf, "GPU": 2.0})
    assert concurrency(recipes(), 4) == 4
    monkeypatch.setattr(room, "resources_to_come", lambda: None)
    assert (concurrency(recipes(), None), concurrency(recipes(), 4)) == (2, 4)
    there.clear()
    assert concurrency(recipes(), None) == 1


def test_a_machine_with_a_gpu(recipes, monkeypatch):
    """Cores say how many runs share it, for a GPU can be shared."""
    monkeypatch.setattr(room, "run_resources", lambda config: {"CPU": 2.0, "GPU": 1.0})
    monkeypatch.setattr(room.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(room, "trials_in_memory", lambda nodes: 9)
    assert local_concurrency(recipes(), None) == 2


HEADLESS = {"model": "cifar_resnet8", "random": True, "head": "none"}
NOT_MEASURED = {
    "no teacher": (
        {"teacher": None, "method": KD[:1]},
        {"metric": "held_out/agreement", "space": {"optimizer.lr": [0.1, 0.2]}},
        "held_out/agreement is not measured in a run with optimizer.lr 0.1; take one of held_out/top1, held_out/top5, "
        "held_out/class_mean_top1, held_out/nll$",
    ),
    "a teacher without a head": (
        {"teacher": HEADLESS, "method": [MSE]},
        {"space": {"weight": [1, 2]}, "teacher": "online"},
        "held_out/top1 is not .* take one of held_out/knn_top1, held_out/neighbour_agreement$",
    ),
    "a teacher without a head in a cache": (
        {"teacher": HEADLESS, "method": [MSE]},
        {"space": {"weight": [1, 2]}, "metric": "held_out/neighbour_agreement"},
        "held_out/neighbour_agreement is not .* take one of held_out/knn_top1$",
    ),
    "some points alone": (
        {},
        {"space": {"method": [KD, [MSE]]}, "metric": "held_out/f1"},
        "held_out/f1 is not measured in a run with method .* nothing is in all runs: have each teach its classifier",
    ),
}


@pytest.mark.parametrize("case", NOT_MEASURED)
def test_a_metric_that_no_run_measures_is_refused(case, recipes):
    """It was accepted, and the sweep ended at its first validation, with a traceback."""
    fields, search, message = NOT_MEASURED[case]
    with pytest.raises(Refused, match=f"^metric: {message}"):
        planned(recipes(**fields), **search)


def test_a_sweep_of_a_teacher_without_a_head_has_a_metric(recipes):
    """It is compared by neighbours of features, which no sweep could name."""
    recipe = recipes(teacher=HEADLESS, method=[MSE])
    assert planned(recipe, space={"weight": [1, 2]}, metric="held_out/knn_top1").problems == {}
    metric = "held_out/neighbour_agreement"
    assert planned(recipe, space={"weight": [1, 2]}, metric=metric, teacher="online").problems == {}


def test_images_without_labels_are_compared_by_agreement(recipes, image_folder, tmp_path):
    root = without_training_labels(image_folder, tmp_path / "images")
    recipe = recipes(data__root=str(root), method=KD[1:])
    with pytest.raises(Refused, match=r"held_out/top1 is not .* take one of held_out/agreement, held_out/kl$"):
        planned(recipe)
    assert planned(recipe, metric="held_out/kl").problems == {}


def test_runs_that_nothing_compares_are_refused(recipes, image_folder, tmp_path):
    """A teacher without a head whose features lie in a cache, and no labels: neighbours cannot be compared."""
    root = without_training_labels(image_folder, tmp_path / "images")
    recipe = recipes(data__root=str(root), teacher=HEADLESS, method=[MSE])
    metric, space = "held_out/neighbour_agreement", {"weight": [1, 2]}
    with pytest.raises(Refused, match=f"^metric: {metric} is not .*; nothing is in all runs: .* set teacher: online"):
        planned(recipe, metric=metric, space=space)
    assert planned(recipe, metric=metric, space=space, teacher="online").problems == {}
