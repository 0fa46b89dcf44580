"""Several futures from one picture: learn a stochastic world, sample its futures, and plan by their risk.

    python examples/branching_futures.py

On TableEdge a push near the edge may throw the object off. A world model is learned from pixels, then, on its frozen
latents, a flow that draws futures; twenty minutes on one core. Writes to runs/branching_futures/, and to
TensorBoard: futures.png (one real picture and decoded futures that fan out from it), fan.png (decoded positions
beside true outcomes), probability.png (sampled against true probability of falling) and plans.gif (a plan by the mean
beside a careful one). An interrupted run resumes where it stopped; --no-resume starts again.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from jepa_rl import EpisodeStore, TrainConfig, WindowSampler, WorldModel, fit, preset
from jepa_rl.agents import CEM, MPCAgent
from jepa_rl.agents.evaluation import add_animation
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.diagnostics import Probe, fit_mlp_probe, r2_score
from jepa_rl.envs import RandomPolicy, collect, world_spec
from jepa_rl.envs.worlds import table_edge_rules as rules
from jepa_rl.envs.worlds.table_edge import TableEdgeEnv
from jepa_rl.files import open_run
from jepa_rl.heads import PictureDecoder
from jepa_rl.progress import track
from jepa_rl.risk import CVaR, Risk, expected_cost
from jepa_rl.training.refine import refine_dynamics

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Args:
    episodes: int = 20_000
    """Training episodes of random play, 4 steps each, from anywhere on the table."""
    updates: int = 1500
    """Joint updates of encoder and point dynamics."""
    flow_updates: int = 6000
    """Updates of the flow, on frozen latents."""
    futures: int = 16
    """Samples for each plan."""
    alpha: float = 0.25
    """Share of the worst futures that the risk-averse plan averages (CVaR)."""
    seed: int = 0
    resume: bool = True
    """Resume the run in the folder; --no-resume deletes it and starts again."""
    quick: bool = False
    """A little of everything, for a test run of seconds; its pictures mean nothing."""
    out: Path = Path("runs/branching_futures")


QUICK = dict(episodes=80, updates=10, flow_updates=10, futures=4)
# Steps of a training episode. A fallen object stays down until its end, so many short episodes show more falls, from
# which their probability is learned.
LENGTH = 4
# Steps of a window, and windows in a batch. Dynamics that sample one state after the other learn most from many single
# steps, a point predictor from its own errors along a rollout.
WINDOWS = {"flow": (1, 1024), "mixture": (1, 512)}
STEPS, BATCH = 4, 256
LATENTS = 16
# The prediction target gets no gradient; otherwise the encoder learns to hide what cannot be predicted, which in this
# world is what matters. SIGReg is weak: with more, the five numbers of the state are spread over all latent
# dimensions in curved ways that are hard to predict.
OBJECTIVE = {"sigreg": 0.1, "inverse_dynamics": 4.0, "target": "stop_gradient"}
EVALUATION_SEED = 1_000_000  # of the first episode that is played; training draws its seeds below


def main(args: Args) -> None:
    args = replace(args, **QUICK) if args.quick else args
    free = ("resume", "out", "futures", "alpha")  # training does not depend on them
    open_run(args.out, asdict(args), resume=args.resume, free=free)
    torch.manual_seed(args.seed)
    store = random_play(args.out, args.episodes, args.seed)
    train, held_out = store.split(0.1, seed=args.seed)
    world = learn_world(train, args.out, args.updates, args.seed)
    latents = LatentEpisodes.encode(world, train)
    flow = learn_dynamics(world, latents, "flow", args.out, args.flow_updates, args.seed, **FLOW)
    probe = learn_probe(world, train, args.seed, steps=100 if args.quick else 3000)
    seen, truth, _ = labelled(world, held_out, 2000, args.seed)
    true, sampled = fall_frequencies(flow, probe, pushes_near_the_edge(400, seed=0), futures=64)
    results = {
        "probe_r2": dict(
            zip(("x", "y", "fallen", "reward"), r2_score(probe(seen), truth).tolist(), strict=True)
        ),
        "fall_probability_error": float(np.abs(true - sampled).mean()),
    }
    decoder = learn_decoder(world, train, args.seed, steps=30 if args.quick else 3000)
    with SummaryWriter(str(args.out / "pictures")) as board:
        for name, draw in (("futures", draw_futures), ("fan", draw_fan), ("probability", draw_probability)):
            figure = draw(flow, probe, decoder)
            figure.savefig(args.out / f"{name}.png", dpi=90)
            board.add_figure(name, figure)
            plt.close(figure)
        frames = play_side_by_side(args, flow, probe)
        add_animation(board, "plans", frames, milliseconds=200)
        first, *rest = [Image.fromarray(frame) for frame in frames]
        first.save(args.out / "plans.gif", save_all=True, append_images=rest, duration=200, loop=0)
    print(json.dumps(results, indent=2))
    (args.out / "results.json").write_text(json.dumps(results, indent=2))
    print(f"wrote {args.out}/")


# -- learn ------------------------------------------------------------------------------------------

# Fallen objects lie at exact points, and so do those at the rim: what the flow has to learn there happens at little
# noise, so that levels near the data are drawn more often and weigh more (measured in
# docs/lab-notes/energy_score.md).
FLOW: dict[str, Any] = dict(width=64, energy=4.0, shift=0.5, low_noise=2.0)


def make_world() -> gym.Env:
    return gym.wrappers.TimeLimit(TableEdgeEnv(anywhere=True), LENGTH)


def random_play(
    out: Path,
    episodes: int,
    seed: int,
    make: Callable[[], gym.Env] = make_world,
    extras: tuple[str, ...] = ("position", "fallen"),
) -> EpisodeStore:
    path = out / "episodes"
    there = len(EpisodeStore.open(path)) if (path / "store.json").exists() else 0
    if there >= episodes:
        return EpisodeStore.open(path)
    venv = gym.vector.SyncVectorEnv([make] * 16)
    policy = RandomPolicy(world_spec(venv).action, venv.num_envs)
    found = collect(
        venv, path, policy=policy, episodes=episodes - there, seed=200_000 * seed + there, extras=extras
    )
    venv.close()
    return found


def learn_world(
    train: Any, out: Path, updates: int, seed: int, objective: dict[str, Any] = OBJECTIVE
) -> WorldModel:
    """The encoder, by prediction in latent space; its own point dynamics predict the mean of what may happen."""
    config, training, window = preset("laptop", train.spec)
    options = {"widths": (32, 32), "sharpness": 1.0, "blur": 1.5}
    config = replace(
        config, encoder="keypoints", encoder_options=options, latent_dim=LATENTS, objective_options=objective
    )
    training = replace(training, steps=updates, seed=seed, evaluate_every=updates)
    torch.manual_seed(seed)
    world = WorldModel(config)
    fit(world, WindowSampler(train, window), training, out / "world", progress="Joint training")
    return world


def learn_dynamics(
    world: WorldModel, latents: LatentEpisodes, name: str, out: Path, updates: int, seed: int, **options: Any
) -> WorldModel:
    """Dynamics of another kind on the latents of the frozen encoder."""
    torch.manual_seed(seed)
    model = world.with_dynamics(name, **options)
    steps, batch = WINDOWS.get(name, (STEPS, BATCH))
    config = TrainConfig(
        updates,
        batch,
        learning_rate=3e-3,
        weight_decay=1e-4,
        seed=seed,
        checkpoint_every=500,
        optimizer="muon",
    )
    refine_dynamics(model, latents, out / name, steps=steps, config=config)
    return model


def labelled(world: WorldModel, episodes: Any, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, their (x, y, fallen, reward of being there) and pictures; the labels serve probes and the reward."""
    sampler, rng = WindowSampler(episodes, 1), np.random.default_rng(seed)
    windows = sampler.draw(count, rng)
    batch = sampler.batch(windows)
    truth = [sampler.extra("position", windows)[:, 1], sampler.extra("fallen", windows)[:, 1, None]]
    targets = np.concatenate([*truth, batch.rewards.numpy()], axis=1).astype(np.float32)
    with torch.no_grad():
        latents = torch.cat([world.encode(part) for part in batch.pixels[:, 1].split(500)])
    return latents, torch.from_numpy(targets), batch.pixels[:, 1]


