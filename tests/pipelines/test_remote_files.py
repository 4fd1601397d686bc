"""Single files behind URIs: weights, class indices, recipes and spaces; and folders that cannot be URIs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pyarrow import fs

from cluster.recipe.reading import load_recipe, parse, to_yaml
from cluster.sweep.config import load_sweep
from cluster.weights import starting_weights
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.located import local_file
from kdcore.models import build_model
from pipelines import remote_files
from pipelines.files import make_folder, write_text
from pipelines.remote_files import fetched
from tests.pipelines.stores import s3_server, store, use_test_credentials


def path_in(uri: str) -> str:
    return uri.removeprefix("s3://bucket/").partition("?")[0]


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that is reached by URIs alone, s3://bucket/..., as an object store is."""
    folder = tmp_path / "bucket"
    folder.mkdir()
    remote = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
    monkeypatch.setattr(remote_files, "filesystem_of", lambda uri, setting: (remote, path_in(uri)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "machine"))
    local_file.cache_clear()
    yield folder
    local_file.cache_clear()


def test_a_file_is_copied_once_and_anew_when_it_changes(bucket, tmp_path):
    (bucket / "weights.bin").write_bytes(b"one")
    first = fetched("s3://bucket/weights.bin")
    assert first.read_bytes() == b"one"
    written = first.stat().st_mtime_ns
    assert fetched("s3://bucket/weights.bin?region=eu") == first
    assert first.stat().st_mtime_ns == written
    (bucket / "weights.bin").write_bytes(b"other")
    assert fetched("s3://bucket/weights.bin").read_bytes() == b"other"
    with pytest.raises(Refused, match=r"^s3://bucket/absent: no such file; correct the URI$"):
        fetched("s3://bucket/absent?secret_key=hidden")


def test_weights_and_class_indices(bucket, recipe):
    torch.manual_seed(3)
    whole = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c", "d"))
    safetensors.torch.save_file(whole.state_dict(), bucket / "teacher.safetensors")
    (bucket / "classes.json").write_text(json.dumps({"class0": 3, "class1": 1, "class2": 0}))
    teacher = {
        "model": "cifar_resnet8",
        "checkpoint": "s3://bucket/teacher.safetensors",
        "class_indices": "s3://bucket/classes.json",
        "args": {"num_classes": 4},
    }
    config = parse(recipe(teacher=teacher, method=[{"term": "kd", "weight": 1.0, "temperature": 4.0}]))
    assert config.teacher is not None
    assert config.teacher.has_weights
    model = build_model(config.teacher, ("class0", "class1", "class2"))
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(images), whole.eval()(images)[:, [3, 1, 0]])
    local = config.teacher.model_copy(
        update={name: str(bucket / Path(str(teacher[name])).name) for name in ("checkpoint", "class_indices")}
    )
    assert starting_weights(config) == starting_weights(config.model_copy(update={"teacher": local})), "content alone"


def test_recipes_and_spaces(bucket, recipe):
    config = parse(recipe())
    (bucket / "recipe.yaml").write_text(to_yaml(config))
    (bucket / "space.yaml").write_text("name: small\nseeds: [0]\nspace: {temperature: [1, 4]}\n")
    assert load_recipe("s3://bucket/recipe.yaml") == config
    assert load_sweep("s3://bucket/space.yaml").name == "small"


@pytest.mark.parametrize("uri", ["s3://bucket/runs", "gs://bucket/runs", "file:///tmp/runs"])
def test_an_output_folder_is_a_folder(uri, recipe):
    """Accepted, the results lay in ./s3:/bucket/runs, wherever that was, and the command said nothing."""
    with pytest.raises(Refused, match=rf"output_dir is {uri}; .* keep checkpoints in the store with"):
        parse({**recipe(), "output_dir": uri})
    with pytest.raises(Refused, match=r"--output: .* was given as a URI"):
        make_folder(Path(uri), "--output")
    with pytest.raises(Refused, match="was given as a URI"):
        write_text(Path(uri).absolute() / "table.md", "")


def test_an_object_store(tmp_path, monkeypatch):
    """The same from a server that speaks S3, and its own errors in one line."""
    with s3_server() as port:
        use_test_credentials(monkeypatch)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "machine"))
        server = store(port)
        server.create_dir("bucket")
        with server.open_output_stream("bucket/classes.json") as file:
            file.write(b"{}")
        options = f"endpoint_override=127.0.0.1%3A{port}&scheme=http&region=us-east-1"
        assert fetched(f"s3://bucket/classes.json?{options}").read_bytes() == b"{}"
        with pytest.raises(Refused, match=r"^s3://bucket/absent.json: no such file"):
            fetched(f"s3://bucket/absent.json?{options}")
