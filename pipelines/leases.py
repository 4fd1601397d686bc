"""Leases: a folder is for one process at a time, on one machine or on several that share the folder.

A lease is a file with its holder's machine, process and time, touched every few seconds. It is made by a hard link,
which only one process gets, also on NFS. Whether a holder on this machine is alive is known at once; one on another
machine, or one that the system hides from this user, is watched: a lease that is no longer touched is taken over. No
clock is compared with another.

A folder's generation counts its holders. A process that writes for a holder that may be gone (the workers of a driver
that was killed live on for seconds) asks its `Fence` before it writes.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

from kdcore.errors import Refused, RunFailed
from pipelines.files import claim_name, make_folder, write_text

TOUCH_SECONDS = 4.0
STALE_SECONDS = 30.0  # without a touch, of a holder that is not known to be alive or dead
POLL_SECONDS = 0.2

logger = logging.getLogger("stillhouse")


@dataclass(frozen=True)
class Holder:
    """The holder of a folder.

    machine: of this boot and process namespace; started: when the process began, in ticks; None if it cannot see that.
    """

    key: str
    host: str
    machine: str
    process: int
    started: int | None
    since: str
    purpose: str

    @staticmethod
    def this(purpose: str) -> Holder:
        """Return this process as a holder."""
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        process = os.getpid()
        return Holder(uuid4().hex, socket.gethostname(), _machine(), process, _started(process), since, purpose)

    @property
    def is_alive(self) -> bool | None:
        """Whether it is alive; None where that cannot be known from here.

        Process numbers are reused, so the start of the process must match too, which /proc may hide.
        """
        if self.machine != _machine():
            return None
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's
            pass
        started = _started(self.process)
        return None if started is None or self.started is None else started == self.started

    def __str__(self) -> str:
        """Return the holder in words."""
        return f"process {self.process} on {self.host}, at {self.purpose} since {self.since}"


@dataclass(frozen=True)
class Fence:
    """Keeps late writers out of a folder: those of an earlier generation than the one that holds it now."""

    folder: str
    name: str
    generation: int

    def check(self) -> None:
        """Raise RunFailed if the folder has another holder by now."""
        if (now := generation_of(Path(self.folder), self.name)) != self.generation:
            raise RunFailed(
                f"{self.folder} now belongs to another process (holder number {now}, after number "
                f"{self.generation}); nothing more is written to it from here"
            )


@contextmanager
def leased(folder: Path, purpose: str, *, name: str = "work", wait: bool = False) -> Iterator[Fence]:
    """Keep a folder for this process while the body runs; yield the fence for its late writers.

    purpose: what is done there, for others to read; name: of the lease, where a folder has several. Refused where
    another process holds it; with `wait`, it is this one's turn once that one has ended.
    """
    make_folder(folder, purpose)
    path = folder / f".{name}.lease"
    holder = Holder.this(purpose)
    while not _take(path, holder):
        _wait_or_refuse(path, folder, wait)
    ended = threading.Event()
    thread = threading.Thread(target=_keep_touching, args=(path, holder, ended), name="lease", daemon=True)
    thread.start()
    try:
        generation = generation_of(folder, name) + 1
        write_text(folder / f".{name}.generation", str(generation))
        yield Fence(str(folder), name, generation)
    finally:
        ended.set()
        thread.join()
        # One that cannot be read is this holder's, unless it is known to be another's: where no file can be opened any
        # more, a lease that stayed would make this process wait for itself.
        if (found := _read(path)) is None or found.key == holder.key:
            path.unlink(missing_ok=True)


def generation_of(folder: Path, name: str) -> int:
    """Return the number of holders that a folder's lease of that name has had; 0 before the first."""
    try:
        return int((folder / f".{name}.generation").read_text("ascii"))
    except (FileNotFoundError, ValueError):
        return 0


def _take(path: Path, holder: Holder) -> bool:
    """Make the lease this holder's, if there is none; return whether it is."""
    own = path.with_name(f"{path.name}.{holder.key}.tmp")
    write_text(own, json.dumps(asdict(holder), indent=1) + "\n")
    try:
        claim_name(own, path)
    except FileExistsError:
        return False
    finally:
        own.unlink(missing_ok=True)
    return True


def _wait_or_refuse(path: Path, folder: Path, wait: bool) -> None:
    """Return when the lease may be tried for again. Refused if its holder is alive and `wait` is false."""
    holder, touched, seen = _read(path), _touched(path), time.monotonic()
    while touched is not None:
        is_alive = None if holder is None else holder.is_alive
        if is_alive is False:
            return _end(path, holder, f"{holder} has ended without giving it back")
        if is_alive and not wait:
            break
        if time.monotonic() - seen > STALE_SECONDS and not is_alive:
            return _end(path, holder, f"{holder or 'a process'} has not been heard from for {STALE_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
        if (now := _touched(path)) != touched:
            if now is not None and not wait:
                break
            holder, touched, seen = _read(path), now, time.monotonic()
    if touched is None:
        return None
    raise Refused(f"{folder} is in use by {holder or 'another process'}; wait for it, or end it")


def _end(path: Path, holder: Holder | None, reason: str) -> None:
    """Take a lease away from a holder that is gone, and log it; one that has a new holder meanwhile is left alone.

    One process at a time looks and removes: between the two, no other process may have put a new lease there.
    """
    right = path.with_name(f"{path.name}.ending")
    try:
        right.open("xb").close()
    except FileExistsError:
        return _wait_for_turn(right)
    try:
        if _touched(path) is not None and _read(path) == holder:
            path.unlink(missing_ok=True)
            logger.warning("%s: taken over, because %s", path.parent, reason)
    finally:
        right.unlink(missing_ok=True)


def _wait_for_turn(right: Path) -> None:
    """Return when another process has looked: an instant, or STALE_SECONDS if that process was killed meanwhile.

    Only by this machine's clock: a shared folder's may differ.
    """
    touched, seen = _touched(right), time.monotonic()
    while touched is not None and _touched(right) == touched:
        if time.monotonic() - seen > STALE_SECONDS:
            right.unlink(missing_ok=True)
        time.sleep(POLL_SECONDS)


def _keep_touching(path: Path, holder: Holder, ended: threading.Event) -> None:
    while not ended.wait(TOUCH_SECONDS):
        if (found := _read(path)) is not None and found.key != holder.key:
            return  # taken over, while this process was held up; its fence tells those who write for it
        with suppress(OSError):
            os.utime(path)


def _read(path: Path) -> Holder | None:
    """Return a lease's holder; None if there is no lease, or it cannot be read."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _touched(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


@cache
def _machine() -> str:
    """Return an identifier of this machine since its boot, and of this container's processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _started(process: int) -> int | None:
    """Return when a process of this machine began, in ticks of the system; -1 for a zombie, None if it is hidden."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # hidden from this user, or it has just ended
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])
