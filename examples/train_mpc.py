"""Learn to control any environment from pixels and reward, by planning in the latents of a world model.

    python examples/train_mpc.py
    python examples/train_mpc.py --env-id dmc/cartpole-swingup-v0 --action-repeat 8 --gamma 0.97 --decisions 12500
    python examples/train_mpc.py --env-id Pendulum-v1 --observations state --decisions 5000
    torchrun --nproc-per-node 2 examples/train_mpc.py

Writes runs/train_mpc/: results.json, curve.png, agent.zip, run/ (checkpoint and episodes) and TensorBoard events with
a video of every evaluation. An interrupted run resumes where it stopped.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import matplotlib
import torch
import tyro

from jepa_rl import distributed
from jepa_rl.agents import JEPAMPC, ResumableRun
from jepa_rl.agents.evaluation import EvaluationCallback
from jepa_rl.agents.sb3.jepa_mpc import jepa_mpc_preset
from jepa_rl.agents.sb3.progress import LearningProgress
from jepa_rl.envs import ActionRepeat, PixelObservation
from jepa_rl.files import open_run

matplotlib.use("Agg")
import matplotlib.pyplot as plt

os.environ.setdefault(
    "SDL_VIDEODRIVER", "dummy"
)  # classic-control environments draw with SDL; no window is needed


@dataclass(frozen=True)
class Args:
    env_id: str = "CartPole-v1"
    """Gymnasium id of an environment."""
    observations: Literal["pixels", "state"] = "pixels"
    """Three stacked 64 x 64 pictures, or the environment's own observations."""
    action_repeat: int = 2
    """Environment steps for each decision."""
    decisions: int = 6_000
    gamma: float = 0.97
    """Discount of one decision."""
    updates: int = 1
    """Updates of the model for each decision."""
    preset: str = "laptop"
    """Name of a preset: laptop, small or base."""
    evaluations: int = 6
    episodes: int = 5
    """Episodes in each evaluation."""
    device: str = "auto"
    seed: int = 0
    resume: bool = True
    """Resume the run in the folder; --no-resume deletes it and starts again."""
    quick: bool = False
    """A few steps of everything, for a test run of seconds."""
    out: Path = Path("runs/train_mpc")


def make_env(args: Args) -> gym.Env:
    look = {"render": "fast"} if args.env_id.startswith("dmc/") else {}
    env = gym.make(args.env_id, render_mode="rgb_array", **look)
    env = ActionRepeat(env, args.action_repeat)
    return PixelObservation(env, size=64, frames=3) if args.observations == "pixels" else env


def main(args: Args) -> None:
    started = time.perf_counter()
    # The learning rate falls until the last decision, so another number of decisions is a different run.
    free = ("evaluations", "episodes", "resume", "out")
    distributed.by_first(lambda: open_run(args.out, asdict(args), resume=args.resume, free=free))
    decisions = 100 if args.quick else args.decisions

    env = make_env(args)
    model = JEPAMPC(
        "CnnPolicy" if args.observations == "pixels" else "MlpPolicy",
        env,
        gamma=args.gamma,
        gradient_steps=args.updates,
        learning_starts=50 if args.quick else 500,
        buffer_size=50_000,  # pictures, each stored once: 0.6 GB when it is full
        seed=args.seed,
        device=args.device,
        tensorboard_log=str(args.out),
        **jepa_mpc_preset(args.preset),
    )
    kept = ResumableRun(args.out / "run", every=50 if args.quick else 1000)
    evaluate = EvaluationCallback(
        lambda: make_env(args),
        every=max(1, decisions // args.evaluations),
        episodes=1 if args.quick else args.episodes,
        path=args.out / "evaluations.json",
        video=True,
    )
    progress = LearningProgress(unit="decision", note=lambda: last_return(evaluate))
    model.learn(decisions, callback=[kept, evaluate, progress])
    env.close()
    if not distributed.is_first():  # the others have helped with the updates
        return
    model.save(args.out / "agent.zip")

    steps = [entry["step"] * args.action_repeat for entry in evaluate.results]
    returns = [entry["returns"] for entry in evaluate.results]
    results = {
        **{name: value for name, value in asdict(args).items() if name != "out"},
        "environment_steps": steps,
        "returns": returns,
        "updates_done": model._n_updates,
        "threads": torch.get_num_threads(),
        "total_seconds": time.perf_counter() - started,
    }
    (args.out / "results.json").write_text(json.dumps(results, indent=2))
    draw(steps, returns, args.env_id).savefig(args.out / "curve.png", dpi=100)
    for step, found in zip(steps, returns, strict=True):
        print(
            f"after {step:>7} steps: return {sum(found) / len(found):8.1f}   {[round(r, 1) for r in found]}"
        )
    print(f"wrote {args.out}/ in {results['total_seconds']:.0f} s")


def last_return(evaluate: EvaluationCallback) -> str:
    """The mean return of the last evaluation, for the progress."""
    returns = evaluate.results[-1]["returns"]
    return f"return {sum(returns) / len(returns):.1f}"


def draw(steps: list[int], returns: list[list[float]], title: str) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(6, 4))
    axis.plot(steps, [sum(found) / len(found) for found in returns], marker="o")
    axis.fill_between(steps, [min(found) for found in returns], [max(found) for found in returns], alpha=0.2)
    axis.set(title=title, xlabel="environment steps", ylabel="return of the evaluation episodes")
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    with distributed.join():  # the processes that torchrun started, if it did
        main(tyro.cli(Args))
