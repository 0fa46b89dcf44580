"""An encoder that an agent's loss and a JEPA objective train together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepa_rl.checks import check_each, check_not_negative
from jepa_rl.control import MOMENTUM
from jepa_rl.heads import Perceptron, TwoHot
from jepa_rl.objectives.base import checked_loss, inputs_of_norm, norms_of, step_weights, weighted_mean
from jepa_rl.training.optimisers import descend
from jepa_rl.types import Batch
from jepa_rl.world_model import WorldModel

LARGEST_REWARD = (
    10.0  # in units of the scale, as in VecNormalize: the first reward after long silence is far off
)


@dataclass(frozen=True)
class JointConfig:
    """How the encoder learns; fields are arguments of ``jepa_rl.agents.jepa_policy_kwargs``.

    Attributes:
        weight: of what the world model learns, the JEPA objective and the reward, beside the agent's loss. 0: the
            agent's loss alone trains the encoder, with random shifts, as in DrQ (Kostrikov et al. 2020,
            arXiv:2004.13649).
        agent: share of the agent's gradient that reaches the encoder; the layer that the agent reads through learns
            from all of it. 0: the world model's own loss alone trains the encoder.
        reward: weight of the predicted reward, relative to the objective.
        steps: that objective and reward are predicted ahead.
        decay: weight of each further step, relative to the one before.
        scale_rewards: whether rewards are divided by the standard deviation of their discounted sums (``ReturnScale``),
            unless a ``VecNormalize`` scales them. The agent's loss and the objective are then of one size, whatever
            the environment pays.
        encoder_rate: learning rate of encoder, dynamics and reward head, relative to the agent's. None: 1, of JEPAPPO,
            whose own is lower, 2.
        max_grad_norm: largest norm of their gradient.
        latent_dim: width of the latents, and of what the agent reads.
        world: further fields of ``WorldModelConfig``: encoder, dynamics and objective by name and options. Random
            shifts are the objective's (``{"objective_options": {"shift": 3}}``).

    Raises:
        ValueError: for a value out of range.
    """

    weight: float = 1.0
    agent: float = 1.0
    reward: float = 0.5
    steps: int = 3
    decay: float = 0.5
    scale_rewards: bool = True
    encoder_rate: float | None = None
    max_grad_norm: float = 20.0
    latent_dim: int = 64
    world: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_not_negative(weight=self.weight, reward=self.reward, decay=self.decay)
        check_each(lambda value: 0 <= value <= 1, "lie in [0, 1]", agent=self.agent)
        if not self.weight and not self.agent:
            raise ValueError("weight and agent must not both be 0: nothing would train the encoder")
        check_each(lambda value: value >= 1, "be at least 1", steps=self.steps, latent_dim=self.latent_dim)
        rates = {"max_grad_norm": self.max_grad_norm}
        rates |= {} if self.encoder_rate is None else {"encoder_rate": self.encoder_rate}
        check_each(lambda value: value > 0, "be above 0", **rates)
        if "latent_dim" in self.world:
            raise ValueError("world must not hold latent_dim; jepa_policy_kwargs(latent_dim=...) sets it")


class ReturnScale(nn.Module):
    """Divides rewards by the standard deviation of their discounted sums, over all steps so far.

    The sums run from the start of each episode, as in Stable-Baselines3's ``VecNormalize``, which also clips the
    results at ``LARGEST_REWARD``. Here the scale is saved with the agent.

    Args:
        discount: of one step.
    """

    def __init__(self, discount: float) -> None:
        super().__init__()
        self.discount = discount
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0
        self._running = np.zeros(0)

    def follow(self, rewards: Float[np.ndarray, " n"], over: Bool[np.ndarray, " n"]) -> None:
        """One step of n environments, ``over`` where an episode ends; NaN and infinite rewards are passed over."""
        if not np.isfinite(rewards).all():
            return
        if self._running.shape != rewards.shape:
            self._running = np.zeros(len(rewards))
        self._running = self._running * self.discount + rewards
        n, mean = len(rewards), float(self._running.mean())
        total, apart = self.count + n, mean - self.mean
        self.squares += float(np.square(self._running - mean).sum()) + apart**2 * self.count * n / total
        self.mean += apart * n / total
        self.count = total
        self._running[over] = 0.0

    def forget(self) -> None:
        """New episodes begin everywhere; the statistics stay."""
        self._running = np.zeros(0)

    def scaled(self, rewards: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
        """Rewards divided by ``value`` and clipped; float32."""
        return np.clip(rewards / self.value, -LARGEST_REWARD, LARGEST_REWARD).astype(np.float32)

    @property
    def value(self) -> float:
        """The scale; before the sums differ their size, before they are anything 1."""
        spread = math.sqrt(self.squares / self.count) if self.count else 0.0
        return next((size for size in (spread, abs(self.mean)) if size > 1e-8), 1.0)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.count, self.mean, self.squares], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.count, self.mean, self.squares = state.tolist()


class Seen(NamedTuple):
    """What the agent's losses read: of the windows' first states, and of ``future`` or, without it, the last ones."""

    now: Float[Tensor, "b d"]
    later: Float[Tensor, "b d"]


class JointEncoder(nn.Module):
    """A world model whose encoder learns from an agent's loss, the world model's own objective and the reward.

    The agent reads the encoder's features in front of its batch norm through a layer of its own (linear, layer norm,
    tanh, as in DrQ, Kostrikov et al. 2020, arXiv:2004.13649): the statistics of a batch would move the world model's
    latents by a fifth, from batch to batch and from training to acting.

    What it reads is cut off from the encoder's graph (``latents``); its loss leaves a gradient there, and ``update``
    continues it into layer and encoder together with the objective's. So one encoding serves actor and critics, the
    agent's other losses cannot move the encoder, and the objective cannot move the agent's networks.

    Predicting rewards from latents is known from DeepMDP (Gelada et al. 2019, arXiv:1906.02736); here the prediction
    starts from the latents of the rollout and is a distribution, as in JEPAMPC.

    Args:
        world: the model; its encoder, dynamics and objective are trained.
        config: weights and rates.
        discount: of one step.
        seed: of the random numbers in the objective.
    """

    def __init__(self, world: WorldModel, config: JointConfig, discount: float, seed: int) -> None:
        super().__init__()
        self.world, self.config = world.eval(), config
        for norm in norms_of(world.encoder):
            norm.momentum = MOMENTUM
        self.reader = nn.Sequential(
            nn.Linear(world.latent_dim, world.latent_dim), nn.LayerNorm(world.latent_dim), nn.Tanh()
        )
        self.two_hot = TwoHot()
        width = world.latent_dim + world.action_dim
        self.reward_head = Perceptron(width, 128, self.two_hot.bins, last_scale=0.0)
        self.returns = ReturnScale(discount)
        self.learning = [p for p in self.parameters() if p.requires_grad]
        device = next(world.parameters()).device
        self.to(device)
        self.optimizer = torch.optim.Adam(self.learning, fused=True)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.terms: dict[str, Tensor] = {}  # of the last update
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=device))
        self._pending: _Pending | None = None

    @torch.no_grad()
    def acting(self, pixels: Tensor) -> Float[Tensor, "b d"]:
        """What the agent reads of pixels "b c y x" of any dtype with whole values from 0 to 255, without a gradient."""
        with inputs_of_norm(self.world.encoder) as features:
            z = self.world.encode(pixels.to(torch.uint8))
        read: Tensor = self.reader(features[-1] if features else z)
        return read

    def latents(self, batch: Batch) -> Seen:
        """For the agent's losses. ``update`` uses the first gradient that the present ones get.

        Raises:
            ValueError: if the objective's ``unroll`` does not encode the first states, or whole windows, first and the
                future states last.
        """
        self.update()
        world, objective, weight = self.world, self.world.objective, self.config.weight
        # One row has no spread, which objectives and batch norms need.
        spread = len(batch.actions) > 1
        world.train(spread)
        try:
            with inputs_of_norm(world.encoder) as features:
                unrolled = objective.unroll(world, batch, self.generator)
            loss, terms = unrolled.path.new_zeros(()), {}
            if weight and spread:
                answer = objective.shape(world, batch, unrolled, self.config.decay, self.generator)
                loss, found = checked_loss(answer, "objective's loss")
                paid = self._reward_error(batch, unrolled.path)
                loss, terms = loss + self.config.reward * paid, {**found, "predicted_reward": paid}
        finally:
            world.eval()
        now, later = (features[0], features[-1]) if features else (unrolled.path[:, 0], unrolled.future)
        rows, h = batch.actions.shape[:2]
        if len(now) not in (rows, rows * (h + 1)) or len(later) % rows:
            raise ValueError(
                f"{type(objective).__name__}.unroll must encode the windows' {rows} first states, or the windows, "
                f"first and future states last, it encoded {[len(seen) for seen in features]}"
            )
        now, later = now.unflatten(0, (rows, -1))[:, 0], later.unflatten(0, (rows, -1))[:, -1]
        now = now.detach() + self.config.agent * (now - now.detach())
        with torch.no_grad():
            later = self.reader(later)
        self._pending = _Pending(self.reader(now), loss, terms)
        return Seen(self._pending.seen, later)

    def _reward_error(self, batch: Batch, path: Float[Tensor, "b t d"]) -> Float[Tensor, ""]:
        """Cross-entropy of the rewards that are predicted along the rollout."""
        pairs = torch.cat([path[:, :-1], batch.actions], dim=-1)
        logits = self.reward_head(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])
        error = self.two_hot.loss(logits, self.two_hot.encode(batch.rewards))
        return weighted_mean(error, step_weights(batch, self.config.decay))

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
        loss = (pending.latents * gradient).sum() + config.weight * pending.loss
        total = descend(loss, [self.optimizer], self.learning, config.max_grad_norm)
        self.updates += 1
        self.world.after_update()
        self.terms = pending.terms | {"gradient_norm": total, "agent_gradient": norm}

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        # The generator of another kind of device has another state: it keeps its own then.
        if state.shape == self.generator.get_state().shape:
            self.generator.set_state(state.cpu())


class _Pending:
    """Latents of one batch: those in the encoder's graph, and the same ones as the agent sees them."""

    def __init__(self, latents: Tensor, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        self.latents, self.loss = latents, loss
        self.terms = {name: value.detach() for name, value in terms.items()}
        self.seen = latents.detach().requires_grad_()
        found: list[Tensor] = []
        # The first backward pass is that of the critics (SAC, TD3, DQN) or of JEPAPPO's second phase; the actor's comes
        # later, and the encoder does not learn from it (as in SAC+AE, Yarats et al. 2019, arXiv:1910.01741).
        self._handle = self.seen.register_hook(
            lambda gradient: None if found else found.append(gradient.detach().clone())
        )
        self._found = found

    def close(self) -> Tensor | None:
        """The first gradient, None if there was none; further ones are not kept."""
        self._handle.remove()
        return self._found[0] if self._found else None
