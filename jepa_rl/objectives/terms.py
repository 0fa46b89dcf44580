"""Small loss terms that shape a latent space. Each is a function of latents and returns a scalar."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional as F

from jepa_rl import distributed

VICREG_COVARIANCE = 1 / 25
"""Weight of ``covariance`` beside one of ``variance`` (VICReg, arXiv:2105.04906, section 4.2)."""


def prediction(predicted: Float[Tensor, "b h d"], target: Float[Tensor, "b h d"]) -> Float[Tensor, ""]:
    """Mean squared error between predicted and encoded latents (LeWorldModel, arXiv:2603.19312, eq. 1)."""
    return F.mse_loss(predicted, target)


def sigreg(
    z: Float[Tensor, "t b d"],
    generator: torch.Generator | None = None,
    projections: int = 256,
    knots: int = 17,
    limit: float = 5.0,
) -> Float[Tensor, ""]:
    r"""Sketched isotropic Gaussian regularisation (LeJEPA, Balestriero & LeCun 2025, arXiv:2511.08544).

    The latents of each time step are projected onto random unit vectors, and every projection is compared
    with a standard normal by the Epps-Pulley statistic
    :math:`b \int |\hat\varphi(\omega) - e^{-\omega^2/2}|^2 e^{-\omega^2/2} d\omega`, with the empirical
    characteristic function :math:`\hat\varphi`; the integral is a trapezoid over ``knots`` points of
    ``[0, limit]`` (the integrand is even). Averaged over projections and time steps, and divided by ``b`` so that
    its weight does not depend on the batch size. Zero only for a standard normal.

    Args:
        z: latents, t time steps of b rows.
        generator: of the directions.
        projections: number of random directions.
        knots: points of the trapezoid rule.
        limit: upper end of the integral.
    """
    z = z if z.dtype == torch.float64 else z.float()
    directions = torch.randn(z.shape[-1], projections, generator=generator, device=z.device).to(z.dtype)
    directions = directions / directions.norm(dim=0)
    omega = torch.linspace(0.0, limit, knots, device=z.device, dtype=z.dtype)
    window = torch.exp(-0.5 * omega**2)
    weights = torch.full_like(omega, 2 * limit / (knots - 1))  # both halves of the real line
    weights[[0, -1]] *= 0.5
    found = CharacteristicFunction.apply(z @ directions, limit / (knots - 1), knots)  # w t p
    # Of all rows: the error is that of their mean, not the mean of errors.
    found = distributed.average(found, alike=True)
    error = (found.real - window[:, None, None]).square() + found.imag.square()
    return torch.einsum("wtp,w->tp", error, window * weights).mean()


class CharacteristicFunction(torch.autograd.Function):
    r"""The empirical characteristic function :math:`\hat\varphi(\omega) = mean_b\, e^{i \omega x_b}` at equal steps.

    The values at :math:`\omega = j s` are powers of one complex number: a product each, instead of a sine and a cosine,
    forwards and backwards, and only that number is kept in between.
    """

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "t b p"], step: float, knots: int) -> Complex[Tensor, "w t p"]:
        unit = torch.polar(torch.ones_like(x), step * x)
        power, means = torch.ones_like(unit), []
        for _ in range(knots):
            means.append(power.mean(1))
            power = power.mul_(unit)
        ctx.save_for_backward(unit)
        ctx.step = step
        return torch.stack(means)

    @staticmethod
    def backward(ctx: Any, gradient: Complex[Tensor, "w t p"]) -> tuple[Float[Tensor, "t b p"], None, None]:
        (unit,) = ctx.saved_tensors
        # d/dx Re(conj(g) e^{ijsx}) = js Re(conj(g) i e^{ijsx}); the sum over j by Horner's rule.
        j = torch.arange(len(gradient), device=unit.device, dtype=unit.real.dtype)
        factors = (
            gradient.conj() * torch.complex(torch.zeros_like(j), ctx.step * j / unit.shape[1])[:, None, None]
        )
        total = torch.zeros_like(unit)
        for factor in factors.flip(0).unsqueeze(2):
            total = total.mul_(unit).add_(factor)
        return total.real, None, None


def variance(z: Float[Tensor, "... d"], target_std: float = 1.0, epsilon: float = 1e-4) -> Float[Tensor, ""]:
    """Hinge on the standard deviation of every dimension (VICReg, Bardes et al. 2022, arXiv:2105.04906, eq. 1).

    Args:
        z: latents; all leading axes are the sample.
        target_std: standard deviations below it are penalised.
        epsilon: added to the variance under the root.
    """
    std = (distributed.var(z.flatten(0, -2), alike=True) + epsilon).sqrt()
    return F.relu(target_std - std).mean()


def covariance(z: Float[Tensor, "... d"]) -> Float[Tensor, ""]:
    """Squared off-diagonal covariances, summed and divided by d (VICReg, arXiv:2105.04906, eq. 3-4)."""
    z = z.flatten(0, -2)
    centred = z - distributed.mean(z)
    c = distributed.total(centred.T @ centred, alike=True) / (distributed.whole_batch(len(z)) - 1)
    return (c.square().sum() - c.diagonal().square().sum()) / z.shape[-1]


def time_similarity(z: Float[Tensor, "b t d"]) -> Float[Tensor, ""]:
    """Mean squared difference of successive latents (PLDM, Sobal et al. 2025, arXiv:2502.14819)."""
    return (z[:, 1:] - z[:, :-1]).square().mean()


def straightness(z: Float[Tensor, "b t d"], epsilon: float = 1e-6) -> Float[Tensor, ""]:
    """One minus the cosine of successive velocities (temporal straightening, Hénaff et al. 2019).

    Raises:
        ValueError: for paths of fewer than three states, which have no two velocities.
    """
    if z.shape[1] < 3:
        raise ValueError(
            f"straightness compares successive velocities, so windows need two steps or more, got {z.shape[1] - 1}; "
            "raise steps, or leave straightness out"
        )
    velocity = z[:, 1:] - z[:, :-1]
    return 1.0 - F.cosine_similarity(velocity[:, 1:], velocity[:, :-1], dim=-1, eps=epsilon).mean()


def inverse_dynamics(predicted_actions: Tensor, actions: Tensor, discrete: bool = False) -> Tensor:
    """Error of the action that is predicted from the latents before and after it (PLDM, arXiv:2502.14819).

    Args:
        predicted_actions: ``b h a``, or logits ``b h m c`` for ``m`` one-hot choices in a block.
        actions: ``b h a``, or one-hot ``b h m c``.
    """
    if discrete:
        return F.cross_entropy(predicted_actions.flatten(0, -2), actions.flatten(0, -2))
    return F.mse_loss(predicted_actions, actions)


def info_nce(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "n d"],
    negatives: Float[Tensor, "m d"],
    temperature: float,
) -> Float[Tensor, ""]:
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) by cosines, as in MoCo (arXiv:1911.05722, eq. 1).

    Args:
        queries: one view of each picture.
        keys: the other view, row by row.
        negatives: other pictures, the same for all queries.
        temperature: the cosines are divided by it.
    """
    queries, keys, negatives = (F.normalize(x, dim=-1) for x in (queries, keys, negatives))
    logits = torch.cat([(queries * keys).sum(-1, keepdim=True), queries @ negatives.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def nt_xent(projected: Float[Tensor, "m d"], temperature: float) -> Float[Tensor, ""]:
    """SimCLR's loss (arXiv:2002.05709, eq. 1): InfoNCE among the views of a batch, each of which is a query once.

    Args:
        projected: rows i and m/2 + i are the two views of picture i.
        temperature: the cosines are divided by it.
    """
    rows = F.normalize(projected, dim=-1)
    logits = rows @ rows.T / temperature
    logits.fill_diagonal_(-torch.inf)  # no view is a candidate for itself
    partner = torch.arange(len(rows), device=rows.device).roll(len(rows) // 2)
    return F.cross_entropy(logits, partner)


def kl_to_standard_normal(
    mean: Float[Tensor, "n d"], log_variance: Float[Tensor, "n d"]
) -> Float[Tensor, " n"]:
    """Kullback-Leibler divergence of diagonal Gaussians from N(0, I), in nats (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(-1)
