"""`lineage`: what an exported network was made of, back to the first teacher, each link checked by its fingerprints.

    teacher -> cache -> run -> export, which may be the next run's teacher (teacher.model=local-dir:EXPORT)

An export keeps `lineage.json`, which holds that of the teacher's export within. A link whose files are here is computed
anew and compared; one whose files are elsewhere is told as it was recorded. Nothing that a file names is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cluster.assembly import Assembly
from cluster.config import RunConfig
from cluster.stored_teacher import StoredTeacher
from cluster.tracking.description import method_name
from cluster.tracking.folder import RunFolder
from cluster.weights import starting_facts, tensors_fingerprint, weights_fingerprint
from kdcore.checkpoints import load_tensors
from kdcore.distiller import OnlineTeacher
from kdcore.errors import Refused
from kdcore.local_dir import WEIGHTS
from kdcore.located import is_uri, local_file
from kdcore.named_models import LOCAL_DIR
from ops.console import console, say, table
from pipelines.cache.manifest import MANIFEST
from pipelines.files import read_json, write_json

LINEAGE = "lineage.json"
HERE, ELSEWHERE = "verified", "not here"


class Link(NamedTuple):
    """One step of a chain. place: where its files were; found: the fingerprint of what lies there, None for nothing."""

    name: str
    what: str
    fingerprint: str
    place: str | None
    found: str | None

    @property
    def status(self) -> str:
        """Whether the files are those that were recorded."""
        if self.found is None:
            return ELSEWHERE
        return HERE if self.found == self.fingerprint else f"DIFFERS: {self.found[:12]}"


def write_lineage(folder: Path, parts: Assembly, run_dir: Path) -> None:
    """Write the lineage of a student that has just been exported to `folder`."""
    config = parts.config
    content = {
        "run": config.name,
        "run_dir": str(run_dir.absolute()),
        "method": method_name(config),
        "model": config.student.resolved().model,
        "weights": tensors_fingerprint(load_tensors(folder / WEIGHTS)),
        "data": {split: index.fingerprint for split, index in parts.indexes.items()},
        "views": parts.plan.fingerprint,
        "started_from": starting_facts(config),
        "teachers": teachers_of(parts),
    }
    write_json(folder / LINEAGE, content)


def teachers_of(parts: Assembly) -> list[dict[str, Any]]:
    """Return what is known of the run's teachers, in the recipe's order."""
    networks: list[OnlineTeacher | StoredTeacher | None] = [parts.teacher or parts.stored]
    if parts.ensemble is not None:
        known: dict[str, OnlineTeacher | StoredTeacher] = {**parts.ensemble.online, **parts.ensemble.stored}
        networks = [known[member.name] for member in parts.config.read_teachers]
    pairs = zip(parts.config.teacher_recipes, networks, strict=False)
    return [teacher_facts(recipe, network) for recipe, network in pairs if network is not None]


def teacher_facts(recipe: RunConfig, network: OnlineTeacher | StoredTeacher) -> dict[str, Any]:
    """Return what is known of a teacher: its weights, the cache it answered from, the export that it was.

    recipe: the one that it has alone.
    """
    teacher, cache = recipe.teacher, recipe.cache
    assert teacher is not None, "a recipe with one"
    stored = None
    if isinstance(network, StoredTeacher):
        assert cache is not None, "checked by RunConfig"
        weights = network.manifest.plan.identity["teacher"]["weights"]
        stored = {"dir": str(Path(cache.dir).absolute()), "digest": network.manifest.digest}
    else:
        weights = weights_fingerprint(network.model)
    found: dict[str, Any] = {"model": teacher.model, "weights": weights, "cache": stored}
    if teacher.weights_file is not None and teacher.weights_file.is_file():
        is_remote = teacher.checkpoint is not None and is_uri(teacher.checkpoint)
        found |= {"file": teacher.checkpoint if is_remote else str(teacher.weights_file.absolute())}
        found |= {"file_weights": tensors_fingerprint(load_tensors(teacher.weights_file))}
    if teacher.model.startswith(LOCAL_DIR):
        beside = Path(teacher.model.removeprefix(LOCAL_DIR)) / LINEAGE
        found |= {"lineage": read_lineage(beside.parent) if beside.is_file() else None}
    return found


def read_lineage(folder: Path) -> dict[str, Any]:
    """Return what an export tells. Refused for a folder that tells nothing, or no such thing."""
    path = folder / LINEAGE
    if not path.is_file():
        raise Refused(f"{folder} has no {LINEAGE}; give a folder that `export` has written, or export the run again")
    found = read_json(path, "export the run again")
    if not isinstance(found, dict) or not {"run", "run_dir", "weights", "teachers"} <= found.keys():
        raise Refused(f"{path} is no lineage of an export; export the run again")
    return found


def lineage(folder: str) -> int:
    """Print the chain behind an export, newest first. Refused, at the end, where a link is not what was recorded."""
    links = list(chain(read_lineage(Path(folder)), Path(folder)))
    rows = [[link.name, link.what, link.fingerprint[:16], link.status, link.place or "-"] for link in links]
    console.print(table(f"what {folder} was made of", ["", "what", "fingerprint", "", "where"], rows))
    if differing := [link for link in links if link.status not in (HERE, ELSEWHERE)]:
        link = differing[0]
        raise Refused(
            f"{link.name} ({link.place}) is not what this network was made of: {str(link.found)[:16]}... lies there, "
            f"{link.fingerprint[:16]}... was recorded; restore it, or export the run again"
        )
    say(f"{sum(link.status == HERE for link in links)} of {len(links)} links verified; the others' files are not here")
    return 0


def chain(content: dict[str, Any], folder: Path | None) -> Iterator[Link]:
    """Yield the links of a lineage: export, run, cache, teacher, and what that teacher was made of."""
    weights, run_dir = content["weights"], Path(content["run_dir"])
    if folder is not None:
        yield Link("export", content["model"], weights, str(folder), fingerprint_in(folder / WEIGHTS))
    deployed = RunFolder(run_dir).weights
    yield Link(f"run {content['run']}", content["method"], weights, str(run_dir), fingerprint_in(deployed))
    for teacher in content["teachers"]:
        yield from chain_of_teacher(teacher)


def chain_of_teacher(teacher: dict[str, Any]) -> Iterator[Link]:
    """Yield the links of one teacher: its cache, its weights, and what those were made of."""
    if teacher["cache"] is not None:
        place = Path(teacher["cache"]["dir"])
        yield Link("cache", "teacher outputs", teacher["cache"]["digest"], str(place), digest_in(place))
    model, file = teacher["model"], teacher.get("file")
    if file is None:
        yield Link("teacher", model, teacher["weights"], None, None)
        return
    yield Link("teacher", model, teacher["file_weights"], file, fingerprint_in(local_file(file)))
    if teacher.get("lineage"):
        before = teacher["lineage"]
        if before["weights"] != teacher["file_weights"]:
            yield Link("teacher's lineage", model, teacher["file_weights"], file, before["weights"])
        yield from chain(before, None)


def fingerprint_in(path: Path) -> str | None:
    """Return the fingerprint of the tensors in a file; None where there is none."""
    return tensors_fingerprint(load_tensors(path)) if path.is_file() else None


def digest_in(folder: Path) -> str | None:
    """Return the digest of the cache in a folder; None where there is none."""
    path = folder / MANIFEST
    return str(read_json(path, "build the cache again").get("digest")) if path.is_file() else None
