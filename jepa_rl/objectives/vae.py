"""A variational autoencoder of single pictures."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.checks import check_each, check_not_negative, positive
from jepa_rl.heads import Perceptron, PictureDecoder
from jepa_rl.objectives import terms
from jepa_rl.objectives.encoder_objective import EncoderObjective, unmeasured
from jepa_rl.registry import register_objective
from jepa_rl.types import Observations, World, WorldSpec

LEAST = 255.0**-2  # variance of brightness below which pictures stand still


@register_objective("vae")
class VAE(EncoderObjective):
    r"""Variational autoencoder (Kingma and Welling 2014, arXiv:1312.6114); the latent is the posterior's mean.

    .. math:: L = \frac1D E \left[ \|x - g(\mu + \sigma \epsilon)\|^2 / 2 s^2
              + \beta KL(N(\mu, \sigma^2) | N(0, I)) \right]

    with D values in a picture x (0 to 1): for :math:`\beta = 1` the negative evidence lower bound in nats per value,
    without the constant :math:`\log(s \sqrt{2 \pi})`; other values as in Higgins et al. 2017 (beta-VAE). The variance
    comes from the mean by a perceptron, because encoders answer one vector.

    Behind an encoder's batch norm every dimension of the mean has variance 1 over a batch, so that no dimension can
    vanish (Zhu et al. 2020, arXiv:2004.12585). Without it, ``encoder_options={"norm": False}``, it is the plain VAE.

    Small things: a dot that moves is a ten-thousandth of the squared error and shares hardly any pixels with itself
    elsewhere; it is not learned in thousands of updates. With ``scales`` the squared error is that of means over cells
    of so many pixels, in units of the variance that these have among the batch's pictures, averaged over scales and
    channels (as losses on pyramids in Bojanowski et al. 2018, arXiv:1707.05776): a Gaussian whose noise is less at low
    frequencies and in channels where little happens.

    Args:
        latent_dim, spec: the world model's.
        beta: weight of the divergence.
        noise: s, the standard deviation of the pictures around their decoding; with ``scales`` in units of theirs.
        scales: rows and columns of the cells, each a multiple of the one before; 1 is a pixel. Empty: pixels, whose
            error is not put in units of anything.
        width: hidden units of the perceptron.
        dynamics: weight of the dynamics' loss, see ``EncoderObjective``.

    Raises:
        ValueError: for a ``beta`` below 0, a ``noise`` that is not positive, ``scales`` that are no multiples of each
            other or do not divide the pictures, pictures of a size that ``PictureDecoder`` does not support; and as
            ``EncoderObjective``.
    """

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        beta: float = 1.0,
        noise: float = 0.1,
        width: int = 128,
        dynamics: float = 1.0,
        scales: tuple[int, ...] = (),
    ) -> None:
        super().__init__(spec, dynamics)
        check_not_negative(beta=beta)
        check_each(positive, "be positive", noise=noise)
        self.beta, self.noise, self.scales = beta, noise, tuple(scales)
        check_scales(self.scales, spec)
        self.log_variance = Perceptron(latent_dim, width, latent_dim, 1)
        self.decoders = nn.ModuleDict(
            {name: PictureDecoder(latent_dim, *shape[:2]) for name, shape in spec.shapes.items()}
        )

    def encoder_loss(
        self, world: World, pictures: Observations, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``EncoderObjective.encoder_loss``. Terms: the mean squared error of a value, and nats of a picture."""
        with unmeasured(world.encoder):
            mean = world.encode(pictures)
        log_variance = self.log_variance(mean)
        drawn = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        z = mean + (0.5 * log_variance).exp() * drawn
        seen = world.spec.named(pictures)
        pairs = [(decoder(z), seen[name].float() / 255) for name, decoder in self.decoders.items()]
        error = torch.cat([(decoded - shown).square().flatten(1) for decoded, shown in pairs], dim=1)
        kl = terms.kl_to_standard_normal(mean, log_variance).mean()
        found = {"reconstruction": error.mean(), "kl": kl}
        scaled = error.mean()
        if self.scales:
            scaled = torch.cat([unexplained(*pair, self.scales) for pair in pairs]).mean()
            found["unexplained"] = scaled
        return scaled / (2 * self.noise**2) + self.beta * kl / error.shape[1], found


def unexplained(
    decoded: Float[Tensor, "n c y x"], shown: Float[Tensor, "n c y x"], scales: tuple[int, ...]
) -> Float[Tensor, " k"]:
    """Squared error of means over cells, over the variance of ``shown`` there; of every scale and channel.

    Where nothing changes, errors are as they are: over a variance of nearly 0 they would drown all others.

    Args:
        decoded, shown: pictures, at least two.
        scales: see ``VAE``.
    """
    apart, found, size = decoded - shown, [], 1
    for scale in scales:
        apart, shown = cells(apart, scale // size), cells(shown, scale // size)
        spread = shown.var(0).mean((1, 2))
        spread = torch.where(spread > LEAST, spread + LEAST, 1.0)
        found.append(apart.square().mean((0, 2, 3)) / spread)
        size = scale
    return torch.cat(found)


def cells(pictures: Float[Tensor, "n c y x"], size: int) -> Float[Tensor, "n c rows columns"]:
    """Means over ``size * size`` pixels."""
    if size == 1:
        return pictures
    rows = pictures.unflatten(2, (-1, size)).mean(3)
    return rows.unflatten(3, (-1, size)).mean(4)


def check_scales(scales: tuple[int, ...], spec: WorldSpec) -> None:
    """Raises ValueError for scales that are no whole numbers, multiples of each other and divisors of the sizes."""
    smooth = all(isinstance(scale, int) and scale >= 1 for scale in scales) and all(
        not size % scale for scale, size in zip(scales, [*scales[1:], *scales[-1:]], strict=True)
    )
    sizes = [side for shape in spec.shapes.values() for side in shape[1:]]
    if not smooth or any(side % scale for scale in scales[-1:] for side in sizes):
        raise ValueError(
            f"scales must be whole numbers, each a multiple of the one before, that divide the pictures' {sizes} rows "
            f"and columns, got {scales}"
        )
