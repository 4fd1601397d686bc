"""Which runs share a cache, and what it holds for all of them."""

import json
from pathlib import Path

import pytest

from cluster.cache.job import build
from cluster.sweep.caches import Caches, teacher_needs
from cluster.sweep.journal import Trial
from cluster.sweep.space import run_config
from kdcore.errors import Refused
from ops.sweep.command import plan_rows
from pipelines.cache.local import publish
from tests.cluster.cache.test_folder_of_a_teacher import write_teacher
from tests.cluster.sweep.conftest import KD, MSE, planned


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
    needs = teacher_needs([recipes(method=[*KD, MSE]), recipes(method=[{"term": "simkd", "weight": 1.0}])])
    assert needs.teacher_logits
    assert needs.teacher_taps == {"layer2", "forward_features"}
    assert needs.student_taps == frozenset()


def test_caches_of_a_search_that_goes_on(recipes):
    """TPE makes up its points: one whose views were not planned for is refused by itself."""
    space = {"temperature": {"uniform": [1, 8]}, "views.flip_probability": [0.5]}
    plan = planned(recipes(), space=space, search="tpe", num_points=4)
    (build,) = plan.caches.builds()
    assert build.needs.teacher_logits
    with pytest.raises(Refused, match="its views or teacher differ from those in this sweep's caches"):
        Caches(plan.sweep, [build]).reading(run_config(plan.base, {"views.flip_probability": 0.1}, "r", 0))


def test_a_cache_holds_the_views_of_the_longest_run(recipes):
    plan = planned(recipes(), space={"train.epochs": [3, 12]})
    assert [build.views.num_views for build in plan.caches.builds()] == [12]
    assert [plan.config(Trial("t", i, point, 0)).views.num_views for i, point in enumerate(plan.examples)] == [9, 12]


def test_a_cache_of_rare_classes_has_a_given_number_of_views(recipes):
    """How often an image is shown depends on its class: the epochs do not say how many views that is."""
    with pytest.raises(Refused, match=r"data.sampling=classes shows rare images .* set views.num_views"):
        planned(recipes(data__sampling="classes"))
    ((point, _),) = planned(recipes(), space={"data.sampling": ["images", "sqrt"]}).problems.items()
    assert point == "data.sampling sqrt"


def test_a_finished_cache_in_an_object_store_is_there_already(recipes, tmp_path):
    """As for one run: it was to be built, which no store allows."""
    config = recipes(cache={"dir": str(tmp_path / "built")}, views__num_views=2)
    build(config)
    publish(tmp_path / "built", location := (tmp_path / "published").as_uri())
    cache = {"dir": location, "copies_dir": str(tmp_path / "copies")}
    plan = planned(recipes(cache=cache, views__num_views=2))
    assert [one.cache.dir for one in plan.caches.builds()] == [location]
    assert plan.caches.missing() == []


@pytest.mark.parametrize(
    "student",
    [
        {"model": "cifar_resnet8", "checkpoint": "FOLDER/model.safetensors", "new_head": True},
        {
            "model": "cifar_resnet8",
            "checkpoint": "FOLDER/model.safetensors",
            "class_indices": "FOLDER/classes.json",
            "args": {"num_classes": 3},
        },
        {"model": "local-dir:FOLDER"},
    ],
    ids=["new_head", "class_indices", "folder"],
)
def test_a_student_that_starts_from_files_may_read_a_cache(recipes, tmp_path, student):
    """What the cache's images are normalised by was asked of a network without its file, by a recipe with it."""
    write_teacher(tmp_path / "pretrained", seed=3)
    (tmp_path / "pretrained" / "classes.json").write_text('{"class0": 0, "class1": 1, "class2": 2}')
    fields = json.loads(json.dumps(student).replace("FOLDER", str(tmp_path / "pretrained")))
    (build,) = planned(recipes(student=fields)).caches.builds()
    assert build.needs.teacher_logits


def test_a_finished_cache_needs_no_weights_of_its_teacher(recipes, tmp_path):
    """As for one run: every point was refused for a file that nothing reads."""
    fields = {"cache": {"dir": str(tmp_path / "built")}, "views__num_views": 2}
    config = recipes(**fields)
    build(config)
    Path(config.teacher.checkpoint).unlink()
    plan = planned(config)
    assert plan.caches.missing() == []
    assert plan.config(Trial("t", 0, plan.examples[0], 0)).teacher.source == "cache"
    assert ["cache", "logits in 2 views, there already"] in plan_rows(plan, 1, None)
    with pytest.raises(Refused, match="no such file, named by the model"):
        planned(config, teacher="online")
