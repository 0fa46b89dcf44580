"""Training of small networks on pairs of states of the same episode: one now, and one later (hindsight goals)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.progress import SOON, Progress
from jepa_rl.training.optimisers import descend

# Environment steps now, how many steps later, and the rows of the states now, to a loss.
PairLoss = Callable[[Int64[Tensor, " b"], Int64[Tensor, " b"], Int64[Tensor, " b"]], Float[Tensor, ""]]


def learn_later_states(
    title: str,
    network: nn.Module,
    loss: PairLoss,
    episodes: LatentEpisodes,
    max_offset: int,
    *,
    updates: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: bool,
) -> None:
    """Trains by AdamW, the rate falling to zero as a cosine.

    Args:
        title: of the progress.
        network: is trained in place.
        loss: of pairs; the later state is ``offset`` rows behind the state now.
        episodes: that the pairs are drawn from: every step is as likely, and the later state lies 1 to ``max_offset``
            steps ahead, uniformly over what its episode still holds.
        max_offset: environment steps.
        updates, batch_size, learning_rate, seed, progress: as usual.
    """
    episode, left = episodes.episode_of_step, episodes.steps_left
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    with Progress(title, updates, shown=progress, delay=SOON) as bar:
        for _ in range(updates):
            now = torch.randint(len(left), (batch_size,), generator=generator)
            share = torch.rand(batch_size, generator=generator)
            offset = 1 + (share * left[now].clamp_max(max_offset)).long()
            state = now + episode[now]  # every episode has one more state than actions
            descend(loss(now, offset, state), [optimizer], network.parameters(), max_norm=float("inf"))
            schedule.step()
            bar.update()
