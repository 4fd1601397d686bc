"""Starting Ray, or joining the cluster that RAY_ADDRESS names: failures are reported in one line, and soon."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import psutil

from kdcore.errors import Refused, RunFailed, one_line

PATIENCE_SECONDS = 5.0  # to reach a cluster that is there
MACHINE, ADDRESS_WORDS = "local", ("auto", "local")
TOO_SLOW = "timed out during startup"  # in Ray's own message, half a minute after its processes began
Started = TypeVar("Started")


def start_ray(**options: Any) -> None:
    """Start Ray on this machine; options are those of `ray.init`. Refused, or RunFailed, where it does not start."""
    start_patiently(lambda: _start_ray_once(options))


def on_this_node() -> Any:
    """Return the scheduling strategy that keeps an actor on this process's node: whichever other node dies, it stays.

    A hard one: Ray puts an actor that takes no resources on any node, whatever a soft one says.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def start_patiently(start: Callable[[], Started]) -> Started:
    """Call `start`, which starts Ray in this process; once more if the machine was too busy for it.

    Ray gives its processes half a minute, whatever is set, and leaves them running until this process ends if that was
    not enough. The second time, their files are in memory.
    """
    others = set(psutil.Process().children())
    try:
        return start()
    except Exception as error:
        if TOO_SLOW not in str(error):
            raise
        _kill_processes(set(psutil.Process().children()) - others)
        logging.getLogger("stillhouse").warning("Ray's processes took over half a minute to start; trying once more")
    return start()


def _start_ray_once(options: dict[str, Any]) -> None:
    """Start Ray; any failure is Refused or RunFailed."""
    import ray

    try:
        ray.init(MACHINE, **options)
    except OSError as error:
        if "AF_UNIX" in str(error):  # a socket's path has 107 bytes at most, of which Ray takes some 70
            raise Refused(
                "Ray's folder for temporary files has too long a path for the sockets in it; give a shorter one: "
                f"RAY_TMPDIR=/tmp ({one_line(error)})"
            ) from error
        raise RunFailed(f"Ray did not start ({one_line(error)})") from error
    except Exception as error:  # Ray raises bare exceptions here, such as where its processes take too long
        raise RunFailed(
            f"Ray did not start ({one_line(error)}); if the machine was just slow, run the same command again; "
            "`train` with scaling.num_workers=0 runs without Ray's processes"
        ) from error


def join_cluster(**options: Any) -> None:
    """Join the cluster that RAY_ADDRESS names. Refused where none answers there: Ray itself would try for minutes."""
    import ray

    address = os.environ["RAY_ADDRESS"]
    if address.startswith(("http://", "https://")):
        raise Refused(f"RAY_ADDRESS={address} is a dashboard's; unset it, and give that address to `submit --address`")
    _require_answer(address)
    try:
        ray.init(**options)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        raise Refused(
            f"RAY_ADDRESS={address}: the cluster cannot be joined ({one_line(error)}); correct RAY_ADDRESS, or unset "
            "it to run on this machine only"
        ) from error


def _require_answer(address: str) -> None:
    """Refuse an address of the form [ray://]host:port where nothing listens; any other form is left to Ray."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address in ADDRESS_WORDS or not colon or not port.isdecimal():
        return
    reasons = []
    for name in dict.fromkeys([host, socket.gethostname() if host in ("127.0.0.1", "localhost") else host]):
        try:
            socket.create_connection((name.strip("[]"), int(port)), PATIENCE_SECONDS).close()
        except OSError as error:
            reasons.append(one_line(error))
        else:
            return
    raise Refused(
        f"RAY_ADDRESS={address}: no Ray cluster answers there ({reasons[0]}); start it, correct RAY_ADDRESS, or unset "
        "it to run on this machine only"
    )


def _kill_processes(processes: set[psutil.Process]) -> None:
    """End processes, and all that they have started."""
    family = set(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            family.update(process.children(recursive=True))
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
