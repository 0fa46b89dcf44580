"""Masks over the places of a picture: which tokens are seen, and which are hidden and predicted."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Range = tuple[float, float]

ASPECT: Range = (0.75, 1.5)
"""Height over width of a block (I-JEPA, arXiv:2301.08243, section 4; V-JEPA, arXiv:2404.08471, appendix)."""


class Mask(NamedTuple):
    """Places of a square grid, counted row by row; none is both seen and hidden.

    Attributes:
        seen: what the encoder is shown; each row is sorted.
        hidden: what is predicted; each row of each block is sorted. Blocks may overlap.
    """

    seen: Int64[Tensor, "b m"]
    hidden: Int64[Tensor, "b k n"]


def hidden_places(ratio: float, grid: int) -> int:
    """How many places of a grid a ratio hides.

    Args:
        ratio: share of hidden places.
        grid: rows and columns.

    Raises:
        ValueError: if it hides everything or nothing.
    """
    places, hidden = grid**2, round(ratio * grid**2) if 0 <= ratio <= 1 else -1
    if not 0 < hidden < places:
        what = "hides everything" if hidden == places else "hides nothing" if not hidden else "is no share"
        raise ValueError(
            f"ratio must lie between 0 and 1 and leave at least one of the {places} places seen and one hidden, got "
            f"{ratio}, which {what}"
        )
    return hidden


def random_mask(
    rows: int, grid: int, hidden: int, generator: torch.Generator | None, device: torch.device
) -> Mask:
    """``hidden`` places of each picture, all sets of places equally likely (MAE, arXiv:2111.06377, section 3).

    Args:
        rows: pictures.
        grid: rows and columns of places.
        hidden: from ``hidden_places``.
        generator, device: of the random numbers.
    """
    return _ranked(torch.rand(rows, grid**2, generator=generator, device=device), hidden)


def block_sides(area: float, aspect: float, grid: int) -> tuple[int, int]:
    """Rows and columns of a block of at most this area, in places; at least one place, at most the grid.

    Args:
        area: number of places.
        aspect: height over width.
        grid: rows and columns of the grid.
    """
    whole = max(1, int(area + 1e-9))
    high = min(max(1, round(math.sqrt(whole * aspect))), grid, whole)
    return high, min(whole // high, grid)


def random_sides(
    scale: Range, grid: int, generator: torch.Generator | None, device: torch.device
) -> tuple[int, int]:
    """Sides of a block whose share of the places and aspect ratio are drawn uniformly (in logarithms: the aspect)."""
    size, shape = torch.rand(2, generator=generator, device=device).tolist()
    area = grid**2 * (scale[0] + size * (scale[1] - scale[0]))
    return block_sides(area, ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** shape, grid)


def random_blocks(
    rows: int,
    count: int,
    grid: int,
    sides: tuple[int, int],
    generator: torch.Generator | None,
    device: torch.device,
) -> Bool[Tensor, "b k l"]:
    """``count`` blocks of each picture, all of one size, each at a place of its own.

    Args:
        rows: pictures.
        count: blocks of a picture.
        grid: rows and columns of the grid.
        sides: rows and columns of a block.
        generator, device: of the random numbers.
    """
    inside = []
    line = torch.arange(grid, device=device)
    for side in sides:
        first = torch.randint(grid - side + 1, (rows, count, 1), generator=generator, device=device)
        inside.append((line >= first) & (line < first + side))
    return (inside[0].unsqueeze(-1) & inside[1].unsqueeze(-2)).flatten(2)


def check_blocks(grid: int, targets: int, target_scale: Range, context_scale: Range) -> None:
    """Raises ValueError for shares out of (0, 1], or if the targets could hide all of a context."""
    for name, (low, high) in (("target_scale", target_scale), ("context_scale", context_scale)):
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"{name} must be two shares of the picture, 0 < low <= high <= 1, got {(low, high)}"
            )
    if targets < 1:
        raise ValueError(f"targets must be at least 1, since no target hides nothing, got {targets}")
    areas = range(max(1, int(context_scale[0] * grid**2)), int(context_scale[1] * grid**2 + 1e-9) + 1)
    context = min(math.prod(block_sides(area, 1.0, grid)) for area in areas)
    most = targets * max(1, int(target_scale[1] * grid**2 + 1e-9))
    if most >= context:
        raise ValueError(
            f"{targets} targets of up to {target_scale[1]:g} of the {grid} x {grid} places hide up to {most} places, "
            f"everything where a context has only {context}; lower targets or target_scale, raise context_scale, or "
            "give the encoder smaller patches"
        )


def block_mask(
    rows: int,
    grid: int,
    targets: int,
    target_scale: Range,
    context_scale: Range,
    generator: torch.Generator | None,
    device: torch.device,
) -> Mask:
    """I-JEPA's masks (arXiv:2301.08243, section 3): a large context block without the target blocks.

    Sizes are drawn once for all pictures, places for each. All pictures keep as many places as the one whose targets
    leave the fewest; the others' further places are left out at random (the published code leaves out the last ones).

    Args:
        rows: pictures.
        grid: rows and columns of places.
        targets: target blocks of a picture.
        target_scale, context_scale: smallest and largest share of the picture, ``check_blocks`` has seen them.
        generator, device: of the random numbers.
    """
    sides = random_sides(target_scale, grid, generator, device)
    hidden = random_blocks(rows, targets, grid, sides, generator, device)
    share = float(torch.rand((), generator=generator, device=device))
    area = grid**2 * (context_scale[0] + share * (context_scale[1] - context_scale[0]))
    context = random_blocks(rows, 1, grid, block_sides(area, 1.0, grid), generator, device)[:, 0]
    context &= ~hidden.any(1)
    fewest = int(context.sum(1).min())
    score = context + torch.rand(context.shape, generator=generator, device=device)
    seen = score.argsort(1, descending=True)[:, :fewest].sort(1).values
    return Mask(seen, hidden.nonzero()[:, -1].view(rows, targets, -1))


def tube_mask(
    rows: int,
    grid: int,
    hidden: int,
    blocks: int,
    scale: float,
    generator: torch.Generator | None,
    device: torch.device,
) -> Mask:
    """V-JEPA's masks (arXiv:2404.08471, section 3.2): a union of blocks, at the same places in all frames of a window.

    So that all windows hide equally many places, the union is cut or filled up at random to ``hidden`` places.

    Args:
        rows: windows.
        grid: rows and columns of places.
        hidden: from ``hidden_places``.
        blocks: blocks of a window.
        scale: share of the picture that a block has.
        generator, device: of the random numbers.
    """
    sides = random_sides((scale, scale), grid, generator, device)
    union = random_blocks(rows, blocks, grid, sides, generator, device).any(1)
    return _ranked(union + torch.rand(union.shape, generator=generator, device=device), hidden)


def _ranked(score: Float[Tensor, "b l"], hidden: int) -> Mask:
    """Hides the ``hidden`` places of each row that score highest."""
    order = score.argsort(1, descending=True)
    return Mask(order[:, hidden:].sort(1).values, order[:, :hidden].sort(1).values.unsqueeze(1))


def taken(tokens: Float[Tensor, "b l w"], places: Int64[Tensor, "b m"]) -> Float[Tensor, "b m w"]:
    """The tokens of these places."""
    return tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
