"""Training from a cache is training with the teacher, for every kind of method; whatever does not fit is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import cluster.stored_teacher
from cluster.assembly import assemble
from cluster.cache.job import build
from cluster.cache.verify import verify
from cluster.config import RunConfig
from cluster.rank import Rank
from cluster.recipe import parse
from cluster.rehearsal import rehearse_run
from cluster.stored_teacher import head_facts, head_of
from cluster.training.launch import check_run, launch
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from kdcore.reused import ReusedHead, TeacherHead
from pipelines.cache.building import Building
from pipelines.cache.manifest import load_manifest
from pipelines.cache.store import map_shard, write_shard
from tests.conftest import write_image_folder

CPU = torch.device("cpu")
PAIRS = [{"student": "layer2", "teacher": "layer2"}]
MIXED = {
    "views__mixup_alpha": 0.4,
    "views__cutmix_alpha": 1.0,
    "views__erase_probability": 0.25,
    "views__auto_augment": "rand-m9-mstd0.5-inc1",
    "views__repeats": 2,
}
EXACT = {"cache__dtype": "float32", "cache__features": "float32"}
KD = [{"term": "ce", "weight": 0.5}, {"term": "kd", "weight": 0.5, "temperature": 4.0}]
METHODS = {
    "kd": {"method": KD},
    "wttm": {"method": [{"term": "ce", "weight": 1.0}, {"term": "wttm", "weight": 1.6, "gamma": 0.8}]},
    "simkd": {"method": [{"term": "simkd", "weight": 1.0}], "student__classifier": "reused"},
    "feature_only": {
        "method": [{"term": "ce", "weight": 1.0}, {"term": "feature_only", "weight": 1.0, "pairs": PAIRS}]
    },
    "nd": {"method": [*KD, {"term": "nd", "weight": 1.0}]},
    "wkd": {
        "method": [
            {"term": "ce", "weight": 1.0},
            {"term": "wkd_l", "weight": 10.0, "temperature": 2.0, "decay_from_epoch": 1},
            {"term": "wkd_f", "weight": 0.1},
        ]
    },
    "kdiga": {"method": [{"term": "ce", "weight": 1.0}, {"term": "kdiga", "weight": 1.0}]},
}


@pytest.fixture
def teacher(tmp_path) -> dict[str, Any]:
    torch.manual_seed(7)
    model = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    with torch.no_grad():
        model.get_classifier().weight.mul_(8)  # answers that differ from picture to picture
    path = tmp_path / "teacher.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return {"model": "cifar_resnet8", "checkpoint": str(path)}


@pytest.fixture
def recipes(recipe, teacher, tmp_path) -> Callable[..., RunConfig]:
    """A function that gives a recipe with a cache: what it builds, or with cached=True what reads it."""

    def make(cached: bool = False, **changes: Any) -> RunConfig:
        own = {
            "teacher": teacher | {"source": "cache" if cached else "online"},
            "views__num_views": 2,
            "cache": {"dir": str(tmp_path / "cache"), "batch_size": 4, "rows_per_shard": 20},
            "scaling__num_workers": 0,
            "method": KD,
        }
        return parse(recipe(**own | changes))

    return make


def losses(config: RunConfig, learn: bool = True) -> list[float]:
    """Of every micro-batch of a run; without learning, the student stays as it is."""
    run = assemble(config, Rank(0, 1, CPU))
    distiller = run.distiller().train()
    optimizer = torch.optim.SGD(distiller.parameters(), 0.05 if learn else 0.0)
    found = []
    for batch in run.train_batches(0):
        torch.manual_seed(0)  # dropout
        output = distiller(batch)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(output.loss.detach()))
    return found


def test_a_teacher_sees_the_same_views_in_its_own_size(recipes, teacher):
    """Its answers are those to the larger images, and one cache serves students of every size."""
    size = {"views": {"size": 16, "crop": "resized", "num_views": 2}, "teacher": teacher | {"source": "cache"}}
    large = recipes(views=size["views"] | {"size": 32}, teacher=teacher)
    seen = assemble(large, Rank(0, 1, CPU))
    small = {"views": size["views"], "teacher": size["teacher"] | {"image_size": 32}}
    build(recipes(**small, **EXACT))
    run = assemble(recipes(**small, **EXACT), Rank(0, 1, CPU))
    batches, theirs = list(run.train_batches(0)), list(seen.train_batches(0))
    assert batches[0].images.shape[-2:] == (16, 16)
    for batch, larger in zip(batches, theirs, strict=True):
        assert torch.equal(batch.sample_ids, larger.sample_ids)
        expected = seen.teachers.single(larger).logits
        assert torch.allclose(batch.targets.logits, expected, atol=1e-4 * float(expected.abs().max()))
    metrics, _ = run.teacher_on("val", run.evaluation_loader("val"))
    larger_metrics, _ = seen.teacher_on("val", seen.evaluation_loader("val"))
    assert metrics == pytest.approx(larger_metrics, rel=1e-4)
    assert all(agreement.wrong == 0 for agreement in verify(recipes(**small, **EXACT), 8, CPU))
    beside = {"views": size["views"], "teacher": teacher | {"image_size": 32}}
    online = assemble(recipes(**beside), Rank(0, 1, CPU))
    for batch, stored, larger in zip(online.train_batches(0), batches, theirs, strict=True):
        assert torch.equal(batch.images, stored.images)
        assert torch.equal(batch.teacher_images, larger.images)
    assert online.teacher_on("val", online.evaluation_loader("val"))[0] == pytest.approx(larger_metrics, rel=1e-6)
    assert losses(recipes(**beside)) == pytest.approx(losses(recipes(**small, **EXACT)), rel=1e-4)
    rehearse_run(assemble(recipes(**beside), Rank(0, 1, CPU)))
    another = small | {"views": size["views"] | {"size": 24}}
    assert assemble(recipes(**another, **EXACT), Rank(0, 1, CPU)).teachers.stored
    with pytest.raises(Refused, match=r"views\.size"):
        assemble(recipes(views=size["views"], teacher=size["teacher"], **EXACT), Rank(0, 1, CPU))


def test_no_other_view_in_another_size(recipes, teacher):
    """What counts pixels is refused."""
    own = {"teacher": teacher | {"source": "cache", "image_size": 32}}
    for field, value in (("erase_probability", 0.5), ("cutmix_alpha", 1.0), ("auto_augment", "ra-2-9")):
        with pytest.raises(Refused, match=rf"teacher.image_size=32, but views.{field} counts pixels of views.size"):
            recipes(views={"size": 16, "num_views": 2, field: value}, **own)
    with pytest.raises(Refused, match=r"views.padding counts pixels"):
        recipes(views={"size": 16, "num_views": 2, "crop": "padded"}, **own)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_equal_losses_step_by_step(recipes, method, mixed):
    """float32 columns: the run with the teacher, over both views, to the last digits."""
    if mixed and method in ("nd", "wkd", "kdiga"):
        pytest.skip("has no meaning for mixed images, or is slow")
    changes = METHODS[method] | EXACT | (MIXED if mixed else {})
    build(recipes(**changes))
    online, cached = losses(recipes(**changes)), losses(recipes(cached=True, **changes))
    assert len(online) == 2 * 6 * 2  # epochs x steps x micro-batches
    assert cached == pytest.approx(online, rel=1e-6)
    assert online[0] != online[-1]


SIZES = {"views__sizes": [[1, 24]], "views__num_views": 2}


@pytest.mark.parametrize("method", ["kd", "feature_only"])
def test_sizes_that_change_by_epoch(recipes, method):
    """The second epoch has 24 pixels a side; maps would be of two shapes, and are not stored."""
    changes = METHODS[method] | EXACT | SIZES
    shown = {batch.images.shape[2] for batch in assemble(recipes(**changes), Rank(0, 1, CPU)).train_batches(0)}
    assert shown == {16, 24}
    online = losses(recipes(**changes))
    assert len(online) == 24
    if method == "feature_only":
        with pytest.raises(Refused, match=r"at 24 x 24 pixels features.layer2 has a different shape than at views"):
            build(recipes(**changes))
        return
    build(recipes(**changes))
    assert losses(recipes(cached=True, **changes)) == pytest.approx(online, rel=1e-6)


def test_a_student_of_one_size_is_refused(recipes):
    student = {"model": "vit_tiny_patch16_224", "args": {"img_size": 16, "patch_size": 4, "depth": 1}}
    with pytest.raises(Refused, match="cannot take 2 images of 24x24 at a time"):
        rehearse_run(assemble(recipes(student=student, **SIZES), Rank(0, 1, CPU)))
    rehearse_run(assemble(recipes(**SIZES), Rank(0, 1, CPU)))


@pytest.mark.parametrize(("coding", "bound"), [("float16", 2e-3), ("int8", 2e-2)])
@pytest.mark.parametrize("method", ["kd", "wttm", "simkd", "feature_only"])
def test_losses_within_the_codings_bound(recipes, method, coding, bound):
    changes = METHODS[method] | {"cache__features": coding}
    build(recipes(**changes))
    online, cached = losses(recipes(**changes), learn=False), losses(recipes(cached=True, **changes), learn=False)
    assert cached == pytest.approx(online, rel=bound)
    assert cached != online


def test_sparse_logits_from_build_to_training(recipes, tmp_path):
    """40 classes in 32 of 80 bytes: the error is measured on views kept back, told, and is what training sees."""
    root = write_image_folder(tmp_path / "many", train=4, val=1, classes=40)
    torch.manual_seed(3)
    model = build_model(ModelConfig(model="cifar_resnet8"), [f"class{label}" for label in range(40)])
    with torch.no_grad():
        model.get_classifier().weight.mul_(20)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "forty.safetensors")
    changes = {"data__root": str(root), "cache__logits": "sparse", "cache__sparse_bytes": 32, "cache__sparse_top": 4}
    changes |= {"train__epochs": 1}

    def config(cached: bool) -> RunConfig:
        made = recipes(cached=cached, **changes)
        own = made.teacher.model_copy(update={"checkpoint": str(tmp_path / "forty.safetensors")})
        return made.model_copy(update={"teacher": own})

    error = build(config(cached=False)).error
    assert error["rows"] == 160 // 9
    assert 0 < error["nats at temperature 4"] < 0.01
    online, cached = losses(config(cached=False), learn=False), losses(config(cached=True), learn=False)
    assert cached == pytest.approx(online, rel=0.05)
    assert [one.wrong for one in verify(config(cached=False), 1000, CPU)] == [0, 0]


def test_the_first_weights_do_not_depend_on_the_source(recipes):
    changes = METHODS["simkd"] | EXACT
    build(recipes(**changes))
    online, cached = (assemble(recipes(cached=c, **changes), Rank(0, 1, CPU)).student for c in (False, True))
    for name, tensor in online.state_dict().items():
        assert torch.equal(tensor, cached.state_dict()[name]), name


def test_validation_against_the_stored_teacher(recipes):
    """The teacher's accuracy on the validation images, and its logits on them."""
    build(recipes(**EXACT))
    online, cached = (assemble(recipes(cached=c, **EXACT), Rank(0, 1, CPU)) for c in (False, True))
    metrics, logits = online.teacher_on("val", online.evaluation_loader("val"))
    stored_metrics, stored_logits = cached.teacher_on("val", cached.evaluation_loader("val"))
    assert stored_metrics == pytest.approx(metrics, rel=1e-5)
    torch.testing.assert_close(stored_logits, logits)


