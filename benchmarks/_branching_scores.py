"""What dynamics say of TableEdge and of Fork, against the truth: scores for ``branching.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import branching_futures as example
from branching_futures import (
    STEPS,
    fall_frequencies,
    independent_futures,
    picture_of,
    pushes_near_the_edge,
)

from jepa_rl import WorldModel
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.diagnostics import Probe
from jepa_rl.dynamics import energy_score
from jepa_rl.envs.worlds import fork
from jepa_rl.envs.worlds import table_edge_rules as rules

EVALUATIONS = (1, 2, 4, 50)  # of the flow for each state
PUSHES = 100  # seed of the pushes that all training seeds are scored on
# Errors in table widths that ranks are read with, see ``rank_p_values``: half a pixel and a tenth of one. Full pushes
# shake by 0.01, which half a pixel hides in part; how much is told by a sampler that does not shake.
RESOLUTIONS = {"half_pixel": 0.5 / rules.TABLE, "tenth_of_a_pixel": 0.1 / rules.TABLE}


def measure(
    models: dict[str, WorldModel],
    probe: Probe,
    latents: LatentEpisodes,
    held_out: Any,
    seed: int,
    quick: bool,
) -> dict[str, Any]:
    """All scores of one training seed, by the name of the dynamics; the flow's by its evaluations, too."""
    count, futures = (40, 16) if quick else (400, 256)
    pushes = pushes_near_the_edge(count, PUSHES)
    samplers = {k: (m, {}) for k, m in models.items() if k != "flow"}
    samplers |= {f"flow_{k}": (models["flow"], {"evaluations": k}) for k in EVALUATIONS}
    seen, truth, _ = example.labelled(models["flow"], held_out, 50 if quick else 2000, seed)
    residual = (truth - probe(seen)).square().mean(0) / truth.var(0).clamp_min(1e-9)
    known = zip(("x", "y", "fallen", "reward"), (1 - residual).tolist(), strict=True)
    found: dict[str, Any] = {"probe_r2": dict(known)}
    found |= frequencies(samplers, probe, pushes, futures)
    found |= scores(samplers, probe, pushes, 8 if quick else 64)
    found |= along_the_horizon(models, probe, seed, *((60, 15) if quick else (800, 63)))
    found |= off_manifold(models, latents, held_out, seed)
    return found


def frequencies(samplers: dict[str, Any], probe: Probe, pushes: Any, futures: int) -> dict[str, Any]:
    """Mean absolute error of the probability of falling: of ten bins over the whole range, and of single pushes."""
    binned, single, both = {}, {}, {}
    for name, (model, sampler) in samplers.items():
        true, sampled = fall_frequencies(model, probe, pushes, futures, **sampler)
        bins = np.minimum(10 * true, 9).astype(int)
        gaps = [abs(true[bins == k].mean() - sampled[bins == k].mean()) for k in range(10)]
        binned[name], single[name] = float(np.mean(gaps)), float(np.abs(true - sampled).mean())
        uncertain = (true >= 0.1) & (true <= 0.9)
        both[name] = float(((sampled > 0) & (sampled < 1))[uncertain].mean())
    return {"frequency_mae": binned, "frequency_mae_per_push": single, "both_outcomes_present": both}


@torch.no_grad()
def encoded_outcomes(model: WorldModel, at: np.ndarray, push: np.ndarray, count: int, seed: int) -> Tensor:
    """Latents "b n d" of true outcomes of each push, through the rules, the picture and the encoder."""
    rng, b = np.random.default_rng(seed), len(at)
    rows, taken = np.repeat(at, count, axis=0), np.repeat(push, count, axis=0)
    uniform, shake = rng.random(b * count), rng.standard_normal((b * count, 2))
    position, fallen = rules.outcome(rows, np.zeros(b * count, bool), taken, uniform, shake)
    parts = [
        model.encode(torch.from_numpy(picture_of(position[i : i + 500], fallen[i : i + 500])))
        for i in range(0, b * count, 500)
    ]
    return torch.cat(parts).unflatten(0, (b, count))


def score(samples: Tensor, truth: Tensor) -> float:
    """Mean energy score of samples "b n d" over true outcomes "b m d"."""
    per = [energy_score(samples, truth[:, i]).mean() for i in range(truth.shape[1])]
    return float(torch.stack(per).mean())


