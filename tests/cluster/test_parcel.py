"""What a job takes along: what git tracks and what is named, counted before it is sent."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ray.exceptions import AuthenticationError

from cluster import jobs
from cluster.jobs import JobOptions, driver_resources, refusal_of
from cluster.parcel import Parcel, pack_parcel
from cluster.provenance import NOTE_FILE, Provenance
from kdcore.errors import Refused
from ops import submit as submit_module
from ops.command_line.parser import Parser, build_parser
from ops.submit import amounts, environment, submit
from tests.cluster.test_jobs import RECIPE, ROOT


@pytest.fixture
def tree(tmp_path):
    for name in ("ops/train.py", "tests/test_a.py", ".gitignore", "deploy/token"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("outputs/\n")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "--force", "."], cwd=tmp_path, check=True)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "large.bin").write_bytes(bytes(3 << 20))
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def test_tracked_files_and_named_ones(tree, tmp_path_factory):
    parcel = pack_parcel(tree)
    assert set(parcel.files) == {"ops/train.py", ".gitignore"}, "no tests, no secrets, nothing that git ignores"
    assert parcel.secrets == ("deploy/token",)
    named = pack_parcel(tree, [str(tree / "outputs"), str(tree / "notes.txt")])
    assert set(named.files) - set(parcel.files) == {"outputs/large.bin", "notes.txt"}
    assert named.summary() == "4 files, 3.0 MiB"
    folder = tmp_path_factory.mktemp("sent")
    named.lay_out(folder, Provenance("abc", "the diff"))
    sent = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert sent == {"ops/train.py", "outputs/large.bin", "notes.txt", NOTE_FILE}
    with pytest.raises(Refused, match=r"upload 4 files, 3.0 MiB, .* 1 MiB .*: outputs/large.bin \(3.0 MiB"):
        named.refuse_too_large(1 << 20)
    (tree.parent / "beside").touch()
    for wrong, said in (("nowhere", "no such file"), ("/etc/hosts", "lies outside"), (f"{tree}/../beside", "outside")):
        with pytest.raises(Refused, match=said):
            pack_parcel(tree, [wrong])
    assert "notes.txt" in pack_parcel(tree, [f"{tree}/ops/../notes.txt"]).files
    with pytest.raises(Refused, match=r"\.\./beside lies outside"):
        Parcel(tree, {"../beside": 0}, ()).lay_out(folder, Provenance("abc"))


def test_a_repository_that_git_does_not_read_is_not_walked(tree, monkeypatch):
    """As where another user owns the checkout: what git ignores must not travel. A tree without one is walked."""
    with monkeypatch.context() as changed:
        changed.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        changed.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        with pytest.raises(Refused, match=f"ownership.*git config --global --add safe.directory {tree}"):
            pack_parcel(tree)
    (tree / ".git" / "HEAD").write_text("nothing")
    with pytest.raises(Refused, match="fix the repository"):
        pack_parcel(tree)
    shutil.rmtree(tree / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tree.parent))
    for name in ("data/photo.jpg", "pipelines/data/kinds.py", "pipelines/tests/test_kinds.py"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).touch()
    files = {"ops/train.py", ".gitignore", "notes.txt", "pipelines/data/kinds.py"}
    assert set(pack_parcel(tree).files) == files, "what is left out at the root only is kept further down"


def test_a_recipe_reached_by_the_folder_above(tree, monkeypatch):
    monkeypatch.setattr(jobs, "TREE", tree)
    assert jobs.shipped(f"{tree}/../{tree.name}/ops/my.yaml") == "ops/my.yaml"
    with pytest.raises(Refused, match=r"my\.yaml lies outside"):
        jobs.shipped(f"{tree}/../my.yaml")


def test_words_for_the_environment_and_the_driver(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-1")
    assert environment(["A=b=c", "AWS_REGION"]) == {"A": "b=c", "AWS_REGION": "eu-1"}
    for word in ("NOT_SET_ANYWHERE", "a b=1"):
        with pytest.raises(Refused, match="--env"):
            environment([word])
    assert amounts(None) == {}
    found = driver_resources(amounts("CPU=1,memory=4e9,head=0.1"))
    assert found == {
        "entrypoint_num_cpus": 1,
        "entrypoint_memory": 4_000_000_000,
        "entrypoint_resources": {"head": 0.1},
    }
    for word in ("CPU", "CPU=nan", "memory=inf", "CPU=-1", "=1"):
        with pytest.raises(Refused, match=f"--resources {word}: give NAME=AMOUNT"):
            amounts(word)


@pytest.fixture
def client(tree, monkeypatch):
    """Ray's client in place of a cluster; jobs go there from a small tree."""
    found = mock.Mock()
    found.return_value.submit_job.return_value = "first"
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", found)
    monkeypatch.setattr(jobs, "TREE", tree)
    return found


