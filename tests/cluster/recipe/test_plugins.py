"""Plug-ins: imported by name, file or folder; refused in a line; their source is part of what a run is."""

import json
import sys
from pathlib import Path

import pytest

from cluster.jobs import check_paths
from cluster.parcel import pack_parcel
from cluster.recipe import plugins
from cluster.recipe.paths import absolute
from cluster.recipe.plugins import describe_code, fingerprints_of, import_plugins, refuse_other_code, to_ship
from cluster.recipe.reading import apply_override, parse
from cluster.tracking.delivery import recipe_to_deliver
from cluster.tracking.folder import RunFolder
from cluster.tracking.tracker import Tracker
from cluster.weights import starting_facts
from kdcore.errors import Refused
from kdcore.optim import build_optimizer
from kdcore.terms import REGISTRY
from ops.__main__ import main
from ops.command_line.parser import build_parser
from ops.submit import without_plugins
from pipelines.data import kinds
from pipelines.data.index import build_index
from tests.own_code import plugin, write_own_code, write_own_images

ROOT = Path(__file__).parents[3]


@pytest.fixture
def code(tmp_path) -> Path:
    return write_own_code(tmp_path / "code")


def test_a_term_from_a_file_a_package_and_by_name(code, recipe, monkeypatch):
    """The three ways of naming one; the recipe then knows the term."""
    method = [{"term": "logit_l1", "weight": 1.0, "scale": 2.0}]
    teacher = {"model": "cifar_resnet8", "random": True}
    config = parse(recipe(plugins=[str(code / "own_losses.py")], method=method, teacher=teacher))
    assert config.method[0].scale == 2.0
    assert parse(config.model_dump(mode="json")) == config
    import_plugins([str(code / "own_images")])
    assert kinds.KINDS[-1].name == "names"
    monkeypatch.syspath_prepend(str(code))
    import_plugins(["own_images.names"])
    assert [kind.name for kind in kinds.KINDS].count("names") == 1
    with pytest.raises(Refused, match="unknown term 'logit_l2'; did you mean logit_l1"):
        parse(recipe(plugins=config.plugins, method=[{"term": "logit_l2", "weight": 1}], teacher=teacher))


def test_own_images_are_the_same_data(code, image_folder, tmp_path):
    """A plug-in's container has the fingerprint of the class folders that it was made from."""
    import_plugins([str(code / "own_images")])
    root = write_own_images(image_folder, tmp_path / "images")
    for split in ("train", "val"):
        ours = build_index(str(root), split, tmp_path / "index")
        theirs = build_index(str(image_folder), split, tmp_path / "index")
        assert ours.fingerprint == theirs.fingerprint
        assert ours.classes == theirs.classes


def test_an_optimiser_a_network_and_a_tracker(tmp_path, recipe):
    path = plugin(
        tmp_path,
        "import timm, torch\n"
        "from timm.optim import OptimInfo\n"
        "from timm.optim._optim_factory import default_registry\n"
        "from timm.models import register_model, create_model\n"
        "from cluster.tracking.tracker import Tracker\n"
        "class MySgd(torch.optim.SGD): pass\n"
        "default_registry.register(OptimInfo(name='mysgd', opt_class=MySgd, description='mine', has_momentum=True))\n"
        "default_registry.register(OptimInfo(name='my_adamw', opt_class=MySgd, description='mine'))\n"
        "@register_model\n"
        "def my_resnet(pretrained=False, **kwargs): return create_model('cifar_resnet8', **kwargs)\n"
        "class Notes(Tracker):\n"
        "    name = 'my_notes'\n"
        "    open = send = send_file = missing_files = end = None\n",
    )
    config = parse(recipe(plugins=[path], student__model="my_resnet", optimizer__opt="mysgd"))
    from kdcore.models import build_model

    network = build_model(config.student, ["a", "b"])
    assert type(build_optimizer(config.optimizer, network)).__name__ == "MySgd"
    with pytest.raises(Refused, match="'my_adamw': timm takes what follows the last '_' for the name"):
        build_optimizer(config.optimizer.model_copy(update={"opt": "my_adamw"}), network)
    assert "my_notes" in Tracker.registry


def test_no_plugin_adds_no_fact(recipe):
    """What runs and caches of before were known by stays what it was."""
    config = parse(recipe())
    assert starting_facts(config) == {"weights": {}}
    assert fingerprints_of(config) == {}
    assert describe_code(config) == []


def test_the_source_is_part_of_the_run(code, recipe, tmp_path):
    """The same code in another place goes on with a run; other code does not."""
    path = code / "own_losses.py"
    method = [{"term": "logit_l1", "weight": 1.0}]
    data = recipe(plugins=[str(path)], method=method, teacher={"model": "cifar_resnet8", "random": True})
    config = parse(data)
    folder = RunFolder.of(config)
    folder.claim(config)
    first = json.loads(folder.facts.read_text())["plugins"]["own_losses"]
    assert fingerprints_of(config) == {"own_losses": first}

    forget()
    moved = tmp_path / "moved" / "own_losses.py"
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    folder.refuse_another(parse({**data, "plugins": [str(moved)]}))

    forget()
    moved.write_text(moved.read_text() + "\n")
    other = parse({**data, "plugins": [str(moved)]})
    with pytest.raises(Refused, match=r"was computed by another plug-in \(plugins.own_losses .*choose another name"):
        folder.refuse_another(other)
    with pytest.raises(Refused, match=r"own_losses at .* is not that of the driver .* make it the same on every node"):
        refuse_other_code(other, {"own_losses": first})


