"""Which versions of the libraries a node has, and whether they are those of the driver.

Ray itself refuses a node of another Python or Ray. Of the rest, what determines pixels, weights and files must be the
same everywhere: a run whose ranks compute with two versions of torch cannot be repeated. None of these libraries is
imported here, so that the refusal of a node that lacks one can name it.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from kdcore import __version__
from kdcore.errors import Refused

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "pyarrow", "safetensors")
DALI = tuple(f"nvidia-dali-cuda{number}0" for number in (11, 12, 13, 14))  # a distribution for each version of CUDA


def node_versions(with_dali: bool = True) -> dict[str, str]:
    """Return {distribution: version} of what is installed here, as pip names it.

    Without what follows a plus sign, such as `+cpu`, which says how a version was built: a head without GPUs may well
    have another build.
    """
    found = {"stillhouse": __version__}
    for name in (*LIBRARIES, *(DALI if with_dali else ())):
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def refuse_other_versions(theirs: Mapping[str, str]) -> None:
    """Refuse this node where it lacks a library of the driver's, or has another version of one. theirs: the driver's.

    What the driver itself lacks does not count.
    """
    ours = node_versions()
    if other := [name for name in theirs if ours.get(name) != theirs[name]]:
        differing = ", ".join(f"{name} {ours.get(name, 'is absent')} (driver: {theirs[name]})" for name in other)
        raise Refused(
            f"the node {socket.gethostname()} has other libraries than the driver: {differing}; give every node the "
            "same environment (the image, or `make env` from the same requirements.txt), or keep that node out"
        )
