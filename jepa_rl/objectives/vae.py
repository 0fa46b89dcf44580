"""A variational autoencoder of single pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_rl.checks import check_each, check_not_negative, positive
from jepa_rl.heads import Perceptron, PictureDecoder
from jepa_rl.objectives import terms
from jepa_rl.objectives.encoder_objective import EncoderObjective, unmeasured
from jepa_rl.registry import register_objective
from jepa_rl.types import Observations, World, WorldSpec


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

    Args:
        latent_dim, spec: the world model's.
        beta: weight of the divergence.
        noise: s, the standard deviation of the pictures around their decoding.
        width: hidden units of the perceptron.
        dynamics: weight of the dynamics' loss, see ``EncoderObjective``.

    Raises:
        ValueError: for a ``beta`` below 0, a ``noise`` that is not positive, pictures of a size that ``PictureDecoder``
            does not support; and as ``EncoderObjective``.
    """

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        beta: float = 1.0,
        noise: float = 0.1,
        width: int = 128,
        dynamics: float = 1.0,
    ) -> None:
        super().__init__(spec, dynamics)
        check_not_negative(beta=beta)
        check_each(positive, "be positive", noise=noise)
        self.beta, self.noise = beta, noise
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
        errors = [
            (decoder(z) - seen[name].float() / 255).square().flatten(1)
            for name, decoder in self.decoders.items()
        ]
        error = torch.cat(errors, dim=1)
        kl = terms.kl_to_standard_normal(mean, log_variance).mean()
        total = error.mean() / (2 * self.noise**2) + self.beta * kl / error.shape[1]
        return total, {"reconstruction": error.mean(), "kl": kl}
