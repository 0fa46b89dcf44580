"""Intervals and robust means of scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a success rate (Wilson 1927); ``z`` = 1.96 for 95%. Sound near 0 and 1, and for few trials.

    Trials must have one rate: it says how sure the success of one agent is over its episodes, not how it varies
    from one training seed to the next.

    Raises:
        ValueError: if there are no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials and a trial, got {successes} of {trials}")
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def interquartile_mean(scores: Float[np.ndarray, " n"]) -> float:
    """Mean of the middle half: a quarter of the scores, rounded down, is left out at each end.

    Agarwal et al. 2021, arXiv:2108.13264. Fewer than four scores lose none.

    Raises:
        ValueError: if there are no scores.
    """
    if not len(scores):
        raise ValueError("there are no scores to average; expected at least one")
    cut = len(scores) // 4
    return float(np.sort(scores)[cut : len(scores) - cut].mean())


def bootstrap_interval(
    runs: Sequence[Float[np.ndarray, " episodes"]], samples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the interquartile mean over runs of each run's mean return.

    Runs are drawn with replacement and, inside each, its episodes; with a single run the interval speaks of its
    episodes alone. For ten runs and more: in a simulation, 95% intervals of one, three and five runs held the truth in
    43, 75 to 82 and 90% of cases. Episodes that all runs share are taken as if they did not.

    Args:
        runs: returns of the evaluation episodes of each run.
        samples: draws.
        level: share of the draws inside.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(samples):
        chosen = rng.integers(len(runs), size=len(runs))
        means = [rng.choice(runs[i], len(runs[i])).mean() for i in chosen]
        found.append(interquartile_mean(np.array(means)))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
