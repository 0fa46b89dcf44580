"""A learned temporal distance: how many steps lead from a state to a goal, told from latents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from jepa_rl.checks import check_each, check_not_negative, check_whole, positive


class TemporalDistance(nn.Module):
    """Steps from latents to goals; a ``Distance`` for ``GoalCost``: ``GoalCost(goal, "last", temporal)``.

    Distances between latents say how different two pictures are, not how far it is from one to the other: behind a
    wall the two come apart. Here both latents are embedded by one perceptron and compared by a quasimetric, the
    Euclidean distance of some features plus the largest increase of the others (metric residual networks, Liu et al.
    2023, arXiv:2208.08133). So the distance from a state to itself is 0 and no detour is shorter than the way itself,
    as for shortest paths, which lets what was learned of short ways speak for long ones; and the way back may be longer
    than the way, since a fall or a closed door cannot be undone. Where the world is reversible the data say so.

    Trained by ``loss`` on pairs of states of the same episode, whose number of steps bounds the shortest way from
    above (Wang et al. 2023, arXiv:2304.01203): a low expectile (Kostrikov et al. 2022, arXiv:2110.06169) leans towards
    the shortest of the ways that were played. See ``jepa_rl.training.train_temporal_distance``.

    Args:
        latent_dim: width of the latents.
        limit: steps that goals of other episodes are held to be away at least, the longest that training tells apart.
        width: hidden units of its two hidden layers.
        features: compared; half of them by either part.
        expectile: in (0, 1): 0.5 learns the mean number of steps, less the shorter ways.
        apart: weight of goals of other episodes; 0 where all episodes play in one small world, in which a goal of
            another episode may be near.

    Attributes:
        least: 0, what every state is away at least; searches read it through the cost (``jepa_rl.costs.least_of``).

    Raises:
        ValueError: for numbers that make no sense.
    """

    least = 0.0
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        latent_dim: int,
        limit: float,
        width: int = 128,
        features: int = 32,
        expectile: float = 0.1,
        apart: float = 0.1,
    ) -> None:
        super().__init__()
        check_whole(latent_dim=latent_dim, width=width)
        check_whole(2, features=features)
        check_each(positive, "be positive and finite", limit=limit)
        check_each(lambda share: 0 < share < 1, "lie in (0, 1)", expectile=expectile)
        check_not_negative(apart=apart)
        self.latent_dim, self.limit, self.expectile, self.apart = latent_dim, limit, expectile, apart
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("std", torch.ones(latent_dim))
        self.network = nn.Sequential(
            nn.Linear(latent_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, features)
        )  # fmt: skip

    def forward(self, z: Float[Tensor, "*b d"], goal: Float[Tensor, "*#b d"]) -> Float[Tensor, "*b"]:
        """Steps from ``z`` to ``goal``; leading axes broadcast."""
        one_way, both_ways = (self._embed(z) - self._embed(goal)).chunk(2, dim=-1)
        return torch.linalg.vector_norm(both_ways, dim=-1) + one_way.clamp_min(0).amax(-1)

    def _embed(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b f"]:
        # Features in units of the limit, so that the network's outputs are about 1.
        return self.limit * self.network((z - self.mean) / self.std)

    def loss(
        self,
        z: Float[Tensor, "b d"],
        goal: Float[Tensor, "b d"],
        steps: Float[Tensor, " b"],
        episode: Int64[Tensor, " b"],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Expectile loss of the number of steps within an episode, and what holds goals of other episodes apart.

        Args:
            z: latents.
            goal: latents later in the same episode.
            steps: from one to the other.
            episode: numbers of the episodes; the goal of the row before stands for another episode where its number
                differs.

        Returns:
            The total, a scalar, and its terms, in units of the squared limit.
        """
        error = (self(z, goal) - steps) / self.limit
        weight = torch.where(error > 0, 1 - self.expectile, self.expectile)
        near = (weight * error.square()).mean()
        other = (episode != episode.roll(1)).to(error)
        missing = F.relu(1 - self(z, goal.roll(1, 0)) / self.limit)
        far = (other * missing.square()).sum() / other.sum().clamp_min(1)
        return near + self.apart * far, {"steps": near, "apart": far}
