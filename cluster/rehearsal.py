"""A run tried out before Ray and before its data are passed over: every network and every loss, in the run's shapes."""

from __future__ import annotations

import numpy as np

from cluster.assembly import Assembly, image_size
from cluster.images import evaluation_policy
from cluster.passes import ClassStatistics, stand_in_statistics
from kdcore.rehearsal import check_network, rehearse
from pipelines.loaders.base import Request


def rehearse_run(run: Assembly) -> None:
    """Try every network and every loss in the shapes of a run. Refused where one does not fit; uses the run up."""
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
            views.mixes,
            lambda number: run.stored_targets(Request(0, np.arange(number))),
            None if seen is run else image_size(seen.config),
        )


def stand_in(run: Assembly) -> ClassStatistics | None:
    """Return class statistics that take no pass over the images; None where none are needed, or they are stored."""
    if run.teacher is None or not run.teacher.needs.class_statistics:
        return None
    train, shapes = run.indexes["train"], run.teacher.taps.shapes(image_size(run.for_teacher.config))
    return stand_in_statistics(run.teacher.needs, shapes, train.labels.astype(np.int64), len(train.classes))
