"""The command line: help that names every command; errors in one line, exit status 2, before any worker starts."""

import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import ray
import yaml
from PIL import Image

import kdcore
import ops.command_line.parser
from cluster.interruption import Terminated
from cluster.recipe.config import RunConfig
from cluster.recipe.run_sections import TrackingConfig
from cluster.sweep.axes import Pairings
from ops import layers
from ops.__main__ import main
from ops.command_line.parser import COMMANDS, EXAMPLES, GROUPS, build_parser
from ops.export.files import exporting
from ops.train import mlflow_hint
from pipelines.data.variants import VARIANTS
from tests.conftest import write_image_folder

ROOT = Path(__file__).parents[3]
COMMAND_NAMES = (
    "demo",
    "train",
    "evaluate",
    "export",
    "review",
    "ui",
    "deliver",
    "show",
    "layers",
    "recipes",
    "fields",
    "data",
    "cache",
    "submit",
    "doctor",
    "capacity",
)


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(f"  {command} " in shown for command in COMMAND_NAMES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["review", "stillhouse"], "terminated"),
        (["export", "run", "-o", "here"], "terminated"),
        (["train", "kd"], "terminated; the same command continues from the last checkpoint"),
        (["demo"], "terminated; the same command continues from the last checkpoint"),
        (["sweep", "kd", "--space", "s.yaml"], "terminated; the same command continues the sweep, its runs from"),
        (["cache", "build", "kd"], "terminated; the same command builds what is missing"),
        (["cache", "info", "here"], "terminated"),
        (["data", "pack", "a", "-o", "b"], "terminated; the same command continues the pack"),
        (["reproduce", "cifar100"], "terminated; the same command continues from the last checkpoint"),
    ],
)
def test_only_what_goes_on_is_said_to(words, said, monkeypatch, capsys):
    """Whatever was asked for is replaced by SIGTERM's exception; the words are parsed as they are."""

    def terminate(*args):
        raise Terminated("terminated")

    monkeypatch.setattr(ops.command_line.parser, "_call", terminate)
    assert main(words) == 143
    line = " ".join(capsys.readouterr().err.split())
    assert line.startswith(f"stillhouse: {said}")
    assert ";" in said or line == f"stillhouse: {said}"


def test_commands_that_are_shown_can_be_typed(tmp_path):
    """Also where a folder has a space in its name."""
    folder = f"{tmp_path}/my runs"
    config = RunConfig.model_construct(output_dir=folder, tracking=TrackingConfig())
    assert shlex.split(mlflow_hint(config))[2:] == ["-m", "ops", "ui", "--store", folder]
    assert shlex.split(exporting(Path(folder)))[-2:] == ["-o", folder]


@pytest.mark.parametrize("command", COMMAND_NAMES)
def test_each_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 6


