"""A run tried out before Ray and before any pass over its data: every network and every loss, in the run's shapes."""

from __future__ import annotations

import numpy as np

from cluster.assembly import Assembly
from cluster.images import evaluation_policy, image_size
from cluster.teachers.class_statistics import stand_in_statistics
from kdcore.batch import ClassStatistics
from kdcore.online_teacher import OnlineTeacher
from kdcore.rehearsal import check_network, rehearse
from pipelines.loaders.base import Request


def rehearse_run(run: Assembly) -> None:
    """Try every network and every loss in the shapes of a run, which it uses up. Refused where one does not fit."""
    views, seen = run.config.views, run.for_teacher
    for network in run.networks:
        config = run.config if network is run.student else seen.config
        judged, trained = evaluation_policy(config), config.views.all_sizes if config.views.sizes else []
        for size in dict.fromkeys([(judged.height, judged.width), *trained]):
            check_network(network, size)
    distiller = run.distiller(stand_in(run))
    for size in views.all_sizes:
        rehearse(
            distiller,
            size,
            run.micro_batch,
            views.mixes or run.config.data.multi_label,
            lambda number: run.teachers.targets(Request(0, np.arange(number))),
            None if seen is run else image_size(seen.config),
        )


def stand_in(run: Assembly) -> dict[str | None, ClassStatistics]:
    """Return {teacher as terms name it: class statistics} without a pass over the images: random, or those stored."""
    train, size = run.indexes["train"], image_size(run.for_teacher.config)

    def of(teacher: OnlineTeacher) -> ClassStatistics:
        if not teacher.needs.class_statistics:
            return ClassStatistics()
        labels, shapes = train.labels.astype(np.int64), teacher.taps.shapes(size)
        return stand_in_statistics(teacher.needs, shapes, labels, len(train.classes))

    return run.teachers.class_statistics(of)
