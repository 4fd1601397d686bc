"""What a run is tagged with: the commit, also where the code came without its repository."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

from cluster.tracking import description
from cluster.tracking.description import COMMIT, git_commit


def test_the_commit_of_a_repository():
    assert len(git_commit().removesuffix("-dirty")) == 40


def test_the_commit_of_code_that_travelled(monkeypatch):
    """As in a submitted job: the tree is there, its repository is not."""
    outside = SimpleNamespace(stdout="", returncode=128)
    monkeypatch.setattr(description.subprocess, "run", lambda *args, **kwargs: outside)
    assert git_commit() == "unknown"
    monkeypatch.setenv(COMMIT, "abc-dirty")
    assert git_commit() == "abc-dirty"


def test_a_machine_without_git(monkeypatch):
    def absent(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError("git")

    monkeypatch.setattr(description.subprocess, "run", absent)
    monkeypatch.setenv(COMMIT, "abc")
    assert git_commit() == "abc"