@pytest.fixture
def refused(recipe, tmp_path, capsys):
    """A function that trains a recipe with a mistake in it, and gives the one line it is refused with. In this process,
    unless it is told of workers."""

    def run(*overrides: str, **changes) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(**{"scaling__num_workers": 0} | changes)))
        assert main(["train", str(path), *overrides]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert not ray.is_initialized()
        return lines[0]

    return run


def test_unknown_key(refused):
    assert "unknown key 'train.epoch'; did you mean epochs" in refused("train.epoch=3")


def test_unknown_model(refused):
    assert "unknown model 'cifar_resnet7'; did you mean cifar_resnet" in refused("student.model=cifar_resnet7")


@pytest.mark.ray
def test_refused_before_workers_start(refused):
    """While Ray wakes; what it has started is gone afterwards."""
    assert "unknown model" in refused("student.model=cifar_resnet7", scaling__num_workers=2)


def test_unknown_tap(refused):
    pairs = [{"student": "layer9", "teacher": "layer2"}]
    line = refused(
        teacher={"model": "cifar_resnet8", "random": True},
        method=[{"term": "feature_mse", "weight": 1.0, "pairs": pairs}],
    )
    assert "term feature_mse, pairs: the student cifar_resnet8 has no tap 'layer9'; did you mean layer" in line


def test_unknown_data_folder(refused, tmp_path):
    assert str(tmp_path / "nowhere") in refused(f"data.root={tmp_path / 'nowhere'}")


def test_missing_checkpoint(refused):
    assert "weights.safetensors: no such file" in refused("student.checkpoint=weights.safetensors")


def test_empty_class_folder(refused, tmp_path):
    root = write_image_folder(tmp_path / "images", train=2)
    (root / "train" / "empty").mkdir()
    assert "train/empty" in refused(f"data.root={root}", "train.batch_size=4")


def test_non_image_file(refused, tmp_path):
    root = write_image_folder(tmp_path / "images", train=2)
    (root / "train" / "class1" / "notes.txt").write_text("not an image")
    assert "train/class1/notes.txt" in refused(f"data.root={root}", "train.batch_size=4")


def test_classes_that_differ(refused, tmp_path):
    root = write_image_folder(tmp_path / "images", train=2)
    (root / "val" / "class2").rename(root / "val" / "other")
    assert "class2" in refused(f"data.root={root}", "train.batch_size=4")


def test_batch_larger_than_the_data(refused):
    assert "train.batch_size 64 is more than the 48 training images" in refused("train.batch_size=64")


def test_missing_recipe(capsys):
    assert main(["train", "nowhere.yaml"]) == 2
    assert "nowhere.yaml: no such recipe" in capsys.readouterr().err


def test_show(recipe, tmp_path, capsys):
    """Parameters, cost and taps of both networks, without training."""
    pairs = [{"student": "layer2", "teacher": "layer3"}]
    path = tmp_path / "recipe.yaml"
    method = [{"term": "feature_mse", "weight": 1.0, "pairs": pairs}]
    path.write_text(yaml.safe_dump(recipe(teacher={"model": "cifar_resnet8", "random": True}, method=method)))
    assert main(["show", str(path), "--seconds", "0.1"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "images/s, measured on one for 0.1 s",
        "layer2 *",
        "8 x 8 x 8",
        "layer3 *",
        "64 x 4 x 4",
        "77,587",
        "512",
    ):  # 8 x 64 weights in the projection
        assert part in shown, part
    assert not ray.is_initialized()


def test_show_a_picture_of_sample_views(recipe, tmp_path, capsys):
    """6 images by their centre and 3 views, with borders of 2 pixels; the teacher is not looked for."""
    path, picture = tmp_path / "recipe.yaml", tmp_path / "views.png"
    views = {"views__auto_augment": "trivial", "views__mixup_alpha": 0.5, "views__num_views": 3}
    teacher = {"model": "cifar_resnet8", "checkpoint": str(tmp_path / "absent.safetensors")}
    path.write_text(yaml.safe_dump(recipe(teacher=teacher, **views)))
    assert main(["show", str(path), "--picture", str(picture)]) == 0
    assert "6 training images, one a row; the centre, then views 0 to 2" in capsys.readouterr().out
    sheet = np.asarray(Image.open(picture))
    assert sheet.shape == (6 * (16 + 2) + 2, 4 * (16 + 2) + 2, 3)
    assert len({sheet[2:18, 2 + 18 * column : 18 + 18 * column].tobytes() for column in range(4)}) == 4
    assert main(["show", str(path), "--picture", str(tmp_path / "views.txt")]) == 2
    assert "give a name that ends in .png or .jpg" in capsys.readouterr().err


def test_the_help_groups_the_commands_and_ends_with_examples_that_parse(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    groups = [line for line in shown.splitlines() if line.endswith("):")]
    assert [group.split()[0] for group in groups] == ["run", "look", "keep", "prepare"]
    assert shown.index("  train ") < shown.index("look (") < shown.index("  fields ") < shown.index("keep (")
    for example in EXAMPLES:
        assert f"\n  {example}\n" in shown
        assert build_parser().parse_args(shlex.split(example)[3:]).function
    assert len(EXAMPLES) == 3


def test_every_command_is_in_a_group_of_the_help():
    build_parser()
    assert {command.group for command in COMMANDS.values()} == set(GROUPS)
    assert set(COMMANDS) >= set(COMMAND_NAMES)


@pytest.mark.parametrize(("typed", "hint"), [("trian", "did you mean train?"), ("qqq", "--help lists them")])
def test_an_unknown_command_is_refused_with_the_nearest(typed, hint, capsys):
    with pytest.raises(SystemExit) as ended:
        main([typed, "kd"])
    assert ended.value.code == 2
    assert f"there is no command {typed!r}; {hint}" in capsys.readouterr().err


def test_help_is_not_slow():
    """Neither torch nor Ray is waited for, nor pydantic."""
    code = (
        "import sys, ops.command_line.parser; ops.command_line.parser.build_parser().format_help(); "
        "print([m for m in ('torch', 'ray', 'numpy', 'pydantic', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("words", [[], ["kd"], ["cifar100/resnet32x4-resnet8x4/kd"]])
def test_recipes_are_not_slow(words):
    """A recipe with the meaning of every field takes neither torch nor what reads images: 0.3 s in place of 2.5."""
    code = (
        "import sys; from ops.__main__ import main; main(['recipes', *sys.argv[1:]]); "
        "print([m for m in ('torch', 'timm', 'ray', 'numpy', 'pyarrow', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
    assert not words or "# The losses: a list of terms" in done.stdout


def test_the_version_is_said_once(capsys):
    """By `--version`, in place and without the package being installed, and by the distribution."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"stillhouse {kdcore.__version__}\n"
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in pyproject["project"]
    assert pyproject["project"]["dynamic"] == ["version"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "kdcore.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", kdcore.__version__)


def test_defaults_come_from_their_owners():
    """What the command line says is what recipes and functions have where nothing is said."""
    args = build_parser().parse_args(["layers", "kd"])
    score = inspect.signature(layers.score).parameters
    assert args.max_elements == score["max_elements"].default
    assert args.scale == score["scale"].default
    assert args.num_images == Pairings.model_fields["images"].default
    assert build_parser().parse_args(["deliver"]).folder == RunConfig.model_fields["output_dir"].default
    assert build_parser().parse_args(["evaluate", "run", "--variant", VARIANTS[-1]]).variant == VARIANTS[-1]
