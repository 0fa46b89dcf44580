"""What the head-to-head says to the questions of its write-up: a few figures each, from the finished cells.

Every figure is a mean over training seeds, then over arms, then over the tasks that have all of what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from _h2h_table import ARMS
from _h2h_tasks import VARIANTS

Record = dict[str, Any]
Cells = Mapping[tuple[str, str, str], Sequence[Record]]
FAMILIES = ("prediction", "recognition", "reconstruction", "pixels")

# Of a record's measures, the figures that tables show.
MEASURES: dict[str, Callable[[Record], float]] = {
    "probe R2, worst": lambda m: min(m["probe_r2"].values()),
    "linear probe R2, worst": lambda m: min(m["linear_probe_r2"].values()),
    "effective rank": lambda m: m["effective_rank"],
    "retrieval": lambda m: m["retrieval"],
    "jumpiness": lambda m: m["smoothness"]["jumpiness"],
    "curvature": lambda m: m["smoothness"]["curvature"],
    "rollout error, first": lambda m: m["rollout_error"][1],
    "rollout error, last": lambda m: m["rollout_error"][-1],
    "of one future": lambda m: m["one_future_error"][-1],
    "counterfactual R2": lambda m: m["counterfactual_r2"],
    "decoder PSNR": lambda m: m.get("decoder_psnr", math.nan),
    "decoder R2": lambda m: m.get("decoder_r2", math.nan),
}
# What may foretell success, 1 where more should be better and -1 where less should.
FORETELLING = {
    "probe R2, worst": 1, "linear probe R2, worst": 1, "retrieval": -1, "effective rank": 1, "jumpiness": -1,
    "curvature": -1, "rollout error, last": -1, "latent error over copying, last": -1, "counterfactual R2": 1,
}  # fmt: skip
READ = MEASURES | {"latent error over copying, last": lambda m: m["latent_error_over_copying"][-1]}
REACHED = 0.2  # success below which an arm says nothing of the dynamics on it
# Questions that two kinds of dynamics on the same spaces answer.
AGAINST = {
    "few_evaluations": ("flow", "flow_heun"), "repa": ("flow", "flow_repa"), "ensemble": ("point", "ensemble"),
    "parallel_prediction": ("point", "parallel"), "two_timescales": ("point", "two_scale"),
    "learned_distance": ("point", "point+distance"), "mean_of_draws": ("flow", "flow_mean"),
    "wide_flow": ("flow", "flow_wide"),
}  # fmt: skip


def success_of(record: Record) -> float:
    return float(np.mean(record["success"]))


def answers(cells: Cells) -> dict[str, Any]:
    """Question by question; empty where cells are missing.

    Args:
        cells: records by (task, arm, dynamics).
    """
    return {
        "smoother_along_actions": by_family(cells, lambda r: r["measures"]["smoothness"]),
        "errors_compound": by_family(cells, growth),
        "distribution_at_forks": distribution(cells),
        "flow_on_dinov2": flow_on_recognition(cells),
        "cost_of_pixels": pixel_costs(cells),
        "noise": {kind: distracted(cells, kind) for kind in sorted({kind for _, kind in VARIANTS.values()})},
        "foretells_success": foretelling(cells),
    } | {question: against(cells, *pair) for question, pair in AGAINST.items()}


def mean_of(runs: Iterable[Record], read: Callable[[Record], float]) -> float:
    """Over seeds."""
    return float(np.mean([read(run) for run in runs]))


def growth(record: Record) -> dict[str, float]:
    """Error of rollouts in deviations of the state, beyond the probe's own before the first step.

    After one latent step, at the end, and by what factor it grew.
    """
    errors = np.square(record["measures"]["rollout_error"])
    first, last = np.sqrt(np.maximum(errors[[1, -1]] - errors[0], 0)).tolist()
    return {"first": first, "last": last, "growth": last / max(first, 1e-9)}


def trained_arms(cells: Cells, task: str, dynamics: str) -> list[str]:
    """Tier A's arms that have a cell."""
    return [name for name, arm in ARMS.items() if arm.tier == "A" and (task, name, dynamics) in cells]


def tasks_of(cells: Cells) -> list[str]:
    """Plain ones that were played."""
    return sorted({task for task, _, _ in cells if task not in VARIANTS})


def by_family(cells: Cells, read: Callable[[Record], Mapping[str, float]]) -> dict[str, Any]:
    """Task by task, figures of point dynamics: the median of a family's arms, and each arm's."""
    found: dict[str, Any] = {}
    for task in tasks_of(cells):
        own = {
            arm: averaged([read(run) for run in cells[task, arm, "point"]])
            for arm in trained_arms(cells, task, "point")
        }
        families = {  # medians: one collapsed arm tells nothing of its family
            family: averaged([own[arm] for arm in members], np.median)
            for family in FAMILIES
            if (members := [arm for arm in own if ARMS[arm].family == family])
        }
        found[task] = {"families": families, "arms": own}
    return found


def averaged(
    figures: Sequence[Mapping[str, float | None]], of: Callable[[list[Any]], Any] = np.mean
) -> dict[str, Any]:
    """The mean, or ``of``, of figures by name, of those that are known; None if none is."""
    known = {name: [own[name] for own in figures if own[name] is not None] for name in figures[0]}
    return {name: float(of(values)) if values else None for name, values in known.items()}


