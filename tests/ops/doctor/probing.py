"""What the tests of `doctor` share: the one finding of a level, and a function that raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ops.doctor.findings import Finding


def only(findings: Any, level: str) -> Finding:
    """The one finding, which has the level, and a remedy unless all is well."""
    (finding,) = list(findings)
    assert finding.level == level
    assert bool(finding.remedy) == (level != "ok")
    return finding


def raiser(error: Exception) -> Callable[..., Any]:
    def raise_it(*args: Any, **kwargs: Any) -> Any:
        raise error

    return raise_it
