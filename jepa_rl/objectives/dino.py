"""Self-distillation without labels: DINO, trained on the pictures of the environment itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_rl.checks import check_each, positive
from jepa_rl.distributed import BatchNorm
from jepa_rl.objectives.contrastive import Recognition, Teacher, encoded, joined
from jepa_rl.registry import register_objective
from jepa_rl.types import Observations, World, WorldSpec

GLOBAL_CROPS = (0.4, 1.0)


class Prototypes(nn.Module):
    """DINO's head: a perceptron to a sphere, and the cosines to prototypes (arXiv:2104.14294, section 3).

    It has batch norms, an option of the published code: what all pictures share would otherwise fill the sphere, and
    the cosines hardly differ until after more updates than a small training has.

    Args:
        latent_dim: width of the latent.
        prototypes: number of outputs.
        width: units of two hidden layers.
        bottleneck: dimensions of the sphere.
    """

    def __init__(self, latent_dim: int, prototypes: int, width: int = 256, bottleneck: int = 64) -> None:
        super().__init__()
        check_each(lambda count: count >= 2, "be at least 2", prototypes=prototypes)
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, width), BatchNorm(width), nn.GELU(),
            nn.Linear(width, width), BatchNorm(width), nn.GELU(),
            nn.Linear(width, bottleneck), BatchNorm(bottleneck, affine=False),
        )  # fmt: skip
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return F.normalize(self.layers(z), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


def distillation(
    student: Float[Tensor, "v n k"], target: Float[Tensor, "g n k"], temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy of the student's views against the teacher's, over all pairs of different views.

    Args:
        student: logits; its first g views are those of the teacher.
        target: the teacher's shares of the prototypes, without a gradient.
        temperature: of the student.
    """
    log_share = (student / temperature).log_softmax(-1)
    entropy = -torch.einsum("gnk,vnk->gv", target, log_share) / student.shape[1]
    different = ~torch.eye(*entropy.shape, dtype=torch.bool, device=entropy.device)
    return entropy[different].mean()


def balanced(share: Float[Tensor, "n k"], rounds: int) -> Float[Tensor, "n k"]:
    """Shares of the prototypes, scaled until all prototypes take equally much of the batch (Sinkhorn and Knopp).

    Args:
        share: rows sum to 1.
        rounds: of scaling first the columns, then the rows, which sum to 1 in the end.
    """
    for _ in range(rounds):
        share = share / share.sum(0).clamp_min(torch.finfo(share.dtype).tiny)
        share = share / share.sum(1, keepdim=True)
    return share


