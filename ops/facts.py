"""What every result carries: the machine, the versions, the commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from cluster.tracking.description import git_commit
from ops.spread import spread as summarise
from pipelines.files import write_json

RESULTS = Path(__file__).parent / "benchmarks" / "results"
PACKAGES = ("torch", "torchvision", "timm", "ray", "nvidia-dali-cuda130", "pyarrow", "mlflow", "numpy")


def facts() -> dict[str, Any]:
    """Return hardware, versions, commit and command as plain values."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command(),
        "commit": git_commit(),
        "machine": machine(),
        "gpus": gpus,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def machine() -> str:
    """Return the cores, their vector instructions (which decide how sums are rounded) and the memory."""
    cores = f"{os.cpu_count()} cores {platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
    return f"{cores}, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def command() -> str:
    """Return the command line of this process, without the folders of this machine."""
    if sys.argv[0] == "-":
        return "python, a script on its standard input"
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    module = Path(sys.argv[0]).stem
    return " ".join(["python", "-m", "ops" if module == "__main__" else f"ops.benchmarks.{module}", *words])


def version(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def spread(values: list[float]) -> dict[str, Any]:
    """Return n, mean, sample standard deviation and all values."""
    return {**summarise(values), "values": values}


def write(name: str, content: dict[str, Any], folder: Path | None = None) -> Path:
    """Write <name>.json with the facts; return its path. folder: for results that are not published."""
    path = (folder or RESULTS) / f"{name}.json"
    write_json(path, {"facts": facts(), **content})
    return path