@torch.no_grad()
def scores(samplers: dict[str, Any], probe: Probe, pushes: Any, count: int) -> dict[str, Any]:
    """One step: energy score in standardised latents and CRPS of the decoded x, over those of the true sampler."""
    at, push = pushes
    world = samplers["point"][0]
    truth, drawn = (encoded_outcomes(world, at, push, count, s) for s in (1, 2))
    z = world.encode(torch.from_numpy(picture_of(at, np.zeros(len(at), bool))))
    std = samplers["flow_4"][0].dynamics.std  # of all states
    base, base_x = score(drawn / std, truth / std), score(probe(drawn)[..., :1], probe(truth)[..., :1])
    energy, crps = {}, {}
    for name, (model, sampler) in samplers.items():
        samples = independent_futures(model, z, push[:, None], count, seed=3, **sampler)[:, :, 1]
        energy[name] = score(samples / std, truth / std) / base
        crps[name] = score(probe(samples)[..., :1], probe(truth)[..., :1]) / base_x
    return {
        "energy_ratio": energy,
        "crps_ratio": crps,
        "few_step_energy_penalty": energy["flow_4"] / energy["flow_50"] - 1,
    }


@torch.no_grad()
def along_the_horizon(
    models: dict[str, WorldModel], probe: Probe, seed: int, rows: int, futures: int, horizon: int = 8
) -> dict[str, Any]:
    """Rank of the true x among those that the flow draws, after 1 to 8 steps of random pushes (``rank_p_values``).

    Beside them stand those of a control: the true world without its shaking, which says what the test can see. An
    equal p-value for both would mean that the test sees nothing of the noise.

    Exposure bias: the CRPS of the decoded x after k steps of the model's own, over that of k steps of the true sampler
    ("own"), beside single steps from true states over single true ones ("given").
    """
    rng = np.random.default_rng(500 + seed)
    at, push = rng.uniform([0.3, 0.1], [0.9, 0.9], (rows, 2)), rng.uniform(-0.6, 0.9, (rows, horizon, 2))
    position, fallen = at, np.zeros(rows, bool)
    start = np.repeat(at, futures, axis=0), np.zeros(rows * futures, bool)
    own, still = start, start
    true, x, sampled, control = (
        [models["flow"].encode(torch.from_numpy(picture_of(position, fallen)))],
        [],
        ([], []),
        [],
    )
    for i in range(horizon):
        given = np.repeat(position, futures, axis=0), np.repeat(fallen, futures)
        taken, uniform = np.repeat(push[:, i], futures, axis=0), rng.random(rows * futures)
        shake = rng.standard_normal((rows * futures, 2))
        own, given = (rules.outcome(*state, taken, uniform, shake) for state in (own, given))
        still = rules.outcome(*still, taken, uniform, np.zeros_like(shake))
        control.append(torch.from_numpy(still[0][:, 0]).float().view(rows, futures))
        for found, (place, _) in zip(sampled, (own, given), strict=True):
            found.append(torch.from_numpy(place[:, :1]).float().view(rows, futures, 1))
        position, fallen = rules.outcome(
            position, fallen, push[:, i], rng.random(rows), rng.standard_normal((rows, 2))
        )
        true.append(models["flow"].encode(torch.from_numpy(picture_of(position, fallen))))
        x.append(torch.from_numpy(position[:, :1]).float())
    z, states = true[0], torch.stack(true, 1)
    truth = probe(states[:, 1:])[..., 0]  # through the encoder and the probe, as what is drawn
    crps = {kind: {"own": [], "given": []} for kind in models}
    longer = {
        kind: probe(independent_futures(model, z, push, futures, seed)[:, :, 1:])[..., :1]
        for kind, model in models.items()
    }
    for kind, model in models.items():
        steps = independent_futures(
            model, states[:, :-1].flatten(0, 1), push.reshape(-1, 1, 2), futures, seed
        )
        single = probe(steps[:, :, 1]).unflatten(0, (rows, horizon))[..., :1].transpose(1, 2)
        for name, drawn, real in zip(crps[kind], (longer[kind], single), sampled, strict=True):
            crps[kind][name] = [
                float(energy_score(drawn[:, :, i], x[i]).mean() / energy_score(real[i], x[i]).mean())
                for i in range(horizon)
            ]
    drawn = longer["flow"][..., 0]
    without = torch.stack(control, 2), torch.cat(x, 1)
    flow, unshaken = {}, {}
    for name, width in RESOLUTIONS.items():
        flow[name], histograms = rank_p_values(drawn, truth, width, seed)
        unshaken[name], _ = rank_p_values(*without, width, seed)
    return {
        "calibration_p_values": flow,
        "calibration_p_values_without_shaking": unshaken,
        "rank_histograms": histograms,
        "spread_along_horizon": drawn.std(1).mean(0).tolist(),
        "crps_along_horizon": crps,
    }


