"""What several training seeds say together: their points, their mean and, from five seeds on, an interval.

The unit is the training seed. One seed has no interval; the spread of two to four is too uncertain for one, so that
their points are shown. All seeds are scored on the same evaluation episodes, which are a sample, too: the interval
counts both, seeds and episodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

FEWEST_SEEDS = 5  # for an interval


def summarise(runs: Sequence[Sequence[float]], bounds: tuple[float, float] | None = None) -> dict[str, Any]:
    """Mean, points and interval of one method.

    Args:
        runs: the scores of every seed, an episode each (returns, or successes as 0 and 1).
        bounds: least and greatest value that a score can have; the interval is clipped to them.

    Returns:
        ``mean`` over seeds; ``per_seed``; ``ci95``, None below ``FEWEST_SEEDS`` and where nothing varies.

    Raises:
        ValueError: if there is no seed, or one without an episode.
    """
    if not runs or not all(len(run) for run in runs):
        raise ValueError(f"expected at least one seed with an episode, got {[len(run) for run in runs]}")
    points = [float(np.mean(run)) for run in runs]
    found: tuple[float, float] | None = None
    if len(runs) >= FEWEST_SEEDS:
        shared = len({len(run) for run in runs}) == 1
        found = interval(np.asarray(runs, float) if shared else np.array(points)[:, None])
    if found is not None and bounds is not None:
        found = max(found[0], bounds[0]), min(found[1], bounds[1])
    return {"mean": float(np.mean(points)), "per_seed": points, "ci95": found}


def interval(scores: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """t-interval of the mean over seeds and over the episodes that they share; None where nothing varies.

    Two-way layout with one score per cell, both factors random (Satterthwaite 1946): the variance of the grand mean
    is ``(MS_seed + MS_episode - MS_rest) / (seeds * episodes)``, its degrees of freedom those that match the
    variance of that estimate. Neither is taken below what the seeds alone have. It covers 92 to 97% with five seeds
    whose scores are about normal; where most seeds succeed nearly always and a few do not, 84% (skewed, and a rare
    bad seed is not among the five): look at the points there.

    Args:
        scores: "seeds episodes", column by column the same episode; a single column for scores of seeds alone.
        level: share of experiments whose interval holds the true mean.

    Raises:
        ValueError: for fewer than ``FEWEST_SEEDS`` seeds.
    """
    seeds = len(scores)
    if seeds < FEWEST_SEEDS:
        raise ValueError(f"an interval needs at least {FEWEST_SEEDS} seeds, got {seeds}; show the points")
    if not np.ptp(scores):
        return None
    variance, freedom = variance_of(scores)
    mean = scores.mean()
    half = t_quantile((1 + level) / 2, freedom) * math.sqrt(variance)
    return float(mean - half), float(mean + half)


def variance_of(scores: np.ndarray) -> tuple[float, float]:
    """Variance of the mean over seeds and episodes, and its degrees of freedom; see ``interval``.

    Args:
        scores: "seeds episodes".
    """
    seeds, episodes = scores.shape
    mean, by_seed, by_episode = scores.mean(), scores.mean(1), scores.mean(0)
    cells = seeds * episodes
    parts = [(episodes * by_seed.var(ddof=1) / cells, seeds - 1)]
    if episodes > 1:
        rest = scores - by_seed[:, None] - by_episode + mean
        parts.append((seeds * by_episode.var(ddof=1) / cells, episodes - 1))
        parts.append(
            (-(rest**2).sum() / ((seeds - 1) * (episodes - 1)) / cells, (seeds - 1) * (episodes - 1))
        )
    variance, freedom = sum(part for part, _ in parts), float(seeds - 1)
    if variance > parts[0][0]:
        freedom = max(freedom, variance**2 / sum(part**2 / df for part, df in parts))
    return max(variance, parts[0][0]), freedom


@cache
def t_quantile(share: float, freedom: float) -> float:
    """Where Student's t distribution with ``freedom`` degrees of freedom reaches ``share``, from 0.5 to 1."""
    # With t = sqrt(freedom) * tan(angle) the density is a power of the cosine.
    angle = np.linspace(0.0, math.pi / 2, 40_001)[:-1]
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(2 * share - 1, below / below[-1], angle)))


def shown(found: dict[str, Any], form: str = ".0f", pooled: bool = True) -> str:
    """A summary in a table's cell: the interval where there is one, else the points; ``pooled``: with their mean."""
    points = ", ".join(f"{point:{form}}" for point in found["per_seed"])
    if len(found["per_seed"]) == 1 or not pooled:
        return points
    if found["ci95"] is None:
        return f"{found['mean']:{form}} ({points})"
    low, high = found["ci95"]
    return f"{found['mean']:{form}} (95% {low:{form}} to {high:{form}})"
