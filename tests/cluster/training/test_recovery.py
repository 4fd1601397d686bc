"""What is tried again, what a failure is called, and a list of checkpoints that a kill has cut off."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import ray
import torch
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import BroadcastCollectiveTimeoutError

from cluster.error_text import FailedAt
from cluster.nodes.errors import describe
from cluster.training import fitting
from cluster.training.checkpoint import STATE, STUDENT, read_state
from cluster.training.failures import with_place
from cluster.training.fitting import Job
from cluster.training.opening import NotOpened
from cluster.training.recovery import (
    CHECKPOINTS,
    CHECKPOINTS_COPY,
    Recovery,
    failure_of,
    leave_out_broken,
    refuse_to_repeat,
    restore_checkpoint_list,
)
from cluster.training.worker_task import WorkerTask
from kdcore.errors import Refused, RunFailed
from pipelines.leases import Fence


def no_file(rank: int) -> Path:
    """Where no rank has recorded a signal."""
    return Path("nowhere")


def noted(error: Exception, note: str) -> Exception:
    error.add_note(note)
    return error


def test_located():
    told = []
    with (
        pytest.raises(RuntimeError, match="lost") as caught,
        with_place(lambda: "rank 3, step 12 of 40", lambda: told.append(3)),
    ):
        raise RuntimeError("lost")
    assert told == [3]
    assert describe({3: caught.value}) == "rank 3, step 12 of 40: lost"


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (Refused("a.png is cut"), FailedAt, "rank 3, after step 40 of 40: a.png is cut"),
        (RunFailed("the disk is gone"), FailedAt, "rank 3, after step 40 of 40: the disk is gone"),
        (NotOpened("not open"), NotOpened, "rank 3: not open"),
    ],
)
def test_what_ends_a_run_by_a_sentence_says_its_place_once(error, kind, said):
    with pytest.raises(kind) as caught, with_place(lambda: "rank 3, after step 40 of 40", lambda: None):
        raise error
    assert describe({0: RuntimeError("Connection closed"), 3: caught.value}) == said


def test_the_driver_is_told_that_it_could_not_open_the_run(board):
    """It knows why, and says that alone."""
    with pytest.raises(NotOpened) as caught:
        refuse_to_repeat({0: NotOpened("not open"), 1: RuntimeError("Connection closed")})
    assert isinstance(failure_of(ControllerError(caught.value), 2, board(3, {0}), no_file), NotOpened)


def test_the_error_that_stays_is_named_first():
    """A broken file on rank 2, behind the connections that it has cost the others."""
    failures = {0: noted(RuntimeError("closed by peer"), "rank 0, step 5 of 9"), 2: Refused("a.png is cut\nshort")}
    assert describe(failures) == "rank 2: short"
    assert describe({0: failures[0]}) == "rank 0, step 5 of 9: closed by peer"


def test_a_consequence_is_named_last():
    """Rank 1 has waited in vain; rank 0 only notices that rank 1 has given up."""
    cut_off = noted(RuntimeError("Connection closed by peer [10.0.0.3]:9"), "rank 0, step 5 of 9")
    timed_out = noted(RuntimeError("Timed out waiting 10000ms for recv"), "rank 1, step 5 of 9")
    assert describe({0: cut_off, 1: timed_out}).startswith("rank 1, step 5 of 9: Timed out")


def test_who_kept_the_others_waiting(board):
    failures = {0: noted(RuntimeError("Timed out waiting 600000ms"), "rank 0, step 7 of 9")}
    text = str(failure_of(WorkerGroupError("", failures), 4, board(6, {0, 1, 3}), no_file))
    assert text == "rank 0, step 7 of 9: Timed out waiting 600000ms; it waited for rank 2 in vain"


def test_a_rank_that_reports_no_checkpoint_in_time(board):
    """In Ray's words, without its advice to set a variable of its own."""
    error = BroadcastCollectiveTimeoutError(10.0, [1], 10.0)
    text = str(failure_of(WorkerGroupError("", {0: error}), 2, board(12, {0}), no_file))
    said = "The collective operation timed out after 10.00 seconds. "
    said += "The following ranks have not joined the collective operation: [1]"
    assert text == f"rank 0: {said} (the last step reported is 12); it waited for rank 1 in vain"


