"""Whether a sweep that loses a worker ends with the results of the same trainings without Ray.

python benchmarks/_scale_ray.py
"""

import hashlib
import json
import os
import signal
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jepa_rl import EpisodeStore, TrainConfig, WindowSampler, WorldModel, WorldModelConfig, fit
from jepa_rl.cluster import ray_running
from jepa_rl.csv_log import read_csv
from jepa_rl.envs import TwoRoomsVectorEnv, collect
from jepa_rl.sweeps import sweep, trial_names

UPDATES = 120
VICTIM = 2  # the trial whose process is killed, after half of its updates


def measure(quick: bool) -> dict[str, Any]:
    """Eight short trainings as a sweep on two cores, one of whose workers is killed by SIGKILL, and without Ray.

    Returns:
        ``ray_same_results``: whether all trials finish, with losses and weights that are, to the last bit, those of the
        same trainings one after the other in this process; what was done; and the seconds of both.
    """
    trials = [{"learning_rate": rate, "seed": seed} for rate in (1e-3, 3e-4) for seed in range(4)]
    trials = trials[: VICTIM + 1] if quick else trials
    with tempfile.TemporaryDirectory() as temporary:
        folder, names = Path(temporary), trial_names(trials)
        venv = TwoRoomsVectorEnv(8, max_episode_steps=20, start="any")
        collect(venv, folder / "episodes", episodes=64, seed=0, progress=False)
        threads, began = torch.get_num_threads(), time.perf_counter()
        torch.set_num_threads(1)  # as a trial has
        alone = [
            train(folder / "episodes", trial, folder / name)
            for trial, name in zip(trials, names, strict=True)
        ]
        torch.set_num_threads(threads)
        between = time.perf_counter()
        killer = Killer(folder / "sweep", names[VICTIM])
        killer.start()
        with ray_running(cpus=2):
            table = sweep(partial(train, folder / "episodes"), trials, folder / "sweep")
        killer.join()
    return {
        "ray_same_results": [{name: row.get(name) for name in alone[0]} for row in table] == alone,
        "ray_trials": len(trials),
        "ray_finished": sum(not row["error"] for row in table),
        "ray_processes": [row["processes"] for row in table],
        "ray_updates": UPDATES,
        "ray_killed_after_updates": killer.updates,
        "ray_seconds": time.perf_counter() - between,
        "ray_seconds_without": between - began,
    }


def train(episodes: Path, settings: dict[str, Any], folder: Path) -> dict[str, float]:
    """A small world model, with a checkpoint every 20 updates; its loss, and a number that tells its weights."""
    sampler = WindowSampler(EpisodeStore.open(episodes), steps=3)
    torch.manual_seed(settings["seed"])
    model = WorldModel(WorldModelConfig(sampler.spec, 16, encoder_options={"widths": (8, 16, 16)}))
    config = TrainConfig(steps=UPDATES, batch_size=32, log_every=10, checkpoint_every=20, **settings)
    found = fit(model, sampler, config, folder, progress=False)
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return {"loss": found.metrics["jepa/loss"], "weights": int(digest.hexdigest()[:12], 16)}


class Killer(threading.Thread):
    """Kills the process of a trial by SIGKILL, once it has done half of its updates."""

    def __init__(self, out: Path, trial: str) -> None:
        super().__init__(daemon=True)
        self.log, self.processes = (
            out / "trials" / trial / "progress.csv",
            out / "processes" / f"{trial}.jsonl",
        )
        self.updates = 0

    def run(self) -> None:
        while self.updates < UPDATES // 2:
            time.sleep(0.01)
            rows = read_csv(self.log)[1] if self.log.exists() else []
            self.updates = int(float(rows[-1][0])) if rows else 0
        os.kill(json.loads(self.processes.read_text().splitlines()[-1])["pid"], signal.SIGKILL)
