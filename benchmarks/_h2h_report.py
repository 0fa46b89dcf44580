"""The report of the head-to-head: all finished cells, the decisive differences, and the tables of the write-up."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _h2h_answers import Cells, Record, answers, averaged, mean_of, success_of
from _h2h_page import page
from _h2h_table import ARMS, DECISIVE
from _h2h_tasks import TIER_A, plain_of
from _intervals import FEWEST_SEEDS, t_quantile, variance_of
from _record import ROOT, made_by, read_cells, run_git, trying, write_results, write_whole

PROTOCOL = "docs/head_to_head_protocol.md"
DRAWS = 4000  # of the bootstrap
# Pass marks of an arm's own strength: how far between the random encoder's and the supervised one's it must lie.
PASS = 0.5
DECODED = "decoder R2"
APART = 0.05  # the two differ by more than that, or they are no yardstick
PASSES = 2  # of tier A's tasks, or an arm is broken
PHYSICAL = ("teleport", "wall", "vanish")  # steps that cannot be, whatever the colours


def read_records(folder: Path) -> list[Record]:
    """All finished cells; raises as ``read_cells``."""
    return read_cells(folder, ("task", "arm", "dynamics"))


def write_report(folder: Path, quick: bool = False) -> None:
    """Prints the tables, writes ``head_to_head.json`` and draws the pictures of docs/head_to_head.md."""
    records = read_records(folder)
    if not records:
        raise SystemExit(f"there is no finished cell under {folder}")
    cells, grouped, strength = cells_of(records), by_cell(records), strengths(records)
    results = {
        "arms": sorted({r["arm"] for r in records if ARMS[r["arm"]].make in ("trained", "pretrained")}),
        "bounds": sorted({r["arm"] for r in records if ARMS[r["arm"]].tier == "-"}),
        "tasks": sorted({plain_of(r["task"])[0] for r in records}),
        "seeds": sorted({r["seed"] for r in records}),
        "cells": cells,
        "differences": with_holm([difference(records, *pair) for pair in DECISIVE]),
        "strength": strength,
        "works": working(strength),
        "surprise": [found | worst_surprise(found) for found in averages(records, "surprise_auc")],
        "smoothness": averages(records, "smoothness"),
        "cost": costs(records),
        "answers": answers(grouped),
        "protocol_commit": protocol_commit(),
        **made_by(records),
    }
    written = write_results("head_to_head", results, quick=quick, collected=True)
    folder = written.parent if quick or trying() else ROOT / "docs"
    print(written, *illustrate(results, grouped, folder), sep="\n")


def illustrate(results: dict[str, Any], cells: Cells, folder: Path) -> list[Path]:
    """Tables and pictures of the write-up."""
    from _h2h_figures import draw_measures, draw_success  # needs matplotlib, which cells do not

    paths = [folder / f"head_to_head_{name}" for name in ("tables.md", "success.png", "measures.png")]
    write_whole(paths[0], page(results, cells))
    draw_success(cells, paths[1])
    draw_measures(cells, paths[2])
    return paths


def cells_of(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Success of every seed, by arm, dynamics, task and distractor; with the arm's own search, too, if it has one."""
    found = []
    for (task, arm, dynamics), runs in sorted(by_cell(records).items()):
        per_seed = {r["seed"]: success_of(r) for r in sorted(runs, key=lambda r: r["seed"])}
        cell = {**named(task), "arm": arm, "dynamics": dynamics}
        cell |= {"seeds": list(per_seed), "success": list(per_seed.values())}
        own = {r["seed"]: r["own_search"] for r in runs if r.get("own_search")}
        if own:
            cell["own_search"] = next(iter(own.values()))["search"]
            cell["success_own_search"] = [success_of(own[seed]) for seed in per_seed]
        found.append(cell)
    return found


def named(task: str) -> dict[str, str | None]:
    """The plain task, and what is other about its pictures."""
    plain, kind = plain_of(task)
    return {"task": plain, "distractor": kind}


# -- differences --------------------------------------------------------------------------------------


def difference(
    records: Sequence[Record], name: str, first: tuple[str, str], second: tuple[str, str]
) -> dict[str, Any]:
    """Success of one (arm, dynamics) minus that of another, on the same seeds and episodes, mean over tier A's tasks.

    Args:
        records: all cells.
        name: of the difference.
        first, second: (arm, dynamics).
    """
    per_task = {}
    for task in TIER_A:
        runs = [
            {
                r["seed"]: r["success"]
                for r in records
                if (r["task"], r["arm"], r["dynamics"]) == (task, *side)
            }
            for side in (first, second)
        ]
        if seeds := sorted(runs[0].keys() & runs[1].keys()):
            per_task[task] = np.array([np.subtract(runs[0][s], runs[1][s]) for s in seeds], float)
    found: dict[str, Any] = {"name": name, "first": first, "second": second, "tasks": list(per_task)}
    found["per_seed"] = {task: scores.mean(1).tolist() for task, scores in per_task.items()}
    if set(per_task) != set(TIER_A):
        return found | {"mean": None, "halfwidth": None, "p": None}
    found["mean"] = float(np.mean([scores.mean() for scores in per_task.values()]))
    if min(len(scores) for scores in per_task.values()) < FEWEST_SEEDS:
        return found | {"halfwidth": None, "p": None}
    return found | uncertainty(list(per_task.values()), found["mean"])