def rank_p_values(
    drawn: Tensor, truth: Tensor, resolution: float, seed: int
) -> tuple[list[float], list[list[int]]]:
    """Whether the truth is one of the draws: its rank among them, flat over many rows where that is so.

    Objects at the rim and fallen ones are all at the very same place, where no rank means anything: both sides are
    read with an error, and calibrated means calibrated at that resolution. A larger error hides more.

    Args:
        drawn: "b n h", ``n + 1`` a multiple of eight.
        truth: "b h".
        resolution: standard deviation of the error.
        seed: of the error and of the simulated flat histograms.

    Returns:
        For every step the p-value of the histogram of ranks in eight bins (chi-square, by simulation), and the
        histograms.
    """
    rows, futures, horizon = drawn.shape
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)

    def read(x: Tensor) -> Tensor:
        return x + resolution * torch.randn(x.shape, generator=generator)

    rank = (read(drawn) < read(truth)[:, None]).sum(1).numpy()  # b h
    flat = rng.multinomial(rows, np.full(8, 1 / 8), size=4000)
    off_when_flat = ((flat - rows / 8) ** 2).sum(1)
    counts = [np.bincount(rank[:, i] * 8 // (futures + 1), minlength=8) for i in range(horizon)]
    p_values = [float((off_when_flat >= ((found - rows / 8) ** 2).sum()).mean()) for found in counts]
    return p_values, [found.tolist() for found in counts]


def flat_everywhere(p_values: list[list[float]]) -> dict[str, Any]:
    """Whether no histogram differs from a flat one, all of them tested at 5% together (Bonferroni), and which do."""
    level = 0.05 / sum(map(len, p_values))
    off = [(i, step + 1) for i, run in enumerate(p_values) for step, p in enumerate(run) if p < level]
    return {"flat": not off, "level_of_each": level, "run_and_step_of_those_that_are_not": off}


@torch.no_grad()
def off_manifold(
    models: dict[str, WorldModel], latents: LatentEpisodes, held_out: Any, seed: int
) -> dict[str, dict[str, float]]:
    """After ten training horizons: distance to the nearest training latent, over that of held-out latents, and the
    share of states that are farther away than 99% of held-out ones."""
    generator = torch.Generator().manual_seed(seed)
    known = latents.latents[torch.randperm(len(latents.latents), generator=generator)[:20_000]]
    unseen = LatentEpisodes.encode(models["flow"], held_out).latents[:500]
    std = known.std(0)
    pushes = 2 * torch.rand(len(unseen), 10 * STEPS, 2, generator=generator) - 1
    away = lambda z: torch.cdist(z / std, known / std).min(1).values  # noqa: E731
    usual = away(unseen)
    ends = {
        kind: away(independent_futures(m, unseen, pushes, 1, seed)[:, 0, -1]) for kind, m in models.items()
    }
    far = usual.quantile(0.99)
    return {
        "off_manifold_at_10x": {kind: float(end.mean() / usual.mean()) for kind, end in ends.items()},
        "off_manifold_share_at_10x": {kind: float((end > far).float().mean()) for kind, end in ends.items()},
    }


@torch.no_grad()
def _encoded_forks(world: WorldModel, x: np.ndarray, step: int, side: int) -> Tensor:
    return world.encode(torch.from_numpy(np.stack([fork.draw(float(at), step, side) for at in x])))


def at_the_fork(models: dict[str, WorldModel]) -> dict[str, Any]:
    """Fork, the step in which a door opens: distance of what is predicted to the nearer of the two true outcomes."""
    std = models["flow"].dynamics.std
    rng = np.random.default_rng(900)
    x, move = rng.uniform(-0.5, 0.5, 200), rng.uniform(-1, 1, 200)
    world = models["flow"]
    z = _encoded_forks(world, x, fork.DECISION - 1, 0)
    outcomes = torch.stack(
        [_encoded_forks(world, x + fork.SPEED * move, fork.DECISION, side) for side in (-1, 1)], 1
    )
    away = {}
    for kind, model in models.items():
        with torch.no_grad():
            drawn = model.rollout(
                z,
                torch.from_numpy(move).float()[:, None, None],
                futures=16,
                generator=torch.Generator().manual_seed(0),
            )[:, :, 1]
        away[kind] = float(torch.cdist(drawn / std, outcomes / std).min(-1).values.mean())
    return {
        "distance_to_nearest_outcome": away,
        "impossible_average_ratio": away["point"] / away["flow"],
    }
