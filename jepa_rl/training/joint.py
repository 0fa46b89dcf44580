"""An encoder that an agent's loss and a JEPA objective train together."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from jepa_rl.checks import check_each, check_not_negative
from jepa_rl.control import early_rate, move_towards
from jepa_rl.objectives.augment import shifted
from jepa_rl.objectives.base import each, inputs_of_norm
from jepa_rl.training.optimisers import descend
from jepa_rl.types import Batch, Observations
from jepa_rl.world_model import WorldModel

LARGEST_GRADIENT = 5.0  # of the agent at the latents, in units of its usual norm


@dataclass(frozen=True)
class JointConfig:
    """How the encoder learns; fields are arguments of ``jepa_rl.agents.jepa_policy_kwargs``.

    Attributes:
        weight: of the JEPA objective, relative to the agent's loss. 0: the agent's loss alone trains the encoder, with
            random shifts, as in DrQ (Kostrikov et al. 2020, arXiv:2004.13649).
        steps: that the objective predicts ahead.
        decay: weight of each further step, relative to the one before.
        average_rate: how far the averaged encoder, which encodes next states for target networks, moves towards the one
            that learns after an update. ``JEPAPPO`` has no target networks and ignores it.
        encoder_rate: learning rate of encoder and dynamics, relative to the agent's.
        max_grad_norm: largest norm of their gradient.
        latent_dim: width of the latents.
        world: further fields of ``WorldModelConfig``: encoder, dynamics and objective by name and options. Random
            shifts are the objective's (``{"objective_options": {"shift": 3}}``).

    Raises:
        ValueError: for a value out of range.
    """

    weight: float = 1.0
    steps: int = 3
    decay: float = 0.5
    average_rate: float = 0.01
    encoder_rate: float = 1.0
    max_grad_norm: float = 20.0
    latent_dim: int = 64
    world: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_not_negative(weight=self.weight, decay=self.decay)
        check_each(lambda value: value >= 1, "be at least 1", steps=self.steps, latent_dim=self.latent_dim)
        check_each(lambda value: 0 < value <= 1, "lie in (0, 1]", average_rate=self.average_rate)
        rates = {"encoder_rate": self.encoder_rate, "max_grad_norm": self.max_grad_norm}
        check_each(lambda value: value > 0, "be above 0", **rates)
        if "latent_dim" in self.world:
            raise ValueError("world must not hold latent_dim; jepa_policy_kwargs(latent_dim=...) sets it")


class JointEncoder(nn.Module):
    """A world model whose encoder learns from an agent's loss and from the world model's own objective.

    The agent learns on latents whose graph ends at the latents (``latents``); its loss leaves a gradient there, and
    ``update`` continues it into the encoder together with the objective's. So one encoding serves actor and critics,
    the agent's other losses cannot move the encoder, and the objective cannot move the agent's networks.

    The agent's gradient is divided by a moving average of its norm, so that the objective's share does not depend on
    the scale of the rewards.

    The agent sees features standardised by the statistics of the batch. One update moves their mean by a good part of
    their standard deviation, so running statistics lag; those for acting are measured anew after the updates
    (``settle``).

    Args:
        world: the model; its encoder, dynamics and objective are trained.
        config: weights and rates.
        averaged: whether there is a moving average of the weights, for target networks.
        seed: of the random numbers in the objective.
    """

    def __init__(self, world: WorldModel, config: JointConfig, averaged: bool, seed: int) -> None:
        super().__init__()
        self.world, self.config = world.eval(), config
        self.average = copy.deepcopy(world).requires_grad_(False) if averaged else None
        self.scaled, self.average_scaled = (Standardised(world.latent_dim) for _ in range(2))
        self.learning = [p for p in world.parameters() if p.requires_grad]
        device = self.learning[0].device
        self.optimizer = torch.optim.Adam(self.learning, fused=True)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.shift: int = getattr(world.objective, "shift", 0)
        self.terms: dict[str, Tensor] = {}  # of the last update
        self.scale: Tensor
        self.updates: Tensor
        self.register_buffer("scale", torch.zeros((), device=device))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=device))
        self.to(device)
        self._pending: _Pending | None = None
        self._recent: Observations | None = None  # present states of the last batch

    @torch.no_grad()
    def acting(self, pixels: Tensor) -> Float[Tensor, "b d"]:
        """Latents of pixels "b c y x" of any dtype with whole values from 0 to 255, without a gradient."""
        return self.scaled(features_of(self.world, pixels.to(torch.uint8)))

    @torch.no_grad()
    def following(self, pixels: UInt8[Tensor, "b c y x"], online: bool) -> Float[Tensor, "b n"]:
        """Latents of next states, for value targets; shifted at random, as the objective shifts the others.

        Those of the learning encoder are standardised by the statistics of the present states: call ``latents`` first.

        Args:
            pixels: of the next states.
            online: whether the encoder that learns is asked, too; its latents come first then, and n is 2d, else d.
        """
        assert self.average is not None, "only algorithms with target networks ask"
        moved = shifted(pixels, self.shift, self.generator)
        features = features_of(self.average, moved)
        self.average_scaled.follow(features)
        parts = [self.scaled(features_of(self.world, moved))] if online else []
        return torch.cat([*parts, self.average_scaled(features)], dim=1)

    def latents(self, batch: Batch) -> Float[Tensor, "b d"]:
        """Latents of the windows' first states, for the agent's losses. ``update`` uses the first gradient they get."""
        self.update()
        world, objective = self.world, self.world.objective
        first = each(batch.observations, lambda x: x[:, 0])
        # One row has no spread, which objectives and batch norms need.
        spread = len(batch.actions) > 1
        world.train(spread)
        with inputs_of_norm(world.encoder) as found:
            if self.config.weight and spread:
                unrolled = objective.unroll(world, batch, self.generator)
                z = unrolled.path[:, 0]
                loss, terms = objective.shape(world, batch, unrolled, self.config.decay, self.generator)
            else:
                z = world.encode(shifted(first, self.shift, self.generator))
                loss, terms = z.new_zeros(()), {}
        world.eval()
        features = (found[0] if found else z).detach()
        self._recent = first
        self.scaled.follow(features)
        self._pending = _Pending(z, self.scaled(features), loss, terms)
        return self._pending.seen

    def update(self) -> None:
        """One step down the gradients of the last batch of ``latents``, if the agent's loss has reached it.

        Raises:
            ValueError: if the agent's gradient or the objective's loss is NaN or infinite; nothing has changed then.
        """
        pending, self._pending = self._pending, None
        gradient = None if pending is None else pending.close()
        if pending is None or gradient is None:
            return
        norm, config = gradient.norm(), self.config
        if not torch.isfinite(norm + pending.loss.detach()):
            raise ValueError(
                f"training broke after {int(self.updates)} updates: the norm of the agent's gradient is "
                f"{float(norm)}, the objective's loss {float(pending.loss)}; lower learning_rate or encoder_rate, and "
                "check that rewards are of a moderate size"
            )
        self.scale.lerp_(norm, max(0.01, 1 / (1 + int(self.updates))))
        # Each row's gradient has about the norm 1 / rows, as that of a mean over rows. A reward after long silence
        # would have many times the usual norm.
        usual = torch.maximum(self.scale, norm / LARGEST_GRADIENT).clamp_min(1e-12)
        unit = gradient / (usual * len(gradient) ** 0.5)
        # What all rows share would move the features as a whole, and the statistics after them, without end.
        unit = unit - unit.mean(0)
        loss = (pending.latents * unit).sum() + config.weight * pending.loss
        total = descend(loss, [self.optimizer], self.learning, config.max_grad_norm)
        self.updates += 1
        self.world.after_update()
        if self.average is not None:
            move_towards(self.average, self.world, early_rate(config.average_rate, int(self.updates)))
        self.terms = pending.terms | {"gradient_norm": total, "agent_gradient": self.scale.clone()}

    def settle(self, pixels: Observations | None = None) -> None:
        """Ends an update or several: the statistics for acting are measured with the new weights.

        Args:
            pixels: uint8 "b c y x"; the present states of the last batch if None.
        """
        self.update()
        seen = self._recent if pixels is None else pixels
        if seen is not None:
            with torch.no_grad():
                self.scaled.follow(features_of(self.world, seen))
            self._recent = None

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        # The generator of another kind of device has another state: it keeps its own then.
        if state.shape == self.generator.get_state().shape:
            self.generator.set_state(state.cpu())


def features_of(world: WorldModel, observations: Observations) -> Float[Tensor, "b d"]:
    """What the encoder's last batch norm is given, or latents if it has none."""
    with inputs_of_norm(world.encoder) as found:
        z = world.encode(observations)
    return found[0] if found else z


