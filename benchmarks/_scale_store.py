"""Episode stores that outgrow memory: seconds to open one, what sampling from it costs, and the memory that it takes.

    python benchmarks/_scale_store.py

The store of 100 GB has the length of 100 GB and takes a few megabytes of disk: its index is written in full, its
columns are sparse files, which read as zeros. Pictures are 3 x 64 x 64, episodes 50 to 150 steps long, windows have 4
states and batches 128. A sparse file reads without a disk's delays: what is measured is the library, the index and the
system's handling of pages. A real disk adds the time in which it delivers 48 KB a window.

``measure`` returns the figures; ``benchmarks/scale.py`` records them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import tyro

from jepa_rl.data import EpisodeStore, WindowSampler, mapped
from jepa_rl.types import ActionSpec

FRAME, LENGTH = (3, 64, 64), 100
BATCH, STEPS = 128, 3
ROUNDS = 9  # in turn on the small and the large store, so that other load on the machine meets both
OPEN = """
import sys, time
from jepa_rl.data import EpisodeStore
start = time.perf_counter()
EpisodeStore.open(sys.argv[1])
print(time.perf_counter() - start)
"""


@dataclass
class Args:
    gigabytes: float = 100.0
    """size of the large store"""
    batches: int = 10_000
    """that are drawn while memory is watched"""


def make_store(path: Path, gigabytes: float, length: int = LENGTH) -> EpisodeStore:
    """A store of the given size whose pictures, actions and rewards are holes in sparse files.

    Args:
        path: of its folder.
        gigabytes: of pictures.
        length: mean environment steps of an episode; the lengths are drawn, and those of a smaller store begin those of
            a larger one.
    """
    action = ActionSpec("continuous", 6, (-1.0,) * 6, (1.0,) * 6)
    store = EpisodeStore.create(path, FRAME, action, frames=3)
    columns = store.layout.columns()
    episodes = int(gigabytes * 1e9 / (columns["frames"].row_bytes * (length + 1)))
    lengths = np.random.default_rng(0).integers(length // 2, length * 3 // 2 + 1, episodes).tolist()
    with open(path / "episodes.jsonl", "w") as index:
        for seed, steps in enumerate(lengths):
            metadata = {"seed": seed, "policy": "random"}
            line = {"length": steps, "terminated": False, "truncated": True, "metadata": metadata}
            index.write(json.dumps(line) + "\n")
    for column in columns.values():
        os.truncate(path / column.file, column.rows(sum(lengths), episodes) * column.row_bytes)
    return EpisodeStore.open(path)


def open_seconds(path: Path, times: int = 5) -> float:
    """Median time of ``EpisodeStore.open`` in a fresh process, imports left out, by the clock on the wall."""
    command = [sys.executable, "-c", OPEN, str(path)]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(times)]
    return median(float(run.stdout) for run in runs)


def rate(draw: Callable[[], object], batches: int) -> float:
    """Windows a second of this process's time: holes need no disk to wait for, and other processes do not count."""
    start = time.process_time()
    for _ in range(batches):
        draw()
    return batches * BATCH / (time.process_time() - start)


def cached_rates(small: Path, large: Path, batches: int = 50) -> tuple[float, float]:
    """Windows a second where their pages are in memory: all of the small store, and as many episodes of the large one.

    The large store's index and map have their full size.
    """
    samplers = [WindowSampler(EpisodeStore.open(path), STEPS) for path in (small, large)]
    rng, count, found = np.random.default_rng(0), len(samplers[0]), []
    for sampler in samplers:
        for windows in samplers[0].ordered(BATCH):
            sampler.batch(windows)
    for _ in range(ROUNDS):
        draws = (lambda s=s: s.batch(rng.integers(count, size=BATCH)) for s in samplers)
        found.append([rate(draw, batches) for draw in draws])
    return median(pair[0] for pair in found), median(pair[1] for pair in found)


