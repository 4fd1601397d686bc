"""How often to write a checkpoint, and what failures cost: closed forms for exponential failures and a fixed group.

All in seconds, with mtbf_seconds the mean time between failures of the whole run.

Sources: J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974; J. T. Daly, "A
higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation Computer Systems 22(3),
2006; M. Bougeret et al., "Checkpointing strategies for parallel jobs", SC 2011.
"""

from __future__ import annotations

import math

from ops.capacity.simulation import Job


def young_interval(checkpoint_seconds: float, mtbf_seconds: float) -> float:
    """Return Young's optimum of work between checkpoints: sqrt(2 C M)."""
    return math.sqrt(2 * checkpoint_seconds * mtbf_seconds)


def daly_interval(checkpoint_seconds: float, mtbf_seconds: float) -> float:
    """Return Daly's optimum of work between checkpoints.

    sqrt(2 C M) (1 + sqrt(C / 2M) / 3 + C / 18M) - C for C < 2M, else M.
    """
    if checkpoint_seconds >= 2 * mtbf_seconds:
        return mtbf_seconds
    if math.isinf(mtbf_seconds):
        return math.inf if checkpoint_seconds else 0.0
    part = checkpoint_seconds / (2 * mtbf_seconds)
    young = young_interval(checkpoint_seconds, mtbf_seconds)
    return young * (1 + math.sqrt(part) / 3 + part / 9) - checkpoint_seconds


def expected_wall_seconds(job: Job, mtbf_seconds: float) -> float:
    """Return the mean wall time of a job that always has all its workers, exactly.

    With R the restart, D the wait for a repaired worker and M the time between failures, work of L seconds that begins
    again after every failure takes (M + D) e^(R/M) (e^(L/M) - 1) on average (Bougeret et al.; Daly's complete model
    with D = 0). That holds for each checkpoint with the work before it, and for the finish; the first start takes
    (M + D) e^(R/M) (1 - e^(-S/M)), since a failure in it is followed by a restart.
    """
    whole, last = job.num_checkpoints - 1, job.last_interval_seconds + job.checkpoint_seconds
    seconds = job.interval_seconds + job.checkpoint_seconds
    if math.isinf(mtbf_seconds):
        return job.start_seconds + whole * seconds + last + job.finish_seconds
    growth = whole * math.expm1(seconds / mtbf_seconds) + math.expm1(last / mtbf_seconds)
    growth += math.expm1(job.finish_seconds / mtbf_seconds)
    growth -= math.expm1(-job.start_seconds / mtbf_seconds)
    return (mtbf_seconds + job.repair_seconds) * math.exp(job.restart_seconds / mtbf_seconds) * growth
