"""Waiting for a cluster's resources: what is waited for is reported, and so is what there was when patience ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdcore.errors import ClusterFailed

FIRST_LINE_SECONDS = 10.0  # of waiting in silence: a cluster that has room answers sooner
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Room:
    """What a cluster has: {"CPU": cores, "GPU": devices} in all and free, and the number of nodes with any of it."""

    total: Mapping[str, float]
    free: Mapping[str, float]
    num_nodes: int

    @classmethod
    def of_cluster(cls) -> Room:
        """Return the room of the Ray cluster that this process belongs to."""
        import ray  # only here: the rest needs no Ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        num_nodes = sum(bool(resources.get("CPU", 0) or resources.get("GPU", 0)) for resources in nodes)
        return cls(ray.cluster_resources(), ray.available_resources(), num_nodes)

    def in_words(self, names: Mapping[str, float]) -> str:
        """Return it in words, such as "4 CPU on 2 nodes, 1 free". names: of the resources that matter."""
        there = ", ".join(f"{self.total.get(name, 0):g} {name}" for name in names)
        nodes = f"{self.num_nodes} node{'' if self.num_nodes == 1 else 's'}"
        free = {name: self.free.get(name, 0) for name in names}
        if all(free[name] == self.total.get(name, 0) for name in names):
            return f"{there} on {nodes}"
        return f"{there} on {nodes}; free: {', '.join(f'{amount:g} {name}' for name, amount in free.items())}"


def request_in_words(num_workers: int, each: Mapping[str, float]) -> str:
    """Return what is asked for in words, such as "8 x 1 CPU" or "8 x (12 CPU, 1 GPU)"."""
    taken = [f"{amount:g} {name}" for name, amount in each.items() if amount]
    return f"{num_workers} x {taken[0]}" if len(taken) == 1 else f"{num_workers} x ({', '.join(taken)})"


class Patience:
    """How long to wait for a cluster's resources, and what is reported meanwhile.

    seconds: after which waiting ends with ClusterFailed, from one `end` to the next; say: takes the lines; remedy: the
    end of the last one.
    """

    def __init__(self, seconds: float, say: Callable[[str], None], remedy: str) -> None:
        self.seconds, self.say, self.remedy = seconds, say, remedy
        self.since: float | None = None
        self.said = ""

    def wait(self, asked: str, each: Mapping[str, float], find_room: Callable[[], Room] = Room.of_cluster) -> None:
        """Note that the resources are not there yet; called about once a second.

        Says what is waited for after ten seconds, and again when the cluster has changed. ClusterFailed at the end.
        """
        now = time.monotonic()
        if self.since is None:
            self.since = now
        waited = now - self.since
        if waited < min(FIRST_LINE_SECONDS, self.seconds):
            return
        room = find_room().in_words(each)
        if waited >= self.seconds:
            raise ClusterFailed(f"waited {self.seconds:.0f} s for {asked}, and the cluster has {room}; {self.remedy}")
        line = f"waiting for {asked} (cluster: {room})"
        if line != self.said:
            self.said = line
            self.say(f"{line}, at most {self.seconds - waited:.0f} s more")

    def end(self) -> None:
        """Note that the resources are there."""
        self.since, self.said = None, ""


def wait_for_place(each: Mapping[str, float], patience: Patience) -> None:
    """Return when the cluster has had room for a task with these resources. ClusterFailed when patience has ended."""
    import ray  # only here, as above

    options = {"num_cpus": each.get("CPU", 0), "num_gpus": each.get("GPU", 0)}
    placed = ray.remote(**options)(_do_nothing).remote()
    try:
        while not ray.wait([placed], timeout=LOOK_SECONDS)[0]:
            patience.wait(request_in_words(1, each), each)
    finally:
        ray.cancel(placed)
    patience.end()


def _do_nothing() -> None:
    pass


def warn(line: str) -> None:
    """Report what is waited for where no console is at hand."""
    logging.getLogger("stillhouse").warning(line)


def remedy_for(num_workers: int, min_workers: int | None) -> str:
    """Return what a user may do about workers that find no room."""
    ways = ["lower scaling.num_workers" if num_workers > 1 else "lower scaling.cpus_per_worker"]
    if min_workers is None and num_workers > 1:
        ways.append("give scaling.min_workers to begin with fewer")
    return f"{', '.join(ways)}, or raise scaling.patience_seconds; the same command goes on"
