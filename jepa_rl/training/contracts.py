"""What ``fit`` asks of a model and of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Protocol, Self, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from jepa_rl.batches import cut
from jepa_rl.distributed import own_rows
from jepa_rl.objectives.base import check_gradient, checked_loss
from jepa_rl.types import JSON


@runtime_checkable
class Trainable(Protocol):
    """An ``nn.Module`` that ``fit`` can train: its own part is ``config``, ``loss``, ``after_update`` and ``save``.

    Attributes:
        config: a dataclass of plain numbers and texts that says what was built. A run is resumed only with an equal
            one. Where it has a classmethod ``from_json`` (``Upgraded``), older versions of it may be read.
    """

    config: Any

    def loss(
        self, batch: Any, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Total, a scalar with a gradient, and named terms, scalars, for the log.

        Args:
            batch: what the sampler draws, on the device of the model.
            generator: draws whatever is drawn, on the device of the model.
        """
        ...

    def after_update(self) -> None:
        """Called after every step of the optimiser."""
        ...

    def save(self, path: Path) -> None:
        """Writes the trained model to one file."""
        ...

    # What every nn.Module has:

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...

    def train(self) -> Any: ...

    def eval(self) -> Any: ...


@runtime_checkable
class Registered(Protocol):
    """A model of registered parts, whose file says where those that are not ours are registered."""

    @property
    def registered_by(self) -> JSON: ...


@runtime_checkable
class Upgraded(Protocol):
    """A configuration that reads what older versions wrote of it."""

    @classmethod
    def from_json(cls, data: JSON) -> Self:
        """The inverse of ``dataclasses.asdict`` followed by JSON."""
        ...


class Drawn(Protocol):
    """A batch, such as ``jepa_rl.types.Batch``.

    Attributes:
        states: how many states it holds; for the log.
    """

    @property
    def states(self) -> int: ...

    def to(self, device: torch.device | str) -> Drawn:
        """The same batch on another device."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """What ``fit`` needs of the data, such as ``jepa_rl.data.WindowSampler``.

    A sampler that is ``Fingerprinted`` besides is told apart from others on other data when a run is resumed. One that
    is not is known by the name of its class alone: that its data are the same is then for you to see to.
    """

    def sample(self, batch_size: int, rng: np.random.Generator) -> Drawn:
        """A batch for ``Trainable.loss``.

        Args:
            batch_size: how many rows, those of all processes.
            rng: draws them; nothing else may, or a resumed run goes another way.
        """
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """A sampler that says what it draws from."""

    def fingerprint(self) -> JSON:
        """What is equal for equal data and differs for other data; plain numbers, texts, lists and dicts.

        It is made at the start of every ``fit`` and so must be cheap: sizes and a digest of some rows, not of all. If
        it has a number ``episodes``, ``fit`` can tell in words where some were added.
        """
        ...


@runtime_checkable
class Divided(Protocol):
    """A sampler that reads some rows of a batch without the others; of others, whole batches are read and cut."""

    def sample_rows(self, batch_size: int, rng: np.random.Generator, rows: slice) -> Drawn:
        """These rows of the batch that ``sample(batch_size, rng)`` would give; ``rng`` moves on as there."""
        ...


def sample_own(sampler: Sampler, batch_size: int, rng: np.random.Generator) -> Drawn:
    """This process's rows of a batch; all of them where there are no others.

    Args:
        sampler: draws the same batch in all processes.
        batch_size: rows of all processes.
        rng: in the same state in all processes.

    Raises:
        TypeError: there are several processes, and the batch is no dataclass of tensors, whose rows could be taken.
    """
    rows = own_rows()
    if rows == slice(None):
        return sampler.sample(batch_size, rng)
    if _divides(sampler):
        return cast(Divided, sampler).sample_rows(batch_size, rng, rows)
    batch = sampler.sample(batch_size, rng)
    if not is_dataclass(batch):
        raise TypeError(
            f"a batch must be a dataclass of tensors so that each process can take its rows of it, got "
            f"{type(batch).__name__}; or give the sampler a method sample_rows(batch_size, rng, rows)"
        )
    return cast(Drawn, cut(batch, rows))


def _divides(sampler: Sampler) -> bool:
    """Whether it has a ``sample_rows`` that belongs to its ``sample``: a subclass may have overridden that alone."""
    order = [kind for kind in type(sampler).__mro__ if vars(kind).keys() & {"sample", "sample_rows"}]
    return bool(order) and "sample_rows" in vars(order[0])


def fingerprint_of(sampler: Sampler) -> JSON:
    """The sampler's fingerprint; of one that has none, the name of its class."""
    return sampler.fingerprint() if isinstance(sampler, Fingerprinted) else {"kind": type(sampler).__name__}


def check_loss(answer: Any, numbers: bool) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Checks what ``Trainable.loss`` gave.

    Args:
        answer: should be a scalar with a gradient, and named scalars.
        numbers: whether to look at their values, which waits for the device: they should be finite.

    Returns:
        The loss and its terms.

    Raises:
        TypeError, ValueError: as ``jepa_rl.objectives.base.checked_loss``; ValueError, too, for a term that ``fit``
            logs itself, a loss without a gradient, or a number that is NaN or infinite.
    """
    loss, terms = checked_loss(answer, "loss")
    if taken := terms.keys() & {"loss", "gradient_norm"}:
        raise ValueError(
            f"terms of the loss cannot be called {sorted(taken)}, which fit logs itself; rename them"
        )
    check_gradient(loss, "loss")
    if numbers:
        total, values = float(loss.detach()), {name: float(value.detach()) for name, value in terms.items()}
        if not all(map(math.isfinite, (total, *values.values()))):
            raise ValueError(
                f"the loss of the first update is {total}, its terms are {values}; check the data for values out of "
                "range, and the weights of the terms"
            )
    return loss, terms
