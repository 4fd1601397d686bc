"""Several runs side by side in one process, which share what they can.

A batch of 64 images of 32 pixels does not fill a GPU, and its teacher costs more than its student. Here runs that see
the same views form a `Flight`: a batch is made once, and the teacher answers once, for all of them. Every run is a
`Lane`: the product's training loop, with a CUDA stream of its own, and its forward and backward pass as one CUDA graph.
Flights take turns, one step each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice, tee
from typing import TypeVar

import torch
from torch import Tensor

from cluster.precision import autocast
from cluster.teachers.running import SINGLE
from cluster.training.finite import NotFinite
from cluster.training.graphs import Graphed, follow, new_stream
from kdcore.batch import Batch, Needs, TeacherOutputs
from kdcore.online_teacher import OnlineTeacher
from ops.reproduce.lane import Lane
from pipelines.loaders.base import Request

Key = TypeVar("Key", bound=Hashable)

SAVE_SECONDS = 120.0  # between two saves of the lanes that are under way


class Flight:
    """Lanes whose batches are the same from here on (`Lane.views`), which advance together.

    A teacher that several of them share answers once, whatever each reads of its outputs.
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

        A lane whose numbers are no longer finite records that in its folder, and is removed.
        """
        for lane in self.lanes:
            follow(self.stream, lane.stream)  # lanes may still be reading the last batch and its answers
        shared: list[tuple[Batch, dict[str, TeacherOutputs]]] = []
        with torch.cuda.stream(self.stream):
            for _ in range(self.num_micro_batches):
                batch = next(self.batches)
                # A graph overwrites its last answers, so it is used only for steps of one micro-batch.
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
    """Return the batch with the answers of the lane's teacher, from its cache or online."""
    if (stored := lane.run.teachers.targets(request)) is not None:
        return batch.with_targets(stored)
    if asks_online(lane):
        return batch.with_targets(lane.config.needs.select(answers[teacher_of(lane)]))
    return batch


def flights_of(lanes: list[Lane]) -> list[Flight]:
    """Return the lanes as flights, one for all lanes with the same views."""
    return [Flight(group) for group in grouped(lanes, lambda lane: lane.views).values()]


def grouped(lanes: Iterable[Lane], key: Callable[[Lane], Key]) -> dict[Key, list[Lane]]:
    """Return {key: its lanes}, in the order in which keys and lanes come."""
    groups: dict[Key, list[Lane]] = {}
    for lane in lanes:
        groups.setdefault(key(lane), []).append(lane)
    return groups


def asks_online(lane: Lane) -> bool:
    """Return whether the lane asks an online teacher."""
    return lane.config.needs.reads_teacher and SINGLE in lane.run.teachers.online


def teacher_of(lane: Lane) -> str:
    """Return a key that is the same for lanes with the same teacher."""
    assert lane.config.teacher is not None, "a method that needs a teacher has one"
    return lane.config.teacher.model_dump_json()


def shared_teacher(lanes: list[Lane]) -> Callable[[Batch], TeacherOutputs]:
    """Return the teacher that all these lanes have, answering what any of them reads."""
    config, rank, asked = lanes[0].config, lanes[0].rank, lanes[0].run.teachers.single
    needs = Needs.union(lane.config.needs.of_teacher for lane in lanes)
    teacher = OnlineTeacher(asked.model, needs, asked.renormalise)

    def answer(batch: Batch) -> TeacherOutputs:
        with autocast(config, rank):
            return teacher(batch)

    return answer


def take_turns(waiting: Iterator[Lane], side_by_side: int, seconds: float, finished: Callable[[Lane], None]) -> None:
    """Step up to `side_by_side` lanes in turns until all are done or the time is over, then save them.

    Finished lanes make room for waiting ones, which are built only then.
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
        if time.monotonic() - saved > SAVE_SECONDS:
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
