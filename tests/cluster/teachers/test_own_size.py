"""A teacher that sees the same views in a size of its own: who looks at it, or at its student, shows each its own."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cluster.assembly import assemble
from cluster.cache.builder import Builder
from cluster.cache.outlook import Outlook, Speeds, outlook
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.teachers.running import SINGLE, RunTeachers
from cluster.training.teacher_causes import likelier_cause
from cluster.training.teacher_check import likely_causes
from kdcore.errors import Refused
from kdcore.online_teacher import OnlineTeacher
from ops.layers import score

CPU = torch.device("cpu")
VIT = {"model": "test_vit", "args": {"img_size": 16, "patch_size": 8}}
KD = [{"term": "kd", "weight": 1.0, "temperature": 4.0}]


@pytest.fixture
def config(recipe, tmp_path):
    """A function that gives the recipe of a ViT of 16 pixels and a teacher of 32."""

    def make(**changes):
        own = {
            "student": VIT,
            "teacher": {"model": "cifar_resnet8", "random": True, "image_size": 32},
            "method": KD,
            "cache": {"dir": str(tmp_path / "cache"), "batch_size": 4},
            "data__loader": "reference",
            "views__num_views": 1,
            "scaling__num_workers": 0,
        }
        return parse(recipe(**own | changes))

    return make


def test_the_student_is_measured_on_its_own_images(config):
    """It was shown the teacher's: a ViT of another size ended `cache plan` in a traceback."""
    seen = outlook(config(), CPU, 0.0)
    assert seen.speeds.teacher_loader is not None
    assert outlook(config(teacher__image_size=None), CPU, 0.0).speeds.teacher_loader is None


def test_both_sizes_are_loaded_beside_the_student_alone():
    seen = Outlook(Speeds(1000.0, 100.0, 400.0, False, teacher_loader=50.0), 1000, 10, 20, 1, 64)
    assert seen.online_seconds == pytest.approx(1000 * (1 / 1000 + 1 / 50 + 1 / 100 + 1 / 400))
    assert seen.cached_seconds == pytest.approx(1000 * (1 / 1000 + 1 / 400))
    assert seen.build_seconds == pytest.approx(10_000 * (1 / 50 + 1 / 100))


def test_a_cache_for_simkd_leaves_the_student_its_size(config):
    simkd = {"student": VIT | {"classifier": "reused"}, "method": [{"term": "simkd", "weight": 1.0}]}
    builder = Builder(config(**simkd), CPU)
    assert builder.students_run.config.views.size == 16
    assert builder.config.views.size == builder.run.plan.policy.size == 32
    assert builder.plan().identity["views"]["size"] == [32, 32]


def test_layers_are_scored_in_their_own_sizes(config):
    found = score(config(cache=None), num_images=8)
    assert found.student_taps
    assert found.quality


class AtItsSize(nn.Module):
    """Answers with class 0 where the images have its size, and takes no others."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.3,) * 3, "input_size": (3, 32, 32)}

    def forward(self, images):
        assert images.shape[-1] == 32
        return nn.functional.one_hot(torch.zeros(len(images), dtype=torch.int64), 3).float()


def test_a_bad_teacher_is_tried_at_its_own_size(config):
    """The student's size was taken for the run's own, and the teacher's for the cause."""
    run = assemble(config(cache=None), Rank(0, 1, CPU))
    run = replace(run, teachers=RunTeachers({SINGLE: OnlineTeacher(AtItsSize(), run.teachers.single.needs)}))
    assert "tried in vain" in likelier_cause(run, "val")
    from_a_file = {"model": "cifar_resnet8", "checkpoint": "weights.pt", "image_size": 32}
    assert "another size of images than 32 pixels" in likely_causes(config(teacher=from_a_file))


@pytest.mark.parametrize(
    ("views", "shown"),
    [({"size": [16, 32]}, "16 x 32"), ({"size": 16, "sizes": [[1, [24, 16]]]}, "24 x 16")],
)
def test_a_square_is_no_view_of_another_shape(config, views, shown):
    """The teacher was shown another part of the picture, without a word."""
    with pytest.raises(Refused, match=f"teacher.image_size=32 is a square, but views of {shown} pixels"):
        config(views={"crop": "resized", "num_views": 1, **views})