def forget() -> None:
    """As in another process: the plug-ins were not imported yet."""
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]
    REGISTRY.pop("logit_l1", None)
    plugins._FINGERPRINTS.clear()


def test_a_whole_package_is_the_source(code):
    import_plugins([str(code / "own_images")])
    first = plugins._FINGERPRINTS["own_images"]
    forget()
    kinds.KINDS.pop()
    (code / "own_images" / "names.py").open("a").write("# another\n")
    import_plugins([str(code / "own_images")])
    assert plugins._FINGERPRINTS["own_images"] != first


def test_looking_at_runs_imports_nothing(code, recipe):
    """What a folder of runs names is not run by delivering what they have kept, nor by comparing recipes."""
    path = code / "own_losses.py"
    method = [{"term": "logit_l1", "weight": 1.0}]
    teacher = {"model": "cifar_resnet8", "random": True}
    config = parse(recipe(plugins=[str(path)], method=method, teacher=teacher))
    RunFolder.of(config).claim(config)
    forget()
    path.write_text("raise SystemError('it was imported')")
    assert recipe_to_deliver(RunFolder.of(config)).plugins == ()
    with pytest.raises(Refused, match="unknown term 'logit_l1'"):
        RunFolder.of(config).refuse_another(parse(recipe()))
    assert "own_losses" not in sys.modules


def test_paths_are_made_absolute_and_modules_are_not(code, recipe, monkeypatch):
    monkeypatch.chdir(code)
    monkeypatch.syspath_prepend(str(code))
    config = parse(recipe(plugins=["./own_losses.py", "own_images"]))
    assert absolute(config, code).plugins == (str(code / "own_losses.py"), "own_images")
    assert to_ship(config, pack_parcel(ROOT)) == [str(code / "own_images"), str(code / "own_losses.py")]
    data = config.model_dump(mode="json")
    data |= {"output_dir": "/out", "data": {**data["data"], "root": "/data"}}
    check_paths(parse(data))  # a job brings the plug-ins


def test_a_file_under_two_spellings(code, tmp_path, monkeypatch):
    """It is one plug-in, whether it was imported already or would be found on the path; another file is another."""
    (code / "below").mkdir()
    monkeypatch.chdir(code / "below")
    (tmp_path / "link").symlink_to(code)
    spellings = ("../own_losses.py", str(code / "own_losses.py"), str(tmp_path / "link" / "own_losses.py"))
    import_plugins(spellings)
    forget()
    monkeypatch.syspath_prepend(str(tmp_path / "link"))
    import_plugins(spellings)
    another = plugin(code / "below", "", "own_losses")
    with pytest.raises(Refused, match="would take the place of the module 'own_losses'"):
        import_plugins([another])


def test_as_typed(recipe):
    """--plugin is an override that appends."""
    args = build_parser().parse_args(["train", "kd", "--plugin", "./a.py", "train.epochs=1", "--plugin", "b.c"])
    assert args.overrides == ["train.epochs=1", 'plugins+="./a.py"', 'plugins+="b.c"']
    data: dict = {"plugins": ["first"], "views": {"size": 3}}
    for override in args.overrides[1:]:
        apply_override(data, override)
    assert data["plugins"] == ["first", "./a.py", "b.c"]
    apply_override(data, "tracking.also+=tensorboard")
    assert data["tracking"] == {"also": ["tensorboard"]}
    with pytest.raises(Refused, match=r"\+= appends to a list, and views is not one"):
        apply_override(data, "views+=1")
    words = ["train", "kd", "--plugin", "./a.py", "--plugin=b", "plugins=[c]", "plugins+=d", "train.epochs=1"]
    assert without_plugins(words) == ["train", "kd", "train.epochs=1"]


def test_commands_without_a_recipe(code, image_folder, tmp_path, capsys):
    """`fields` and `data show` know what a plug-in brings."""
    assert main(["fields", "logit_l1", "--plugin", str(code / "own_losses.py")]) == 0
    assert "scale" in capsys.readouterr().out
    root = write_own_images(image_folder, tmp_path / "images")
    index = ["--index", str(tmp_path / "index")]
    assert main(["data", "show", str(root), *index, "--plugin", str(code / "own_images")]) == 0
    assert "48" in capsys.readouterr().out


def test_show_names_what_is_imported(code, image_folder, tmp_path, capsys):
    nets = code / "own_nets.py"
    changes = ["student.model=own_nets:build", "student.args={}", f"data.root={image_folder}", "views.size=16"]
    command = ["show", str(ROOT / "ops/recipes/demo/teacher.yaml"), "--plugin", str(nets), *changes]
    assert main([*command, f"output_dir={tmp_path / 'out'}", "train.batch_size=8", "train.micro_batch=4"]) == 0
    shown = capsys.readouterr().out
    assert "imports own_nets from" in shown
    assert plugins._FINGERPRINTS["own_nets"] in shown.replace("\n", "")
