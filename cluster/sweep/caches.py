"""Which runs of a sweep can read one cache of teacher outputs, and what it must hold for all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from cluster.assembly import assemble
from cluster.cache.builder import cache_bytes
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.recipe.sections import CacheConfig, StudentConfig
from cluster.sweep.config import SweepConfig
from cluster.teachers.stored import reuses_head
from kdcore.batch import Needs
from kdcore.errors import Refused
from kdcore.models import statistics_without_files
from kdcore.terms import Term
from pipelines.cache.manifest import MANIFEST
from pipelines.nested import differences
from pipelines.places import Place

CPU = torch.device("cpu")


class Caches:
    """The caches of a sweep: runs that show the same views to the same teacher share one.

    Each of several teachers has its own. configs: one run of every kind that there will be, with the teacher online.
    Refused where they need more caches than the sweep allows. A sweep whose teacher answers online, or is asked
    nothing, has none.
    """

    def __init__(self, sweep: SweepConfig, configs: Sequence[RunConfig]) -> None:
        self.groups: dict[str, list[RunConfig]] = {}
        if sweep.teacher == "cache":
            for one in (one for config in configs for one in config.teacher_recipes if asks_the_teacher(one)):
                self.groups.setdefault(cache_key(one), []).append(one)
        num_teachers = max((len(config.all_teachers) for config in configs), default=0)
        if len(self.groups) > sweep.max_caches * max(1, num_teachers):
            raise Refused(self._too_many())

    def reading(self, config: RunConfig) -> RunConfig:
        """Return the run with its teacher's outputs read from their cache. Refused for one that was not planned."""
        if not self.groups:
            return config
        return reading_from(config, self._directory_of)

    def _directory_of(self, one: RunConfig) -> str | None:
        """Return where the answers of a run's only teacher lie; None where it is asked nothing."""
        key = cache_key(one)
        if key in self.groups:
            return self.directory(key)
        if asks_the_teacher(one):
            raise Refused("its views or teacher differ from those in this sweep's caches; use search: grid")
        return None

    def directory(self, key: str) -> str:
        """Return where a cache lies: the first in its recipe's folder, others of that folder next to it."""
        first, *_ = self.groups[key]
        assert first.cache is not None, "given by shared_recipe"
        folder = first.cache.dir
        taken = next(other for other, (one, *_) in self.groups.items() if one.cache and one.cache.dir == folder)
        return folder if key == taken else f"{folder}-{short_hash(key)}"

    def builds(self) -> list[RunConfig]:
        """Return a recipe for each cache that stores what all of its runs read."""
        made = []
        for key, configs in self.groups.items():
            data = configs[0].model_dump(mode="json")
            needs = teacher_needs(configs)
            data["method"] = [term.model_dump(mode="json") for term in terms_for(configs)]
            data["views"]["num_views"] = max(config.views.num_views or 0 for config in configs)
            data["cache"] |= {
                "dir": self.directory(key),
                "taps": sorted(needs.teacher_taps | set(data["cache"]["taps"])),
                "head": data["cache"]["head"] or any(reuses_head(config) for config in configs),
            }
            made.append(parse(data, "the sweep's cache"))
        return made

    def missing(self) -> list[RunConfig]:
        """Return the caches that are yet to be built. Refused for a finished one that lacks what a run reads."""
        missing = []
        for build, configs in zip(self.builds(), self.groups.values(), strict=True):
            assert build.cache is not None, "given by shared_recipe"
            if not is_finished(build.cache):
                missing.append(build)
                continue
            for config in {config.needs: config for config in configs}.values():
                assemble(self.reading(config), Rank(0, 1, CPU))
        return missing

    def _too_many(self) -> str:
        first, second = (json.loads(key) for key in list(self.groups)[:2])
        (field, *_), *_ = differences(first, second)
        size = cache_bytes(self.builds()[0])
        return (
            f"the runs differ in {field}, so they cannot share one cache of teacher outputs: they need "
            f"{len(self.groups)} of about {size / 2**30:.2f} GiB and a pass of the teacher each. Take {field} out of "
            f"the space, allow them with max_caches: {len(self.groups)}, or set teacher: online"
        )


def reading_from(config: RunConfig, directory_of: Callable[[RunConfig], str | None]) -> RunConfig:
    """Return a run with teachers that answer from caches. directory_of: of a run with one teacher; None for online."""
    data = config.model_dump(mode="json")
    names = [member.name for member in config.teachers]
    members: list[str | None] = [member.name for member in config.read_teachers] or [None]
    for member, one in zip(members, config.teacher_recipes, strict=False):
        directory = directory_of(one)
        if directory is None:
            continue
        if member is not None:
            data["teachers"][names.index(member)] |= {"source": "cache", "cache_dir": directory}
        else:
            data["teacher"]["source"] = "cache"
            data["cache"]["dir"] = directory
    return parse(data, config.name)


def without_absent_weights(config: RunConfig) -> RunConfig:
    """Return a run whose teachers answer from their finished caches where their weights are not on this machine."""

    def directory_of(one: RunConfig) -> str | None:
        assert one.teacher is not None, "a run with one teacher"
        return one.cache.dir if one.teacher.lacks_weights and one.cache and is_finished(one.cache) else None

    return reading_from(config, directory_of)


def is_finished(cache: CacheConfig) -> bool:
    """Return whether a cache is finished, in a folder or in an object store."""
    return Place.of(cache.dir, "cache.dir").has(MANIFEST)


def asks_the_teacher(config: RunConfig) -> bool:
    """Return whether a run reads anything of a teacher."""
    return config.teacher is not None and (config.needs.reads_teacher or reuses_head(config))


def cache_key(config: RunConfig) -> str:
    """Return JSON text that is equal for runs whose teacher sees the same pixels, as far as recipes say."""
    assert config.teacher is not None, "checked by the caller"
    without = {"num_threads", "prefetch", "evaluation_batch"}
    if config.data.window_shards is None or not config.views.mixes:  # else it decides which images are mixed
        without.add("window_shards")
    return json.dumps(
        {
            "data": config.data.model_dump(mode="json", exclude=without),
            "views": config.views.appearance() | {"seed": config.plan_seed},
            "teacher": config.teacher.model_dump(mode="json", exclude={"source"}),
            "statistics": None if config.data.mean else statistics(config.student.model_dump_json()),
        },
        sort_keys=True,
    )


@lru_cache(maxsize=64)
def statistics(student: str) -> Any:
    """Return the mean and std by which a student's images are normalised."""
    return statistics_without_files(StudentConfig.model_validate_json(student))


def short_hash(key: str) -> str:
    """Return eight characters that stand for a key in a folder's name."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]


def teacher_needs(configs: Iterable[RunConfig]) -> Needs:
    """Return what all runs together read of the teacher."""
    return Needs.union(config.needs.of_teacher for config in configs)


def terms_for(configs: Sequence[RunConfig]) -> list[Term]:
    """Return terms that read all that the runs' methods read, except taps, which a cache's section can name.

    As few as possible: two terms that stand in different runs' methods may not be allowed in one method.
    """
    found: list[Term] = []
    covered = Needs()
    for term in (term for config in configs for term in config.method if term.weight > 0):
        needs = replace(term.needs().of_teacher, teacher_taps=frozenset())
        if covered | needs != covered:
            found.append(term)
            covered = covered | needs
    return found or list(configs[0].method)
