"""A run tried out before Ray and before its data are passed over: every network and every loss, in the run's shapes."""

from __future__ import annotations

import numpy as np

from cluster.assembly import Assembly, evaluation_policy, image_size
from cluster.passes import ClassStatistics, stand_in_statistics
from kdcore.rehearsal import check_network, rehearse
from pipelines.loaders.base import Request


def rehearse_run(run: Assembly) -> None:
    """Try every network and every loss in the shapes of a run. Refused where one does not fit; uses the run up."""
    views = run.config.views
    judged, sizes = evaluation_policy(run.config), views.all_sizes
    for size in dict.fromkeys([(judged.height, judged.width), *(sizes if views.sizes else [])]):
        for network in run.networks:
            check_network(network, size)
    distiller = run.distiller(stand_in(run))
    for size in sizes:
        rehearse(
            distiller,
            size,
            run.micro_batch,
            views.mixes,
            lambda number: run.stored_targets(Request(0, np.arange(number))),
        )


def stand_in(run: Assembly) -> ClassStatistics | None:
    """Return class statistics that take no pass over the images; None where none are needed, or they are stored."""
    if run.teacher is None or not run.teacher.needs.class_statistics:
        return None
    train, shapes = run.indexes["train"], run.teacher.taps.shapes(image_size(run.config))
    return stand_in_statistics(run.teacher.needs, shapes, train.labels.astype(np.int64), len(train.classes))