def distribution(cells: Cells) -> dict[str, Any]:
    """Success with the flow minus that with the point predictor, arm by arm, on every plain task; the mean is that of
    the arms that reach ``REACHED`` with either."""
    found: dict[str, Any] = {}
    for task in tasks_of(cells):
        arms = [a for a in trained_arms(cells, task, "point") if (task, a, "flow") in cells]
        gains = {
            a: mean_of(cells[task, a, "flow"], success_of) - mean_of(cells[task, a, "point"], success_of)
            for a in arms
        }
        able = [
            gain
            for a, gain in gains.items()
            if max(mean_of(cells[task, a, d], success_of) for d in ("point", "flow")) >= REACHED
        ]
        if gains:
            found[task] = {"mean": float(np.mean(able)) if able else None, "arms": gains}
    return found


def flow_on_recognition(cells: Cells) -> dict[str, Any]:
    """Success of the flow on frozen DINOv2, and of the best trained arm with either dynamics, on every plain task."""
    found: dict[str, Any] = {}
    for task in tasks_of(cells):
        others = {
            f"{arm}, {dynamics}": mean_of(runs, success_of)
            for (where, arm, dynamics), runs in cells.items()
            if where == task and dynamics in ("point", "flow") and ARMS[arm].make == "trained"
        }
        if others and (task, "dinov2", "flow") in cells:
            own = mean_of(cells[task, "dinov2", "flow"], success_of)
            best = max(others, key=others.__getitem__)
            share = own / (others[best] or 1)
            found[task] = {"dinov2, flow": own, "best": best, "success": others[best], "share": share}
    return found


def against(cells: Cells, first: str, second: str) -> list[dict[str, Any]]:
    """Two kinds of dynamics on the same spaces and seeds: success, errors of rollouts, seconds of a decision."""
    found = []
    for (task, arm, dynamics), runs in sorted(cells.items()):
        others = {r["seed"]: r for r in cells.get((task, arm, second), ())}
        pairs = [(r, others[r["seed"]]) for r in runs if r["seed"] in others]
        if dynamics != first or not pairs:
            continue
        row: dict[str, Any] = {"task": task, "arm": arm, "seeds": [a["seed"] for a, _ in pairs]}
        for name, side in zip((first, second), zip(*pairs, strict=True), strict=True):
            row[name] = {
                "success": mean_of(side, success_of),
                "rollout_error": np.mean([r["measures"]["rollout_error"] for r in side], axis=0).tolist(),
                "decision_seconds": mean_of(side, lambda r: r["measures"]["decision_seconds"]),
            }
        found.append(row)
    return found


def pixel_costs(cells: Cells) -> dict[str, Any]:
    """What pixel space costs over latent space (``jepa_sigreg``), point dynamics: multiply-adds of a predicted step,
    processor seconds of training (encoder, latents, dynamics) and of a decision, and the success of both."""
    found: dict[str, Any] = {}
    for task in tasks_of(cells):
        sides = [cells.get((task, arm, "point")) for arm in ("pixels", "jepa_sigreg")]
        if sides[0] and sides[1]:
            pixels, latent = (averaged([price(run) for run in side]) for side in sides if side)
            ratios = {
                f"{k}_ratio": pixels[k] / latent[k] if pixels[k] and latent[k] else None
                for k in ("step", "training", "decision")
            }
            found[task] = {"pixels": pixels, "jepa_sigreg": latent} | ratios
    return found


def price(record: Record) -> dict[str, float | None]:
    seconds = record["cost"]["processor_seconds"].values()
    return {
        "success": success_of(record),
        "step": record["measures"]["dynamics_multiply_adds"],
        "training": None if None in seconds else sum(seconds),
        "decision": record["measures"]["decision_seconds"],
    }


def distracted(cells: Cells, kind: str) -> list[dict[str, Any]]:
    """Success on a plain task and on its variant, of the same arm, dynamics and seeds."""
    found = []
    for (task, arm, dynamics), runs in sorted(cells.items()):
        plain, own = VARIANTS.get(task, (task, None))
        others = {r["seed"]: r for r in cells.get((plain, arm, dynamics), ())}
        if own != kind or not (seeds := [r["seed"] for r in runs if r["seed"] in others]):
            continue
        success = [
            mean_of((r for r in side if r["seed"] in seeds), success_of) for side in (others.values(), runs)
        ]
        found.append(
            {"task": plain, "arm": arm, "family": ARMS[arm].family, "dynamics": dynamics, "seeds": seeds}
            | {"plain": success[0], "distracted": success[1], "lost": success[0] - success[1]}
        )
    return found


def foretelling(cells: Cells) -> list[dict[str, Any]]:
    """Rank correlation of measures with success over arms, task by task, point dynamics; signed so that 1 is a perfect
    forecast.

    ``left_out``: of the measure that is best on the other tasks, what it gives on this one. Exploratory: arms are few.
    """
    tables: dict[str, dict[str, float]] = {}
    for task in tasks_of(cells):
        arms = [a for a, arm in ARMS.items() if arm.tier != "-" and (task, a, "point") in cells]
        if len(arms) < 4:
            continue
        runs = [cells[task, a, "point"] for a in arms]
        success = [mean_of(own, success_of) for own in runs]
        tables[task] = {}
        for name, sign in FORETELLING.items():
            values = [mean_of([r["measures"] for r in own], READ[name]) for own in runs]
            tables[task][name] = sign * rank_correlation(values, success)
    found = []
    for task, own in tables.items():
        rest = [other for name, other in tables.items() if name != task]
        best = max(own, key=lambda name: float(np.mean([t[name] for t in rest]))) if rest else None
        found.append(
            {"task": task, "correlation": own, "left_out": best and {"measure": best, "value": own[best]}}
        )
    return found


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's; equal values share their mean rank. 0 where one side does not vary."""
    ranks = [mean_ranks(np.asarray(side, float)) for side in (first, second)]
    if min(side.std() for side in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def mean_ranks(values: np.ndarray) -> np.ndarray:
    return (values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) - 1) / 2