def uncertainty(per_task: Sequence[np.ndarray], mean: float, seed: int = 0) -> dict[str, float]:
    """Half the width of a 95% interval, and the p-value of no difference.

    Seeds and episodes are both samples: the interval is the wider of a t-interval for the two-way layout and of a
    bootstrap that resamples seeds and episodes jointly, task by task.

    Args:
        per_task: differences "seeds episodes" of each task.
        mean: over tasks.
        seed: of the bootstrap.
    """
    parts = [variance_of(scores) for scores in per_task]
    variance = sum(part for part, _ in parts) / len(parts) ** 2
    if not variance:
        return {"halfwidth": 0.0, "p": 1.0 if not mean else 0.0}
    freedom = (sum(part for part, _ in parts)) ** 2 / sum(part**2 / df for part, df in parts)
    rng, draws = np.random.default_rng(seed), np.zeros(DRAWS)
    for scores in per_task:
        for i in range(DRAWS):
            rows, columns = (rng.integers(n, size=n) for n in scores.shape)
            draws[i] += scores[np.ix_(rows, columns)].mean() / len(per_task)
    low, high = np.quantile(draws, [0.025, 0.975])
    half = max(t_quantile(0.975, freedom) * math.sqrt(variance), float(high - low) / 2)
    return {"halfwidth": half, "p": p_value(abs(mean) / math.sqrt(variance), freedom)}


def p_value(t: float, freedom: float) -> float:
    """Two-sided, of Student's t: the share at which its quantile reaches ``t``, by bisection."""
    low, high = 0.5, 1 - 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_quantile(middle, freedom) < t else (low, middle)
    return 2 * (1 - low)


def with_holm(differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds p-values adjusted for all differences (Holm 1979): ``p_holm``."""
    known = sorted((d for d in differences if d["p"] is not None), key=lambda d: d["p"])
    least = 0.0
    for i, found in enumerate(known):
        least = max(least, min(1.0, (len(differences) - i) * found["p"]))
        found["p_holm"] = least
    return differences


# -- measures -----------------------------------------------------------------------------------------


def by_cell(records: Iterable[Record]) -> dict[tuple[str, str, str], list[Record]]:
    found: dict[tuple[str, str, str], list[Record]] = {}
    for r in records:
        found.setdefault((r["task"], r["arm"], r["dynamics"]), []).append(r)
    return found


def averages(records: Iterable[Record], key: str) -> list[dict[str, Any]]:
    """Mean over seeds of the figures under ``key``, of every cell that has them."""
    found = []
    for (task, arm, dynamics), runs in sorted(by_cell(records).items()):
        values = [run["measures"][key] for run in runs if key in run["measures"]]
        if values:
            found.append({**named(task), "arm": arm, "dynamics": dynamics} | averaged(values))
    return found


def worst_surprise(found: dict[str, Any]) -> dict[str, Any]:
    """The least AUC over impossible steps, and that of recoloured ones: half where hue does not count."""
    return {
        "auc": min(found[name] for name in PHYSICAL if name in found),
        "recolour_auc": found.get("recolour"),
    }


def costs(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Mean over seeds of processor seconds, updates and multiply-adds."""
    found = []
    for (task, arm, dynamics), runs in sorted(by_cell(records).items()):
        seconds = averaged([r["cost"]["processor_seconds"] for r in runs])
        first = runs[0]
        work = {k: first["measures"][k] for k in ("encoder_multiply_adds", "dynamics_multiply_adds")}
        work["decision_seconds"] = mean_of(runs, lambda r: r["measures"]["decision_seconds"])
        rest = {k: v for k, v in first["cost"].items() if k != "processor_seconds"}
        cell = {**named(task), "arm": arm, "dynamics": dynamics}
        found.append(cell | {"processor_seconds": seconds} | work | rest)
    return found


def strengths(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of every arm and task: its family's own figure between those of the random encoder and of the supervised one."""
    cells, found = by_cell(records), []
    for (task, arm, dynamics), runs in sorted(cells.items()):
        if dynamics != "point" or ARMS[arm].family not in OWN:
            continue
        name, read = OWN[ARMS[arm].family]
        value, low, known = (
            float(np.mean([read(r["measures"]) for r in side])) if side else None
            for side in (runs, cells.get((task, "random", "point")), cells.get((task, "supervised", "point")))
        )
        # A decoder has its own ceiling: encoders that were trained on the state draw worse than untrained ones.
        high = 1.0 if name == DECODED else known
        judged = value is not None and low is not None and high is not None
        share = (value - low) / (high - low) if judged and high - low > APART else None
        passed = None if share is None else share >= PASS
        found.append({**named(task), "arm": arm, "figure": name, "value": value, "random": low, "supervised": known,
                      "share": share, "passed": passed, "judged": judged})  # fmt: skip
    return found


def working(found: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """Whether an arm passes on enough of tier A's tasks; of the arms that were judged on all of them."""
    judged: dict[str, list[bool]] = {}
    for row in found:
        if row["task"] in TIER_A and row["distractor"] is None and row["judged"]:
            judged.setdefault(row["arm"], []).append(bool(row["passed"]))
    return {arm: sum(passed) >= PASSES for arm, passed in judged.items() if len(passed) == len(TIER_A)}


OWN: dict[str, tuple[str, Callable[[dict[str, Any]], float]]] = {
    "prediction": ("probe R2", lambda m: float(np.mean(list(m["probe_r2"].values())))),
    "recognition": ("1 - retrieval distance", lambda m: 1 - m["retrieval"]),
    "reconstruction": (DECODED, lambda m: m["decoder_r2"]),
    "pixels": (DECODED, lambda m: m["decoder_r2"]),
}


def protocol_commit() -> str | None:
    """The commit that last changed the protocol; None outside a checkout."""
    try:
        return run_git("log", "-1", "--format=%h", "--", PROTOCOL).strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None
