"""What is measured of a space and of the dynamics on it, beside success."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from _h2h_spaces import Space, bounds, latent_episodes, rows_of, stacked
from _h2h_tasks import Planning, Seen, Task, draws_futures
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jepa_rl.data.latent_windows import LatentEpisodes, LatentWindowSampler
from jepa_rl.data.view import EpisodeView
from jepa_rl.diagnostics import (
    Probe,
    effective_rank,
    fit_linear_probe,
    fit_mlp_probe,
    r2_score,
    rollout_error,
)
from jepa_rl.heads import PictureDecoder
from jepa_rl.objectives.vae import unexplained
from jepa_rl.training.optimisers import descend

FUTURES = 8  # whose mean is a prediction
DECISIONS = 20  # made at once, when one is timed
DETAIL = (1, 4, 16)  # rows and columns of the cells that decoded pictures are compared in
HORIZON = 3  # latent steps of the counterfactual


@dataclass(frozen=True)
class Sizes:
    """How much is looked at; ``quick`` makes all of it small."""

    frames: int = 12_000
    windows: int = 600
    worlds: int = 100
    probe_updates: int = 1500
    decoder_updates: int = 400


QUICK = Sizes(frames=200, windows=20, worlds=4, probe_updates=10, decoder_updates=2)


def sample_rows(view: EpisodeView, count: int, seed: int) -> Tensor:
    """Rows of some frames of a view."""
    rows = rows_of(view)
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return rows[torch.from_numpy(chosen)]


# -- the space ----------------------------------------------------------------------------------------


def probe_of(task: Task, latents: Tensor, train: EpisodeView, seed: int, sizes: Sizes) -> Probe:
    """A perceptron from the latents of training frames to their true state."""
    state, rows = torch.from_numpy(task.describe(train.store.column)), sample_rows(train, sizes.frames, seed)
    generator = torch.Generator().manual_seed(seed)
    return fit_mlp_probe(latents[rows], state[rows], generator, width=128, steps=sizes.probe_updates)


def of_space(
    task: Task, space: Space, latents: Tensor, views: tuple[EpisodeView, EpisodeView], seed: int, sizes: Sizes
) -> dict[str, Any]:
    """Probes of the true state, rank, retrieval, smoothness along actions, and how well pictures can be decoded.

    Args:
        task: the frames' task.
        space: that they were encoded in.
        latents: of all frames of the store.
        views: training and held-out episodes.
        seed: of all choices.
        sizes: how much is looked at.
    """
    train, held_out = views
    state = torch.from_numpy(task.describe(train.store.column))
    seen, unseen = (
        sample_rows(v, n, seed) for v, n in ((train, sizes.frames), (held_out, sizes.frames // 3))
    )
    probe = probe_of(task, latents, train, seed, sizes)
    linear = fit_linear_probe(latents[seen], state[seen])
    spread = state[seen].std(0).clamp_min(1e-6)
    found: dict[str, Any] = {
        "probe_r2": named(task, r2_score(probe(latents[unseen]), state[unseen])),
        "linear_probe_r2": named(task, r2_score(linear(latents[unseen]), state[unseen])),
        "effective_rank": effective_rank(latents[unseen] * space.scale),  # as the arm made them
        "width": latents.shape[1],
        "retrieval": retrieval(latents[unseen], state[unseen] / spread, episodes_of(held_out, unseen)),
        "smoothness": smoothness_along(task, latents, state / spread, held_out),
        "encoder_multiply_adds": multiply_adds(space, train),
    }
    if space.reads == "pixels":
        found |= decoded(latents, train.store, seen, unseen, seed, sizes.decoder_updates)
    return found


def named(task: Task, values: Tensor) -> dict[str, float]:
    return dict(zip(task.names, values.tolist(), strict=True))


def episodes_of(view: EpisodeView, rows: Tensor) -> Tensor:
    """The episodes that frames belong to."""
    firsts = torch.tensor([first for first, _ in bounds(view)])
    order = firsts.argsort()
    return order[torch.searchsorted(firsts[order], rows, right=True) - 1]


def retrieval(
    latents: Float[Tensor, "m w"], state: Float[Tensor, "m s"], episode: Int64[Tensor, " m"]
) -> float:
    """Distance in the true state to the nearest frame of another episode, over that to any frame: 0 is best, 1 chance.

    Frames of the same episode share what never changes in it, by which any space finds them.
    """
    apart = torch.cdist(latents, latents)
    apart[episode[:, None] == episode] = torch.inf
    nearest = state[apart.argmin(1)]
    chance = torch.pdist(state[:1000]).mean()
    return float((state - nearest).norm(dim=1).mean() / chance)


def smoothness_along(task: Task, latents: Tensor, state: Tensor, view: EpisodeView) -> dict[str, float]:
    """How evenly the latent moves as the actions move the state, on held-out episodes.

    ``jumpiness``: the 95th percentile of the change of the latent per change of the state, over its median; of single
    environment steps that move the state. ``curvature``: median angle in degrees between changes that follow each
    other, a latent step long, where both move the state; ``state_curvature`` is the same of the true state.
    """
    both = latent_episodes(torch.cat([latents, state], 1), view, 1)
    width = latents.shape[1]
    short = LatentWindowSampler(both, 1, 1).sample(4000, np.random.default_rng(0)).latents
    dz, ds = (part.diff(dim=1)[:, 0].norm(dim=-1) for part in short.split([width, state.shape[1]], -1))
    moved = ds > 0.2 * ds.mean()
    ratio = dz[moved] / ds[moved]
    long = LatentWindowSampler(both, 2, task.block).sample(2000, np.random.default_rng(1)).latents
    latent_paths, state_paths = long.split([width, state.shape[1]], -1)
    moving = (state_paths.diff(dim=1).norm(dim=-1) > 1e-6).all(1)
    if not moving.any():
        moving[:] = True
    angles = [angle(part[moving]) for part in (latent_paths, state_paths)]
    return {
        "jumpiness": float(ratio.quantile(0.95) / ratio.median().clamp_min(1e-9)),
        "curvature": angles[0],
        "state_curvature": angles[1],
    }


def angle(paths: Float[Tensor, "b 3 d"]) -> float:
    """Median angle between the two changes of each path, degrees."""
    first, second = paths.diff(dim=1).unbind(1)
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=-1).clamp(-1, 1)
    return float(cosine.acos().rad2deg().median())


def decoded(
    latents: Tensor, store: Any, seen: Tensor, unseen: Tensor, seed: int, updates: int
) -> dict[str, float]:
    """How well a small network decodes held-out pictures from frozen latents; it adds to the mean picture of the data.

    ``decoder_psnr``: peak signal-to-noise ratio in dB, which hardly counts small things. ``decoder_r2``: share of the
    pictures' variance that is decoded, mean over channels and sizes of detail, so that a dot in a channel of its own
    counts as much as walls; still pixels do not count. Channels that never change count as decoded.
    """
    frames = store.column("frames")
    torch.manual_seed(seed)
    decoder = PictureDecoder(latents.shape[1], *frames.shape[1:3])
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, updates)
    rng = np.random.default_rng(seed)

    def pictures(rows: Tensor) -> Tensor:
        return torch.from_numpy(np.array(frames[rows.numpy()])).float() / 255

    mean = pictures(seen[:1000]).mean(0)  # what never changes would take most of the updates to learn
    for _ in range(updates):
        rows = seen[torch.from_numpy(rng.integers(len(seen), size=64))]
        loss = unexplained(mean + decoder(latents[rows]), pictures(rows), DETAIL).mean()
        descend(loss, [optimizer], decoder.parameters(), max_norm=float("inf"))
        schedule.step()
    rows = unseen[:500]
    with torch.no_grad():
        drawn, shown = (mean + decoder(latents[rows])).clamp(0, 1), pictures(rows)
        error, missed = (drawn - shown).square().mean(), unexplained(drawn, shown, DETAIL).mean()
    return {"decoder_psnr": float(-10 * error.log10()), "decoder_r2": float(1 - missed)}


@torch.no_grad()
def multiply_adds(space: Space, view: EpisodeView) -> int:
    """Of encoding one frame."""
    if space.encoder is None:
        return 0
    frame = np.array(view.store.column("frames")[:1])
    with FlopCounterMode(display=False) as counter:
        space.raw(frame)
    return counter.get_total_flops() // 2


# -- the dynamics -------------------------------------------------------------------------------------


class Scene(NamedTuple):
    """Dynamics on a space of a task, a probe that reads the true state off its latents, and the search that plans."""

    task: Task
    space: Space
    dynamics: Any
    probe: Probe
    search: dict[str, Any]


def of_dynamics(
    scene: Scene, latents: Tensor, held_out: EpisodeView, seeds: list[int], sizes: Sizes
) -> dict[str, Any]:
    """Errors of rollouts in units of the state, of counterfactuals, what surprises, and the cost of a step and a plan.

    ``rollout_error``: of all of the state, after 0 (the probe's own error) to h steps; ``rollout_errors``: of each of
    its components; ``one_future_error``: of one draw, where the others are those of the mean of ``FUTURES`` draws.

    Args:
        scene: what is measured.
        latents: of all frames of the store.
        held_out: episodes.
        seeds: of worlds for the counterfactual.
        sizes: how much is looked at.
    """
    task, space, dynamics, probe, _ = scene
    state = torch.from_numpy(task.describe(held_out.store.column))
    width, size = latents.shape[1], state.shape[1]
    plain = latent_episodes(latents, held_out, task.frames)
    both = LatentEpisodes(
        torch.cat([plain.latents, stacked(state, held_out, 1)], 1), plain.actions, plain.lengths
    )
    windows = LatentWindowSampler(both, task.steps, task.block).sample(
        sizes.windows, np.random.default_rng(0)
    )
    z, truth = windows.latents.split([task.frames * width, size], -1)
    states = probe(futures_of(dynamics, z[:, 0], windows.actions)[..., -width:])  # of each future
    spread = truth.flatten(0, 1).var(0).clamp_min(1e-9)
    mean, one = ((path - truth).square().mean(0) / spread for path in (states.mean(1), states[:, 0]))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        dynamics.rollout(z[:1, 0], windows.actions[:1, :1])
    found = {
        "rollout_error": mean.mean(1).sqrt().tolist(),
        "rollout_errors": {name: off.tolist() for name, off in zip(task.names, mean.sqrt().T, strict=True)},
        "one_future_error": one.mean(1).sqrt().tolist(),
        "latent_error_over_copying": rollout_error(dynamics, z, windows.actions).tolist(),
        "counterfactual_r2": counterfactual(scene, seeds),
        "dynamics_multiply_adds": counter.get_total_flops() // 2,
        "decision_seconds": decision_seconds(scene, seeds),
    }
    if task.violations is not None:
        found["surprise_auc"] = surprise_auc(task, space, dynamics, sizes.worlds)
    return found


@torch.no_grad()
def futures_of(
    dynamics: Any, z: Float[Tensor, "b d"], actions: Float[Tensor, "b h a"]
) -> Float[Tensor, "b n h+1 d"]:
    """Some draws, or one where nothing is drawn."""
    futures = FUTURES if draws_futures(dynamics) else 1
    return dynamics.rollout(z, actions, futures=futures, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def decision_seconds(scene: Scene, seeds: list[int]) -> float:
    """Processor seconds of one decision of one episode, with ``DECISIONS`` episodes planned for at once."""
    task, space, dynamics, _, search = scene
    seeds = seeds[:DECISIONS]
    rows, worlds = np.arange(len(seeds)), task.begin(seeds)
    planning = Planning.of(task, space, dynamics, worlds, search)
    z = space.read(worlds.seen(rows)).flatten(1)
    worlds.close()
    began = time.process_time()
    planning.plan(rows, z, planning.warm(len(seeds)), torch.Generator().manual_seed(0))
    return (time.process_time() - began) / len(seeds)


def counterfactual(scene: Scene, seeds: list[int]) -> float:
    """R2 of the difference that other actions make from the same start, after ``HORIZON`` latent steps."""
    task, space, dynamics, probe, _ = scene
    rng, rows = np.random.default_rng(0), np.arange(len(seeds))
    differences: list[list[Tensor]] = []
    for _ in range(2):
        worlds = task.begin(seeds)
        z = space.read(worlds.seen(rows)).flatten(1)
        size = dynamics.action_dim // task.block
        plan = rng.uniform(-1, 1, (len(seeds), HORIZON, size)).astype(np.float32)
        for action in plan.swapaxes(0, 1):
            for left in reversed(range(task.block)):
                worlds.step(rows, action, watched=left < task.frames)
        held = torch.from_numpy(plan).repeat(1, 1, task.block)
        ends = futures_of(dynamics, z, held)[:, :, -1]
        after = worlds.seen(rows)
        width = ends.shape[-1] // task.frames
        differences.append([probe(ends[..., -width:]).mean(1), torch.from_numpy(after.state[:, -1])])
        worlds.close()
    (first, true_first), (second, true_second) = differences
    truth = true_first - true_second
    weight = 1 / truth.var(0).clamp_min(1e-6)
    moved = truth.var(0) > 1e-6
    error = ((first - second - truth).square() * weight)[:, moved].mean()
    return float(1 - error / (truth.square() * weight)[:, moved].mean())


def surprise_auc(task: Task, space: Space, dynamics: Any, count: int) -> dict[str, float]:
    """Share of pairs in which the impossible step is predicted worse than the ordinary one, for each kind."""
    assert task.violations is not None
    kinds = task.violations(count)
    error = {name: surprise(space, dynamics, *step) for name, step in kinds.items()}
    ordinary = error.pop("ordinary")
    return {name: float((found[:, None] > ordinary).float().mean()) for name, found in error.items()}


def surprise(space: Space, dynamics: Any, now: Seen, actions: np.ndarray, after: Seen) -> Float[Tensor, " n"]:
    """Distance of the newest frame's latent to what was expected."""
    z, to = space.read(now).flatten(1), space.read(after)[:, -1]
    futures = futures_of(dynamics, z, torch.from_numpy(actions).float()[:, None])
    return (futures[:, :, 1, -to.shape[1] :].mean(1) - to).norm(dim=1)
