"""Several runs side by side in one process, each exact to its recipe, stopped and continued at any step.

A batch of 64 images of 32 pixels does not fill a GPU, and its teacher costs more than its student. Here runs that see
the same views form a `Flight`: a batch is made once, and the teacher answers once, for all of them. Every run is a
`Lane`: the product's training loop, with a CUDA stream of its own, and its forward and backward pass as one CUDA graph.
Flights take turns by the step. Files are the only state, so that a machine that is lent for minutes is enough. Needs no
Ray, DALI or MLflow.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice, tee
from typing import Any, TypeVar

import torch
from pyarrow.fs import LocalFileSystem
from torch import Tensor

from cluster.assembly import assemble, autocast, checkpoint_facts
from cluster.config import RunConfig
from cluster.passes import evaluate
from cluster.rank import Rank, set_up_torch
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import cut_journal
from cluster.training.checkpoint import name_of
from cluster.training.finite import NotFinite
from cluster.training.loop import TrainingLoop, ends_epoch, new_state
from kdcore.batch import Batch, Needs, TeacherOutputs
from kdcore.checkpoints import to_safetensors
from kdcore.distiller import OnlineTeacher, StepOutput
from kdcore.errors import Refused
from kdcore.reused import deployed_parameters
from ops.reproduce.graphs import Graphed, GraphedPasses, follow, new_stream
from pipelines.files import finite_or_null, make_folder, read_json, write_json, write_whole
from pipelines.loaders.base import Request

FAILED = "failed.json"
VALIDATION_BATCH = 1000  # small images: a pass over them is then fewer, fuller calls

Key = TypeVar("Key", bound=Hashable)


class Lane:
    """One run. Its folder holds the checkpoint it goes on from; once it is finished, result.json and the weights."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.rank, self.folder = config, Rank(0, 1, device), RunFolder.of(config)
        self.folder.claim(config)
        set_up_torch(config.train.deterministic)
        self.run = assemble(config, self.rank)
        self.split = "held_out" if "held_out" in self.run.indexes else "val"
        if config.train.select not in ("last", self.split):
            raise Refused(
                f"{config.name}: train.select={config.train.select}, but runs side by side are judged by {self.split}; "
                f"take {self.split} or last, or use `train`"
            )
        self.state = new_state(self.run)
        self.compute = GraphedPasses(self.run, self.state.distiller)
        self.loop = TrainingLoop(self.run, self.state, self.compute)
        self.validation = self.run.loader(self.split, self.run.evaluation_plan(self.split), VALIDATION_BATCH)
        self.curve: list[dict[str, float]] = []  # a row for every evaluation
        self.total_loss = torch.zeros((), dtype=torch.float64, device=device)  # of the steps since the last one
        self.restore()
        self.stream = new_stream(device)

    @property
    def done(self) -> bool:
        """Whether the run has taken its last step."""
        return self.loop.is_done

    @property
    def views(self) -> tuple[Any, ...]:
        """Equal for runs whose next batches are the same, to the bit, and whose networks compute in the same way."""
        train, index, step = self.config.train, self.run.indexes["train"], self.state.step
        sizes = train.batch_size, self.run.micro_batch, self.run.steps_per_epoch
        batches = index.fingerprint, self.run.plan.fingerprint, self.run.statistics, *sizes, step
        seen = self.run.for_teacher.plan.fingerprint
        return *batches, seen, str(self.rank.device), train.precision, self.run.channels_last

    def step(self, batches: Sequence[Batch]) -> Tensor:
        """Take one optimiser step on its micro-batches, with the teacher's answers; return its mean loss.

        At the end of an epoch, and of the run, the student is evaluated.
        """
        losses: list[Tensor] = []

        def observe(number: int, batch: Batch, output: StepOutput) -> None:
            losses.append(output.loss.detach())

        with torch.cuda.stream(self.stream):  # None: no stream, on a CPU
            self.loop.step(iter(batches), observe)
            loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
            self.total_loss += loss
            if ends_epoch(self.state.step, self.run, self.config.train.evaluate_every_epochs):
                self.end_epoch()
        return loss

    def end_epoch(self) -> None:
        """Evaluate the student and add a row to the curve."""
        self.loop.watch.verify_weights()
        metrics = self.evaluate()
        step, interval = self.state.step, self.run.steps_per_epoch * self.config.train.evaluate_every_epochs
        loss, epoch = float(self.total_loss) / (step % interval or interval), step / self.run.steps_per_epoch
        self.curve.append({"epoch": epoch, "train_loss": loss, "top1": metrics["top1"], "nll": metrics["nll"]})
        self.log(
            {"train/loss": loss, "train/epoch": epoch} | {f"{self.split}/{name}": metrics[name] for name in metrics}
        )
        self.total_loss.zero_()
        if self.config.train.select != "last":
            self.state.offer_best(metrics["top1"])

    def log(self, metrics: dict[str, float]) -> None:
        """Write metrics of the last step into the run's journal, from which they can be delivered to its trackers."""
        row = finite_or_null({"step": self.state.step, "time": time.time(), **metrics})
        with self.folder.metrics.open("a") as journal:
            journal.write(json.dumps(row, allow_nan=False) + "\n")

    def evaluate(self, teacher_logits: Tensor | None = None) -> dict[str, float]:
        """Return the student's metrics on every validation image, or on every one that is held out."""
        with autocast(self.config, self.rank):
            return evaluate(
                self.state.evaluated,
                self.validation,
                len(self.run.indexes[self.split]),
                self.rank,
                teacher_logits,
                VALIDATION_BATCH,
            )

    def save(self) -> None:
        """Write the checkpoint under its name whole or not at all, then remove the older one."""
        self.loop.watch.verify_weights()
        target = self.folder.path / name_of(self.state.step)
        if not target.exists():
            unfinished = self.folder.path / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            make_folder(unfinished, "output_dir")
            with torch.cuda.stream(self.stream):
                self.state.snapshot(checkpoint_facts(self.run)).write(LocalFileSystem(), str(unfinished))
                progress = {"curve": self.curve, "total_loss": float(self.total_loss)}
            (unfinished / "progress.json").write_text(json.dumps(progress))
            (unfinished / "student.safetensors").unlink()  # the weights once more; state travels, and should be small
            unfinished.rename(target)
        for older in self.checkpoints():
            if older != target:
                shutil.rmtree(older)

    def checkpoints(self) -> list[Any]:
        """Return the folders of checkpoints, oldest first."""
        return sorted(self.folder.path.glob("step-*"))

    def restore(self) -> None:
        """Take up the newest checkpoint, where there is one; what was logged after it comes again."""
        if saved := self.checkpoints():
            self.state.restore(saved[-1], checkpoint_facts(self.run))
            progress = read_json(saved[-1] / "progress.json", "delete that folder: the run then begins again")
            self.curve = progress["curve"]
            self.total_loss.fill_(progress["total_loss"])
        if self.folder.metrics.exists():
            cut_journal(self.folder.metrics, self.state.step)

    def fail(self, error: NotFinite) -> None:
        """Say in the folder why the run will not be continued."""
        write_json(self.folder.path / FAILED, {"name": self.config.name, "step": self.state.step, "error": str(error)})

    def finish(self, about: dict[str, Any]) -> None:
        """Write the student's weights, then the result; remove the checkpoint."""
        with torch.cuda.stream(self.stream):
            teacher, logits = self.run.teacher_on(self.split, self.validation) or (None, None)
            final = self.evaluate(logits)
            if teacher is not None:
                self.log({f"{self.split}/teacher_{name}": value for name, value in teacher.items()})
            weights = self.state.deployed(select_best=self.config.train.select != "last")
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
        write_whole(self.folder.weights, to_safetensors(weights))
        self.folder.write_result(result)
        for checkpoint in self.checkpoints():
            shutil.rmtree(checkpoint)


