"""All dynamics of the head-to-head by name: those of ``_h2h_dynamics``, and rows that ask what holds the flow back.

Apart from that module, because its code decides what stages hold that are done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from _h2h_dynamics import FLOW, FLOW_TRAIN, RECIPES, Recipe
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class MeanRecipe(Recipe):
    """The flow of the recipe ``flow``, as a point predictor: every step is the mean of some draws.

    Attributes:
        draws: how many.
    """

    draws: int = 8


ALL = RECIPES | {
    "flow_mean": MeanRecipe("flow", FLOW, 1, FLOW_TRAIN),
    # Three times as wide as the latents of Two Rooms, with as many updates as the point predictor.
    "flow_wide": Recipe("flow", FLOW | {"width": 192}, 1, FLOW_TRAIN | {"steps": 5000}),
}


class MeanOf:
    """Dynamics whose every step is the mean of some draws of other ones.

    Args:
        drawn: draw futures.
        draws: how many.
    """

    markov = True

    def __init__(self, drawn: Any, draws: int) -> None:
        self.drawn, self.draws = drawn, draws
        self.latent_dim, self.action_dim = drawn.latent_dim, drawn.action_dim

    def parameters(self) -> Any:
        return self.drawn.parameters()

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n h+1 d"]:
        """Futures that are all the same."""
        path = [z]
        for action in actions.split(1, dim=1):
            ends = self.drawn.rollout(path[-1], action, futures=self.draws, generator=generator)
            path.append(ends[:, :, 1].mean(1))
        return torch.stack(path, 1)[:, None].expand(-1, futures, -1, -1)
