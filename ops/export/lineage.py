"""`lineage`: what an exported network was made of, back to the first teacher, each link checked by its fingerprints.

    teacher -> cache -> run -> export, which may be the next run's teacher (teacher.model=local-dir:EXPORT)

An export keeps `lineage.json`, which contains that of the teacher's export. A link whose files are here is recomputed
and compared; one whose files are elsewhere is shown as it was recorded. Nothing that a file names is imported.

Where an export is signed (`ops.export.signing`), the signature covers its lineage.json, and so vouches for every link
as it was at signing; a cache, and the export that a teacher came from, may have signatures of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.assembly import Assembly
from cluster.recipe.config import RunConfig
from cluster.teachers.stored import StoredTeacher
from cluster.tracking.description import method_name
from cluster.tracking.folder import RunFolder
from cluster.weights import starting_facts, tensors_fingerprint, weights_fingerprint
from kdcore.checkpoints import load_tensors
from kdcore.errors import Refused
from kdcore.local_dir import WEIGHTS
from kdcore.located import is_uri, local_file
from kdcore.named_models import LOCAL_DIR
from kdcore.online_teacher import OnlineTeacher
from ops.console import console, say, table
from ops.evaluation.subjects import LINEAGE
from ops.export.files import digests_of
from ops.export.signing import Finding, examine, trusted_keys
from pipelines.cache.manifest import MANIFEST, load_manifest
from pipelines.cache.reader import load_constants, refuse_damaged
from pipelines.files import read_json, write_json

HERE, ELSEWHERE = "verified", "not here"
THROUGH = "through the export"


class Link(NamedTuple):
    """One step of a chain. place: where its files were; found: the fingerprint of what lies there now, if anything.

    folder: one that may have a signature of its own.
    """

    name: str
    what: str
    fingerprint: str
    place: str | None
    found: str | None
    folder: Path | None = None

    @property
    def status(self) -> str:
        """Whether the files are those that were recorded."""
        if self.found is None:
            return ELSEWHERE
        return HERE if self.found == self.fingerprint else f"DIFFERS: {self.found[:12]}"


def write_lineage(folder: Path, parts: Assembly, run_dir: Path, in_timm: bool) -> None:
    """Write the lineage of a student that has just been exported to `folder`. in_timm: timm alone can build it."""
    config = parts.config
    content = {
        "run": config.name,
        "run_dir": str(run_dir.absolute()),
        "method": method_name(config),
        "model": config.student.resolved().model,
        "in_timm": in_timm,
        "files": digests_of(folder),
        "weights": tensors_fingerprint(load_tensors(folder / WEIGHTS)),
        "data": {split: index.fingerprint for split, index in parts.indexes.items()},
        "views": parts.plan.fingerprint,
        "started_from": starting_facts(config),
        "teachers": teachers_of(parts),
    }
    write_json(folder / LINEAGE, content)


def teachers_of(parts: Assembly) -> list[dict[str, Any]]:
    """Return what is known of the run's teachers, in the recipe's order."""
    pairs = zip(parts.config.teacher_recipes, parts.teachers.members.values(), strict=True)
    return [teacher_facts(recipe, teacher) for recipe, teacher in pairs]


def teacher_facts(recipe: RunConfig, network: OnlineTeacher | StoredTeacher) -> dict[str, Any]:
    """Return what is known of a teacher: its weights, the cache it answered from, the export it came from.

    recipe: the run's, with this teacher only.
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
    """Return the lineage in an export's folder. Refused where there is none, or where the file is not one."""
    path = folder / LINEAGE
    if not path.is_file():
        raise Refused(f"{folder} has no {LINEAGE}; give a folder that `export` has written, or export the run again")
    found = read_json(path, "export the run again")
    if not isinstance(found, dict) or not {"run", "run_dir", "weights", "teachers"} <= found.keys():
        raise Refused(f"{path} is not the lineage of an export; export the run again")
    return found


def lineage(folder: str, trust: Sequence[str], thorough: bool) -> int:
    """Print the chain behind an export or a cache, newest first, and who has signed it.

    trust: files of public keys; if any are given, a chain that none of them vouches for is refused. thorough: read all
    shards of the caches that are here, and fetch the weights that have a URI: only then does an export, which may be a
    stranger's, have this machine connect to a place that it names. Refused, at the end, where a link is not what was
    recorded.
    """
    trusted = trusted_keys(trust)
    links = links_of(Path(folder), thorough)
    findings = [examine(link.folder, trusted) if link.folder else Finding() for link in links]
    rows = [[link.name, link.what, link.fingerprint[:16], link.status, link.place or "-"] for link in links]
    console.print(table(f"what {folder} was made of", ["", "what", "fingerprint", "", "where"], rows))
    signers = (f"{link.name}: {signed_by(found, findings[0])}" for link, found in zip(links, findings, strict=True))
    say(f"signed by: {'; '.join(signers)}")
    if thorough:
        read_shards(links)
    if differing := [link for link in links if link.status not in (HERE, ELSEWHERE)]:
        link = differing[0]
        raise Refused(
            f"{link.name} ({link.place}) is not what this network was made of: {str(link.found)[:16]}... lies there, "
            f"{link.fingerprint[:16]}... was recorded; restore it, or export the run again"
        )
    refuse_signatures(links, findings, bool(trusted))
    verified = sum(link.status == HERE for link in links)
    elsewhere = "" if verified == len(links) else "; the others' files are not here"
    say(f"{verified} of {len(links)} links verified{elsewhere}")
    return 0


