"""Which latent space should a plan search in? Four encoders on one fixed layout of Two Rooms, side by side.

    python examples/compare_spaces.py

Prediction (JEPA), recognition (DINO), reconstruction (VAE) and an encoder that was never trained, of the same network,
data, updates and 16 latents. Each is frozen; the same dynamics learn on its latents, and the same search plans thirty
episodes. Probes say what a space knows of the dot's place. Writes runs/compare_spaces/: results.json, spaces.png (the
spaces' main directions, coloured by the dot's place), and TensorBoard events with every space for its projector. An
interrupted run goes on; --no-resume starts again. The comparison that counts, with more tasks, arms and seeds, is
benchmarks/head_to_head.py.
"""

import io
import json
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import tyro
from torch.utils.tensorboard import SummaryWriter

from jepa_rl import EpisodeStore, TrainConfig, WindowSampler, WorldModel, WorldModelConfig, fit
from jepa_rl.acting import BatchActor
from jepa_rl.agents import MPCAgent, TreeSearch
from jepa_rl.costs import GoalCost
from jepa_rl.diagnostics import effective_rank, fit_linear_probe, fit_mlp_probe, latent_map, r2_score
from jepa_rl.envs import SmoothRandomPolicy, TwoRoomsVectorEnv, collect, world_spec
from jepa_rl.files import open_run, write_atomic
from jepa_rl.training.refine import REFINE, refine_dynamics

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Args:
    episodes: int = 30
    """Evaluation episodes of each space, start and goal in different rooms."""
    train_episodes: int = 800
    """Of random play, 40 steps each."""
    updates: int = 1200
    """Of each encoder."""
    refine_updates: int = 1500
    """Of the dynamics on each space."""
    max_steps: int = 100
    """Environment steps that an episode may take."""
    seed: int = 0
    resume: bool = True
    """Resume the run in the folder; --no-resume deletes it and starts again."""
    quick: bool = False
    """A little of everything, for a test run of seconds; its figures mean nothing."""
    out: Path = Path("runs/compare_spaces")


QUICK = dict(episodes=2, train_episodes=20, updates=3, refine_updates=3, max_steps=10)
LATENTS, BLOCK = 16, 5
LAYOUT = dict(wall=32.0, door=20.0)  # pixels
FIRST_EPISODE = 6_000_000  # seed of the evaluation's first episode
# name: (objective, its options, learning rate). No encoder but JEPA's sees actions; the dynamics come later, for all
# alike. A VAE without scales misses the dot, whose pixels are few.
SPACES: dict[str, tuple[str, dict[str, Any], float]] = {
    "JEPA": ("jepa", {"sigreg": 1.0, "inverse_dynamics": 2.0}, 1e-3),
    "DINO": ("dino", {"dynamics": 0.0, "local": 2, "schedule": 1200}, 1e-3),
    "VAE": ("vae", {"dynamics": 0.0, "noise": 0.2, "scales": (1, 4, 16)}, 3e-3),
    "untrained": ("jepa", {}, 0.0),
}


def main(args: Args) -> None:
    args = replace(args, **QUICK) if args.quick else args
    open_run(args.out, asdict(args), resume=args.resume, free=("resume", "out"))
    torch.manual_seed(args.seed)
    train, held_out = random_play(args).split(0.1, seed=args.seed)
    results, maps = {}, {}
    for name in SPACES:
        began = time.perf_counter()
        world = learn(args, name, train)
        latents, places = labelled(world, held_out, 2000)
        results[name] = {
            **known(args, world, train, latents, places),
            "success": float(np.mean(play(args, world))),
            "seconds": time.perf_counter() - began,
        }
        maps[name] = latents, places
        print(name, {key: round(value, 3) for key, value in results[name].items()}, flush=True)
    show(args, maps)
    write_atomic(args.out / "results.json", json.dumps(results, indent=2).encode())
    columns = list(results["JEPA"])
    print("\n" + " " * 10 + "".join(f"{column:>17}" for column in columns))
    for name, found in results.items():
        print(f"{name:<10}" + "".join(f"{found[column]:17.2f}" for column in columns))
    print(f"wrote {args.out}/spaces.png and results.json")


def random_play(args: Args) -> EpisodeStore:
    """Starts are anywhere in the one layout."""
    path, there = args.out / "episodes", 0
    if (path / "store.json").exists() and (there := len(EpisodeStore.open(path))) >= args.train_episodes:
        return EpisodeStore.open(path)
    venv = TwoRoomsVectorEnv(20, max_episode_steps=40, start="any", **LAYOUT)
    policy = SmoothRandomPolicy(world_spec(venv).action, venv.num_envs, time_constant=8.0)
    missing, seed = args.train_episodes - there, 100_000 * args.seed + there
    return collect(venv, path, policy=policy, episodes=missing, seed=seed, extras=("position",))


