"""Shared by all tests: a small image folder, recipes on it, and one Ray cluster for all that do not change it."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share few cores, and threads that wait take them
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # of another executable than is then asked for
os.environ.setdefault("RAY_worker_niceness", "0")  # else whatever else runs here goes first
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process a run; nobody takes this machine away

import numpy as np
import pytest
from PIL import Image

from tests.forked_workers import serving, set_up_here
from tests.mlflow_tables import copy_tables

ROOT = Path(__file__).parents[1]
CLUSTER_IS_SHARED = pytest.StashKey[bool]()
SHARED_DATA = ROOT.parent / "shared" / "data"


def pytest_configure() -> None:
    gc.disable()  # until everything is imported, which leaves no garbage


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where `-m` asks for what starts Ray alone, files without it are not imported."""
    asked = config.getoption("markexpr").startswith(("ray and", "own_ray and"))
    is_test = collection_path.name.startswith("test_") and collection_path.is_file()
    return True if asked and is_test and "mark.ray" not in collection_path.read_text() else None


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts no Ray comes first, then what shares a cluster, then what starts a Ray of its own (`own_ray`).

    Last comes what shares several nodes, whose cluster this process does not leave before it ends.
    """
    for item in items:
        if starts_ray(item) and not shares_cluster(item):
            item.add_marker("own_ray")
    items.sort(key=lambda item: (starts_ray(item), not shares_cluster(item), "nodes" in fixtures_of(item)))


def pytest_collection_finish() -> None:
    """What is imported is here to stay: a look through it for garbage takes a second each time, and there are many."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # at its end Python frees all: libraries in C++ complain of what it cannot


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The first test that starts a Ray of its own finds none in its process. MLflow's tables are copied."""
    if "mlflow" in sys.modules:  # else no test of this process has a store, and to import it takes seconds
        copy_tables()
    if starts_ray(item) and not shares_cluster(item) and item.config.stash.get(CLUSTER_IS_SHARED, False):
        import ray

        ray.shutdown()
        item.config.stash[CLUSTER_IS_SHARED] = False


def starts_ray(item: pytest.Item) -> bool:
    return item.get_closest_marker("ray") is not None


def shares_cluster(item: pytest.Item) -> bool:
    return "ray_cluster" in fixtures_of(item)


def fixtures_of(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())


def write_image_folder(root: Path, train: int = 16, val: int = 5, classes: int = 3, seed: int = 0) -> Path:
    """Noisy pictures of three colours, PNG, of differing odd sizes; root/{train,val}/<class>/<number>.png."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                height, width = rng.integers(12, 31, size=2)
                pixels = rng.integers(0, 120, size=(height, width, 3))
                pixels[..., label % 3] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")
    return root


def without_training_labels(images: Path, root: Path) -> Path:
    """The pictures of a folder with those for training side by side, so that nothing says their classes."""
    shutil.copytree(images / "val", root / "val")
    (root / "train").mkdir()
    for file in sorted((images / "train").rglob("*.png")):
        shutil.copy(file, root / "train" / f"{file.parent.name}-{file.name}")
    return root


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training and 15 validation pictures of 3 classes."""
    return write_image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def recipe(image_folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`small_recipe` on those pictures, its output in the test's own folder."""
    return partial(small_recipe, image_folder, tmp_path / "out")


def small_recipe(root: Path, output_dir: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of 2 epochs of batches of 8 as a mapping, with fields changed (train__epochs=3)."""
    data: dict[str, Any] = {
        "name": "run",
        "output_dir": str(output_dir),
        "data": {"root": str(root), "num_threads": 1},
        "views": {"size": 16, "crop": "resized", "scale": [0.3, 1.0]},
        "student": {"model": "cifar_resnet8", "args": {"widths": [4, 4, 8, 16]}},
        "method": [{"term": "ce", "weight": 1.0}],
        "optimizer": {"opt": "sgd", "lr": 0.05},
        "train": {"epochs": 2, "batch_size": 8, "micro_batch": 4},
        "tracking": {"system_metrics": False, "every_steps": 2},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        section = data
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
    return data


@pytest.fixture(scope="session")
def worker_executable() -> Iterator[str]:
    """What Ray is to start workers with, so that they need not import torch and the rest again."""
    # A short folder, for a socket.
    with tempfile.TemporaryDirectory(prefix="forks-") as folder, serving(Path(folder), ROOT) as executable:
        yield executable


@pytest.fixture(scope="session")
def ray_cluster(worker_executable: str, request: pytest.FixtureRequest) -> Iterator[None]:
    """One Ray cluster on this machine for all tests that ask for it, with room for 2 workers."""
    import ray

    from cluster.nodes.resources import runtime_env
    from cluster.nodes.start import start_ray

    env = runtime_env(PYTHONPATH=str(ROOT)) | {"py_executable": worker_executable}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    set_up_here()
    start_ray(num_cpus=4, include_dashboard=True, runtime_env=env, **quiet)
    request.config.stash[CLUSTER_IS_SHARED] = True
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images and weights beside the repository; a test that wants them is skipped where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real data: ../shared/data is absent")
    return SHARED_DATA
