"""Learning control from pixels within 100,000 frames: JEPAMPC beside Stable-Baselines3's SAC and random play.

    python benchmarks/dmc_pixels.py --tasks cartpole-swingup --methods jepa_mpc random --seeds 14 15 16
    python benchmarks/dmc_pixels.py --ray --seeds 14 15 16 17 18    # as many runs at once as there are cores
    python benchmarks/dmc_pixels.py --report
    python benchmarks/dmc_pixels.py --quick

Every run has the same environments and the same evaluation: 10 episodes with deterministic actions every 10,000
frames, from seeds that no training uses. Frames are environment steps: decisions times action repeat. Runs lie under
``--out``, one folder each, and go on after a kill: JEPAMPC exactly, SAC from its last evaluation. A finished run is a
small file of ``benchmarks/results/dmc_pixels`` with all its returns, and is not run again, so the table may be filled
by many calls, in any order and on several machines; ``--report`` collects what is finished. A record tells the agent's
settings, the commit and the code that made it; runs of different agents are not reported together, and older records
that do not tell are shown one by one. Score of a run: mean return of its last evaluation.
``docs/pixel_control.png`` shows curves of published agents beside ours, under their own names.

Methods: ``jepa_mpc``; ``sac_latents`` (SAC on latents of a world model that was trained on 10,000 frames of random
play, which count, and then frozen); ``sac_online_latents`` (the world model goes on learning from SAC's replay);
``sac_pixels`` (CnnPolicy; SAC's as ``LeanCnnPolicy``, which learns the same sooner); ``sac_state``; ``random``.
Discrete tasks have DQN in place of SAC.
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
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import jepa_rl.envs
from jepa_rl import EpisodeStore, WindowSampler, WorldModel, fit, preset
from jepa_rl.agents import JEPADQN, JEPAMPC, JEPASAC, ResumableRun, jepa_policy_kwargs
from jepa_rl.agents.evaluation import EvaluationCallback
from jepa_rl.agents.sb3.baselines import SHORT_DQN, LeanCnnPolicy, SaveAtEvaluation, load_saved
from jepa_rl.agents.sb3.jepa_mpc import jepa_mpc_preset
from jepa_rl.agents.sb3.jepa_mpc.resume import settings_of
from jepa_rl.agents.sb3.online import LatentReplayBuffer, OnlineWorldModel, latent_policy_kwargs, world_of
from jepa_rl.envs import ActionRepeat, LatentObservation, PixelObservation, collect, world_spec
from jepa_rl.files import write_atomic
from jepa_rl.memory import keep_freed_memory

matplotlib.use("Agg")
import matplotlib.pyplot as plt

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole draws with SDL; no window is needed

RECORDS = ROOT / "benchmarks/results/dmc_pixels"
# Of the first evaluation episode; training draws its seeds of 31 bits from the run's own.
EVALUATION_SEED = 3_000_000
RANDOM_FRAMES = 10_000  # of random play for the frozen world model
QUICK = {"frames": 600, "evaluate_every": 300, "episodes": 2}
METHODS = ("jepa_mpc", "sac_joint", "sac_latents", "sac_online_latents", "sac_pixels", "sac_state", "random")
CURVES = ROOT / "docs/pixel_control.png"
LABELS = {
    "jepa_mpc": "JEPAMPC from pixels",
    "sac_joint": "JEPASAC or JEPADQN from pixels",
    "sac_pixels": "SAC or DQN from pixels",
    "sac_latents": "... on frozen latents",
    "sac_online_latents": "... on latents that go on learning",
    "sac_state": "... from state",
    "random": "random actions",
}
# Of published curves that are drawn.
STYLES = {
    "drqv2 (pixels)": ":", "dreamerv3 (pixels)": "-.", "tdmpc2 (pixels)": (0, (5, 1)), "tdmpc2 (state)": "--",
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """An environment, how often an action is repeated (PlaNet's choice), and what its length asks for."""

    env_id: str
    repeat: int
    gamma: float
    frames: int = 100_000
    updates: int = 1
    """Of JEPAMPC, per decision."""
    every: int = 1
    """Decisions between updates of JEPAMPC."""
    length: int | None = None
    """Frames after which an episode of training is cut off, for every method; evaluation plays whole episodes."""
    keypoints: int = 0
    """That JEPAMPC reads a picture by; the preset's convolutions if 0."""
    preset: str = "laptop"
    """Of JEPAMPC."""


TASKS = {
    # With the preset laptop 752 in the mean of three seeds instead of 825.
    "cartpole-swingup": Task("dmc/cartpole-swingup-v0", 8, 0.97, updates=2, preset="wide"),
    "cartpole-balance": Task("dmc/cartpole-balance-v0", 8, 0.97, updates=2),
    # A hundred episodes of 1,000 frames would show a hundred targets, and targets are what has to be generalised over:
    # more of them, and an encoder that says where the few things in the picture are.
    "reacher-easy": Task("dmc/reacher-easy-v0", 4, 0.97, length=250, keypoints=16),
    "ball_in_cup-catch": Task("dmc/ball_in_cup-catch-v0", 4, 0.97),
    "finger-spin": Task("dmc/finger-spin-v0", 2, 0.98),
    "walker-walk": Task("dmc/walker-walk-v0", 2, 0.98),
    "CartPole-v1": Task("CartPole-v1", 1, 0.98, frames=50_000, every=4),
}


@dataclass(frozen=True)
class Args:
    tasks: tuple[str, ...] = ("cartpole-swingup", "reacher-easy", "CartPole-v1")
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (14, 15, 16)
    """Of training; JEPAMPC's settings were chosen on 0, 10 and 100, 1 to 5 were looked at meanwhile, and a defect was
    sought on 14."""
    preset: str | None = None
    """Of JEPAMPC; the task's own if None."""
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


def make_state(task: Task, training: bool = False) -> gym.Env:
    return _paced(gym.make(task.env_id), task, training)


def make_pixels(task: Task, training: bool = False, keep_state: bool = False) -> gym.Env:
    """Three stacked 64 x 64 pictures of the last three decisions; only these are drawn."""
    look = {"render": "fast", "render_size": 64} if task.env_id.startswith("dmc/") else {}
    env = gym.make(task.env_id, render_mode="rgb_array", **look)
    return PixelObservation(_paced(env, task, training), size=64, frames=3, keep_state=keep_state)


def make_latents(task: Task, world: Path, training: bool = False) -> gym.Env:
    return LatentObservation(make_pixels(task, training), str(world))


def _paced(env: gym.Env, task: Task, training: bool) -> gym.Env:
    if task.repeat > 1:
        env = ActionRepeat(env, task.repeat)
    if training and task.length is not None:
        env = gym.wrappers.TimeLimit(env, task.length // task.repeat)
    return env


def is_discrete(task: Task) -> bool:
    env = make_state(task)
    env.close()
    return isinstance(env.action_space, gym.spaces.Discrete)


# -- runs -------------------------------------------------------------------------------------------


def run(args: Args, name: str, method: str, seed: int) -> None:
    """One training, to its end; nothing if it is finished."""
    task, folder = TASKS[name], args.out / name / method / f"seed_{seed}"
    record = records(args) / name / method / f"seed_{seed}.json"
    if args.frames is not None:
        task = replace(task, frames=args.frames)
    if record.exists():
        asked: dict[str, Any] = {"preset": preset_of(args, task)} if method == "jepa_mpc" else {}
        refuse_unlike(args, folder, asked | {"frames": task.frames}, finished=True)
        return
    print(f"{name}, {method}, seed {seed}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    decisions = task.frames // task.repeat
    runner = {"jepa_mpc": run_jepa_mpc, "random": run_random}.get(method, partial(run_sac, method))
    processes = note_process(folder)
    facts = {
        "frames": task.frames,
        "action_repeat": task.repeat,
        "train_episode_frames": task.length,
        "render": "fast" if task.env_id.startswith("dmc/") else "default",
        **processes[-1],
        "processes": processes,
    }
    facts |= {"before": {"frames": 0, "seconds": 0.0}} | runner(args, task, folder, seed, decisions)
    curve = json.loads((folder / "curve.json").read_text())
    for entry in curve:
        entry["returns"] = [round(value, 3) for value in entry["returns"]]
    if not not_counted(args) and (missing := not_recorded(facts)):
        raise SystemExit(f"{record} would not tell {missing} and is not written; {folder} keeps the run")
    record.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(record, json.dumps(facts | {"curve": curve}).encode())
    for used in ("run/episodes", "saved", "episodes"):  # gigabytes, needed only to go on
        shutil.rmtree(folder / used, ignore_errors=True)


def records(args: Args) -> Path:
    """Where finished runs are kept; of changed budgets apart from those that count."""
    return args.out / "records" if not_counted(args) else RECORDS


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
    for path in (records(args) / folder.parent.relative_to(args.out)).glob("seed_*.json"):
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


def preset_of(args: Args, task: Task) -> str:
    """The name of JEPAMPC's preset."""
    return args.preset or task.preset


def make_jepa_mpc(
    args: Args, task: Task, folder: Path, seed: int, decisions: int, **changes: dict[str, Any]
) -> JEPAMPC:
    """The preset's agent; ``changes``: of the ``world``, of ``control`` and of the ``search``."""
    settings = jepa_mpc_preset(preset_of(args, task))
    policy = settings["policy_kwargs"] | changes.get("search", {})
    policy["world"] = policy.get("world", {}) | changes.get("world", {})
    if task.keypoints:
        policy["world"]["encoder_options"] = {"keypoints": task.keypoints}
    policy["control"] = replace(policy["control"], **changes.get("control", {}))
    return JEPAMPC(
        "CnnPolicy", make_pixels(task, training=True), seed=seed, gamma=task.gamma, device=args.device,
        buffer_size=decisions + 1000, learning_starts=min(500, decisions // 4), train_freq=task.every,
        gradient_steps=task.updates, tensorboard_log=str(folder / "tensorboard"),
        **settings | {"policy_kwargs": policy},
    )  # fmt: skip


def run_jepa_mpc(args: Args, task: Task, folder: Path, seed: int, decisions: int) -> dict[str, Any]:
    model = make_jepa_mpc(args, task, folder, seed, decisions)
    seen = f"pixels, read by {task.keypoints} keypoints" if task.keypoints else "pixels"
    n_step = list(model.n_step) if isinstance(model.n_step, tuple) else model.n_step  # as JSON has it
    facts = {
        "preset": preset_of(args, task),
        "n_step": n_step,
        "device": str(model.device),
        "observations": seen,
    }
    facts["agent"] = settings_of(model) | {"seed": None}
    refuse_unlike(args, folder, facts)
    checkpoints = ResumableRun(folder / "run", every=max(50, decisions // 20))
    model.learn(decisions, callback=[checkpoints, evaluation(args, task, folder, partial(make_pixels, task))])
    return facts


def run_sac(method: str, args: Args, task: Task, folder: Path, seed: int, decisions: int) -> dict[str, Any]:
    discrete = is_discrete(task)
    algorithm: type[OffPolicyAlgorithm] = DQN if discrete else SAC
    settings: dict[str, Any] = {
        "gamma": task.gamma, "learning_starts": min(500, decisions // 4), "device": args.device, "seed": seed,
    }  # fmt: skip
    if discrete:
        settings |= SHORT_DQN
    if method == "sac_joint":
        algorithm = JEPADQN if discrete else JEPASAC
        settings |= {} if discrete else {"gradient_steps": task.updates}
        settings |= {"policy_kwargs": jepa_policy_kwargs()}
    callbacks: list[BaseCallback] = []
    make: Callable[..., gym.Env] = partial(make_pixels, task)
    policy: str | type[LeanCnnPolicy] = "CnnPolicy"
    if method == "sac_pixels" and algorithm is SAC:
        policy = LeanCnnPolicy
    elif method == "sac_state":
        make, policy = partial(make_state, task), "MlpPolicy"
    elif method == "sac_latents":
        world, used = frozen_world_model(args, task, folder, seed)
        decisions -= used
        make, policy = partial(make_latents, task, world), "MlpPolicy"
    elif method == "sac_online_latents":
        torch.manual_seed(seed)
        env = make()
        world_model = WorldModel(preset("laptop", world_spec(env)).model).to(_device(args))
        env.close()
        settings |= {
            "policy_kwargs": latent_policy_kwargs(world_model),
            "replay_buffer_class": LatentReplayBuffer,
        }
    # A row of JEPASAC's replay is a state: one more for each episode.
    settings["buffer_size"] = decisions + (1000 if method == "sac_joint" else 0)
    train = partial(make, training=True)
    saved, env = SaveAtEvaluation.newest(folder / "saved"), make_vec_env(train, 1, seed=seed)
    model: OffPolicyAlgorithm = (
        load_saved(algorithm, saved, env, args.device, trust=True)  # of this benchmark's own run
        if saved
        else algorithm(policy, env, **settings)
    )
    seen = "state" if method == "sac_state" else "pixels"
    facts = {"preset": algorithm.__name__, "device": str(model.device), "observations": seen}
    # As JSON has it; the seed differs, and classes go by their names.
    told = {name: value for name, value in settings.items() if name not in ("seed", "device")}
    facts["agent"] = json.loads(json.dumps(learning_of(model) | told | {"policy": policy}, default=name_of))
    refuse_unlike(args, folder, facts)
    model.tensorboard_log = str(folder / "tensorboard")
    curve = evaluation(args, task, folder, make)
    online = None
    if method == "sac_online_latents":
        online = OnlineWorldModel(world_of(model), seed=seed)
        if saved is not None:
            online.load_state_dict(torch.load(saved / "online.pt", weights_only=True))
        callbacks.append(online)

    def save_online(into: Path) -> None:
        if online is not None:
            torch.save(online.state_dict(), into / "online.pt")

    callbacks += [curve, SaveAtEvaluation(curve, folder / "saved", save_online)]
    left = max(0, decisions - model.num_timesteps)
    model.learn(left, callback=callbacks, reset_num_timesteps=model.num_timesteps == 0)
    if method == "sac_latents":
        facts["before"] = json.loads((folder / "before.json").read_text())
    return facts


def learning_of(model: OffPolicyAlgorithm) -> dict[str, Any]:
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
        settings = preset("laptop", sampler.spec)
        train = replace(settings.train, seed=seed, steps=20 if args.quick else settings.train.steps)
        fit(WorldModel(settings.model).to(_device(args)), sampler, train, path, progress=False)
        spent = {"frames": 4 * used * task.repeat, "seconds": time.perf_counter() - started}
        write_atomic(folder / "before.json", json.dumps(spent).encode())
    return path / "model.safetensors", 4 * used


def random_play(task: Task, folder: Path, decisions: int, seed: int) -> EpisodeStore:
    """Random play in four environments, for a world model that learns without reward."""
    venv = gym.vector.SyncVectorEnv([partial(make_pixels, task, training=True)] * 4)
    store = collect(venv, folder, steps=decisions, seed=seed)
    venv.close()
    return store


def run_random(args: Args, task: Task, folder: Path, seed: int, decisions: int) -> dict[str, Any]:
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
            paths = sorted((records(args) / name / method).glob("seed_*.json"))
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
    with (ROOT / "benchmarks/data/dmc_curves.csv").open() as file:
        for row in csv.DictReader(file):
            if row["task"] == name.replace("ball_in_", "") and float(row["env_frames"]) <= 200_000:
                label = f"{row['method']} ({row['obs']})"
                curves.setdefault(label, []).append((float(row["env_frames"]), float(row["mean"])))
    return curves


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
        axis.set(title=name, xlabel="frames", ylabel="return", xlim=(0, end))
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
