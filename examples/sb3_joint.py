"""Train Stable-Baselines3's DQN, SAC or PPO from pixels, with an encoder that also learns a JEPA world model.

    python examples/sb3_joint.py
    python examples/sb3_joint.py --env-id Pendulum-v1 --algorithm sac

Writes runs/sb3_joint/: results.json, agent.zip, world.safetensors and TensorBoard events. ``--weight 0`` leaves the
world model out. Every run starts from the beginning and overwrites an earlier one.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import tyro
from stable_baselines3.common.env_util import make_vec_env

from jepa_rl.agents import JEPADQN, JEPAPPO, JEPASAC, EvaluationCallback, jepa_policy_kwargs, play_episodes
from jepa_rl.envs import PixelObservation
from jepa_rl.files import remove_run

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole draws with SDL; no window is needed

ALGORITHMS = {"dqn": JEPADQN, "sac": JEPASAC, "ppo": JEPAPPO}


@dataclass(frozen=True)
class Args:
    env_id: str = "CartPole-v1"
    """Gymnasium id of an environment that can render."""
    algorithm: Literal["dqn", "sac", "ppo"] = "dqn"
    """dqn for discrete actions, sac for continuous ones, ppo for both."""
    steps: int = 50_000
    """Environment steps."""
    weight: float = 1.0
    """Of what the world model learns, beside the agent's own loss."""
    gamma: float = 0.98
    """Discount of one step."""
    episodes: int = 10
    """Of each evaluation."""
    seed: int = 0
    quick: bool = False
    """A few steps of everything, for a test run of seconds."""
    out: Path = Path("runs/sb3_joint")


def make_env(env_id: str) -> gym.Env:
    return PixelObservation(gym.make(env_id, render_mode="rgb_array"), size=64, frames=3)


def settings(algorithm: str, steps: int) -> dict[str, Any]:
    if algorithm == "ppo":
        return {"n_steps": 256}
    return {"buffer_size": steps + 1000, "learning_starts": min(1000, steps // 4)}


def main(args: Args) -> None:
    remove_run(args.out, "tensorboard")
    steps, episodes = (600, 2) if args.quick else (args.steps, args.episodes)
    env = make_vec_env(lambda: make_env(args.env_id), 8 if args.algorithm == "ppo" else 1, seed=args.seed)

    # The agent: everything but the encoder is Stable-Baselines3's.
    agent = ALGORITHMS[args.algorithm](
        "CnnPolicy",
        env,
        gamma=args.gamma,
        policy_kwargs=jepa_policy_kwargs(weight=args.weight),
        tensorboard_log=str(args.out / "tensorboard"),
        seed=args.seed,
        **settings(args.algorithm, steps),
    )
    evaluate = EvaluationCallback(
        lambda: make_env(args.env_id), steps // 5, episodes, seed=1_000_000, path=args.out / "curve.json"
    )
    started = time.perf_counter()
    agent.learn(steps, callback=evaluate)
    seconds = time.perf_counter() - started

    # What it learned: the agent, and a world model that others can wrap, plan in or learn on.
    agent.save(args.out / "agent.zip")
    agent.world.save(args.out / "world.safetensors")
    returns = play_episodes(
        agent, lambda: make_env(args.env_id), range(2_000_000, 2_000_000 + episodes)
    ).returns
    results = {"mean_return": float(returns.mean()), "returns": returns.tolist(), "train_seconds": seconds}
    (args.out / "results.json").write_text(json.dumps(results, indent=2))
    print(f"{args.env_id}, {args.algorithm}: return {returns.mean():.1f} over {episodes} episodes after {steps} steps, "
          f"{seconds:.0f} s of training")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Args))
