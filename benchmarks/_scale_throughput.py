"""Windows a second that two processes of one thread each train on, against one of one thread."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from statistics import median
from typing import Any

import numpy as np
import torch
from _processes import COUNT, play, run

from jepa_rl import EpisodeStore, WindowSampler, WorldModel, distributed, preset
from jepa_rl.memory import keep_freed_memory
from jepa_rl.training import descend
from jepa_rl.training.contracts import sample_own
from jepa_rl.training.optimisers import optimizers_of


def measure(quick: bool) -> dict[str, Any]:
    """Ratios of windows a second: two processes that train one model, and two that know nothing of each other."""
    with tempfile.TemporaryDirectory() as folder:
        play(folder, episodes=8 if quick else 200)
        found = run(__file__, folder, *(("2", "2", "8") if quick else ("7", "20", "0")))
    one, two, apart = (found[name] for name in ("one", "two", "two_apart"))
    return {
        "throughput_ratio_2": median(b / a for a, b in zip(one, two, strict=True)),
        "throughput_ratio_2_without_exchange": median(b / a for a, b in zip(one, apart, strict=True)),
        "throughput_share_of_no_exchange": median(b / a for a, b in zip(apart, two, strict=True)),
        "throughput_windows_per_second": found,
    }


class Training:
    """The preset ``laptop`` on Two Rooms.

    Args:
        folder: of the episodes.
        batch_size: windows of each process; 0: the preset's.
    """

    def __init__(self, folder: str, batch_size: int) -> None:
        store = EpisodeStore.open(folder)
        config, self.train, steps = preset("laptop", store.spec.with_block(5))
        self.batch_size = batch_size or self.train.batch_size
        torch.manual_seed(0)
        self.model = WorldModel(config).train()
        self.optimizers = list(optimizers_of(self.model, self.train).values())
        self.sampler = WindowSampler(store, steps, 5)
        self.rng, self.generator = np.random.default_rng(0), torch.Generator().manual_seed(0)

    def seconds(self, updates: int) -> float:
        """Time of so many updates; ``batch_size`` is that of each process."""
        began, rows = time.perf_counter(), distributed.whole_batch(self.batch_size)
        for _ in range(updates):
            loss, _ = self.model.loss(sample_own(self.sampler, rows, self.rng), self.generator)
            descend(loss, self.optimizers, self.model.parameters(), self.train.clip)
            self.model.after_update()
        return time.perf_counter() - began


def work(folder: str, rounds: int, updates: int, batch_size: int) -> None:
    """What each of the two processes does; the three ways take turns, so that a busy moment meets all of them."""
    keep_freed_memory()  # as ``fit`` does
    alone, shared = Training(folder, batch_size), Training(folder, batch_size)
    windows, found = updates * alone.batch_size, {"one": [], "two_apart": [], "two": []}
    for number in range(rounds + 1):  # the first round warms up
        one = windows / distributed.by_first(lambda: alone.seconds(updates))
        speed = torch.tensor(windows / alone.seconds(updates))
        with distributed.together():
            apart = float(distributed.total(speed))
            two = COUNT * windows / shared.seconds(updates)
        for name, value in (("one", one), ("two_apart", apart), ("two", two)) if number else ():
            found[name].append(value)
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.join():
        work(sys.argv[1], *map(int, sys.argv[2:]))
