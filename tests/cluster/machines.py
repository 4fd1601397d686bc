"""Several nodes on one machine: a head, and raylets started as an operator would, each with an address of its own.

Where the machine permits it (root, with `ip`), every node lies in a network namespace of its own, joined to the head's
by a bridge; elsewhere the nodes share the loopback device.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest
import ray
from ray._common.utils import reset_ray_address
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from cluster.nodes.resources import runtime_env
from cluster.nodes.start import TOO_SLOW, start_patiently
from tests import forked_workers

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
NUM_CPUS = 2


class Namespaces:
    """10.77.<x>.1 is the head, on the bridge; 10.77.<x>.<n> is node n, in its namespace."""

    # The machine's name stands for an address that no namespace has; gloo would fall back to the loopback device.
    environment = MappingProxyType({"GLOO_SOCKET_IFNAME": "eth0"})

    def __init__(self) -> None:
        remove_leftovers()
        taken = {int(number) for number in re.findall(r"10\.77\.(\d+)\.", ip("-brief", "address"))}
        numbers = (number % 250 for number in itertools.count(os.getpid()))
        self.tag, self.subnet = f"sh{os.getpid()}", f"10.77.{next(one for one in numbers if one not in taken)}"
        self.made: list[int] = []
        ip("link", "add", self.tag, "type", "bridge")
        ip("addr", "add", f"{self.subnet}.1/24", "dev", self.tag)
        ip("link", "set", self.tag, "up")

    @property
    def head(self) -> dict[str, str]:
        return {"node_ip_address": f"{self.subnet}.1"}

    def address(self, number: int) -> str:
        return f"{self.subnet}.{number}"

    def inside(self, number: int) -> list[str]:
        """What a command of node n begins with; its namespace is made."""
        name, cable = f"{self.tag}-{number}", f"{self.tag}v{number}"
        ip("netns", "add", name)
        self.made.append(number)
        ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", cable, "master", self.tag, "up")
        ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            ip("-n", name, "link", "set", device, "up")
        return ["ip", "netns", "exec", name]

    def close(self) -> None:
        for number in self.made:
            ip("netns", "del", f"{self.tag}-{number}")
        ip("link", "del", self.tag)


class Loopback:
    """127.0.0.<n> is node n."""

    environment: Mapping[str, str] = MappingProxyType({})

    @property
    def head(self) -> dict[str, str]:
        """The machine's own address: Ray takes 127.0.0.1 for another one."""
        return {}

    def address(self, number: int) -> str:
        return f"127.0.0.{number}"

    def inside(self, number: int) -> list[str]:
        return []

    def close(self) -> None:
        pass


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def remove_leftovers() -> None:
    """Remove the bridges and namespaces of test processes that were killed: packets would take their way."""
    for pid in map(int, re.findall(r"^sh(\d+)\s", ip("-brief", "link"), re.MULTILINE)):
        if not psutil.pid_exists(pid):
            with contextlib.suppress(subprocess.CalledProcessError):  # another process removes it at this moment
                for namespace in re.findall(rf"^sh{pid}-\d+", ip("netns", "list"), re.MULTILINE):
                    ip("netns", "del", namespace)
                ip("link", "del", f"sh{pid}")


def network() -> Namespaces | Loopback:
    try:
        return Namespaces()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return Loopback()


def start_head(args: dict[str, Any]) -> Cluster:
    """A cluster's head in this process."""
    forked_workers.set_up_here()
    return start_patiently(lambda: Cluster(initialize_head=True, head_node_args={"dashboard_port": free_port()} | args))


