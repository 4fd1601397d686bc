"""A recipe's documentation for people. Listing recipes reads nothing else of the configuration, so it is quick."""

from __future__ import annotations

from pydantic import Field

from kdcore.section import Section


class ExpectedConfig(Section):
    """A published result, with the accuracies as published: in percent."""

    top1: float | None = Field(default=None, gt=1, le=100)
    """The student's published top-1 in percent. Not given: none is known."""
    stdev: float | None = Field(default=None, ge=0)
    """The published standard deviation of `top1` over seeds, in percent."""
    teacher: float | None = Field(default=None, gt=1, le=100)
    """The teacher's published top-1 in percent."""
    alone: float | None = Field(default=None, gt=1, le=100)
    """The published top-1 in percent of the student trained without a teacher."""
    note: str | None = None
    """What else to know before comparing."""

    @property
    def number(self) -> str | None:
        """The published top-1 in percent with its standard deviation, such as '76.06 ± 0.27'."""
        if self.top1 is None:
            return None
        return f"{self.top1:.2f}" + (f" ± {self.stdev:.2f}" if self.stdev is not None else "")

    def __str__(self) -> str:
        """Return the result in one line."""
        beside = {"teacher": self.teacher, "student alone": self.alone}
        known = ", ".join(f"{name} {top1:.2f}" for name, top1 in beside.items() if top1 is not None)
        text = f"{self.number} top-1" if self.number else "no published number"
        return text + (f" ({known})" if known else "") + (f"; {self.note}" if self.note else "")


class AboutConfig(Section):
    """What a recipe follows, what it is meant to reach, and where it departs: for people, without effect on the run."""

    title: str | None = None
    """What the recipe trains, in a sentence."""
    paper: str | None = None
    """The publication it follows: authors, title, arXiv number."""
    data: str | None = None
    """The images it is for, and how to come by them."""
    teacher: str | None = None
    """How to come by the teacher's weights."""
    tune: str | None = None
    """The fields to change first, and within which bounds."""
    hardware: str | None = None
    """The machines it is meant for."""
    expected: ExpectedConfig = ExpectedConfig()
    """What it is meant to reach."""
    source: str | None = None
    """Where the hyper-parameters and the expected result are published."""
    differs: tuple[str, ...] = ()
    """Where it departs from the published script: a list, one difference with its reason each."""
