"""The contract of objectives: the losses that shape the latent space of a world model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.distributed import whole_batch
from jepa_rl.encoders.conv import unmeasured_pixels
from jepa_rl.types import Batch, ControlBatch, Observations, World


class Unrolled(NamedTuple):
    """A world model rolled out over a batch; reward and value heads are trained on it.

    Attributes:
        path: latents predicted from the first, encoded one; with a gradient.
        targets: encoded latents of the later states; without a gradient.
        future: latents of ``batch.future``, or of each window's last state; without a gradient.
        seen: the observations that were encoded, after augmentation.
        states: encoded latents of all states, with a gradient, from objectives that have encoded them so.
    """

    path: Float[Tensor, "b t d"]
    targets: Float[Tensor, "b h d"]
    future: Float[Tensor, "b d"]
    seen: Observations
    states: Float[Tensor, "b t d"] | None = None


class Objective(nn.Module):
    """Base class of objectives; a subclass defines ``loss``. It holds what only training needs: heads, target networks.

    If its constructor has parameters named ``latent_dim``, ``action_dim``, ``spec``, ``encoder`` or
    ``world_dynamics``, the world model fills them in; all others come from ``WorldModelConfig.objective_options``.

    Attributes:
        copies: parts of this objective that have the shape of the world model's ``"encoder"`` or ``"dynamics"``, by
            name, such as a teacher: ``{"teacher": "encoder"}``. Only training needs them. Training checkpoints hold
            them; files of a finished model do not, and a model that is read from one begins with new copies.
        divided: whether several processes may train it, each with its rows: what it draws for rows and takes over rows
            is that of the whole batch then (``jepa_rl.distributed``). False: ``fit`` refuses several processes.
    """

    copies: ClassVar[Mapping[str, str]] = {}
    divided: ClassVar[bool] = True

    def loss(
        self, world: World, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total, a scalar with a gradient, and the named terms in it, scalars.

        Args:
            world: the world model, in training mode during training.
            batch: windows.
            generator: of all random numbers in the loss.
        """
        raise NotImplementedError(f"{type(self).__name__} must have a method loss(world, batch, generator)")

    def after_update(self, world: World) -> None:
        """Called after every step of the optimiser, for example to update a moving average."""

    # -- for agents that also learn from reward --------------------------------------------------

    def unroll(self, world: World, batch: Batch, generator: torch.Generator | None = None) -> Unrolled:
        """Encodes the windows and rolls the world model out from their first states, for ``shape`` and for the heads.

        Override it if the objective augments or encodes windows differently.

        Args:
            world, batch, generator: as for ``loss``.
        """
        shared = SharedStatistics(world.encoder)
        with shared.measured(len(batch.actions)):
            z = world.encode(each(batch.observations, lambda x: x[:, 0]))
        with torch.no_grad(), shared.used():
            targets = world.encode_windows(each(batch.observations, lambda x: x[:, 1:]))
            future = future_of(world, batch, targets)
        path = world.dynamics.rollout(z, batch.actions, generator=generator)[:, 0]
        return Unrolled(path, targets, future, batch.observations)

    def shape(
        self,
        world: World,
        batch: Batch,
        unrolled: Unrolled,
        decay: float,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective's loss where reward and value are trained, too; returns what ``loss`` returns.

        Args:
            world, batch, generator: as for ``loss``.
            unrolled: result of ``unroll`` for this batch.
            decay: weight of each further step of the rollout, relative to the one before.
        """
        return self.loss(world, batch, generator)


def checked_loss(answer: Any, whose: str) -> tuple[Tensor, Mapping[str, Tensor]]:
    """What a ``loss`` of objectives, dynamics or models answered, if it is a scalar and named scalars.

    Args:
        answer: should be a tensor and a mapping of tensors.
        whose: loss it is, for messages.

    Raises:
        TypeError: it is no such pair, or something in it is no tensor.
        ValueError: something in it is no scalar of floats.
    """
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)):
        parts = ", ".join(type(part).__name__ for part in answer) if isinstance(answer, tuple) else ""
        raise TypeError(
            f"the {whose} must be a pair, a scalar tensor and a dict of named scalars, got "
            f"{f'({parts})' if parts else type(answer).__name__}; return total, {{'name': term}}"
        )
    loss, terms = answer
    named = {f"term {name!r} of the {whose}": value for name, value in terms.items()}
    for name, value in {whose: loss, **named}.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"the {name} must be a scalar tensor, got {type(value).__name__}; leave out float() and .item(), and "
                "make a tensor of a constant with torch.tensor(value)"
            )
        if value.ndim or not value.is_floating_point():
            raise ValueError(
                f"the {name} must be a scalar of floats, got shape {tuple(value.shape)} and {value.dtype}; average it "
                "over the batch with .mean()"
            )
    return loss, terms


def check_gradient(loss: Tensor, whose: str) -> None:
    """Raises ValueError, naming ``whose`` it is, if a loss has no gradient."""
    if not loss.requires_grad:
        raise ValueError(
            f"the {whose} has no gradient; leave out .detach() and torch.no_grad(), and let it depend on parameters "
            "that learn"
        )


def each(observations: Observations, change: Callable[[Tensor], Tensor]) -> Observations:
    """``change`` applied to a tensor, or to each tensor of a dict."""
    if isinstance(observations, dict):
        return {name: change(x) for name, x in observations.items()}
    return change(observations)


def norms_of(encoder: nn.Module) -> list[nn.BatchNorm1d]:
    """The batch norms of an encoder."""
    return [part for part in encoder.modules() if isinstance(part, nn.BatchNorm1d)]


@contextmanager
def inputs_of_norm(encoder: nn.Module) -> Iterator[list[Float[Tensor, "b d"]]]:
    """Context manager: a list that collects the inputs of the encoder's last batch norm; empty if it has none."""
    found: list[Tensor] = []
    norms = norms_of(encoder)[-1:]
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for norm in norms]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class SharedStatistics:
    """Batch norms that normalise later states by the batch statistics of the windows' first states.

    In evaluation mode the norms use running statistics of first states. Later states are more often near the end of an
    episode: normalised by their own statistics, one picture had two latents, for acting and for value targets, whose
    distance was a third of their norm before training. So encode the first states inside ``measured``, which updates
    the running statistics as usual, and the later states inside ``used``.

    Args:
        module: its ``BatchNorm1d`` layers are treated so; if there are none, nothing changes. Its patch convolutions
            measure pixels inside ``measured`` alone.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._norms = module, norms_of(module)
        self._measured: list[tuple[Tensor, Tensor]] = []

    def _live(self) -> list[nn.BatchNorm1d]:
        """The batch norms in training mode that keep running statistics."""
        return [norm for norm in self._norms if norm.training and norm.running_mean is not None]

    @contextmanager
    def measured(self, rows: int) -> Iterator[None]:
        """Context manager: encode one batch of ``rows`` states inside; its statistics are kept for ``used``."""
        live, rows = self._live(), whole_batch(rows)
        before = [(*_copied_statistics(norm), norm.momentum) for norm in live]
        for norm in live:
            norm.momentum = 1.0
        yield
        for norm, (mean, var, momentum) in zip(live, before, strict=True):
            norm.momentum = momentum
            batch_mean, batch_var = _copied_statistics(norm)
            # Training normalises by the biased variance, and remembers the unbiased one.
            self._measured.append((batch_mean, batch_var * ((rows - 1) / rows)))
            # Not in place: the graph of the measured batch holds the buffers.
            if momentum is None:  # a cumulative mean of all batches
                assert norm.num_batches_tracked is not None
                share = 1 / int(norm.num_batches_tracked)
            else:
                share = momentum
            norm.running_mean = batch_mean.lerp(mean, 1 - share)
            norm.running_var = batch_var.lerp(var, 1 - share)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Context manager: states encoded inside are normalised by the statistics of the measured batch."""
        live = self._live()
        before = [(norm.running_mean, norm.running_var) for norm in live]
        for norm, (mean, var) in zip(live, self._measured, strict=True):
            norm.running_mean, norm.running_var, norm.training = mean, var, False
        try:
            with unmeasured_pixels(self._module):
                yield
        finally:
            for norm, kept in zip(live, before, strict=True):
                (norm.running_mean, norm.running_var), norm.training = kept, True


