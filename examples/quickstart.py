"""Learn a world model of Two Rooms from pixels, without reward or labels, and plan through the door.

    python examples/quickstart.py

collect -> train -> diagnose -> plan, five minutes on two cores without AVX512. Writes runs/quickstart/: results.json,
plan.gif (what the agent sees, its goal, its imagined path), latent_map.png, model.safetensors, the episodes and
TensorBoard events. An interrupted run resumes where it stopped; --no-resume starts again.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import torch
import tyro
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from jepa_rl import EpisodeStore, WindowSampler, WorldModel, fit, preset, world_model_evaluation
from jepa_rl.agents import MPCAgent, TreeSearch, fit_inverse_model
from jepa_rl.costs import GoalCost
from jepa_rl.diagnostics import Probe, fit_linear_probe, fit_mlp_probe, r2_score, wilson_interval
from jepa_rl.dynamics import HeldActions
from jepa_rl.envs import GoalObservation, SmoothRandomPolicy, collect, world_spec
from jepa_rl.envs.worlds.two_rooms import TwoRoomsVectorEnv
from jepa_rl.envs.worlds.two_rooms_rules import TwoRoomsDynamics
from jepa_rl.files import open_run
from jepa_rl.progress import track
from jepa_rl.training.refine import REFINE, refine_dynamics
from jepa_rl.types import Cost, Planner

MAX_STEPS = 200  # environment steps that an episode may take
FIRST_LAYOUT = 1_000_000  # seeds of the evaluation's episodes start here, far from those of the training


@dataclass(frozen=True)
class Args:
    episodes: int = 50
    """Evaluation episodes, each with its own wall, door, start and goal."""
    train_episodes: int = 4000
    train_steps: int = 40
    """Environment steps of a training episode of random play."""
    updates: int = 4500
    """Joint updates of encoder and dynamics."""
    refine_updates: int = 5000
    """Updates of the dynamics alone, on latents of the frozen encoder."""
    block: int = 5
    """Environment steps in one latent step."""
    horizon: int = 12
    """Latent steps of a plan."""
    seed: int = 0
    resume: bool = True
    """Resume the run in the folder; --no-resume deletes it and starts again."""
    quick: bool = False
    """A little of everything, for a test run of seconds; its scores mean nothing."""
    out: Path = Path("runs/quickstart")


QUICK = dict(episodes=2, train_episodes=40, train_steps=30, updates=20, refine_updates=20, horizon=3)


@dataclass
class Outcome:
    """One episode: whether and when the goal was reached, and the seconds that choosing actions took."""

    success: bool
    steps: int
    seconds: float


def main(args: Args) -> None:
    args = replace(args, **QUICK) if args.quick else args
    open_run(args.out, asdict(args), resume=args.resume, free=("resume", "out"))
    torch.manual_seed(args.seed)
    clock = Clock(args.out / "seconds.json")
    with clock("collect"):
        store = random_play(args)
    train, held_out = store.split(0.1, seed=args.seed)
    with clock("train"):
        model = train_world_model(args, train, held_out)
    with clock("evaluate"):
        diagnosis, probe = diagnose(args, model, train, held_out)
        outcomes = evaluate(args, model, train)
        draw_plan(args, planning_agent(args, model), probe)
    report(args, outcomes, diagnosis, clock.seconds)


def evaluate(args: Args, model: WorldModel, train: Any) -> dict[str, list[Outcome]]:
    """Evaluates the agent and the baselines on the same episodes."""
    agent = planning_agent(args, model)
    inverse = fit_inverse_model(model, train, updates=100 if args.quick else 3000, seed=args.seed)
    board = SummaryWriter(str(args.out / "plan"))
    policies: dict[str, Callable[[gym.Env, int], Act]] = {
        "random": lambda env, _: lambda observation, start: env.action_space.sample(),
        "inverse_model": lambda env, _: lambda observation, start: inverse.predict(observation)[0],
        "oracle_dynamics": partial(oracle, args, agent.planner, agent.cost),
        "agent": lambda env, episode: Driver(agent, board, MAX_STEPS * episode),
    }
    outcomes = {name: play(args, make_policy, name) for name, make_policy in policies.items()}
    board.close()
    return outcomes


# -- collect ----------------------------------------------------------------------------------------


def random_play(args: Args) -> EpisodeStore:
    """Short episodes in many layouts; starts and goals are anywhere."""
    path, there = args.out / "episodes", 0
    if (path / "store.json").exists() and (there := len(EpisodeStore.open(path))) >= args.train_episodes:
        return EpisodeStore.open(path)
    venv = TwoRoomsVectorEnv(min(64, args.train_episodes), max_episode_steps=args.train_steps, start="any")
    policy = SmoothRandomPolicy(world_spec(venv).action, venv.num_envs, time_constant=8.0)
    missing, seed = args.train_episodes - there, 100_000 * args.seed + there
    return collect(venv, path, policy=policy, episodes=missing, seed=seed, extras=("position", "door"))


# -- train ------------------------------------------------------------------------------------------


def train_world_model(args: Args, train: Any, held_out: Any) -> WorldModel:
    """Trains encoder and dynamics together, then the dynamics alone, which learn the walls."""
    config, training, window = preset("laptop", train.spec.with_block(args.block))
    # Smaller batches than the presets': this world is learned as well with them, in less time.
    training = replace(
        training, steps=args.updates, batch_size=112, seed=args.seed, evaluate_every=max(1, args.updates // 9)
    )
    refining = replace(REFINE, steps=args.refine_updates, batch_size=72, seed=args.seed)
    if args.quick:
        training = replace(training, batch_size=16, log_every=5, evaluate_every=20)
        refining = replace(refining, batch_size=16, log_every=5)
    model = WorldModel(config)
    evaluate = world_model_evaluation(
        WindowSampler(held_out, window, args.block), extras=("position", "door")
    )
    joint, sampler = args.out / "joint", WindowSampler(train, window, args.block)
    fit(model, sampler, training, joint, evaluate=evaluate, progress="Joint training")
    refine_dynamics(
        model, train, args.out / "refined", steps=min(6, args.train_steps // args.block), config=refining
    )
    model.save(args.out / "model.safetensors")
    return model


# -- diagnose ---------------------------------------------------------------------------------------


def diagnose(args: Args, model: WorldModel, train: Any, held_out: Any) -> tuple[dict[str, Any], Probe]:
    """Probes of position and door on the latents; labels are used for these probes only."""
    rng, count = np.random.default_rng(args.seed), 300 if args.quick else 12_000
    latents, targets = labelled(model, WindowSampler(train, 1), count, rng)
    unseen, truth = labelled(model, WindowSampler(held_out, 1), count // 3, rng)
    generator = torch.Generator().manual_seed(args.seed)
    probe = fit_mlp_probe(latents, targets, generator, steps=50 if args.quick else 3000)
    linear = fit_linear_probe(latents, targets)
    found = world_model_evaluation(WindowSampler(held_out, 3, args.block), extras=("position", "door"))(model)
    found.figures["jepa/latent_map"].savefig(args.out / "latent_map.png", dpi=80)
    diagnosis = {
        "probe_r2": named(r2_score(probe(unseen), truth)),
        "linear_probe_r2": named(r2_score(linear(unseen), truth)),
        "effective_rank": found.metrics["jepa/effective_rank"],
        "rollout_error": [found.metrics[f"model/rollout_error_{k}"] for k in (1, 2, 3)],
        "alarm": found.alarm,
    }
    return diagnosis, probe


def labelled(model: WorldModel, sampler: WindowSampler, count: int, rng: np.random.Generator):
    """Latents and their (x, y, wall x, door y) in pixels."""
    windows = sampler.draw(count, rng)
    latents = [
        encode(model, sampler.batch(part).pixels[:, 0]) for part in np.array_split(windows, 1 + count // 500)
    ]
    columns = [sampler.extra(name, windows)[:, 0] for name in ("position", "door")]
    return torch.cat(latents), torch.from_numpy(np.concatenate(columns, axis=1))


@torch.no_grad()
def encode(model: WorldModel, pixels: torch.Tensor) -> torch.Tensor:
    return model.encode(pixels)


def named(r2: torch.Tensor) -> dict[str, float]:
    """The door has two coordinates, the wall's x and its own y: the worse one counts."""
    return {"x": float(r2[0]), "y": float(r2[1]), "door": float(r2[2:].min())}


