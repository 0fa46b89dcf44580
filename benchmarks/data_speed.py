"""Stacked frames per second out of the episode store, and environment steps per second into it, on one core.

    python benchmarks/data_speed.py

Two Rooms pictures (2 x 64 x 64), windows of 4 states, batches of 128; training needs thousands of frames
per second. "uncached" reads the same windows after the file's pages were dropped from memory, which is how
a store that has outgrown memory reads. Writes ``benchmarks/results/data_speed.json``.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from _record import refuse_unrecordable, trying, write_results

from jepa_rl.data import EpisodeStore, WindowSampler
from jepa_rl.envs import TwoRoomsVectorEnv, collect

BATCH, STEPS = 128, 3


@dataclass
class Args:
    steps: int = 50_000
    """environment steps to collect"""
    seconds: float = 3.0
    """length of each measurement"""
    envs: int = 64
    """sub-environments of the natively vectorised Two Rooms"""
    quick: bool = False
    """few steps, short measurements; writes runs/benchmarks/data_speed.quick.json"""


def rate(sampler: WindowSampler, seconds: float) -> float:
    """Stacked frames per second."""
    rng = np.random.default_rng(0)
    sampler.sample(BATCH, rng)
    frames, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        frames += sampler.sample(BATCH, rng).pixels.shape[:2].numel()
    return frames / elapsed


def uncached_rate(path: Path, batches: int) -> float:
    """The same right after the kernel has let go of the file."""
    with open(path / "frames.bin", "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    sampler, rng = WindowSampler(EpisodeStore.open(path), STEPS), np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(batches):
        sampler.sample(BATCH, rng)
    return batches * BATCH * (STEPS + 1) / (time.perf_counter() - start)


def main(args: Args) -> None:
    if not (args.quick or trying()):
        refuse_unrecordable()
    steps, seconds = (5_000, 0.5) if args.quick else (args.steps, args.seconds)
    with tempfile.TemporaryDirectory() as folder:
        env, start = TwoRoomsVectorEnv(args.envs), time.perf_counter()
        store = collect(env, folder, steps=steps, seed=0, extras=("position",), progress=False)
        results = {"collect_steps_per_second": store.num_steps / (time.perf_counter() - start)}
        for frames in (1, 3):
            sampler = WindowSampler(store, STEPS, frames=frames)
            results[f"sample_frames_per_second_stack_{frames}"] = rate(sampler, seconds)
        pairs, rng, count, start = WindowSampler(store, 1), np.random.default_rng(0), 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            count += len(pairs.sample_pairs(256, rng, max_offset=50, discount=0.95).offsets)
        results["sample_pairs_per_second"] = count / elapsed
        store.close()
        del sampler, pairs, store  # their memory maps would keep the pages
        results["sample_frames_per_second_uncached"] = uncached_rate(Path(folder), 5 if args.quick else 20)
    for name, value in results.items():
        print(f"{name:42s} {value:12,.0f}")
    write_results("data_speed", results, quick=args.quick)


if __name__ == "__main__":
    main(tyro.cli(Args))
