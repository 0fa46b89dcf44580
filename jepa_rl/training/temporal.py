"""Training of a ``TemporalDistance`` on encoded episodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_rl.checks import check_whole
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.temporal import TemporalDistance
from jepa_rl.training.later_states import learn_later_states


def train_temporal_distance(
    episodes: LatentEpisodes,
    *,
    block: int = 1,
    max_offset: int = 40,
    updates: int = 3000,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> TemporalDistance:
    """Learns how many latent steps lie between states of the same episode.

    Args:
        episodes: encoded play, see ``LatentEpisodes.encode``; it should go from anywhere to anywhere.
        block: environment steps of a latent step, in which distances are told.
        max_offset: environment steps to the farthest goal; goals lie 1 to ``max_offset`` steps ahead of a state,
            uniformly over what its episode still holds.
        updates, batch_size, learning_rate: AdamW's, the rate falling to zero as a cosine.
        seed: of weights and batches.
        progress: show the progress.
        options: of ``TemporalDistance``; ``limit`` is ``max_offset / block`` unless it is given.

    Returns:
        The distance, without gradients.

    Raises:
        ValueError: if a number is below 1, or there are no steps.
    """
    check_whole(block=block, max_offset=max_offset, updates=updates, batch_size=batch_size)
    latents = episodes.latents
    if not len(episodes.actions):
        raise ValueError("the episodes hold no steps; encode some play first")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        distance = TemporalDistance(latents.shape[1], **{"limit": max_offset / block} | options)
    distance = distance.to(latents.device)
    distance.mean.copy_(latents.mean(0))
    distance.std.copy_(latents.std(0).clamp_min(1e-6))
    episode = episodes.episode_of_step

    def loss(now: Tensor, offset: Tensor, state: Tensor) -> Tensor:
        steps, played = (offset / block).to(latents), episode[now].to(latents.device)
        return distance.loss(latents[state], latents[state + offset], steps, played)[0]

    learn_later_states(
        "Temporal distance", distance, loss, episodes, max_offset, updates=updates, batch_size=batch_size,
        learning_rate=learning_rate, seed=seed, progress=progress,
    )  # fmt: skip
    return distance.eval().requires_grad_(False)
