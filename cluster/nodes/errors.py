"""What Ray's errors say of workers that have failed or died, in one line: which rank, and of what.

A worker may die of a signal, for lack of memory, or with its node. For a signal, `cluster.training.crash` leaves a
file in the run's folder, which can be read where every node sees that folder. SIGKILL leaves nothing: the kernel sends
it when memory runs out. Ray knows the rest: its messages, which are pages long, are parsed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import ray

from cluster.error_text import FailedAt, last_line
from kdcore.errors import Refused, RunFailed

# The same error would come again: a run is a function of its recipe and data.
FINAL = (Refused, RunFailed, AssertionError)

TIMED_OUT = re.compile(r"time.?d?.?out", re.IGNORECASE)
# What a rank sees of one that has given up, or died, before it.
CUT_OFF = re.compile(r"connection (was )?(closed|reset)", re.IGNORECASE)

_FATAL = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_PLACE = re.compile(r'^  File "(.+)", line (\d+) in (\w+)', re.MULTILINE)

# Wording of the pinned version of Ray; the tests hold real messages.
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


def failure_reason(error: BaseException) -> str:
    """Return an error's last line, without Ray's frames around it; of a group of workers, that of one rank."""
    failures = getattr(error, "worker_failures", None)
    return describe(failures) if failures else last_line(error)


def describe(failures: Mapping[int, BaseException], crash_file: Callable[[int], Path] | None = None) -> str:
    """Return the error of one rank, with its place.

    crash_file: gives the file in which a rank has recorded the signal that it died of.
    """
    rank = rank_to_name(failures)
    error = failures[rank]
    if isinstance(error, FailedAt):
        return last_line(error)
    notes = getattr(error, "__notes__", [])
    place, node = notes[0] if notes else f"rank {rank}", node_of(error)
    cause = crash_of(error, crash_file(rank) if crash_file else None) or last_line(error)
    return f"{place}{f' on {node}' if node and node not in cause else ''}: {cause}"


def rank_to_name(failures: Mapping[int, BaseException]) -> int:
    """Return the rank whose error says most.

    One whose error would come again, if there is any, else one whose process has died, else one whose error is not the
    consequence of another's, else the lowest rank.
    """

    def weight(rank: int) -> tuple[bool, bool, bool, int]:
        error = failures[rank]
        is_death = death_of(error) is not None
        return not isinstance(error, FINAL), not is_death, bool(CUT_OFF.search(str(error))), rank

    return min(failures, key=weight)


def death_of(error: BaseException) -> BaseException | None:
    """Return Ray's error about a process that has died, from the error it comes in; None for what a process raised."""
    died = getattr(error, "health_check_failure", error)  # as Ray Train passes on what it sees of a worker
    is_loss = isinstance(died, _LOSSES) and not getattr(died, "actor_init_failed", False)
    return died if is_loss else None


def crash_of(error: BaseException, path: Path | None) -> str | None:
    """Return what a worker died of, in one line; None for an error that it raised.

    path: of what it has recorded, if its folder can be read from here.
    """
    if (died := death_of(error)) is None:
        return None
    text = str(died)
    if memory := _MEMORY.search(text):
        return (
            f"killed by Ray when its node ({memory[1]}) ran out of memory: {memory[2]} of {memory[3]} were taken; "
            "take a smaller train.micro_batch, fewer workers a node (scaling.cpus_per_worker), or more memory"
        )
    if _NODE.search(text):
        why = _WHY_NODE.search(text)
        return f"its node was lost{f' ({why[1].strip()})' if why else ''}"
    if (recorded := _signal_in(path)) is not None:
        return recorded
    if ITS_PROCESS in text or isinstance(died, ray.exceptions.WorkerCrashedError):
        return (
            "the worker's process was killed without a message, as by SIGKILL, which the kernel sends when memory runs "
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
    """Return the signal that a worker has recorded and where it was then, in one line; None where it recorded none."""
    text = path.read_text(errors="replace") if path is not None and path.is_file() else ""
    if (found := _FATAL.search(text)) is None:
        return None
    place = _PLACE.search(text.partition("\nCurrent thread")[2] or text)
    where = f" in {place[3]} ({Path(place[1]).name}:{place[2]})" if place else ""
    return f"the worker's process died of a signal: {found[1]}{where}; its threads' stacks are in {path}"