class Standardised(nn.Module):
    """Features minus a mean, divided by a standard deviation.

    Args:
        width: of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.var: Tensor
        self.measured: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.register_buffer("measured", torch.tensor(False))

    def follow(self, features: Float[Tensor, "b d"]) -> None:
        """Takes mean and variance from a batch, if it has two rows or more."""
        if len(features) > 1:
            self.mean.copy_(features.mean(0))
            self.var.copy_(features.var(0))
            self.measured.fill_(True)

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return (features - self.mean) * (self.var + 1e-8).rsqrt()


class _Pending:
    """Latents of one batch: those in the encoder's graph, and those that the agent sees, standardised alike."""

    def __init__(self, latents: Tensor, seen: Tensor, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        self.latents, self.loss = latents, loss
        self.terms = {name: value.detach() for name, value in terms.items()}
        self.seen = seen.detach().requires_grad_()
        found: list[Tensor] = []
        # The first backward pass is that of the critics (SAC, TD3, DQN) or of the whole loss (PPO); the actor's comes
        # later, and the encoder does not learn from it (as in SAC+AE, Yarats et al. 2019, arXiv:1910.01741).
        self._handle = self.seen.register_hook(
            lambda gradient: None if found else found.append(gradient.detach().clone())
        )
        self._found = found

    def close(self) -> Tensor | None:
        """The first gradient, None if there was none; further ones are not kept."""
        self._handle.remove()
        return self._found[0] if self._found else None
