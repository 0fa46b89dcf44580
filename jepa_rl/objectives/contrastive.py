"""Recognition of a picture among others by two of its views: SimCLR and MoCo."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_rl.checks import check_each, positive
from jepa_rl.objectives import terms
from jepa_rl.objectives.augment import Views
from jepa_rl.objectives.encoder_objective import EncoderObjective, unmeasured
from jepa_rl.objectives.jepa import follow_weights
from jepa_rl.registry import register_objective
from jepa_rl.types import Observations, World, WorldSpec


class Recognition(EncoderObjective):
    """Base class of objectives that compare random views of single pictures.

    What the views differ in is what the latents forget: crops take away where things are, ``jitter`` and ``grayscale``
    which colours they have. A world model that plans needs at least the places.

    Args:
        spec: the world model's; pictures only.
        dynamics: weight of the dynamics' loss, see ``EncoderObjective``.
        views: fields of ``Views``: ``scale``, ``jitter``, ``grayscale``, ``flip``.

    Raises:
        TypeError: for an unknown field of ``Views``.
        ValueError: as ``EncoderObjective`` and ``Views``.
    """

    def __init__(self, spec: WorldSpec, dynamics: float = 1.0, views: dict[str, Any] | None = None) -> None:
        super().__init__(spec, dynamics)
        self.views, self.frames = Views(**(views or {})), spec.frames

    def two_views(
        self, pictures: Observations, generator: torch.Generator | None
    ) -> tuple[Observations, Observations]:
        """Two views of every picture."""
        return (
            self.views.draw(pictures, self.frames, generator),
            self.views.draw(pictures, self.frames, generator),
        )


def joined(spec: WorldSpec, views: Sequence[Observations]) -> Observations:
    """All views as one batch, one view behind the other."""
    named = [spec.named(view) for view in views]
    return spec.unnamed({name: torch.cat([view[name] for view in named]) for name in named[0]})


def encoded(world: World, views: Sequence[Observations]) -> Float[Tensor, "m d"]:
    """Latents of all views of all pictures, encoded as one batch, one view behind the other.

    The running statistics of batch norms stay as they are.
    """
    with unmeasured(world.encoder):
        return world.encode(joined(world.spec, views))


class Projection(nn.Sequential):
    """The head between latents and loss: one hidden layer (SimCLR, section 2.1; MoCo v2, arXiv:2003.04297).

    Args:
        latent_dim, width, outputs: units of the layers.
    """

    def __init__(self, latent_dim: int, width: int, outputs: int) -> None:
        check_each(lambda units: units >= 1, "be at least 1", width=width, outputs=outputs)
        super().__init__(nn.Linear(latent_dim, width), nn.ReLU(), nn.Linear(width, outputs))
        self.outputs = outputs


class Teacher(nn.Module):
    """A moving average of encoder and head, without gradients.

    Its batch norms normalise by the batch while it trains, as the encoder's do.

    Args:
        encoder, head: that it follows.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = (copy.deepcopy(part).requires_grad_(False) for part in (encoder, head))

    @torch.no_grad()
    def forward(self, observations: Observations) -> Float[Tensor, "n o"]:
        with unmeasured(self.encoder):
            return self.head(self.encoder(observations))

    def follow(self, encoder: nn.Module, head: nn.Module, momentum: float) -> None:
        """Moves towards encoder and head; ``momentum`` is the share that stays."""
        follow_weights(self.encoder, encoder, momentum)
        follow_weights(self.head, head, momentum)


@register_objective("simclr")
class SimCLR(Recognition):
    """SimCLR (Chen et al. 2020, arXiv:2002.05709): each view finds the other view of its picture in the batch.

    The candidates are all views of all pictures of the batch, those of the same window included. Latents are
    what the encoder answers; the loss sees them through a head with one hidden layer. Both views are encoded as one
    batch, so that they share batch statistics.

    Args:
        latent_dim, spec: the world model's.
        temperature: of the softmax over cosines.
        width, outputs: hidden units and outputs of the head.
        options: of ``Recognition``: ``dynamics``, ``views``.

    Raises:
        ValueError: unless temperature, width and outputs are positive; and as ``Recognition``.
    """

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        temperature: float = 0.1,
        width: int = 256,
        outputs: int = 128,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        check_each(positive, "be positive", temperature=temperature)
        self.temperature, self.head = temperature, Projection(latent_dim, width, outputs)

    def encoder_loss(
        self, world: World, pictures: Observations, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``EncoderObjective.encoder_loss``."""
        z = encoded(world, self.two_views(pictures, generator))
        error = terms.nt_xent(self.head(z), self.temperature)
        return error, {"simclr": error}


@register_objective("moco")
class MoCo(SimCLR):
    """MoCo (He et al. 2020, arXiv:1911.05722) with MoCo v2's head: one view finds the other among earlier pictures.

    Keys are views encoded by a moving average of the encoder (``Teacher``); those of earlier batches are kept in a
    queue, the oldest replaced first. Shuffled batch norm, which needs several GPUs, is left out.

    Args:
        latent_dim, spec, encoder: the world model's.
        temperature: of the softmax over cosines.
        momentum: share of the moving average that stays in an update. 0.999 in the paper, whose trainings take
            hundreds of thousands of updates.
        queue: number of keys that are kept.
        options: of ``SimCLR``.

    Raises:
        ValueError: unless momentum lies in [0, 1] and queue is at least 1; and as ``SimCLR``.
    """

    copies: ClassVar = {"teacher.encoder": "encoder"}
    queue: Tensor
    cursor: Tensor

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        encoder: nn.Module,
        temperature: float = 0.2,
        momentum: float = 0.99,
        queue: int = 4096,
        **options: Any,
    ) -> None:
        super().__init__(latent_dim, spec, temperature, **options)
        check_each(lambda share: 0 <= share <= 1, "lie in [0, 1]", momentum=momentum)
        check_each(lambda count: count >= 1, "be at least 1", queue=queue)
        self.momentum, self.teacher = momentum, Teacher(encoder, self.head)
        self.register_buffer("queue", F.normalize(torch.randn(queue, self.head.outputs), dim=-1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))  # row of the oldest key
        self._keys: Tensor | None = None  # of the last loss; ``after_update`` queues them

    def encoder_loss(
        self, world: World, pictures: Observations, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``EncoderObjective.encoder_loss``."""
        query, key = self.two_views(pictures, generator)
        queries = self.head(encoded(world, [query]))
        keys = F.normalize(self.teacher(world.spec.unnamed(key)), dim=-1)
        error = terms.info_nce(queries, keys, self.queue, self.temperature)
        if self.training:
            self._keys = keys
        return error, {"moco": error}

    @torch.no_grad()
    def after_update(self, world: World) -> None:
        """Moves the teacher, and puts the keys of the last loss in the place of the oldest."""
        self.teacher.follow(world.encoder, self.head, self.momentum)
        if self._keys is None:
            return
        fresh = self._keys[-len(self.queue) :]
        rows = (self.cursor + torch.arange(len(fresh), device=fresh.device)) % len(self.queue)
        self.queue[rows] = fresh
        self.cursor.copy_((self.cursor + len(fresh)) % len(self.queue))
        self._keys = None
