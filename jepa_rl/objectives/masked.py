"""Masked prediction of tokens of a moving average: I-JEPA for pictures, V-JEPA's way for windows."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from jepa_rl.checks import check_each
from jepa_rl.objectives.jepa import follow_weights
from jepa_rl.objectives.masks import (
    Range,
    block_mask,
    check_blocks,
    hidden_places,
    taken,
    tube_mask,
)
from jepa_rl.objectives.schedule import DecaySchedule
from jepa_rl.objectives.tokens import MaskedObjective, TokenPredictor
from jepa_rl.registry import register_objective
from jepa_rl.types import Batch, World, WorldSpec

Schedule = tuple[float, float, int]


class TaughtObjective(MaskedObjective):
    """Base class of masked objectives whose targets are tokens of a teacher, a moving average of the encoder.

    Args:
        latent_dim, spec, encoder: the world model's.
        ema: decay of the moving average at first, at last, and the updates in between (``DecaySchedule``).
        width, depth: of the predictor (``TokenPredictor``).
        weights: ``dynamics`` and ``readout``, see ``TokenObjective``.

    Raises:
        ValueError: as ``MaskedObjective``, ``DecaySchedule`` and ``TokenPredictor``.
    """

    copies: ClassVar = {"teacher": "encoder"}

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        encoder: nn.Module,
        ema: Schedule,
        width: int,
        depth: int,
        **weights: float,
    ) -> None:
        super().__init__(latent_dim, spec, encoder, **weights)
        self.schedule = DecaySchedule(*ema)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.predictor = TokenPredictor(self.token_width, self.token_width, self.places, width, depth)

    @torch.no_grad()
    def targets(self, pixels: UInt8[Tensor, "n c y x"]) -> Float[Tensor, "n l w"]:
        """The teacher's tokens of whole pictures, each normalised over its features, as in the published code."""
        tokens = self.teacher.tokens(pixels)  # type: ignore[operator]
        return F.layer_norm(tokens, tokens.shape[-1:])

    def after_update(self, world: World) -> None:
        """Updates the teacher."""
        follow_weights(self.teacher, world.encoder, self.schedule.step())


@register_objective("ijepa")
class ImageJEPA(TaughtObjective):
    r"""I-JEPA (Assran et al. 2023, arXiv:2301.08243): tokens of target blocks, predicted from a context block.

    .. math:: L = mean_k \; smooth\_L_1 (g(f(x_{context}), places_k), LN(\bar f(x))_k)

    with f the encoder on the context's patches alone, :math:`\bar f` its moving average on the whole picture, without
    gradient, and g a narrow transformer that is given each target block on its own. Every picture of a window counts
    as one; actions and time are not used. Loss and normalised targets are those of the published code; the paper
    writes a squared error. The planner's latent: see ``TokenObjective``.

    Args:
        latent_dim, spec, encoder: the world model's.
        targets: target blocks of a picture.
        target_scale, context_scale: smallest and largest share of the picture.
        ema, width, depth, weights: as for ``TaughtObjective``.

    Raises:
        ValueError: as ``TaughtObjective``, or if the targets could hide the whole context.
    """

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        encoder: nn.Module,
        targets: int = 4,
        target_scale: Range = (0.15, 0.2),
        context_scale: Range = (0.85, 1.0),
        ema: Schedule = (0.996, 1.0, 10_000),
        width: int = 48,
        depth: int = 2,
        **weights: float,
    ) -> None:
        super().__init__(latent_dim, spec, encoder, ema, width, depth, **weights)
        check_blocks(self.grid, targets, target_scale, context_scale)
        self.count, self.target_scale, self.context_scale = targets, target_scale, context_scale

    def encoder_loss(
        self,
        world: World,
        pictures: UInt8[Tensor, "n c y x"],  # type: ignore[override]
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``EncoderObjective.encoder_loss``."""
        k = self.count
        mask = block_mask(
            len(pictures), self.grid, k, self.target_scale, self.context_scale, generator, pictures.device
        )
        context = world.encoder.tokens(pictures, mask.seen)
        # One row for each block, so that a block does not see the mask tokens of another.
        hidden = mask.hidden.flatten(0, 1)
        found = self.predictor(context.repeat_interleave(k, 0), mask.seen.repeat_interleave(k, 0), hidden)
        target = taken(self.targets(pictures).repeat_interleave(k, 0), hidden)
        error = F.smooth_l1_loss(found, target)
        return error, {"prediction": error}


@register_objective("vjepa")
class VideoJEPA(TaughtObjective):
    r"""V-JEPA's way (Bardes et al. 2024, arXiv:2404.08471): hidden tubes of a window, predicted from what is seen.

    .. math:: L = \| g(f(x_{seen}), places) - LN(\bar f(x))_{hidden} \|_1

    A tube hides the same places in all pictures of a window, and actions are not used. Unlike V-JEPA, whose encoder
    joins all frames by attention over space and time and whose patches are two frames deep, here every picture is
    encoded alone, and the predictor g joins the seen tokens of all of them. So the encoder stays one of single states,
    as a world model needs it; what happens between them is left to the predictor. (With frame stacking a picture holds
    the frames of a state; a tube hides its places in all of them.) The planner's latent: see ``TokenObjective``.

    Args:
        latent_dim, spec, encoder: the world model's.
        ratio: share of the places that is hidden. V-JEPA hides nine tenths of 14 x 14; of 8 x 8 that leaves six.
        blocks: blocks whose union is hidden, as far as the ratio asks for.
        scale: share of the picture that a block has.
        ema, width, depth, weights: as for ``TaughtObjective``.

    Raises:
        ValueError: as ``TaughtObjective``; for a ratio that hides everything or nothing, or a scale out of (0, 1].
    """

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        encoder: nn.Module,
        ratio: float = 0.75,
        blocks: int = 8,
        scale: float = 0.15,
        ema: Schedule = (0.996, 1.0, 10_000),
        width: int = 48,
        depth: int = 2,
        **weights: float,
    ) -> None:
        super().__init__(latent_dim, spec, encoder, ema, width, depth, **weights)
        check_each(lambda value: value >= 1, "be at least 1", blocks=blocks)
        check_each(lambda value: 0 < value <= 1, "lie in (0, 1]", scale=scale)
        self.hidden, self.blocks, self.scale = hidden_places(ratio, self.grid), blocks, scale

    def token_loss(
        self, world: World, batch: Batch, generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``TokenObjective.token_loss``. Windows that run over an episode's end are left out."""
        batch = batch.whole()
        (b, t), pixels = batch.pixels.shape[:2], batch.pixels.flatten(0, 1)
        mask = tube_mask(b, self.grid, self.hidden, self.blocks, self.scale, generator, pixels.device)
        seen, hidden = mask.seen, mask.hidden[:, 0]
        tokens = world.encoder.tokens(pixels, seen.repeat_interleave(t, 0)).view(b, -1, self.token_width)
        found = self.predictor(tokens, seen.repeat(1, t), hidden.repeat(1, t), frames=t)
        target = taken(self.targets(pixels), hidden.repeat_interleave(t, 0))
        error = F.l1_loss(found, target.view_as(found))
        return error, {"prediction": error}
