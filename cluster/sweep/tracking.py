"""A sweep in MLflow: one parent run, and for every trial a run below it that says what became of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from cluster.recipe.config import RunConfig
from cluster.sweep.config import SweepConfig
from cluster.sweep.journal import Event, Trial
from cluster.sweep.space import Point, label
from cluster.tracking.delivery import deliver_rest
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_errors import active_run, is_away
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.tracking.run import close_run, open_run
from pipelines.files import write_whole

TRIAL, POINT = "sweep.trial", "sweep.point."  # tags of a trial's run: its name; the beginning of its values' by axis
STATUS: dict[str, Literal["FINISHED", "KILLED", "FAILED"]] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "lost": "FAILED",
}
DECISION, ERROR = "sweep.decision", "sweep.error"  # tags of a trial's run: how it ended, and why it failed

logger = logging.getLogger("stillhouse")


class SweepRecord:
    """The parent run. parent: the recipe under the sweep's name; runs_dir: where the trials' runs lie."""

    def __init__(self, parent: RunConfig, sweep: SweepConfig, command: str) -> None:
        import mlflow

        self.parent, self.sweep = parent, sweep
        tags = {"sweep": sweep.name, "sweep.search": sweep.search, "sweep.metric": sweep.metric}
        tags |= {f"sweep.space.{name}": str(axis)[:500] for name, axis in space_as_text(sweep).items()}
        self.run_id = open_run(parent, command, tags)
        self.client = mlflow.MlflowClient(tracking_uri(parent))
        with tolerating_mlflow_outage():  # a resumed sweep has sent it before
            self.client.log_dict(self.run_id, sweep.model_dump(mode="json"), "space.yaml")

    @contextmanager
    def marking_interruption(self) -> Iterator[None]:
        """Mark the sweep as interrupted if the body is."""
        try:
            yield
        except BaseException:
            self.mark_interrupted([])
            raise

    def tags(self, trial: Trial) -> dict[str, str]:
        """Return the tags of a trial's run from its beginning."""
        return {
            "mlflow.parentRunId": self.run_id,
            "sweep": self.sweep.name,
            TRIAL: trial.name,
            **{f"{POINT}{name}": label(value)[:500] for name, value in trial.point.items()},
        }

    def record_end(self, event: Event, trial: Trial) -> None:
        """Write the end of a trial into its run; if it has none, into a new one."""
        if trial.end is None:
            return
        with tolerating_mlflow_outage():
            run_id = self._run_of(trial)
            run = active_run(self.client, run_id)
            if run is None:
                logger.warning("the run of %s was deleted in MLflow, which is not told how it ended", trial.name)
                return
            tags = {DECISION: trial.reason if trial.end == "stopped" else trial.end}
            if trial.end in ("failed", "lost"):
                tags[ERROR] = trial.reason[:5000]
            elif ERROR in run.data.tags:  # of an earlier attempt
                self.client.delete_tag(run_id, ERROR)
            for name, text in tags.items():
                if run.data.tags.get(name) != text:
                    self.client.set_tag(run_id, name, text)
            # A run that ends by itself says so itself; one that MLflow knows to have ended keeps the time of its end.
            if trial.end != "finished" and run.info.status != STATUS[trial.end]:
                self.client.set_terminated(run_id, STATUS[trial.end])

    def finish_runs(self, trials: Iterable[Trial], config_of: Callable[[Trial], RunConfig]) -> None:
        """Write, once nothing runs any more, what is still missing about the ends of runs that were cut off."""
        for trial in trials:
            if trial.end is not None and self._folder(trial).outbox.exists():
                if trial.end == "finished":
                    deliver_rest(config_of(trial))
                else:
                    close_run(config_of(trial), STATUS[trial.end])
            self.record_end({}, trial)

    def mark_interrupted(self, trials: Iterable[Trial]) -> None:
        """Mark the parent, and the runs of trials that have not ended, as interrupted: they will be continued."""
        with tolerating_mlflow_outage():
            for trial in trials:
                run_id = self._folder(trial).read_run_id() if trial.end is None else None
                if run_id is not None and active_run(self.client, run_id) is not None:
                    self.client.set_terminated(run_id, "KILLED")
        close_run(self.parent, "KILLED")

    def close(self, files: Iterable[Path], metrics: dict[str, float], best: Point | None = None) -> None:
        """Add the results, the best point as tags where there is one, and mark the end.

        Not as parameters, which are written once: with more runs another point may be the best. If MLflow does not
        answer, the outbox says that something is left: the same command adds it.
        """
        is_told = False
        with tolerating_mlflow_outage():
            for name, value in (best or {}).items():
                self.client.set_tag(self.run_id, f"sweep.best.{name}", label(value)[:500])
            for path in files:
                self.client.log_artifact(self.run_id, str(path))
            known = self.client.get_run(self.run_id).data.metrics
            for name, value in metrics.items():
                if known.get(name) != value:
                    self.client.log_metric(self.run_id, name, value)
            is_told = True
        close_run(self.parent, "FINISHED")
        if not is_told:
            RunFolder.of(self.parent).outbox.touch()

    def _run_of(self, trial: Trial) -> str:
        folder = self._folder(trial)
        if (known := folder.read_run_id()) is not None:
            return known
        experiment = self.client.get_run(self.run_id).info.experiment_id
        run = self.client.create_run(experiment, run_name=folder.path.name, tags=self.tags(trial))
        write_whole(folder.run_id, run.info.run_id.encode())
        return run.info.run_id

    def _folder(self, trial: Trial) -> RunFolder:
        return RunFolder(self.parent.run_dir / f"{self.sweep.name}-{trial.name}")


def space_as_text(sweep: SweepConfig) -> Point:
    """Return the space as plain values."""
    dumped: dict[str, Any] = sweep.model_dump(mode="json", exclude_none=True)["space"]
    return dumped


@contextmanager
def tolerating_mlflow_outage() -> Iterator[None]:
    """Go on where MLflow does not answer: what it misses here is written at the end, or by the same command again."""
    try:
        yield
    except Exception as error:
        if not is_away(error):
            raise
        logger.warning("MLflow does not answer; the sweep goes on: %s", error)
