"""CUDA graphs and streams around our functions; on a CPU the functions themselves.

Not here: what is computed. A graph replays what was captured, so nothing the host decides may change afterwards.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

from cluster.assembly import Assembly
from cluster.error_text import first_line
from cluster.training.loop import ForwardBackward
from kdcore.batch import Batch
from kdcore.distiller import Distiller, StepOutput
from kdcore.errors import Refused

EAGER_STEPS = 3  # before a graph is captured: libraries choose and load their kernels in the first steps

Output = TypeVar("Output")


class GraphedPasses:
    """A run's forward and backward pass; on a GPU, once nothing depends on the host any more, as one CUDA graph.

    That is so for methods of one teacher that read no sample ids, while no weight of a term warms up or decays, in
    steps of one micro-batch. An epoch's last, smaller batch is launched operation by operation, as are images of
    another size than the graph's.
    """

    def __init__(self, run: Assembly, distiller: Distiller) -> None:
        self.distiller, self.num_images = distiller, run.micro_batch
        reads_ids, has_several = distiller.needs.sample_ids, run.teachers.combined is not None
        self.may_be_graphed = len(run.micro_batches) == 1 and not reads_ids and not has_several
        model = torch.compile(distiller) if run.config.train.compile else distiller
        self.eager = ForwardBackward(run, model)
        self.graphed = Graphed(self._from_no_gradients)
        self.gradients: list[Tensor | None] = []

    @property
    def graph(self) -> torch.cuda.CUDAGraph | None:
        """The graph, once it is captured."""
        return self.graphed.graph

    def __call__(self, batch: Batch, share: float, synchronise: bool) -> StepOutput:
        if not self.may_be_graphed or len(batch) < self.num_images or not self.graphed.fits(batch):
            return self.eager(batch, share, synchronise)
        had_graph = self.graph is not None
        assert batch.epoch is not None, "a loader gives every batch one"
        constant = all(term.is_constant_at(batch.epoch) for term in self.distiller.terms.values())
        output = self.graphed(batch, constant)
        if self.graph is not None:
            # Each replay leaves the gradients where the capture did; the optimiser has released them since.
            if not had_graph:
                self.gradients = [parameter.grad for parameter in self.distiller.parameters()]
            for parameter, gradient in zip(self.distiller.parameters(), self.gradients, strict=True):
                parameter.grad = gradient
        return output

    def _from_no_gradients(self, batch: Batch) -> StepOutput:
        # A backward pass adds to the gradients it finds; where it finds none, it allocates its own.
        self.distiller.zero_grad(set_to_none=True)
        return self.eager(batch, 1.0, True)


class Graphed(Generic[Output]):
    """A function of a batch; on a GPU, after a few calls, as a CUDA graph that reads the batch from tensors of its own.

    The output's tensors, and the gradients that the function leaves, then keep their memory, and every call overwrites
    them."""

    def __init__(self, function: Callable[[Batch], Output]) -> None:
        self.function = function
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.output: Output

    def __call__(self, batch: Batch, constant: bool) -> Output:
        """Call the function, or replay its graph once there is one.

        constant: from now on the function does the same to every batch: no decision of the host, and no number of a
        sample or an epoch, is in it.
        """
        self.calls += 1
        if not constant:
            self.graph = None  # a weight has begun to decay
        if self.graph is None and constant and self.calls > EAGER_STEPS and can_be_captured(batch):
            self.capture(batch)
        if self.graph is None:
            return self.function(batch)
        for ours, theirs in zip(self.inputs, tensors_of(batch), strict=True):
            ours.copy_(theirs)
        self.graph.replay()
        return self.output

    def fits(self, batch: Batch) -> bool:
        """Return whether the graph, once there is one, takes a batch of these shapes."""
        if self.graph is None:
            return True
        return [one.shape for one in self.inputs] == [one.shape for one in tensors_of(batch)]

    def capture(self, batch: Batch) -> None:
        """Record the function on the current stream; nothing is computed yet."""
        own = copy.deepcopy(batch)
        self.inputs = tensors_of(own)
        self.graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may allocate and copy meanwhile: the loader's, which work ahead.
            stream = torch.cuda.current_stream()
            with nothing_collected(), torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
                self.output = self.function(own)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise Refused(
                f"train.cuda_graph: the step cannot be captured: {first_line(error)}; set it to false. Most "
                "often a term reads a number from the device"
            ) from error


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Collect Python's garbage now, and none until the block ends.

    An older run's graph in the garbage, destroyed while another one is captured, would invalidate the capture.
    """
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def can_be_captured(batch: Batch) -> bool:
    """Return whether operations on the batch can be captured: those on a GPU."""
    return batch.images.is_cuda


def tensors_of(batch: Batch) -> list[Tensor]:
    """Return the tensors that differ from batch to batch and are read by a graph."""
    found = [batch.images, batch.labels]
    if batch.teacher_images is not None:
        found.append(batch.teacher_images)
    if batch.targets is not None:
        answered = batch.targets.logits, batch.targets.input_gradient, *batch.targets.features.values()
        found += [tensor for tensor in answered if tensor is not None]
    return found


def new_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a stream that waits for all that was started so far; None on a CPU."""
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)
    follow(stream, torch.cuda.current_stream(device))
    return stream


def follow(stream: torch.cuda.Stream | None, other: torch.cuda.Stream | None) -> None:
    """Make what is started on the stream from now on wait for what is on the other one."""
    if stream is not None and other is not None:
        stream.wait_stream(other)
