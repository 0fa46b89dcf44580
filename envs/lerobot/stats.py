"""Statistics of a dataset's columns, as LeRobot normalises by them: of each episode, and of all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Shaped, UInt8

Stats = dict[str, np.ndarray]  # min, max, mean, std, count, q01, q10, q50, q90, q99
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def of_rows(rows: Shaped[np.ndarray, "t ..."]) -> Stats:
    """Of each component over the rows; numbers of shape ``()`` count as ``(1,)``."""
    values = rows.reshape(len(rows), *(rows.shape[1:] or (1,))).astype(np.float64)
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    found |= {name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()}
    return found | {"count": np.array([len(rows)])}


def of_pictures(frames: UInt8[np.ndarray, "t c y x"]) -> Stats:
    """Of each channel over all pixels of all pictures, scaled to [0, 1], shape ``(c, 1, 1)``."""
    channels = [np.bincount(frames[:, c].ravel(), minlength=256) for c in range(frames.shape[1])]
    found = {name: np.array([float(of(counts)) for counts in channels]) for name, of in _OF_COUNTS.items()}
    scaled = {name: values.reshape(-1, 1, 1) / 255 for name, values in found.items()}
    return scaled | {"count": np.array([len(frames)])}


def _quantile(share: float, counts: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(counts), share * counts.sum())


_LEVELS = np.arange(256)
_OF_COUNTS = {
    "min": lambda counts: counts.nonzero()[0][0],
    "max": lambda counts: counts.nonzero()[0][-1],
    "mean": lambda counts: np.average(_LEVELS, weights=counts),
    "std": lambda counts: np.sqrt(
        np.average((_LEVELS - np.average(_LEVELS, weights=counts)) ** 2, weights=counts)
    ),
    **{name: lambda counts, share=share: _quantile(share, counts) for name, share in QUANTILES.items()},
}


def merged(one: Stats | None, other: Stats) -> Stats:
    """Of the rows of both, by the parallel algorithm for mean and variance.

    Quantiles of all rows cannot be told from those of the parts: as LeRobot's, they are the smallest of the lower ones
    and the largest of the upper ones.
    """
    if one is None:
        return other
    counts = (one["count"], other["count"])
    total = counts[0] + counts[1]
    mean = _weighted(one["mean"], other["mean"], counts)
    first, second = (part["std"] ** 2 + (part["mean"] - mean) ** 2 for part in (one, other))
    found = {
        "min": np.minimum(one["min"], other["min"]),
        "max": np.maximum(one["max"], other["max"]),
        "mean": mean,
        "std": np.sqrt(_weighted(first, second, counts)),
        "count": total,
    }
    bounds = {name: np.minimum if share <= 0.5 else np.maximum for name, share in QUANTILES.items()}
    return found | {name: bound(one[name], other[name]) for name, bound in bounds.items()}


def _weighted(
    one: Float[np.ndarray, "..."], other: Float[np.ndarray, "..."], counts: tuple[np.ndarray, np.ndarray]
) -> Float[np.ndarray, "..."]:
    first, second = (int(count[0]) for count in counts)
    return (one * first + other * second) / (first + second)


def flat(stats: Mapping[str, Stats]) -> dict[str, list]:
    """Columns of the table of episodes: ``stats/<column>/<statistic>``."""
    return {f"stats/{key}/{name}": v.tolist() for key, of in stats.items() for name, v in of.items()}