def _copied_statistics(norm: nn.BatchNorm1d) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Copies of the running mean and variance."""
    assert norm.running_mean is not None and norm.running_var is not None  # _live leaves out those without
    return norm.running_mean.clone(), norm.running_var.clone()


def future_of(world: World, batch: Batch, targets: Float[Tensor, "b h d"]) -> Float[Tensor, "b d"]:
    """Latents of the state from which value targets bootstrap: ``batch.future``, or each window's last valid state.

    States beyond the end of an episode are not used: their stacks hold repeated frames, which look like standing still.

    Args:
        world: encodes ``batch.future``.
        batch: windows of h steps.
        targets: encoded latents of the states 1 to h.
    """
    if isinstance(batch, ControlBatch) and batch.future is not None:
        return world.encode(batch.future)
    if batch.valid is None:
        return targets[:, -1]
    return targets[torch.arange(len(targets), device=targets.device), batch.valid.sum(1) - 1]


def step_weights(batch: Batch, decay: float, first: bool = False) -> Float[Tensor, "b h"]:
    """Weight of every step in a mean over windows: ``decay ** i`` for step i, 0 beyond the end of an episode.

    Args:
        batch: windows of h steps.
        decay: weight of each further step, relative to the one before.
        first: whether to include the first state; the weights are then "b h+1".
    """
    b, h = batch.actions.shape[:2]
    share = decay ** torch.arange(h + first, device=batch.actions.device)
    valid = torch.ones(b, h, dtype=torch.bool, device=share.device) if batch.valid is None else batch.valid
    if first:
        valid = F.pad(valid, (1, 0), value=True)
    return share * valid / share.sum() / b


def weighted_mean(values: Float[Tensor, "b h"], weight: Float[Tensor, "b h"]) -> Float[Tensor, ""]:
    """The sum of ``values`` times their weights."""
    return (values * weight).sum()
