"""Collects the records of search_depth.py and draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from _h2h_answers import rank_correlation
from _h2h_figures import look_of, save
from _h2h_table import ARMS
from _record import ROOT, made_by, read_cells, trying, write_results

Runs = dict[tuple[str, str], list[dict[str, Any]]]


def write_report(folder: Path, quick: bool = False) -> None:
    """Prints rank correlations, writes ``search_depth.json``, and draws the picture of docs/head_to_head.md."""
    records = read_records(folder)
    if not records:
        raise SystemExit(f"there is no finished record under {folder}")
    rows = rows_of(records)
    results = {
        "rows": rows,
        "order_against_success": correlations(rows),
        **made_by([record for runs in records.values() for record in runs]),
    }
    for task, found in results["order_against_success"].items():
        print(task, {horizon: round(value, 2) for horizon, value in found.items()})
    written = write_results("search_depth", results, quick=quick, collected=True)
    draw(rows, (written.parent if quick or trying() else ROOT / "docs") / "head_to_head_depth.png")


def read_records(folder: Path) -> Runs:
    """By task and arm, in the table's order; raises as ``read_cells``."""
    found: Runs = {}
    for record in read_cells(folder, ("task", "arm")):
        found.setdefault((record["task"], record["arm"]), []).append(record)
    arms = list(ARMS)
    return dict(sorted(found.items(), key=lambda pair: (pair[0][0], arms.index(pair[0][1]))))


def rows_of(records: Runs) -> list[dict[str, Any]]:
    """A row a task and arm; a list holds a value for every training seed."""
    return [
        {
            "task": task,
            "arm": arm,
            "seeds": [run["seed"] for run in runs],
            "success": {
                horizon: [float(np.mean(run["success"][horizon])) for run in runs]
                for horizon in runs[0]["success"]
            },
            "order": [run["order"] for run in runs],
            "middle_over_start": [run["middle_over_start"] for run in runs],
        }
        for (task, arm), runs in records.items()
    ]


def correlations(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By task and horizon: Spearman's rank correlation of order and success (means of seeds) over arms but bounds."""
    found: dict[str, dict[str, float]] = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task and ARMS[row["arm"]].tier != "-"]
        if len(own) > 2:
            order = [float(np.mean(row["order"])) for row in own]
            found[task] = {
                horizon: rank_correlation(order, [float(np.mean(row["success"][horizon])) for row in own])
                for horizon in own[0]["success"]
            }
    return found


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel a task: success over the horizon of plans, a line an arm (mean over training seeds)."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(1, len(tasks), figsize=(2 + 3 * len(tasks), 3.4), squeeze=False, sharey=True)
    for axis, task in zip(axes[0], tasks, strict=True):
        for row in (row for row in rows if row["task"] == task):
            _, style, colour = look_of(row["arm"])
            axis.plot(
                [int(horizon) for horizon in row["success"]], [np.mean(v) for v in row["success"].values()],
                style, marker="o", markersize=3, color=colour, label=row["arm"],
            )  # fmt: skip
        axis.set(title=task, xscale="log", xlabel="horizon of plans, blocks", ylim=(-0.03, 1.03))
        horizons = [int(horizon) for horizon in next(r for r in rows if r["task"] == task)["success"]]
        axis.set_xticks(horizons, [str(horizon) for horizon in horizons])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("success")
    handles = {
        name: line for axis in axes[0] for line, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    save(figure, path)
