"""Training speed of Stable-Baselines3's PPO: on latents against CnnPolicy on the very same pixels.

    python benchmarks/wrapper_speed.py

Both learn on eight dmc/cartpole-swingup-v0 (fast look, 64x64, three frames) in one process, with the same
rollouts, batches and epochs: Stable-Baselines3's defaults but for 256 steps per environment and rollout. The
latents are those of a freshly initialised world model of default size, encoded once per step as one batch of
eight. Frames per second are environment steps over the wall clock of ``learn``: simulation, rendering,
encoding, the policy and all updates. Both take turns, and the median turn counts.

``seconds_per_1000_frames`` says where the time goes; ``encode_ms`` is one observation, from uint8 NumPy to
float32 NumPy. Writes ``benchmarks/results/wrapper_speed.json``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from _record import refuse_unrecordable, trying, write_results
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from jepa_rl.agents.sb3.baselines import policy_for
from jepa_rl.envs import PixelObservation, SB3LatentObservation, world_spec
from jepa_rl.world_model import WorldModel, WorldModelConfig

SIZE, FRAMES, N_ENVS = 64, 3, 8


@dataclass
class Args:
    env: str = "dmc/cartpole-swingup-v0"
    """a task of the dm_control suite"""
    turns: int = 3
    """trainings of each, of which the median counts"""
    rollouts: int = 2
    """rollouts (each followed by ten epochs of updates) in one training"""
    n_steps: int = 256
    """steps of each of the eight environments in a rollout"""
    quick: bool = False
    """one turn of one short rollout; writes runs/benchmarks/wrapper_speed.quick.json"""


def make_pixels(env: str) -> VecEnv:
    def make() -> gym.Env:
        # Rendered at 64x64 at once, so that no resizing is left to do.
        raw = gym.make(env, observation="pixels", size=SIZE, render="fast", render_mode="rgb_array")
        return PixelObservation(raw, size=SIZE, frames=FRAMES)

    return DummyVecEnv([make] * N_ENVS)


class Stopwatch:
    """Seconds spent inside chosen methods."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: Any, method: str, name: str) -> None:
        inner: Callable[..., Any] = getattr(owner, method)
        self.seconds[name] = 0.0

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        setattr(owner, method, timed)


def train(
    env: str, encoder: WorldModel | None, rollouts: int, n_steps: int
) -> tuple[float, dict[str, float]]:
    """Frames per second of PPO, and where the seconds of 1,000 frames went."""
    pixels = make_pixels(env)
    venv = pixels if encoder is None else SB3LatentObservation(pixels, encoder)
    model = PPO(policy_for(venv.observation_space), venv, n_steps=n_steps, seed=0, device="cpu")
    venv.reset()  # opens the OpenGL contexts before the clock runs
    watch = Stopwatch()
    watch.watch(pixels, "step_wait", "simulate and render")
    watch.watch(model, "collect_rollouts", "rollouts")
    watch.watch(model, "train", "update")
    if encoder is not None:
        watch.watch(venv, "step_wait", "latent step")
    frames = rollouts * n_steps * N_ENVS
    start = time.perf_counter()
    model.learn(frames)
    elapsed = time.perf_counter() - start
    venv.close()
    assert model.num_timesteps == frames
    spent = watch.seconds
    step = spent.pop("latent step", spent["simulate and render"])
    parts = {
        "simulate and render": spent["simulate and render"],
        "encode": step - spent["simulate and render"],
        "act and store": spent["rollouts"] - step,
        "update": spent["update"],
    }
    return frames / elapsed, {name: round(value / frames * 1000, 4) for name, value in parts.items()}


@torch.inference_mode()
def encode_ms(encoder: WorldModel, observations: int, repeats: int) -> float:
    """Median milliseconds of encoding a batch of observations, per batch."""
    pixels = np.random.default_rng(0).integers(0, 256, (observations, *encoder.spec.pixels), np.uint8)
    times = []
    for _ in range(repeats + 10):
        start = time.perf_counter()
        encoder.encode(torch.from_numpy(pixels)).numpy()
        times.append(time.perf_counter() - start)
    return statistics.median(times[10:]) * 1000


def main(args: Args) -> None:
    if not (args.quick or trying()):
        refuse_unrecordable()
    turns, rollouts, n_steps = (1, 1, 64) if args.quick else (args.turns, args.rollouts, args.n_steps)
    venv = make_pixels(args.env)
    torch.manual_seed(0)
    encoder = WorldModel(WorldModelConfig(world_spec(venv))).eval()
    venv.close()
    one, eight = (round(encode_ms(encoder, n, 20 if args.quick else 300), 4) for n in (1, N_ENVS))
    print(
        f"encoding {SIZE}x{SIZE}x{FRAMES} frames: {one:.2f} ms for 1 observation, {eight:.2f} ms for {N_ENVS}"
    )
    rates: dict[str, list[float]] = {"latents": [], "pixels": []}
    parts: dict[str, dict[str, float]] = {}
    for _ in range(turns):
        for name, model in {"latents": encoder, "pixels": None}.items():
            rate, parts[name] = train(args.env, model, rollouts, n_steps)
            rates[name].append(rate)
            print(f"PPO on {name:<8}{rate:8.0f} frames/s   seconds per 1,000 frames: {parts[name]}")
    ratios = [a / b for a, b in zip(rates["latents"], rates["pixels"], strict=True)]
    payload = {
        "ppo_fps_ratio": round(statistics.median(ratios), 3),
        "ratio_lowest_turn": round(min(ratios), 3),
        "encode_ms": one,
        "encode_ms_8_envs": eight,
        "latent_fps": round(statistics.median(rates["latents"]), 1),
        "pixel_fps": round(statistics.median(rates["pixels"]), 1),
        "seconds_per_1000_frames": parts,
        "env": args.env,
        "n_envs": N_ENVS,
        "n_steps": n_steps,
        "latent_dim": encoder.latent_dim,
    }
    path = write_results("wrapper_speed", payload, quick=args.quick)
    print(f"ratio {payload['ppo_fps_ratio']:.2f}x -> {path.name}")


if __name__ == "__main__":
    main(tyro.cli(Args))
