"""Filling a teacher cache: the rows it lacks, by one process or by a cluster.

The folder must be one that every node sees. Not here: what a worker does (`cluster.cache.builder`), and how workers are
started and lost (`cluster.cache.crew`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from cluster.cache.builder import Builder
from cluster.cache.progress import Progress, Watcher
from cluster.nodes.resources import device_here, ray_session, use_worker_threads
from cluster.recipe.config import RunConfig
from cluster.recipe.rules import require_cache, require_teacher
from kdcore.errors import Refused
from kdcore.located import is_uri
from pipelines.cache.building import Building
from pipelines.cache.manifest import Manifest, Plan
from pipelines.cache.rows import row_bytes
from pipelines.cache.store import Shard, Unit
from pipelines.files import make_folder, refuse_without_space
from pipelines.leases import leased

if TYPE_CHECKING:
    from cluster.cache.crew import Crew


def build(config: RunConfig, watch: Watcher | None = None) -> Manifest:
    """Build the recipe's cache, or resume building it.

    In this process if scaling.num_workers is 0, else in every place that the Ray cluster has for a worker. Refused
    where the recipe names no cache or its folder holds another one; RunFailed where a worker fails.
    """
    directory = checked_directory(config)
    with exclusive(directory):
        if config.scaling.num_workers == 0:
            return fill(directory, LocalCrew(config), watch)
        from cluster.cache.crew import Crew  # Ray, which a build in this process does without

        say = (lambda line: watch({}, [line])) if watch else (lambda line: None)
        with ray_session(config), closing(Crew(config, say)) as crew:
            return fill(directory, crew, watch)


def checked_directory(config: RunConfig) -> Path:
    """Make the folder of the recipe's cache. Refused for a recipe that cannot build one."""
    teacher = require_teacher(config)
    cache = require_cache(config.cache, config.views)
    if is_uri(cache.dir):
        raise Refused(
            f"cache.dir={cache.dir}: a cache is built in a folder, and `python -m ops cache copy` puts it there"
        )
    for model in (config.student, teacher.model_copy(update={"source": "online"})):
        model.check()
    return make_folder(Path(cache.dir), "cache.dir")


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Reserve the folder for one build."""
    with leased(directory, "cache build"):
        yield


def fill(directory: Path, crew: LocalCrew | Crew, watch: Watcher | None) -> Manifest:
    """Let the crew build what is missing; return the manifest."""
    building = Building(directory, crew.plan())
    if building.note is None:
        building.write_constants(*crew.constants(building.plan))
    missing = building.missing()
    columns = {name: row_bytes(part.columns) for name, part in building.plan.parts.items()}
    num_bytes = sum((unit.stop - unit.start) * columns[unit.part] for unit in missing)
    refuse_without_space(directory, num_bytes, "the shards of the cache")
    progress = Progress(building.plan, missing, watch)
    for shard in crew.work(missing, building, progress):
        building.shards[shard.unit] = shard
    progress.tell(last=True)
    return building.finish()


class LocalCrew:
    """A crew of one: this process."""

    def __init__(self, config: RunConfig) -> None:
        use_worker_threads(config)
        self.builder = Builder(config, device_here(config))

    def plan(self) -> Plan:
        return self.builder.plan()

    def constants(self, plan: Plan) -> tuple[dict[str, Tensor], dict[str, float]]:
        return self.builder.constants(plan)

    def work(self, units: list[Unit], building: Building, progress: Progress) -> Iterator[Shard]:
        constants = building.constants()
        for unit in units:

            def on_rows_done(rows: int, unit: Unit = unit) -> None:
                progress.done[unit] = rows
                progress.tell()

            yield self.builder.build(unit, building.plan, building.key, constants, on_rows_done)
