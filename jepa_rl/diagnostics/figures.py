"""Pictures of a latent space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def principal_components(latents: Float[Tensor, "m d"], count: int = 2) -> Float[Tensor, "m k"]:
    """Coordinates along the ``count`` directions of largest variance, or as many as there are."""
    centred = latents - latents.mean(0)
    count = min(count, *latents.shape)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:count].T


def latent_map(latents: Float[Tensor, "m d"], colours: dict[str, np.ndarray]) -> Figure:
    """One scatter of the first two principal components for each named colouring.

    Args:
        latents: the points.
        colours: name to one number a point, such as the time in the episode or a probe target.

    Raises:
        ValueError: if there is no colouring, or one that does not have one number for each point.
    """
    from matplotlib.figure import Figure  # slow to import

    lengths = {name: len(colour) for name, colour in colours.items()}
    if not lengths or set(lengths.values()) != {len(latents)}:
        raise ValueError(f"each colouring needs {len(latents)} numbers, one for each point, got {lengths}")
    points = principal_components(latents.float()).cpu().numpy()
    figure = Figure(figsize=(4 * len(colours), 4), layout="constrained")
    axes = figure.subplots(1, len(colours), squeeze=False)
    for axis, (name, colour) in zip(axes[0], colours.items(), strict=True):
        scatter = axis.scatter(points[:, 0], points[:, 1], c=colour, s=4, cmap="viridis")
        axis.set(title=name, xticks=[], yticks=[], xlabel="component 1", ylabel="component 2")
        figure.colorbar(scatter, ax=axis, shrink=0.8)
    return figure


def std_bars(std: Float[Tensor, " d"]) -> Figure:
    """The standard deviation of every latent dimension, largest first; dead dimensions show as a cliff."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axis = figure.subplots()
    axis.bar(np.arange(len(std)), std.sort(descending=True).values.cpu().numpy(), width=1.0)
    axis.set(xlabel="latent dimension, sorted", ylabel="standard deviation", ylim=(0, None))
    return figure
