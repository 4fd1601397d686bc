"""Which code ran: the commit, and what differs from it, also where the code travels without its repository.

Three places say it, the nearest first: the repository; the note that `submit` lays into the tree that it sends; the
environment, which an image sets for the tree in it.
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

TREE = Path(__file__).parents[1]
COMMIT = "STILLHOUSE_COMMIT"  # in the environment of an image
NOTE = "stillhouse-provenance.json"  # at the root of a tree that was sent
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set in the process of a submitted job
MAX_DIFF = 1_000_000  # characters


@dataclass(frozen=True)
class Provenance:
    """Of the code: commit ('-dirty' at its end where files differ), the diff, and who sent it from where."""

    commit: str
    diff: str = ""
    user: str = ""
    host: str = ""

    @classmethod
    def of_tree(cls, tree: Path = TREE) -> Provenance:
        """Return the provenance of a tree of this project."""
        me = {"user": user_here(), "host": socket.gethostname()}
        if commit := _git(tree, "describe", "--always", "--dirty", "--abbrev=40").strip():
            return cls(commit, _git(tree, "diff", "HEAD", "--no-color")[:MAX_DIFF], **me)
        if (tree / NOTE).is_file():
            return cls(**json.loads((tree / NOTE).read_text()))
        return cls(os.environ.get(COMMIT, "unknown"), **me)

    def note(self) -> str:
        """Return the text of the note that travels with the tree."""
        return json.dumps(asdict(self), indent=1)


def user_here() -> str:
    """Return the name of who runs this process; empty where the system knows none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def submitted_job() -> dict[str, Any] | None:
    """Return what Ray says of the submitted job that this process drives: its metadata, and its environment.

    None outside of one.
    """
    text = os.environ.get(JOB)
    return json.loads(text) if text else None


def job_tags() -> dict[str, str]:
    """Return MLflow's tags of where this process runs: its source's type, and the job's id in a submitted one."""
    job = submitted_job()
    if job is None:
        return {"mlflow.source.type": "LOCAL", "host": socket.gethostname()}
    metadata = job.get("metadata") or {}
    found = {"mlflow.source.type": "JOB", "host": socket.gethostname()}
    names = {"job_submission_id": "ray.job", "submitter_host": "ray.job.sent_from"}
    return found | {tag: str(metadata[name]) for name, tag in names.items() if metadata.get(name)}


def _git(tree: Path, *words: str) -> str:
    """Return what git prints; nothing where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", *words], cwd=tree, capture_output=True, text=True, check=False, errors="replace")
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
