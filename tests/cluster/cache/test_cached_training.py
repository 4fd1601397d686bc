"""Training from a cache is training with the teacher, for every kind of method."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from cluster.assembly import assemble
from cluster.cache.job import build
from cluster.cache.verify import verify
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.rehearsal import rehearse_run
from cluster.training.launch import check_run, launch
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from tests.cluster.cache.cached import CPU, EXACT, METHODS, losses
from tests.conftest import write_image_folder

MIXED = {
    "views__mixup_alpha": 0.4,
    "views__cutmix_alpha": 1.0,
    "views__erase_probability": 0.25,
    "views__auto_augment": "rand-m9-mstd0.5-inc1",
    "views__repeats": 2,
}


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
