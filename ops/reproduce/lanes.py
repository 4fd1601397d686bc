"""Several runs side by side in one process, each exact to its recipe, stopped and continued at any step.

A batch of 64 images of 32 pixels does not fill a GPU, and its teacher costs more than its student. Here runs that see
the same views form a `Flight`: a batch is made once, and the teacher answers once, for all of them. Every run is a
`Lane` with a CUDA stream of its own; its forward and backward pass is one CUDA graph, and so is the teacher's. Flights
take turns by the step. Data, networks, losses, optimiser, schedule, evaluation and checkpoint are the product's; only
its loop, which lives in a cluster's worker, is replaced, and a test holds the two against each other. Files are the
only state, so that a machine that is lent for minutes is enough. Needs no Ray, DALI or MLflow.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import safetensors.torch
import torch
from pyarrow.fs import LocalFileSystem
from torch import Tensor

from cluster.assembly import assemble, autocast, facts
from cluster.config import RunConfig
from cluster.passes import evaluate
from cluster.rank import Rank, seed_micro_batch, set_up_torch
from cluster.training.checkpoint import TrainState
from kdcore.batch import Batch, Needs, TeacherOutputs
from kdcore.distiller import Distiller, OnlineTeacher, StepOutput
from kdcore.errors import Refused
from kdcore.optim import Schedule, build_optimizer
from kdcore.reused import deployed_parameters
from pipelines.files import make_folder, read_json, write_whole

EAGER_STEPS = 3  # before a graph is captured: libraries choose and load their kernels in the first steps
VALIDATION_BATCH = 1000  # small images: a pass over them is then fewer, fuller calls

Output = TypeVar("Output")
Key = TypeVar("Key", bound=Hashable)


class Lane:
    """One run. Its folder holds the checkpoint it goes on from; once it is finished, result.json and the weights."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        check_plain(config)
        self.config, self.folder, self.rank = config, config.run_dir, Rank(0, 1, device)
        set_up_torch(config.train.deterministic)
        self.run = assemble(config, self.rank)
        distiller = self.run.distiller()
        self.state = TrainState(distiller, build_optimizer(config.optimizer, distiller), ema=None)
        self.schedule = Schedule(config.schedule, self.state.optimizer, config.train.epochs, self.run.steps_per_epoch)
        self.split = "held_out" if "held_out" in self.run.indexes else "val"
        self.validation = self.run.loader(self.split, self.run.evaluation_plan(self.split), VALIDATION_BATCH)
        self.curve: list[dict[str, float]] = []  # a row for every epoch
        self.total_loss = torch.zeros((), dtype=torch.float64, device=device)  # of this epoch's steps
        self.restore()
        # A graph replays what was captured: there is none before the host's decisions have changed for the last time.
        self.warmup_epochs = max(term.warmup_epochs for term in distiller.terms.values())
        self.compute = Graphed(partial(forward_backward, distiller, lambda: autocast(config, self.rank)))
        self.stream = new_stream(device)
        distiller.train()

    @property
    def done(self) -> bool:
        return self.state.step == self.run.total_steps

    @property
    def views(self) -> tuple[Any, ...]:
        """Equal for runs whose next batch is the same, to the bit, and whose networks compute in the same way."""
        train, index = self.config.train, self.run.indexes["train"]
        batches = index.fingerprint, self.run.plan.fingerprint, self.run.statistics, train.batch_size, self.state.step
        return *batches, str(self.rank.device), train.precision, train.channels_last

    def step(self, batch: Batch) -> Tensor:
        """One optimiser step on a batch with the teacher's answers; its loss. At the end of an epoch, and of the run,
        the student is evaluated."""
        with torch.cuda.stream(self.stream):  # None: no stream, on a CPU
            state = self.state
            self.schedule.set_step(state.step)
            seed_micro_batch(self.config.seed, state.step, 0)
            constant = batch.epoch >= self.warmup_epochs and not state.distiller.needs.sample_ids
            loss = self.compute(batch, constant).loss.detach()
            state.optimizer.step()
            self.total_loss += loss
            state.step += 1
            if self.done or state.step % self.run.steps_per_epoch == 0:
                self.end_epoch()
        return loss

    def end_epoch(self) -> None:
        metrics = self.evaluate()
        every, step = self.run.steps_per_epoch, self.state.step
        loss = float(self.total_loss) / (step % every or every)
        self.curve.append({"epoch": step / every, "train_loss": loss, "top1": metrics["top1"], "nll": metrics["nll"]})
        self.total_loss.zero_()

    def evaluate(self, teacher_logits: Tensor | None = None) -> dict[str, float]:
        """The student's metrics on every validation image, or on every one held out where the recipe holds some out."""
        with autocast(self.config, self.rank):
            metrics = evaluate(
                self.state.evaluated,
                self.validation,
                len(self.run.indexes[self.split]),
                self.rank,
                teacher_logits,
                VALIDATION_BATCH,
            )
        self.state.distiller.train()
        return metrics

    def save(self) -> None:
        """Writes the checkpoint under its name whole or not at all, then removes the older one."""
        target = self.folder / f"step-{self.state.step:08d}"
        if not target.exists():
            unfinished = self.folder / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            make_folder(unfinished, "the run's folder")
            with torch.cuda.stream(self.stream):
                self.state.snapshot(self.facts()).write(LocalFileSystem(), str(unfinished))
                progress = {"curve": self.curve, "total_loss": float(self.total_loss)}
            (unfinished / "progress.json").write_text(json.dumps(progress))
            (unfinished / "student.safetensors").unlink()  # the weights once more; state travels, and should be small
            unfinished.rename(target)
        for older in self.folder.glob("step-*"):
            if older != target:
                shutil.rmtree(older)

    def restore(self) -> None:
        """Takes up the newest checkpoint, where there is one. Refused where it is another recipe's."""
        saved = sorted(self.folder.glob("step-*"))
        if saved:
            self.state.restore(saved[-1], self.facts())
            progress = read_json(saved[-1] / "progress.json", "delete that folder: the run then begins again")
            self.curve = progress["curve"]
            self.total_loss.fill_(progress["total_loss"])

    def facts(self) -> dict[str, Any]:
        """What must be the same to go on."""
        kept = {"seed", "views", "student", "method", "optimizer", "schedule", "train"}
        recipe = self.config.model_dump_json(include=kept)
        return facts(self.run) | {"recipe": hashlib.sha256(recipe.encode()).hexdigest()[:16]}

    def finish(self, about: dict[str, Any]) -> None:
        """Writes the student's last weights, then the result; removes the checkpoint."""
        with torch.cuda.stream(self.stream):
            teacher, logits = self.run.teacher_on(self.split, self.validation) or (None, None)
            final, weights = self.evaluate(logits), self.state.deployed(select_best=False)
        result = {
            **about,
            "name": self.config.name,
            "seed": self.config.seed,
            "split": self.split,
            "deployed_parameters": deployed_parameters(self.state.evaluated),
            "steps": self.state.step,
            "train_seconds": self.state.train_seconds,
            "curve": self.curve,
            "final": final,
            "teacher": teacher,
            "recipe": self.config.model_dump(mode="json", include={"student", "method", "optimizer", "train"}),
        }
        write_whole(self.folder / "student.safetensors", safetensors.torch.save(weights))
        write_whole(self.folder / "result.json", json.dumps(result, indent=1).encode())
        for checkpoint in self.folder.glob("step-*"):
            shutil.rmtree(checkpoint)