@register_objective("dino")
class DINO(Recognition):
    """DINO (Caron et al. 2021, arXiv:2104.14294): crops are assigned to prototypes as a teacher assigns large ones.

    The teacher is a moving average of encoder and head, and sees two large crops; the student sees these and ``local``
    small ones. The teacher's logits are centred by a moving average of their mean, so that no prototype takes all
    pictures, and sharpened by a low temperature, so that not all take the same share. Large and small crops are
    encoded as one batch each, as in the paper. Departures from it:

    - Small crops are resized to the picture's size, because most encoders take one size only.
    - No blur, no solarisation (see ``Views``), no warm-up of the teacher's temperature, and the prototypes learn from
      the first update.
    - Fewer prototypes: pictures of one environment, not of ImageNet.

    With ``sinkhorn`` the teacher's shares are balanced over the batch instead, as in SwAV (arXiv:2006.09882) and DINOv2
    (arXiv:2304.07193). A batch of long windows, so of few scenes, then has to be told apart by what moves in them; a
    centre is content with the scenes.

    Args:
        latent_dim, spec, encoder: the world model's.
        local: number of small crops; 0 for none.
        local_scale: smallest and largest share of the area in a small crop; ``views={"scale": ...}`` is that of large
            ones, by default (0.4, 1).
        prototypes: number of outputs of the head.
        temperatures: of student and teacher.
        momentum: share of the teacher that stays in an update, at the start and at the end of a cosine schedule.
        schedule: updates of this schedule; choose ``TrainConfig.steps``.
        centre: share of the centre that stays in an update; with 1 there is no centring.
        sinkhorn: rounds of balancing in place of the centre, see ``balanced``; the published codes have 3. 0 for none.
        options: of ``Recognition``: ``dynamics``, ``views``.

    Raises:
        ValueError: for a momentum or centre outside [0, 1], temperatures that are not positive, a ``local`` below 0,
            or ``sinkhorn`` below 0, a ``schedule`` below 1, fewer than two prototypes; and as ``Recognition``.
    """

    copies: ClassVar = {"teacher.encoder": "encoder"}
    mean_logits: Tensor
    updates: Tensor

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        encoder: nn.Module,
        local: int = 4,
        local_scale: tuple[float, float] = (0.05, 0.4),
        prototypes: int = 256,
        temperatures: tuple[float, float] = (0.1, 0.04),
        momentum: tuple[float, float] = (0.996, 1.0),
        schedule: int = 4000,
        centre: float = 0.9,
        sinkhorn: int = 0,
        views: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(spec, views={"scale": GLOBAL_CROPS} | (views or {}), **options)
        shares = {"momentum[0]": momentum[0], "momentum[1]": momentum[1], "centre": centre}
        check_each(lambda share: 0 <= share <= 1, "lie in [0, 1]", **shares)
        student, teacher = temperatures
        check_each(positive, "be positive", **{"temperatures[0]": student, "temperatures[1]": teacher})
        check_each(lambda count: count >= 0, "be at least 0", local=local, sinkhorn=sinkhorn)
        check_each(lambda count: count >= 1, "be at least 1", schedule=schedule)
        self.local, self.local_views = local, replace(self.views, scale=local_scale)
        self.temperatures, self.momentum, self.schedule, self.centre = (
            temperatures,
            momentum,
            schedule,
            centre,
        )
        self.sinkhorn = sinkhorn
        self.head = Prototypes(latent_dim, prototypes)
        self.teacher = Teacher(encoder, self.head)
        self.register_buffer("mean_logits", torch.zeros(prototypes))  # the centre
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._logits: Tensor | None = None  # the teacher's mean in the last loss, for ``after_update``

    def encoder_loss(
        self, world: World, pictures: Observations, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``EncoderObjective.encoder_loss``."""
        large = self.two_views(pictures, generator)
        small = [self.local_views.draw(pictures, self.frames, generator) for _ in range(self.local)]
        logits = [self.head(encoded(world, large))]
        teacher = self.teacher(joined(world.spec, large)).unflatten(0, (2, -1))
        if small:
            logits.append(self.head(encoded(world, small)))
        student = torch.cat(logits).unflatten(0, (2 + self.local, -1))
        error = distillation(student, self.shares(teacher), self.temperatures[0])
        if self.training and not self.sinkhorn:
            self._logits = teacher.mean((0, 1))
        return error, {"dino": error}

    @torch.no_grad()
    def shares(self, logits: Float[Tensor, "g n k"]) -> Float[Tensor, "g n k"]:
        """The teacher's shares of the prototypes; its views count as one batch where these are balanced."""
        found = ((logits - self.mean_logits) / self.temperatures[1]).softmax(-1)
        return balanced(found.flatten(0, 1), self.sinkhorn).view_as(found)

    def momentum_now(self) -> float:
        """Share of the teacher that stays in the next update."""
        start, end = self.momentum
        done = min(int(self.updates) / self.schedule, 1.0)
        return end - (end - start) * (math.cos(math.pi * done) + 1) / 2

    @torch.no_grad()
    def after_update(self, world: World) -> None:
        """Moves the teacher and the centre."""
        self.teacher.follow(world.encoder, self.head, self.momentum_now())
        self.updates += 1
        if self._logits is not None:
            self.mean_logits.lerp_(self._logits, 1 - self.centre)
            self._logits = None
