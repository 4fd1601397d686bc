"""The workers of a cache build on a Ray cluster: as many as there is room for, coming and going.

One that is lost gives its unit back to the queue; a cluster that grows gets more of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from torch import Tensor

from cluster.cache.builder import Builder
from cluster.cache.progress import Progress
from cluster.nodes.errors import failure_reason
from cluster.nodes.resources import device_of_worker, worker_resources
from cluster.nodes.start import on_this_node
from cluster.nodes.waiting import LOOK_SECONDS, Patience, remedy_for, request_in_words
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from kdcore.errors import RunFailed
from pipelines.cache.building import Building
from pipelines.cache.manifest import Plan
from pipelines.cache.store import Shard, Unit

MAX_LOST_WORKERS = 3  # at one place
REMEDY = (
    "if its node is short of memory, take a smaller cache.batch_size, or a larger scaling.cpus_per_worker for fewer "
    "workers per node; the same command goes on"
)
LOST = (RayActorError, OutOfMemoryError)  # which Ray's memory monitor raises, and which is not an actor's error


class CacheWorker:
    """A `Builder` in a process of its own; `plan` is called first."""

    def __init__(self, payload: dict[str, Any], tally: Any) -> None:
        self.payload, self.tally = payload, tally

    def plan(self) -> Plan:
        """Make the builder: not in the constructor, whose errors Ray takes for the loss of the worker."""
        self.builder = Builder(parse(self.payload), device_of_worker())
        return self.builder.plan()

    def constants(self, plan: Plan) -> tuple[dict[str, Tensor], dict[str, float]]:
        return self.builder.constants(plan)

    def build(self, unit: Unit, plan: Plan, key: str, constants: dict[str, Tensor]) -> Shard:
        return self.builder.build(unit, plan, key, constants, lambda rows: self.tally.set.remote(unit, rows))


class Tally:
    """How many rows of each unit are done."""

    def __init__(self) -> None:
        self.rows: dict[Unit, int] = {}

    def set(self, unit: Unit, rows: int) -> None:
        self.rows[unit] = rows

    def look(self) -> dict[Unit, int]:
        return self.rows


class Crew:
    """Workers on a Ray cluster, each an actor with the resources of one training worker."""

    def __init__(self, config: RunConfig, say: Callable[[str], None] = lambda line: None) -> None:
        self.payload = config.model_dump(mode="json")
        self.resources = {name: amount for name, amount in worker_resources(config).items() if amount}
        self.tally = ray.remote(Tally).options(num_cpus=0, max_restarts=-1, scheduling_strategy=on_this_node()).remote()
        self.patience = Patience(config.scaling.patience_seconds, say, remedy_for(1, None))
        self.starting: dict[Any, Any] = {}  # {reference to its plan: worker}
        self.arriving: dict[Any, Any] = {}  # {what is ready once it has a place: worker}
        self.busy: dict[Any, tuple[Any, Unit, Any]] = {}  # {reference to its shard: (worker, unit, ready at its start)}
        self.idle: list[Any] = []
        self.losses: Counter[Unit | None] = Counter()

    def start(self) -> None:
        """Start one more worker, which is idle when it has returned its plan."""
        options = {"num_cpus": self.resources["CPU"], "num_gpus": self.resources.get("GPU", 0)}
        worker = ray.remote(CacheWorker).options(**options).remote(self.payload, self.tally)
        self.arriving[worker.__ray_ready__.remote()] = worker
        self.starting[worker.plan.remote()] = worker

    def plan(self) -> Plan:
        """Return the plan of the cache, as the first worker makes it."""
        while True:
            self.start()
            ((reference, worker),) = self.starting.items()
            while not self.any_has_place(LOOK_SECONDS):
                self.wait()
            plan = self.answer(reference, None)
            self.starting.clear()
            if plan is not None:
                self.idle.append(worker)
                return plan

    def constants(self, plan: Plan) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the constants from the first worker; from another one if that is lost."""
        while True:
            answer = self.answer(self.idle[0].constants.remote(plan), None)
            if answer is not None:
                return answer
            self.idle.clear()
            self.plan()

    def work(self, units: list[Unit], building: Building, progress: Progress) -> Iterator[Shard]:
        """Yield the shards of the units, as they are finished. A unit whose worker is lost goes back to the front."""
        queue = units[::-1]
        plan, key = ray.put(building.plan), building.key
        constants = ray.put(building.constants())
        while queue or self.busy:
            while queue and self.idle:
                worker, unit = self.idle.pop(), queue.pop()
                begun = worker.__ray_ready__.remote()  # a worker's calls are done in order
                self.busy[worker.build.remote(unit, plan, key, constants)] = (worker, unit, begun)
            self.grow(len(queue))
            for reference in self.next_answers():
                if reference in self.starting:
                    self.admit(reference, building.plan)
                    continue
                worker, unit, begun = self.busy.pop(reference)
                shard = self.answer(reference, unit, begun)
                if shard is None:
                    queue.append(unit)
                    progress.done.pop(unit, None)
                    progress.messages.append("a worker was lost; its unit is recomputed")
                    continue
                self.idle.append(worker)
                progress.done[unit] = unit.stop - unit.start
                yield shard
            self.look(progress)

    def next_answers(self) -> list[Any]:
        """Return the references that are ready after at most half a second; none where no worker has room."""
        if not self.busy and not self.any_has_place(0.5):
            self.wait()
            return []
        return ray.wait([*self.busy, *self.starting], num_returns=1, timeout=0.5)[0]

    def any_has_place(self, seconds: float) -> bool:
        """Return whether a starting worker has a place, or has died with it, after at most `seconds`."""
        if not self.arriving:
            if not self.starting:
                time.sleep(seconds)
            return bool(self.starting)
        arrived, _ = ray.wait(list(self.arriving), num_returns=1, timeout=seconds)
        if arrived:
            self.arriving.clear()
            self.patience.end()
        return bool(arrived)

    def wait(self) -> None:
        """Note that no worker has a place. RunFailed where patience has ended."""
        self.patience.wait(request_in_words(1, self.resources), self.resources)

    def grow(self, num_waiting: int) -> None:
        """Start a worker where units wait and the cluster has room for one more."""
        room = ray.cluster_resources()
        places = min(int(room.get(name, 0) / amount) for name, amount in self.resources.items())
        present = len(self.idle) + len(self.busy) + len(self.starting)
        if len(self.starting) < num_waiting and present < places:
            self.start()

    def admit(self, reference: Any, plan: Plan) -> None:
        """Take in a worker that has started. RunFailed if its plan differs, by its node's libraries, say."""
        worker, theirs = self.starting.pop(reference), self.answer(reference, None)
        if theirs is None:
            return
        if theirs.without_views() != plan.without_views():
            raise RunFailed("the nodes of the cluster differ in libraries, devices or data; make them the same")
        self.losses[None] = 0
        self.idle.append(worker)

    def answer(self, reference: Any, unit: Unit | None, begun: Any = None) -> Any:
        """Return a worker's answer, None where it was lost. RunFailed for its own error, and for the third loss.

        begun: ready once the worker has begun the unit; a loss before, as of one idle on a lost node, does not count.
        """
        try:
            return ray.get(reference)
        except RayTaskError as error:
            raise RunFailed(failure_reason(error)) from error
        except LOST as error:
            if begun is not None and self.was_gone(begun):
                return None
            self.losses[unit] += 1
            if self.losses[unit] >= MAX_LOST_WORKERS:
                place = "while it loaded its teacher" if unit is None else f"at {unit.path}"
                raise RunFailed(
                    f"a worker was lost {MAX_LOST_WORKERS} times {place}: {failure_reason(error)}; {REMEDY}"
                ) from error
            return None

    def was_gone(self, begun: Any) -> bool:
        """Return whether a worker was lost before it came to its unit."""
        try:
            ray.get(begun)
        except LOST:
            return True
        return False

    def look(self, progress: Progress) -> None:
        """Update the rows of the units at work; they stay as they were while the process that counts them restarts."""
        at_work = {unit for _, unit, _ in self.busy.values()}
        with suppress(*LOST):
            progress.done |= {unit: rows for unit, rows in ray.get(self.tally.look.remote()).items() if unit in at_work}
        progress.tell()

    def close(self) -> None:
        for worker in [*self.idle, *self.starting.values(), *(worker for worker, *_ in self.busy.values()), self.tally]:
            ray.kill(worker)
