"""The evaluations of a run while it trains: of the student between epochs, of the teacher before the first.

Not here: how metrics are counted (`cluster.passes`), and where they go (`cluster.training.recorder`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cluster.assembly import Assembly
from cluster.metric_names import VALIDATED, Need
from cluster.passes import evaluate
from cluster.precision import autocast
from cluster.probing import Probe, classifier_knows_classes, wants_probing
from cluster.recipe.config import RunConfig
from cluster.training.checkpoint import TrainState
from cluster.training.recorder import Recorder
from cluster.training.selection import SCORES, score_of
from cluster.training.teacher_check import examine
from kdcore.errors import Refused
from pipelines.data.source import Source


def measured(config: RunConfig, indexes: Mapping[str, Source], split: str) -> list[str]:
    """Return the names of what a run's validations measure on a split, in the order of `VALIDATED`.

    indexes: the run's, including its training images.
    """
    met: set[Need] = set()
    train, source = indexes["train"], indexes[split]
    knows = classifier_knows_classes(config, len(train.classes))
    if source.labelled and knows:
        met |= {"labels", "several labels" if source.multi_label else "one label"}
    averaged = (member for member in config.read_teachers if member.weight > 0)
    if knows and any(teacher.head == "own" for teacher in ([config.teacher] if config.teacher else averaged)):
        met.add("answers")
    if wants_probing(config, len(train.classes)):
        if source.labelled and train.has_one_label and train.class_counts.all():
            met.add("neighbours")
        if any(teacher.head == "none" and not teacher.cached for teacher in config.all_teachers):
            met.add("teacher's features")
    return [metric.name for metric in VALIDATED if metric.needs in met]


def check_choice(run: Assembly) -> None:
    """Refuse a run whose weights are to be chosen by what its validations do not measure."""
    select, config = run.config.train.select, run.config
    if select == "last" or not {*SCORES}.isdisjoint(measured(config, run.indexes, select)):
        return
    if classifier_knows_classes(config, len(run.classes)):
        reason, remedy = "the images have no labels, and no teacher answers there to compare with", ""
    else:
        reason = "no term teaches the student's classifier, and its neighbours need images with one label each"
        remedy = ", or add a term on the logits, such as ce or kd"
    raise Refused(
        f"train.select is {select}, but nothing measured there tells better weights from worse: {reason}; take "
        f"train.select=last{remedy}"
    )


class Validation:
    """Evaluates the student between epochs; the teacher once, at the start."""

    def __init__(self, run: Assembly, recorder: Recorder) -> None:
        self.run, self.recorder = run, recorder
        self.splits = [split for split in ("val", "held_out") if split in run.indexes]
        self.loaders = {split: run.evaluation_loader(split) for split in self.splits}
        self.teacher_logits: dict[str, Tensor] = {}
        self.latest: dict[str, float] = {}
        for split in self.splits:
            if answers := run.teacher_on(split, self.loaders[split]):
                metrics, self.teacher_logits[split] = answers
                index = run.indexes[split]
                if index.labelled:
                    recorder.log_teacher(split, metrics)
                if index.labelled and not index.multi_label:
                    recorder.warn_of_teacher(split, examine(answers[1], index.labels, run.classes, run.rank))
        self.probe = Probe(run, self.splits) if wants_probing(run.config, len(run.classes)) else None
        if self.probe is not None:
            for name, metrics in self.probe.teacher_metrics().items():
                recorder.log_features(name, metrics)

    def evaluate(self, state: TrainState) -> None:
        """Evaluate the student (or its moving average) on every split, and offer its weights as the best."""
        run, student = self.run, state.evaluated
        run.rank.share_buffers(student)
        for split in self.splits:
            names = measured(run.config, run.indexes, split)
            with autocast(run.config, run.rank):
                metrics = evaluate(
                    student, self.loaders[split], len(run.indexes[split]), run.rank, self.teacher_logits.get(split)
                )
            self.latest |= {f"{split}/{name}": metrics[name] for name in names if name in metrics}
        if self.probe is not None:
            with autocast(run.config, run.rank):
                self.latest |= self.probe.metrics(student)
        if (select := run.config.train.select) != "last":
            state.offer_best(score_of(select, self.latest), self.latest)
        self.recorder.log_validation(state.step, self.latest)
