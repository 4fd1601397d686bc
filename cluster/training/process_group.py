"""The ranks' process group, formed by Ray Train's controller without importing torch.

Ray's own `TorchConfig` does the same with torch imported in the controller, which takes 280 MB there and computes
nothing: a sweep has a controller for each concurrent run. What each worker does is Ray's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.constants import DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.v2._internal.util import TrainingFramework


@dataclass
class ProcessGroup(BackendConfig):
    """backend: "nccl" or "gloo"; timeout_seconds: that a rank waits for another one."""

    backend: str
    timeout_seconds: int

    @property
    def backend_cls(self) -> type[ProcessGroupBackend]:
        return ProcessGroupBackend

    @property
    def framework(self) -> TrainingFramework:
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        """Return it as Ray's dashboard shows it."""
        return {"backend": self.backend, "init_method": "env", "timeout_s": self.timeout_seconds}


class ProcessGroupBackend(Backend):
    """Has the workers of a group form their process group, and leave it at the end."""

    share_cuda_visible_devices: bool = True  # NCCL reaches the GPUs of its node's other ranks directly

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Return once every rank has joined."""
        address, port = worker_group.execute_single(0, get_address_and_port)
        size = len(worker_group)
        ray.get(
            [worker_group.execute_single_async(i, join, backend_config, i, size, address, port) for i in range(size)]
        )

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Have every rank leave; one that hangs is not waited for."""
        seconds = os.environ.get(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S)
        try:
            ray.get(worker_group.execute_async(leave, len(worker_group) > 1), timeout=float(seconds))
        except GetTimeoutError:
            return  # the worker's process ends next


def join(group: ProcessGroup, rank: int, world_size: int, address: str, port: int) -> None:
    """Join the process group as a rank of it, in a worker's process."""
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(group.backend, rank, world_size, "env://", group.timeout_seconds)


def leave(is_group: bool) -> None:
    """Leave the process group, where there is one of several ranks, in a worker's process."""
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=is_group)
