"""A disk that is full while something is written: one line, nothing half written, and the same command works after."""

import errno
import os

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.tracking import sqlalchemy_store

from cluster.recipe.reading import parse
from cluster.tracking.mlflow_store import make_store, sqlite_file
from cluster.training.launch import launch
from kdcore.errors import Refused, RunFailed
from pipelines.files import write_whole


def test_a_file(tmp_path):
    def write(file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "student.safetensors"
    with pytest.raises(Refused, match=r"student.safetensors cannot be written \(No space left .* bytes are free there"):
        write_whole(path, write)
    assert not list(tmp_path.iterdir())


def test_mlflows_store(recipe, monkeypatch):
    """MLflow's tables were made by half, which no later start could make or use."""
    whole = sqlalchemy_store.SqlAlchemyStore

    def cut_off(uri, artifacts):
        sqlite_file(uri).write_bytes(b"half of it")
        raise MlflowException("(sqlite3.OperationalError) database or disk is full")

    config = parse(recipe(scaling__num_workers=0, train__max_steps=1))
    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", cut_off)
    with pytest.raises(RunFailed, match="its disk is full; free some space, and run the same command again"):
        launch(config)
    folder = config.run_dir.parent
    assert not [path for path in folder.iterdir() if path.name.startswith("mlflow.db")]
    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", whole)
    assert launch(config).steps == 1
    assert [path.name for path in folder.iterdir() if path.name.startswith("mlflow.db")] == ["mlflow.db"]


def test_a_store_that_another_run_has_made_meanwhile(tmp_path, monkeypatch):
    path = tmp_path / "mlflow.db"

    class Slow:
        def __init__(self, uri, artifacts):
            sqlite_file(uri).write_bytes(b"ours")
            path.write_bytes(b"theirs")
            self.engine = self

        def dispose(self):
            pass

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", Slow)
    make_store(f"sqlite:///{path}", tmp_path)
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "postgresql://me@127.0.0.1:1/x", "databricks", "file:///tmp/x"])
def test_other_stores_are_left_alone(uri, tmp_path):
    make_store(uri, tmp_path)
    assert not list(tmp_path.iterdir())
