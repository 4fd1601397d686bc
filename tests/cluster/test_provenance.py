"""Which code ran: the commit, what differs from it and who sent it, also where it travelled without its repository."""

from __future__ import annotations

import json
import os
import socket
import subprocess

import pytest

from cluster import provenance
from cluster.nodes.resources import SETUP_HOOK, runtime_env
from cluster.provenance import COMMIT, JOB_VARIABLE, NOTE_FILE, Provenance, job_tags
from cluster.tracking.description import git_commit


@pytest.fixture
def repository(tmp_path):
    def git(*words: str) -> None:
        identity = ["-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "--quiet")
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "First")
    return tmp_path


def test_the_commit_of_a_repository(repository):
    clean = Provenance.of_tree(repository)
    assert (len(clean.commit), clean.diff, clean.host) == (40, "", socket.gethostname())
    (repository / "code.py").write_text("a = 2\n")
    dirty = Provenance.of_tree(repository)
    assert dirty.commit == f"{clean.commit}-dirty"
    assert "-a = 1\n+a = 2\n" in dirty.diff
    assert len(git_commit().removesuffix("-dirty")) == 40


def test_a_repository_that_git_does_not_read(repository, monkeypatch, caplog):
    """As where another user owns it: the commit is unknown, and a line says why and what to do."""
    monkeypatch.delenv(COMMIT, raising=False)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    assert Provenance.of_tree(repository).commit == "unknown"
    (line,) = caplog.messages
    assert "recorded as unknown" in line
    assert f"git config --global --add safe.directory {repository}" in line
    monkeypatch.setenv(COMMIT, "abc")
    assert Provenance.of_tree(repository).commit == "abc"


def test_code_that_travelled(repository, tmp_path_factory, monkeypatch):
    """As in a submitted job: the tree is there with its note, its repository is not. And in an image."""
    (repository / "code.py").write_text("a = 2\n")
    sent, tree = Provenance.of_tree(repository), tmp_path_factory.mktemp("sent")
    (tree / NOTE_FILE).write_text(sent.note())
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tree.parent))
    assert Provenance.of_tree(tree) == sent
    (tree / NOTE_FILE).unlink()
    assert Provenance.of_tree(tree).commit == "unknown"
    monkeypatch.setenv(COMMIT, "abc-dirty")
    assert Provenance.of_tree(tree).commit == "abc-dirty"


def test_a_machine_without_git(monkeypatch):
    def absent(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError("git")

    monkeypatch.setattr(provenance.subprocess, "run", absent)
    monkeypatch.setenv(COMMIT, "abc")
    assert git_commit() == "abc"


def test_where_it_ran(monkeypatch):
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    assert job_tags() == {"mlflow.source.type": "LOCAL", "host": socket.gethostname()}
    metadata = {"job_submission_id": "first", "submitter_host": "me@desk", "command": "train"}
    monkeypatch.setenv(JOB_VARIABLE, json.dumps({"metadata": metadata}))
    tags = job_tags()
    assert tags["mlflow.source.type"] == "JOB"
    assert (tags["ray.job"], tags["ray.job.sent_from"]) == ("first", "me@desk")


def test_a_job_with_a_hook_of_its_own(monkeypatch):
    """Ray takes one: the job's stays, and its address comes by the environment."""
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    assert SETUP_HOOK in runtime_env(A="b")
    monkeypatch.setenv(JOB_VARIABLE, json.dumps({"runtime_env": {SETUP_HOOK: "my.module.hook"}}))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert runtime_env(A="b") == {"env_vars": {"A": "b", "RAY_ADDRESS": "10.0.0.1:6379"}}
