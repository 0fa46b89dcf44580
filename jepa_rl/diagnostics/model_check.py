"""The evaluation of a world model while ``fit`` trains it, on windows of held-out episodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.data import WindowSampler
from jepa_rl.diagnostics.collapse import collapse_alarm, effective_rank, smoothness
from jepa_rl.diagnostics.figures import latent_map, std_bars
from jepa_rl.diagnostics.rollouts import action_shuffle_gap, rollout_error
from jepa_rl.training import Evaluate, Evaluation
from jepa_rl.types import Metrics
from jepa_rl.world_model import WorldModel

# Latents count as moving if their `motion` over a window is at least this. For scale: a latent that is spread uniformly
# over a range and crosses a twentieth of it has 0.015.
MOTION = 3e-3

CHUNK = 512  # pictures encoded at a time


def world_model_evaluation(
    held_out: WindowSampler, *, windows: int = 256, seed: int = 0, extras: Sequence[str] = ()
) -> Evaluate:
    """Makes the ``evaluate`` of ``fit`` for world models. It looks at the same held-out windows at every call.

    Metrics: ``jepa/effective_rank``; ``jepa/std_min``, ``_mean`` and ``_max`` over latent dimensions;
    ``jepa/smoothness``; ``model/rollout_error_<k>`` for k = 1..h latent steps, relative to the error of predicting no
    change, so that below 1 is useful; ``model/action_gap`` (``action_shuffle_gap``). Figures: ``jepa/latent_map``,
    coloured by the time in the episode and by the extras, and ``jepa/std``. The alarm is that of ``collapse_alarm``.

    Args:
        held_out: windows of episodes that are not trained on; rollouts are as long as these windows.
        windows: how many of them are drawn, at least 2.
        seed: of the choice of windows and of the shuffled actions.
        extras: names of stored extras to colour the latent map with, such as ``"position"``.

    Returns:
        A function of the model that gives an ``Evaluation``.

    Raises:
        ValueError: for fewer than 2 windows, or an extra that is not stored.
    """
    if windows < 2:
        raise ValueError(f"an evaluation needs at least 2 windows, got {windows}")
    numbers = held_out.draw(windows, np.random.default_rng(seed))
    colours = _colours(held_out, numbers, extras)
    batch = held_out.batch(numbers)

    def evaluate(model: WorldModel) -> Evaluation:
        device = next(model.parameters()).device
        latents, actions = encode_in_chunks(model, batch.pixels), batch.actions.to(device)
        points = latents.flatten(0, 1)
        rank, std, errors = effective_rank(points), points.std(0), rollout_error(model, latents, actions)
        gap = action_shuffle_gap(model, latents, actions, torch.Generator().manual_seed(seed))
        metrics: Metrics = {
            "jepa/effective_rank": rank,
            "jepa/std_min": float(std.min()),
            "jepa/std_mean": float(std.mean()),
            "jepa/std_max": float(std.max()),
            "model/action_gap": gap,
        }
        metrics |= {f"model/rollout_error_{k}": error for k, error in enumerate(errors.tolist(), 1)}
        if held_out.steps > 1:
            metrics["jepa/smoothness"] = smoothness(latents)
        alarm = collapse_alarm(rank, std, gap, float(errors.mean()), bool(motion(latents) >= MOTION))
        figures = {"jepa/latent_map": latent_map(points, colours), "jepa/std": std_bars(std)}
        return Evaluation(metrics, figures, alarm)

    return evaluate


@torch.no_grad()
def encode_in_chunks(model: WorldModel, pixels: Tensor, chunk: int = CHUNK) -> Float[Tensor, "b t d"]:
    """Latents of windows, on the model's device.

    Args:
        model: encodes them.
        pixels: uint8 "b t c y x", on any device.
        chunk: pictures encoded at a time.
    """
    device = next(model.parameters()).device
    pictures = pixels.flatten(0, 1)
    return torch.cat([model.encode(part.to(device)) for part in pictures.split(chunk)]).unflatten(
        0, pixels.shape[:2]
    )


def motion(latents: Float[Tensor, "b t d"]) -> float:
    """Mean squared displacement from the first to the last state, divided by twice the variance of all states.

    Returns:
        0 where latents represent only what stays constant; 1 where first and last state are independent.
    """
    moved = (latents[:, -1] - latents[:, 0]).square().mean()
    return float(moved / (2.0 * latents.flatten(0, 1).var(0).mean()).clamp_min(1e-12))


def _colours(held_out: WindowSampler, numbers: np.ndarray, extras: Sequence[str]) -> dict[str, np.ndarray]:
    """One number for each state of the windows (flattened) under each name."""
    _, start = held_out.locate(numbers)
    steps = start[:, None] + held_out.spec.block * np.arange(held_out.steps + 1)
    colours = {"time in the episode (environment steps)": steps.reshape(-1)}
    for name in extras:
        column = held_out.extra(name, numbers)
        column = column.reshape(steps.size, -1).astype(np.float64)
        for i in range(column.shape[1]):
            colours[name if column.shape[1] == 1 else f"{name}[{i}]"] = column[:, i]
    return colours
