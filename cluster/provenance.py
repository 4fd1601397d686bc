"""Which code ran: the commit, and what differs from it, even where the code travels without its repository.

Three places say it, the nearest first: the repository; the note that `submit` puts into the tree that it sends; the
environment, which a container image sets for the tree in it.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdcore.errors import Refused
from kdcore.remarks import warn_once

TREE = Path(__file__).parents[1]
COMMIT = "STILLHOUSE_COMMIT"  # in the environment of a container image, or as `reproduce --commit` says
NOTE_FILE = "stillhouse-provenance.json"  # at the root of a tree that was sent
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set in the process of a submitted job
MAX_DIFF = 1_000_000  # characters


@dataclass(frozen=True)
class Provenance:
    """The provenance of code: commit ('-dirty' at its end where files differ), diff, and who sent it from where."""

    commit: str
    diff: str = ""
    user: str = ""
    host: str = ""

    @classmethod
    def of_tree(cls, tree: Path = TREE) -> Provenance:
        """Return the provenance of a tree of this project; a warning says why git does not know it, where it should."""
        me = {"user": user_here(), "host": socket.gethostname()}
        git_failed = ""
        try:
            if commit := (git(tree, "describe", "--always", "--dirty", "--abbrev=40") or b"").decode().strip():
                diff = (git(tree, "diff", "HEAD", "--no-color") or b"").decode(errors="replace")
                return cls(commit, diff[:MAX_DIFF], **me)
        except Refused as error:
            git_failed = str(error)
        if (tree / NOTE_FILE).is_file():
            return cls(**json.loads((tree / NOTE_FILE).read_text()))
        if git_failed and COMMIT not in os.environ:
            warn_once(f"the commit of this code is recorded as unknown: {git_failed}")
        return cls(os.environ.get(COMMIT, "unknown"), **me)

    def note(self) -> str:
        """Return the text of the note that travels with the tree."""
        return json.dumps(asdict(self), indent=1)


def declare_commit(commit: str | None) -> None:
    """Let this process, and those that it starts, take a commit for that of the code where nothing nearer says it."""
    if commit:
        os.environ[COMMIT] = commit


def user_here() -> str:
    """Return the name of this process's user; empty where the system knows none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def submitted_job() -> dict[str, Any] | None:
    """Return Ray's record of the submitted job that this process drives: its metadata, and its environment.

    None outside a job.
    """
    text = os.environ.get(JOB_VARIABLE)
    return json.loads(text) if text else None


def job_tags() -> dict[str, str]:
    """Return MLflow's tags for where this process runs: source type and host, and in a submitted job its id."""
    job = submitted_job()
    if job is None:
        return {"mlflow.source.type": "LOCAL", "host": socket.gethostname()}
    metadata = job.get("metadata") or {}
    found = {"mlflow.source.type": "JOB", "host": socket.gethostname()}
    names = {"job_submission_id": "ray.job", "submitter_host": "ray.job.sent_from"}
    return found | {tag: str(metadata[name]) for name, tag in names.items() if metadata.get(name)}


def git(tree: Path, *words: str) -> bytes | None:
    """Return what git prints in a tree; None where the tree is not in a repository.

    Refused where there is a repository and git does not read it: its output must not be guessed.
    """
    repository = next((folder for folder in (tree, *tree.parents) if (folder / ".git").exists()), None)
    try:
        done = subprocess.run(["git", *words], cwd=tree, capture_output=True, check=False)
    except FileNotFoundError:
        if repository is None:
            return None
        raise Refused(f"{repository} is a git repository, and there is no git to read it; install git") from None
    if done.returncode == 0:
        return done.stdout
    if repository is None:
        return None
    said = next(iter(done.stderr.decode(errors="replace").splitlines()), f"exit status {done.returncode}")
    trust = f"if you trust its owner: git config --global --add safe.directory {repository}"
    raise Refused(f"git does not read {repository}: {said}; {trust if 'ownership' in said else 'fix the repository'}")