# -- plan -------------------------------------------------------------------------------------------


def planning_agent(args: Args, model: WorldModel) -> MPCAgent:
    """Plans `horizon` held actions, executes one block of them, and plans again."""
    planner = TreeSearch(args.horizon)
    return MPCAgent(model, planner, cost=partial(GoalCost, reduce="last"), hold=True, seed=args.seed)


Act = Callable[[dict[str, np.ndarray], bool], np.ndarray]


def play(args: Args, make_policy: Callable[[gym.Env, int], Act], name: str = "a policy") -> list[Outcome]:
    """The evaluation episodes, one after the other: the same layouts, starts and goals for every policy."""
    env = GoalObservation(gym.make("jepa_rl/TwoRooms-v0", max_episode_steps=MAX_STEPS))
    outcomes = []
    for episode in track(range(args.episodes), f"Evaluating {name}", "episode"):
        observation, _ = env.reset(seed=FIRST_LAYOUT + episode)
        env.action_space.seed(episode)
        act, seconds, over = make_policy(env, episode), 0.0, False
        steps = 0
        while not over:
            began = time.perf_counter()
            action = act(observation, steps == 0)
            seconds += time.perf_counter() - began
            observation, _, terminated, truncated, _ = env.step(action)
            steps, over = steps + 1, terminated or truncated
        outcomes.append(Outcome(terminated, steps, seconds))
    return outcomes


