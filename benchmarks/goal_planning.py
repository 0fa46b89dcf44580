"""Reach a goal picture 25 steps ahead: LeWorldModel's protocol on dm_control tasks.

    python benchmarks/goal_planning.py --env dmc/reacher-easy-v0
    python benchmarks/goal_planning.py --quick

Data are scripted play: a noisy controller from random pose to random pose. A held-out episode of that play gives a
start and, 25 environment steps later, a goal picture. The agent begins at the start and has 50 steps; it succeeds
when at some step every joint lies within 0.05 rad of the goal's (the tolerance of stable-worldmodel 0.1.1's reacher;
angles are compared modulo a full turn). Starts that are solved already are dropped. Seeds of training, tuning and
reporting are disjoint. LeWorldModel's own data come from another policy: its 0.86 is a yardstick, not the same test.

Observations stack three frames, because one picture does not show speeds, but a goal is one picture: a small map
learned on the frozen latents ("what would this look like at rest") takes the speed out of imagined states before
they are compared with the goal at rest. Its labels are the encoder's own latents of a frame repeated three times.
A stopped run goes on where it was; a finished one is a file of ``benchmarks/results/goal_planning`` and is not run
again. ``--seeds 4`` runs that seed alone (about 20 minutes on one core); the figures are collected from all that are
finished.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from _intervals import summarise
from _record import ROOT, Records, made_by, note_process, refuse_unrecordable, trying, write_results
from torch import Tensor, nn

from jepa_rl import EpisodeStore, WindowSampler, WorldModel, fit, preset, world_model_evaluation
from jepa_rl.agents import CEM, MPCAgent, fit_inverse_model
from jepa_rl.costs import GoalCost
from jepa_rl.diagnostics import fit_mlp_probe, r2_score
from jepa_rl.envs import PixelObservation, SmoothRandomPolicy, collect, world_spec
from jepa_rl.envs.policies import Policy
from jepa_rl.files import load_tensors, save_tensors
from jepa_rl.training.refine import REFINE, refine_dynamics
from jepa_rl.types import ActionSpec, Planner

# First seeds of the evaluation's episodes; training uses seeds below 100,000.
REPORT, TUNE = 2_000_000, 1_000_000
# Of the first phase. What never changes in an episode, the target of reacher, is the easiest thing to predict, and a
# large weight on prediction fills the latents with it; what the actions moved has to be in them instead.
OBJECTIVE = {"prediction": 1.0, "sigreg": 4.0, "inverse_dynamics": 40.0}


@dataclass(frozen=True)
class Args:
    env: str = "dmc/reacher-easy-v0"
    seeds: tuple[int, ...] = (3, 4, 5)
    """Of data and training; settings were chosen on 0 to 2."""
    episodes: int = 50
    train_episodes: int = 1200
    train_steps: int = 100
    updates: int = 9000
    learning_rate: float = 3e-3
    """Of the first phase."""
    refine_updates: int = 5000
    frames: int = 3
    block: int = 5
    latent_dim: int = 64
    horizon: int = 5
    """Latent steps that the agent looks ahead."""
    replan_every: int = 5
    goal_steps: int = 25
    budget: int = 50
    tolerance: float = 0.05
    """Radians."""
    tune: bool = False
    """Score the tuning episodes instead of the reported ones, and write no results."""
    quick: bool = False
    out: Path = Path("runs/goal_planning")


QUICK = dict(seeds=(3,), episodes=2, train_episodes=16, train_steps=60, updates=10, refine_updates=10)


def main(args: Args) -> None:
    if args.quick:
        args = replace(args, **QUICK, out=Path("runs/goal_planning_quick"))
        shutil.rmtree(args.out, ignore_errors=True)
    kept = records(args)
    if kept.counted:
        refuse_unrecordable()
    for seed in args.seeds:
        if kept.read(seed) is None:
            processes = note_process(folder_of(args, seed))
            kept.write(seed, run_seed(args, seed), processes)
    runs = kept.all()
    found = list(runs.values())
    results = {
        "task": args.env,
        "success": {
            name: summarise([run["success"][name] for run in found], (0.0, 1.0))
            for name in found[0]["success"]
        },
        **{key: [run[key] for run in found] for key in ("train_seconds", "plan_ms_per_action", "probe_r2")},
        "seeds": list(runs),
        "settings": found[0]["settings"],
        **made_by(found),
    }
    for name, value in results.items():
        print(f"{name:<30}{value}")
    if not args.tune:
        quick = not kept.counted and not trying()
        print(write_results("goal_planning", results, quick=quick, collected=True))


def records(args: Args) -> Records:
    """Of one task; of tries, tuning and changed settings under ``--out``."""
    free = ("out", "quick", "seeds", "tune")
    settings, own = (
        {k: v for k, v in asdict(a).items() if k not in free} for a in (args, Args(env=args.env))
    )
    counted = settings == own and not (args.tune or args.quick or trying())
    name = args.env.replace("/", "_")
    folder = args.out / ("tuned" if args.tune else "records")
    return Records(
        (ROOT / "benchmarks/results/goal_planning" if counted else folder) / name, settings, counted
    )


def folder_of(args: Args, seed: int) -> Path:
    return args.out / args.env.replace("/", "_") / f"seed_{seed}"


def run_seed(args: Args, seed: int) -> dict[str, Any]:
    """Collect, train and score one seed."""
    out = folder_of(args, seed)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    clock, began = out / "train_seconds.json", time.perf_counter()
    known = json.loads(clock.read_text()) if clock.exists() else 0.0
    store = play_script(args, out / "episodes", seed)
    train, held_out = store.split(0.1, seed=seed)
    collected = time.perf_counter()
    model, at_rest = train_model(args, train, held_out, out, seed)
    known += time.perf_counter() - collected
    clock.write_text(json.dumps(known))
    print(f"seed {seed}: data {collected - began:.0f} s, training {known:.0f} s", flush=True)
    probe = angle_probe(args, model, train, held_out)
    print(f"seed {seed}: probe R2 {probe}", flush=True)

    agent = planning_agent(args, model, at_rest, search(args.horizon), seed)
    inverse = fit_inverse_model(
        model, train, max_offset=args.goal_steps, updates=10 if args.quick else 3000, seed=seed
    )
    env = make_env(args)
    rng = np.random.default_rng(seed)
    policies: dict[str, Callable[[], Callable[[dict], np.ndarray]]] = {
        "random": lambda: lambda _: rng.uniform(-1, 1, env.action_space.shape).astype(np.float32),
        "inverse_model": lambda: lambda observation: inverse.predict(observation)[0],
        "agent": lambda: Driver(agent),
    }
    outcomes, seconds = {}, {}
    for name, make in policies.items():
        began = time.perf_counter()
        outcomes[name] = play(args, env, make)
        seconds[name] = time.perf_counter() - began
        print(f"seed {seed}: {name} {np.mean(outcomes[name]):.2f} in {seconds[name]:.0f} s", flush=True)
    env.close()
    steps = args.episodes * args.budget
    return {
        "success": {name: [int(success) for success in found] for name, found in outcomes.items()},
        "train_seconds": known,
        "plan_ms_per_action": 1e3 * max(0.0, seconds["agent"] - seconds["random"]) / steps,
        "probe_r2": probe,
    }


# -- data -------------------------------------------------------------------------------------------


def make_env(args: Args, max_episode_steps: int = 1000) -> gym.Env:
    """Drawn at 128 pixels and reduced by area, so that the thin arm stays visible between pixels; grey."""
    env = gym.make(
        args.env, observation="pixels", size=128, render="fast", max_episode_steps=max_episode_steps
    )
    return PixelObservation(env, size=64, frames=args.frames, grayscale=True)


class PoseReachingPolicy:
    """Scripted play: a noisy proportional-derivative controller from pose to random pose, without any goal.

    It reads the joints (angles and speeds) of the simulation, as a script may; the world model never does. A new
    pose is drawn every 25 steps on average, within two radians of the present one.

    Args:
        worlds: the dm_control environments it acts in; a joint per actuator.
    """

    def __init__(
        self, action: ActionSpec, worlds: Sequence[Any], gain: float = 2.0, damping: float = 0.2
    ) -> None:
        self.worlds, self.gain, self.damping = worlds, gain, damping
        self.noise = SmoothRandomPolicy(action, len(worlds), time_constant=8.0, std=0.3)
        self.poses: np.ndarray | None = None
        joints = worlds[0].physics.model
        limited = joints.jnt_limited.astype(bool)
        self.low, self.high = (
            np.where(limited, joints.jnt_range[:, i], (-np.inf, np.inf)[i]) for i in (0, 1)
        )

    def __call__(self, observations: Any, rng: np.random.Generator) -> np.ndarray:
        angles = np.stack([world.physics.position() for world in self.worlds])
        speeds = np.stack([world.physics.velocity() for world in self.worlds])
        fresh = np.clip(angles + rng.uniform(-2, 2, angles.shape), self.low, self.high)
        if self.poses is None:
            self.poses = fresh
        drawn = rng.random(len(angles)) < 1 / 25
        self.poses = np.where(drawn[:, None], fresh, self.poses)
        action = self.gain * (self.poses - angles) - self.damping * speeds + self.noise(observations, rng)
        return np.clip(action, -1, 1).astype(np.float32)


def scripted_policy(env: Any, worlds: Sequence[Any]) -> Policy:
    """Poses where every joint has an actuator of its own; smooth random actions otherwise."""
    action, joints = world_spec(env).action, worlds[0].physics.model
    if joints.nq == joints.nu == action.size:
        return PoseReachingPolicy(action, worlds)
    return SmoothRandomPolicy(action, len(worlds), time_constant=8.0)


def play_script(args: Args, path: Path, seed: int) -> EpisodeStore:
    there = len(EpisodeStore.open(path)) if (path / "store.json").exists() else 0
    if there >= args.train_episodes:
        return EpisodeStore.open(path)
    venv = gym.vector.SyncVectorEnv([partial(make_env, args, args.train_steps)] * 4)
    policy = scripted_policy(venv, [env.unwrapped for env in venv.envs])
    missing, first = args.train_episodes - there, 10_000 * seed + there
    store = collect(venv, path, policy=policy, episodes=missing, seed=first, extras=("qpos",))
    venv.close()
    return store


# -- model ------------------------------------------------------------------------------------------


def train_model(args: Args, train: Any, held_out: Any, out: Path, seed: int) -> tuple[WorldModel, nn.Module]:
    """Encoder and dynamics, then the dynamics alone, then the map to rest."""
    config, training, _ = preset("laptop", train.spec.with_block(args.block))
    config = replace(config, latent_dim=args.latent_dim, objective_options=OBJECTIVE)
    window = 2  # the second phase learns the longer rollouts
    training = replace(
        training, steps=args.updates, learning_rate=args.learning_rate, seed=seed, evaluate_every=1000
    )
    refining = replace(REFINE, steps=args.refine_updates, seed=seed)
    model = WorldModel(config)
    evaluate = world_model_evaluation(WindowSampler(held_out, window, args.block))
    fit(model, WindowSampler(train, window, args.block), training, out / "joint", evaluate=evaluate)
    refine_dynamics(model, train, out / "refined", steps=6, config=refining)
    return model, map_to_rest(args, model, train, out / "at_rest.safetensors", seed)


def map_to_rest(args: Args, model: WorldModel, train: Any, path: Path, seed: int) -> nn.Module:
    """Latents of moving pictures to the latent of their newest frame standing still; regression, no labels."""
    torch.manual_seed(seed)
    d = model.latent_dim
    network = nn.Sequential(nn.Linear(d, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, d))
    if path.exists():
        network.load_state_dict(load_tensors(path, ("at_rest",))[0])
        return network.requires_grad_(False)
    sampler, rng = WindowSampler(train, 1), np.random.default_rng(seed)
    channels = sampler.spec.pixels[0] // args.frames
    moving, resting = [], []
    with torch.no_grad():
        for _ in range(2 if args.quick else 120):
            pixels = sampler.sample(256, rng).pixels[:, 0]
            moving.append(model.encode(pixels))
            resting.append(model.encode(pixels[:, -channels:].repeat(1, args.frames, 1, 1)))
    x, y, updates = torch.cat(moving), torch.cat(resting), 20 if args.quick else 4000
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, updates)
    for _ in range(updates):
        rows = torch.from_numpy(rng.integers(len(x), size=512))
        loss = nn.functional.mse_loss(network(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"map to rest: error {loss.item():.4f}, variance {float(y.var(0).mean()):.4f}", flush=True)
    save_tensors(path, "at_rest", network.state_dict(), {})
    return network.requires_grad_(False)


def angle_probe(args: Args, model: WorldModel, train: Any, held_out: Any) -> list[float]:
    """R2 of sine and cosine of the joint angles: for reading only, no decision depends on it."""
    rng = np.random.default_rng(0)

    def labelled(episodes: Any, count: int) -> tuple[Tensor, Tensor]:
        sampler = WindowSampler(episodes, 1)
        windows = sampler.draw(count, rng)
        with torch.no_grad():
            parts = np.array_split(windows, 1 + count // 500)
            latents = torch.cat([model.encode(sampler.batch(part).pixels[:, 0]) for part in parts])
        angles = torch.from_numpy(sampler.extra("qpos", windows)[:, 0]).float()
        return latents, torch.cat([angles.sin(), angles.cos()], dim=1)

    generator = torch.Generator().manual_seed(0)
    probe = fit_mlp_probe(
        *labelled(train, 200 if args.quick else 8000), generator, steps=20 if args.quick else 2000
    )
    latents, truth = labelled(held_out, 100 if args.quick else 3000)
    return [round(value, 4) for value in r2_score(probe(latents), truth).tolist()]


def search(horizon: int) -> CEM:
    return CEM(horizon, samples=256, elites=26, iterations=6, init_std=1.0)


def planning_agent(
    args: Args,
    model: WorldModel,
    at_rest: nn.Module,
    planner: Planner,
    seed: int,
    reduce: Literal["sum", "last"] = "sum",
) -> MPCAgent:
    """Plans with held actions to where the picture would look like the goal, once at rest; ``reduce`` of GoalCost."""
    away = lambda latents, goal: (at_rest(latents) - goal).norm(dim=-1)  # noqa: E731
    cost = partial(GoalCost, reduce=reduce, distance=away)
    return MPCAgent(model, planner, cost=cost, hold=True, replan_every=args.replan_every, seed=seed)


# -- the protocol -----------------------------------------------------------------------------------


def play(args: Args, env: gym.Env, make_policy: Callable[[], Callable[[dict], np.ndarray]]) -> list[bool]:
    """The evaluation episodes, the same for every policy: whether each goal was reached within the budget."""
    results: list[bool] = []
    seed = TUNE if args.tune else REPORT
    while len(results) < args.episodes:
        found = play_one(args, env, make_policy(), seed)
        results += [] if found is None else [found]
        seed += 1
    return results


def play_one(args: Args, env: Any, act: Callable[[dict], np.ndarray], seed: int) -> bool | None:
    """One start and goal; None where the start is solved already."""
    world: Any = env.unwrapped
    policy, rng = scripted_policy(env, [world]), np.random.default_rng(seed)
    pixels, _ = env.reset(seed=seed)
    for _ in range(int(rng.integers(3, args.train_steps - args.goal_steps))):
        pixels, *_ = env.step(policy(None, rng)[0])
    start, start_stack = world.get_state(), pixels
    for _ in range(args.goal_steps):
        frame, _, _, _, info = env.step(policy(None, rng)[0])
    goal_angles, channels = info["qpos"], len(frame) // args.frames
    goal = np.tile(frame[-channels:], (args.frames, 1, 1))
    world.set_state(start)
    if reached(args, world.physics.position(), goal_angles):
        return None
    env._stack[:] = pixels = start_stack  # the frames that led to the start, too
    for _ in range(args.budget):
        pixels, _, _, _, info = env.step(act({"pixels": pixels, "goal": goal}))
        if reached(args, info["qpos"], goal_angles):
            return True
    return False


def reached(args: Args, angles: np.ndarray, goal: np.ndarray) -> bool:
    difference = np.abs((angles - goal + np.pi) % (2 * np.pi) - np.pi)
    return bool((difference < args.tolerance).all())


class Driver:
    """The planning agent as a function of one observation."""

    def __init__(self, agent: MPCAgent) -> None:
        self.agent, self.state = agent, None

    def __call__(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        start = np.array([self.state is None])
        action, self.state = self.agent.predict(observation, self.state, start)
        return action


if __name__ == "__main__":
    main(tyro.cli(Args))
