"""Ray's fake node provider, whose nodes do not come before a file is there: the autoscaler's process imports it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

MAY_COME = "NODES_MAY_COME"  # in the environment: the file's path


class LateNodes(FakeMultiNodeProvider):
    """Nodes that are processes of this machine, as soon as the test lets them come."""

    def create_node_with_resources_and_labels(self, *args: Any) -> None:
        """Start nodes, once the file is there."""
        while not Path(os.environ[MAY_COME]).exists():
            time.sleep(0.1)
        super().create_node_with_resources_and_labels(*args)
