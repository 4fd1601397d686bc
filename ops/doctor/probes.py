"""The checks that `ops.doctor.report` makes of a machine.

No probe changes anything that lasts: no cluster is started, no store is created.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
import sqlite3
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import torch

from kdcore.errors import one_line
from ops.doctor.decoders import probe_decoders
from ops.doctor.findings import Finding, Probe

ROOT = Path(__file__).parents[2]
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
SHARED_MEMORY = Path("/dev/shm")
CONNECT_SECONDS = 3.0
GIB = 1024**3


def probe_libraries(output_dir: Path) -> Iterator[Finding]:
    """Check that Python and everything that pyproject.toml declares have at least the versions it asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    have = []
    for name, least in [
        _requirement(f"python{project['requires-python']}"),
        *map(_requirement, project["dependencies"]),
    ]:
        try:
            version = platform.python_version() if name == "python" else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("libraries", "fail", f"{name} is not installed", "make env")
            continue
        if _numbers(version) < _numbers(least):
            remedy = f"take a Python >= {least} and make env" if name == "python" else "make env"
            yield Finding("libraries", "fail", f"{name} {version} is older than {least}", remedy)
        have.append(f"{name} {version}")
    yield Finding("libraries", "ok", ", ".join(have))


def _requirement(text: str) -> tuple[str, str]:
    """Return (name, least version) of a declaration such as 'ray[train]>=2.60'."""
    match = re.fullmatch(r"([\w.-]+)(?:\[.*\])?>=([\d.]+)", text)
    assert match, f"pyproject.toml declares {text!r}; doctor reads 'name>=version' only"
    return match[1], match[2]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.match(r"[\d.]*\d", version)[0].split("."))  # type: ignore[index]


def probe_machine(output_dir: Path) -> Iterator[Finding]:
    """Count the cores and the memory that this process may use."""
    cores, memory = len(psutil.Process().cpu_affinity()), memory_bytes()
    seen = f"{cores} CPU cores, {memory / GIB:.1f} GiB memory ({platform.machine()}, {platform.system()})"
    if cores < 2:
        yield Finding("machine", "warn", seen, "two data-parallel workers share one core; give the machine more")
    elif memory < 6 * GIB:
        yield Finding("machine", "warn", seen, "a worker takes 1 to 2 GiB; set scaling.num_workers to 1 or add memory")
    else:
        yield Finding("machine", "ok", seen)


def memory_bytes() -> int:
    """Return the machine's memory, or the container's share of it where that is less."""
    total = psutil.virtual_memory().total
    limit = CGROUP_MEMORY.read_text().strip() if CGROUP_MEMORY.is_file() else "max"
    return int(total if limit == "max" else min(total, int(limit)))


def probe_gpu(output_dir: Path) -> Iterator[Finding]:
    """Check that torch can compute on the GPUs present."""
    built_for = f"torch {torch.__version__} is built for CUDA {torch.version.cuda or '(none: CPU only)'}"
    try:
        torch.cuda.init()
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        for number in range(len(names)):
            torch.ones(2, device=f"cuda:{number}").sum().item()
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error, length=None)
        if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            yield Finding("gpu", "warn", f"hidden by CUDA_VISIBLE_DEVICES. {built_for}", "unset it to use the GPUs")
        elif NVIDIA_DRIVER.is_file():
            driver = NVIDIA_DRIVER.read_text().splitlines()[0]
            seen = f"a driver is loaded ({driver}) but torch cannot use it: {reason}. {built_for}"
            remedy = f"install a driver for CUDA {torch.version.cuda or '13'} or newer, a matching torch, and look at "
            yield Finding("gpu", "fail", seen, f"{remedy}CUDA_VISIBLE_DEVICES")
        else:
            yield Finding(
                "gpu", "warn", f"none. {built_for}", "enough for demo and tests; ImageNet wants a GPU machine"
            )
        return
    yield Finding("gpu", "ok", f"{', '.join(names)}. {built_for}")


def probe_distributed(output_dir: Path) -> Iterator[Finding]:
    """Check the back ends with which ranks exchange gradients."""
    dist = torch.distributed
    has = {
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "nccl": dist.is_available() and dist.is_nccl_available(),
    }
    seen = f"torch.distributed has {', '.join(name for name, there in has.items() if there) or 'no back end'}"
    needed = {"gloo"} | ({"nccl"} if torch.cuda.is_available() else set())
    missing = sorted(name for name in needed if not has[name])
    if missing:
        remedy = f"this torch lacks {' and '.join(missing)}: make env installs the build that has it"
        yield Finding("distributed", "fail", seen, remedy)
    else:
        yield Finding("distributed", "ok", seen)


def probe_ray(output_dir: Path) -> Iterator[Finding]:
    """Check the cluster that RAY_ADDRESS names: whether its port answers, and whether there is a token for it."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        yield Finding("ray", "ok", "no RAY_ADDRESS: a run starts its own cluster on this machine")
    elif address == "auto":
        yield Finding("ray", "ok", "RAY_ADDRESS is auto: a run joins the cluster of this machine")
    else:
        yield reachable("ray", "RAY_ADDRESS", address, 6379, "start it with `ray start --head`, or unset RAY_ADDRESS")
    mode, token = os.environ.get("RAY_AUTH_MODE", ""), ray_token()
    if mode == "token" and not token:
        remedy = "copy the cluster's token to ~/.ray/auth_token (`ray get-auth-token --generate` makes one)"
        yield Finding("ray", "fail", "RAY_AUTH_MODE is token, but there is no token", remedy)
    elif mode == "" and address not in ("", "local"):
        remedy = (
            "if the cluster asks for tokens, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN; else RAY_AUTH_MODE=disabled"
        )
        yield Finding("ray", "warn", "RAY_AUTH_MODE is unset, so no token is sent", remedy)


def ray_token() -> str:
    """Return where Ray would find its token: a description, empty if nowhere."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(path) if path.is_file() else ""