def start_node(command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    """`ray start --block ...`, when its node is there."""
    return wait_for_node(begin(command, env), lambda: begin(command, env))


def wait_for_node(process: subprocess.Popen[str], start: Callable[[], subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """The process whose node is there: this one, or another start's where Ray gave up on a busy machine."""
    why = failure(process)
    if why is not None and TOO_SLOW in why:
        process = start()
        why = failure(process)
    if why is not None:
        pytest.fail(f"no node: {why}")
    return process


def begin(command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    """A command that `failure` waits for."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, **streams, start_new_session=True, env=env)


def failure(process: subprocess.Popen[str]) -> str | None:
    """Wait for the node of a `ray start --block`; what that said where it ended without one, None once it is there."""
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if "Ray runtime started" in line:
            return None
    return "".join(said)


class Machines:
    """A running cluster: the head without CPUs for workers, nodes with NUM_CPUS each. Nodes are numbered from 2.

    system: settings of Ray's own beside those that let a dead node be noticed soon; within: what the command of a node
    begins with, beside its network's words.
    """

    def __init__(self, network: Namespaces | Loopback, within: Sequence[str] = (), **system: Any) -> None:
        self.network, self.within = network, within
        self.nodes: dict[str, subprocess.Popen] = {}
        self.numbers = itertools.count(2)
        self.folder = Path(tempfile.mkdtemp(prefix="m-"))  # short: Ray puts sockets below it
        prompt = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
        prompt |= {"health_check_initial_delay_ms": 1000, "metrics_report_interval_ms": 500} | system
        args = {"num_cpus": 0, "include_dashboard": True, "_system_config": prompt}
        self.head = start_head(args | self.network.head)
        reset_ray_address()  # nobody else's ray.init() shall find this cluster

    @property
    def address(self) -> str:
        return self.head.address

    def join(self, count: int = 1) -> None:
        """So many more nodes; returns once they are there."""
        for address in [self.start() for _ in range(count)]:
            wait_for_node(self.nodes[address], lambda: self.nodes[self.start()])

    def start(self) -> str:
        """The address of a node that begins to start."""
        number = next(self.numbers)
        address = self.network.address(number)
        command = [
            *self.within,
            *self.network.inside(number),
            sys.executable,
            forked_workers.__file__,
            "ray",
            "start",
            "--block",
            f"--address={self.address}",
        ]
        command += [f"--node-ip-address={address}", f"--num-cpus={NUM_CPUS}", f"--temp-dir={self.folder / str(number)}"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        self.nodes[address] = begin(command, os.environ | self.network.environment)
        return address

    def workers(self) -> list[tuple[str, int]]:
        """(node's address, process id) of every training worker."""
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        wanted = [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
        return sorted((addresses[actor.node_id], actor.pid) for actor in list_actors(self.address, filters=wanted))

    def busiest(self) -> str:
        """The address of the node that has the most workers."""
        places = [address for address, _ in self.workers()]
        return max(places, key=places.count)

    def kill_workers(self, number: int | None = None, address: str | None = None, by: int = signal.SIGKILL) -> None:
        """The worker of that number, or every worker of the node of that address."""
        everyone = self.workers()
        assert everyone, "a run is under way"
        for where, pid in everyone if number is None else [everyone[number]]:
            if address in (None, where):
                os.kill(pid, by)

    def kill_node(self, address: str) -> None:
        """Its raylet first, then whatever it has started."""
        assert address in dict(self.workers()), "a run has workers there"
        kill_family(self.nodes.pop(address), first="raylet")

    def close(self) -> None:
        for node in self.nodes.values():
            kill_family(node)
        self.head.shutdown()
        self.network.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def kill_family(process: subprocess.Popen, first: str = "") -> None:
    """Ends a process and all that it has started, those of the name `first` before the others."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    names = {member: name_of(member) for member in family}
    for member in sorted(family, key=lambda member: names[member] != first):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(20)


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def cluster_of(number: int, machines: Machines | None = None, **environment: Any) -> Iterator[Machines]:
    """A cluster of so many nodes beside the head, with this process as its driver, and more for its runtime_env."""
    machines = machines or Machines(network())
    try:
        machines.join(number)
        env = runtime_env(PYTHONPATH=str(ROOT), TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S="5")  # of a group that hangs
        ray.init(address=machines.address, log_to_driver=False, logging_level="ERROR", runtime_env=env | environment)
        yield machines
    finally:
        ray.shutdown()
        machines.close()
