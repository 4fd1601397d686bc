"""`train.cuda_graph`: what a replayed step computes and leaves behind is what a launched one does.

A CPU has no graphs: there a stand-in is recorded, which like a graph reads its own copy of the batch, writes its answer
and the gradients where the first ones lie, and sets nothing in Python.
"""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from cluster.assembly import assemble
from cluster.rank import Rank, set_up_torch
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.recipe.rules import check_may_be_trained
from cluster.training import graphs
from cluster.training.graphs import Graphed, GraphedPasses, tensors_of
from cluster.training.launch import launch
from cluster.training.loop import TrainingLoop, new_state
from kdcore.batch import Batch
from kdcore.errors import Refused
from kdcore.terms import Term, base, parse_term

CPU = torch.device("cpu")
NETWORK = {"model": "cifar_resnet8", "args": {"widths": [4, 4, 8, 16]}}
PAIRS = [{"student": "layer2", "teacher": "layer2"}]
METHODS: dict[str, list[dict[str, Any]]] = {
    "kd": [{"term": "ce", "weight": 0.5}, {"term": "kd", "weight": 2.0, "temperature": 2.0}],
    "warmed up": [
        {"term": "ce", "weight": 1},
        {"term": "dkd", "weight": 1, "warmup_epochs": 1, "temperature": 4, "non_target_weight": 2},
    ],
    "no gradient of the head": [
        {"term": "ce", "weight": 1},
        {"term": "feature_only", "weight": 1, "pairs": PAIRS},
    ],
}

DRAWING = [{"term": "ce", "weight": 1}, {"term": "crd", "weight": 1.0}]
SEVERAL = [{"name": name, **NETWORK, "random": True} for name in ("first", "second")]
Make = Callable[..., RunConfig]


@pytest.fixture
def config(recipe: Callable[..., dict[str, Any]]) -> Make:
    """A function that gives the recipe: 48 images in 4 batches of 11 and one of 4, three times."""

    def make(method: str = "kd", **changes: Any) -> RunConfig:
        settings = {
            "train": {"epochs": 3, "batch_size": 11, "last_batch": "keep", "cuda_graph": True, "clip_norm": 1.0},
            "data__loader": "reference",
            "scaling__num_workers": 0,
            "student": NETWORK,
            "teacher": NETWORK | {"random": True},
            "method": METHODS.get(method, DRAWING),
        }
        return parse(recipe(**settings | changes))

    return make


class Recorded:
    """What a step of a CPU is replayed by."""

    def __init__(self, passes: GraphedPasses, own: Batch) -> None:
        self.passes, self.own, self.replays = passes, own, 0
        self.parameters = list(passes.distiller.parameters())
        before = [(buffer, buffer.clone()) for buffer in passes.distiller.buffers()]
        self.output = passes.graphed.function(own)
        for buffer, values in before:  # a capture computes nothing
            buffer.copy_(values)
        self.memory = [*self.written(self.output), *(one.grad for one in self.parameters if one.grad is not None)]
        for tensor in self.memory:
            tensor.fill_(torch.nan)

    @staticmethod
    def written(output: Any) -> list[Tensor]:
        return [output.loss.detach(), *output.terms.values()]

    def replay(self) -> None:
        seen = [one.grad for one in self.parameters]
        fresh = self.passes.graphed.function(self.own)
        gradients = [one.grad for one in self.parameters if one.grad is not None]
        for one, before in zip(self.parameters, seen, strict=True):
            one.grad = before
        for kept, new in zip(self.memory, [*self.written(fresh), *gradients], strict=True):
            kept.copy_(new)
        self.replays += 1


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """Steps are recorded as on a GPU; what was."""
    made: list[Recorded] = []

    def capture(graphed: Graphed[Any], batch: Batch) -> None:
        own = copy.deepcopy(batch)
        graphed.inputs = tensors_of(own)
        made.append(Recorded(graphed.function.__self__, own))  # type: ignore[attr-defined]
        graphed.graph, graphed.output = made[-1], made[-1].output  # type: ignore[assignment]

    monkeypatch.setattr(graphs, "can_be_captured", lambda batch: True)
    monkeypatch.setattr(Graphed, "capture", capture)
    return made


def losses_of(config: RunConfig, device: torch.device, with_graph: bool) -> list[float]:
    """Every step's loss, and the sum of the student's weights behind the last of them."""
    set_up_torch(config.train.deterministic)
    run = assemble(config, Rank(0, 1, device))
    state = new_state(run)
    found: list[float] = []
    with torch.cuda.stream(graphs.new_stream(device)):
        loop = TrainingLoop(run, state, GraphedPasses(run, state.distiller) if with_graph else None)
        batches = run.train_batches(0)
        while not loop.is_done:
            loop.step(batches, lambda _number, _batch, output: found.append(float(output.loss.detach())))
    return [*found, *(float(one.detach().double().sum()) for one in state.distiller.parameters())]


@pytest.mark.parametrize("method", METHODS)
def test_replayed_steps_are_launched_ones(method: str, config: Make, recorded: list[Recorded]) -> None:
    """To the bit; an epoch's last, smaller batch is launched; while a weight warms up, all are."""
    expected = losses_of(config(method), CPU, with_graph=False)
    assert losses_of(config(method), CPU, with_graph=True) == expected
    (graph,) = recorded
    # Of 12 whole batches, the first 3 are launched; in a warm-up of an epoch 4, whose last is the warm-up's.
    assert graph.replays == (8 if method == "warmed up" else 9)


