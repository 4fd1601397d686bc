"""A cache build that loses workers: those that die at a unit count, those that were gone before do not."""

from collections import Counter
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError

from cluster.cache import crew
from cluster.cache.progress import Progress
from kdcore.errors import RunFailed
from pipelines.cache.columns import PlainColumn
from pipelines.cache.manifest import Part, Plan
from pipelines.cache.store import Unit

UNITS = [Unit("train", 0, 0, 4), Unit("train", 0, 4, 8)]
LOST = RayActorError()


class Method:
    """What `worker.method.remote(...)` answers, for its reference is the answer itself; or an error to raise."""

    def __init__(self, answer):
        self.remote = answer


class Worker:
    """dies_at: the units that kill it; None for one that is gone already."""

    def __init__(self, dies_at=()):
        self.gone, self.dies_at = dies_at is None, dies_at or ()
        self.build = Method(self.shard)
        self.__ray_ready__ = Method(lambda: LOST if self.gone else "ready")

    def shard(self, unit, *_):
        if self.gone or unit in self.dies_at:
            self.gone = True
            return Reference(LOST)
        return Reference(SimpleNamespace(unit=unit))


class Reference:
    def __init__(self, answer):
        self.answer = answer


class Ray:
    @staticmethod
    def put(value):
        return value

    @staticmethod
    def get(reference):
        answer = reference.answer if isinstance(reference, Reference) else reference
        if isinstance(answer, Exception):
            raise answer
        return answer

    @staticmethod
    def wait(references, **_):
        return references[:1], references[1:]


def work(monkeypatch, workers) -> list[Unit]:
    """The units that a crew of these workers brings home, the last of them first."""
    monkeypatch.setattr(crew, "ray", Ray)
    monkeypatch.setattr(crew, "failure_reason", lambda error: "the actor died")
    made = object.__new__(crew.Crew)
    made.starting, made.arriving, made.busy, made.losses = {}, {}, {}, Counter()
    made.idle, made.tally = list(workers), SimpleNamespace(look=Method(dict))
    monkeypatch.setattr(made, "grow", lambda num_waiting: None)
    part = Part(num_rows=8, num_views=1, columns=(PlainColumn(name="logits", shape=(3,), coding="float16"),))
    plan = Plan(identity={}, parts={"train": part}, rows_per_shard=4, batch_size=4)
    building = SimpleNamespace(plan=plan, key="", constants=dict)
    return [shard.unit for shard in made.work(UNITS, building, Progress(plan, UNITS, None))]


def test_idle_workers_of_a_node_that_is_gone_are_no_losses_of_a_unit(monkeypatch):
    """Three of them ended a build at its last unit, though others lived."""
    assert sorted(work(monkeypatch, [Worker(), *(Worker(dies_at=None) for _ in range(7))])) == UNITS


def test_a_unit_that_kills_every_worker_ends_the_build(monkeypatch):
    with pytest.raises(RunFailed, match="a worker was lost 3 times at the same place: the actor died"):
        work(monkeypatch, [Worker(dies_at=UNITS[1:]) for _ in range(9)])
