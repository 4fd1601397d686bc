"""What ended in a traceback, or after minutes, is one line before training."""

import re
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from cluster.images import open_data
from cluster.nodes.errors import FINAL
from cluster.recipe.reading import parse
from cluster.tracking.folder import RunFolder
from cluster.training import check
from cluster.training.checkpoint_files import checkpoint_place
from cluster.training.launch import check_run, launch
from cluster.training.replay import replay_step
from cluster.training.saving import newest_step
from cluster.training.worker import train_worker
from cluster.training.worker_task import WorkerTask
from kdcore.errors import Refused
from pipelines.leases import Fence
from tests.conftest import small_recipe, write_image_folder

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("student", "complaint"),
    [
        ({"model": "resnet18.nope"}, "resnet18 has no pretrained weights called 'nope'; it has "),
        ({"model": "resnet18", "args": {"in_chans": 1}}, "images have 3 channels"),
        ({"model": "resnet18", "args": {"features_only": True}}, "without a classifier cannot be trained"),
        ({"model": "inception_v3"}, "InceptionV3 cannot take 2 images of 64x64"),
    ],
)
def test_networks(recipe, student, complaint):
    with pytest.raises(Refused, match=complaint):
        check_run(parse(recipe(student=student, views__size=64)))


def test_an_output_folder_that_is_a_file(image_folder, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(Refused, match=r"output_dir: the folder .* cannot be made \(File exists\)"):
        launch(parse(small_recipe(image_folder, tmp_path / "out", scaling__num_workers=0)))


@pytest.mark.parametrize("target", ["..", ".", "../.."])
def test_a_link_to_a_folder_around_it(tmp_path, target):
    root = write_image_folder(tmp_path / "images")
    (root / "train" / "class0" / "link").symlink_to(target)
    with pytest.raises(Refused, match="class0/link is a link to a folder that contains it"):
        check_run(parse(small_recipe(root, tmp_path / "out")))


def test_a_link_to_another_folder_is_followed(tmp_path):
    root = write_image_folder(tmp_path / "images")
    shutil.move(root / "train" / "class0" / "000.png", tmp_path / "more.png")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "more.png", tmp_path / "elsewhere" / "000.png")
    (root / "train" / "class0" / "link").symlink_to(tmp_path / "elsewhere")
    check_run(parse(small_recipe(root, tmp_path / "out")))


@pytest.mark.parametrize("names", [("NFC", "NFD"), ("class0", "class0 ")])
def test_classes_that_look_alike(tmp_path, names):
    root = write_image_folder(tmp_path / "images")
    for split, name in zip(("train", "val"), names, strict=True):
        shown = unicodedata.normalize(name, "é") if name.startswith("NF") else name
        (root / split / "class0").rename(root / split / shown)
    with pytest.raises(Refused, match="the same to the eye"):
        check_run(parse(small_recipe(root, tmp_path / "out")))


BOTH = r"data.train_split=train and data.val_split=\w+ of .* hold the same images.*move part of each class out"


@pytest.mark.parametrize("changes", [{}, {"data__held_out": 0.25}, {"data__images_per_class": 5}])
def test_a_split_that_trains_and_judges(tmp_path, changes):
    root = write_image_folder(tmp_path / "images")
    config = parse(small_recipe(root, tmp_path / "out", data__val_split="train", **changes))
    assert len(open_data(config)["val"]) == 48  # for `evaluate`
    with pytest.raises(Refused, match=BOTH):
        check_run(config)


def test_images_that_were_copied_where_they_should_have_been_moved(tmp_path):
    root = write_image_folder(tmp_path / "images")
    for name in ("class0", "class1", "class2"):
        (root / "part" / name).mkdir(parents=True)
        shutil.copy(root / "train" / name / "000.png", root / "part" / name / "other.png")
    with pytest.raises(Refused, match=BOTH):
        check_run(parse(small_recipe(root, tmp_path / "out", data__val_split="part")))


