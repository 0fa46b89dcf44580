"""Heads on latents, for agents that learn from reward: distributional scalars, ensembles, policy priors.

Sizes and recipes follow TD-MPC2 (Hansen, Su and Wang 2024, arXiv:2310.16828).
"""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def symlog(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """``sign(x) log(1 + |x|)``: large numbers come near, small ones stay (Hafner et al. 2023, arXiv:2301.04104)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The inverse of ``symlog``."""
    return x.sign() * x.abs().expm1()


class TwoHot(nn.Module):
    """Scalars as distributions over bins that are equally wide in symlog space.

    A value between two bins has its weight on both, in proportion; a head learns it by cross-entropy, whose
    gradient does not grow with the value (Hafner et al. 2023, section "Symexp twohot loss").

    Args:
        bins: how many; at least 2.
        limit: symlog of the largest magnitude that can be said.
    """

    centres: Tensor

    def __init__(self, bins: int = 101, limit: float = 10.0) -> None:
        super().__init__()
        if bins < 2 or not limit > 0:
            raise ValueError(f"bins must be at least 2 and limit positive, got {bins} and {limit}")
        self.bins, self.limit = bins, limit
        self.register_buffer("centres", torch.linspace(-limit, limit, bins), persistent=False)

    def encode(self, values: Float[Tensor, "*b"]) -> Float[Tensor, "*b k"]:
        """Weights over the bins, which sum to one; values beyond the last bins are clipped."""
        place = (symlog(values).clamp(-self.limit, self.limit) + self.limit) * (
            (self.bins - 1) / (2 * self.limit)
        )
        below = place.floor().clamp(max=self.bins - 2)
        share = (place - below).unsqueeze(-1)
        weights = torch.zeros(*values.shape, self.bins, device=values.device, dtype=values.dtype)
        index = below.nan_to_num().long().unsqueeze(-1)  # NaN has no bin, and stays NaN by its share
        return weights.scatter_(-1, index, 1 - share).scatter_(-1, index + 1, share)

    def decode(self, logits: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
        """The value whose symlog is the mean of the distribution, as in TD-MPC2: of noisy values less than their mean
        (as likely 0 as 100: 9), but a small weight on a far bin does not swamp it."""
        return symexp(logits.softmax(-1) @ self.centres)

    def loss(self, logits: Float[Tensor, "*b k"], weights: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
        """Cross-entropy of ``logits`` to the ``weights`` that ``encode`` gave."""
        return -(weights * logits.log_softmax(-1)).sum(-1)


class Perceptron(nn.Module):
    """``members`` perceptrons side by side, each layer one batched matrix product: linear, layer norm, SiLU.

    Args:
        inputs, width, outputs: units of the layers.
        depth: hidden layers.
        members: how many perceptrons; None for a single one without that axis.
        last_scale: of the initial weights of the last layer; 0 starts at the same answer for all.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        depth: int = 2,
        members: int | None = None,
        last_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.members = members
        sizes = [inputs, *[width] * depth, outputs]
        lead = () if members is None else (members,)
        self.weights, self.biases, self.gains, self.shifts = (nn.ParameterList() for _ in range(4))
        for i, (before, after) in enumerate(itertools.pairwise(sizes)):
            scale = (last_scale if i == depth else 1.0) / math.sqrt(before)
            self.weights.append(nn.init.trunc_normal_(torch.empty(*lead, before, after), 0, 1, -2, 2) * scale)
            self.biases.append(torch.zeros(*lead, 1, after))
            if i < depth:
                self.gains.append(torch.ones(*lead, 1, after))
                self.shifts.append(torch.zeros(*lead, 1, after))

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "*e b o"]:
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if self.members is None:
                x = torch.addmm(bias, x, weight)
            else:
                x = torch.baddbmm(bias, x if x.ndim == 3 else x.expand(self.members, *x.shape), weight)
            if i < last:
                if self.members is None:
                    x = F.layer_norm(x, x.shape[-1:], self.gains[i][0], self.shifts[i][0])
                else:
                    x = torch.addcmul(self.shifts[i], F.layer_norm(x, x.shape[-1:]), self.gains[i])
                x = F.silu(x)
        return x


class PictureDecoder(nn.Module):
    """Pictures out of latents, by patches: for models that learn by reconstruction, and to look at imagined states.

    Args:
        latent_dim: width of the latent.
        channels, size: of the pictures; ``size`` a multiple of 8.
        width: channels of the hidden layers.

    Raises:
        ValueError: if 8 does not divide ``size``.
    """

    PATCH = 8

    def __init__(self, latent_dim: int, channels: int, size: int, width: int = 64) -> None:
        super().__init__()
        if size % self.PATCH:
            raise ValueError(f"size must be a multiple of {self.PATCH}, got {size}")
        self.cells, self.width = size // self.PATCH, width
        self.spread = nn.Linear(latent_dim, width * self.cells**2)
        self.paint = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, channels * self.PATCH**2, 1),
            nn.PixelShuffle(self.PATCH),
        )

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c y x"]:
        """Brightness, 0 to 1 where it has learned."""
        return self.paint(self.spread(z).view(-1, self.width, self.cells, self.cells))


class GaussianPolicy(nn.Module):
    """A squashed Gaussian over actions in [-1, 1] (Haarnoja et al. 2018), its scale bounded smoothly."""

    LOG_STD = (-5.0, 1.0)

    def __init__(self, latent_dim: int, action_dim: int, width: int, depth: int = 2) -> None:
        super().__init__()
        self.network = Perceptron(latent_dim, width, 2 * action_dim, depth, last_scale=0.1)

    def _mean_std(self, z: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
        mean, spread = self.network(z).chunk(2, dim=-1)
        low, high = self.LOG_STD
        return mean, (low + 0.5 * (high - low) * (spread.tanh() + 1)).exp()

    def mode(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b a"]:
        return self._mean_std(z)[0].tanh()

    def sample(
        self, z: Float[Tensor, "b d"], generator: torch.Generator | None = None, draws: int | None = None
    ) -> tuple[Float[Tensor, "b a"], Float[Tensor, " b"]]:
        """Actions by the reparametrisation trick, and their log-density, whose mean is minus the entropy.

        ``draws``: how much noise is drawn; the rows take turns. Without it every row has its own.
        """
        mean, std = self._mean_std(z)
        count = len(z) if draws is None else draws
        noise = torch.randn((count, mean.shape[1]), generator=generator, device=z.device, dtype=z.dtype)
        noise = noise.repeat(len(z) // count, 1)
        raw = mean + std * noise
        # log N(raw) - sum log(1 - tanh(raw)^2), the latter in a form that does not overflow.
        density = -0.5 * noise.square() - std.log() - 0.5 * math.log(2 * math.pi)
        squash = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return raw.tanh(), (density - squash).sum(-1)


class CategoricalPolicy(nn.Module):
    """Independent choices, one-hot beside each other.

    Args:
        groups: number of options of each choice.
    """

    def __init__(self, latent_dim: int, groups: tuple[int, ...], width: int, depth: int = 2) -> None:
        super().__init__()
        self.groups = groups
        self.network = Perceptron(latent_dim, width, sum(groups), depth, last_scale=0.1)

    def logits(self, z: Float[Tensor, "b d"]) -> list[Float[Tensor, "b c"]]:
        """Log-probabilities of each choice."""
        return [part.log_softmax(-1) for part in self.network(z).split(self.groups, dim=-1)]

    def mode(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b a"]:
        return torch.cat([one_hot(part) for part in self.network(z).split(self.groups, dim=-1)], dim=-1)

    def sample(
        self, z: Float[Tensor, "b d"], generator: torch.Generator | None = None, draws: int | None = None
    ) -> tuple[Float[Tensor, "b a"], Float[Tensor, " b"]]:
        """Actions with a straight-through gradient, and minus the entropy: that of a draw would have no gradient.

        ``draws``: as of ``GaussianPolicy``.
        """
        actions, neg_entropy = [], []
        count = len(z) if draws is None else draws
        for part in self.logits(z):
            noise = gumbel((count, part.shape[1]), part, generator).repeat(len(z) // count, 1)
            hard, soft = one_hot(part + noise), part.exp()
            actions.append(hard + soft - soft.detach())
            neg_entropy.append((soft * part).sum(-1))
        return torch.cat(actions, dim=-1), torch.stack(neg_entropy).sum(0)


def gumbel(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gumbel noise: the largest of log-probabilities with it is a draw from them."""
    uniform = torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)
    return -torch.log(-torch.log(uniform.clamp(1e-20, 1.0 - 1e-7)))


def one_hot(score: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
    """1 at the largest score, 0 elsewhere."""
    return torch.zeros_like(score).scatter_(-1, score.argmax(-1, keepdim=True), 1.0)
