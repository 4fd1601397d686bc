"""TensorBoard as a tracker: event files in the run's folder, for `tensorboard --logdir OUTPUT_DIR`.

An event file cannot be asked what it holds. So each process that delivers starts over: existing files are removed, and
the journals, which hold everything, are read from their start.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from cluster.recipe.reading import to_yaml
from cluster.tracking.description import run_tags
from cluster.tracking.tracker import Row, Status, Tracker, number_or_none


class TensorBoardTracker(Tracker):
    """A run as TensorBoard's event files."""

    name: ClassVar[str] = "tensorboard"
    is_shared: ClassVar[bool] = False

    @cached_property
    def writer(self) -> Any:
        """The writer of new event files, in an empty folder."""
        from tensorboardX import SummaryWriter

        directory = self.folder.path / "tensorboard"
        shutil.rmtree(directory, ignore_errors=True)
        writer = SummaryWriter(str(directory))
        writer.add_text("recipe", f"```yaml\n{to_yaml(self.config)}```")
        writer.add_text("tags", "\n".join(f"* {name}: {value}" for name, value in run_tags(self.config).items()))
        return writer

    def open(self, command: str, tags: Mapping[str, str]) -> None:
        """Do nothing: the files are made by the process that writes the first lines."""

    def send(self, rows: list[Row]) -> None:
        """Write every number of the rows."""
        for row in rows:
            for name in row.keys() - {"step", "time"}:
                value = number_or_none(row[name])
                if value is not None:
                    self.writer.add_scalar(name, value, global_step=row["step"], walltime=row["time"])
        self.writer.flush()

    def send_file(self, path: Path) -> None:
        """Show a picture; other files are in the run's folder, next to the event files."""
        if path.suffix == ".png":
            with Image.open(path) as picture:
                self.writer.add_image(path.stem, np.asarray(picture.convert("RGB")), dataformats="HWC")
            self.writer.flush()

    def missing_files(self) -> list[Path]:
        """Return all of the run's pictures: the event files were started over."""
        return [path for path in self.folder.artifacts if path.suffix == ".png" and path.exists()]

    def end(self, status: Status) -> None:
        """Note the status, where this process has written the files."""
        if "writer" in vars(self):
            self.writer.add_text("status", status)
            self.close()

    def close(self) -> None:
        """Finish the files; the writer writes its last lines only now."""
        if "writer" in vars(self):
            self.writer.close()
