"""What a word on the command line names: the run of its folder, and no network of other code than that run's."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from cluster.recipe import plugins
from cluster.recipe.reading import parse
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_tracker import open_store, tracking_uri
from kdcore import named_models
from kdcore.errors import Refused
from ops.__main__ import main
from ops.evaluation.subjects import find_subject
from pipelines.files import write_json
from tests.own_code import write_own_code


def forget() -> None:
    """As in another process: the code was not imported yet."""
    sys.modules.pop("own_nets", None)
    plugins._FINGERPRINTS.clear()


@pytest.fixture
def code(tmp_path, monkeypatch):
    """The file of somebody's own networks; they are gone after the test."""
    monkeypatch.setattr(plugins, "_FINGERPRINTS", {})
    monkeypatch.setattr(named_models, "BUILDER_MODULES", set(named_models.BUILDER_MODULES))
    monkeypatch.setattr(plugins, "BUILDER_MODULES", named_models.BUILDER_MODULES)
    write_own_code(tmp_path)
    yield tmp_path / "own_nets.py"
    forget()


def test_a_run_is_not_looked_at_with_other_code(code: Path, recipe, tmp_path, capsys):
    """Its weights, judged or exported through a changed network, would have other numbers without a word."""
    student, method = {"model": "own_nets:build"}, [{"term": "ce", "weight": 1.0}]
    config = parse(recipe(plugins=[str(code)], student=student, method=method))
    folder = RunFolder.of(config)
    folder.claim(config)
    folder.weights.touch()
    assert find_subject(str(folder.path), None, []).config.plugins == (str(code),)

    forget()
    code.write_text(code.read_text() + "\n")
    message = (
        rf"was computed by another plug-in \(plugins.own_nets .* restore {code}, or train again under another name"
    )
    for word in (folder.path, folder.weights):
        with pytest.raises(Refused, match=message):
            find_subject(str(word), None, [])
    for command, *rest in (["evaluate"], ["predict", str(code)], ["export", "-o", str(tmp_path / "x")], ["benchmark"]):
        assert main([command, str(folder.path), *rest]) == 2
        assert "another plug-in" in " ".join(capsys.readouterr().err.split())

    folder.facts.unlink()  # a run from before they were recorded
    assert find_subject(str(folder.path), None, []).weights == folder.weights


@pytest.mark.parametrize("is_trial", [False, True])
def test_a_run_whose_output_folder_has_moved(recipe, tmp_path, is_trial):
    """It, or a sweep's trial, is in the store that moved along; nothing is made at the old place, or for a lost one."""
    out, moved = tmp_path / "out", tmp_path / "moved"
    uri = f"sqlite:///{out / 'mlflow.db'}" if is_trial else None
    config = parse(recipe(tracking__uri=uri) | {"output_dir": str(out / "s" if is_trial else out)})
    folder = RunFolder.of(config)
    folder.claim(config)
    folder.weights.touch()
    folder.run_id.write_text("abc")
    assert (folder.read_store() is None) is not is_trial
    (out / "mlflow.db").touch()
    out.rename(moved)
    run = moved / folder.path.relative_to(out)
    found = find_subject(str(run), None, []).config
    assert (tracking_uri(found), found.output_dir) == (f"sqlite:///{moved / 'mlflow.db'}", str(run.parent))
    (moved / "mlflow.db").unlink()
    with pytest.raises(Refused, match=r"moved/mlflow.db, which has the run of .*, is missing; put it back"):
        open_store(found)
    assert not (moved / "mlflow.db").exists()
    assert not out.exists()


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """The working folder: two runs, the second without its student; an export of the first; photographs."""
    monkeypatch.chdir(tmp_path)
    for name in ("outputs/a", "outputs/b", "exported", "photos"):
        Path(name).mkdir(parents=True)
    for name in ("outputs/a/recipe.yaml", "outputs/a/student.safetensors", "outputs/b/recipe.yaml", "photos/x.png"):
        Path(name).touch()
    write_json(Path("exported/lineage.json"), {"run": "a", "run_dir": "/there/outputs/a"})
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evaluate outputs", "outputs holds runs, and is none; give the folder of one: outputs/a, outputs/b$"),
        ("probe exported", "exported is an export, of the run in /there/outputs/a; give the folder of its run$"),
        ("benchmark photos", "photos is not a run's folder, as it has no recipe.yaml; give the folder that `train` pr"),
        ("export outputs/b -o e", "outputs/b: no student.safetensors, so this run is not finished; continue it with"),
        (
            "predict photos outputs/a",
            "photos is no run, and outputs/a is one; the run comes first: predict outputs/a p",
        ),
        ("predict photos/x.png outputs/a/student.safetensors", "photos/x.png is no run, and outputs/a/student.safeten"),
        ("predict photos photos", "photos is not a run's folder"),
    ],
)
def test_a_folder_that_is_no_finished_run(folders, words, said, capsys):
    """All of them were called runs that are not finished."""
    assert main(words.split()) == 2
    assert re.search(f"^stillhouse: {said}", capsys.readouterr().err.strip())
