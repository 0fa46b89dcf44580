"""Learning control from pixels within 100,000 frames: JEPAMPC beside Stable-Baselines3's SAC and random play.

    python benchmarks/dmc_pixels.py --tasks cartpole-swingup --methods sac_joint random --seeds 11 12 13
    python benchmarks/dmc_pixels.py --ray --seeds 11 12 13 14 15    # as many runs at once as there are cores
    python benchmarks/dmc_pixels.py --report
    python benchmarks/dmc_pixels.py --quick

Every run has the same environments and the same evaluation: 10 episodes with deterministic actions every 10,000
frames, from seeds that no training uses. Frames are environment steps: decisions times action repeat. An agent has one
setting for all tasks; discount and number of updates follow from action repeat and episode length by a rule
(``Task``). Pictures are dm_control's own but for tasks that are named fast.

Runs lie under ``--out``, one folder each, and go on after a kill: JEPAMPC exactly, SAC from its last evaluation. A
finished run is a small file of ``benchmarks/results/dmc_pixels`` with all its returns, and is not run again, so the
table may be filled by many calls, in any order and on several machines; ``--report`` collects what is finished. A
record tells the agent's settings, the commit and the code that made it; runs of different agents are not reported
together, and older records that do not tell are shown one by one. Score of a run: mean return of its last evaluation.
``docs/pixel_control.png`` shows curves of published agents beside ours, under their own names.

Methods, with DQN in place of SAC where actions are discrete: ``jepa_mpc``; ``sac_joint`` (``JEPASAC``); ``sac_drq``
(the same without what the world model learns, so that the agent's loss and random shifts are left, as in DrQ);
``ppo_joint`` (``JEPAPPO``, on discrete actions alone); ``sac_latents`` (on latents of a world model that was trained
on 10,000 frames of random play, which count, and then frozen); ``sac_grown`` (``grow`` in ten rounds); ``sac_pixels``
(Stable-Baselines3's with its CnnPolicy; SAC's as ``LeanCnnPolicy``, which learns the same sooner); ``sac_state`` (SAC
with JEPASAC's settings and critics, DQN with JEPADQN's); ``random``.
"""

import csv
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from _intervals import shown, summarise
from _record import (
    ROOT,
    code,
    commit,
    made_by,
    not_recorded,
    note_process,
    refuse_differences,
    refuse_unrecordable,
    trying,
    write_results,
)
from _sweep import run_cases
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import jepa_rl.envs
from jepa_rl import EpisodeStore, WindowSampler, WorldModel, fit, preset
from jepa_rl.agents import (
    JEPADQN,
    JEPAMPC,
    JEPAPPO,
    JEPASAC,
    DropoutDQNPolicy,
    DroQPolicy,
    EvaluationCallback,
    Grown,
    ResumableRun,
    grow,
    jepa_policy_kwargs,
    play_episodes,
)
from jepa_rl.agents.sb3.baselines import SHORT_DQN, LeanCnnPolicy, SaveAtEvaluation, load_saved
from jepa_rl.agents.sb3.jepa_mpc import jepa_mpc_preset
from jepa_rl.agents.sb3.jepa_mpc.resume import settings_of
from jepa_rl.agents.sb3.joint.algorithms import SAC_SETTINGS
from jepa_rl.agents.sb3.whole_episodes import WholeEpisodes
from jepa_rl.envs import ActionRepeat, LatentObservation, PixelObservation, collect
from jepa_rl.files import write_atomic
from jepa_rl.memory import keep_freed_memory

matplotlib.use("Agg")
import matplotlib.pyplot as plt

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole draws with SDL; no window is needed