def test_a_whole_run_without_the_teachers_weights(recipes, teacher):
    """Also its agreement with the teacher, and a second run of another seed over the same views."""
    build(recipes())
    Path(teacher["checkpoint"]).unlink()
    first = launch(recipes(cached=True))
    assert 0 <= first.metrics["val/agreement"] <= 1
    assert "val/teacher_top1" in first.metrics
    second = launch(recipes(cached=True, name="second", seed=5, view_seed=0))
    assert second.metrics["train/loss"] != first.metrics["train/loss"]
    with pytest.raises(Refused, match="no such file"):
        check_run(recipes())


def test_fewer_views_than_there_are(recipes):
    build(recipes())
    assert losses(recipes(cached=True, views__num_views=1)) == pytest.approx(
        losses(recipes(views__num_views=1)), rel=0.01
    )
    with pytest.raises(Refused, match=r"shows 3 views, the cache .* holds 2; set views.num_views=2, or"):
        check_run(recipes(cached=True, views__num_views=3))


def change_weights(teacher: dict[str, Any]) -> None:
    tensors = safetensors.torch.load_file(teacher["checkpoint"])
    tensors["conv1.weight"][0, 0, 0, 0] += 1e-3
    safetensors.torch.save_file(tensors, teacher["checkpoint"])


