"""A process that trains is killed on every kind of container, and another goes on: the steps of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from tests.cluster.training.begin_and_kill import KILLED_AT, SAVED_AT, STEPS, train, train_in
from tests.conftest import small_recipe
from tests.pipelines.containers import CONTAINERS
from tests.pipelines.stores import s3_server, store, uri, use_test_credentials
from tests.processes import exit_code_of

IN_STORE = {"pack in a store": "pack", "folder in a store": "folder", "tar in a store": "tar of folders"}


def recipe_of(root: str, folder: Path) -> dict[str, object]:
    """A recipe whose views are mixed; root: a folder or a URI."""
    changes = {"train__epochs": 3, "scaling__num_workers": 0, "views__mixup_alpha": 0.4}
    recipe = small_recipe(Path("x"), folder / "out", **changes, data__copies_dir=str(folder / "copies"))
    return recipe | {"data": recipe["data"] | {"root": root}}


@pytest.fixture(scope="module")
def undisturbed(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    """The steps of a run on the image folder: (number, loss and sum of the images of each micro-batch)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(recipe_of(str(image_folder), folder), folder, kill=False)
    return steps_of(folder)


def steps_of(folder: Path) -> list[list[float]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as monkeypatch, s3_server() as port:
        use_test_credentials(monkeypatch)
        store(port).create_dir("bucket")
        yield port


def ends_of(root: str, folder: Path) -> list[int | None]:
    """Let a run be killed and continued; return how the two processes ended."""
    recipe, environment = recipe_of(root, folder), dict(os.environ)
    return [exit_code_of(train_in, environment, recipe, folder, kill) for kill in (True, False)]


@pytest.mark.parametrize("kind", [*CONTAINERS, *IN_STORE])
def test_killed_and_continued(
    kind: str, image_folder: Path, undisturbed: list[list[float]], port: int, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for split in ("train", "val"):
        CONTAINERS[IN_STORE.get(kind, kind)](image_folder, split, root)
    place = str(root)
    if kind in IN_STORE:
        bucket = kind.replace(" ", "-")
        store(port).create_dir(bucket)
        fs.copy_files(str(root), f"{bucket}/images", fs.LocalFileSystem(), store(port))
        place = uri(bucket, port)
    assert ends_of(place, tmp_path) == [-signal.SIGKILL, 0]
    steps = steps_of(tmp_path)
    assert [int(step[0]) for step in steps] == [*range(KILLED_AT), *range(SAVED_AT, STEPS)]
    assert steps[:KILLED_AT] == undisturbed[:KILLED_AT]
    assert steps[KILLED_AT:] == undisturbed[SAVED_AT:]