def learn(args: Args, name: str, train: Any) -> WorldModel:
    """An encoder by one of the objectives, then dynamics on its frozen latents."""
    objective, options, rate = SPACES[name]
    if objective == "dino":
        options = options | {"schedule": args.updates}
    torch.manual_seed(args.seed)
    world = WorldModel(
        WorldModelConfig(
            train.spec.with_block(BLOCK), LATENTS, encoder_options={"widths": (16, 16, 32)},
            objective=objective, objective_options=options,
        )
    )  # fmt: skip
    sampler = WindowSampler(train, 3, BLOCK)
    if name == "untrained":
        measure_norm(world, sampler)
    else:
        config = TrainConfig(
            args.updates, batch_size=64, learning_rate=rate, seed=args.seed, log_every=min(50, args.updates)
        )
        fit(world, sampler, config, args.out / name / "encoder", progress=f"Training {name}")
    refining = replace(REFINE, steps=args.refine_updates, batch_size=64, seed=args.seed)
    refine_dynamics(world, train, args.out / name / "dynamics", steps=6, config=refining)
    return world


def measure_norm(world: WorldModel, sampler: WindowSampler) -> None:
    """Lets the encoder's batch norm see pictures, so that latents have the scale of the others'."""
    rng = np.random.default_rng(0)
    world.train()
    with torch.no_grad():
        for _ in range(50):
            world.encode_windows(sampler.sample(16, rng).pixels)
    world.eval()


def labelled(world: WorldModel, episodes: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of pictures and the dot's places in them, (x, y) in pixels; labels serve these measurements only."""
    sampler = WindowSampler(episodes, 1)
    windows = sampler.draw(count, np.random.default_rng(0))
    with torch.no_grad():
        latents = torch.cat([world.encode(part) for part in sampler.batch(windows).pixels[:, 0].split(500)])
    return latents, torch.from_numpy(sampler.extra("position", windows)[:, 0])


def known(
    args: Args, world: WorldModel, train: Any, latents: torch.Tensor, places: torch.Tensor
) -> dict[str, float]:
    """What the space knows of the dot's place, on episodes that it was not trained on: R2, 1 is all."""
    seen, truth = labelled(world, train, 4000)
    generator = torch.Generator().manual_seed(args.seed)
    probe = fit_mlp_probe(seen, truth, generator, steps=20 if args.quick else 1000)
    linear = fit_linear_probe(seen, truth)
    return {
        "place, R2": float(r2_score(probe(latents), places).min()),
        "linear, R2": float(r2_score(linear(latents), places).min()),
        "effective rank": effective_rank(latents),
    }


def play(args: Args, world: WorldModel) -> np.ndarray:
    """The same starts and goals for every space: which goals were reached."""
    envs = TwoRoomsVectorEnv(args.episodes, max_episode_steps=args.max_steps, **LAYOUT)
    agent = MPCAgent(world, TreeSearch(12), cost=partial(GoalCost, reduce="last"), hold=True, seed=args.seed)
    pixels, info = envs.reset(seed=FIRST_EPISODE)
    act, starts, running = BatchActor(agent), np.ones(args.episodes, bool), np.ones(args.episodes, bool)
    success = np.zeros(args.episodes, bool)
    while running.any():
        actions = act({"pixels": pixels, "goal": info["goal"]}, starts, running)
        pixels, _, reached, cut, info = envs.step(actions)
        success |= reached & running
        running, starts = running & ~(reached | cut), np.zeros_like(starts)
    return success


def show(args: Args, maps: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """spaces.png, and every space for TensorBoard's projector."""
    pictures = []
    with SummaryWriter(str(args.out / "spaces")) as board:
        for name, (latents, places) in maps.items():
            figure = latent_map(latents, {f"{name}: x": places[:, 0].numpy(), "y": places[:, 1].numpy()})
            file = io.BytesIO()
            figure.savefig(file, dpi=80)
            pictures.append(plt.imread(io.BytesIO(file.getvalue())))
            board.add_figure(f"spaces/{name}", figure)
            labels = [[f"{x:.1f}", f"{y:.1f}"] for x, y in places.tolist()]
            board.add_embedding(latents, labels, tag=name, metadata_header=["x", "y"])
    plt.imsave(args.out / "spaces.png", np.concatenate(pictures))


if __name__ == "__main__":
    main(tyro.cli(Args))
