"""`push`: what reaches a hub, what of this machine does not, and what every failure says."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub._commit_api
import pytest
import safetensors.torch
import torch
import yaml

from cluster.recipe.reading import to_yaml
from cluster.weights import tensors_fingerprint
from ops.__main__ import main
from ops.export.files import FILES, NEEDED, digests_of
from ops.export.push import places_in, without_folders, without_places
from ops.export.signing import examine
from tests.ops.conftest import METHODS, small_run
from tests.ops.hub import TOKEN, Hub, hub_server

NAME = "somebody/small"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an export leaves it; `test_export` pushes a real one."""
    folder = tmp_path_factory.mktemp("made here")
    weights = {"weight": torch.arange(6.0)}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    cache = {"dir": str(folder / "cache"), "digest": "d"}
    lineage = {
        "run": "alone",
        "run_dir": str(folder / "out" / "alone"),
        "method": "ce",
        "model": "test_resnet",
        "in_timm": True,
        "weights": tensors_fingerprint(weights),
        "teachers": [{"model": "t", "cache": cache, "file": str(folder / "t.pt")}],
    }
    recipe = to_yaml(small_run(folder, "alone", METHODS["alone"], 0))
    card = f"# alone\n\n```yaml\n{recipe}```\n"
    contents = {"config.json": json.dumps({"architecture": "test_resnet"}), "predict.py": "print()"}
    contents |= {"model.pt2": "program", "model.onnx": "graph", "README.md": card, "lineage.json": json.dumps(lineage)}
    for name, content in contents.items():
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def copied(export: Path, tmp_path: Path) -> Path:
    """A copy of the export that a test may break."""
    return Path(shutil.copytree(export, tmp_path / "export"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that is empty, and a token that it takes; large files go by HTTP, for it has no other storage."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub._commit_api, "is_xet_available", lambda: False)
    with hub_server() as server:
        yield server


def push(folder: Path, hub: Hub, *more: str) -> int:
    return main(["push", str(folder), "--to", NAME, "--hub", hub.address, *more])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """All that was printed, in one line and without the token."""
    out = "".join(capsys.readouterr())
    assert TOKEN not in out
    return " ".join(out.split())


def test_files_and_card(export: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """One commit to a private repository: the very bytes, but for what names places on this machine."""
    assert push(export, hub) == 0
    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.commits == ["alone: ce"]
    assert set(repository.files) == set(NEEDED)
    for name in set(NEEDED) - {"README.md", "lineage.json"}:
        assert repository.files[name] == (export / name).read_bytes()
    front, card = repository.files["README.md"].decode().split("---\n\n", 1)
    assert yaml.safe_load(front)["pipeline_tag"] == "image-classification"
    assert yaml.safe_load(front)["library_name"] == "timm"
    assert card.startswith("# alone")
    assert "made here" not in repository.files["README.md"].decode() + repository.files["lineage.json"].decode()
    lineage, own = json.loads(repository.files["lineage.json"]), json.loads((export / "lineage.json").read_text())
    teacher = own["teachers"][0] | {"cache": {"dir": "cache", "digest": "d"}, "file": "t.pt"}
    assert lineage == own | {"run_dir": "alone", "teachers": [teacher]}
    assert f"{hub.address}/{NAME}" in said(capsys)


def test_again_and_after_another_export(copied: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """What is there already makes no commit; a smaller file that is gone from the export is gone from the hub."""
    shutil.copy(copied / "model.onnx", copied / "model.int8.onnx")
    (copied / "notes.txt").write_text("mine")
    assert push(copied, hub, "--public", "--message", "first") == 0
    repository = hub.repositories[NAME]
    assert not repository.private
    assert set(repository.files) == {*NEEDED, "model.int8.onnx"} <= set(FILES)
    assert push(copied, hub) == 0
    assert repository.commits == ["first"]
    (copied / "model.int8.onnx").unlink()
    repository.files["LICENSE"] = b"added on the hub"
    assert push(copied, hub, "--message", "second") == 0
    assert repository.commits == ["first", "second"]
    assert set(repository.files) == {*NEEDED, "LICENSE"}
    assert "removed: model.int8.onnx" in said(capsys)


def test_how_it_is_loaded(copied: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """By timm where timm can build it; whatever the card's text says, another network by its program."""
    assert push(copied, hub) == 0
    assert f"timm.create_model('hf-hub:{NAME}', pretrained=True)" in said(capsys)
    (copied / "README.md").write_text("# like timm.create_model('test_resnet')")
    change_lineage(copied, in_timm=False)
    assert push(copied, hub) == 0
    shown = said(capsys)
    assert f"torch.export.load(huggingface_hub.hf_hub_download('{NAME}', 'model.pt2')).module()" in shown
    assert "timm.create_model" not in shown
    front = hub.repositories[NAME].files["README.md"].decode().split("---\n\n", 1)[0]
    assert "timm" not in front


@pytest.mark.parametrize("name", ["model.int8.onnx", "model.onnx"])
def test_files_of_another_export_are_refused(
    copied: Path, hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    """By push and by sign; a note that somebody added is none."""
    change_lineage(copied, files=digests_of(copied))
    (copied / "notes.txt").write_text("mine")
    assert push(copied, hub) == 0
    (copied / name).write_text("of another network")
    assert main(["keys", str(tmp_path / "me")]) == 0
    sign = ["sign", str(copied), "--key", str(tmp_path / "me")]
    for command in (lambda: push(copied, hub), lambda: main(sign)):
        assert command() == 2
        assert f"{name} is not the file that lineage.json records; run `python -m ops export RUN -o" in said(capsys)
    (copied / name).unlink()
    assert main(sign) == 0
    assert examine(copied, {}).problem is None


def change_lineage(folder: Path, **facts: object) -> None:
    """Have an export tell something else."""
    path = folder / "lineage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_a_program_of_an_earlier_version_is_refused(copied: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """As torch writes one by itself: with its example and the places of its operations."""
    change_lineage(copied, files=None)  # which recorded no digests
    program = torch.export.export(torch.nn.ReLU(), (torch.rand(2, 3, 4, 4),))
    torch.export.save(program, copied / "model.pt2")
    assert push(copied, hub) == 2
    assert "model.pt2 is of an earlier version, which left in it two of the images that it was exported" in said(capsys)
    assert not hub.asked


@pytest.mark.parametrize("name", NEEDED)
def test_an_unfinished_export_is_refused(copied: Path, hub: Hub, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (copied / name).unlink()
    assert push(copied, hub) == 2
    again = f"run `python -m ops export RUN -o {shlex.quote(str(copied))}` to its end"
    assert f"holds no finished export: it has no {name}; {again}" in said(capsys)
    assert not hub.asked


def test_a_signed_export_goes_as_it_was_signed(
    copied: Path, hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Every byte, so that the signature holds for whoever takes it from the hub; one that does not hold is refused."""
    assert main(["keys", str(tmp_path / "me")]) == 0
    (copied / "LICENSE").write_text("do as you like")
    assert main(["sign", str(copied), "--key", str(tmp_path / "me")]) == 0
    assert push(copied, hub) == 0
    files = hub.repositories[NAME].files
    assert set(files) == {*NEEDED, "LICENSE", "signature.json"}
    (tmp_path / "taken").mkdir()
    for name, content in files.items():
        (tmp_path / "taken" / name).write_bytes(content)
    assert examine(tmp_path / "taken", {}).problem is None
    (copied / "README.md").write_text("better than it is")
    assert push(copied, hub) == 2
    assert "is not as it was signed (ALTERED: README.md was changed); sign it again, or restore it" in said(capsys)
    (copied / "signature.json").unlink()
    assert push(copied, hub) == 0
    assert "signature.json" not in files


def test_other_weights_than_those_of_the_export(copied: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = safetensors.torch.load_file(copied / "model.safetensors")
    safetensors.torch.save_file({name: tensor + 1 for name, tensor in tensors.items()}, copied / "model.safetensors")
    assert push(copied, hub) == 2
    assert "model.safetensors is not the file that lineage.json records; run" in said(capsys)


@pytest.mark.parametrize(
    ("refuse", "sentence"),
    [
        ({"repos/create": 403}, f"the token may not write to {NAME} on"),
        ({"commit/main": 500}, "answers with 500 (because it is so); push again, nothing of this export was committed"),
    ],
)
def test_what_the_hub_refuses(export, hub, capsys, refuse, sentence) -> None:
    hub.refuse = refuse
    assert push(export, hub) == 2
    assert sentence in said(capsys)
    assert not any(one.files for one in hub.repositories.values())


def test_the_token(export: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the hub does not take is in no message, also where the hub sends it back; none at all is told."""
    monkeypatch.setenv("HF_TOKEN", TOKEN + "-no-more")
    assert push(export, hub) == 2
    assert "rejects the token; set HF_TOKEN" in said(capsys)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert push(export, hub) == 2
    assert "there is no token for the hub; set HF_TOKEN, or log in once" in said(capsys)


def test_a_hub_that_is_not_there(export: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(export), "--to", NAME, "--hub", "http://127.0.0.1:9"]) == 2
    assert "the hub http://127.0.0.1:9 does not answer" in said(capsys)
    assert main(["push", str(export), "--to", "no/such/name", "--hub", hub.address]) == 2
    assert "--to no/such/name" in said(capsys)
    assert main(["push", str(export / "none"), "--to", NAME]) == 2
    assert "is not a folder; give one that `export` has written" in said(capsys)


def test_places_on_this_machine_are_names_alone() -> None:
    recipe = to_yaml(small_run(Path("/home/me/my photos"), "alone", METHODS["alone"], 0))
    text = without_folders(recipe + "s3://bucket/a/b and 1/2, local-dir:/srv/x/y.", ["/home/me/my photos/out/alone"])
    assert "/srv" not in text
    assert "s3://bucket/a/b and 1/2, local-dir:y." in text
    assert "/home" not in text


def test_an_export_as_teacher_is_a_place_on_this_machine() -> None:
    teacher = {"model": "local-dir:/home/me/my clients/big", "file": "/home/me/my clients/big/model.safetensors"}
    lineage = {"run": "kd", "model": "resnet18", "teachers": [teacher, {"model": "resnet34", "cache": None}]}
    said = {"model": "local-dir:big", "file": "model.safetensors"}
    assert without_places(lineage) == {**lineage, "teachers": [said, {"model": "resnet34", "cache": None}]}
    assert (
        without_folders("model: local-dir:/home/me/my clients/big, 3", places_in(lineage)) == "model: local-dir:big, 3"
    )
