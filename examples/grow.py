"""Train DQN or SAC on latents of a world model that is fitted again to what the agent meets.

    python examples/grow.py
    python examples/grow.py --env-id Pendulum-v1 --rounds 20
    python examples/grow.py --curious 0.25    # a quarter of the steps is played to where an ensemble disagrees

Writes runs/grow/: results.json, rounds.json (a return for each round), the world model and the agent of every round,
the episodes and TensorBoard events. An interrupted run goes on with its round.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import tyro

from jepa_rl.agents import Grown, grow, play_episodes
from jepa_rl.envs import PixelObservation, collect, wrap

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole draws with SDL; no window is needed


@dataclass(frozen=True)
class Args:
    env_id: str = "CartPole-v1"
    """Gymnasium id of an environment that can render."""
    rounds: int = 10
    steps: int = 2_000
    """Environment steps in a round."""
    updates: int = 500
    """Of the world model in a round."""
    gradient_steps: int = 2_000
    """Of the agent in a round."""
    curious: float = 0.0
    """Share of the steps that are played for the world model alone."""
    episodes: int = 10
    """Of each evaluation."""
    seed: int = 0
    quick: bool = False
    """A few steps of everything, for a test run of seconds."""
    out: Path = Path("runs/grow")


def make_env(env_id: str) -> gym.Env:
    return PixelObservation(gym.make(env_id, render_mode="rgb_array"), size=64, frames=3)


def main(args: Args) -> None:
    if args.quick:
        args = replace(args, rounds=2, steps=200, updates=5, gradient_steps=20, episodes=2)
    seeds = range(1_000_000, 1_000_000 + args.episodes)

    def evaluate(grown: Grown) -> Mapping[str, float]:
        played = play_episodes(grown.agent, lambda: wrap(make_env(args.env_id), grown.world), seeds)
        print(f"{grown.store.num_steps} steps: return {played.returns.mean():.1f}")
        return {"mean_return": float(played.returns.mean())}

    started = time.perf_counter()
    venv = gym.vector.SyncVectorEnv([lambda: make_env(args.env_id)] * 4)
    grown = grow(
        venv, collect, args.out, rounds=args.rounds, steps=args.steps, updates=args.updates,
        gradient_steps=args.gradient_steps, curious=args.curious, after_round=evaluate,
        settings={"gamma": 0.98}, seed=args.seed,
    )  # fmt: skip
    venv.close()
    seconds = time.perf_counter() - started
    results = {"rounds": grown.rounds, "mean_return": grown.rounds[-1]["mean_return"], "seconds": seconds}
    (args.out / "results.json").write_text(json.dumps(results, indent=2))
    print(f"wrote {args.out}/ in {seconds:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Args))
