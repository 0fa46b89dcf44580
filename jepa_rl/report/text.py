"""The summary of a run as text."""

from __future__ import annotations

from jepa_rl.report.contents import UNCHECKED, alarms, headlines, kind, results
from jepa_rl.report.run import Run

ROWS, ALARMS = 40, 5  # at most


def text(run: Run) -> str:
    """A screen of plain text: status, results, last values, alarms, and what could not be read."""
    lines = [f"{run.folder}: {kind(run)}", run.status]
    for title, found in results(run).items():
        lines += ["", title, *_table(found)]
    if last := headlines(run):
        lines += ["", "Last values", *_table(last)]
    lines += ["", "Alarms"]
    raised = alarms(run)
    if len(raised) > ALARMS:
        lines.append(f"  {len(raised) - ALARMS} earlier ones are on the page")
    lines += [f"  {where}: {alarm}" for where, alarm in raised[-ALARMS:]]
    if not raised:
        lines.append("  none" if run.evaluated else f"  {UNCHECKED}")
    if run.faults:
        lines += ["", "Could not be read", *(f"  {fault}" for fault in run.faults)]
    return "\n".join(lines)


def _table(found: list[tuple[str, str]]) -> list[str]:
    width = min(48, max((len(name) for name, _ in found), default=0))
    lines = [f"  {name:<{width}}  {_short(value)}" for name, value in found[:ROWS]]
    return lines + ([f"  ... and {len(found) - ROWS} more, on the page"] if len(found) > ROWS else [])


def _short(value: str, longest: int = 100) -> str:
    value = " ".join(value.split())
    return value if len(value) <= longest else f"{value[: longest - 3]}..."
