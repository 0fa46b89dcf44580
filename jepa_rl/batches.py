"""Batches of windows, cut out of episodes. Shapes and time alignment: ``jepa_rl.types``."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from jepa_rl.distributed import fewest
from jepa_rl.specs import Observations

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """A batch of windows cut out of episodes; see the time-alignment picture in ``jepa_rl.types``.

    Attributes:
        observations: "b t ...": uint8 pixels "b t c y x" if the observation is one picture, otherwise tensors by name.
        actions: model actions (see ``ActionSpec.encode``), blocks concatenated.
        rewards: summed over each block.
        terminated: whether the episode ended (not by a time limit) inside the step.
        valid: False beyond the end of an episode, where the last state is repeated; None if all steps are valid.
    """

    observations: Observations
    actions: Float[Tensor, "b h a"]
    rewards: Float[Tensor, "b h"]
    terminated: Bool[Tensor, "b h"]
    valid: Bool[Tensor, "b h"] | None = None

    @property
    def pixels(self) -> UInt8[Tensor, "b t c y x"]:
        """The pictures, if the observation is one picture.

        Raises:
            TypeError: if there are observations by name.
        """
        if isinstance(self.observations, dict):
            raise TypeError(
                f"this batch holds {sorted(self.observations)}, not one picture; read batch.observations"
            )
        return self.observations

    @property
    def states(self) -> int:
        """Number of states in the batch."""
        return self.actions.shape[0] * (self.actions.shape[1] + 1)

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        return replace(self, **{f.name: on_device(getattr(self, f.name), device) for f in fields(self)})

    def whole(self) -> Self:
        """Only the windows without invalid steps; all windows if fewer than two have none."""
        rows = whole_rows(self.valid, least=2)
        return self if rows is None else cut(self, rows)


@dataclass(frozen=True, kw_only=True)
class ControlBatch(Batch):
    """Windows with value targets.

    Attributes:
        returns: discounted rewards from each step up to ``future``.
        discounts: factor on the value of ``future``, for each step.
        ended: whether the episode has terminated at ``future``, whose value is then 0.
        future: observations "b ..." from which the value is bootstrapped, beyond the window or at the end of the
            episode; None if these are the last of ``observations``.
    """

    returns: Float[Tensor, "b h"]
    discounts: Float[Tensor, "b h"]
    ended: Bool[Tensor, " b"]
    future: Observations | None


def whole_rows(valid: Bool[Tensor, "b h"] | None, least: int) -> Int64[Tensor, " n"] | None:
    """Numbers of the windows without invalid steps; equally many in each of several processes.

    Args:
        valid: of the windows.
        least: how many there must be, or all are taken.

    Returns:
        The numbers; None if all windows are to be taken.
    """
    if valid is None:
        return None
    rows = valid.all(1).nonzero()[:, 0]
    count = fewest(len(rows))
    return None if count == len(valid) or count < least else rows[:count]


def on_device(value: Any, device: torch.device | str) -> Any:
    """A tensor, a dict of tensors or None, on another device."""
    if isinstance(value, dict):
        return {name: on_device(part, device) for name, part in value.items()}
    return None if value is None else value.to(device)


def cut(batch: T, rows: Tensor | slice) -> T:
    """Some rows of a dataclass of tensors, such as ``Batch``; what is no tensor and no dict of them stays."""
    parts = {f.name: getattr(batch, f.name) for f in fields(cast(Any, batch)) if f.init}
    kept = {name: rows_of(part, rows) for name, part in parts.items() if isinstance(part, Tensor | dict)}
    return cast(T, replace(cast(Any, batch), **kept))


def rows_of(value: Any, rows: Tensor | slice) -> Any:
    """Rows of a tensor or of each tensor of a dict; None for None."""
    if isinstance(value, dict):
        return {name: part[rows] for name, part in value.items()}
    return None if value is None else value[rows]
