"""The base class of objectives that shape the encoder by single pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.checks import check_not_negative
from jepa_rl.encoders.conv import unmeasured_pixels
from jepa_rl.objectives.base import Objective, checked_loss, each
from jepa_rl.types import Batch, Observations, World, WorldSpec


class EncoderObjective(Objective):
    """Base class of objectives that shape the encoder by single pictures; a subclass defines ``encoder_loss``.

    Every picture of a batch that is not beyond the end of its episode is one sample: ``b * t`` pictures, of which those
    of one window resemble each other. The dynamics learn beside the encoder from their own loss on detached latents,
    so that prediction does not shape the latents; windows that run over an episode's end are left out there.

    Running statistics of the encoder's batch norms are those of the pictures as they are, which the dynamics learn on
    and which a wrapper or planner encodes. So encode augmented pictures inside ``unmeasured``.

    Args:
        spec: the world model's; pictures only, one or several by name.
        dynamics: weight of the dynamics' loss. 0: they do not learn (``jepa_rl.refine_dynamics`` can train them later).

    Raises:
        ValueError: if the spec has vectors or no picture, or the weight is below 0.
    """

    divided = False  # its teachers, queues, masks and crops are those of one process

    def __init__(self, spec: WorldSpec, dynamics: float = 1.0) -> None:
        super().__init__()
        check_not_negative(dynamics=dynamics)
        if not all(len(shape) == 3 for shape in spec.shapes.values()):
            raise ValueError(
                f"the objective {type(self).__name__} learns from pictures alone, got observations of shapes "
                f"{spec.shapes}; leave vectors out, or use the objective 'jepa', 'consistency' or 'reconstruction'"
            )
        self.dynamics_weight = dynamics

    def encoder_loss(
        self, world: World, pictures: Observations, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the encoder and its terms; see ``Objective.loss``.

        Args:
            world, generator: as for ``loss``.
            pictures: uint8 "n c y x", at least two; a dict of such by name if the spec has several.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must have a method encoder_loss(world, pictures, generator)"
        )

    def loss(
        self, world: World, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.loss``.

        Raises:
            ValueError: if the batch holds fewer than two pictures.
        """
        pictures = real_pictures(batch)
        count = len(next(iter(world.spec.named(pictures).values())))
        if count < 2:
            raise ValueError(
                f"the objective {type(self).__name__} needs at least 2 pictures in a batch, got {count}; draw more "
                "windows"
            )
        answer = self.encoder_loss(world, pictures, generator)
        total, found = checked_loss(answer, "loss of the encoder")
        batch = batch.whole()
        with torch.no_grad():
            z = world.encode_windows(batch.observations)
        return self.with_dynamics(total, found, world, z, batch, generator)

    def with_dynamics(
        self,
        total: Tensor,
        found: Mapping[str, Tensor],
        world: World,
        z: Float[Tensor, "b t d"],
        batch: Batch,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds the dynamics' loss to the encoder's.

        Args:
            total, found: of the encoder, the terms by name.
            world, generator: as for ``loss``.
            z: latents of ``batch``, which get no gradient.
            batch: windows that lie inside their episodes.
        """
        if not self.dynamics_weight:
            return total, dict(found)
        z = z.detach()
        if self.training:
            world.dynamics.follow(z, batch.actions)
        error, _ = checked_loss(world.dynamics.loss(z, batch.actions, generator), "loss of the dynamics")
        return total + self.dynamics_weight * error, {**found, "dynamics": error}


def real_pictures(batch: Batch) -> Observations:
    """The observations "n ..." of all states of a batch, without those beyond the end of an episode."""
    if batch.valid is None:
        return each(batch.observations, lambda x: x.flatten(0, 1))
    kept = F.pad(batch.valid, (1, 0), value=True)
    return each(batch.observations, lambda x: x[kept])


@contextmanager
def unmeasured(encoder: nn.Module) -> Iterator[None]:
    """Context manager: batch norms and patch convolutions of the encoder leave their statistics as they are."""
    every = [part for part in encoder.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in every if norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False  # in training mode they then normalise by the batch alone
    try:
        with unmeasured_pixels(encoder):
            yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
