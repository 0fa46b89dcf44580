"""See an agent plan from pixels within a minute: twenty unseen Two Rooms with a world model that ships with jepa-rl.

    python examples/first_plan.py

Nothing is trained. The model (`hub:two-rooms`) learned from random play alone, without reward or labels; the agent
searches in its latents for a way to where the goal picture was taken. Writes runs/first_plan/: results.json and
plan.gif. examples/quickstart.py trains such a model.
"""

import io
import json
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import psutil
import tyro
from PIL import Image

from jepa_rl import hub
from jepa_rl.acting import BatchActor
from jepa_rl.agents import MPCAgent, TreeSearch
from jepa_rl.costs import GoalCost
from jepa_rl.diagnostics import wilson_interval
from jepa_rl.envs import TwoRoomsVectorEnv
from jepa_rl.envs.worlds.two_rooms import picture
from jepa_rl.files import open_run, write_atomic

FIRST_LAYOUT = 5_000_000  # seeds of the episodes; neither training nor the benchmarks use them


@dataclass(frozen=True)
class Args:
    episodes: int = 20
    """Each with its own wall, door, start and goal, in different rooms."""
    max_steps: int = 200
    """Environment steps that an episode may take."""
    horizon: int = 12
    """Latent steps of a plan; one of them is five environment steps."""
    model: str = "hub:two-rooms"
    """A shipped checkpoint, or the path of a world model of yours."""
    quick: bool = False
    """Two short episodes, for a test run of seconds; their score means nothing."""
    out: Path = Path("runs/first_plan")


QUICK = dict(episodes=2, max_steps=20)


class RandomAgent:
    """Uniform actions."""

    def __init__(self, envs: TwoRoomsVectorEnv) -> None:
        self.actions = envs.action_space
        self.actions.seed(0)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return self.actions.sample(), None


def main(args: Args) -> None:
    args = replace(args, **QUICK) if args.quick else args
    open_run(args.out, asdict(args), free=tuple(asdict(args)))  # says at once if it cannot write there
    envs = TwoRoomsVectorEnv(args.episodes, max_episode_steps=args.max_steps)
    random, _, _ = play(envs, RandomAgent(envs))
    agent = MPCAgent(
        args.model, TreeSearch(args.horizon), cost=partial(GoalCost, reduce="last"), hold=True, seed=0
    )
    began = time.perf_counter()
    success, steps, film = play(envs, agent)
    seconds = time.perf_counter() - began
    write_atomic(args.out / "plan.gif", gif(film))
    results = {
        "success_rate": float(success.mean()),
        "success_ci95": wilson_interval(int(success.sum()), args.episodes),
        "random_success_rate": float(random.mean()),
        "episodes": args.episodes,
        "median_steps": float(np.median(steps)),
        "planning_seconds": seconds,
        "total_seconds": time.time() - psutil.Process().create_time(),  # imports included
        "model": args.model,
    }
    write_atomic(args.out / "results.json", json.dumps(results, indent=2).encode())
    print(f"Two Rooms from pixels, {args.episodes} unseen layouts, {args.max_steps} steps at most")
    if hub.is_name(args.model):
        print(f"  model                    {args.model}, trained on {hub.card(args.model).data}")
    print(f"  random play              {results['random_success_rate']:.2f}")
    print(f"  planning in the latents  {results['success_rate']:.2f}")
    print(f"  seconds                  {results['total_seconds']:.0f}")
    print(f"wrote {args.out}/plan.gif and results.json")


def play(envs: TwoRoomsVectorEnv, agent) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """One episode in every environment: which goals were reached, after how many steps, and pictures of all."""
    pixels, info = envs.reset(seed=FIRST_LAYOUT)
    act, starts, running = BatchActor(agent), np.ones(envs.num_envs, bool), np.ones(envs.num_envs, bool)
    success, steps, film = np.zeros(envs.num_envs, bool), np.zeros(envs.num_envs, int), []
    shown, goals = pixels.copy(), info["goal"].copy()
    while running.any():
        film.append(mosaic(shown, goals))
        actions = act({"pixels": pixels, "goal": info["goal"]}, starts, running)
        pixels, _, reached, cut, info = envs.step(actions)
        shown[running] = pixels[running]  # those that are over stand still
        success |= reached & running
        steps, running, starts = steps + running, running & ~(reached | cut), np.zeros_like(starts)
    return success, steps, [*film, mosaic(shown, goals)]


def mosaic(pixels: np.ndarray, goals: np.ndarray, columns: int = 5, size: int = 96) -> np.ndarray:
    """All episodes side by side: walls grey, goals green, the dots red."""
    tiles = [
        cv2.resize(picture(now, goal, scale=2), (size, size), interpolation=cv2.INTER_AREA)
        for now, goal in zip(pixels, goals, strict=True)
    ]
    tiles = [cv2.copyMakeBorder(tile, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(90, 90, 90)) for tile in tiles]
    tiles += [np.full_like(tiles[0], 90)] * (-len(tiles) % min(columns, len(tiles)))
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    return np.vstack(rows)


def gif(film: list[np.ndarray]) -> bytes:
    """Every second picture, and the last one for two seconds."""
    first, *rest = [Image.fromarray(frame).quantize(32) for frame in [*film[:-1:2], film[-1]]]
    times, file = [80] * len(rest) + [2000], io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=times, loop=0)
    return file.getvalue()


if __name__ == "__main__":
    main(tyro.cli(Args))
