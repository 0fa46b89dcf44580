"""The encoder that an agent and a JEPA objective train together, and how Stable-Baselines3's policies read it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_rl.checks import check_each, check_not_negative
from jepa_rl.control import move_towards
from jepa_rl.objectives.base import norms_of
from jepa_rl.spaces import pixel_space
from jepa_rl.training import descend
from jepa_rl.types import Batch
from jepa_rl.world_model import WorldModel

STATISTICS_RATE = 0.02  # of the batch norms' running statistics, per update


@dataclass(frozen=True)
class JointConfig:
    """How the encoder learns; see ``jepa_policy_kwargs``."""

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


def jepa_policy_kwargs(
    weight: float = 1.0,
    steps: int = 3,
    average_rate: float = 0.01,
    latent_dim: int = 64,
    world: dict[str, Any] | None = None,
    encoder_rate: float = 1.0,
    max_grad_norm: float = 20.0,
    **more: Any,
) -> dict[str, Any]:
    """``policy_kwargs`` of ``JEPASAC``, ``JEPATD3``, ``JEPADQN`` and ``JEPAPPO``.

    Args:
        weight: of the JEPA objective, relative to the agent's loss. 0: the agent's loss alone trains the encoder, with
            random shifts, as in DrQ (Kostrikov et al. 2020, arXiv:2004.13649).
        steps: that the objective predicts ahead.
        average_rate: how far the averaged encoder, which encodes next states for target networks, moves towards the one
            that learns after an update. ``JEPAPPO`` has no target networks and ignores it.
        latent_dim: width of the latents.
        world: further fields of ``WorldModelConfig``: encoder, dynamics and objective by name and options.
        encoder_rate: learning rate of encoder and dynamics, relative to the agent's.
        max_grad_norm: largest norm of their gradient.
        **more: further ``policy_kwargs`` of Stable-Baselines3, such as ``net_arch``.

    Raises:
        ValueError: for a value out of range.
    """
    config = JointConfig(
        weight=weight,
        steps=steps,
        average_rate=average_rate,
        latent_dim=latent_dim,
        world=dict(world or {}),
        encoder_rate=encoder_rate,
        max_grad_norm=max_grad_norm,
    )
    return {
        "features_extractor_class": JointFeatures,
        "features_extractor_kwargs": {"joint": config},
        "normalize_images": False,  # the encoder reads uint8
    } | more


class JointFeatures(BaseFeaturesExtractor):
    """Features extractor: latents of pixels for acting; latents that the agent's buffer made are passed on.

    The buffer may give latents "b 2d", of the encoder that learns and of its average: a target network reads the latter.

    The encoder is not a submodule: Stable-Baselines3 would put its weights into the agent's optimisers and target
    networks, once for each network.

    Args:
        observation_space: uint8 pixels, channels first.
        joint: the configuration; sets the width of the features.

    Raises:
        ValueError: if the environment shows no such pixels.
    """

    def __init__(self, observation_space: spaces.Box, joint: JointConfig) -> None:
        pixel_space(observation_space)
        super().__init__(observation_space, joint.latent_dim)
        self.config = joint
        self.of_target = False
        self._encoder: list[JointEncoder] = []

    def use(self, encoder: JointEncoder, of_target: bool) -> None:
        """Reads latents of this encoder from now on; ``of_target``: for a target network."""
        self._encoder[:], self.of_target = [encoder], of_target

    def forward(self, seen: Float[Tensor, "b c y x"] | Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Latents.

        Raises:
            RuntimeError: if no encoder is set, since the algorithm is another one.
        """
        if seen.ndim == 2:
            d = self.features_dim
            return seen[:, -d:] if self.of_target else seen[:, :d]
        if not self._encoder:
            raise RuntimeError(
                "jepa_policy_kwargs needs an algorithm that trains the encoder: JEPASAC instead of SAC, JEPATD3 "
                "instead of TD3, JEPADQN instead of DQN, JEPAPPO instead of PPO"
            )
        return self._encoder[0].acting(seen)


