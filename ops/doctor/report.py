"""What this machine has, what it lacks, and what to do about it: `python -m ops doctor`.

A probe that raises or takes too long is itself a finding, so that one broken part does not hide the others. Not here:
the probes (`ops.doctor.probes`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ops.console import console
from ops.doctor.findings import PROBE_SECONDS, Finding, Probe
from ops.doctor.probes import PROBES

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(output_dir: str) -> int:
    """Print the findings; return 1 if something stands in the way of a run."""
    findings = diagnose(output_dir)
    console.print(render(findings))
    return int(failed(findings))


def diagnose(output_dir: str) -> list[Finding]:
    """Return every probe's findings, in a fixed order.

    output_dir: the folder that runs would write to; it need not exist.
    """
    return [
        finding for area, probe in PROBES.items() for finding in run_probe(area, probe, Path(output_dir).absolute())
    ]


def failed(findings: Iterable[Finding]) -> bool:
    """Return whether something stands in the way of a run."""
    return any(finding.level == "fail" for finding in findings)


def render(findings: list[Finding]) -> Table:
    """Return the findings as a table, each remedy below what was seen."""
    counts = {level: sum(finding.level == level for finding in findings) for level in STYLES}
    caption = ", ".join(f"{number} {level}" for level, number in counts.items())
    table = Table(title="This machine", title_justify="left", caption=caption, caption_justify="left")
    for column in ("", "area", "what was seen, and what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        text = Text(finding.seen)
        if finding.remedy:
            text.append(f"\n-> {finding.remedy}", style="bold")
        table.add_row(Text(finding.level, style=STYLES[finding.level]), finding.area, text)
    return table


def run_probe(area: str, probe: Probe, output_dir: Path) -> list[Finding]:
    """Return the probe's findings, or one that says that it raised or took longer than PROBE_SECONDS.

    It runs in a daemon thread, so that a probe that hangs in a driver does not keep the process alive.
    """
    findings: list[Finding] = []

    def run() -> None:
        try:
            findings.extend(probe(output_dir))
        except Exception as error:
            seen = f"the check failed: {type(error).__name__}: {error}"
            findings.append(
                Finding(area, "fail", seen, "repair what the message names; `make env` renews the libraries")
            )

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    if thread.is_alive():
        remedy = "something it asks does not answer: check drivers and network folders"
        return [*findings, Finding(area, "fail", f"no answer within {PROBE_SECONDS:g} s", remedy)]
    return findings