class Driver:
    """The planning agent as a policy; writes metrics of its searches to TensorBoard."""

    def __init__(self, agent: MPCAgent, board: SummaryWriter, step: int) -> None:
        self.agent, self.board, self.step, self.state = agent, board, step, None

    def __call__(self, observation: dict[str, np.ndarray], start: bool) -> np.ndarray:
        before, began = self.agent.last_plan, time.perf_counter()
        action, self.state = self.agent.predict(observation, self.state, np.array([start]))
        plan = self.agent.last_plan
        if plan is not before:
            self.board.add_scalar("plan/ms", 1e3 * (time.perf_counter() - began), self.step)
            self.board.add_scalar("plan/cost", float(plan.cost), self.step)
            self.board.add_scalar("plan/spread", float(plan.candidate_costs.std()), self.step)
        self.step += 1
        return action


def oracle(args: Args, planner: Planner, cost: Callable[[Any], Cost], env: gym.Env, episode: int) -> Act:
    """The same search with the true simulator and distance: the limit of the search itself."""
    dynamics = HeldActions(TwoRoomsDynamics(args.block), args.block)
    generator = torch.Generator().manual_seed(episode)
    plan: list[np.ndarray] = []
    core, warm = env.unwrapped, None

    def act(observation: dict[str, np.ndarray], start: bool) -> np.ndarray:
        nonlocal warm
        if not plan:
            state = core.state  # type: ignore[attr-defined]
            now, goal = (
                torch.from_numpy(np.concatenate([xy, state.layout], axis=1)).float()
                for xy in (state.position, state.goal)
            )
            path = planner.plan(dynamics, cost(goal), now, warm, generator).actions
            warm = torch.cat([path[:, 1:], path[:, -1:]], dim=1)
            plan.extend([path[0, 0].numpy()] * args.block)
        return plan.pop(0)

    return act