class Flight:
    """Lanes whose batches are the same from here on (`Lane.views`), which advance together.

    A teacher that several of them have answers once, whatever each of them reads of it.
    """

    def __init__(self, lanes: list[Lane]) -> None:
        self.lanes = list(lanes)
        longest = max(lanes, key=lambda lane: lane.run.total_steps)
        requests, self.requests = tee(longest.run.train_requests(longest.state.step))
        self.batches = longest.run.train_loader().load(requests)
        self.num_micro_batches = len(longest.run.micro_batches)
        asking = grouped(filter(asks_online, lanes), teacher_of)
        self.teachers = {teacher: Graphed(shared_teacher(group)) for teacher, group in asking.items()}
        self.stream = new_stream(longest.rank.device)

    def step(self) -> list[Tensor]:
        """Take one step of every lane, none of which is done; return their losses, which on a GPU the next overwrites.

        A lane whose numbers are not finite any more says so in its folder, and leaves.
        """
        for lane in self.lanes:
            follow(self.stream, lane.stream)  # they may still read the batch, and what was answered for it
        shared: list[tuple[Batch, dict[str, TeacherOutputs]]] = []
        with torch.cuda.stream(self.stream):
            for _ in range(self.num_micro_batches):
                batch = next(self.batches)
                # A graph writes its answers where the last ones were: for one micro-batch a step alone.
                alone = self.num_micro_batches == 1
                shared.append((batch, {name: teacher(batch, alone) for name, teacher in self.teachers.items()}))
        requests = list(islice(self.requests, self.num_micro_batches))
        losses = []
        for lane in list(self.lanes):
            follow(lane.stream, self.stream)
            with torch.cuda.stream(lane.stream):
                batches = [
                    with_answers(lane, batch, request, answers)
                    for (batch, answers), request in zip(shared, requests, strict=True)
                ]
            try:
                losses.append(lane.step(batches))
            except NotFinite as error:  # of one run: the others go on
                lane.fail(error)
                self.lanes.remove(lane)
        return losses