def links_of(folder: Path, fetches: bool) -> list[Link]:
    """Return the chain behind an export, or behind a cache, newest first. fetches: weights that have a URI."""
    if not (folder / MANIFEST).is_file():
        return list(chain(read_lineage(folder), folder, fetches))
    digest, teacher = digest_in(folder), load_manifest(folder).plan.identity.get("teacher", {})
    return [
        Link("cache", "teacher outputs", str(digest), str(folder), digest, folder),
        Link("teacher", str(teacher.get("model", "-")), str(teacher.get("weights", "-")), None, None),
    ]


def signed_by(finding: Finding, newest: Finding) -> str:
    """Return who vouches for a link: its own signer, or the newest link's, whose signature covers what is recorded."""
    if finding.signer is None and newest.signer is not None and newest.problem is None:
        return THROUGH
    return str(finding)


def read_shards(links: Sequence[Link]) -> None:
    """Read all shards of the caches that are here. Refused where one is not what its manifest says."""
    for folder in (link.folder for link in links if link.name == "cache" and link.folder):
        refuse_damaged(folder, list(load_manifest(folder).shards), full=True)


def refuse_signatures(links: Sequence[Link], findings: Sequence[Finding], is_asked: bool) -> None:
    """Refuse a broken signature and, where trusted keys were given, a chain that none of them vouches for."""
    for link, finding in zip(links, findings, strict=True):
        if finding.problem is not None:
            raise Refused(f"{link.folder}: {finding.problem}; restore it as {finding.signer} signed it")
    if is_asked and not findings[0].is_good:
        raise Refused(
            f"{links[0].folder} is signed by {findings[0]}; give the .pub file of its signer as --trust, or have "
            "someone you trust sign it"
        )


def chain(content: dict[str, Any], folder: Path | None, fetches: bool) -> Iterator[Link]:
    """Yield the links of a lineage: export, run, cache, teacher, and what that teacher was made of."""
    weights, run_dir = content["weights"], Path(content["run_dir"])
    if folder is not None:
        yield Link("export", content["model"], weights, str(folder), fingerprint_in(folder / WEIGHTS), folder)
    deployed = RunFolder(run_dir).weights
    yield Link(f"run {content['run']}", content["method"], weights, str(run_dir), fingerprint_in(deployed))
    for teacher in content["teachers"]:
        yield from chain_of_teacher(teacher, fetches)


def chain_of_teacher(teacher: dict[str, Any], fetches: bool) -> Iterator[Link]:
    """Yield the links of one teacher: its cache, its weights, and what those were made of."""
    if teacher["cache"] is not None:
        place = Path(teacher["cache"]["dir"])
        found = digest_in(place)
        folder = place if found is not None else None
        yield Link("cache", "teacher outputs", teacher["cache"]["digest"], str(place), found, folder)
    model, file = teacher["model"], teacher.get("file")
    if file is None:
        yield Link("teacher", model, teacher["weights"], None, None)
        return
    here = file_here(file, fetches)
    folder = here.parent if here is not None and (here.parent / LINEAGE).is_file() else None
    found = None if here is None else fingerprint_in(here)
    yield Link("teacher", model, teacher["file_weights"], file, found, folder)
    if teacher.get("lineage"):
        before = teacher["lineage"]
        if before["weights"] != teacher["file_weights"]:
            yield Link("teacher's lineage", model, teacher["file_weights"], file, before["weights"])
        yield from chain(before, None, fetches)


def file_here(location: str, fetches: bool) -> Path | None:
    """Return the path of a file of weights; None for a URI that is not to be fetched, or cannot be."""
    if is_uri(location) and not fetches:
        return None
    try:
        return local_file(location)
    except Refused:
        return None


def fingerprint_in(path: Path) -> str | None:
    """Return the fingerprint of the tensors in a file; None where there is none."""
    return tensors_fingerprint(load_tensors(path)) if path.is_file() else None


def digest_in(folder: Path) -> str | None:
    """Return the digest of the cache in a folder; None where there is none.

    Refused where its manifest or its constants were changed by hand, or its shards do not have the recorded sizes.
    """
    if not (folder / MANIFEST).is_file():
        return None
    manifest = load_manifest(folder)
    refuse_damaged(folder, list(manifest.shards), full=False)
    load_constants(folder, manifest)
    return manifest.digest
