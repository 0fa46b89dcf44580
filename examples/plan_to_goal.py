"""Plan to a goal picture with a trained world model.

    python examples/plan_to_goal.py
    python examples/plan_to_goal.py --checkpoint runs/cartpole/model.safetensors --env-id CartPole-v1

The goal is an observation of random play some steps after the start of a held-out episode; the agent begins at
the same start. Without --checkpoint it takes that of examples/train_world_model.py or
quickstart.py, or trains a small one. Writes runs/plan_to_goal/: results.json, plan.gif (what the agent
sees, its goal) and TensorBoard events (plan/cost, plan/spread, plan/ms).
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from jepa_rl import WorldModel
from jepa_rl.agents import CEM, CategoricalCEM, MPCAgent
from jepa_rl.envs import PixelObservation, SmoothRandomPolicy, world_spec

os.environ.setdefault(
    "SDL_VIDEODRIVER", "dummy"
)  # classic-control environments draw with SDL; no window is needed


@dataclass(frozen=True)
class Args:
    env_id: str = "jepa_rl/TwoRooms-v0"
    checkpoint: Path | None = None
    """Path of a world model of that environment."""
    frames: int = 1
    block: int = 5
    """Frames and block of the model that is trained if there is none."""
    episodes: int = 10
    goal_steps: int = 25
    """Steps of random play from the start to the goal."""
    budget: int = 50
    """Environment steps that the agent may take."""
    horizon: int = 6
    """Latent steps of a plan."""
    seed: int = 1_000_000
    """Seed of the first episode; far from those of training."""
    quick: bool = False
    """A small search and two episodes, for a test run of seconds."""
    out: Path = Path("runs/plan_to_goal")


def find_model(args: Args) -> tuple[WorldModel, str]:
    """The model of --checkpoint, else one that an example has trained on this environment, else a new one; its path."""
    if args.checkpoint is not None:
        return WorldModel.load(args.checkpoint), str(args.checkpoint)
    folders = (Path("runs/train_world_model"), Path("runs/quickstart"), args.out / "world_model")
    for path in (path for folder in folders for path in sorted(folder.rglob("model.safetensors"))):
        settings = path.with_name("args.json")  # do not use a model from another example's --quick
        if not args.quick and settings.exists() and json.loads(settings.read_text()).get("quick"):
            continue
        model = WorldModel.load(path)
        if fits(model, args.env_id):
            return model, str(path)
    command = [sys.executable, str(Path(__file__).with_name("train_world_model.py")), "--no-resume"]
    command += ["--env-id", args.env_id, "--frames", str(args.frames), "--block", str(args.block)]
    command += ["--preset", "laptop"]  # made for planning
    command += ["--out", str(args.out / "world_model")] + ["--quick"] * args.quick
    print(" ".join(command))
    subprocess.run(command, check=True)
    path = args.out / "world_model" / "model.safetensors"
    return WorldModel.load(path), str(path)


def make_env(env_id: str, model: WorldModel) -> gym.Env:
    """The environment with pictures of the model's size and frames."""
    spec = model.spec
    gray = spec.pixels[0] == spec.frames
    return PixelObservation(gym.make(env_id, render_mode="rgb_array"), spec.pixels[1], spec.frames, gray)


def fits(model: WorldModel, env_id: str) -> bool:
    env = make_env(env_id, model)
    env.close()
    return world_spec(env, model.spec.block) == model.spec


