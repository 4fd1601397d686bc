"""`train --replay STEP`: recomputes one step of a run, and shows which of its numbers are not finite."""

from __future__ import annotations

from cluster.nodes.resources import device_here
from cluster.recipe.config import RunConfig
from cluster.training.replay import Finding, Replay, replay_step
from ops.console import console, say, table

MAX_TENSORS_SHOWN = 12  # tensors that are not finite


def print_replay(config: RunConfig, step: int) -> int:
    """Print where a step (1 for the first) stops being finite, and what it was computed from."""
    found = replay_step(config, step - 1, device_here(config), _say_progress)
    first, wrong = found.first_step, found.not_finite
    start = f"the checkpoint after step {first}" if first else "the first weights"
    say(f"{config.name}: step {step}, with the weights of {start} brought forward by {step - 1 - first} steps")
    for number, ids in found.sample_ids.items():
        say(f"micro-batch {number}: samples {', '.join(map(str, ids))}")
    if not wrong:
        say("every number of this step is finite; the largest of each kind:")
    else:
        say(f"{len(wrong)} of {len(found.findings)} tensors are not finite; it begins with the first:")
    columns = ["tensor", "kind", "micro-batch", "shape", "finite", "lowest", "highest"]
    console.print(table("", columns, [_row(one) for one in (wrong[:MAX_TENSORS_SHOWN] or _largest(found))]))
    return 0


def _say_progress(done: int, to_do: int) -> None:
    if done % 100 == 0:
        say(f"bringing the weights forward: {done} of {to_do} steps")


def _largest(found: Replay) -> list[Finding]:
    """Return, for each kind, the tensor with the largest number."""
    largest: dict[str, Finding] = {}
    for one in found.findings:
        if one.kind not in largest or _magnitude(one) > _magnitude(largest[one.kind]):
            largest[one.kind] = one
    return list(largest.values())


def _magnitude(finding: Finding) -> float:
    return max(abs(finding.low or 0.0), abs(finding.high or 0.0))


def _row(one: Finding) -> list[str]:
    ends = ["-" if end is None else f"{end:.3g}" for end in (one.low, one.high)]
    shape = " x ".join(map(str, one.shape)) or "scalar"
    return [one.name, one.kind, str(one.micro_batch), shape, f"{one.finite_share:.1%}", *ends]