def with_answers(lane: Lane, batch: Batch, request: Request, answers: dict[str, TeacherOutputs]) -> Batch:
    """Return the batch with what the lane's teacher answered, from its cache or beside it."""
    if lane.run.stored is not None:
        return batch.with_targets(lane.run.stored.outputs(request))
    if asks_online(lane):
        return batch.with_targets(lane.config.needs.select(answers[teacher_of(lane)]))
    return batch


def flights_of(lanes: list[Lane]) -> list[Flight]:
    """Return the lanes, those of the same views together."""
    return [Flight(group) for group in grouped(lanes, lambda lane: lane.views).values()]


def grouped(lanes: Iterable[Lane], key: Callable[[Lane], Key]) -> dict[Key, list[Lane]]:
    """Return {key: its lanes}, in the order in which keys and lanes come."""
    groups: dict[Key, list[Lane]] = {}
    for lane in lanes:
        groups.setdefault(key(lane), []).append(lane)
    return groups


def asks_online(lane: Lane) -> bool:
    """Return whether a teacher answers beside the lane's student."""
    return lane.config.needs.teacher and lane.run.teacher is not None


def teacher_of(lane: Lane) -> str:
    """Return what makes two lanes' teachers the same one."""
    assert lane.config.teacher is not None, "a method that needs a teacher has one"
    return lane.config.teacher.model_dump_json()


def shared_teacher(lanes: list[Lane]) -> Callable[[Batch], TeacherOutputs]:
    """Return the teacher that all these lanes have, answering what any of them reads."""
    run, config, rank = lanes[0].run, lanes[0].config, lanes[0].rank
    assert run.teacher is not None, "these lanes ask one"
    needs = Needs.union(lane.config.needs.of_teacher for lane in lanes)
    teacher = OnlineTeacher(run.teacher.model, needs, run.teacher.renormalise)

    def answer(batch: Batch) -> TeacherOutputs:
        with autocast(config, rank):
            return teacher(batch)

    return answer


def take_turns(
    waiting: Iterator[Lane],
    side_by_side: int,
    seconds: float,
    finished: Callable[[Lane], None],
    save_every: float = 120.0,
) -> None:
    """Step up to `side_by_side` lanes by turns until all are done or the time is over, then save them.

    Lanes that are done make place for the next that wait, which are built only then.
    """
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
    """Save every lane."""
    for flight in flights:
        for lane in list(flight.lanes):
            try:
                lane.save()
            except NotFinite as error:
                lane.fail(error)
                flight.lanes.remove(lane)