def main(args: Args) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    model, checkpoint = find_model(args)
    if not fits(model, args.env_id):
        raise SystemExit(f"{checkpoint} is a model of {model.spec}, which {args.env_id} is not")
    env, action = make_env(args.env_id, model), model.spec.action
    episodes, samples = (2, 32) if args.quick else (args.episodes, 300)
    search = {"samples": samples, "elites": samples // 10 + 1, "iterations": 2 if args.quick else 6}
    planner = CEM(args.horizon, **search)
    if action.kind == "discrete":
        planner = CategoricalCEM(args.horizon, choices=action.size, **search)
    agent = MPCAgent(model, planner, hold=True, replan_every=min(args.budget, model.spec.block))

    scores = {"start": [], "random": [], "agent": []}
    movie, milliseconds, step = [], [], 0
    with SummaryWriter(str(args.out)) as board:
        for episode in range(episodes):
            seed = args.seed + episode
            random = Random(SmoothRandomPolicy(action, 1), seed)
            start, goal, _ = play(env, seed, random, args.goal_steps)
            if (start == goal).all():
                continue  # random play ended where it began: no goal to reach
            _, wandered, _ = play(env, seed, Random(SmoothRandomPolicy(action, 1), seed + 10**6), args.budget)
            agent.set_goal(goal)
            driver = Driver(agent, board, step)
            _, arrived, seen = play(env, seed, driver, args.budget)
            step, milliseconds = driver.step, milliseconds + driver.milliseconds
            for name, pixels in (("start", start), ("random", wandered), ("agent", arrived)):
                scores[name].append(distance(agent, pixels, goal))
            movie += [
                np.hstack([picture(p, model.spec.frames), picture(goal, model.spec.frames)]) for p in seen
            ]
            print(
                f"episode {episode}: latent distance to the goal {scores['start'][-1]:.2f} -> "
                f"{scores['agent'][-1]:.2f}   (random play {scores['random'][-1]:.2f})"
            )
    env.close()
    if not movie:
        raise SystemExit("random play moved nothing in any episode; raise --goal-steps")
    first, *rest = (Image.fromarray(frame) for frame in movie)
    first.save(args.out / "plan.gif", save_all=True, append_images=rest, duration=60, loop=0)
    results = {
        "env_id": args.env_id,
        "checkpoint": checkpoint,
        "episodes": len(scores["start"]),
        **{f"{name}_latent_distance": float(np.mean(values)) for name, values in scores.items()},
        "closer_than_random_rate": float(np.mean(np.array(scores["agent"]) < scores["random"])),
        "plan_ms_per_action": float(np.mean(milliseconds)),
    }
    (args.out / "results.json").write_text(json.dumps(results, indent=2))
    print(json.dumps(results, indent=2))


class Random:
    """Random play as a function of one observation."""

    def __init__(self, policy: SmoothRandomPolicy, seed: int) -> None:
        self.policy, self.rng = policy, np.random.default_rng(seed)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return self.policy(pixels[None], self.rng)[0]


class Driver:
    """The agent as a function of one observation: carries its state and writes metrics of its searches."""

    def __init__(self, agent: MPCAgent, board: SummaryWriter, step: int) -> None:
        self.agent, self.board, self.step = agent, board, step
        self.state, self.milliseconds = None, []

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        last, began = self.agent.last_plan, time.perf_counter()
        action, self.state = self.agent.predict(pixels, self.state)
        self.milliseconds.append(1000 * (time.perf_counter() - began))
        plan = self.agent.last_plan
        if plan is not last:  # a new search, not the rest of the last one's plan
            self.board.add_scalar("plan/cost", plan.cost.item(), self.step)
            self.board.add_scalar("plan/spread", plan.candidate_costs.std().item(), self.step)
            self.board.add_scalar("plan/ms", self.milliseconds[-1], self.step)
        self.step += 1
        return action


def play(env: gym.Env, seed: int, policy, steps: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """First and last observation, and all of them, of at most ``steps`` steps."""
    pixels, _ = env.reset(seed=seed)
    seen = [pixels]
    for _ in range(steps):
        pixels, _, terminated, truncated, _ = env.step(policy(pixels))
        seen.append(pixels)
        if terminated or truncated:
            break
    return seen[0], seen[-1], seen


def distance(agent: MPCAgent, pixels: np.ndarray, goal: np.ndarray) -> float:
    here, there = agent.encode(np.stack([pixels, goal]))
    return torch.linalg.vector_norm(here - there).item()


def picture(pixels: np.ndarray, frames: int, scale: int = 4) -> np.ndarray:
    """The newest frame, (y, x, 3): up to three channels as red, green and blue."""
    newest = pixels[-(len(pixels) // frames) :][:3].transpose(1, 2, 0)
    newest = (
        newest.repeat(3, 2)
        if newest.shape[2] == 1
        else np.pad(newest, ((0, 0), (0, 0), (0, 3 - newest.shape[2])))
    )
    return newest.repeat(scale, 0).repeat(scale, 1)


if __name__ == "__main__":
    main(tyro.cli(Args))
