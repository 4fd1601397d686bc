"""What networks on a GPU do, shown without one: by tensors that have a device and no values."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cluster.precision import precision
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.teachers.running import RunTeachers
from cluster.teachers.stored import StoredTeacher
from kdcore.batch import Batch, TeacherOutputs
from kdcore.ensemble import Combination
from kdcore.online_teacher import OnlineTeacher

CUDA = torch.device("cuda")
IMAGES, CLASSES = 8, 5


class Source:
    classes = tuple("abcde")

    def __init__(self, multi_label: bool) -> None:
        self.multi_label = multi_label

    def __len__(self) -> int:
        return IMAGES

    def targets(self, ids):
        shape = (len(ids), CLASSES) if self.multi_label else (len(ids),)
        return np.zeros(shape, dtype=np.int64)


class Loader:
    max_batch = 4

    def __init__(self, source: Source) -> None:
        self.source = source

    def load(self, requests):
        for request in requests:
            num = len(request.sample_ids)
            labels = torch.from_numpy(self.source.targets(request.sample_ids)).to(CUDA)
            yield Batch(torch.zeros(num, 3, 4, 4, device=CUDA), labels, torch.arange(num), torch.zeros(num))


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_average_of_several_teachers_is_judged_on_the_gpu(monkeypatch, multi_label):
    """It added logits of the host's memory to counts on the device: no run with `teachers` passed its first line."""
    seen = []

    def over_ranks(counts, num_images, rank):
        seen.append([part.device.type for part in (counts.parts if multi_label else [counts.totals])])
        return {}

    monkeypatch.setattr("cluster.passes.over_ranks", over_ranks)
    monkeypatch.setattr("cluster.teachers.running.over_ranks", over_ranks)
    source = Source(multi_label)
    weights = {"online": lambda epoch: 1.0, "stored": lambda epoch: 1.0}
    with FakeTensorMode(allow_non_fake_inputs=True):

        class Online(OnlineTeacher):
            has_head = True

            def __init__(self):
                """It has no network."""

            def __call__(self, batch):
                return TeacherOutputs(logits=torch.zeros(len(batch), CLASSES, device=CUDA))

        class Stored(StoredTeacher):
            has_head = True

            def __init__(self):
                """It has no cache."""

            def evaluation(self, *_):
                return {}, torch.zeros(IMAGES, CLASSES)

        teachers = RunTeachers({"online": Online(), "stored": Stored()}, judged=Combination(weights))
        found = teachers.evaluation("val", source, Loader(source), Rank(0, 1, CUDA))
    assert found is not None
    assert found[1].device.type == "cpu"
    assert [set(devices) for devices in seen] == [{"cuda"}, {"cuda"}]  # of the one beside the student, of the average


def test_emulated_bfloat16_is_none(recipe, monkeypatch):
    """Before Ampere torch computes bfloat16 in float32 and converts: slower, and less exact."""
    auto, asked = parse(recipe(train__precision="auto")), parse(recipe(train__precision="bfloat16"))
    for in_hardware in (False, True):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, it=in_hardware: it or including_emulation
        )
        assert precision(auto, CUDA) == (torch.bfloat16 if in_hardware else torch.float32)
        assert precision(asked, CUDA) == torch.bfloat16