def test_train_takes_it(config: Make, recorded: list[Recorded]) -> None:
    """The whole command, with validations and checkpoints between the steps, against the loop's launched steps."""
    made = config(tracking__record_batches=True)
    launch(made)
    found = [json.loads(line)["loss"] for line in (made.run_dir / "batches-0.jsonl").read_text().splitlines()]
    assert found == losses_of(config(), CPU, with_graph=False)[: len(found)]
    assert [graph.replays for graph in recorded] == [9]


def test_no_older_graph_is_destroyed_while_one_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage is collected before, and not in between, however much of it there is."""
    said: list[str] = []

    class Older:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            said.append("destroyed")

    class Capture:
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            pass

        def __enter__(self) -> None:
            said.append("begun")

        def __exit__(self, *error: object) -> None:
            said.append("ended")

    def leave_garbage(batch: Batch) -> None:
        for _ in range(9):
            Older()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    before, was_enabled = gc.get_threshold(), gc.isenabled()
    gc.enable()
    gc.set_threshold(1)
    try:
        Older()
        Graphed(leave_garbage).capture(two_images())
        assert gc.isenabled()
    finally:
        gc.set_threshold(*before)
        if not was_enabled:
            gc.disable()
    assert said[:3] == ["destroyed", "begun", "ended"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_is_captured_beside_others_that_are_garbage() -> None:
    def double(batch: Batch) -> list[Tensor]:
        cycle: list[Any] = []
        cycle.append(cycle)
        return [batch.images * 2]

    cuda = torch.device("cuda", torch.cuda.current_device())
    batch = two_images()
    batch = replace(batch, images=batch.images.to(cuda), labels=batch.labels.to(cuda))
    before = gc.get_threshold()
    gc.enable()
    gc.set_threshold(1)
    try:
        with torch.cuda.stream(graphs.new_stream(cuda)):
            for _ in range(20):
                graphed = Graphed(double)
                graphed.capture(batch)
                graphed.itself = graphed  # type: ignore[attr-defined]
    finally:
        gc.set_threshold(*before)


def two_images() -> Batch:
    return Batch(torch.rand(2, 3, 6, 6), torch.tensor([1, 0]), torch.tensor([7, 8]), torch.zeros(2))


def test_a_batch_of_other_shape_does_not_go_into_the_graph() -> None:
    graphed: Graphed[Tensor] = Graphed(lambda batch: batch.images)
    batch = two_images()
    assert graphed.fits(batch)
    graphed.graph, graphed.inputs = object(), tensors_of(batch)  # type: ignore[assignment]
    assert graphed.fits(batch)
    assert not graphed.fits(replace(batch, images=torch.rand(2, 3, 5, 6)))
    assert not graphed.fits(replace(batch, images=batch.images[:1], labels=batch.labels[:1]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scaling__num_workers": 2, "train__batch_size": 12}, r"scaling\.num_workers=2 average their gradients"),
        ({"train__batch_size": 12, "train__micro_batch": 4}, r"train\.micro_batch=4 makes several passes a step"),
        ({"teacher": None, "teachers": SEVERAL}, "several teachers' answers are averaged"),
        ({"method": "drawing"}, "the term crd reads the numbers of the samples"),
    ],
)
def test_a_step_that_is_no_single_pass_is_refused(changes: dict[str, Any], reason: str, config: Make) -> None:
    with pytest.raises(Refused, match=rf"train\.cuda_graph: .*{reason}.*; leave it out"):
        check_may_be_trained(config(**changes))


def test_a_weight_with_a_course_of_its_own_keeps_steps_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "REGISTRY", copy.copy(base.REGISTRY))

    class Rising(Term):
        term: Literal["rising_in_a_test"] = "rising_in_a_test"

        def weight_at(self, epoch: float, num_epochs: float | None = None) -> float:
            return epoch

    assert not Rising(weight=1.0).is_constant_at(3)
    assert parse_term({"term": "ce", "weight": 1.0}).is_constant_at(3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_graph_of_a_gpu_gives_the_launched_steps_bits(method: str, config: Make) -> None:
    """Exactly: a run that is continued launches its first steps anew."""
    cuda = torch.device("cuda", torch.cuda.current_device())
    changes = {"train__precision": "float32"}
    expected = losses_of(config(method, **changes), cuda, with_graph=False)
    assert losses_of(config(method, **changes), cuda, with_graph=True) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_train_takes_it_on_a_gpu(config: Make) -> None:
    """The whole command: every step's loss is that of the same command whose steps are launched."""
    losses = {}
    for cuda_graph in (False, True):
        made = config(
            name=f"graph-{cuda_graph}",
            train__cuda_graph=cuda_graph,
            train__precision="float32",
            scaling__use_gpu=True,
            tracking__record_batches=True,
        )
        launch(made)
        rows = (made.run_dir / "batches-0.jsonl").read_text().splitlines()
        losses[cuda_graph] = [json.loads(line)["loss"] for line in rows]
    assert losses[True] == losses[False]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_that_reads_from_the_gpu_is_refused() -> None:
    def reads(batch: Batch) -> Tensor:
        return batch.images * batch.images.mean().item()

    batch = two_images()
    device = torch.device("cuda", torch.cuda.current_device())
    batch = replace(batch, images=batch.images.to(device), labels=batch.labels.to(device))
    with (
        torch.cuda.stream(graphs.new_stream(device)),
        pytest.raises(Refused, match=r"train\.cuda_graph: the step cannot be captured"),
    ):
        Graphed(reads).capture(batch)