class Flight:
    """Lanes whose batches are the same from here on (`Lane.views`). They advance together, and a teacher that several
    of them have answers once, whatever each of them reads of it."""

    def __init__(self, lanes: list[Lane]) -> None:
        self.lanes = list(lanes)
        longest = max(lanes, key=lambda lane: lane.run.total_steps)
        self.batches = longest.run.train_batches(longest.state.step)
        asking = grouped(filter(asks, lanes), teacher_of)
        self.teachers = {teacher: Graphed(shared_teacher(some)) for teacher, some in asking.items()}
        self.stream = new_stream(longest.rank.device)

    def step(self) -> list[Tensor]:
        """One step of every lane, none of which is done: their losses. On a GPU the next step writes over them."""
        for lane in self.lanes:
            follow(self.stream, lane.stream)  # they may still read the batch, and what was answered for it
        with torch.cuda.stream(self.stream):
            batch = next(self.batches)
            answers = {name: teacher(batch, True) for name, teacher in self.teachers.items()}
        losses = []
        for lane in self.lanes:
            follow(lane.stream, self.stream)
            needs = lane.config.needs
            mine = batch.with_targets(needs.select(answers[teacher_of(lane)])) if asks(lane) else batch
            losses.append(lane.step(mine))
        return losses


def flights_of(lanes: list[Lane]) -> list[Flight]:
    """The lanes, those of the same views together."""
    return [Flight(some) for some in grouped(lanes, lambda lane: lane.views).values()]


def grouped(lanes: Iterable[Lane], key: Callable[[Lane], Key]) -> dict[Key, list[Lane]]:
    """In the order in which keys and lanes come."""
    groups: dict[Key, list[Lane]] = {}
    for lane in lanes:
        groups.setdefault(key(lane), []).append(lane)
    return groups


def asks(lane: Lane) -> bool:
    """Whether its method reads anything of a teacher."""
    return lane.config.needs.teacher


def teacher_of(lane: Lane) -> str:
    assert lane.config.teacher is not None, "a method that needs a teacher has one"
    return lane.config.teacher.model_dump_json()


