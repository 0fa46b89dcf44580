"""Heads on latents: distributions of scalars, perceptrons and ensembles of them, picture decoders, policies.

Sizes and recipes follow TD-MPC2 (Hansen, Su and Wang 2024, arXiv:2310.16828).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_rl.checks import check_each
from jepa_rl.distributed import own_draw
from jepa_rl.noise import normal


def symlog(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """``sign(x) log(1 + |x|)``: about ``x`` near 0, logarithmic far from it (Hafner et al. 2023, arXiv:2301.04104)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The inverse of ``symlog``."""
    return x.sign() * x.abs().expm1()


class TwoHot(nn.Module):
    """Two-hot encoding: scalars as distributions over bins of equal width in symlog space.

    A value between two bins is split between them in proportion to its distance. A head learns the distribution by
    cross-entropy, whose gradient does not grow with the value (Hafner et al. 2023, section "Symexp twohot loss").

    Args:
        bins: number of bins, at least 2.
        limit: bins cover symlog values in [-limit, limit]; 10 is a magnitude of 22,025.

    Raises:
        ValueError: if there are fewer than 2 bins, or ``limit`` is not positive.
    """

    centres: Tensor

    def __init__(self, bins: int = 101, limit: float = 10.0) -> None:
        super().__init__()
        check_each(lambda bins: bins >= 2, "be at least 2", bins=bins)
        check_each(lambda limit: limit > 0, "be positive", limit=limit)
        self.bins, self.limit = bins, limit
        self.register_buffer("centres", torch.linspace(-limit, limit, bins), persistent=False)

    def encode(self, values: Float[Tensor, "*b"]) -> Float[Tensor, "*b k"]:
        """Weights over the bins, which sum to 1; values beyond the outermost bins are clipped. NaN gives NaN."""
        place = (symlog(values).clamp(-self.limit, self.limit) + self.limit) * (
            (self.bins - 1) / (2 * self.limit)
        )
        below = place.floor().clamp(max=self.bins - 2)
        share = (place - below).unsqueeze(-1)
        weights = torch.zeros(*values.shape, self.bins, device=values.device, dtype=values.dtype)
        index = (
            below.nan_to_num().long().unsqueeze(-1)
        )  # NaN has no bin; its share is NaN and so are its weights
        return weights.scatter_(-1, index, 1 - share).scatter_(-1, index + 1, share)

    def decode(self, logits: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
        """``symexp`` of the mean over the bins, as in TD-MPC2.

        For noisy values this is less than their mean (0 and 100 with equal probability give 9), but a small weight on a
        distant bin does not dominate it.
        """
        return symexp(logits.softmax(-1) @ self.centres)

    def loss(self, logits: Float[Tensor, "*b k"], weights: Float[Tensor, "*#b k"]) -> Float[Tensor, "*b"]:
        """Cross-entropy of ``logits`` against target ``weights`` from ``encode``."""
        return -(weights * logits.log_softmax(-1)).sum(-1)


class Perceptron(nn.Module):
    """Multilayer perceptron, or an ensemble of them computed by batched matrix products.

    A hidden layer is linear, layer norm, SiLU.

    Args:
        inputs, width, outputs: units of the input, hidden and output layers.
        depth: number of hidden layers.
        members: number of perceptrons; None for a single one, whose tensors have no axis "e".
        last_scale: factor on the initial weights of the output layer; with 0 the initial output is 0 for every input.
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
        gains, shifts = _entries(self.gains), _entries(self.shifts)
        for i, (weight, bias) in enumerate(zip(_entries(self.weights), _entries(self.biases), strict=True)):
            if self.members is None:
                x = torch.addmm(bias, x, weight)
            else:
                x = torch.baddbmm(bias, x if x.ndim == 3 else x.expand(self.members, *x.shape), weight)
            if i < len(gains):
                if self.members is None:
                    x = F.layer_norm(x, x.shape[-1:], gains[i][0], shifts[i][0])
                else:
                    x = torch.addcmul(shifts[i], F.layer_norm(x, x.shape[-1:]), gains[i])
                x = F.silu(x)
        return x


def _entries(parameters: nn.ParameterList) -> list[Tensor]:
    """All at once: the list would look each up by name, which takes as long as a small matrix product."""
    return [entry for entry in parameters._parameters.values() if entry is not None]


class PictureDecoder(nn.Module):
    """Decodes latents to pictures, in patches of 8 x 8: for reconstruction losses, and to show imagined states.

    Args:
        latent_dim: width of the latent.
        channels, size: of the pictures; ``size`` must be a multiple of 8.
        width: channels of the hidden layers.

    Raises:
        ValueError: if ``size`` is not a multiple of 8.
    """

    PATCH = 8

    def __init__(self, latent_dim: int, channels: int, size: int, width: int = 64) -> None:
        super().__init__()
        if size % self.PATCH:
            raise ValueError(f"size must be a multiple of {self.PATCH}, got {size}")
        self.cells, self.width = size // self.PATCH, width
        self.spread = nn.Linear(latent_dim, width * self.cells**2)
        self.to_pixels = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, channels * self.PATCH**2, 1),
            nn.PixelShuffle(self.PATCH),
        )

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c y x"]:
        """Brightness; targets lie in [0, 1], the output is not clipped to it."""
        return self.to_pixels(self.spread(z).view(-1, self.width, self.cells, self.cells))


