"""A run's folder: every file that a run leaves or goes on from, each written whole or not at all.

The folder is the run's identity on disk: its recipe, and the weights that it started from, say which run it holds. A
sweep's folder is one, too, with its trials' folders in it.

Not here: what the journals hold (`cluster.tracking.journal`), and checkpoints, which may lie in an object store
(`cluster.training.checkpoint`).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.recipe.plugins import fingerprints_of, location
from cluster.recipe.reading import load_recipe, to_yaml
from cluster.tracking.fields import flat_fields
from cluster.tracking.mlflow_store import sqlite_file
from cluster.tracking.same_run import refuse_other_recipe
from kdcore.configs import RUN_WEIGHTS
from kdcore.credentials import without_credentials
from kdcore.errors import Refused, one_line
from pipelines.files import make_folder, read_object, write_json, write_text

if TYPE_CHECKING:
    from cluster.recipe.config import RunConfig  # it imports torch, which reading a run's journal does not need

State = Literal["new", "unfinished", "finished"]
PENDING = "new "  # begins the content of `run_id` while the run is being made in MLflow; its tag follows


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, by name."""

    path: Path

    @classmethod
    def of(cls, config: RunConfig) -> RunFolder:
        """Return the folder that a recipe's run has."""
        return cls(config.run_dir)

    @property
    def recipe(self) -> Path:
        """The resolved recipe, as YAML."""
        return self.path / "recipe.yaml"

    @property
    def facts(self) -> Path:
        """What else the run is a function of: fingerprints of the images, and of the weights that it started from."""
        return self.path / "facts.json"

    @property
    def result(self) -> Path:
        """The result; there once the run is finished."""
        return self.path / "result.json"

    @property
    def weights(self) -> Path:
        """The student to deploy."""
        return self.path / RUN_WEIGHTS

    @property
    def metrics(self) -> Path:
        """The journal of the run's metrics."""
        return self.path / "metrics.jsonl"

    @property
    def system(self) -> Path:
        """The journal of the machine's load."""
        return self.path / "system.jsonl"

    @property
    def journals(self) -> tuple[Path, ...]:
        """The files whose lines are tracked."""
        return self.metrics, self.system

    @property
    def first_batch(self) -> Path:
        """A picture of the first batch."""
        return self.path / "first_batch.png"

    @property
    def broken_images(self) -> Path:
        """The images that were left out, or replaced, because they are broken; one per line."""
        return self.path / "broken_images.txt"

    @property
    def natural_order(self) -> Path:
        """What `teacher.class_indices` takes for a teacher whose outputs are in natural order of the classes."""
        return self.path / "natural_order.json"

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """The files that are kept with the run where it is tracked."""
        return self.first_batch, self.weights, self.broken_images

    @property
    def run_id(self) -> Path:
        """The run's id in MLflow."""
        return self.path / "mlflow_run_id"

    @property
    def store(self) -> Path:
        """The address of the MLflow store that has the run; absent where that is the output folder's own."""
        return self.path / "mlflow_store"

    @property
    def outbox(self) -> Path:
        """There while something may not be tracked yet; holds the status in which the run ended, once it has."""
        return self.path / "outbox"

    @property
    def error(self) -> Path:
        """The line that ended the run the last time, if it failed."""
        return self.path / "error.txt"

    @property
    def benchmark(self) -> Path:
        """The latencies that `benchmark` measured."""
        return self.path / "benchmark.json"

    @property
    def evaluations(self) -> list[Path]:
        """The results of `evaluate`."""
        return sorted((self.path / "evaluation").glob("*.json"))

    def read_run_id(self) -> str | None:
        """Return the run's id in MLflow; None where it has none. Refused for a file that holds no id."""
        try:
            text = self.run_id.read_text("ascii").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError):
            text = ""
        if text.startswith(PENDING):
            return None
        if not re.fullmatch(r"[\w-]+", text):
            raise Refused(
                f"{self.run_id} does not hold an MLflow run's id; write the run's id into it, as MLflow shows it, or "
                "delete it: the run is then a new one there"
            )
        return text

    def ended_as(self) -> str:
        """Return the status in which the run ended, as its outbox has it; empty where it goes on, or all is tracked."""
        try:
            return self.outbox.read_text("ascii", errors="replace")
        except FileNotFoundError:  # delivered to its end by another process, perhaps this very moment
            return ""

    def batches(self, rank: int) -> Path:
        """Return the record of a rank's sample ids and losses."""
        return self.path / f"batches-{rank}.jsonl"

    def crash(self, rank: int) -> Path:
        """Return the file in which a rank records the signal that it dies of; empty where it dies of none."""
        return self.path / f"crash-{rank}.txt"

    def state(self) -> State:
        """Return how far the run is; a result without its student is not finished, and is made again."""
        if self.result.exists() and self.weights.is_file():
            return "finished"
        return "unfinished" if self.recipe.exists() else "new"

    def read_result(self) -> dict[str, Any]:
        """Return the result. Refused where the file is cut off, or another program's."""
        remedy = "delete that file and run the same command again: the run goes on from its last checkpoint"
        return read_object(self.result, remedy)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the result: the run is finished from now on."""
        write_json(self.result, dict(result))

    def claim(self, config: RunConfig, images: Mapping[str, Any] | None = None, has_checkpoint: bool = False) -> None:
        """Make the folder this recipe's, or go on with the run in it. Refused where it holds another run.

        images: as `cluster.images.image_facts` gives them, by which they are known when they have moved; where there is
        a checkpoint, which refuses others, those that the run began with stay.
        """
        from cluster.weights import starting_facts  # only here: it imports torch

        self.refuse_another(config)
        make_folder(self.path, "output_dir")
        known = read_object(self.facts, "restore it") if has_checkpoint and self.facts.exists() else {}
        kept = {name: known.get(name, fact) for name, fact in (images or {}).items()}
        write_json(self.facts, starting_facts(config) | kept)
        self.write_recipe(config)

    def give_back(self) -> None:
        """Undo `claim`, and what opening a run leaves: one that was refused before its first step takes no name."""
        for path in (self.recipe, self.facts, self.store, self.outbox):
            path.unlink(missing_ok=True)

    def write_recipe(self, config: RunConfig) -> None:
        """Write the recipe, and in a file of its own where MLflow has the run.

        A file in an output folder that the run lies in, as a trial's does in its sweep's, is found from the run's
        folder: they are moved together.
        """
        write_text(self.recipe, to_yaml(config))
        if (uri := config.tracking.uri) is not None:
            file = sqlite_file(uri)
            if file is not None and file.parent in self.path.absolute().parents[:2]:
                uri = uri.replace(str(file), os.path.relpath(file, self.path.absolute()), 1)
            write_text(self.store, f"{without_credentials(uri)}\n")

    def read_store(self) -> str | None:
        """Return the address of the store that has the run; None where it is the output folder's own."""
        try:
            uri = self.store.read_text("utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(
                f"{self.store} cannot be read ({one_line(error, length=None)}); write the address of the MLflow store "
                "that has the run into it, or delete it for the one in the output folder"
            ) from error
        file = sqlite_file(uri)
        if file is not None and not file.is_absolute():
            uri = uri.replace(str(file), os.path.normpath(self.path.absolute() / file), 1)
        return uri or None

    def data_fingerprint(self) -> str | None:
        """Return the fingerprint of the training images; None where the folder does not say it."""
        found = read_object(self.facts, "delete it").get("data") if self.facts.is_file() else None
        return str(found) if found else None

    def weights_fingerprints(self) -> dict[str, dict[str, str]]:
        """Return {network: {what: fingerprint}} of the files that the run started from, as far as the folder has it."""
        known = read_object(self.facts, "delete it") if self.facts.is_file() else {}
        return dict(known.get("weights", {}))

    def read_recipe(self, config: RunConfig) -> RunConfig:
        """Return the recipe of the run in the folder. Refused, with the way out, where its file is not whole.

        config: its plug-ins stand in for the run's, which are not imported: their code is compared.
        """
        try:
            return load_recipe(self.recipe, [f"plugins={json.dumps(config.plugins)}"])
        except Refused as error:
            raise Refused(
                f"{self.recipe} is not a recipe as a run writes it: {error}; restore that file, or delete it "
                "to go on by the recipe that you give"
            ) from error

    def refuse_another(self, config: RunConfig, remedy: str = "choose another name=..., or delete that folder") -> None:
        """Refuse a recipe other than that of the run in the folder: it would be continued as something it is not.

        How a run is carried out may change, and where its weights lie; the weights themselves may not.
        """
        if self.state() == "new":
            return
        from cluster.weights import starting_facts  # as in `claim`

        known = self.read_recipe(config)
        refuse_other_recipe(self.path, known, config, remedy, goes_on=self.state() != "finished")
        if without_credentials(config.data.root) != without_credentials(known.data.root):
            self._refuse_other_data(config, without_credentials(known.data.root))
        self._refuse_other_facts(starting_facts(config), remedy)

    def _refuse_other_data(self, config: RunConfig, root: str) -> None:
        """Refuse a folder of images that are not those of the run, which lay at `root`."""
        from cluster.images import image_facts, open_data  # only here: it imports the networks' libraries

        known = flat_fields(read_object(self.facts, "give data.root as it was") if self.facts.exists() else {})
        why = "not known to be the same"
        if "data" in known:
            found = flat_fields(image_facts(open_data(config)))
            changed = [name for name, now in found.items() if known.get(name, now) != now]  # earlier runs know fewer
            if not changed:
                return
            why = f"different ({changed[0].replace('data', 'training')})"
        raise Refused(
            f"{self.path} holds a run on the images in {root}, and those in {config.data.root} are {why}; give "
            f"data.root={root}, or another name=..."
        )

    def refuse_other_plugins(self, config: RunConfig) -> None:
        """Refuse to look at the run's network with plug-ins other than those that it was trained with."""
        self._refuse_other_facts({"plugins": fingerprints_of(config)}, "or train again under another name=...")

    def _refuse_other_facts(self, facts: Mapping[str, Any], remedy: str) -> None:
        """Refuse facts that are not those of the run. remedy: what helps where a file cannot be restored."""
        remedy_of_file = "delete it to go on without its check of weights and plug-ins"
        theirs = flat_fields(read_object(self.facts, remedy_of_file) if self.facts.exists() else {})
        for key, now in sorted(flat_fields(facts).items()):
            if (known := str(theirs.get(key, now))) != now:
                what, file = "started from other weights", "the file"
                if key.startswith("plugins."):
                    what, file = "was computed by another plug-in", location(sys.modules[key.removeprefix("plugins.")])
                there = f"{self.path} holds a run that {what} ({key} {known[:16]}... there, {now[:16]}... now)"
                raise Refused(f"{there}; restore {file}, {remedy}")
