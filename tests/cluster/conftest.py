"""Shared by the tests of cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.machines import Machines


@pytest.fixture(scope="session")
def nodes(worker_executable: str) -> Iterator[Machines]:
    """Two nodes with room for two workers each; a dead node is noticed within seconds. Its tests come last of all."""
    from tests.cluster.machines import cluster_of  # only here: it imports Ray

    with cluster_of(2, py_executable=worker_executable) as machines:
        yield machines
