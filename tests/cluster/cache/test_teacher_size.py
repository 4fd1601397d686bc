"""A teacher that looks at the views in a size of its own answers the same from a cache."""

import pytest
import torch

from cluster.assembly import assemble
from cluster.cache.job import build
from cluster.cache.verify import verify
from cluster.rank import Rank
from cluster.rehearsal import rehearse_run
from kdcore.errors import Refused
from tests.cluster.cache.cached import CPU, EXACT, losses


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
