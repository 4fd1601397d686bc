"""A cache build that loses workers: those that die at a unit count, those that were gone before do not."""

from collections import Counter
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError

from cluster.cache import crew
from cluster.cache.progress import Progress
from kdcore.errors import RunFailed
from pipelines.cache.columns import PlainColumn
from pipelines.cache.manifest import Part, Plan
from pipelines.cache.store import Unit

UNITS = [Unit("train", 0, 0, 4), Unit("train", 0, 4, 8)]
LOSSES = [RayActorError(), OutOfMemoryError("the memory monitor has killed it")]


class Method:
    """What `worker.method.remote(...)` answers, for its reference is the answer itself; or an error to raise."""

    def __init__(self, answer):
        self.remote = answer


class Worker:
    """dies_at: the units that kill it; None for one that is gone already. loss: what Ray then raises."""

    def __init__(self, dies_at=(), loss=LOSSES[0]):
        self.gone, self.dies_at, self.loss = dies_at is None, dies_at or (), loss
        self.build = Method(self.shard)
        self.__ray_ready__ = Method(lambda: self.loss if self.gone else "ready")

    def shard(self, unit, *_):
        if self.gone or unit in self.dies_at:
            self.gone = True
            return Reference(self.loss)
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


def work(monkeypatch, workers, look=dict) -> list[Unit]:
    """The units that a crew of these workers brings home, the last of them first."""
    monkeypatch.setattr(crew, "ray", Ray)
    monkeypatch.setattr(crew, "failure_reason", lambda error: "the actor died")
    made = object.__new__(crew.Crew)
    made.starting, made.arriving, made.busy, made.losses = {}, {}, {}, Counter()
    made.idle, made.tally = list(workers), SimpleNamespace(look=Method(look))
    monkeypatch.setattr(made, "grow", lambda num_waiting: None)
    part = Part(num_rows=8, num_views=1, columns=(PlainColumn(name="logits", shape=(3,), coding="float16"),))
    plan = Plan(identity={}, parts={"train": part}, rows_per_shard=4, batch_size=4)
    building = SimpleNamespace(plan=plan, key="", constants=dict)
    return [shard.unit for shard in made.work(UNITS, building, Progress(plan, UNITS, None))]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_idle_workers_of_a_node_that_is_gone_are_no_losses_of_a_unit(monkeypatch, loss):
    """Three of them ended a build at its last unit, though others lived."""
    assert sorted(work(monkeypatch, [Worker(), *(Worker(None, loss) for _ in range(7))])) == UNITS


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_unit_that_kills_every_worker_ends_the_build(monkeypatch, loss):
    with pytest.raises(
        RunFailed, match=f"a worker was lost 3 times at {UNITS[1].path}: the actor died; if its node is short of memory"
    ):
        work(monkeypatch, [Worker(UNITS[1:], loss) for _ in range(9)])


def test_a_build_goes_on_while_its_rows_are_not_counted(monkeypatch):
    """The process that counts them restarts: only the progress line needs it."""
    away = ActorUnavailableError("it restarts", None)
    assert sorted(work(monkeypatch, [Worker()], lambda: Reference(away))) == UNITS
