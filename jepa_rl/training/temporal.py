"""Training of a ``TemporalDistance`` on encoded episodes."""

from __future__ import annotations

from typing import Any

import torch

from jepa_rl.checks import check_whole
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.progress import SOON, Progress
from jepa_rl.temporal import TemporalDistance
from jepa_rl.training.optimisers import descend


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
    latents, count = episodes.latents, len(episodes.actions)
    if not count:
        raise ValueError("the episodes hold no steps; encode some play first")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        distance = TemporalDistance(latents.shape[1], **{"limit": max_offset / block} | options)
    distance = distance.to(latents.device)
    distance.mean.copy_(latents.mean(0))
    distance.std.copy_(latents.std(0).clamp_min(1e-6))
    episode, left = episodes.episode_of_step, episodes.steps_left

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(distance.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    with Progress("Temporal distance", updates, shown=progress, delay=SOON) as bar:
        for _ in range(updates):
            now = torch.randint(count, (batch_size,), generator=generator)
            share = torch.rand(batch_size, generator=generator)
            offset = 1 + (share * left[now].clamp_max(max_offset)).long()
            state = now + episode[now]  # every episode has one more state than actions
            steps = (offset / block).to(latents)
            played = episode[now].to(latents.device)
            loss, _ = distance.loss(latents[state], latents[state + offset], steps, played)
            descend(loss, [optimizer], distance.parameters(), max_norm=float("inf"))
            schedule.step()
            bar.update()
    return distance.eval().requires_grad_(False)
