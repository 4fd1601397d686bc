"""Files are whole or absent: torn by hand, each is read over, made again, or refused with its name and the way out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from cluster.recipe.reading import load_recipe
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.tracking.mlflow_tracker import MlflowTracker, tracking_uri
from kdcore.errors import Refused
from ops.__main__ import main
from pipelines.files import write_whole
from tests.conftest import small_recipe

TORN = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "noise": lambda content: b"\x80\xff\x00{" + content[::-1],
    "a list": lambda content: b"[1, 2]",
    "a text": lambda content: b'"x"',
    "numbers": lambda content: b'{"name": 1, "metrics": [], "steps": "x", "weights": 3, "data": []}',
}
FILES = ("recipe.yaml", "facts.json", "result.json", "mlflow_run_id", "metrics.jsonl", "outbox", "student.safetensors")


@pytest.fixture(scope="module")
def finished(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe.yaml, and its finished run out/run."""
    folder = tmp_path_factory.mktemp("torn")
    recipe = small_recipe(image_folder, folder / "out", scaling={"num_workers": 0}, train__epochs=1)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    return folder


@pytest.fixture
def torn(finished: Path) -> Iterator[Path]:
    """The run's folder, as it was before afterwards."""
    run, kept = finished / "out" / "run", finished / "kept"
    shutil.copytree(run, kept)
    yield run
    shutil.rmtree(run)
    kept.rename(run)


@pytest.mark.parametrize("how", TORN)
@pytest.mark.parametrize("name", FILES)
def test_a_torn_file_is_read_over_or_refused_by_name(
    finished: Path, torn: Path, name: str, how: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = torn / name
    path.write_bytes(TORN[how](path.read_bytes() if path.exists() else b"FINISHED"))
    monkeypatch.setattr("cluster.training.launch.run_workers", None)  # nothing is trained here
    for command in (["train", str(finished / "recipe.yaml")], ["deliver", str(finished / "out")]):
        status = main(command)
        said = capfd.readouterr().err
        assert status in (0, 2), said
        assert status == 0 or (name in said and len(said.splitlines()) == 1), said
        assert status == 0 or any(word in said for word in ("delete", "restore", "remove", "write")), said


@pytest.mark.parametrize("how", TORN)
def test_a_torn_student_is_refused_by_name(
    torn: Path, how: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = torn / "student.safetensors"
    path.write_bytes(TORN[how](path.read_bytes()))
    assert main(["evaluate", str(torn)]) == 2
    said = capfd.readouterr().err
    assert "student.safetensors" in said
    assert len(said.splitlines()) == 1


def test_a_result_without_its_student_is_made_again(finished: Path, torn: Path) -> None:
    (torn / "student.safetensors").unlink()
    assert RunFolder(torn).state() == "unfinished"
    assert main(["train", str(finished / "recipe.yaml")]) == 0
    assert (torn / "student.safetensors").is_file()


def test_a_result_of_a_newer_version_is_read(finished: Path, torn: Path) -> None:
    text = (torn / "result.json").read_text()
    (torn / "result.json").write_text(text.replace("{", '{"of_tomorrow": 1,', 1))
    assert main(["train", str(finished / "recipe.yaml")]) == 0


def test_a_moved_output_folder_works(finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished / "out", tmp_path / "moved")
    assert main(["train", str(finished / "recipe.yaml"), f"output_dir={tmp_path / 'moved'}"]) == 0
    said = capfd.readouterr().out
    assert str(tmp_path / "moved" / "run" / "student.safetensors") in said.replace("\n", "")
    assert str(finished / "out") not in said


def test_a_journal_cut_in_its_last_line_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"ste')
    assert read_journal(path) == [{"step": 1}, {"step": 2}]
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(Refused, match=r"metrics\.jsonl, line 2 .* remove that line"):
        read_journal(path)


class Killed(BaseException):
    """Stands for SIGKILL: nothing that follows is carried out."""


@pytest.mark.parametrize("at", ["create_run", "write_text", "log_text", "log_batch"])
def test_a_kill_while_the_run_is_made_leaves_one_run_that_goes_on(
    image_folder: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """After the server has made the run and before the folder knows it, and at every step of its description."""
    store = {"uri": f"sqlite:///{finished / 'out' / 'mlflow.db'}", "experiment": at}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small_recipe(image_folder, tmp_path / "out", tracking=store)))
    config = load_recipe(tmp_path / "recipe.yaml")
    RunFolder.of(config).path.mkdir(parents=True)
    with monkeypatch.context() as patch:
        kill_after(patch, at)
        with pytest.raises(Killed):
            MlflowTracker(config).open("command", {})
    tracker = MlflowTracker(config)
    tracker.open("command", {})
    client = mlflow.MlflowClient(tracking_uri(config))
    [run] = client.search_runs([client.get_experiment_by_name(at).experiment_id])
    assert run.info.run_id == tracker.run_id
    assert run.data.tags["run"] == "run"
    assert run.data.params["train.epochs"] == "2"
    files = {file.path for file in client.list_artifacts(tracker.run_id)} - {"uncommitted.diff"}  # of this very tree
    assert files == {"recipe.yaml", "packages.txt"}


def kill_after(patch: pytest.MonkeyPatch, call: str) -> None:
    """End after the first call of MLflow's client, or before the run's id is written."""
    if call == "write_text":
        written: list[Any] = []

        def write(path: Path, text: str) -> None:
            written.append(text)
            if len(written) == 2:
                raise Killed
            write_whole(path, text.encode())

        patch.setattr("cluster.tracking.mlflow_tracker.write_text", write)
        return
    real = getattr(mlflow.MlflowClient, call)

    def last(*args: Any, **options: Any) -> None:
        real(*args, **options)
        raise Killed

    patch.setattr(mlflow.MlflowClient, call, last)


def test_what_is_there_stays_where_the_disk_takes_no_more(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"first")

    def full(file: Any) -> None:
        file.write(b"second")
        raise OSError(28, "No space left on device")

    with pytest.raises(Refused, match=r"file cannot be written \(No space left on device; .* bytes are free there\)"):
        write_whole(path, full)
    assert path.read_bytes() == b"first"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
