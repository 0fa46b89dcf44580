"""What do reward-free latents know of the swing-up's state, beside the same encoder trained on the state itself?

    python benchmarks/latents_that_pay.py            a quarter of an hour on one core
    python benchmarks/latents_that_pay.py --quick    a minute

Data: every episode of one training of SAC from state, from random play to its best, with pictures (fast look, action
repeat 8, three frames). Every fifth episode is held out. Each objective trains the same encoder (one for all frames,
widths 16, 16, 32) for as many updates on the same windows; a perceptron is then trained to read the true state from
the latents, and its R2 on held-out episodes is reported, for all of them and for the last ten alone, in which the agent
balances. The supervised encoder is trained to predict the state by a linear layer.

In early episodes the cart often leaves the picture, which no encoder can mend.
"""

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from _broad_data import broad_data
from _record import refuse_unrecordable, trying, write_results
from dmc_pixels import TASKS, make_pixels
from torch import nn

import jepa_rl.envs
from jepa_rl.data import EpisodeView, WindowSampler
from jepa_rl.diagnostics.probes import fit_mlp_probe, r2_score
from jepa_rl.training import TrainConfig, descend, fit
from jepa_rl.world_model import WorldModel, WorldModelConfig

COLUMNS = ("x", "cos", "sin", "velocity", "angular velocity")
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "lewm": ("lewm", {}),
    "laptop": ("jepa", {"sigreg": 1.0, "inverse_dynamics": 2.0}),
}
CHOSEN = "dense"


@dataclass(frozen=True)
class Args:
    updates: int = 1500
    batch_size: int = 128
    steps: int = 3
    """Of a window."""
    decisions: int = 12_500
    """Of SAC from state, whose training makes the data."""
    data_seed: int = 31
    seed: int = 41
    """Of the weights and batches; settings were chosen with data seed 21 and seed 0."""
    quick: bool = False
    out: Path = Path("runs/latents_that_pay")


def main(args: Args) -> None:
    if args.quick:
        args = replace(args, updates=40, decisions=1250, out=args.out / "quick")
        shutil.rmtree(args.out, ignore_errors=True)
    elif not trying():
        refuse_unrecordable()
    jepa_rl.envs.register_envs()
    task = TASKS["cartpole-swingup"]
    env = make_pixels(task, keep_state=True)
    store = broad_data(env, args.out / "episodes", args.decisions, task.gamma, args.data_seed)
    held = set(range(4, len(store), 5))
    train = store.view([i for i in range(len(store)) if i not in held])
    held_out, late = store.view(sorted(held)), store.view(sorted(held)[-10:])
    print(
        f"{len(store)} episodes, returns {[round(float(store.episode(i).rewards.sum())) for i in sorted(held)]}"
    )

    found: dict[str, Any] = {}
    for name in ("supervised", *OBJECTIVES):
        began = time.perf_counter()
        world = (
            supervised(args, train) if name == "supervised" else learned(args, train, *OBJECTIVES[name], name)
        )
        seconds = time.perf_counter() - began
        found[name] = scores(world.eval(), train, {"r2": held_out, "late_r2": late}) | {
            "train_seconds": seconds
        }
        print(name, {key: np.round(value, 3).tolist() for key, value in found[name].items()}, flush=True)
    payload = {
        "columns": COLUMNS, "probe_r2": found[CHOSEN]["r2"], "supervised_r2": found["supervised"]["r2"],
        "chosen": CHOSEN, "objectives": found, "episodes": len(store),
        "settings": {name: getattr(args, name) for name in ("updates", "batch_size", "steps", "data_seed", "seed")},
    }  # fmt: skip
    print(write_results("latents_that_pay", payload, quick=args.quick))


def make_world(args: Args, spec: Any, objective: str, options: dict[str, Any]) -> WorldModel:
    torch.manual_seed(args.seed)
    config = WorldModelConfig(
        spec, latent_dim=64, encoder="frames", encoder_options={"widths": (16, 16, 32)},
        dynamics_options={"width": 192, "depth": 2}, objective=objective, objective_options=options,
    )  # fmt: skip
    return WorldModel(config)


def learned(args: Args, train: EpisodeView, objective: str, options: dict[str, Any], name: str) -> WorldModel:
    sampler = WindowSampler(train, steps=args.steps)
    world = make_world(args, sampler.spec, objective, options)
    settings = TrainConfig(steps=args.updates, batch_size=args.batch_size, seed=args.seed)
    fit(world, sampler, settings, args.out / name, progress=False)
    return world


def supervised(args: Args, train: EpisodeView) -> WorldModel:
    """The same encoder, batches, optimiser and schedule, with the true state as target."""
    sampler = WindowSampler(train, steps=args.steps)
    world = make_world(args, sampler.spec, "lewm", {})
    states = torch.from_numpy(np.concatenate([train.episode(i).extras["state"] for i in range(len(train))]))
    mean, std = states.mean(0), states.std(0)
    head = nn.Linear(world.latent_dim, len(mean))
    learning = [*world.encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=args.updates, pct_start=0.05)
    rng = np.random.default_rng(args.seed)
    world.train()
    for _ in range(args.updates):
        windows = sampler.draw(args.batch_size, rng)
        target = (torch.from_numpy(np.asarray(sampler.extra("state", windows))) - mean) / std
        error = (head(world.encode_windows(sampler.batch(windows).observations)) - target).square().mean()
        descend(error, [optimizer], learning, 1.0)
        schedule.step()
    return world


def scores(world: WorldModel, train: EpisodeView, views: dict[str, EpisodeView]) -> dict[str, list[float]]:
    """R2 of one probe in each of the views."""
    probe = fit_mlp_probe(*latents(world, train), generator=torch.Generator().manual_seed(0))
    found = {}
    for name, view in views.items():
        z, states = latents(world, view)
        found[name] = r2_score(probe(z), states).tolist()
    return found


@torch.no_grad()
def latents(world: WorldModel, episodes: EpisodeView) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and true states of all steps."""
    sampler, z, states = WindowSampler(episodes, steps=1), [], []
    for windows in sampler.ordered(512):
        z.append(world.encode(sampler.batch(windows).pixels[:, 0]))
        states.append(torch.from_numpy(np.asarray(sampler.extra("state", windows))[:, 0]).float())
    return torch.cat(z), torch.cat(states)


if __name__ == "__main__":
    main(tyro.cli(Args))