def test_a_worker_that_died_without_a_word(board):
    text = str(failure_of(WorkerGroupError("", {1: RuntimeError("The actor died\n")}), 2, board(30, set()), no_file))
    assert text == "rank 1: The actor died (the last step reported is 30)"


def test_workers_that_never_started(board):
    error = ControllerError(RuntimeError("resources\nnot there in time"))
    assert str(failure_of(error, 2, board(0, set()), no_file)) == "not there in time"


@pytest.mark.parametrize("error", [Refused("wrong"), AssertionError("never")])
def test_final_errors_end_the_run(tmp_path, error):
    with pytest.raises(RunFailed, match=f"rank 1: {error}"):
        Recovery(tmp_path).after_exception(None, {0: RuntimeError("closed"), 1: error})


def test_other_errors_are_left_to_ray(tmp_path):
    Recovery(tmp_path).after_exception(None, {0: RuntimeError("closed"), 1: OSError("gone")})


@ray.remote(num_cpus=0)
class Owner:
    """Stands in for Ray Train's controller: its worker dies with it."""

    def __init__(self) -> None:
        self.worker = Worker.remote()

    def give(self) -> list[ray.actor.ActorHandle]:
        return [self.worker]


@ray.remote(num_cpus=0)
class Worker:
    def work(self) -> None:
        threading.Event().wait()


@pytest.mark.ray
@pytest.mark.slow
def test_a_dying_controller_starts_no_workers(ray_cluster, tmp_path):
    """It hears of its workers' death, in Ray's own words, before it is dead itself."""
    owner = Owner.remote()
    (worker,) = ray.get(owner.give.remote())
    answer = worker.work.remote()
    ray.kill(owner)
    with pytest.raises(ray.exceptions.ActorDiedError) as caught:
        ray.get(answer, timeout=60)
    with pytest.raises(RunFailed, match="stopped from outside"):
        Recovery(tmp_path).after_exception(None, {0: caught.value})


def test_a_list_cut_off_at_any_byte(tmp_path):
    """Whatever part of the list was written, what is left afterwards is the list before it."""
    listed, recovery = tmp_path / CHECKPOINTS, Recovery(tmp_path)
    before, after = (json.dumps({"latest": name}).encode() for name in ("step-04", "step-08"))
    listed.write_bytes(before)
    recovery.after_report(None, [], None)
    for length in range(len(after)):
        listed.write_bytes(after[:length])
        restore_checkpoint_list(tmp_path)
        assert listed.read_bytes() == before
    listed.write_bytes(after)
    restore_checkpoint_list(tmp_path)
    assert listed.read_bytes() == after
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CHECKPOINTS, CHECKPOINTS_COPY])


def test_the_first_list_cut_off(tmp_path):
    (tmp_path / CHECKPOINTS).write_bytes(b'{"lat')
    restore_checkpoint_list(tmp_path)
    assert not list(tmp_path.iterdir())
    restore_checkpoint_list(tmp_path)  # a new run


def write_checkpoints(folder, *steps):
    names = [f"step-{step:08d}" for step in steps]
    for name in names:
        (folder / name).mkdir()
        torch.save({"step": 1}, folder / name / STATE)
        (folder / name / STUDENT).write_bytes(b"")
    results = [{"version": 0, "checkpoint_dir_name": name, "metrics": {}} for name in names]
    content = {
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(names))),
        "latest_checkpoint_result": results[-1],
    }
    (folder / CHECKPOINTS).write_text(json.dumps(content))
    return names


