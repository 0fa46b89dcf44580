"""The latent of an encoder of tokens as their exact principal components."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from jepa_rl.modes import evaluating


@torch.no_grad()
def fit_readout(encoder: nn.Module, pixels: UInt8[Tensor, "n c y x"], rows: int = 256) -> float:
    """Sets an encoder's latent to the principal components of its tokens' summary, each of variance 1.

    It uses no labels and leaves the tokens alone. Dynamics that were trained before read other latents: train them
    anew (``refine_dynamics``).

    Args:
        encoder: as ``ViTEncoder``: its latent is ``norm(project(summary(tokens(pixels))))``, a linear layer and a batch
            norm without parameters of its own. Changed in place.
        pixels: pictures of the data, more than there are latent dimensions.
        rows: pictures that are encoded at a time.

    Returns:
        The share of the summary's variance that the components have.

    Raises:
        ValueError: for an encoder of another kind, or if the summaries vary in fewer directions than there are latents.
    """
    layer, norm = getattr(encoder, "project", None), getattr(encoder, "norm", None)
    if not (
        isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d) and hasattr(encoder, "summary")
    ):
        raise ValueError(
            f"fit_readout needs an encoder with tokens, summary, a linear project and a batch norm, got "
            f"{type(encoder).__name__}; use 'vit'"
        )
    local, d = cast(Any, encoder), layer.out_features
    with evaluating(encoder):
        summary = torch.cat([local.summary(local.tokens(part)) for part in pixels.split(rows)])
    mean = summary.mean(0)
    _, size, components = torch.linalg.svd((summary - mean).double(), full_matrices=False)
    variance = size.square() / len(pixels)
    if len(variance) < d or variance[d - 1] < 1e-10 * variance[0]:
        raise ValueError(
            f"{len(pixels)} pictures give tokens that vary in fewer directions than the latent's {d}; give more and "
            "more different ones, or lower latent_dim"
        )
    # The batch norm adds eps to variances of 1, not to those of the tokens, which may be as small.
    layer.weight.copy_(components[:d] / variance[:d].sqrt().unsqueeze(1))
    cast(Tensor, layer.bias).copy_(-layer.weight @ mean)
    cast(Tensor, norm.running_mean).zero_()
    cast(Tensor, norm.running_var).fill_(1.0)
    return float(variance[:d].sum() / variance.sum())
