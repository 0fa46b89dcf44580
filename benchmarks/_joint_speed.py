"""How fast SAC learns from pixels with an encoder that also learns a JEPA objective, beside Stable-Baselines3's."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from dmc_pixels import TASKS, make_pixels
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from jepa_rl.agents import JEPASAC, jepa_policy_kwargs

NO_SHIFT = {"objective_options": {"shift": 0}}


def frames_per_second(
    rounds: int = 5, decisions: int = 125, updates: int = 2, batch_size: int = 128, warm: int = 400
) -> dict[str, Any]:
    """Frames of the swing-up a second while learning: same pictures, batch, updates and value targets, no shifts.

    Both learn in turn, so that a noisy machine slows both.

    Args:
        rounds: of both, one after the other.
        decisions: in a round; an episode has 125.
        updates: for each decision.
        batch_size: of an update.
        warm: decisions before the first round, of random play.
    """
    task = TASKS["cartpole-swingup-fast"]
    settings: dict[str, Any] = {
        "learning_starts": warm, "gradient_steps": updates, "batch_size": batch_size, "buffer_size": 2_000,
        "gamma": task.gamma, "seed": 0,
    }  # fmt: skip
    makes: dict[str, Callable[..., OffPolicyAlgorithm]] = {
        "joint": partial(JEPASAC, n_steps=1, policy_kwargs=jepa_policy_kwargs(world=NO_SHIFT)),
        "cnn": SAC,
    }
    agents = {}
    for name, make in makes.items():
        agents[name] = make("CnnPolicy", make_vec_env(partial(make_pixels, task), 1, seed=0), **settings)
        agents[name].learn(warm)
    seconds: dict[str, list[float]] = {name: [] for name in agents}
    for _ in range(rounds):
        for name, agent in agents.items():
            began = time.perf_counter()
            agent.learn(decisions, reset_num_timesteps=False)
            seconds[name].append(time.perf_counter() - began)
    frames = decisions * task.repeat
    ratios = [theirs / ours for theirs, ours in zip(seconds["cnn"], seconds["joint"], strict=True)]
    return {
        "fps_ratio": median(ratios),
        "ratios": ratios,
        "frames_per_second": {name: frames / median(found) for name, found in seconds.items()},
        "settings": {"updates": updates, "batch_size": batch_size, "decisions": decisions, "rounds": rounds},
        "threads": torch.get_num_threads(),
    }