def hand_in(address: str = "http://me:secret@head:8265", **options: object) -> str:
    """Hand a job in without following it; give what is said."""
    said: list[str] = []
    assert jobs.submit(address, ["python"], None, said.append, JobOptions(wait=False, **options)) == 0
    return "".join(said)


def test_a_job_has_time_to_write_a_checkpoint_when_it_is_stopped(client):
    """Ray reads the variable in the job's own environment; who gives another has it."""
    for given, waits in ({}, "60"), ({"RAY_JOB_STOP_WAIT_TIME_S": "5"}, "5"):
        hand_in(env=given)
        sent = client.return_value.submit_job.call_args.kwargs["runtime_env"]["env_vars"]
        assert sent["RAY_JOB_STOP_WAIT_TIME_S"] == waits


def test_an_address_without_a_scheme_is_refused_before_ray_looks_for_a_cluster(client):
    for address in ("head:8265", "auto", "ray://head:10001"):
        with pytest.raises(Refused, match=f"--address {address}: give .* such as http://head:8265"):
            hand_in(address)
    assert not client.called


def test_a_full_temporary_folder_is_not_blamed_on_the_cluster(client, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("cluster.parcel.shutil.copyfile", mock.Mock(side_effect=full))
    with pytest.raises(Refused, match=r"cannot be copied to .*No space left.*TMPDIR"):
        hand_in()


def test_the_password_of_an_address_is_not_said(client):
    said = hand_in()
    assert "job first on http://head:8265; see it: ray job logs --follow --address http://head:8265 first" in said
    assert "me:secret" not in said
    address = "http://me:secret@head:8265"
    lost = ConnectionError(f"Failed to connect to Ray at address: {address}.")
    for error in (lost, AuthenticationError("wrong token")):
        client.side_effect = error
        with pytest.raises(Refused, match=r"^http://head:8265 ") as caught:
            hand_in(address)
        assert "secret" not in str(caught.value)
    with pytest.raises(Refused, match=r"--address ray://head:10001: give") as caught:
        hand_in("ray://me:secret@head:10001")


def test_a_name_that_is_taken():
    taken = RuntimeError("Job with submission_id first already exists")
    assert "--name first: the cluster has a job" in refusal_of("http://h", "first", taken)
    assert "does not answer" in refusal_of("http://h", None, taken)


@pytest.fixture
def sent(monkeypatch):
    """A function that submits a command, and gives its words and options instead of sending them."""
    found = []
    monkeypatch.setattr(submit_module, "submit_job", lambda address, words, *more: found.append((words, more[-1])) or 0)

    def run(*command: str):
        assert submit("http://h:8265", None, [], ["A=b"], "first", True, "CPU=1", list(command)) == 0
        words, options = found.pop()
        assert (options.env, options.name, options.wait, options.resources) == ({"A": "b"}, "first", False, {"CPU": 1})
        return words[3:], options

    return run


def test_every_command_that_computes_is_a_job(sent, tmp_path):
    assert sent("evaluate", "/shared/runs/first")[0] == ["evaluate", "/shared/runs/first"]
    evaluate = ["evaluate", "kd", "data.root=/s", "output_dir=/o", "teacher.checkpoint=/t"]
    assert sent(*evaluate)[0] == evaluate
    assert sent("export", "/shared/runs/first", "--output", "/shared/export")[0][0] == "export"
    assert sent("demo", "--output", "/shared/demo")[0][0] == "demo"
    layers = ["layers", "kd", "data.root=/s", "output_dir=/o", "teacher.checkpoint=/t", "--output", "/shared/layers"]
    assert sent(*layers)[0] == layers
    words, options = sent("train", RECIPE, "data.root=/s", "output_dir=/o")
    assert words[:2] == ["train", RECIPE]
    assert f"{ROOT}/{RECIPE}" in options.include
    shared = ("data.root=/s", "output_dir=/o")
    for uri in ("sqlite:////shared/mlflow.db", "http://h:5000", "file:/shared/stores", "databricks"):
        sent("train", RECIPE, *shared, f"tracking.uri={uri}")
    sent("demo", "--output", "/shared/demo", "--student-weights", "timm")
    for command, said in (
        (["evaluate", "outputs/first"], "run is 'outputs/first'; a job needs a place that every node sees"),
        (["demo"], "output is 'outputs/demo'; a job needs a place"),
        (["cache", "copy", "/shared/cache", "copied"], "location is 'copied'; a job needs a place"),
        (["reproduce", "paper3"], "state is 'outputs/paper3'; a job needs a place"),
        (["keys", "my.pem"], "file is 'my.pem'; a job needs a place"),
        (["sign", "/shared/export", "--key", "my.pem"], "key is 'my.pem'; a job needs a place"),
        (["lineage", "/shared/export", "--trust", "/shared/a.pub", "b.pub"], "trust is 'b.pub'; a job needs a place"),
        (
            ["train", RECIPE, *shared, "tracking.uri=sqlite:///mlflow.db"],
            "tracking.uri is 'sqlite:///mlflow.db'; a job",
        ),
        (["train", RECIPE, *shared, "tracking.uri=stores"], "tracking.uri is 'stores'; a job"),
        (["ui"], "ui cannot be submitted; submit a command that computes"),
    ):
        with pytest.raises(Refused, match=re.escape(said)):
            sent(*command)


def test_every_argument_for_a_place_is_marked():
    """What is not looks for its file in the job's working folder, or leaves its result there."""
    kinds, missing = re.compile(r"DIR|FILE|FOLDER|PLACE|SOURCE|URI"), set()

    def look(parser: Parser, name: str) -> None:
        if parser.add_arguments:
            parser.add_arguments(parser)
        for action in parser._actions:
            for inner, one in (action.choices if isinstance(action, argparse._SubParsersAction) else {}).items():
                look(one, f"{name} {inner}".strip())
            is_place = isinstance(action.metavar, str) and kinds.search(action.metavar)
            if is_place and action.dest not in (parser.get_default("places") or ()):
                missing.add(f"{name} {action.dest}")

    look(build_parser(), "")
    assert missing == {"submit token_file"}, "which is of this machine"


def test_code_that_a_job_brings_along(tree, sent, monkeypatch):
    """Whatever a path names, wherever it lies; a module by its name where the parcel does not have the whole of it."""
    code = {"my_untracked.py", "mine/my_tracked.py", "../my_above.py", "my_root.py", "my_whole/__init__.py"}
    code |= {"my_part/__init__.py", "my_part/new.py", "mine/my_deep.py"}
    for place in code:
        (tree / place).parent.mkdir(exist_ok=True)
        (tree / place).touch()
    tracked = code - {"my_untracked.py", "../my_above.py", "my_part/new.py"}
    subprocess.run(["git", "add", *sorted(tracked)], cwd=tree, check=True)
    monkeypatch.chdir(tree)
    monkeypatch.setattr(submit_module, "TREE", tree)
    for folder in (tree, tree / "mine"):
        monkeypatch.syspath_prepend(str(folder))
    brought = {
        "./my_untracked.py": "my_untracked.py",
        "./mine/my_tracked.py": "mine/my_tracked.py",
        "../my_above.py": "../my_above.py",
        "my_root": None,
        "my_whole": None,
        "my_part": "my_part",
        "my_deep": "mine/my_deep.py",
    }
    for plugin, place in brought.items():
        command = ("train", str(ROOT / RECIPE), "data.root=/s", "output_dir=/o")
        monkeypatch.setattr(submit_module, "shipped", str)
        words, options = sent(*command, "--plugin", plugin)
        assert words[-1] == f'plugins=["{Path(plugin).stem}"]'
        assert [Path(one).resolve() for one in options.modules] == ([(tree / place).resolve()] if place else []), plugin
        sys.modules.pop(Path(plugin).stem)


def test_secrets_and_size_of_a_package_that_is_brought(client, tmp_path_factory, monkeypatch):
    """Ray would send the folder as it is, and the head's 413 would be taken for a wrong address."""
    package = tmp_path_factory.mktemp("code") / "own_pkg"
    for name in ("__init__.py", ".env", "data/kinds.py", ".gitignore", "__pycache__/a.pyc"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    sent = []

    def keep(**job: Any) -> str:
        (folder,) = map(Path, job["runtime_env"]["py_modules"])
        sent.append((folder.name, {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}))
        return "first"

    client.return_value.submit_job = keep
    assert f"{package}/.env" in hand_in(modules=(str(package),))
    assert sent == [("own_pkg", {"__init__.py", "data/kinds.py"})]
    with (package / "weights.bin").open("wb") as file:
        file.truncate((100 << 20) + 1)
    with pytest.raises(Refused, match=r"the job would upload .* the largest: weights.bin"):
        hand_in(modules=(str(package),))
