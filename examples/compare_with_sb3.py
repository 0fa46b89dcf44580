"""JEPAMPC beside Stable-Baselines3's agents on one environment: a table and a picture of the learning curves.

    python examples/compare_with_sb3.py
    python examples/compare_with_sb3.py --env-id dmc/reacher-easy-v0 --rival sac --action-repeat 4

All use the same environment and number of steps, and are evaluated on the same episodes. Writes
runs/compare_with_sb3/: results.json, curves.png and TensorBoard events. An interrupted run resumes with the
agent that was learning: JEPAMPC where it stopped, the others at their last evaluation.
``benchmarks/dmc_pixels.py`` is the large version of this.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import matplotlib
import numpy as np
import tyro
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from jepa_rl.agents import JEPAMPC, ResumableRun
from jepa_rl.agents.evaluation import EvaluationCallback
from jepa_rl.agents.sb3.baselines import SHORT_DQN, SaveAtEvaluation, load_saved
from jepa_rl.agents.sb3.jepa_mpc import jepa_mpc_preset
from jepa_rl.agents.sb3.progress import LearningProgress
from jepa_rl.envs import ActionRepeat, PixelObservation
from jepa_rl.files import open_run, write_atomic

matplotlib.use("Agg")
import matplotlib.pyplot as plt

os.environ.setdefault(
    "SDL_VIDEODRIVER", "dummy"
)  # classic-control environments draw with SDL; no window is needed

EVALUATION_SEED = 1_000_000  # of the first episode
RIVALS: dict[str, tuple[type[BaseAlgorithm], dict[str, Any]]] = {
    "sac": (SAC, {"learning_starts": 500}),
    "ppo": (PPO, {"n_steps": 256}),
    "dqn": (DQN, {"learning_starts": 500, **SHORT_DQN}),
}


@dataclass(frozen=True)
class Args:
    env_id: str = "CartPole-v1"
    """Gymnasium id of an environment that can render."""
    rival: Literal["sac", "ppo", "dqn"] = "dqn"
    """Must fit the action space: sac needs continuous actions, dqn discrete ones."""
    action_repeat: int = 2
    """Environment steps for each decision."""
    decisions: int = 6_000
    """Decisions of each agent during training."""
    gamma: float = 0.97
    """Discount of one decision."""
    evaluations: int = 6
    episodes: int = 5
    """Episodes in each evaluation."""
    seed: int = 0
    resume: bool = True
    """Resume the run in the folder; --no-resume deletes it and starts again."""
    quick: bool = False
    """A few steps of everything, for a test run of seconds."""
    out: Path = Path("runs/compare_with_sb3")


def make_env(args: Args, pixels: bool) -> gym.Env:
    look = {"render": "fast", "render_size": 64} if args.env_id.startswith("dmc/") else {}
    env = gym.make(args.env_id, render_mode="rgb_array", **look) if pixels else gym.make(args.env_id)
    env = ActionRepeat(env, args.action_repeat)
    return PixelObservation(env, size=64, frames=3) if pixels else env


def make_agent(args: Args, name: str, decisions: int) -> BaseAlgorithm:
    """``jepa_mpc``, or the rival on ``pixels`` or ``state``; loaded if it was saved."""
    env = Monitor(make_env(args, pixels=not name.endswith("state")))
    common: dict[str, Any] = {"gamma": args.gamma, "seed": args.seed, "tensorboard_log": str(args.out / name)}
    if name == "jepa_mpc":
        starts = min(500, decisions // 3)
        return JEPAMPC(
            "CnnPolicy", env, learning_starts=starts, buffer_size=2 * decisions + 1000,
            **common, **jepa_mpc_preset("laptop"),
        )  # fmt: skip
    algorithm, settings = RIVALS[args.rival]
    if (saved := SaveAtEvaluation.newest(args.out / name / "saved")) is not None:
        return load_saved(algorithm, saved, DummyVecEnv([lambda: env]), trust=True)  # this script wrote it
    if algorithm is not PPO:
        settings = settings | {"buffer_size": decisions}
    return algorithm("MlpPolicy" if name.endswith("state") else "CnnPolicy", env, **common, **settings)


def main(args: Args) -> None:
    settings = {name: value for name, value in asdict(args).items() if name not in ("out", "resume")}
    open_run(args.out, settings, resume=args.resume)
    decisions, found = 120 if args.quick else args.decisions, {}
    names = ("jepa_mpc", f"{args.rival} on pixels", f"{args.rival} on state")
    for name in names:
        done = args.out / f"{name}.json"
        if not done.exists():
            write_atomic(done, json.dumps(train(args, name, decisions)).encode())
            shutil.rmtree(args.out / name / "saved", ignore_errors=True)  # large, and needed only to resume
        found[name] = json.loads(done.read_text())

    random = [random_return(args, EVALUATION_SEED + i) for i in range(args.episodes)]
    results = {**settings, "random": float(np.mean(random)), "agents": found}
    (args.out / "results.json").write_text(json.dumps(results, indent=2))
    draw(args, found, float(np.mean(random))).savefig(args.out / "curves.png", dpi=100)
    print(f"{'':<16}{'last return':>12}{'best return':>12}{'minutes':>9}")
    for name, run in found.items():
        means = [float(np.mean(entry["returns"])) for entry in run["evaluations"]]
        print(f"{name:<16}{means[-1]:>12.1f}{max(means):>12.1f}{run['seconds'] / 60:>9.1f}")
    print(f"{'random':<16}{results['random']:>12.1f}")
    print(f"wrote {args.out}/")


def train(args: Args, name: str, decisions: int) -> dict[str, Any]:
    folder = args.out / name
    model = make_agent(args, name, decisions)
    evaluate = EvaluationCallback(
        lambda: make_env(args, pixels=not name.endswith("state")),
        every=max(1, decisions // args.evaluations),
        episodes=1 if args.quick else args.episodes,
        seed=EVALUATION_SEED,
        path=folder / "evaluations.json",
    )
    callbacks: list[BaseCallback] = [evaluate, LearningProgress(name, "decision")]
    if name == "jepa_mpc":
        callbacks.insert(0, ResumableRun(folder / "run", every=50 if args.quick else 1000))
    else:
        callbacks.insert(1, SaveAtEvaluation(evaluate, folder / "saved"))
    left = max(0, decisions - model.num_timesteps)
    model.learn(left, callback=callbacks, reset_num_timesteps=model.num_timesteps == 0)
    # Summed over processes, since a run may have been interrupted.
    return {"evaluations": evaluate.results, "seconds": evaluate.results[-1]["seconds"]}


def random_return(args: Args, seed: int) -> float:
    env, total, over = make_env(args, pixels=False), 0.0, False
    env.reset(seed=seed)
    env.action_space.seed(seed)
    while not over:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        total, over = total + float(reward), terminated or truncated
    env.close()
    return total


def draw(args: Args, found: dict[str, Any], random: float) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(6, 4))
    for name, run in found.items():
        steps = [entry["step"] * args.action_repeat for entry in run["evaluations"]]
        returns = [entry["returns"] for entry in run["evaluations"]]
        axis.plot(steps, [np.mean(r) for r in returns], marker="o", label=name)
    axis.axhline(random, color="gray", linestyle="--", label="random")
    axis.set(title=args.env_id, xlabel="environment steps", ylabel="mean return")
    axis.legend()
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main(tyro.cli(Args))
