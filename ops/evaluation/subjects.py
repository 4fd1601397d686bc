"""What `evaluate`, `predict`, `probe`, `benchmark` and `export` work on: a run, a file of weights, a recipe.

Light on purpose: a word that names nothing is refused before torch is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from cluster.recipe.paths import absolute
from cluster.tracking.folder import RunFolder
from kdcore.errors import Refused, did_you_mean
from ops import catalog
from pipelines.files import read_object

if TYPE_CHECKING:
    from cluster.recipe.config import RunConfig

LINEAGE = "lineage.json"  # what an export was made from; here, as the export's own modules import torch
MAX_RUNS_NAMED = 10
WEIGHTS = (".safetensors", ".pt", ".pth", ".tar", ".bin")


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and where the results go."""

    config: RunConfig
    weights: Path | None
    """The student's weights; None: only the recipe's teacher is evaluated."""
    folder: Path
    """Where results go."""
    run_id: str | None = None
    """The run in MLflow that the weights belong to, if any."""


def find_subject(name: str, recipe: str | None, overrides: Sequence[str]) -> Subject:
    """Return what a word on the command line names.

    Refused where something belonging to it is missing, and where its plug-ins are not those it was trained with.
    """
    require_subject(name)
    path = Path(name)
    if is_recipe(path):
        config = catalog.load_here(name, overrides)
        if not config.all_teachers:
            raise Refused(f"{name}: the recipe has no teacher to evaluate; give a run's folder instead")
        return Subject(config, None, Path(config.output_dir) / "evaluation" / Path(name).stem)
    run = RunFolder(path if path.is_dir() else path.parent)
    weights = run.weights if path.is_dir() else path
    beside = [RunFolder(folder) for folder in weights.absolute().parents[:2]]
    found = recipe or next((str(one.recipe) for one in beside if one.recipe.is_file()), None)
    if found is None:
        raise Refused(f"{name}: no recipe.yaml next to it; say how the network is built: --recipe RECIPE")
    loaded = catalog.load(found, overrides)
    is_placed = any(override.startswith("output_dir=") for override in overrides)
    if path.is_dir() and run.facts.is_file() and not (is_placed or loaded.run_dir.is_dir()):
        # The run has moved with its output folder: nothing is looked for, or made, at the old place.
        loaded = loaded.model_copy(update={"output_dir": str(path.absolute().parent)})
    for one in beside:
        one.refuse_other_plugins(loaded)
    # A run is in the store that its folder names, whatever the environment names today.
    tracking = loaded.tracking.model_copy(update={"uri": loaded.tracking.uri or run.read_store()})
    return Subject(
        absolute(loaded, Path.cwd()).model_copy(update={"tracking": tracking}),
        weights.absolute(),
        path / "evaluation" if path.is_dir() else path.parent / f"{path.stem}-evaluation",
        run.read_run_id() if path.is_dir() else None,
    )


def find_student(run: str, overrides: Sequence[str]) -> tuple[Subject, Path]:
    """Return what a word on the command line names, and the student's weights. Refused for a recipe, which has none."""
    subject = find_subject(run, None, overrides)
    if subject.weights is None:
        raise Refused(f"{run} is a recipe; give the folder of a finished run")
    return subject, subject.weights


def is_recipe(path: Path) -> bool:
    """Return whether a word can only be a recipe: it is not a folder, and does not end like a file of weights."""
    return not path.is_dir() and path.suffix not in WEIGHTS


def require_predicted(run: str, photos: str) -> None:
    """Refuse, as `require_subject` does, what photographs cannot be shown to; and a run behind the photographs."""
    is_run = [RunFolder(Path(word)).recipe.is_file() or word.endswith(WEIGHTS) for word in (run, photos)]
    if is_run == [False, True] and Path(run).exists():
        raise Refused(
            f"{run} is no run, and {photos} is one; the run comes first: predict {quote(photos)} {quote(run)}"
        )
    require_subject(run)


def _without_student(run: str) -> str:
    """Return the error text for a folder without a student's weights: what it is, and what to give in its place."""
    folder = RunFolder(Path(run))
    if (export := folder.path / LINEAGE).is_file():
        known = read_object(export, "export the run again")
        where = f", of the run in {known['run_dir']}" if "run_dir" in known else ""
        return f"{run} is an export{where}; give the folder of its run"
    if runs := sorted(file.parent.as_posix() for file in folder.path.glob("*/recipe.yaml")):
        more = f" and {len(runs) - MAX_RUNS_NAMED} more" if len(runs) > MAX_RUNS_NAMED else ""
        return f"{run} holds runs, and is none; give the folder of one: {', '.join(runs[:MAX_RUNS_NAMED])}{more}"
    if folder.recipe.is_file():
        return f"{run}: no {folder.weights.name}, so this run is not finished; continue it with train"
    return f"{run} is not a run's folder, as it has no {folder.recipe.name}; give the folder that `train` printed"


def require_subject(run: str) -> None:
    """Refuse a word that names no run, file of weights or recipe, and suggest runs with similar names."""
    path = Path(run)
    if path.is_dir() and not RunFolder(path).weights.is_file():
        raise Refused(_without_student(run))
    if path.suffix in (".yaml", ".yml") or path.exists() or run in catalog.names():
        return
    here = path.parent if path.parent.is_dir() else Path()
    runs = sorted(file.parent.as_posix() for file in [*here.glob("*/recipe.yaml"), *here.glob("outputs/*/recipe.yaml")])
    hint = did_you_mean(path.as_posix(), runs, "give the folder of a run, as `train` printed it", cutoff=0.3)
    raise Refused(f"{run}: there is no such run, file of weights, or recipe; {hint}")
