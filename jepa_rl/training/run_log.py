"""The metrics that a run of ``fit`` writes while it goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from jepa_rl.csv_log import NAME, CSVLog
from jepa_rl.distributed import is_first
from jepa_rl.types import Metrics


class RunLog:
    """``progress.csv`` and TensorBoard events in a run's folder; a context manager. Only the first process writes.

    Args:
        folder: of the run.
        began: updates done so far; lines and events of later ones are dropped.

    Raises:
        ValueError, OSError: as ``CSVLog``.
    """

    def __init__(self, folder: Path, began: int) -> None:
        self._lines = self._events = None
        if is_first():
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._lines = CSVLog(folder / NAME, keep_to=began)
            self._events = SummaryWriter(str(folder), purge_step=began + 1)

    def __enter__(self) -> RunLog:
        return self

    def line(self, step: int, metrics: Metrics) -> None:
        """A line of ``progress.csv``."""
        if self._lines is not None:
            self._lines.write(step, metrics)

    def scalars(self, step: int, metrics: Metrics) -> None:
        """TensorBoard's curves."""
        if self._events is not None:
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)

    def figures(self, step: int, figures: Mapping[str, Any]) -> None:
        """TensorBoard's pictures."""
        if self._events is not None:
            for name, figure in figures.items():
                self._events.add_figure(name, figure, step)

    def text(self, step: int, name: str, text: str) -> None:
        """TensorBoard's texts."""
        if self._events is not None:
            self._events.add_text(name, text, step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.close()