@pytest.mark.parametrize("harm", ["cut off", "removed"])
def test_a_checkpoint_cut_off_is_passed_over(tmp_path, harm):
    """SimpleTuner#2613, allennlp#2129: the newest was half written, and every further start ended at it."""
    first, second, third = write_checkpoints(tmp_path, 1, 2, 3)
    if harm == "cut off":
        whole = (tmp_path / third / STATE).read_bytes()
        (tmp_path / third / STATE).write_bytes(whole[: len(whole) // 2])
    else:
        shutil.rmtree(tmp_path / third)
    restore_checkpoint_list(tmp_path)
    listed = json.loads((tmp_path / CHECKPOINTS).read_text())
    assert [result["checkpoint_dir_name"] for result in listed["checkpoint_results"]] == [first, second]
    assert listed["latest_checkpoint_result"]["checkpoint_dir_name"] == second
    assert listed["checkpoint_report_indices"] == [0, 1]


def test_a_checkpoint_removed_from_an_object_store_is_passed_over(tmp_path, monkeypatch, caplog):
    """Ray Train would end at it at every start, with the advice to delete all the others."""

    def begin(job: Job) -> None:
        raise InterruptedError  # before Ray is asked

    monkeypatch.setattr(fitting, "set_up_ray_train", begin)
    task = WorkerTask({}, {}, {}, None, Fence("", "", 0), watches_nodes=False)
    job = Job("run", "", "s3://bucket", 3, {}, 1, None, 0, 1.0, 1.0, 1.0, task)
    (tmp_path / "run").mkdir()
    first, second, third = write_checkpoints(tmp_path / "run", 1, 2, 3)
    store = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    monkeypatch.setattr(fitting, "checkpoint_place", lambda storage, name: (store, name))
    shutil.rmtree(tmp_path / "run" / third)
    with pytest.raises(InterruptedError):
        fitting.fit(job, None)
    listed = json.loads((tmp_path / "run" / CHECKPOINTS).read_text())
    assert [result["checkpoint_dir_name"] for result in listed["checkpoint_results"]] == [first, second]
    assert listed["latest_checkpoint_result"]["checkpoint_dir_name"] == second
    assert f"run: {third} cut off or gone; the run goes on from {second}" in caplog.text
    for name in (first, second):
        shutil.rmtree(tmp_path / "run" / name)
    leave_out_broken(store, "run")
    assert not (tmp_path / "run" / CHECKPOINTS).exists()
    leave_out_broken(store, "run")  # a new run


def test_a_list_cut_off_in_a_folder_that_is_given_as_a_uri(tmp_path, monkeypatch):
    """It was taken for an object store: no copy of the list was kept, and the next start ended in a JSONDecodeError."""
    recoveries = []

    def begin(folder):
        recoveries.append(Recovery(folder))
        raise InterruptedError  # before Ray is asked

    monkeypatch.setattr(fitting, "set_up_ray_train", lambda job: None)
    monkeypatch.setattr(fitting, "Recovery", begin)
    task = WorkerTask({}, {}, {}, None, Fence("", "", 0), watches_nodes=False)
    job = Job("run", "", tmp_path.as_uri(), 3, {}, 1, None, 0, 1.0, 1.0, 1.0, task)
    (tmp_path / "run").mkdir()
    write_checkpoints(tmp_path / "run", 1)
    listed = tmp_path / "run" / CHECKPOINTS
    before = listed.read_bytes()
    for content in (before, before[:-9]):
        listed.write_bytes(content)
        with pytest.raises(InterruptedError):
            fitting.fit(job, None)
        assert listed.read_bytes() == before
        recoveries[-1].after_report(None, [], None)


def test_no_checkpoint_is_left(tmp_path):
    (only,) = write_checkpoints(tmp_path, 1)
    (tmp_path / only / STATE).write_bytes(b"")
    restore_checkpoint_list(tmp_path)
    assert not (tmp_path / CHECKPOINTS).exists()


def test_a_damaged_state_is_named(tmp_path):
    (name,) = write_checkpoints(tmp_path, 1)
    content = bytearray((tmp_path / name / STATE).read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    (tmp_path / name / STATE).write_bytes(content)
    with pytest.raises(Refused, match=r"state.pt is damaged .* delete that folder"):
        read_state(tmp_path / name)
    with pytest.raises(Refused, match=f"checkpoint bucket/runs/{name}: its state.pt is damaged"):
        read_state(tmp_path / name, f"bucket/runs/{name}")  # a copy, which is gone by then