RECORDS = ROOT / "benchmarks/results/dmc_pixels"
# Of the first evaluation episode; training draws its seeds of 31 bits from the run's own.
EVALUATION_SEED = 3_000_000
RANDOM_FRAMES = 10_000  # of random play for the frozen world model
PPO_ENVS = 8
# Rollouts as long as Stable-Baselines3's from one environment.
PPO_SETTINGS: dict[str, Any] = {"n_steps": 2048 // PPO_ENVS}
QUICK = {"frames": 600, "evaluate_every": 300, "episodes": 2}
METHODS = (
    "jepa_mpc", "sac_joint", "sac_drq", "ppo_joint", "sac_latents", "sac_grown", "sac_pixels", "sac_state",
    "random",
)  # fmt: skip
BLIND = ("sac_state", "random")  # look at no pictures: one record for both looks
CURVES = ROOT / "docs/pixel_control.png"
LABELS = {
    "jepa_mpc": "JEPAMPC from pixels",
    "sac_joint": "JEPASAC or JEPADQN from pixels",
    "sac_drq": "... without what the world model learns",
    "ppo_joint": "JEPAPPO from pixels",
    "sac_pixels": "SAC or DQN from pixels",
    "sac_latents": "... on frozen latents",
    "sac_grown": "... on latents that grow with it",
    "sac_state": "... from state",
    "random": "random actions",
}
# Of published curves that are drawn, and of published agents with our action repeats.
STYLES = {
    "drqv2 (pixels)": ":",
    "dreamerv3 (pixels)": "-.",
    "mrq (pixels)": (0, (5, 1)),
    "tdmpc2 (state)": "--",
}
MARKERS = {"DrQ": "v", "MLR": "s", "PSRL": "D", "ResAct": "^"}


@dataclass(frozen=True)
class Task:
    """An environment, how often an action is repeated (PlaNet's choice), and what follows from that."""

    env_id: str
    repeat: int
    frames: int = 100_000
    length: int = 1_000
    """Frames of an episode."""
    fast: bool = False
    """The library's fast look in place of dm_control's own."""

    @property
    def decisions(self) -> int:
        return self.frames // self.repeat

    @property
    def gamma(self) -> float:
        """A tenth of an episode is looked ahead, and 33 decisions at least."""
        return round(1 - 1 / max(33, self.length / self.repeat / 10), 2)

    @property
    def rhythm(self) -> dict[str, int]:
        """One update for every four frames."""
        return {"train_freq": max(1, 4 // self.repeat), "gradient_steps": max(1, self.repeat // 4)}


SWINGUP, REACHER = Task("dmc/cartpole-swingup-v0", 8), Task("dmc/reacher-easy-v0", 4)
TASKS = {
    "cartpole-swingup": SWINGUP,
    "reacher-easy": REACHER,
    "ball_in_cup-catch": Task("dmc/ball_in_cup-catch-v0", 4),
    "finger-spin": Task("dmc/finger-spin-v0", 2),
    "walker-walk": Task("dmc/walker-walk-v0", 2),
    "CartPole-v1": Task("CartPole-v1", 1, frames=50_000, length=500),
    "Pendulum-v1": Task("Pendulum-v1", 1, frames=20_000, length=200),
    "cartpole-swingup-fast": replace(SWINGUP, fast=True),
    "reacher-easy-fast": replace(REACHER, fast=True),
}


@dataclass(frozen=True)
class Args:
    tasks: tuple[str, ...] = ("cartpole-swingup", "reacher-easy", "ball_in_cup-catch", "CartPole-v1")
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (11, 12, 13)
    """Of training; settings were chosen on 0, 10 and 100, 1 to 5 were looked at meanwhile, and a defect was sought on
    14."""
    preset: str = "laptop"
    """Of JEPAMPC."""
    frames: int | None = None
    """Of training; the task's own number if None."""
    evaluate_every: int = 10_000
    """Frames."""
    episodes: int = 10
    device: str = "auto"
    out: Path = Path("runs/dmc_pixels")
    report: bool = False
    """Train nothing; collect what is finished."""
    ray: bool = False
    """Run every training in a process of its own, on Ray."""
    address: str | None = None
    """With --ray: of a cluster, whose machines all see this checkout and the folder; this machine alone if None."""
    quick: bool = False
    """Every method for a moment, on CartPole-v1, which needs no OpenGL."""


def main(args: Args) -> None:
    keep_freed_memory()  # for every method, as JEPAMPC does by itself
    if args.quick:
        shutil.rmtree(args.out / "quick", ignore_errors=True)
        args = replace(
            args,
            tasks=("CartPole-v1",),
            seeds=(0,),
            out=args.out / "quick",
            **QUICK,
        )
    if not (args.report or not_counted(args)):
        refuse_unrecordable()
    # All methods of one seed before the next seed.
    cases = [(name, method, seed) for name in args.tasks for seed in args.seeds for method in args.methods]
    if args.ray and not args.report:
        run_cases("dmc_pixels", args, cases, address=args.address)
    for case in () if args.ray or args.report else cases:
        run(args, *case)
    results = collect_results(args)
    draw(args, results)
    print_table(results)
    quick = not_counted(args) and not trying()
    print(write_results("dmc_pixels", {"results": results}, quick=quick, collected=True))


# -- environments -----------------------------------------------------------------------------------


def make_state(task: Task) -> gym.Env:
    return _paced(gym.make(task.env_id), task)


def make_pixels(task: Task, keep_state: bool = False) -> gym.Env:
    """Three stacked 64 x 64 pictures of the last three decisions; only these are drawn."""
    look = {"render": "fast", "render_size": 64} if task.fast else {}
    env = gym.make(task.env_id, render_mode="rgb_array", **look)
    return PixelObservation(_paced(env, task), size=64, frames=3, keep_state=keep_state)


def make_latents(task: Task, world: Path | WorldModel) -> gym.Env:
    return LatentObservation(make_pixels(task), world)


def _paced(env: gym.Env, task: Task) -> gym.Env:
    return ActionRepeat(env, task.repeat) if task.repeat > 1 else env


def is_discrete(task: Task) -> bool:
    env = make_state(task)
    env.close()
    return isinstance(env.action_space, gym.spaces.Discrete)


# -- runs -------------------------------------------------------------------------------------------


def run(args: Args, name: str, method: str, seed: int) -> None:
    """One training, to its end; nothing if it is finished."""
    task, folder = TASKS[name], args.out / name / method / f"seed_{seed}"
    record = folder_of_records(args, name, method) / f"seed_{seed}.json"
    if args.frames is not None:
        task = replace(task, frames=args.frames)
    if record.exists():
        asked: dict[str, Any] = {"preset": args.preset} if method == "jepa_mpc" else {}
        refuse_unlike(args, folder, asked | {"frames": task.frames}, finished=True)
        return
    if method == "ppo_joint" and not is_discrete(task):
        return
    print(f"{name}, {method}, seed {seed}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    own = {"jepa_mpc": run_jepa_mpc, "sac_grown": run_grown, "random": run_random}
    runner = own.get(method, partial(run_sb3, method))
    processes = note_process(folder)
    facts = {
        "frames": task.frames,
        "action_repeat": task.repeat,
        "train_episode_frames": None,  # whole episodes
        "render": "fast" if task.fast else "default",
        **processes[-1],
        "processes": processes,
    }
    facts |= {"before": {"frames": 0, "seconds": 0.0}} | runner(args, task, folder, seed)
    curve = json.loads((folder / "curve.json").read_text())
    for entry in curve:
        entry["returns"] = [round(value, 3) for value in entry["returns"]]
    if not not_counted(args) and (missing := not_recorded(facts)):
        raise SystemExit(f"{record} would not tell {missing} and is not written; {folder} keeps the run")
    record.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(record, json.dumps(facts | {"curve": curve}).encode())
    for used in ("run/episodes", "saved", "episodes", "grown/episodes"):  # gigabytes, needed only to go on
        shutil.rmtree(folder / used, ignore_errors=True)


def records(args: Args) -> Path:
    """Where finished runs are kept; of changed budgets apart from those that count."""
    return args.out / "records" if not_counted(args) else RECORDS


def folder_of_records(args: Args, name: str, method: str) -> Path:
    return records(args) / (name.removesuffix("-fast") if method in BLIND else name) / method


def not_counted(args: Args) -> bool:
    """Whether this is a try with another budget or evaluation than the task's own."""
    own = Args()
    budget = (args.frames, args.evaluate_every, args.episodes)
    return args.quick or trying() or budget != (own.frames, own.evaluate_every, own.episodes)


def refuse_unlike(args: Args, folder: Path, facts: dict[str, Any], finished: bool = False) -> None:
    """Before hours are spent: runs of one task and method are reported together, so they must be of one kind.

    ``finished``: the run is there already, so that the code of today is not its own.

    Raises:
        SystemExit: if a finished run differs in ``facts`` or in its code.
    """
    now = {} if finished else {"code": code(), "commit": commit()}
    name, method = folder.parts[-3:-1]
    for path in folder_of_records(args, name, method).glob("seed_*.json"):
        there = json.loads(path.read_text())
        told = [name for name in facts if name != "agent" or name in there]  # older records do not tell it
        unlike = {name: (there.get(name), facts[name]) for name in told if there.get(name) != facts[name]}
        if unlike:
            raise SystemExit(
                f"{path} is another kind of run (there, here): {unlike}; move the old records, and "
                f"their folders under {args.out}, away first"
            )
        try:
            refuse_differences([there, now], (), path)
        except ValueError as error:
            raise SystemExit(str(error)) from error


def evaluation(args: Args, task: Task, folder: Path, make: Callable[[], gym.Env]) -> EvaluationCallback:
    every = max(1, args.evaluate_every // task.repeat)
    return EvaluationCallback(make, every, args.episodes, EVALUATION_SEED, folder / "curve.json")


def make_jepa_mpc(args: Args, task: Task, folder: Path, seed: int, **changes: dict[str, Any]) -> JEPAMPC:
    """The preset's agent; ``changes``: of the ``world``, of ``control`` and of the ``search``."""
    settings = jepa_mpc_preset(args.preset)
    policy = settings["policy_kwargs"] | changes.get("search", {})
    policy["world"] = policy.get("world", {}) | changes.get("world", {})
    policy["control"] = replace(policy["control"], **changes.get("control", {}))
    return JEPAMPC(
        "CnnPolicy", make_pixels(task), seed=seed, gamma=task.gamma, device=args.device,
        buffer_size=task.decisions + 1000, learning_starts=min(500, task.decisions // 4),
        tensorboard_log=str(folder / "tensorboard"), **task.rhythm, **settings | {"policy_kwargs": policy},
    )  # fmt: skip


def run_jepa_mpc(args: Args, task: Task, folder: Path, seed: int) -> dict[str, Any]:
    model = make_jepa_mpc(args, task, folder, seed)
    n_step = list(model.n_step) if isinstance(model.n_step, tuple) else model.n_step  # as JSON has it
    facts = {"preset": args.preset, "n_step": n_step, "device": str(model.device), "observations": "pixels"}
    facts["agent"] = settings_of(model) | {"seed": None}
    refuse_unlike(args, folder, facts)
    checkpoints = ResumableRun(folder / "run", every=max(50, task.decisions // 20))
    curve = evaluation(args, task, folder, partial(make_pixels, task))
    model.learn(task.decisions, callback=[checkpoints, curve])
    return facts


def run_sb3(method: str, args: Args, task: Task, folder: Path, seed: int) -> dict[str, Any]:
    """An agent of Stable-Baselines3, or one of this library's that is made like them."""
    decisions, make = task.decisions, partial(make_pixels, task)
    if method == "sac_latents":
        world, used = frozen_world_model(args, task, folder, seed)
        decisions, make = decisions - used, partial(make_latents, task, world)
    elif method == "sac_state":
        make = partial(make_state, task)
    algorithm, policy, settings = agent_of(method, task)
    if issubclass(algorithm, OffPolicyAlgorithm):
        # A row of a joint agent's replay is a state: one more for each episode.
        more = 1000 if issubclass(algorithm, WholeEpisodes) else 0
        settings |= {"learning_starts": min(500, decisions // 4), "buffer_size": decisions + more}
    train = make_vec_env(make, PPO_ENVS if issubclass(algorithm, PPO) else 1, seed=seed)
    saved = SaveAtEvaluation.newest(folder / "saved")
    model: BaseAlgorithm = (
        load_saved(algorithm, saved, train, args.device, trust=True)  # of this benchmark's own run
        if saved
        else algorithm(policy, train, gamma=task.gamma, device=args.device, seed=seed, **settings)
    )
    seen = "state" if method == "sac_state" else "pixels"
    facts = {"preset": algorithm.__name__, "device": str(model.device), "observations": seen}
    # As JSON has it; classes go by their names.
    told = settings | learning_of(model) | {"gamma": task.gamma, "policy": policy}
    facts["agent"] = json.loads(json.dumps(told, default=name_of))
    refuse_unlike(args, folder, facts)
    model.tensorboard_log = str(folder / "tensorboard")
    curve = evaluation(args, task, folder, make)
    left = max(0, decisions - model.num_timesteps)
    callbacks = [curve, SaveAtEvaluation(curve, folder / "saved")]
    model.learn(left, callback=callbacks, reset_num_timesteps=model.num_timesteps == 0)
    if method == "sac_latents":
        facts["before"] = json.loads((folder / "before.json").read_text())
    return facts


def agent_of(method: str, task: Task) -> tuple[type[BaseAlgorithm], Any, dict[str, Any]]:
    """Algorithm, policy and settings of a method, the same for all tasks."""
    discrete, joint = is_discrete(task), {"policy_kwargs": jepa_policy_kwargs()}
    if method == "ppo_joint":
        return JEPAPPO, "CnnPolicy", PPO_SETTINGS | joint
    if method in ("sac_joint", "sac_drq"):
        if method == "sac_drq":
            joint = {"policy_kwargs": jepa_policy_kwargs(weight=0)}
        return (JEPADQN, "CnnPolicy", joint) if discrete else (JEPASAC, "CnnPolicy", task.rhythm | joint)
    if discrete:
        return DQN, "CnnPolicy" if method == "sac_pixels" else DropoutDQNPolicy, dict(SHORT_DQN)
    if method == "sac_pixels":
        return SAC, LeanCnnPolicy, task.rhythm
    return SAC, DroQPolicy, task.rhythm | SAC_SETTINGS


def learning_of(model: BaseAlgorithm) -> dict[str, Any]:
    """How an agent learns, its algorithm's own defaults included; rates at the start, in the middle and at the end."""
    names = ("batch_size", "tau", "n_steps", "ent_coef", "gradient_steps")
    found = {name: getattr(model, name) for name in names if hasattr(model, name)}
    return found | {"learning_rate": [model.lr_schedule(left) for left in (1.0, 0.5, 0.0)]}


def name_of(part: Any) -> Any:
    """Of a class; of a model, its configuration; a configuration itself."""
    if isinstance(part, WorldModel):
        return str(part.config)
    if is_dataclass(part) and not isinstance(part, type):
        return asdict(part)
    return getattr(part, "__name__", type(part).__name__)


def frozen_world_model(args: Args, task: Task, folder: Path, seed: int) -> tuple[Path, int]:
    """A world model of random play, and how many decisions that took."""
    used = (200 if args.quick else RANDOM_FRAMES) // task.repeat // 4
    path, started = folder / "world_model", time.perf_counter()
    if not (path / "model.safetensors").exists():
        shutil.rmtree(folder / "episodes", ignore_errors=True)
        sampler = WindowSampler(random_play(task, folder / "episodes", 4 * used, seed), steps=3)
        torch.manual_seed(seed)
        settings = preset("agent", sampler.spec)
        train = replace(settings.train, seed=seed, steps=20 if args.quick else settings.train.steps)
        fit(WorldModel(settings.model).to(_device(args)), sampler, train, path, progress=False)
        spent = {"frames": 4 * used * task.repeat, "seconds": time.perf_counter() - started}
        write_atomic(folder / "before.json", json.dumps(spent).encode())
    return path / "model.safetensors", 4 * used


def random_play(task: Task, folder: Path, decisions: int, seed: int) -> EpisodeStore:
    """Random play in four environments, for a world model that learns without reward."""
    venv = gym.vector.SyncVectorEnv([partial(make_pixels, task)] * 4)
    store = collect(venv, folder, steps=decisions, seed=seed)
    venv.close()
    return store


def run_grown(args: Args, task: Task, folder: Path, seed: int) -> dict[str, Any]:
    """With as many updates of the agent as elsewhere, beside those of the world model."""
    rounds, discrete, began = 10, is_discrete(task), time.perf_counter()
    counts = {
        "steps": task.decisions // rounds,
        "updates": max(1, task.frames // 20 // rounds),
        "gradient_steps": task.frames // 4 // rounds,
    }
    settings = {"gamma": task.gamma}
    facts: dict[str, Any] = {"device": "cpu", "observations": "pixels"}
    facts |= {"preset": "DQN" if discrete else "SAC", "agent": counts | settings | {"rounds": rounds}}
    refuse_unlike(args, folder, facts)
    curve = folder / "curve.json"
    earlier = json.loads(curve.read_text()) if curve.exists() else []
    before = earlier[-1]["seconds"] if earlier else 0.0

    def evaluate(grown: Grown) -> dict[str, float]:
        there = json.loads(curve.read_text())[: len(grown.rounds)] if curve.exists() else []
        seeds = [EVALUATION_SEED + i for i in range(args.episodes)]
        played = play_episodes(grown.agent, partial(make_latents, task, grown.world), seeds)
        entry = {
            "step": grown.store.num_steps, "returns": played.returns.tolist(), "lengths": played.lengths.tolist(),
            "seconds": before + time.perf_counter() - began,
        }  # fmt: skip
        write_atomic(curve, json.dumps([*there, entry]).encode())
        return {"mean_return": float(played.returns.mean())}

    venv = gym.vector.SyncVectorEnv([partial(make_pixels, task)])
    grown = grow(
        venv, collect, folder / "grown", rounds=rounds, **counts, settings=settings, after_round=evaluate, seed=seed,
        progress=False,
    )  # fmt: skip
    venv.close()
    return facts | {"learning": learning_of(grown.agent)}


def run_random(args: Args, task: Task, folder: Path, seed: int) -> dict[str, Any]:
    env, returns = make_state(task), []
    env.action_space.seed(seed)
    for episode in range(args.episodes):
        env.reset(seed=EVALUATION_SEED + episode)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    curve = [{"step": 0, "returns": returns, "lengths": [], "seconds": 0.0}]
    write_atomic(folder / "curve.json", json.dumps(curve).encode())
    return {"preset": "random", "device": "cpu", "observations": "none", "agent": {"actions": "random"}}


def _device(args: Args) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device


# -- results ----------------------------------------------------------------------------------------


def collect_results(args: Args) -> dict[str, dict[str, Any]]:
    """All finished runs: task -> method -> figures."""
    results: dict[str, dict[str, Any]] = {}
    for name in TASKS:
        for method in METHODS:
            paths = sorted(folder_of_records(args, name, method).glob("seed_*.json"))
            if paths:
                results.setdefault(name, {})[method] = summary(paths)
    return results


def summary(paths: list[Path]) -> dict[str, Any]:
    """Figures of one task and method. The x-axis of a curve is frames, random play for a world model included."""
    runs = [json.loads(path.read_text()) for path in paths]
    curves = [run["curve"] for run in runs]
    last = [np.array(curve[-1]["returns"]) for curve in curves]
    points = min(len(curve) for curve in curves)
    same = ("frames", "preset", "action_repeat", "train_episode_frames", "render", "observations", "device")
    same += ("n_step",) if "n_step" in runs[0] else ()  # JEPAMPC's alone
    refuse_differences(runs, same, paths[0].parent)
    made, figures = made_by(runs), summarise(last)
    if made["not_recorded"] and len(runs) > 1:  # they may be of different agents
        figures |= {"mean": None, "ci95": None}
    return {
        **figures,
        "seeds": [int(path.stem.removeprefix("seed_")) for path in paths],
        "wall_seconds": [
            run["before"]["seconds"] + curve[-1]["seconds"] for run, curve in zip(runs, curves, strict=True)
        ],
        **{key: runs[0][key] for key in same},
        "threads": [run["threads"] for run in runs],
        **made,
        "curve": {
            "frames": [
                runs[0]["before"]["frames"] + curves[0][i]["step"] * runs[0]["action_repeat"]
                for i in range(points)
            ],
            "mean_return_per_seed": [
                [float(np.mean(c[i]["returns"])) for i in range(points)] for c in curves
            ],
        },
    }


def published(name: str) -> dict[str, list[tuple[float, float]]]:
    """Curves of published agents up to 200,000 frames: "drqv2 (pixels)" -> [(frames, mean return)]."""
    curves: dict[str, list[tuple[float, float]]] = {}
    task = published_name(name)
    with (ROOT / "benchmarks/data/dmc_curves.csv").open() as file:
        for row in csv.DictReader(file):
            if row["task"] == task and float(row["env_frames"]) <= 200_000:
                label = f"{row['method']} ({row['obs']})"
                curves.setdefault(label, []).append((float(row["env_frames"]), float(row["mean"])))
    return curves


def published_at_100k(name: str) -> dict[str, tuple[float, float]]:
    """Agents with our action repeats and look: method -> mean and standard deviation over seeds."""
    task = published_name(name)
    with (ROOT / "benchmarks/data/dmc_100k.csv").open() as file:
        cells = {row["method"]: row.get(task) for row in csv.DictReader(file) if row["kind"] == "pixels"}
    pairs = {method: cell.split("±") for method, cell in cells.items() if cell}
    return {method: (float(mean), float(spread)) for method, (mean, spread) in pairs.items()}


def published_name(name: str) -> str:
    """Of a task, in the files of published figures; theirs are never in the fast look."""
    return name.replace("ball_in_", "")


def draw(args: Args, results: dict[str, dict[str, Any]]) -> None:
    """Our runs in colour (every seed, and their mean where all are of one agent), published ones in grey."""
    if not results:
        return
    figure, axes = plt.subplots(1, len(results), figsize=(5 * len(results), 4.6), squeeze=False)
    lines: dict[str, Any] = {}
    for axis, (name, methods) in zip(axes[0], results.items(), strict=True):
        end = TASKS[name].frames
        for label, points in published(name).items():
            style = STYLES.get(label)
            if style and points[0][0] < end:
                line = axis.plot(*zip(*points, strict=True), color="gray", linestyle=style)[0]
                lines[f"{label}, published"] = line
        at_100k = published_at_100k(name)
        for place, (label, marker) in enumerate(MARKERS.items()):
            if label in at_100k:  # side by side, beyond the end of the curves
                mean, spread = at_100k[label]
                style = {"color": "gray", "marker": marker, "linestyle": "", "capsize": 2}
                lines[f"{label}, published"] = axis.errorbar(
                    end * (1.03 + 0.03 * place), mean, spread, **style
                )
        for number, method in enumerate(LABELS):
            if method not in methods:
                continue
            found, label, colour = methods[method], LABELS[method], f"C{number}"
            if method == "random":
                lines[label] = axis.axhline(found["mean"], color="black", linewidth=0.7)
                continue
            frames, returns = found["curve"]["frames"], np.array(found["curve"]["mean_return_per_seed"])
            alone = found["mean"] is None or len(returns) == 1
            style: dict[str, Any] = {"marker": "."} if alone else {"alpha": 0.4}
            lines[label] = axis.plot(frames, returns.T, color=colour, linewidth=0.9, **style)[0]
            if not alone:
                lines[label] = axis.plot(frames, returns.mean(0), marker=".", color=colour)[0]
        axis.set(title=name, xlabel="frames", ylabel="return", xlim=(0, end * 1.15))
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    ours = [label for label in LABELS.values() if label in lines]
    order = [*ours, *(label for label in lines if label not in ours)]
    figure.legend([lines[label] for label in order], order, loc="lower center", ncols=5, frameon=False)
    path = args.out / "curves.png" if not_counted(args) else CURVES
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def print_table(results: dict[str, dict[str, Any]]) -> None:
    for name, methods in results.items():
        for method, found in methods.items():
            minutes = ", ".join(f"{seconds / 60:.0f}" for seconds in found["wall_seconds"])
            missing = f"  not recorded: {', '.join(found['not_recorded'])}" if found["not_recorded"] else ""
            score = shown(found, pooled=not missing)
            print(f"{name:<18} {method:<19} {score}  seeds {found['seeds']}  {minutes} min{missing}")


if __name__ == "__main__":
    jepa_rl.envs.register_envs()
    main(tyro.cli(Args))