class GaussianPolicy(nn.Module):
    """Tanh-squashed Gaussian over actions in [-1, 1] (Haarnoja et al. 2018); tanh bounds its log std to ``LOG_STD``."""

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
        self,
        z: Float[Tensor, "b d"],
        generator: torch.Generator | None = None,
        draws: int | None = None,
        steps: int = 1,
    ) -> tuple[Float[Tensor, "b a"], Float[Tensor, " b"]]:
        """Actions by the reparametrisation trick, and their log-density, whose mean is minus the entropy.

        Args:
            z: latents.
            generator: of the noise.
            draws: number of noise vectors; row i uses number i modulo ``draws``. None: each row has its own.
            steps: how many rows of ``z``, one after the other, are those of one window; for several processes, which
                divide the windows among them.
        """
        mean, std = self._mean_std(z)
        noise = _of_rows(normal, mean, generator, draws, steps)
        raw = mean + std * noise
        # log N(raw) - sum log(1 - tanh(raw)^2); the second term in a form that does not overflow.
        density = -0.5 * noise.square() - std.log() - 0.5 * math.log(2 * math.pi)
        squash = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return raw.tanh(), (density - squash).sum(-1)

    def proposals(
        self, z: Float[Tensor, "b d"], generator: torch.Generator | None, draws: int
    ) -> Float[Tensor, "b a"]:
        """Actions for a search to start from: every ``draws``-th is the mode, the others are drawn as by ``sample``.

        Args:
            z, generator, draws: see ``sample``.
        """
        mean, std = self._mean_std(z)
        noise = torch.randn((draws, mean.shape[1]), generator=generator, device=z.device, dtype=z.dtype)
        noise[0] = 0.0
        return (mean + std * noise.repeat(len(z) // draws, 1)).tanh()


class CategoricalPolicy(nn.Module):
    """Independent categorical distributions; an action is the concatenation of their one-hot vectors.

    Args:
        latent_dim: width of the latent.
        groups: number of options of each choice.
        width, depth: of the network, see ``Perceptron``.
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
        self,
        z: Float[Tensor, "b d"],
        generator: torch.Generator | None = None,
        draws: int | None = None,
        steps: int = 1,
    ) -> tuple[Float[Tensor, "b a"], Float[Tensor, " b"]]:
        """Actions with a straight-through gradient, and minus the entropy.

        The entropy is computed from the distribution, because the log-probability of a sample would have no gradient.

        Args:
            z, generator, draws, steps: see ``GaussianPolicy.sample``.
        """
        actions, neg_entropy = [], []
        for part in self.logits(z):
            noise = _of_rows(gumbel, part, generator, draws, steps)
            hard, soft = one_hot(part + noise), part.exp()
            actions.append(hard + soft - soft.detach())
            neg_entropy.append((soft * part).sum(-1))
        return torch.cat(actions, dim=-1), torch.stack(neg_entropy).sum(0)

    def proposals(
        self, z: Float[Tensor, "b d"], generator: torch.Generator | None, draws: int
    ) -> Float[Tensor, "b a"]:
        """See ``GaussianPolicy.proposals``."""
        actions = []
        for part in self.logits(z):
            noise = gumbel((draws, part.shape[1]), part, generator)
            noise[0] = 0.0
            actions.append(one_hot(part + noise.repeat(len(z) // draws, 1)))
        return torch.cat(actions, dim=-1)


def _of_rows(
    noise: Callable[..., Tensor],
    like: Float[Tensor, "b a"],
    generator: torch.Generator | None,
    draws: int | None,
    steps: int,
) -> Float[Tensor, "b a"]:
    """Noise, ``normal`` or ``gumbel``, with the shape of ``like``; the rest as for ``GaussianPolicy.sample``."""
    rows, width = like.shape
    if draws is not None:
        return noise((draws, width), like, generator).repeat(rows // draws, 1)
    return own_draw(lambda n: noise((n, steps, width), like, generator), rows // steps).flatten(0, 1)


def gumbel(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gumbel noise: the argmax of log-probabilities plus this noise is a sample from them.

    Args:
        shape: of the noise.
        like: a tensor with the device and dtype of the noise.
        generator: of the noise.
    """
    uniform = torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)
    return -torch.log(-torch.log(uniform.clamp(1e-20, 1.0 - 1e-7)))


def one_hot(score: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
    """1 at the largest score, 0 elsewhere."""
    return torch.zeros_like(score).scatter_(-1, score.argmax(-1, keepdim=True), 1.0)
