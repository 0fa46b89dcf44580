"""``progress.csv``: the metrics of a run, one line a log."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa_rl.files import write_atomic

NAME = "progress.csv"
STEP = "step"


class CSVLog:
    """Appends lines to a CSV file whose first column is the step; other columns are added as metrics appear.

    A line is written by one system call, and a new header with all earlier lines in one piece (``write_atomic``). So
    a process that is killed leaves whole lines, at most followed by one without an end, which readers and the next
    ``CSVLog`` drop.

    Args:
        path: the file; created if there is none.
        keep_to: lines of later steps are deleted. They are of a run that was killed after its last checkpoint, or of
            another run (0 deletes all); None keeps every line.

    Raises:
        ValueError: the file has another first column, so that it is not deleted.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: str | Path, keep_to: int | None = 0) -> None:
        self.path = Path(path)
        self._columns, rows = read_csv(self.path) if self.path.exists() else ([STEP], [])
        if keep_to is not None:
            rows = [row for row in rows if float(row[0]) <= keep_to]
        if not rows:
            self._columns = [STEP]
        self._rewrite(rows)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line; ``metrics`` are numbers or texts by name."""
        if new := [name for name in metrics if name not in self._columns]:
            _, rows = read_csv(self.path)
            self._columns += new
            self._rewrite(rows)
        values = {STEP: step, **metrics}
        line = _text([[values.get(name, "") for name in self._columns]])
        with open(self.path, "ab", buffering=0) as file:
            written = file.write(line)
        if written != len(line):
            raise OSError(f"could not write a whole line to {self.path}; free some space on its disk")

    def _rewrite(self, rows: list[list[str]]) -> None:
        width = len(self._columns)
        write_atomic(self.path, _text([self._columns, *(row + [""] * (width - len(row)) for row in rows)]))


def read_csv(path: str | Path) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of a ``progress.csv``, without a last line that was never finished.

    Raises:
        ValueError: its first column is not the step, or a step is no number.
    """
    whole, _, _ = Path(path).read_bytes().rpartition(b"\n")
    columns, *rows = [*csv.reader(io.StringIO(whole.decode(errors="replace"), newline=""))] or [[STEP]]
    if not columns:
        columns = [STEP]
    if columns[0] != STEP:
        raise ValueError(
            f"{path} begins with the column {columns[0]!r}, expected {STEP!r}: it was not written by jepa-rl; move it "
            "away, or choose another folder"
        )
    rows = [row for row in rows if row]
    for row in rows:
        try:
            float(row[0])
        except ValueError as error:
            raise ValueError(
                f"{path} has the step {row[0]!r}, expected a number; delete that line"
            ) from error
    return columns, rows


def _text(rows: list[list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
