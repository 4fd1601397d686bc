"""`lineage`: every link of the chain behind an export is compared with the files that are here."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

import ops.export.lineage
from cluster.assembly import assemble
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.weights import tensors_fingerprint
from kdcore.checkpoints import load_tensors
from kdcore.errors import Refused
from ops.command_line.parser import build_parser
from ops.export.lineage import chain, lineage, read_lineage, write_lineage
from pipelines.cache.manifest import CONSTANTS, load_manifest
from tests.pipelines.cache.test_store import build, plan


def weights(path: Path, value: float) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"weight": torch.full((3,), value)}
    safetensors.torch.save_file(tensors, path)
    return tensors_fingerprint(tensors)


@pytest.fixture
def exported(tmp_path) -> Path:
    """A student of a teacher that was an export itself; the run of that teacher is gone."""
    first = weights(tmp_path / "assistant" / "model.safetensors", 1.0)
    student = weights(tmp_path / "student" / "model.safetensors", 2.0)
    weights(tmp_path / "runs" / "student" / "student.safetensors", 2.0)
    build(tmp_path / "cache")
    digest = load_manifest(tmp_path / "cache").digest
    before = {"run": "assistant", "run_dir": str(tmp_path / "gone"), "method": "ce", "model": "resnet18",
              "weights": first, "teachers": []}  # fmt: skip
    teacher = {"model": "local-dir:assistant", "weights": first, "file_weights": first, "lineage": before}
    teacher |= {"file": str(tmp_path / "assistant" / "model.safetensors")}
    teacher |= {"cache": {"dir": str(tmp_path / "cache"), "digest": digest}}
    content = {**before, "run": "student", "run_dir": str(tmp_path / "runs" / "student"), "weights": student}
    (tmp_path / "student" / "lineage.json").write_text(json.dumps({**content, "method": "kd", "teachers": [teacher]}))
    return tmp_path / "student"


def test_what_an_export_writes_is_read_back(tmp_path, recipe, capsys):
    """An assistant that has taught by its folder: its own lineage is part of its student's."""
    for number, name in enumerate(("assistant", "student")):
        teacher = {"teacher": {"model": f"local-dir:{tmp_path / 'assistant'}"}} if number else {}
        method = [{"term": "kd", "weight": 1.0, "temperature": 2.0}] if number else [{"term": "ce", "weight": 1.0}]
        parts = assemble(parse(recipe(name=name, method=method, **teacher)), Rank(0, 1, torch.device("cpu")))
        tensors = {key: tensor.contiguous() for key, tensor in parts.student.state_dict().items()}
        for path in (tmp_path / name / "model.safetensors", parts.config.run_dir / "student.safetensors"):
            path.parent.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(tensors, path)
        student = {"architecture": "cifar_resnet8", "num_classes": 3, "label_names": list(parts.classes)}
        student |= {"model_args": parts.config.student.args}
        (tmp_path / name / "config.json").write_text(json.dumps(student))
        write_lineage(tmp_path / name, parts, parts.config.run_dir, in_timm=False)
    assert lineage(str(tmp_path / "student"), [], thorough=True) == 0
    assert "4 of 4 links verified" in " ".join(capsys.readouterr().out.split())
    written = read_lineage(tmp_path / "student")
    assert written["data"] == {split: index.fingerprint for split, index in parts.indexes.items()}
    assert written["views"] == parts.plan.fingerprint
    start = {"checkpoint": tensors_fingerprint(load_tensors(tmp_path / "assistant" / "model.safetensors"))}
    assert written["started_from"] == {"weights": {"teacher": start}}


def test_the_whole_chain(exported, capsys):
    links = [(link.name, link.status) for link in chain(read_lineage(exported), exported, fetches=False)]
    assert links == [
        ("export", "verified"),
        ("run student", "verified"),
        ("cache", "verified"),
        ("teacher", "verified"),
        ("run assistant", "not here"),
    ]
    args = build_parser().parse_args(["lineage", str(exported)])
    assert args.function(args) == 0
    assert "4 of 5 links verified" in " ".join(capsys.readouterr().out.split())


def test_weights_with_a_uri_are_fetched_only_when_asked_for(exported, monkeypatch):
    """A stranger's export has nobody's machine connect; what cannot be fetched is shown as it was recorded."""
    content = read_lineage(exported)
    content["teachers"][0]["file"] = "s3://bucket/teacher.safetensors"
    (exported / "lineage.json").write_text(json.dumps(content))
    asked = []

    def fetch(location):
        asked.append(location)
        raise Refused("the store does not answer")

    monkeypatch.setattr(ops.export.lineage, "local_file", fetch)
    assert lineage(str(exported), [], thorough=False) == 0
    assert not asked
    assert [link.status for link in chain(content, exported, fetches=True)][3] == "not here"
    assert asked == ["s3://bucket/teacher.safetensors"]


@pytest.mark.parametrize("file", ["student/model.safetensors", "assistant/model.safetensors"])
def test_other_weights_are_found(exported, file):
    weights(exported.parent / file, 3.0)
    with pytest.raises(Refused, match=r"is not what this network was made of: .* restore it, or export the run again"):
        lineage(str(exported), [], thorough=False)


def test_another_cache_is_found(exported):
    build(exported.parent / "cache", plan(num_views=3))
    with pytest.raises(Refused, match=r"cache \(.*\) is not what this network was made of"):
        lineage(str(exported), [], thorough=False)


def test_a_cache_that_was_changed_is_found(exported):
    shard = next((exported.parent / "cache").rglob("*.arrow"))
    shard.write_bytes(bytes(len(shard.read_bytes())))
    assert lineage(str(exported), [], thorough=False) == 0  # of shards, the sizes are compared
    with pytest.raises(Refused, match="its checksum differs"):
        lineage(str(exported), [], thorough=True)
    manifest = exported.parent / "cache" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"model":"big"', '"model":"bad"').replace('"big"', '"bad"'))
    with pytest.raises(Refused, match="changed by hand"):
        lineage(str(exported), [], thorough=False)


def test_constants_of_a_cache_that_were_changed_are_found(exported):
    constants = exported.parent / "cache" / CONSTANTS
    content = bytearray(constants.read_bytes())
    content[-1] ^= 1
    constants.write_bytes(content)
    with pytest.raises(Refused, match=r"constants\.safetensors has changed since it was written"):
        lineage(str(exported), [], thorough=False)


def test_a_teachers_lineage_of_other_weights_is_found(exported):
    """Another export's lineage next to the teacher's weights: neither vouches for the other."""
    content = read_lineage(exported)
    content["teachers"][0]["lineage"]["weights"] = "0" * 64
    (exported / "lineage.json").write_text(json.dumps(content))
    with pytest.raises(Refused, match=r"teacher's lineage \(.*\) is not what this network was made of: 0{16}"):
        lineage(str(exported), [], thorough=False)


def test_folders_without_one(tmp_path):
    with pytest.raises(Refused, match=r"has no lineage\.json; give a folder that `export` has written"):
        lineage(str(tmp_path), [], thorough=False)
    (tmp_path / "lineage.json").write_text("{}")
    with pytest.raises(Refused, match="is not the lineage of an export"):
        lineage(str(tmp_path), [], thorough=False)
