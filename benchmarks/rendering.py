"""Pictures per second of dm_control at 64x64: ``render="fast"`` against dm_control's own ``physics.render``.

    python benchmarks/rendering.py

Eight tasks with one easy level each. Both rates come from the same simulation in the same state, one after
the other in short rounds, so that a neighbour's load falls on both; the median round counts. The third rate,
``kept``, is the default look (pixel for pixel dm_control's) through our renderer that keeps its context.
Writes ``benchmarks/results/rendering.json``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import tyro
from _record import refuse_unrecordable, trying, write_results

import jepa_rl.envs  # noqa: F401  (registers dmc/*)
from jepa_rl.envs.gl import find_backend

TASKS = (
    "cartpole-balance",
    "cartpole-swingup",
    "reacher-easy",
    "ball_in_cup-catch",
    "finger-spin",
    "walker-walk",
    "cheetah-run",
    "pendulum-swingup",
)
SIZE = 64


@dataclass
class Args:
    rounds: int = 5
    """measurements of each renderer per task, of which the median counts"""
    round_seconds: float = 0.5
    """length of one measurement"""
    quick: bool = False
    """three short rounds; writes runs/benchmarks/rendering.quick.json"""


def rate(render: Callable[[], object], seconds: float) -> float:
    """Calls per second over at least ``seconds``."""
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        render()
        count += 1
    return count / elapsed


def measure(task: str, rounds: int, seconds: float) -> dict[str, float]:
    envs = {
        look: gym.make(f"dmc/{task}-v0", render=look, render_size=SIZE, render_mode="rgb_array")
        for look in ("default", "fast")
    }
    for env in envs.values():
        env.reset(seed=0)
        for _ in range(10):  # away from the starting pose
            env.step(env.action_space.high)
    renderers = {
        "default": lambda: envs["default"].unwrapped.physics.render(SIZE, SIZE, camera_id=0),
        "kept": envs["default"].unwrapped.render,
        "fast": envs["fast"].unwrapped.render,
    }
    for render in renderers.values():
        render()
        render()
    samples = [{name: rate(render, seconds) for name, render in renderers.items()} for _ in range(rounds)]
    for env in envs.values():
        env.close()
    rates = {name: statistics.median(sample[name] for sample in samples) for name in renderers}
    ratios = sorted(sample["fast"] / sample["default"] for sample in samples)
    return {
        "default_fps": round(rates["default"], 1),
        "kept_fps": round(rates["kept"], 1),
        "fast_fps": round(rates["fast"], 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_lowest_round": round(ratios[0], 2),
    }


def main(args: Args) -> None:
    if not (args.quick or trying()):
        refuse_unrecordable()
    rounds, seconds = (3, 0.15) if args.quick else (args.rounds, args.round_seconds)
    print(f"{'task':<20}{'default':>10}{'kept':>10}{'fast':>10}{'ratio':>9}   ({SIZE}x{SIZE}, frames/s)")
    tasks = {}
    for task in TASKS:
        row = tasks[task] = measure(task, rounds, seconds)
        print(
            f"{task:<20}{row['default_fps']:>10.0f}{row['kept_fps']:>10.0f}{row['fast_fps']:>10.0f}"
            f"{row['ratio']:>8.1f}x"
        )
    median = round(statistics.median(row["ratio"] for row in tasks.values()), 2)
    payload = {"median_ratio": median, "tasks": tasks, "size": SIZE, "opengl": find_backend()}
    path = write_results("rendering", payload, quick=args.quick)
    print(f"median ratio {median:.1f}x -> {path.name}")


if __name__ == "__main__":
    main(tyro.cli(Args))
