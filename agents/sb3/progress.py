"""What a run of Stable-Baselines3's shows while it learns: the progress, and ``progress.csv``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat, KVWriter, Logger, filter_excluded_keys

from jepa_rl.csv_log import NAME, CSVLog
from jepa_rl.progress import Progress


class LearningProgress(BaseCallback):
    """Shows how far ``learn`` is (``jepa_rl.progress``), for any algorithm of Stable-Baselines3.

    It must stand behind a ``ResumableRun``, which sets the number of steps that are done.

    Args:
        name: of what runs; None: the name of the algorithm's class.
        unit: what is counted, in the singular.
        note: gives the text behind the numbers, asked whenever an episode has ended; None: the mean return of the last
            episodes (``rollout/ep_rew_mean``).
    """

    def __init__(
        self, name: str | None = None, unit: str = "step", note: Callable[[], str] | None = None
    ) -> None:
        super().__init__()
        self.name, self.unit, self.note = name, unit, note
        self._bar: Progress | None = None

    def _on_training_start(self) -> None:
        model = self.model
        name = self.name or type(model).__name__
        self._bar = Progress(name, model._total_timesteps, self.unit, initial=model.num_timesteps)
        if self.logger.dir:
            self._bar.files(self.logger.dir)

    def _on_step(self) -> bool:
        assert self._bar is not None, "training has started"
        self._bar.update(self.training_env.num_envs)
        if np.any(self.locals.get("dones", False)):
            self._bar.note(self.note() if self.note else self._mean_return())
        return True

    def _on_training_end(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)

    def _mean_return(self) -> str:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        return f"return {np.mean(returns):.1f}" if returns else ""


class CSVOutput(KVWriter):
    """An output format of Stable-Baselines3's ``Logger``: ``progress.csv``, a line for each dump.

    Stable-Baselines3's own ``CSVOutputFormat`` deletes an existing file and rewrites its lines in place when a metric
    appears; this one can go on with a file, and a killed process leaves whole lines (``jepa_rl.csv_log.CSVLog``).

    Args:
        folder: of ``progress.csv``.
        keep_to: as for ``CSVLog``.
    """

    def __init__(self, folder: str | Path, keep_to: int | None) -> None:
        self._log = CSVLog(Path(folder) / NAME, keep_to)

    @property
    def path(self) -> Path:
        """The file."""
        return self._log.path

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """A line with the numbers and texts of a dump; figures, pictures and videos are left out."""
        known = (str, int, float, np.number)
        values = filter_excluded_keys(key_values, key_excluded, "csv")
        self._log.write(step, {name: value for name, value in values.items() if isinstance(value, known)})

    def close(self) -> None:
        """Nothing: the file is open only while a line is written."""


def write_csv(logger: Logger, folder: str | Path, keep_to: int | None) -> None:
    """Lets a logger write ``progress.csv`` to ``folder``, too; an output that it has for this file already is replaced.

    Args:
        logger: of an algorithm.
        folder: where the file is, or will be.
        keep_to: lines of later steps are deleted; None keeps all.
    """
    output = Path(folder) / NAME
    if any(isinstance(o, CSVOutputFormat) and Path(o.file.name) == output for o in logger.output_formats):
        return  # the user's own logger writes this file
    for earlier in [o for o in logger.output_formats if isinstance(o, CSVOutput) and o.path == output]:
        logger.output_formats.remove(earlier)
    logger.output_formats.append(CSVOutput(folder, keep_to))
