"""How busy the machine of rank 0 is while a run goes on: processors, memory, disks, network, GPUs."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

from cluster.tracking.journal import cut_journal, read_journal

SAMPLE_SECONDS = 5.0


class MachineSampler:
    """Samples into a journal, from a thread; steps number the samples, also across resumptions. news: set after each.

    MLflow is imported here by the caller, not by that thread: two threads that import it at once both fail.
    """

    def __init__(self, path: Path, news: Event) -> None:
        cut_journal(path)
        self.step = max((row["step"] for row in read_journal(path)), default=-1) + 1
        self.path, self.news, self.ended = path, news, Event()
        self.sources = monitors()
        self.thread = Thread(target=self._sample, name="machine", daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.ended.set()
        self.thread.join()

    def _sample(self) -> None:
        with self.path.open("a") as file:
            while not self.ended.wait(SAMPLE_SECONDS):
                row: dict[str, Any] = {"step": self.step, "time": time.time()}
                for source in self.sources:
                    source.collect_metrics()
                    row |= {f"system/{name}": value for name, value in source.aggregate_metrics().items()}
                    source.clear_metrics()
                file.write(json.dumps(row) + "\n")
                file.flush()
                self.step += 1
                self.news.set()


def monitors() -> list[Any]:
    """Return MLflow's own sources, without its monitor, which gives up when the server is away once."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):  # no GPU, or no library to ask it
        found.append(GPUMonitor())
    return found
