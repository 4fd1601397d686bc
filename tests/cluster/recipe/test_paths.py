"""Every local path of a recipe is absolute for the workers, wherever it stands."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel

from cluster.jobs import check_paths
from cluster.recipe.config import RunConfig
from cluster.recipe.paths import absolute, absolute_store, paths_given, paths_of
from cluster.recipe.reading import parse
from cluster.sweep.space import run_config
from kdcore.configs import PATH
from kdcore.errors import Refused
from ops.__main__ import main
from ops.command_line.parser import build_parser
from ops.schema import sections

BASE = Path("/base")
FIELDS = {
    "student__checkpoint": "student.pt",
    "student__class_indices": "student.json",
    "teacher": {"model": "cifar_resnet8", "checkpoint": "teacher.pt", "class_indices": "teacher.json"},
    "cache": {"dir": "cache", "copies_dir": "copies"},
    "checkpoint__storage": "checkpoints",
}


def test_every_path_is_absolute(recipe):
    config = parse(recipe(**FIELDS) | {"output_dir": "out", "data": {"root": "images"}})
    names = dict(paths_of(config))
    assert len(names) == 9
    assert dict(paths_of(absolute(config, BASE))) == {key: f"/base/{path}" for key, path in names.items()}


def test_every_field_that_is_called_a_path_is_one():
    """A field that is added later and forgotten here would be relative for the workers alone."""
    words = {"root", "dir", "folder", "path", "checkpoint", "class_indices", "storage"}
    for name, model in sections().items():
        for field, info in model.model_fields.items():
            if words & {field, *field.split("_")} and str in (
                info.annotation,
                *getattr(info.annotation, "__args__", ()),
            ):
                assert PATH in info.metadata, f"{name}.{field}"


@pytest.mark.parametrize("field", ["data__root", "checkpoint__storage", "cache"])
def test_a_tilde_is_the_home_folder(recipe, field, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    data = recipe(**{field: {"dir": "~/here"} if field == "cache" else "~/here"}) | {"output_dir": "~/runs"}
    found = dict(paths_of(absolute(parse(data), BASE)))
    assert found["output_dir"] == "/home/me/runs"
    assert found["cache.dir" if field == "cache" else field.replace("__", ".")] == "/home/me/here"


def test_places_in_an_object_store_stay(recipe):
    config = absolute(parse(recipe(data__root="s3://bucket/images", checkpoint__storage="gs://bucket/runs")), BASE)
    assert (config.data.root, config.checkpoint.storage) == ("s3://bucket/images", "gs://bucket/runs")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("sqlite:///x.db", "sqlite:////base/x.db"),
        ("sqlite:///sub/x.db?timeout=20", "sqlite:////base/sub/x.db?timeout=20"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
        ("sqlite+pysqlite:///x.db", "sqlite+pysqlite:////base/x.db"),
        ("sqlite:///~/x.db", "sqlite:////home/me/x.db"),
        ("mlruns", "/base/mlruns"),
        ("./mlruns", "/base/mlruns"),
        ("~/mlruns", "/home/me/mlruns"),
        ("file:mlruns", "file:///base/mlruns"),
        ("file:///tmp/mlruns", "file:///tmp/mlruns"),
        ("http://server:5000", "http://server:5000"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
    ],
)
@pytest.mark.parametrize("by", ["recipe", "environment"])
def test_a_store_is_one_for_driver_and_workers(recipe, given, meant, by, monkeypatch):
    """mlflow#7206: a relative SQLite file is another one in every working directory."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if by == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        config = parse(recipe())
    else:
        config = parse(recipe(tracking__uri=given))
    assert absolute(config, BASE).tracking.uri == meant


def test_a_store_in_memory_is_refused():
    with pytest.raises(Refused, match="give a file"):
        absolute_store("sqlite:///:memory:", BASE)


def test_the_paths_of_a_sweep_are_absolute_too(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = absolute(parse(recipe()), tmp_path)
    point = {"student.checkpoint": "a.safetensors"}
    assert run_config(config, point, "trial", 0).student.checkpoint == str(tmp_path / "a.safetensors")


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_job_takes_no_relative_path(recipe, field):
    with pytest.raises(Refused, match="a job needs a place that every node sees"):
        check_paths(parse(recipe(**{field: FIELDS[field]})))


def test_the_paths_of_overrides_alone():
    """Those of fields that name a path, in any section; numbers, flags and names of networks are none."""
    words = ["data.root=images", "cache.dir=s3://b/c", "teacher.model=local-dir:mine", "student.model=resnet18"]
    words += ["train.epochs=2", "seed=1", "data.root", "student.checkpoint=null", "teacher.checkpoint='a b.pt'"]
    assert list(paths_given(RunConfig, words)) == [
        ("data.root", "images"),
        ("cache.dir", "s3://b/c"),
        ("teacher.model", "mine"),
        ("teacher.checkpoint", "a b.pt"),
    ]


@pytest.mark.parametrize("uri", ["localhost:5000", "127.0.0.1:5000", "mlflow.example.com:80/store"])
def test_a_server_without_http_is_refused_with_it(uri, recipe, capsys):
    """MLflow lists all kinds of stores, or makes a folder of that name."""
    said = f"the MLflow store, '{uri}', does not say how it is reached; write http://{uri}"
    with pytest.raises(Refused, match=said):
        absolute(parse(recipe(tracking__uri=uri)), BASE)
    assert main(["review", "small", "--store", uri]) == 2
    assert said in capsys.readouterr().err


def test_a_path_in_a_list_is_found():
    class Item(BaseModel):
        file: Annotated[str, PATH]

    class Whole(BaseModel):
        items: tuple[Item, ...]

    assert list(paths_of(Whole(items=(Item(file="a"), Item(file="b"))))) == [
        ("items.0.file", "a"),
        ("items.1.file", "b"),
    ]


def test_a_tilde_in_an_option_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert build_parser().parse_args(["doctor", "--output=~/runs"]).output_dir == "/home/me/runs"
