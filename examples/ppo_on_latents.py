"""Train Stable-Baselines3's PPO on the latents of a world model that was trained on random play.

    python examples/ppo_on_latents.py
    python examples/ppo_on_latents.py --env-id dmc/cartpole-balance-v0 --observations latents pixels state

Writes runs/ppo_on_latents/: results.json, curves.png, world_model/model.safetensors and TensorBoard events.
Every run starts from the beginning and overwrites an earlier one.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from jepa_rl.agents.sb3.baselines import BaselineRun, train_baseline
from jepa_rl.data import WindowSampler
from jepa_rl.envs import PixelObservation, SB3LatentObservation, collect
from jepa_rl.files import remove_run
from jepa_rl.training import TrainConfig, fit
from jepa_rl.world_model import WorldModel, WorldModelConfig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole draws with SDL; no window is needed


@dataclass(frozen=True)
class Args:
    env_id: str = "CartPole-v1"
    """Gymnasium id of an environment that can render."""
    observations: tuple[str, ...] = ("latents", "state")
    """Observations of PPO, one training for each: latents, pixels or state."""
    random_steps: int = 10_000
    """Environment steps of random play for the world model."""
    updates: int = 1_500
    """Updates of the world model."""
    ppo_steps: int = 30_000
    """Environment steps of each PPO."""
    seed: int = 0
    quick: bool = False
    """A few steps of everything, for a test run of seconds."""
    out: Path = Path("runs/ppo_on_latents")


def make_pixels(env_id: str) -> gym.Env:
    return PixelObservation(gym.make(env_id, render_mode="rgb_array"), size=64, frames=3)


def main(args: Args) -> None:
    started = time.perf_counter()
    random_steps, updates, ppo_steps = args.random_steps, args.updates, args.ppo_steps
    if args.quick:
        random_steps, updates, ppo_steps = 300, 20, 512
    remove_run(args.out, "episodes")

    # Random play.
    venv = gym.vector.SyncVectorEnv([lambda: make_pixels(args.env_id)] * 8)
    store = collect(venv, args.out / "episodes", steps=random_steps, seed=args.seed)
    venv.close()
    random_return = float(np.mean([store.episode(i).rewards.sum() for i in range(len(store))]))

    # A world model of it: no rewards, no labels.
    sampler = WindowSampler(store, steps=3)
    torch.manual_seed(args.seed)
    model = WorldModel(WorldModelConfig(sampler.spec))
    trained = fit(
        model, sampler, TrainConfig(steps=updates, batch_size=64, seed=args.seed), args.out / "world_model"
    )
    checkpoint = args.out / "world_model" / "model.safetensors"

    # PPO on its latents, and on the observations to compare with.
    def pixels(n: int) -> VecEnv:
        return make_vec_env(lambda: make_pixels(args.env_id), n)

    makers = {
        "latents": lambda n: SB3LatentObservation(pixels(n), checkpoint),
        "pixels": pixels,
        "state": lambda n: make_vec_env(args.env_id, n),
    }
    runs = {}
    for name in args.observations:
        runs[name] = run = train_baseline(
            "ppo", makers[name], ppo_steps, args.out / name, n_envs=8, seed=args.seed,
            evaluations=2 if args.quick else 6, eval_episodes=2 if args.quick else 5,
            n_steps=32 if args.quick else 128, batch_size=256, device="cpu",
            learning_rate=lambda left: 1e-3 * left,  # left falls from 1 to 0
        )  # fmt: skip
        print(f"PPO on {name:8} return {run.returns[-1].mean():6.1f}   (random {random_return:.1f})")

    results = {
        "env_id": args.env_id,
        "random_return": random_return,
        "world_model": {"train_seconds": trained.seconds, **trained.metrics},
        "ppo": {name: summary(run) for name, run in runs.items()},
        "total_seconds": time.perf_counter() - started,
    }
    (args.out / "results.json").write_text(json.dumps(results, indent=2))
    draw(runs, random_return, args.env_id).savefig(args.out / "curves.png", dpi=100)
    print(f"wrote {args.out}/ in {results['total_seconds']:.0f} s")


def summary(run: BaselineRun) -> dict[str, object]:
    return {
        "final_return": float(run.returns[-1].mean()),
        "best_return": float(run.returns.mean(1).max()),
        "timesteps": run.timesteps.tolist(),
        "mean_returns": run.returns.mean(1).tolist(),
        "seconds": run.seconds,
    }


def draw(runs: dict[str, BaselineRun], random_return: float, title: str) -> plt.Figure:
    """Mean return of the evaluation episodes, with their standard deviation, over environment steps."""
    figure, axis = plt.subplots(figsize=(6, 4))
    for name, run in runs.items():
        mean, std = run.returns.mean(1), run.returns.std(1)
        axis.plot(run.timesteps, mean, marker="o", label=f"PPO on {name}")
        axis.fill_between(run.timesteps, mean - std, mean + std, alpha=0.2)
    axis.axhline(random_return, color="gray", linestyle="--", label="random")
    axis.set(title=title, xlabel="environment steps", ylabel="return")
    axis.legend()
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main(tyro.cli(Args))