# -- show -------------------------------------------------------------------------------------------


def draw_plan(args: Args, agent: MPCAgent, probe: Probe, episodes: int = 4, scale: int = 4) -> None:
    """plan.gif: the picture with its goal (green), the dot (red) and the predicted path (blue)."""
    env = GoalObservation(
        gym.make("jepa_rl/TwoRooms-v0", max_episode_steps=MAX_STEPS, render_mode="rgb_array")
    )
    movie = []
    for episode in range(1 if args.quick else episodes):
        observation, _ = env.reset(seed=FIRST_LAYOUT + episode)
        state, over, steps = None, False, 0
        while not over and steps < (10 if args.quick else MAX_STEPS):
            action, state = agent.predict(observation, state, np.array([steps == 0]))
            movie.append(with_path(env.render(), agent, probe, scale))
            observation, _, terminated, truncated, _ = env.step(action)
            steps, over = steps + 1, terminated or truncated
    first, *rest = [Image.fromarray(frame).quantize(32) for frame in movie[::2]]
    first.save(args.out / "plan.gif", save_all=True, append_images=rest, duration=80, loop=0)


def with_path(picture: np.ndarray, agent: MPCAgent, probe: Probe, scale: int) -> np.ndarray:
    picture = cv2.resize(picture, (64 * scale, 64 * scale), interpolation=cv2.INTER_AREA)
    path = probe(agent.last_plan.branches[0, 0])[:, :2].numpy()
    points = np.round((path + 0.5) * scale).astype(np.int32)
    return cv2.polylines(picture, [points[:, None]], False, (40, 90, 255), 1, cv2.LINE_AA)


class Clock:
    """Seconds of each stage, kept in a file for resumed runs."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began
        self.file.write_text(json.dumps(self.seconds))


def report(
    args: Args, outcomes: dict[str, list[Outcome]], diagnosis: dict[str, Any], seconds: dict[str, float]
) -> None:
    rates = {name: float(np.mean([outcome.success for outcome in found])) for name, found in outcomes.items()}
    agent = outcomes["agent"]
    results = {
        "success_rate": rates["agent"],
        "success_ci95": wilson_interval(sum(outcome.success for outcome in agent), len(agent)),
        "random_success_rate": rates["random"],
        "inverse_model_success_rate": rates["inverse_model"],
        "oracle_dynamics_success_rate": rates["oracle_dynamics"],
        "median_steps": float(np.median([outcome.steps for outcome in agent])),
        "episodes": args.episodes,
        **diagnosis,
        "collect_seconds": seconds["collect"],
        "train_seconds": seconds["train"],
        "plan_ms_per_action": 1e3 * sum(o.seconds for o in agent) / sum(o.steps for o in agent),
        "total_seconds": sum(seconds.values()),
        "seed": args.seed,
    }
    (args.out / "results.json").write_text(json.dumps(results, indent=2))
    low, high = results["success_ci95"]
    print(
        f"\nTwo Rooms, {args.episodes} unseen layouts, start and goal in different rooms, {MAX_STEPS} steps at most"
    )
    print(f"  random play               {rates['random']:.2f}")
    print(f"  inverse model             {rates['inverse_model']:.2f}")
    print(f"  planning in the latents   {rates['agent']:.2f}   (95% over layouts: {low:.2f} to {high:.2f})")
    print(f"  planning in the simulator {rates['oracle_dynamics']:.2f}")
    for name in ("probe_r2", "linear_probe_r2"):
        print(f"  {name:<26}" + ", ".join(f"{key} {value:.3f}" for key, value in results[name].items()))
    for name in ("effective_rank", "collect_seconds", "train_seconds", "plan_ms_per_action", "total_seconds"):
        print(f"  {name:<26}{results[name]:.1f}")
    print(f"wrote {args.out}/")


if __name__ == "__main__":
    main(tyro.cli(Args))
