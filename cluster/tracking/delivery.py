"""From a run's folder to its trackers: what the run itself could not send, in order and once."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import load_recipe, read_recipe
from cluster.tracking.folder import RunFolder, folders_with_outbox
from cluster.tracking.mlflow_errors import is_away, mlflow_errors_as_refusals
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.tracking.tracker import Courier, Tracker, known_trackers, trackers_of
from kdcore.errors import Refused, RunFailed

logger = logging.getLogger("stillhouse")


def deliver(config: RunConfig) -> None:
    """Bring the trackers up to date with a run's folder, its end included. Raises what their clients raise.

    While the run goes on, only its own process writes to trackers that allow a single writer. Refused at the end for a
    file that a tracker does not take: the rest is delivered by then, and the file is sent again next time.
    """
    has_ended = bool(RunFolder.of(config).ended_as())
    trackers = [tracker for tracker in trackers_of(config) if has_ended or tracker.is_shared]
    refusals = []
    for tracker in trackers:
        Courier(tracker).deliver()
        for path in tracker.missing_files():
            try:
                tracker.send_file(path)
            except Refused as refusal:
                refusals.append(refusal)
    mark_end(RunFolder.of(config), trackers, is_complete=not refusals)
    for tracker in trackers:
        tracker.close()
    if refusals:
        raise refusals[0]


def mark_end(folder: RunFolder, trackers: list[Tracker], is_complete: bool = True) -> None:
    """Mark a run's end in its trackers as the outbox says, if it does.

    is_complete: nothing is left to deliver, so the outbox is removed.
    """
    status = folder.ended_as()
    if status in ("FINISHED", "FAILED", "KILLED"):
        for tracker in trackers:
            tracker.end(status)  # type: ignore[arg-type]
        if is_complete:
            folder.outbox.unlink(missing_ok=True)  # a stopped run may have delivered to its end in the meantime


def deliver_or_refuse(config: RunConfig) -> None:
    """Deliver what a run has kept back. Refused where a store does not answer, or refuses; it is then still kept."""
    folder = RunFolder.of(config)
    remedy = f"the metrics of {folder.path} stay there: try again later, or remove {folder.outbox} to discard them"
    with mlflow_errors_as_refusals(tracking_uri(config), remedy):
        deliver(config)


def deliver_rest(config: RunConfig) -> None:
    """Deliver what a finished run has kept back, if anything, its end included; what prevents that is logged."""
    if RunFolder.of(config).outbox.exists():
        try:
            deliver_or_refuse(config)
        except (Refused, RunFailed) as error:
            logger.warning("%s", error)


def recipe_to_deliver(folder: RunFolder) -> RunConfig:
    """Return the recipe of a run as far as delivering needs it: without its plug-ins, and so without its terms.

    Looking at runs imports nothing that their folders name, and nothing here computes.
    """
    location = f"output_dir={json.dumps(str(folder.path.parent.absolute()))}"
    if not read_recipe(folder.recipe).get("plugins"):
        return load_recipe(folder.recipe, [location])
    return load_recipe(folder.recipe, [location, "plugins=[]", "method=[{term: ce, weight: 1}]"])


def deliver_all(output_dir: Path) -> list[str]:
    """Deliver what the runs in a folder have kept back; return the names of those that are complete now.

    Runs that have not ended keep their outbox: the process that trains them, or continues them, delivers. Refused at
    the end where a store does not answer, or refuses, with the first reason and the names of the runs.
    """
    delivered: list[str] = []
    problems: dict[str, Refused | RunFailed] = {}
    away: dict[str, Refused | RunFailed] = {}  # of stores that have not answered, and would be waited for again
    for folder in folders_with_outbox(output_dir):
        config = None
        try:
            config = config_to_deliver(folder)
            if config is None:
                continue
            if tracking_uri(config) in away:
                raise away[tracking_uri(config)]
            deliver_or_refuse(config)
            if not folder.outbox.exists():
                delivered.append(folder.path.name)
        except PermissionError as error:
            problems[folder.path.name] = Refused(
                f"{folder.path} cannot be delivered ({error.strerror}: {error.filename}); let the owner of the run do "
                "so"
            )
        except (Refused, RunFailed) as error:
            problems[folder.path.name] = error
            if config is not None and error.__cause__ is not None and is_away(error.__cause__):
                away[tracking_uri(config)] = error
    if problems:
        name, first = next(iter(problems.items()))
        others = f"; also not delivered: {', '.join(sorted(problems.keys() - {name}))}" if len(problems) > 1 else ""
        done = f"; still delivered: {', '.join(delivered)}" if delivered else ""
        raise type(first)(f"{first}{others}{done}") from first
    return delivered


def config_to_deliver(folder: RunFolder) -> RunConfig | None:
    """Return the recipe of a run, as `recipe_to_deliver`; None if its folder is not enough to deliver it."""
    if not folder.recipe.exists() or folder.read_run_id() is None:
        return None
    config = recipe_to_deliver(folder)
    # A plug-in's tracker is unknown here: continuing the run delivers to it.
    return None if set(config.tracking.also) - known_trackers().keys() else config
