"""What a stopping rule is: asked after every report of a run, it says whether the run ends there, and why.

A rule is a frozen, strict pydantic model whose fields are what SPACE.yaml sets below `stop:`. Defining a subclass
registers it under the default of its `rule` field; every module of this package is imported by
`cluster.sweep.stoppers`, so that a new rule touches one file.

A rule keeps nothing between two questions: it is a function of the scores that are in the sweep's journal when it is
asked. That makes it safe to restart. Answers that were given are in the journal, too, and are not asked for again.

Not here: what asks a rule, and what Ray Tune is told (`cluster.sweep.scheduler`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field

from cluster.metric_names import Mode
from kdcore.errors import Refused
from kdcore.registry import Registry
from kdcore.section import Section

REGISTRY: Registry[Stopper] = Registry("stopping rules")


class Report(NamedTuple):
    """A validation of a run: its score after `epoch` epochs."""

    epoch: float
    score: float


Curve = Sequence[Report]  # of one run, in the order of its epochs


class Stopper(Section):
    """A rule that stops runs early: base of every rule, with the fields that all of them have."""

    rule: str
    """The name of the rule."""

    grace_epochs: int = Field(default=1, ge=1)
    """No run is stopped before it has trained this many epochs."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        name = cls.model_fields["rule"].default
        if not isinstance(name, str):
            return  # an intermediate base class
        REGISTRY.add(name, cls)

    def reason(self, run: Curve, others: Sequence[Curve], mode: Mode, write: Callable[[float], str] = str) -> str:
        """Return why a run ends with its last report, to be read after its score; empty where it goes on.

        others: the curves of the sweep's other runs so far, without what a run reports at its end: there its learning
        rate has come down, and no report from mid-run compares with that. mode: which scores are better. write: formats
        a score.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no reason()")

    def summary(self) -> str:
        """Return what the rule does, in a few words for the sweep's plan."""
        raise NotImplementedError(f"{type(self).__name__} gives no summary()")

    def check(self, epochs: int) -> None:
        """Raise Refused where no run of `epochs` epochs could ever be stopped."""
        if self.grace_epochs >= epochs:
            raise Refused(
                f"stop.grace_epochs {self.grace_epochs} leaves nothing to stop in runs of {epochs} epochs; lower it, "
                "or leave stop out"
            )


def parse_stopper(given: Any) -> Any:
    """Build the rule that SPACE.yaml describes. Refused, naming the nearest ones, for an unknown rule."""
    if given is None or isinstance(given, Stopper):
        return given
    if not isinstance(given, Mapping) or not isinstance(given.get("rule"), str):
        raise Refused(f"a stopping rule is a mapping with a 'rule' key, such as {{rule: asha}}; got {given!r}")
    name = given["rule"]
    if name not in REGISTRY:
        raise Refused(f"unknown stopping rule {name!r}; did you mean {', '.join(REGISTRY.nearest(name))}?")
    return REGISTRY[name].model_validate(dict(given))
