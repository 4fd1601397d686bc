"""A cache that does not fit a recipe is refused by what differs, or by what it lacks."""

import pytest
import torch

import cluster.teachers.stored
from cluster.cache.job import build
from cluster.cache.verify import verify
from cluster.training.launch import check_run
from kdcore.errors import Refused
from tests.cluster.cache.cached import METHODS, change_weights
from tests.conftest import write_image_folder

CIFAR_MEAN = [0.5071, 0.4865, 0.4409]  # that of the student's network, which is taken where none is given
DIFFERENT = {
    "views.scale": {"views__scale": [0.4, 1.0]},
    "views.seed": {"seed": 1},
    "views.mixup_alpha": {"views__mixup_alpha": 0.2},
    "evaluation.crop_pct": {"data__crop_pct": 1.0},
    "preprocessing.mean": {"data__mean": [0.5, 0.5, 0.5], "data__std": [0.3, 0.3, 0.3]},
    "preprocessing.std": {"data__mean": CIFAR_MEAN, "data__std": [0.3, 0.3, 0.3]},
    "preprocessing.decoder": {"data__loader": "reference"},
    "teacher.model": {"teacher__model": "cifar_resnet14", "teacher__checkpoint": None},
    "teacher.args": {"teacher__args": {"widths": [4, 4, 8, 16]}, "teacher__checkpoint": None},
    "data.train": {"data__held_out": 0.25},
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_recipe_that_differs_is_refused_by_name(recipes, name):
    build(recipes())
    with pytest.raises(Refused, match=rf"belongs to something else: {name} is .* there and .* here"):
        check_run(recipes(cached=True, **DIFFERENT[name]))


def test_other_weights_are_refused(recipes, teacher):
    build(recipes())
    check_run(recipes(cached=True))
    change_weights(teacher)
    with pytest.raises(Refused, match=r"belongs to something else: teacher.weights is"):
        check_run(recipes(cached=True))


def test_a_changed_image_is_refused(recipes, tmp_path):
    """Of the same size in pixels and bytes."""
    root = write_image_folder(tmp_path / "own")
    build(recipes(data__root=str(root)))
    victim = root / "train" / "class1" / "003.png"
    content = bytearray(victim.read_bytes())
    other = (root / "train" / "class1" / "004.png").read_bytes()
    victim.write_bytes(other)
    assert bytes(content) != other
    with pytest.raises(Refused, match=r"belongs to something else: data.train is"):
        check_run(recipes(cached=True, data__root=str(root)))


def test_other_library_versions_can_be_trusted(recipes, monkeypatch):
    build(recipes())
    monkeypatch.setattr(cluster.teachers.stored, "pixel_versions", lambda: {"torch": "99.0"})
    with pytest.raises(Refused, match=r"versions.torch is .* there and '99.0' here.*cache.trust=true"):
        check_run(recipes(cached=True))
    check_run(recipes(cached=True, cache__trust=True))


LACKING = {
    "a tap": ({"method": METHODS["feature_only"]["method"]}, r"holds logits, but the recipe reads features.layer2"),
    "the head": ({"student__classifier": "reused"}, r"does not hold the teacher's head"),
    "class means": ({"method": METHODS["nd"]["method"]}, r"features.classifier_input"),
    "a gradient": ({"method": METHODS["kdiga"]["method"]}, r"input_gradient"),
}


@pytest.mark.parametrize("case", LACKING)
def test_what_the_cache_lacks_is_named(recipes, case):
    changes, message = LACKING[case]
    build(recipes())
    with pytest.raises(Refused, match=message):
        check_run(recipes(cached=True, **changes))


def test_one_cache_for_several_recipes(recipes):
    """With the taps and the head of all of them in it."""
    build(recipes(cache__taps=["layer2", "forward_features"], cache__head=True))
    for method in ("kd", "wttm", "simkd", "feature_only"):
        check_run(recipes(cached=True, **METHODS[method]))


def test_recipes_that_can_have_no_cache(recipes):
    with pytest.raises(Refused, match=r"views.num_views is open; set it"):
        recipes(cached=True, views__num_views=None)
    with pytest.raises(Refused, match=r"views.num_views is open; set it"):
        build(recipes(views__num_views=None))
    with pytest.raises(Refused, match=r"the recipe has no cache; add a 'cache:' section"):
        recipes(cached=True, cache=None)
    alone = recipes(teacher=None, cache=None, views__num_views=None, method=[{"term": "ce", "weight": 1.0}])
    for ask in (build, lambda recipe: recipe.cache_recipes, lambda recipe: verify(recipe, 1, torch.device("cpu"))):
        with pytest.raises(Refused, match=r"the recipe has no teacher; name one"):
            ask(alone)
    with pytest.raises(Refused, match=r"reads no outputs of a teacher"):
        build(recipes(method=[{"term": "ce", "weight": 1.0}]))
    with pytest.raises(Refused, match=r"a cache is built in a folder"):
        build(recipes(cache__dir="s3://bucket/cache"))
