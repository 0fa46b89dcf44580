"""The pictures of the head-to-head's write-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from _h2h_answers import Cells, success_of, tasks_of
from _h2h_table import ARMS

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {
    "prediction": "tab:blue", "recognition": "tab:orange", "reconstruction": "tab:green", "pixels": "tab:red",
    "floor": "0.5", "ceiling": "0.2",
}  # fmt: skip
SHAPES = {"point": "o", "flow": "^"}


def draw_success(cells: Cells, path: Path) -> None:
    """Success of every training seed: a panel a task, a row an arm; circles point dynamics, triangles the flow."""
    tasks = tasks_of(cells)
    arms = [name for name in ARMS if any(arm == name for _, arm, _ in cells)][::-1]
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(2 + 2.4 * len(tasks), 1 + 0.28 * len(arms)), sharey=True, squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        for row, arm in enumerate(arms):
            for dynamics, shape in SHAPES.items():
                points = [success_of(run) for run in cells.get((task, arm, dynamics), ())]
                at = np.full(len(points), row + (0.15 if dynamics == "point" else -0.15))
                axis.plot(points, at, shape, color=COLOURS[ARMS[arm].family], markersize=4, alpha=0.8)
        axis.set(title=task, xlim=(-0.03, 1.03), xlabel="success")
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set_yticks(range(len(arms)), arms)
    save(figure, path)


def draw_measures(cells: Cells, path: Path) -> None:
    """A column a task, point dynamics: error of rollouts along the horizon, and success over the worst probe."""
    tasks = tasks_of(cells)
    figure, axes = plt.subplots(2, len(tasks), figsize=(2 + 2.4 * len(tasks), 5.4), squeeze=False)
    for (above, below), task in zip(axes.T, tasks, strict=True):
        own = {
            arm: runs
            for (where, arm, dynamics), runs in cells.items()
            if (where, dynamics) == (task, "point")
        }
        for arm in [arm for arm in ARMS if arm in own]:
            draw_arm(above, below, arm, own[arm])
        above.set(title=task, xlabel="latent steps", ylim=(0, 1.2))
        below.set(xlabel="worst probe R2", ylim=(-0.03, 1.03), xlim=(-0.3, 1.03))
    axes[0, 0].set_ylabel("error, deviations of the state")
    axes[1, 0].set_ylabel("success")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    save(figure, path)


def look_of(arm: str) -> tuple[int, str, str]:
    """Number among its family, and with it the line's style; the family's colour."""
    family = ARMS[arm].family
    rank = [name for name, other in ARMS.items() if other.family == family].index(arm)
    return rank, ("-", "--", ":", "-.")[rank % 4], COLOURS[family]


def draw_arm(above: Axes, below: Axes, arm: str, runs: Sequence[Mapping[str, Any]]) -> None:
    rank, style, colour = look_of(arm)
    error = np.mean([run["measures"]["rollout_error"] for run in runs], axis=0)
    above.plot(error, style, color=colour, linewidth=1, label=arm)
    probes = [max(-0.3, min(run["measures"]["probe_r2"].values())) for run in runs]
    below.plot(
        probes, [success_of(run) for run in runs], "osv^D<>"[rank % 7], color=colour, markersize=4, alpha=0.8
    )


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
