"""What a step asks of a device: how many operations it launches, and how often the host waits to read a number.

Counted on a CPU by torch's dispatch; a GPU is sent the same operations, and each read would make the host wait for it.
"""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from cluster.assembly import assemble
from cluster.cache.builder import Builder
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.training.loop import TrainingLoop, new_state
from kdcore.metrics import Counts

CPU = torch.device("cpu")
STUDENT = {"model": "cifar_resnet8", "args": {"widths": [8, 8, 8, 16]}}  # channels-last on every CPU
TEACHER = STUDENT | {"random": True}
LAST = [{"student": "layer3", "teacher": "layer3"}]
CE = {"term": "ce", "weight": 1.0}
METHODS: dict[str, list[dict[str, Any]]] = {
    "ce": [CE],
    "kd": [CE, {"term": "kd", "weight": 1.0, "temperature": 4.0}],
    "wttm": [CE, {"term": "wttm", "weight": 1.0, "gamma": 0.5}],
    "feature_only": [CE, {"term": "feature_only", "weight": 1.0, "pairs": LAST}],
    "crd": [CE, {"term": "crd", "weight": 0.8, "num_negatives": 16}],
}
# Operations that compute of a whole step with the networks above and SGD; more is slower where launching them is what
# takes the time, on a GPU with small images. A change of torch may move them by some.
OPERATIONS = {"ce": 348, "kd": 474, "wttm": 486, "feature_only": 457, "crd": 4478}
MAY_READ = {"crd": 2}  # in each of two micro-batches, whether every negative is drawn
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::item"}
VIEWS = {"aten::view", "aten::t", "aten::transpose", "aten::expand", "aten::slice", "aten::select", "aten::unsqueeze",
         "aten::squeeze", "aten::permute", "aten::detach", "aten::_unsafe_view", "aten::alias", "aten::as_strided",
         "aten::unbind", "aten::split", "aten::lift_fresh", "aten::_reshape_alias", "aten::unfold"}  # fmt: skip


class Counting(TorchDispatchMode):
    """Counts operations by name while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found[func.name().partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))

    @property
    def reads(self) -> int:
        """How often the host would wait for a number."""
        return sum(self.found[name] for name in READS)

    @property
    def launched(self) -> int:
        """Operations that compute."""
        return sum(count for name, count in self.found.items() if name not in VIEWS | READS)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_reads_nothing(recipe, method):
    """No step but a run's first waits for the device; and all launch the same number of operations, which is known.

    CRD's first step fixes its constants, and each micro-batch asks once whether its negatives are all drawn.
    """
    changes = {} if method == "ce" else {"teacher": TEACHER}
    places = {"student": STUDENT, "data__loader": "reference", "scaling__num_workers": 0}
    config = parse(recipe(method=METHODS[method], **places, **changes))
    run = assemble(config, Rank(0, 1, CPU))
    loop = TrainingLoop(run, new_state(run))
    batches = iter(list(run.train_batches(0)))
    loop.step(batches)
    counted = []
    for _ in range(3):
        with Counting() as counting:
            loop.step(batches)
        counted.append(counting)
    assert [one.reads for one in counted] == [MAY_READ.get(method, 0)] * 3, counted[0].found
    assert len({one.launched for one in counted}) == 1
    assert counted[0].launched == OPERATIONS[method]


class OnOneDevice(TorchDispatchMode):
    """Refuses every operation that takes a tensor of another device, as a copy from the host is one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        assert {one.device.type for one in tensors} <= {"meta"}, func.name()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("with_teacher", [True, False])
def test_evaluation_copies_nothing_to_the_device(with_teacher):
    """The counts of a batch are made where its logits are."""
    counts = Counts(5, "meta")
    logits, labels = torch.empty(8, 5, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    with OnOneDevice():
        counts.add(logits, labels, logits if with_teacher else None)
    assert counts.totals.dtype == torch.float64


def test_a_cache_reads_nothing(recipe, tmp_path):
    """Whether the codings hold the numbers comes with the rows, and is looked at when those are in host memory."""
    cache = {"dir": str(tmp_path / "cache"), "batch_size": 8, "features": "int8"}
    method = [METHODS["kd"][1], {"term": "feature_mse", "weight": 1.0, "pairs": LAST}]
    builder = Builder(parse(recipe(method=method, teacher=TEACHER, cache=cache, views__num_views=1)), CPU)
    plan = builder.plan()
    unit = plan.units()[0]
    constants, _ = builder.constants(plan)
    done: list[int] = []
    with Counting() as counting:
        builder.build(unit, plan, "key", constants, done.append)
    assert done == list(np.arange(8, unit.stop + 1, 8))
    assert counting.reads == 0
