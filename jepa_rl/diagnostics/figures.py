"""Pictures of a latent space."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor


def principal_components(latents: Float[Tensor, "m d"], count: int = 2) -> Float[Tensor, "m k"]:
    """Coordinates along the directions of largest variance."""
    centred = latents - latents.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:count].T


def latent_map(latents: Float[Tensor, "m d"], colours: dict[str, np.ndarray]) -> Figure:
    """One scatter of the first two principal components for each named colouring.

    Args:
        latents: the points.
        colours: name to one number a point, such as the time in the episode or a probe target.
    """
    points = principal_components(latents.float()).numpy()
    figure = Figure(figsize=(4 * len(colours), 4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(colours)))
    for axis, (name, colour) in zip(axes, colours.items(), strict=True):
        scatter = axis.scatter(points[:, 0], points[:, 1], c=colour, s=4, cmap="viridis")
        axis.set(title=name, xticks=[], yticks=[], xlabel="component 1", ylabel="component 2")
        figure.colorbar(scatter, ax=axis, shrink=0.8)
    return figure
