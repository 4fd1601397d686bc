"""One step of a run again, in this process, to see which numbers stop being finite and where it begins.

Views and order are functions of integers, so the batch is the run's own; the weights are those of the last checkpoint
before it, brought forward by the steps in between. On other hardware or with another number of workers they equal the
run's up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cluster.assembly import Assembly, assemble
from cluster.device_memory import refuse_full_gpu
from cluster.rank import Rank, set_up_torch
from cluster.recipe.config import RunConfig
from cluster.tracking.folder import RunFolder
from cluster.tracking.same_run import refuse_other_micro_batch
from cluster.training.check import check_run
from cluster.training.checkpoint import checkpoint_facts, checkpoint_up_to
from cluster.training.finite import NotFinite
from cluster.training.loop import ForwardBackward, TrainingLoop, new_state
from kdcore.batch import Batch, TeacherOutputs
from kdcore.distiller import Distiller, StepOutput
from kdcore.errors import Refused


@dataclass(frozen=True)
class Finding:
    """One tensor of the step. kind: image, target, weight, output, term, loss or gradient; shares in [0, 1].

    low, high: of its finite numbers; None where it has none.
    """

    kind: str
    name: str
    micro_batch: int
    shape: tuple[int, ...]
    finite_share: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, kind: str, name: str, micro_batch: int, tensor: Tensor) -> Finding:
        """Measure a tensor."""
        values = tensor.detach().float()
        finite = values[values.isfinite()]
        ends = (float(finite.min()), float(finite.max())) if finite.numel() else (None, None)
        return cls(kind, name, micro_batch, tuple(tensor.shape), finite.numel() / max(1, values.numel()), *ends)


@dataclass
class Replay:
    """What a step was made of, in the order in which it was computed. sample_ids: of its micro-batches, by number.

    first_step: the run's step (0 for the first) from which the weights were brought forward.
    """

    step: int
    first_step: int
    sample_ids: dict[int, list[int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def not_finite(self) -> list[Finding]:
        """The tensors that hold a number that is not finite; the first is where it begins."""
        return [finding for finding in self.findings if finding.finite_share < 1]


@refuse_full_gpu("replay the step on a GPU with more of it, or on the CPU, with scaling.use_gpu=false")
def replay_step(config: RunConfig, step: int, device: torch.device, watch: Callable[[int, int], None]) -> Replay:
    """Compute a step (0 for the first) of a run again and look at every tensor on its way.

    watch: called with (steps done, steps to do) while the weights are brought forward. Refused for a step that the run
    does not have, and for what a run is refused for; NotFinite, naming the step, where an earlier one is not finite.
    """
    check_run(config)
    folder = RunFolder.of(config)
    if folder.state() != "new":
        refuse_other_micro_batch(folder.path, folder.read_recipe(config), config, "or another name=...")
    # A micro-batch is what one of the run's workers held.
    config = config.model_copy(update={"train": config.train.model_copy(update={"micro_batch": config.micro_batch})})
    set_up_torch(config.train.deterministic)
    run = assemble(config, Rank(0, 1, device))
    if not 0 <= step < run.total_steps:
        raise Refused(f"--replay {step + 1}: the run has steps 1 to {run.total_steps}; give one of these")
    state = new_state(run)
    with checkpoint_up_to(config, step) as checkpoint:
        if checkpoint is not None:
            directory, place = checkpoint
            state.restore(directory, checkpoint_facts(run), place)
    found = Replay(step, state.step)
    passes = InspectedPasses(run, state.distiller, found)
    loop = TrainingLoop(run, state, passes)
    batches = run.train_batches(state.step)
    for done in range(state.step, step):
        watch(done - found.first_step, step - found.first_step)
        loop.step(batches)
        loop.watch.verify()
    passes.is_looking = True
    found.findings += [Finding.of("weight", name, 0, tensor) for name, tensor in floating(state.distiller.state_dict())]
    with suppress(NotFinite):  # more skipped steps than allowed; this one has been looked at anyway
        loop.step(batches)
    found.findings += [
        Finding.of("weight after", name, 0, tensor) for name, tensor in floating(state.distiller.state_dict())
    ]
    return found


class InspectedPasses(ForwardBackward):
    """A forward and backward pass that notes every tensor on its way, once it is looking."""

    def __init__(self, run: Assembly, distiller: Distiller, found: Replay) -> None:
        super().__init__(run, distiller)
        self.distiller, self.found, self.is_looking = distiller, found, False

    def __call__(self, batch: Batch, share: float, synchronise: bool) -> StepOutput:
        if not self.is_looking:
            return super().__call__(batch, share, synchronise)
        number = self.run.micro_batches[len(self.found.sample_ids)]
        self.found.sample_ids[number] = batch.sample_ids.tolist()
        batch = batch.with_targets(targets) if (targets := self.distiller.targets(batch)) else batch
        self.note("image", [("images", batch.images)], number)
        self.note("target", target_tensors(batch.targets), number)
        with outputs_noted(self.distiller, lambda name, tensor: self.note("output", [(name, tensor)], number)):
            output = super().__call__(batch, share, synchronise)
        self.note("term", output.terms.items(), number)
        self.note("loss", [("loss", output.loss)], number)
        gradients = ((name, p.grad) for name, p in self.distiller.named_parameters() if p.grad is not None)
        self.note("gradient", gradients, number)
        return output

    def note(self, kind: str, tensors: Iterable[tuple[str, Tensor]], number: int) -> None:
        """Add tensors of one kind to the findings."""
        self.found.findings += [Finding.of(kind, name, number, tensor) for name, tensor in tensors]


@contextmanager
def outputs_noted(distiller: Distiller, note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call note(name, output) whenever a module of the student or of a term has run, in this context."""

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                note(name, output)

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in distiller.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def target_tensors(targets: TeacherOutputs | None) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of the teacher's answers."""
    if targets is None:
        return
    if targets.logits is not None:
        yield "teacher logits", targets.logits
    yield from ((f"teacher {tap}", tensor) for tap, tensor in targets.features.items())
    if targets.input_gradient is not None:
        yield "teacher input gradient", targets.input_gradient


def floating(tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return the tensors of floating-point numbers, with their names."""
    return [(name, tensor) for name, tensor in tensors.items() if tensor.is_floating_point()]
