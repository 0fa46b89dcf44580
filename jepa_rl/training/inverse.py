"""Training of an ``InverseModel`` on encoded episodes."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.data.store import EpisodeStore
from jepa_rl.data.view import EpisodeView
from jepa_rl.inverse import InverseModel
from jepa_rl.training.later_states import learn_later_states
from jepa_rl.world_model import WorldModel


def train_inverse_model(
    model: WorldModel,
    episodes: EpisodeStore | EpisodeView,
    *,
    max_offset: int = 5,
    updates: int = 2000,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> InverseModel:
    """Learns which action led to what came later, with hindsight goals (Andrychowicz et al. 2017; Ghosh et al. 2021).

    Every state is encoded once; then only latents are touched. Goals lie 1 to ``max_offset`` environment
    steps ahead of a state, uniformly over what its episode still holds.

    Args:
        model: a trained world model; it stays as it is.
        episodes: any play in its environment.
        max_offset: environment steps to the farthest goal. Random play reaches a far state by many ways, whose
            mean is close to no action at all: keep it small unless the data go where they want to.
        updates, batch_size, learning_rate: AdamW's, the rate falling to zero as a cosine.
        seed: of weights and batches.
        progress: show the progress.

    Returns:
        The inverse model, without gradients.

    Raises:
        ValueError: if there are no episodes, they show or do other things than the model knows, or a number
            is below 1.
    """
    for name, value in (("max_offset", max_offset), ("updates", updates), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    encoded = LatentEpisodes.encode(model, episodes, progress=progress)
    latents, actions = encoded.latents, encoded.actions
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inverse = InverseModel(model.latent_dim, model.spec.action).to(latents.device)
    inverse.mean.copy_(latents.mean(0))
    inverse.std.copy_(latents.std(0).clamp_min(1e-6))

    def loss(now: Tensor, offset: Tensor, state: Tensor) -> Tensor:
        return inverse.loss(latents[state], latents[state + offset], actions[now])

    learn_later_states(
        "Inverse model", inverse, loss, encoded, max_offset, updates=updates, batch_size=batch_size,
        learning_rate=learning_rate, seed=seed, progress=progress,
    )  # fmt: skip
    return inverse.requires_grad_(False)