def test_classes_of_one_image_cannot_be_held_out(tmp_path):
    root = write_image_folder(tmp_path / "images", train=1)
    with pytest.raises(Refused, match=r"keeps back none of the images in .*set data.held_out=0 train.select=last"):
        check_run(parse(small_recipe(root, tmp_path / "out", data__held_out=0.2)))


@pytest.mark.parametrize("uri", ["mysql://me@127.0.0.1:1/x", "sqlite+nope:////tmp/x.db"])
def test_a_store_whose_driver_is_missing(recipe, uri):
    config = parse(recipe(scaling__num_workers=0, tracking__uri=uri))
    with pytest.raises(Refused, match="install the driver of that database"):
        launch(config)
    assert not RunFolder.of(config).metrics.exists()


@pytest.mark.parametrize("storage", ["s4://bucket/runs", "gopher://x"])
def test_a_store_of_no_known_kind(recipe, storage):
    config = parse(recipe(checkpoint__storage=storage))
    message = (
        rf"checkpoint.storage={storage}: Unrecognized .*; give a folder, or a URI that pyarrow.fs knows \(s3://, gs"
    )
    with pytest.raises(Refused, match=message):
        newest_step(config)


@pytest.mark.parametrize("is_found", [True, False])
def test_a_store_that_does_not_answer(recipe, monkeypatch, is_found):
    """A replay ended in the store's own error, whether the bucket's region is known or to be asked for."""

    def fail(*_: object) -> None:
        raise OSError("NETWORK_CONNECTION during HeadBucket")

    silent = SimpleNamespace(get_file_info=fail)
    connect = (lambda location, setting: (silent, "bucket/runs")) if is_found else fail
    monkeypatch.setattr("cluster.training.checkpoint_files.connect", connect)
    config = parse(recipe(checkpoint__storage="s3://bucket/runs"))
    for ask in (newest_step, lambda config: replay_step(config, 1, torch.device("cpu"), lambda done, to_do: None)):
        with pytest.raises(Refused, match=r"^checkpoint.storage: s3://bucket/runs cannot be read \(NETWORK_.*; give a"):
            ask(config)


@pytest.mark.parametrize("folder", ["runs", "runs/"])
def test_the_options_of_a_store_are_no_part_of_its_folders(recipe, folder):
    storage = f"s3://bucket/{folder}?region=eu-west-1&endpoint_override=127.0.0.1:1&scheme=http"
    filesystem, path = checkpoint_place(parse(recipe(checkpoint__storage=storage)).storage, "run")
    assert (filesystem.type_name, path) == ("s3", "bucket/runs/run")


def test_what_this_machine_lacks_where_there_is_a_cluster(recipe, monkeypatch):
    """A run in this process is trained here, whatever the nodes have; it came to the CPU without a word."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    alone = parse(recipe(scaling={"num_workers": 0, "use_gpu": True}))
    with pytest.raises(Refused, match=r"scaling.use_gpu is true, but PyTorch sees no GPU on this machine"):
        launch(alone)
    assert RunFolder.of(alone).state() == "new"

    def lacks_one() -> None:
        raise Refused("train.compile is true, but")

    monkeypatch.setattr(check, "require_compiler", lacks_one)
    with pytest.raises(Refused, match=r"train.compile is true"):
        launch(parse(recipe(scaling={"num_workers": 0}, train__compile=True)))
    check.check_this_process(parse(recipe(scaling={"num_workers": 1, "use_gpu": True}, train__compile=True)))
    check.check_names(alone)  # as the driver of a sweep does, whose runs lie on other nodes


def test_a_worker_without_a_compiler(recipe, monkeypatch):
    """A cluster's node is refused before its networks are built, and for good; the driver could not know."""
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", mock.Mock(side_effect=InvalidCxxCompiler))
    config = parse(recipe(scaling={"num_workers": 0}, train__compile=True))
    with pytest.raises(FINAL, match=r"^train.compile is true, but this machine has no C\+\+ compiler"):
        train_worker(WorkerTask(config.model_dump(mode="json"), {}, {}, None, Fence("", "", 0), watches_nodes=False))
    assert re.search(r"apt-get install .* g\+\+ ", (ROOT / "cluster/deploy/Dockerfile").read_text())
