"""What a worker died of, in one line: a signal, the node's memory, or its node.

Of a signal, Python's own fault handler writes which, and where each thread was, into a file of the run's folder, which
is there where the folder is one that every node sees. SIGKILL leaves nothing: it is what the kernel sends where memory
runs out. Of the rest Ray knows: its sentences, which are pages long, are read here.
"""

from __future__ import annotations

import faulthandler
import re
from pathlib import Path
from typing import TextIO

import ray

_FATAL = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_PLACE = re.compile(r'^  File "(.+)", line (\d+) in (\w+)', re.MULTILINE)
_open: list[TextIO] = []  # as long as the process lives: the handler keeps the file's number

# Ray's own words, of its version that is pinned; the tests hold real ones.
ITS_PROCESS = "its worker process has died"  # and not its node, or its owner
_NODE = re.compile(r"its node has died|node was terminated|[Nn]ode is dead")
_WHY_NODE = re.compile(r"node was terminated(?: \w+)?: ([^\n]+)")
_MEMORY = re.compile(r"[Mm]emory on the node \(IP: ([^,]+), .*?was ([\d.]+ ?GB)(?: used)? / ([\d.]+ ?GB)", re.DOTALL)
_ADDRESS = re.compile(r"(?:\tip: |node_ip='?|Worker IP address: )([\w.:]*[\w])")
_LOSSES = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.ObjectLostError,
)


def record_crashes(path: Path) -> None:
    """Have this process write into the file what it dies of, if that is a signal such as a segmentation fault."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _open.append(path.open("w"))
    faulthandler.enable(_open[-1])


def death_of(error: BaseException) -> BaseException | None:
    """Return what Ray says of a process that has died, from the error it comes in; None for what a process raised."""
    died = getattr(error, "health_check_failure", error)  # as Ray Train hands on what it sees of a worker
    is_loss = isinstance(died, _LOSSES) and not getattr(died, "actor_init_failed", False)
    return died if is_loss else None


def crash_of(error: BaseException, path: Path | None) -> str | None:
    """Return what a worker died of, in a line; None for an error that it raised.

    path: what it has recorded, if its folder is one that is seen from here.
    """
    if (died := death_of(error)) is None:
        return None
    text = str(died)
    if memory := _MEMORY.search(text):
        return (
            f"killed by Ray, for its node ({memory[1]}) had run out of memory: {memory[2]} of {memory[3]} were taken; "
            "take a smaller train.micro_batch, fewer workers a node (scaling.cpus_per_worker), or more memory"
        )
    if _NODE.search(text):
        why = _WHY_NODE.search(text)
        return f"its node was lost{f' ({why[1].strip()})' if why else ''}"
    if (recorded := _signal_in(path)) is not None:
        return recorded
    if ITS_PROCESS in text or isinstance(died, ray.exceptions.WorkerCrashedError):
        return (
            "the worker's process was killed and left no word, as by SIGKILL, which the kernel sends where memory runs "
            "out; take a smaller train.micro_batch, or give the machine more memory"
        )
    return None


def node_of(error: BaseException) -> str | None:
    """Return the address of the node on which a worker died, where Ray says it."""
    if death_of(error) is None:
        return None
    text = f"{getattr(error, 'health_check_failure', error)}\n{error}"
    found = _ADDRESS.search(text)
    return found[1] if found else None


def is_own_fault(error: BaseException, path: Path | None) -> bool:
    """Return whether a worker ended by its own doing: it raised an error, or died of a signal such as SIGSEGV."""
    return death_of(error) is None or _signal_in(path) is not None


def _signal_in(path: Path | None) -> str | None:
    """Return the signal that a worker has recorded and where it was then, in a line; None where it left no word."""
    text = path.read_text(errors="replace") if path is not None and path.is_file() else ""
    if (found := _FATAL.search(text)) is None:
        return None
    place = _PLACE.search(text.partition("\nCurrent thread")[2] or text)
    where = f" in {place[3]} ({Path(place[1]).name}:{place[2]})" if place else ""
    return f"the worker's process died of a signal: {found[1]}{where}; where its threads were is in {path}"
