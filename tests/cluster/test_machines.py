"""The networks that tests put nodes into: one that a killed test process has left is in nobody's way."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cluster.machines import Loopback, ip, network


def test_what_is_left_of_others() -> None:
    """Of a dead process it is removed; a living one keeps its own, and another subnet is taken."""
    first = network()
    if isinstance(first, Loopback):
        pytest.skip("needs the right to make network devices")
    first.close()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, living = f"sh{ended.pid}", f"sh{os.getppid()}"
    try:
        for tag in (dead, living):
            ip("link", "add", tag, "type", "bridge")
            ip("addr", "add", f"{first.subnet}.1/24", "dev", tag)
        ip("netns", "add", f"{dead}-2")
        second = network()
        second.close()
        assert second.subnet != first.subnet
        assert dead not in ip("-brief", "link")
        assert dead not in ip("netns", "list")
        assert living in ip("-brief", "link")
    finally:
        ip("link", "del", living)
