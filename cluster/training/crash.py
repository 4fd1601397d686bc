"""What a worker leaves that dies of a signal: nothing is raised then, and Ray only sees that a connection has ended.

Python's own fault handler writes the signal and where each thread was into a file of the run's folder, which is there
where the folder is one that every node sees. SIGKILL leaves nothing: it is what the kernel sends where memory runs out.
"""

from __future__ import annotations

import faulthandler
import re
from pathlib import Path
from typing import TextIO

import ray

ITS_PROCESS = "its worker process has died"  # and not its node, or its owner
_FATAL = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_PLACE = re.compile(r'^  File "(.+)", line (\d+) in (\w+)', re.MULTILINE)
_open: list[TextIO] = []  # as long as the process lives: the handler keeps the file's number


def record_crashes(path: Path) -> None:
    """Have this process write into the file what it dies of, if that is a signal such as a segmentation fault."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _open.append(path.open("w"))
    faulthandler.enable(_open[-1])


def crash_of(error: BaseException, path: Path | None) -> str | None:
    """Return what a worker died of, in a line, where it died of a signal; None for another error.

    path: what it has recorded, if its folder is one that is seen from here.
    """
    died = getattr(error, "health_check_failure", error)  # as Ray Train hands on what it sees of a worker
    if not isinstance(died, ray.exceptions.RayActorError) or ITS_PROCESS not in str(died):
        return None
    text = path.read_text(errors="replace") if path is not None and path.is_file() else ""
    if (found := _FATAL.search(text)) is None:
        return (
            "the worker's process was killed and left no word, as by SIGKILL, which the kernel sends where memory runs "
            "out; take a smaller train.micro_batch, or give the machine more memory"
        )
    place = _PLACE.search(text.partition("\nCurrent thread")[2] or text)
    where = f" in {place[3]} ({Path(place[1]).name}:{place[2]})" if place else ""
    return f"the worker's process died of a signal: {found[1]}{where}; where its threads were is in {path}"