class JointEncoder(nn.Module):
    """A world model whose encoder learns from an agent's loss and from the world model's own objective.

    The agent learns on latents whose graph ends at the latents (``latents``); its loss leaves a gradient there, and
    ``update`` continues it into the encoder together with the objective's. So one encoding serves actor and critics,
    the agent's other losses cannot move the encoder, and the objective cannot move the agent's networks.

    The agent's gradient is divided by a moving average of its norm, so that the objective's share does not depend on
    the scale of the rewards.

    Batch norms use running statistics in training, too: those of one batch would move the latents of a picture by a
    fifth of their norm between learning and acting. ``latents`` updates them, or ``measure``.

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
        self.learning = [p for p in world.parameters() if p.requires_grad]
        device = self.learning[0].device
        self.optimizer = torch.optim.Adam(self.learning, fused=True)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.terms: dict[str, Tensor] = {}
        self.scale: Tensor
        self.updates: Tensor
        self.register_buffer("scale", torch.zeros((), device=device))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=device))
        self._pending: _Pending | None = None

    @torch.no_grad()
    def acting(self, pixels: Tensor) -> Float[Tensor, "b d"]:
        """Latents of pixels "b c y x" of any dtype with values from 0 to 255, without a gradient."""
        return normalised(self.world.encode(pixels.to(torch.uint8)))

    @torch.no_grad()
    def following(self, pixels: Tensor, online: bool) -> Float[Tensor, "b n"]:
        """Latents of next states, for value targets.

        Args:
            pixels: "b c y x".
            online: whether the encoder that learns is asked, too; its latents come first then, and n is 2d, else d.
        """
        assert self.average is not None, "only algorithms with target networks ask"
        averaged = normalised(self.average.encode(pixels.to(torch.uint8)))
        return torch.cat([self.acting(pixels), averaged], dim=1) if online else averaged

    def latents(self, batch: Batch) -> Float[Tensor, "b d"]:
        """Latents of the windows' first states, for the agent's losses. ``update`` uses the first gradient they get."""
        self.update()
        world, objective = self.world, self.world.objective
        # PPO's batch norms keep their statistics while it learns from one rollout.
        world.train(self.average is not None)
        unrolled = objective.unroll(world, batch, self.generator)
        loss, self.terms = unrolled.path.new_zeros(()), {}
        if self.config.weight:
            loss, terms = objective.shape(world, batch, unrolled, self.config.decay, self.generator)
            self.terms = {name: value.detach() for name, value in terms.items()}
        world.eval()
        self._pending = _Pending(normalised(unrolled.path[:, 0]), loss)
        return self._pending.seen

    def update(self) -> None:
        """One step down the gradients of the last batch of ``latents``, if the agent's loss has reached it."""
        pending, self._pending = self._pending, None
        if pending is None or pending.gradient is None:
            return
        gradient, config = pending.gradient, self.config
        rate = max(0.01, 1 / (1 + int(self.updates)))
        self.scale.lerp_(gradient.norm(), rate)
        # Each row's gradient has about the norm 1 / rows, as that of a mean over rows.
        unit = gradient / (self.scale.clamp_min(1e-12) * len(gradient) ** 0.5)
        loss = (pending.latents * unit).sum() + config.weight * pending.loss
        norm = descend(loss, [self.optimizer], self.learning, config.max_grad_norm)
        self.updates += 1
        self.world.after_update()
        if self.average is not None:
            # Larger at first, so that the average soon forgets the initial weights.
            move_towards(self.average, self.world, max(config.average_rate, 10 / (9 + int(self.updates))))
        self.terms |= {"gradient_norm": norm, "agent_gradient": self.scale.clone()}

    @torch.no_grad()
    def measure(self, pixels: Tensor) -> None:
        """Sets the statistics of the batch norms to those of pixels "b c y x"."""
        with first_inputs(norms_of(self.world.encoder)) as inputs:
            self.world.encode(pixels.to(torch.uint8))
        for norm, features in inputs.items():
            follow(norm, features, 1.0)

    def checked_terms(self) -> dict[str, float]:
        """The terms of the last update.

        Raises:
            ValueError: if one is NaN or infinite.
        """
        found = {name: float(value) for name, value in self.terms.items()}
        wrong = {name: value for name, value in found.items() if not np.isfinite(value)}
        if wrong:
            raise ValueError(
                f"training broke after {int(self.updates)} updates: {wrong}; lower learning_rate or encoder_rate, and "
                "check that rewards and observations are finite"
            )
        return found

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())


@contextmanager
def first_inputs(norms: Iterable[nn.BatchNorm1d]) -> Iterator[dict[nn.BatchNorm1d, Tensor]]:
    """Context manager: a dict that collects what each batch norm was given first."""
    found: dict[nn.BatchNorm1d, Tensor] = {}
    hooks = [
        norm.register_forward_pre_hook(lambda norm, given: (found.setdefault(norm, given[0]), None)[1])
        for norm in norms
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def follow(norm: nn.BatchNorm1d, features: Float[Tensor, "b d"], rate: float) -> None:
    """Moves the running statistics of a batch norm towards those of a batch.

    Args:
        norm: the batch norm.
        features: its input.
        rate: in [0, 1].
    """
    if norm.running_mean is None or norm.running_var is None or len(features) < 2:
        return
    # Not in place: the graph of the batch holds the buffers.
    norm.running_mean = norm.running_mean.lerp(features.mean(0), rate)
    norm.running_var = norm.running_var.lerp(features.var(0), rate)


def normalised(latents: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Latents of mean 0 and variance 1 in each row."""
    return F.layer_norm(latents, latents.shape[-1:])


class _Pending:
    """Latents of one batch: those in the encoder's graph, and those that the agent sees."""

    def __init__(self, latents: Tensor, loss: Tensor) -> None:
        self.latents, self.loss = latents, loss
        self.gradient: Tensor | None = None
        self.seen = latents.detach().requires_grad_()
        self.seen.register_hook(self._take)

    def _take(self, gradient: Tensor) -> None:
        # The first backward pass is that of the critics (SAC, TD3, DQN) or of the whole loss (PPO); the actor's comes
        # later, and the encoder does not learn from it (as in SAC+AE, Yarats et al. 2019, arXiv:1910.01741).
        if self.gradient is None:
            self.gradient = gradient.detach().clone()