def reachable(area: str, name: str, address: str, default_port: int, remedy: str) -> Finding:
    """Return whether a TCP connection to an address (URL or host:port) can be made."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        port = parts.port or {"http": 80, "https": 443, "ray": 10001}.get(parts.scheme, default_port)
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        return Finding(area, "fail", f"{name} {address} does not answer ({error})", remedy)
    return Finding(area, "ok", f"{name} {address} answers")


def probe_mlflow(output_dir: Path) -> Iterator[Finding]:
    """Check the SQLite store in the output folder, and the server that MLFLOW_TRACKING_URI names."""
    store = output_dir / "mlflow.db"
    try:
        if store.exists():
            take_write_lock(store)
            yield Finding("mlflow", "ok", f"{store} can be written")
        else:
            with tempfile.TemporaryDirectory(prefix=".doctor-", dir=nearest_existing(output_dir)) as directory:
                take_write_lock(Path(directory) / "mlflow.db")
            yield Finding("mlflow", "ok", f"{store} can be made by the first run")
    except (OSError, sqlite3.Error) as error:
        if "locked" in str(error):
            remedy = "another program holds it: wait, or end it; many runs at once want an MLflow server (tracking.uri)"
            yield Finding("mlflow", "warn", f"{store} is locked", remedy)
        else:
            remedy = "take another output folder, on a local disk; or a server, by tracking.uri"
            yield Finding("mlflow", "fail", f"no SQLite store can be written at {store} ({error})", remedy)
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith(("http://", "https://")):
        remedy = "start the server (`mlflow server`), or unset MLFLOW_TRACKING_URI"
        yield reachable("mlflow", "MLFLOW_TRACKING_URI", uri, 5000, remedy)


def take_write_lock(database: Path) -> None:
    """Take the write lock of an SQLite file and release it; sqlite3.Error where it cannot be taken."""
    connection = sqlite3.connect(database, timeout=CONNECT_SECONDS, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE doctor (looked INTEGER)")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def probe_disk(output_dir: Path) -> Iterator[Finding]:
    """Check the free space for runs and for temporary files (checkpoints in flight, Ray's logs)."""
    for name, folder in (
        ("output folder", nearest_existing(output_dir)),
        ("temporary folder", Path(tempfile.gettempdir())),
    ):
        free = shutil.disk_usage(folder).free
        level: Any = "ok" if free >= 10 * GIB else "warn" if free >= GIB else "fail"
        remedy = "make room, or take another folder (the temporary one by TMPDIR)" if level != "ok" else ""
        yield Finding("disk", level, f"{free / GIB:.1f} GiB free in the {name} {folder}", remedy)


def nearest_existing(path: Path) -> Path:
    """Return the path itself, or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def probe_shared_memory(output_dir: Path) -> Iterator[Finding]:
    """Check that /dev/shm has room for Ray's object store, which takes 30 % of the memory."""
    if not SHARED_MEMORY.is_dir():
        yield Finding(
            "shared memory", "warn", f"no {SHARED_MEMORY}: Ray keeps its objects on disk", "mount a tmpfs there"
        )
        return
    free, wanted = shutil.disk_usage(SHARED_MEMORY).free, 0.3 * memory_bytes()
    seen = f"{free / GIB:.1f} GiB free in {SHARED_MEMORY}; Ray's object store asks for {wanted / GIB:.1f}"
    if free < wanted:
        remedy = f"in a container: --shm-size={wanted / GIB + 1:.0f}g; else Ray falls back to the disk"
        yield Finding("shared memory", "warn", seen, remedy)
    else:
        yield Finding("shared memory", "ok", seen)


def probe_bytecode(output_dir: Path) -> Iterator[Finding]:
    """Check that the libraries are compiled to bytecode.

    Otherwise every Ray worker compiles them again and takes twice as long to start.
    """
    plain = []
    for name in ("torch", "ray", "mlflow"):
        spec = importlib.util.find_spec(name)
        if spec and spec.origin and not Path(importlib.util.cache_from_source(spec.origin)).is_file():
            plain.append(name)
    if plain:
        remedy = "unset PYTHONDONTWRITEBYTECODE, or compile once: python -m compileall -q SITE-PACKAGES (make env does)"
        yield Finding("bytecode", "warn", f"{', '.join(plain)} without compiled files", remedy)
    else:
        yield Finding("bytecode", "ok", "the libraries are compiled")


PROBES: dict[str, Probe] = {
    "libraries": probe_libraries,
    "machine": probe_machine,
    "gpu": probe_gpu,
    "distributed": probe_distributed,
    "decoders": probe_decoders,
    "ray": probe_ray,
    "mlflow": probe_mlflow,
    "disk": probe_disk,
    "shared memory": probe_shared_memory,
    "bytecode": probe_bytecode,
}