def shared_teacher(lanes: list[Lane]) -> Callable[[Batch], TeacherOutputs]:
    """The teacher that all these lanes have, answering what any of them reads."""
    run, config, rank = lanes[0].run, lanes[0].config, lanes[0].rank
    assert run.teacher is not None, "these lanes ask one"
    needs = Needs.union(lane.config.needs.of_teacher for lane in lanes)
    teacher = OnlineTeacher(run.teacher.model, needs, run.teacher.renormalise)

    def answer(batch: Batch) -> TeacherOutputs:
        with autocast(config, rank):
            return teacher(batch)

    return answer


def forward_backward(distiller: Distiller, context: Callable[[], Any], batch: Batch) -> StepOutput:
    """The distiller's output; its parameters have the gradients."""
    # Gradients that a backward pass finds are added to; where it finds none, it brings its own.
    distiller.zero_grad(set_to_none=True)
    with context():
        output: StepOutput = distiller(batch)
    output.loss.backward()
    return output


class Graphed(Generic[Output]):
    """A function of a batch; on a GPU, after a few calls, as a CUDA graph that reads the batch from tensors of its own.

    The output's tensors, and the gradients that the function leaves, then keep their memory, and every call writes them
    anew."""

    def __init__(self, function: Callable[[Batch], Output]) -> None:
        self.function = function
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.output: Output

    def __call__(self, batch: Batch, constant: bool) -> Output:
        """constant: from here on the function does the same to every batch: no host's decision, no number of a sample
        or an epoch is in it."""
        self.calls += 1
        if self.graph is None and constant and batch.images.is_cuda and self.calls > EAGER_STEPS:
            self.capture(batch)
        if self.graph is None:
            return self.function(batch)
        for ours, theirs in zip(self.inputs, tensors_of(batch), strict=True):
            ours.copy_(theirs)
        self.graph.replay()
        return self.output

    def capture(self, batch: Batch) -> None:
        """Records the function on the current stream; nothing is computed yet."""
        own = copy.deepcopy(batch)
        self.inputs = tensors_of(own)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
            self.output = self.function(own)


def tensors_of(batch: Batch) -> list[Tensor]:
    """What differs from batch to batch and is read by a graph."""
    found = [batch.images, batch.labels]
    if batch.targets is not None:
        answered = batch.targets.logits, batch.targets.input_gradient, *batch.targets.features.values()
        found += [tensor for tensor in answered if tensor is not None]
    return found


def new_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream behind all that was started so far; None on a CPU."""
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)
    follow(stream, torch.cuda.current_stream(device))
    return stream


def follow(stream: torch.cuda.Stream | None, other: torch.cuda.Stream | None) -> None:
    """What is started on the stream from now on waits for what is on the other one."""
    if stream is not None and other is not None:
        stream.wait_stream(other)


def check_plain(config: RunConfig) -> None:
    """Refused for what the product's loop does and `Lane` does not."""
    train, cached = config.train, config.teacher is not None and config.teacher.cached
    absent = {
        "train.micro_batch": train.micro_batch is not None and train.micro_batch != train.batch_size,
        "train.clip_norm": train.clip_norm is not None,
        "train.ema_decay": train.ema_decay is not None,
        "train.select": train.select != "last",
        "teacher.source": cached,
    }
    if unknown := [name for name, used in absent.items() if used]:
        raise Refused(f"{config.name}: {unknown[0]} is not for runs side by side; leave it out, or use `train`")


def take_turns(
    waiting: Iterator[Lane],
    side_by_side: int,
    seconds: float,
    finished: Callable[[Lane], None],
    save_every: float = 120.0,
) -> None:
    """Steps up to `side_by_side` lanes by turns until all are done or the time is over, then saves them. Lanes that are
    done make place for the next that wait, which are built only then."""
    started = saved = time.monotonic()
    flights: list[Flight] = []
    while time.monotonic() - started < seconds:
        free = side_by_side - sum(len(flight.lanes) for flight in flights)
        fresh = list(islice(waiting, free))
        if not flights and not fresh:
            return
        for lane in fresh:
            if lane.done:  # stopped between its last step and its result
                finished(lane)
        flights += flights_of([lane for lane in fresh if not lane.done])
        for flight in flights:
            before = time.monotonic()
            flight.step()
            for lane in flight.lanes:
                lane.state.train_seconds += (time.monotonic() - before) / len(flight.lanes)
            for lane in [lane for lane in flight.lanes if lane.done]:
                lane.save()
                finished(lane)
                flight.lanes.remove(lane)
        flights = [flight for flight in flights if flight.lanes]
        if time.monotonic() - saved > save_every:
            saved = time.monotonic()
            save(flights)
    save(flights)


def save(flights: list[Flight]) -> None:
    for flight in flights:
        for lane in flight.lanes:
            lane.save()
