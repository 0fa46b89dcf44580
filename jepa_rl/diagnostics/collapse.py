"""Collapse of a latent space: rank, smoothness, and an alarm that says in words what is wrong."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def effective_rank(latents: Float[Tensor, "m d"]) -> float:
    """Exponential of the entropy of the normalised singular values (Roy & Vetterli 2007).

    Returns:
        1 to d; 0 where all latents are equal.
    """
    singular = torch.linalg.svdvals(latents.double() - latents.double().mean(0))
    if singular.sum() < 1e-9 * len(latents) ** 0.5:
        return 0.0
    share = singular / singular.sum()
    return float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum()))


def smoothness(latents: Float[Tensor, "b t d"]) -> float:
    """Mean cosine between successive changes of the latent, -1 to 1; 1 is a straight path (temporal straightening).

    Raises:
        ValueError: for paths of fewer than 3 states.
    """
    if latents.shape[1] < 3:
        raise ValueError(f"smoothness needs at least 3 states along a path, got {latents.shape[1]}")
    velocity = latents[:, 1:] - latents[:, :-1]
    return float(torch.nn.functional.cosine_similarity(velocity[:, 1:], velocity[:, :-1], dim=-1).mean())


def collapse_alarm(
    rank: float, std: Float[Tensor, " d"], action_gap: float, copy_ratio: float, has_motion: bool = True
) -> str | None:
    """Says what is wrong with a latent space.

    Args:
        rank: effective rank.
        std: standard deviation of each dimension over a batch.
        action_gap: relative rise of the rollout error with shuffled actions (``action_shuffle_gap``).
        copy_ratio: rollout error over the error of predicting no change; below 1 is better than copying.
        has_motion: whether the latents of held-out windows change along the way.

    Returns:
        The first fault that is found and its remedy in a sentence, or None.
    """
    dead = int((std < 1e-2).sum())
    if dead > len(std) // 2:
        return (
            f"collapse: {dead} of {len(std)} latent dimensions hardly vary (std < 0.01); "
            "train longer if this was a short try, else raise the weight of the objective's anti-collapse term "
            "(anti_collapse, sigreg or variance)"
        )
    if rank < min(2.0, 0.6 * len(std)):  # narrow latents cannot have a rank of 2
        return (
            f"collapse: the latents fill {rank:.1f} effective dimensions; train longer, raise "
            "anti_collapse, sigreg or covariance, whichever the objective has, or check that the observations differ "
            "from each other"
        )
    if not has_motion:
        return (
            "the latents do not change along an episode: the encoder represents only what stays constant; "
            "add or raise inverse_dynamics"
        )
    if action_gap < 0.05:
        return (
            f"the prediction ignores the actions (shuffling them raises its error by {100 * action_gap:.0f}%); "
            "add or raise inverse_dynamics, or check that the actions are aligned with the frames"
        )
    if copy_ratio > 1.0:
        return (
            f"the rollout is worse than predicting no change ({copy_ratio:.2f} times its error); "
            "train longer or shorten the window"
        )
    return None