def uncached_rates(small: Path, large: Path, batches: int = 5) -> tuple[float, float]:
    """Windows a second where hardly any page is in memory, from either store.

    The small one is read as one that does not fit into memory: otherwise it would be there before the end. A round
    draws few batches, so that hardly a page of the small store is met twice.
    """
    rng, found = np.random.default_rng(0), []
    with patch.object(mapped, "LARGE", 0.0):
        for _ in range(ROUNDS):
            rates = []
            for path in (small, large):
                with open(path / "frames.bin", "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                sampler = WindowSampler(EpisodeStore.open(path), STEPS)
                rates.append(rate(lambda s=sampler: s.sample(BATCH, rng), batches))
                del sampler  # its map would keep the pages
            found.append(rates)
    return median(pair[0] for pair in found), median(pair[1] for pair in found)


def resident() -> dict[str, int]:
    """Bytes of this process in memory: ``anonymous`` ones, and pages of mapped files, which the system may drop."""
    status = Path("/proc/self/status").read_text()
    names = {"anonymous": "RssAnon", "file": "RssFile"}
    return {key: int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024 for key, name in names.items()}


def memory_of_sampling(path: Path, batches: int) -> dict[str, float]:
    """Memory before the store is opened, and the most while batches are drawn from all of it; megabytes."""
    before, rng = resident(), np.random.default_rng(0)
    sampler = WindowSampler(EpisodeStore.open(path), STEPS)
    most, first, start = dict(before), 0, time.process_time()
    for i in range(batches):
        sampler.sample(BATCH, rng)
        if i % 10 == 9:
            most = {key: max(value, most[key]) for key, value in resident().items()}
        if i == batches // 10:
            first = most["anonymous"]
    return {
        "anonymous_mb_before": before["anonymous"] / 1e6,
        "anonymous_mb_after_a_tenth": first / 1e6,
        "anonymous_mb_most": most["anonymous"] / 1e6,
        "mapped_file_mb_most": most["file"] / 1e6,
        "samples_per_second": batches * BATCH / (time.process_time() - start),
    }


def measure(quick: bool = False) -> dict[str, float]:
    """All figures of a store of 100 GB against one of 1 GB; of 1 GB and 10 MB if ``quick``.

    Returns:
        ``open_seconds_100gb`` and ``open_seconds_1gb`` (fresh process, imports left out), ``first_open_seconds_100gb``
        (no cache of the index yet); ``sample_ratio_100gb``: windows a second from the large store over those from the
        small one, pages of neither in memory, and ``sample_ratio_cached_100gb``, those of both in memory; these rates;
        and memory while sampling.
    """
    return figures(1.0, 100) if quick else figures(100.0, 10_000)


def figures(gigabytes: float, batches: int) -> dict[str, float]:
    """As ``measure``.

    Args:
        gigabytes: of the large store; the small one has a hundredth.
        batches: drawn while memory is watched.
    """
    with tempfile.TemporaryDirectory() as parent:
        small, large = Path(parent) / "small", Path(parent) / "large"
        make_store(small, gigabytes / 100)
        make_store(large, gigabytes)
        (large / "episodes.cache").unlink(missing_ok=True)
        found = {"first_open_seconds_100gb": open_seconds(large, times=1)}
        found |= {"open_seconds_100gb": open_seconds(large), "open_seconds_1gb": open_seconds(small)}
        found["episodes_100gb"] = len(EpisodeStore.open(large))
        for name, rates in {
            "cached_": cached_rates(small, large),
            "": uncached_rates(small, large),
        }.items():
            found[f"sample_ratio_{name}100gb"] = rates[1] / rates[0]
            found[f"samples_per_second_{name or 'uncached_'}1gb"] = rates[0]
            found[f"samples_per_second_{name or 'uncached_'}100gb"] = rates[1]
        watched = memory_of_sampling(large, batches)
        return found | {f"sampling_{key}": value for key, value in watched.items()}


def main(args: Args) -> None:
    for name, value in figures(args.gigabytes, args.batches).items():
        print(f"{name:44s} {value:14,.3f}")


if __name__ == "__main__":
    main(tyro.cli(Args))
