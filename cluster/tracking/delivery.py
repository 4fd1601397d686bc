"""From a run's folder to its trackers: what the run itself could not send, in order and once."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import get_args

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import load_recipe, read_recipe
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_errors import is_away
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.tracking.tracker import Courier, Status, Tracker, known_trackers, trackers_of
from kdcore.errors import Refused, RunFailed

logger = logging.getLogger("stillhouse")


def deliver(config: RunConfig, is_sent: bool = False) -> dict[Tracker, Exception]:
    """Bring the trackers up to date with a run's folder, its end included; return the error of each that is not.

    One that is away, or that refuses, keeps no other back; the outbox stays, and the next delivery tries all of them
    again. While the run goes on, only its own process writes to trackers that allow a single writer. is_sent: its log
    has sent everything but the end.
    """
    folder = RunFolder.of(config)
    has_ended = bool(folder.ended_as())
    errors: dict[Tracker, Exception] = {}
    for tracker in [tracker for tracker in trackers_of(config) if has_ended or tracker.is_shared]:
        try:
            refusals = [] if is_sent else send_rest(tracker)
            if has_ended and (status := folder.ended_as()) in get_args(Status):  # it may go on again by now
                tracker.end(status)  # type: ignore[arg-type]
            tracker.close()
        except Exception as error:
            refusals = [error]
        if refusals:
            errors[tracker] = refusals[0]
    if has_ended and not errors and folder.ended_as() in get_args(Status):
        folder.outbox.unlink(missing_ok=True)  # a stopped run may have delivered to its end in the meantime
    return errors


def send_rest(tracker: Tracker) -> list[Exception]:
    """Send the lines and files of a run that a tracker lacks; return the refusals of files that it does not take.

    Those are sent again next time: all else is delivered by then.
    """
    Courier(tracker).deliver()
    refusals: list[Exception] = []
    for path in tracker.missing_files():
        try:
            tracker.send_file(path)
        except Refused as refusal:
            refusals.append(refusal)
    return refusals


def deliver_or_refuse(config: RunConfig) -> None:
    """Deliver what a run has kept back. Refused where a store does not answer, or refuses; it is then still kept."""
    folder = RunFolder.of(config)
    remedy = f"the metrics of {folder.path} stay there: try again later, or remove {folder.outbox} to discard them"
    for tracker, error in deliver(config).items():
        with tracker.errors_as_refusals(remedy):
            raise error


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
    """Return the recipe of a run, as `recipe_to_deliver`; None if its folder is not enough to deliver it.

    Refused for a run that has ended and has a plug-in's tracker, which is unknown here.
    """
    if not folder.recipe.exists() or folder.read_run_id() is None:
        return None
    config = recipe_to_deliver(folder)
    if unknown := ", ".join(sorted(set(config.tracking.also) - known_trackers().keys())):
        if not folder.ended_as():
            return None
        raise Refused(
            f"{folder.path} has something left for its trackers, of which a plug-in brings {unknown}; run the same "
            "command again, which imports the plug-in and delivers"
        )
    return config


def folders_with_outbox(output_dir: Path) -> list[RunFolder]:
    """Return the runs below a folder that may have kept something back; a sweep's lie one deeper."""
    found = sorted([*output_dir.glob("*/outbox"), *output_dir.glob("*/*/outbox")])
    return [RunFolder(path.parent) for path in found]
