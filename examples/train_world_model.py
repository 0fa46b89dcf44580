r"""Train a world model of any environment on random play: no rewards, no labels.

    python examples/train_world_model.py
    torchrun --nproc-per-node 2 examples/train_world_model.py
    python examples/train_world_model.py --preset laptop --frames 1 --block 5 \
        --env-id jepa_rl/TwoRooms-v0 --out runs/two_rooms

The defaults suit what feeds an agent: three pictures, since one shows no speeds, and a latent step for each of its
decisions. The second line trains with two processes (docs/scale.md). The third suits planning far ahead where nothing
has a speed.

Writes runs/train_world_model/: episodes/, model.safetensors, checkpoint.safetensors, results.json,
latent_map.png and TensorBoard events. An interrupted run resumes where it stopped.
"""

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import gymnasium as gym
import torch
import tyro

from jepa_rl import (
    EpisodeStore,
    WindowSampler,
    WorldModel,
    distributed,
    fit,
    preset,
    world_model_evaluation,
)
from jepa_rl.checks import check_whole
from jepa_rl.envs import PixelObservation, SmoothRandomPolicy, collect, world_spec
from jepa_rl.files import open_run

os.environ.setdefault(
    "SDL_VIDEODRIVER", "dummy"
)  # classic-control environments draw with SDL; no window is needed


@dataclass(frozen=True)
class Args:
    env_id: str = "CartPole-v1"
    """Gymnasium id of an environment that shows pictures or renders them."""
    frames: int = 3
    """Pictures in one observation; a single one does not show speeds."""
    block: int = 1
    """Environment steps in one latent step; 1 for an agent that decides at every step, more for planning far ahead."""
    steps: int = 20_000
    """Environment steps of random play."""
    updates: int | None = None
    """None: as many as the preset says."""
    preset: str = "agent"
    """agent for what feeds an agent, laptop for planning far ahead, base for a GPU."""
    extras: tuple[str, ...] = ("position",)
    """Entries of info that colour the latent map, where the environment has them."""
    device: str = "cpu"
    seed: int = 0
    resume: bool = True
    """Resume the run in the folder; --no-resume deletes it and starts again."""
    quick: bool = False
    """A few steps of everything, for a test run of seconds."""
    out: Path = Path("runs/train_world_model")


def make_env(args: Args) -> gym.Env:
    return PixelObservation(gym.make(args.env_id, render_mode="rgb_array"), size=64, frames=args.frames)


def random_play(args: Args, steps: int) -> None:
    """Episodes of smooth random actions, which get farther than white noise; kept for the next run."""
    there = 0
    if (args.out / "episodes" / "store.json").exists():
        there = EpisodeStore.open(args.out / "episodes").num_steps
    if there >= steps:
        return
    venv = gym.vector.SyncVectorEnv([lambda: make_env(args)] * 8)
    _, info = venv.reset()
    policy = SmoothRandomPolicy(world_spec(venv).action, venv.num_envs)
    extras = [name for name in args.extras if name in info]
    collect(
        venv, args.out / "episodes", policy=policy, steps=steps - there, seed=args.seed + there, extras=extras
    )
    venv.close()


def main(args: Args) -> None:
    check_whole(steps=args.steps, **({} if args.updates is None else {"updates": args.updates}))
    started = time.perf_counter()
    settings = {name: value for name, value in asdict(args).items() if name not in ("resume", "out")}
    # Where torchrun started several processes, the first of them opens the folder and plays.
    distributed.by_first(lambda: open_run(args.out, settings, resume=args.resume))

    # Random play, a tenth of its episodes held out.
    distributed.by_first(lambda: random_play(args, steps=800 if args.quick else args.steps))
    store = EpisodeStore.open(args.out / "episodes")
    train, held_out = store.split(0.1, seed=args.seed)

    # A world model that predicts latents from latents and actions.
    model_config, train_config, window = preset(args.preset, store.spec.with_block(args.block))
    updates = train_config.steps if args.updates is None else args.updates
    train_config = replace(train_config, steps=updates, seed=args.seed)
    if args.quick:
        train_config = replace(train_config, steps=20, batch_size=16, log_every=5, evaluate_every=10)
    torch.manual_seed(args.seed)
    model = WorldModel(model_config).to(args.device)
    evaluate = world_model_evaluation(
        WindowSampler(held_out, window, args.block), extras=tuple(store.layout.extras)
    )
    trained = fit(model, WindowSampler(train, window, args.block), train_config, args.out, evaluate=evaluate)

    if not distributed.is_first():
        return

    # What became of it, on the held-out episodes.
    found = evaluate(model)
    found.figures["jepa/latent_map"].savefig(args.out / "latent_map.png", dpi=100)
    results = {
        **settings,
        "environment_steps": store.num_steps,
        "effective_rank": found.metrics["jepa/effective_rank"],
        "rollout_error": [found.metrics[f"model/rollout_error_{k}"] for k in range(1, window + 1)],
        "action_gap": found.metrics["model/action_gap"],
        "alarm": found.alarm,
        "train_seconds": trained.seconds,
        "total_seconds": time.perf_counter() - started,
    }
    (args.out / "results.json").write_text(json.dumps(results, indent=2))
    errors = ", ".join(f"{error:.2f}" for error in results["rollout_error"])
    print(f"effective rank   {results['effective_rank']:.1f} of {model.latent_dim} dimensions")
    print(f"rollout error    {errors}   1 to {window} latent steps ahead; 1 is predicting no change")
    print(
        f"action gap       {results['action_gap']:.2f}   how much worse the prediction is with wrong actions"
    )
    print(f"alarm            {found.alarm or 'none'}")
    print(f"wrote {args.out}/ in {results['total_seconds']:.0f} s")


if __name__ == "__main__":
    with distributed.join():
        main(tyro.cli(Args))