def learn_probe(world: WorldModel, train: Any, seed: int, steps: int = 3000) -> Probe:
    """Latents to x, y, fallen and reward: what plans are priced by, and what pictures show."""
    latents, targets, _ = labelled(world, train, 20_000, seed)
    return fit_mlp_probe(latents, targets, torch.Generator().manual_seed(seed), width=64, steps=steps)


def learn_decoder(world: WorldModel, train: Any, seed: int, steps: int = 3000) -> nn.Module:
    """Pictures out of frozen latents, for the eye only (RAE's idea); what moves weighs more than what stands still."""
    latents, _, pixels = labelled(world, train, 10_000, seed + 1)
    still = (pixels[:2000] / 255).mean(0)
    torch.manual_seed(seed)
    decoder = nn.Sequential(
        nn.Linear(world.latent_dim, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(),
        PictureDecoder(256, *world.spec.pixels[:2]),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in track(range(steps), "Decoder", "update"):
        rows = torch.randint(len(latents), (64,))
        real = pixels[rows] / 255
        error = (decoder(latents[rows]) - real).square()
        loss = (error * (1 + 50 * (real - still).abs())).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return decoder.eval().requires_grad_(False)


# -- plan -------------------------------------------------------------------------------------------


def priced_by(probe: Probe) -> Callable[[Any], Any]:
    """The cost of a path: minus the rewards of its states, as the probe reads them."""

    def cost(latents: Tensor, actions: Tensor) -> Tensor:
        return -probe(latents[:, :, 1:])[..., 3].sum(-1)

    return lambda _: cost


def planner(futures: int, risk: Risk) -> CEM:
    return CEM(horizon=6, samples=96, elites=12, iterations=4, init_std=0.4, futures=futures, risk=risk)


def agent(model: WorldModel, probe: Probe, futures: int, risk: Risk, seed: int = 0) -> MPCAgent:
    return MPCAgent(model, planner(futures, risk), cost=priced_by(probe), seed=seed)


def play_side_by_side(args: Args, flow: WorldModel, probe: Probe) -> list[np.ndarray]:
    """The same episode by the mean of the futures and by the worst share of them."""
    films = []
    for title, risk in (("by the mean", expected_cost), (f"worst {args.alpha:.0%}", CVaR(args.alpha))):
        actor, state = agent(flow, probe, args.futures, risk), None
        env = gym.make(
            "jepa_rl/TableEdge-v0", render_mode="rgb_array", max_episode_steps=6 if args.quick else 40
        )
        seen, _ = env.reset(seed=EVALUATION_SEED)
        earned, over, film = 0.0, False, []
        while not over:
            action, state = actor.predict(seen, state)
            seen, reward, terminated, truncated, _ = env.step(action)
            earned, over = earned + float(reward), terminated or truncated
            picture = Image.fromarray(env.render()).resize((256, 256))
            ImageDraw.Draw(picture).text((6, 4), f"{title}: {earned:.1f}", fill=(255, 255, 255))
            film.append(np.asarray(picture))
        films.append(film)
    return [np.concatenate(pair, axis=1) for pair in zip(*films, strict=True)]


# -- show -------------------------------------------------------------------------------------------

PUSHES = torch.tensor([[[0.75, 0.1], [0.75, 0.0], [0.6, -0.1], [0.6, 0.0]]])  # along the fork that is shown
FROM, GOAL = (0.66, 0.45), (0.9, 0.6)


def picture_of(positions: np.ndarray, fallen: np.ndarray, goal: tuple[float, float] = GOAL) -> np.ndarray:
    return rules.draw(positions, fallen, np.tile(goal, (len(positions), 1)))


@torch.no_grad()
def drawn(flow: WorldModel, futures: int) -> tuple[np.ndarray, Tensor]:
    """The real picture that the fork starts from, and futures "n h+1 d" of it."""
    real = picture_of(np.array([FROM]), np.array([False]))
    z = flow.encode(torch.from_numpy(real))
    return real[0], flow.rollout(z, PUSHES, futures=futures, generator=torch.Generator().manual_seed(0))[0]


def draw_futures(flow: WorldModel, probe: Probe, decoder: nn.Module, shown: int = 5) -> Any:
    real, paths = drawn(flow, shown)
    figure, axes = plt.subplots(shown, paths.shape[1], figsize=(1.6 * paths.shape[1], 1.6 * shown))
    for row, path in zip(axes, paths, strict=True):
        pictures = decoder(path).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        pictures[0] = real.transpose(1, 2, 0) / 255
        for step, (axis, picture) in enumerate(zip(row, pictures, strict=True)):
            axis.imshow(picture)
            axis.set(
                xticks=[], yticks=[], title=("real" if step == 0 else f"+{step}") if row is axes[0] else None
            )
    figure.suptitle("One picture, five futures")
    figure.tight_layout()
    return figure


def draw_fan(flow: WorldModel, probe: Probe, decoder: nn.Module, count: int = 60) -> Any:
    _, paths = drawn(flow, count)
    position, fallen = np.tile(FROM, (count, 1)), np.zeros(count, bool)
    rng, true = np.random.default_rng(0), [np.tile(FROM, (count, 1))]
    for push in PUSHES[0].double().numpy():
        uniform, shake = rng.random(count), rng.standard_normal((count, 2))
        position, fallen = rules.outcome(position, fallen, np.tile(push, (count, 1)), uniform, shake)
        true.append(position)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    shown = {"drawn by the flow": probe(paths)[..., 0].numpy(), "true outcomes": np.stack(true, 1)[..., 0]}
    for axis, (name, x) in zip(axes, shown.items(), strict=True):
        axis.plot(x.T, color="tab:blue", alpha=0.25)
        axis.axhline(1.0, color="black", linewidth=0.7, linestyle="--")
        axis.set(title=name, xlabel="step", ylabel="x (the edge is at 1)")
    figure.tight_layout()
    return figure


def draw_probability(flow: WorldModel, probe: Probe, decoder: nn.Module) -> Any:
    true, sampled = fall_frequencies(flow, probe, pushes_near_the_edge(400, seed=0), futures=64)
    figure, axis = plt.subplots(figsize=(4.2, 4))
    axis.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
    axis.scatter(true, sampled, s=6, alpha=0.6)
    axis.set(xlabel="true probability of falling", ylabel="share of the drawn futures")
    figure.tight_layout()
    return figure


def pushes_near_the_edge(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and pushes whose probability of falling covers the whole range evenly."""
    rng = np.random.default_rng(seed)
    at, push = (
        rng.uniform([0.6, 0.05], [1.0, 0.95], (40_000, 2)),
        rng.uniform([-0.2, -1], [1, 1], (40_000, 2)),
    )
    bins = np.minimum(10 * rules.fall_probability(at, push), 9).astype(int)
    rows = [rng.choice(np.flatnonzero(bins == k), count // 10, replace=False) for k in range(10)]
    return at[np.concatenate(rows)], push[np.concatenate(rows)]


@torch.no_grad()
def independent_futures(
    model: WorldModel, z: Tensor, actions: np.ndarray | Tensor, futures: int, seed: int, **sampler: Any
) -> Tensor:
    """Futures "b n h+1 d" of actions "b h a", with noise that at most four rows share.

    ``rollout`` uses the same noise for all rows (common random numbers), so that cost differences come from the plans.
    An average over rows would then depend on that single draw of noise.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = zip(z.split(4), torch.as_tensor(actions).float().split(4), strict=True)
    rollout = partial(model.dynamics.rollout, futures=futures, generator=generator, **sampler)
    return torch.cat([rollout(*part) for part in rows])


@torch.no_grad()
def fall_frequencies(
    model: WorldModel, probe: Probe, pushes: tuple[np.ndarray, np.ndarray], futures: int, **sampler: Any
) -> tuple[np.ndarray, np.ndarray]:
    """True probability of falling, and the share of the drawn futures that have fallen."""
    at, push = pushes
    z = model.encode(torch.from_numpy(picture_of(at, np.zeros(len(at), bool))))
    paths = independent_futures(model, z, push[:, None], futures, seed=0, **sampler)
    fallen = probe(paths[:, :, 1])[..., 2] > 0.5
    return rules.fall_probability(at, push), fallen.float().mean(1).numpy()


if __name__ == "__main__":
    main(tyro.cli(Args))