DIFFERENT = {
    "views.scale": {"views__scale": [0.4, 1.0]},
    "views.seed": {"seed": 1},
    "views.mixup_alpha": {"views__mixup_alpha": 0.2},
    "evaluation.crop_pct": {"data__crop_pct": 1.0},
    "preprocessing.mean": {"data__mean": [0.5, 0.5, 0.5], "data__std": [0.3, 0.3, 0.3]},
    "preprocessing.decoder": {"data__loader": "reference"},
    "teacher.model": {"teacher__model": "cifar_resnet14", "teacher__checkpoint": None},
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
    monkeypatch.setattr(cluster.stored_teacher, "pixel_versions", lambda: {"torch": "99.0"})
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


@pytest.mark.parametrize("model", ["cifar_resnet8", "vit_tiny_patch16_224", "convnext_atto"])
def test_a_head_survives_being_stored(model):
    """Of a convolutional network, of one with tokens, and of one with a norm before the classifier."""
    torch.manual_seed(0)
    args = {"img_size": 32} if model.startswith("vit") else {}
    network = build_model(ModelConfig(model=model, args=args), ("a", "b", "c")).eval()
    head = TeacherHead.of(network, (32, 32))
    facts, tensors = head_facts(head)
    tensors |= {"classifier.weight": head.classifier.weight, "classifier.bias": head.classifier.bias}
    again = head_of(json.loads(json.dumps(facts)), tensors)
    assert (again.layout, again.pool, again.signed) == (head.layout, head.pool, head.signed)
    features = network.forward_features(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(ReusedHead(again)(features), network.forward_head(features))


def test_verify_recomputes_rows(recipes, teacher):
    """All agree; a row that was written wrongly, with its checksums in order, is found."""
    config = recipes(cache__features="int8", method=METHODS["feature_only"]["method"] + KD[1:])
    build(config)
    found = {(one.part, one.column): (one.rows, one.wrong) for one in verify(config, 1000, CPU)}
    assert found == {
        ("train", "features.layer2"): (96, 0),
        ("train", "logits"): (96, 0),
        ("val", "logits"): (15, 0),
    }
    write_wrongly(Path(config.cache.dir))
    assert [one.wrong for one in verify(config, 1000, CPU)] == [1, 0, 0]
    change_weights(teacher)
    with pytest.raises(Refused, match=r"teacher.weights"):
        verify(config, 4, CPU)


def write_wrongly(directory: Path) -> None:
    """One logit of one row of the second shard, with all checksums in order."""
    building = Building(directory, load_manifest(directory).plan)
    unit = building.plan.units()[1]
    fields = {name: spec for c in building.plan.parts[unit.part].columns for name, spec in c.fields().items()}
    mapped = map_shard(directory, building.shards[unit], fields)
    rows = {name: values.copy() for name, values in mapped.items()}
    rows["logits"][3, 0] += 0.5
    building.shards[unit] = write_shard(directory, unit, rows, building.key)
    building.finish()
