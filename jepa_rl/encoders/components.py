"""Principal components that are fitted in one pass, batch after batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PrincipalComponents(nn.Module):
    """A fixed linear projection onto principal components, all scaled by one factor to a mean variance of 1.

    One factor for all leaves the distances as they are, up to that factor; components of small variance stay small.
    ``fit`` sees each batch once (Ross et al. 2008, "Incremental Learning for Robust Visual Tracking"): it keeps twice
    as many directions as it will need, so that memory does not grow with the data. What is fitted are buffers: they
    are saved, and no optimiser moves them.

    Args:
        inputs: width of what is projected.
        outputs: number of components.

    Attributes:
        count: rows that were seen by ``fit``; 0 before it.
    """

    mean: Tensor
    weight: Tensor
    count: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        if outputs > inputs:
            raise ValueError(f"{inputs} features have no {outputs} principal components; lower latent_dim")
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("weight", torch.zeros(outputs, inputs))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        """The projection; zeros before ``fit``."""
        return F.linear(x - self.mean, self.weight)

    @torch.no_grad()
    def fit(self, batches: Iterable[Float[Tensor, "_ i"]]) -> float:
        """Fits to rows; what was fitted before is forgotten.

        Args:
            batches: of rows, each read once.

        Returns:
            The share of the rows' variance that the components have.

        Raises:
            ValueError: if the rows vary in fewer directions than there are components; nothing has changed then.
        """
        outputs, inputs = self.weight.shape
        rank = 2 * outputs + 32
        # Directions, each as long as the rows' deviation along it.
        kept = torch.zeros(0, inputs, dtype=torch.float64)
        mean, count, total = torch.zeros(inputs, dtype=torch.float64), 0, 0.0
        for batch in batches:
            if not len(batch):
                continue
            rows = batch.detach().cpu().double()
            own = rows.mean(0)
            shift = (count * len(rows) / (count + len(rows))) ** 0.5 * (own - mean)
            total += float((rows - own).square().sum() + shift.square().sum())
            mean = mean + (own - mean) * (len(rows) / (count + len(rows)))
            count += len(rows)
            kept = longest(torch.cat([kept, rows - own, shift[None]]), rank)
        variance = kept.square().sum(1) / max(count, 1)
        if len(kept) < outputs:
            raise ValueError(
                f"{count} frames vary in {len(kept)} directions, fewer than the {outputs} components; give more and "
                "more different ones, or lower latent_dim"
            )
        found = kept[:outputs] / kept[:outputs].norm(dim=1, keepdim=True)
        signs = found.gather(1, found.abs().argmax(1, keepdim=True)).sign()
        self.weight.copy_(found * signs / variance[:outputs].mean().sqrt())
        self.mean.copy_(mean)
        self.count.fill_(count)
        return float(variance[:outputs].sum() * count / total)


def longest(rows: Float[Tensor, "m i"], rank: int) -> Float[Tensor, "r i"]:
    """The principal axes of rows around 0, longest first, each of length sqrt(sum of squares along it).

    Args:
        rows: float64.
        rank: how many at most; axes of no length are left out.
    """
    squares, turns = torch.linalg.eigh(rows @ rows.T)  # m x m: there are fewer rows than columns
    squares, turns = squares.flip(0)[:rank], turns.flip(1)[:, :rank]
    there = squares > 1e-10 * squares[0]
    return (turns.T @ rows)[there]
