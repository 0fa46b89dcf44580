"""A mixture of Gaussians for the next latent."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.checks import check_each
from jepa_rl.dynamics.base import Standardised, in_chunks, input_layer
from jepa_rl.dynamics.point import GatedBlock
from jepa_rl.noise import normal
from jepa_rl.registry import register_dynamics


@register_dynamics("mixture")
class MixtureDynamics(Standardised):
    """A mixture-density network (Bishop 1994): the next latent is drawn from one of ``components`` Gaussians.

    The components have diagonal covariances, so that what varies together within one of them is drawn apart.

    Args:
        latent_dim, action_dim: widths of latent and action.
        components: Gaussians.
        width, depth: hidden units, gated blocks.

    Raises:
        ValueError: for sizes below 1.
    """

    def __init__(
        self, latent_dim: int, action_dim: int, components: int = 4, width: int = 192, depth: int = 2
    ) -> None:
        super().__init__(latent_dim, action_dim)
        check_each(lambda size: size >= 1, "be at least 1", components=components, width=width, depth=depth)
        self.components = components
        self.embed_latent = input_layer(latent_dim, width, bias=True)
        self.embed_action = input_layer(action_dim, width)
        self.hidden = nn.Sequential(*(GatedBlock(width) for _ in range(depth)), nn.LayerNorm(width))
        self.out = nn.Linear(width, components * (2 * latent_dim + 1))

    def _step(
        self, z: Float[Tensor, "*b d"], action: Float[Tensor, "*#b a"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits "*b k", means and log standard deviations "*b k d" of the next latent, standardised."""
        y = self.out(self.hidden(self.embed_latent(z) + self.embed_action(action)))
        logits, rest = y.split((self.components, y.shape[-1] - self.components), dim=-1)
        mean, scale = rest.unflatten(-1, (self.components, -1)).chunk(2, dim=-1)
        return logits, z.unsqueeze(-2) + self.change * mean, self.change.log() + scale.clamp(-6.0, 3.0)

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n h+1 d"]:
        """Paths drawn step by step; all rows share their noise. Raises as ``Standardised.check``."""
        self.check(z, actions, futures)
        draw: dict[str, Any] = dict(generator=generator, device=z.device, dtype=z.dtype)
        h = actions.shape[1]
        noise = torch.randn(futures, h, z.shape[-1], **draw)
        gumbel = (
            -torch.empty(futures, h, self.components, device=z.device, dtype=z.dtype)
            .exponential_(generator=generator)
            .log()
        )

        def part(rows: Tensor, taken: Tensor) -> Tensor:
            now, path = self.standardise(rows)[:, None].expand(-1, futures, -1), []
            for i, action in enumerate(self.standardise_actions(taken)[:, None].unbind(2)):
                logits, mean, scale = self._step(now, action)
                chosen = F.one_hot((logits + gumbel[:, i]).argmax(-1), self.components).to(mean)[..., None]
                now = (chosen * mean).sum(-2) + (chosen * scale).sum(-2).exp() * noise[:, i]
                path.append(now)
            return self.destandardise(torch.stack(path, dim=2), rows)

        held = futures * (h + 1) * self.latent_dim
        return in_chunks(part, z, actions, futures * self.out.out_features, held)

    def draw(
        self,
        z: Float[Tensor, "b d"],
        action: Float[Tensor, "b a"],
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n d"]:
        """See ``TrainableDynamics.draw``."""
        self.check(z, action.unsqueeze(1), futures)
        logits, mean, scale = self._step(self.standardise(z), self.standardise_actions(action))
        share = logits.softmax(-1)
        chosen = torch.multinomial(share, futures, replacement=True, generator=generator)[..., None]
        mean, scale = (x.gather(1, chosen.expand(-1, -1, self.latent_dim)) for x in (mean, scale))
        drawn = mean + scale.exp() * normal(tuple(mean.shape), mean, generator)
        return self.destandardise(drawn.unsqueeze(2), z)[:, :, 1]

    def loss(
        self,
        latents: Float[Tensor, "b t d"],
        actions: Float[Tensor, "b h a"],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log likelihood of each state given the one before, standardised, in nats a dimension."""
        path = self.standardise(latents)
        logits, mean, scale = self._step(path[:, :-1], self.standardise_actions(actions))
        deviation = (path[:, 1:, None] - mean) * (-scale).exp()
        each = logits.log_softmax(-1) - (deviation.square() / 2 + scale).sum(-1)
        nll = -each.logsumexp(-1).mean() / path.shape[-1] + 0.5 * math.log(2 * math.pi)
        return nll, {"nll": nll}
