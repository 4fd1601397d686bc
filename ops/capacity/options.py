"""The options that describe a cluster and a data set that are not here, and what is assumed without them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kdcore.errors import Refused


@dataclass(frozen=True)
class Option:
    """A number on the command line. assumed: its value if not given; None where it is measured, or left out."""

    name: str
    help: str
    assumed: float | None = None
    may_be_zero: bool = False

    @property
    def flag(self) -> str:
        """The option as typed."""
        return f"--{self.name.replace('_', '-')}"

    def check(self, value: float) -> None:
        """Refuse a value that the option does not allow."""
        if not math.isfinite(value) or value < 0 or (value == 0 and not self.may_be_zero):
            least = "0 or more" if self.may_be_zero else "a number above 0"
            raise Refused(f"{self.flag} {value:g}: give {least}")


# 16,384 GPUs had 419 unexpected interruptions in 54 days: The Llama 3 Herd of Models, arXiv 2407.21783.
MTBF_HOURS = 50_000.0

OPTIONS = {
    option.name: option
    for option in (
        Option("images_per_second", "training speed of one GPU alone, loader included (default: measured here)"),
        Option("num_images", "number of training images, if they are not on this machine (default: the recipe's)"),
        Option("num_classes", "number of their classes, likewise"),
        Option("image_kb", "mean size of an encoded image in kB (default: of the recipe's images)", 115.0),
        Option("read_mb_per_second", "read bandwidth of a node, from its disk or object store", 1000.0),
        Option("link_gbit", "bandwidth of a node's network link, in Gbit/s", 100.0),
        Option("gpu_link_gbit", "bandwidth between two GPUs of a node, in Gbit/s", 2400.0),
        Option("link_microseconds", "latency from one worker to the next", 10.0, may_be_zero=True),
        Option("checkpoint_seconds", "how long a checkpoint blocks training (default: measured here)"),
        Option("write_mb_per_second", "bandwidth at which checkpoints are written (default: measured here)"),
        Option("mtbf_hours", "mean time between failures of one GPU, including its share of the node", MTBF_HOURS),
        Option("repair_minutes", "time until a failed node is back or replaced", 0.0, may_be_zero=True),
        Option("restart_seconds", "time from a failure to the next step, and of the first start", 60.0),
        Option("cost_per_gpu_hour", "price, in any currency (default: no cost is shown)", may_be_zero=True),
    )
}


@dataclass(frozen=True)
class Values:
    """The numbers behind an estimate. given: those that were typed; found: those that were measured here."""

    given: Mapping[str, float]
    found: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        value = self.get(name)
        assert value is not None, f"{name} is given, measured or assumed"
        return value

    def get(self, name: str) -> float | None:
        """Return a number: as given, else as measured, else as assumed; None for one that is left out."""
        return self.given.get(name, self.found.get(name, OPTIONS[name].assumed))

    def source(self, name: str) -> str:
        """Return where a number comes from."""
        return "given" if name in self.given else "measured here" if name in self.found else "assumed"
