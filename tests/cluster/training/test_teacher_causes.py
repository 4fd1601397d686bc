"""Of a teacher at chance, the normalisation, the order of its colours and its size are tried: deit#130, timm#222."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cluster.assembly import assemble
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.teachers.running import SINGLE, RunTeachers
from cluster.training.teacher_causes import likelier_cause
from kdcore.online_teacher import OnlineTeacher
from tests.conftest import small_recipe, write_image_folder

KD = {"teacher": {"model": "cifar_resnet8", "random": True}, "method": [{"term": "kd", "weight": 1, "temperature": 4}]}


class OfMeans(nn.Module):
    """Answers by the mean of each colour: `write_image_folder` makes that of class k brighter by 100 of 255."""

    num_classes = 3

    def __init__(self, read, size=16):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.read = read
        self.size = size
        self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.3,) * 3, "input_size": (3, size, size)}

    def forward_features(self, images):
        return images

    def forward_head(self, images):
        return self.read(images)

    def forward(self, images):
        return self.read(images)


def means(images):
    return images.mean(dim=(2, 3))


def near_a_quarter(images):
    """The bright colour's mean is 0.25 with mean and std 0.5, and something else with others."""
    return ((means(images) - 0.25).abs() < 0.08).float()


READERS = {
    "inception": (OfMeans(near_a_quarter), "with mean 0.5 and std 0.5 of red it is right on 100.00%, not 33.33%"),
    "blue first": (OfMeans(lambda images: means(images).flip(1)), "with red and blue exchanged it is right on 100.00%"),
    "larger": (
        OfMeans(lambda x: means(x) * (1 if x.shape[-1] == 24 else 0), size=24),
        "at 24 pixels it is right on 100.00%, not 33.33%; set teacher.image_size=24, or leave it out",
    ),
    "nothing": (OfMeans(lambda images: torch.zeros(len(images), 3)), "tried in vain on 60 of them: with mean 0.485"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causes")
    root = write_image_folder(folder / "images", val=20)
    changes = {"scaling__num_workers": 0, "data__loader": "reference", **KD}
    return assemble(parse(small_recipe(root, folder / "out", **changes)), Rank(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("name", READERS)
def test_the_cause_is_named(run, name):
    model, sentence = READERS[name]
    teacher = OnlineTeacher(model, run.teachers.single.needs)
    found = likelier_cause(replace(run, teachers=RunTeachers({SINGLE: teacher})), "val")
    assert sentence in found
    if name == "inception":
        assert "set teacher.args.pretrained_cfg_overlay={mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}" in found


def test_the_remedy_works(run):
    """What teacher.args.pretrained_cfg_overlay says is what the teacher is shown."""
    overlay = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    data = run.config.model_dump(mode="json")
    data["teacher"]["args"] = {"pretrained_cfg_overlay": overlay}
    other = assemble(parse(data), run.rank)
    batch = next(other.train_batches(0))
    pixels = batch.images * torch.tensor(other.statistics[1]).view(3, 1, 1) + torch.tensor(other.statistics[0]).view(
        3, 1, 1
    )
    assert torch.allclose(other.teachers.single.normalised(batch.images), (pixels - 0.5) / 0.5, atol=1e-5)
