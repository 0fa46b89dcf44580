"""A world model with heads for reward, termination, value and a policy prior."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_rl.control.config import ControlConfig
from jepa_rl.distributed import gather
from jepa_rl.encoders.conv import PatchConv
from jepa_rl.heads import CategoricalPolicy, GaussianPolicy, Perceptron, TwoHot
from jepa_rl.objectives.base import check_gradient, checked_loss, norms_of, step_weights, weighted_mean
from jepa_rl.types import ControlBatch, Observations
from jepa_rl.world_model import WorldModel

# Of the batch norms' running statistics. Acting uses them while the weights still change fast, so they must not lag:
# on unseen episodes the reward's one-step error was 0.48 with 0.1 and 0.37 with 0.5.
MOMENTUM = 0.5


class ControlModel(nn.Module):
    """A ``WorldModel`` and heads on its latents; a ``Dynamics`` for the planners, and an ``Imagination``.

    Args:
        world: encoder, dynamics and the objective that is trained beside reward and value.
        config: sizes and weights of the heads.
        discount: of one step.

    Raises:
        ValueError: if the world's latent steps are blocks of several environment steps.
    """

    def __init__(self, world: WorldModel, config: ControlConfig, discount: float) -> None:
        super().__init__()
        if world.spec.block != 1:
            raise ValueError(
                f"control decides in every environment step, the world model predicts blocks of {world.spec.block}; "
                "train it with block=1"
            )
        d, a, w = world.latent_dim, world.action_dim, config.width
        self.config, self.discount, self.world = config, discount, world
        self.latent_dim, self.action_dim = d, a
        for norm in norms_of(world.encoder):
            norm.momentum = MOMENTUM
        self.two_hot = TwoHot(config.bins)
        self.reward_head = Perceptron(d + a, w, config.bins, config.depth, last_scale=0.0)
        self.end_head = Perceptron(d, w, 1, config.depth, last_scale=0.0) if config.termination else None
        self.value_heads = Perceptron(d + a, w, config.bins, config.depth, config.values, last_scale=0.0)
        self.target_heads = copy.deepcopy(self.value_heads).requires_grad_(False)
        groups = world.spec.action.groups
        self.policy: GaussianPolicy | CategoricalPolicy = (
            CategoricalPolicy(d, groups, w, config.depth) if groups else GaussianPolicy(d, a, w, config.depth)
        )
        if config.frozen:
            world.encoder.requires_grad_(False)
            world.dynamics.requires_grad_(False)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))  # of the values, for the policy's loss

    def warm_start(self, other: WorldModel) -> None:
        """Takes encoder and dynamics from a world model that was trained without reward, on any data.

        Raises:
            ValueError: if its parts are not those of this model; nothing has changed then.
        """
        pairs = [(other.dynamics, self.world.dynamics), (other.encoder, self.world.encoder)]
        unlike = [text for old, new in pairs for text in _unlike(old, new)]
        if unlike:
            raise ValueError(
                f"the world model does not fit: {'; '.join(unlike[:4])}. Build the agent's alike: "
                "policy_kwargs=dict(world=dict(latent_dim=..., encoder=..., encoder_options=..., dynamics=..., "
                "dynamics_options=...)), on the same observations and blocks of one step"
            )
        for old, new in pairs:
            new.load_state_dict(old.state_dict())

    def encode(self, observations: Observations) -> Float[Tensor, "b d"]:
        """Latents of observations; see ``WorldModel.encode``."""
        return self.world.encode(observations)

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n h+1 d"]:
        """The ``Dynamics`` contract."""
        return self.world.dynamics.rollout(z, actions, futures=futures, generator=generator)

    @property
    def markov(self) -> bool:
        """See ``TrainableDynamics.markov``."""
        return self.world.markov

    def reward(self, z: Float[Tensor, "b d"], action: Float[Tensor, "b a"]) -> Float[Tensor, " b"]:
        """Reward of taking an action in a state."""
        return self.two_hot.decode(self.reward_head(torch.cat([z, action], dim=-1)))

    def alive(self, z: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Probability that the episode did not end on the way into ``z``."""
        if self.end_head is None:
            return torch.ones_like(z[..., 0])
        return torch.sigmoid(-self.end_head(z)[..., 0])

    def value(self, z: Float[Tensor, "b d"], action: Float[Tensor, "b a"]) -> Float[Tensor, "e b"]:
        """Discounted return of an action and then the policy's, as each of the ``e`` heads predicts it."""
        return self.two_hot.decode(self.value_heads(torch.cat([z, action], dim=-1)))

    # -- learning -----------------------------------------------------------------------------------

    def loss(self, batch: ControlBatch, generator: torch.Generator | None = None) -> Losses:
        """Loss of the world model and of the reward, termination and value heads.

        Args:
            batch: windows of h steps.
            generator: of augmentation, sampled actions and the choice of value heads.

        Returns:
            Total and terms, and the imagined path, detached, for ``policy_loss``.

        Raises:
            TypeError, ValueError: if the objective's loss is no scalar and named scalars, or has no gradient.
        """
        c, h = self.config, batch.actions.shape[1]
        if c.frozen:
            self.world.encoder.eval()  # its batch norm, too
        unrolled = self.world.objective.unroll(self.world, batch, generator)
        path, weight = unrolled.path, step_weights(batch, c.decay)
        returns = self._targets(unrolled.future, batch, generator)
        pairs = torch.cat([path[:, :-1], batch.actions], dim=-1).flatten(0, 1)
        rewards = self.reward_head(pairs).unflatten(0, (-1, h))
        values = self.value_heads(pairs).unflatten(1, (-1, h))
        errors = {
            "reward": self.two_hot.loss(rewards, self.two_hot.encode(batch.rewards)),
            "value": self.two_hot.loss(values, self.two_hot.encode(returns)).mean(0),
        }
        if self.end_head is not None:
            ends = self.end_head(path[:, 1:].flatten(0, 1)).view(-1, h)
            errors["end"] = F.binary_cross_entropy_with_logits(
                ends, batch.terminated.float(), reduction="none"
            )
        found = {name: weighted_mean(error, weight) for name, error in errors.items()}
        parts = [getattr(c, name) * value for name, value in found.items()]
        if not c.frozen:
            answer = self.world.objective.shape(self.world, batch, unrolled, c.decay, generator)
            shaping, terms = checked_loss(answer, "objective's loss")
            if c.shaping and torch.is_grad_enabled():
                check_gradient(shaping, "objective's loss")
            parts, found = [*parts, c.shaping * shaping], found | dict(terms)
        return Losses(torch.stack(parts).sum(), found, path.detach(), weight)

    @torch.no_grad()
    def _targets(
        self, future: Float[Tensor, "b d"], batch: ControlBatch, generator: torch.Generator | None
    ) -> Float[Tensor, "b h"]:
        """Rewards up to ``future``, then ``min(Q1, Q2)(z, policy(z))`` of two heads of the moving average.

        Several rewards before the bootstrap learn values faster: with one-step targets the values stayed at a third of
        the returns for thousands of updates.
        """
        action, _ = self.policy.sample(future, generator)
        logits = self.target_heads(torch.cat([future, action], dim=-1))
        pair = torch.randperm(self.config.values, generator=generator, device=future.device)[:2]
        least = self.two_hot.decode(logits[pair]).amin(0)
        if self.end_head is not None:  # without it the agent ignores termination
            least = least * ~batch.ended
        return batch.returns + batch.discounts * least.unsqueeze(1)

    def policy_loss(self, losses: Losses, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Maximises the mean of the value heads, divided by a running 5-95% range of values, plus weighted entropy.

        Args:
            losses: of ``loss`` on the same batch.
            generator: of the sampled actions.

        Returns:
            ``policy``, the loss, and for the log ``entropy`` and ``value_mean``; scalars.
        """
        z, h = losses.path, losses.weight.shape[1]
        rows = z[:, :-1].flatten(0, 1)
        action, neg_entropy = self.policy.sample(rows, generator, steps=h)
        # The gradient reaches the actions and not the value heads.
        value = self.two_hot.decode(frozen(self.value_heads, torch.cat([rows, action], dim=-1))).mean(0)
        with torch.no_grad():
            first = gather(value[::h]).flatten()  # the range is that of all processes' rows
            low, high = torch.quantile(first, first.new_tensor([0.05, 0.95]))
            self.scale.lerp_((high - low).clamp_min(1.0), 0.01)
        gain = value / self.scale - self.config.entropy * neg_entropy
        loss = -(gain.view(-1, h) * losses.weight).sum()
        return {"policy": loss, "entropy": -neg_entropy.mean().detach(), "value_mean": value.mean().detach()}

    def after_update(self) -> None:
        """Updates the target network of the values, and the moving averages inside the world model."""
        self.world.after_update()
        move_towards(self.target_heads, self.value_heads, self.config.target_rate)


def _unlike(old: nn.Module, new: nn.Module) -> list[str]:
    """Differences in class or in the shapes of weights, in words."""
    if type(old) is not type(new):
        return [f"{type(old).__name__} instead of {type(new).__name__}"]
    there = {name: tuple(value.shape) for name, value in old.state_dict().items()}
    here = {name: tuple(value.shape) for name, value in new.state_dict().items()}
    names = sorted(there.keys() | here)
    return [f"{n} {there.get(n)} instead of {here.get(n)}" for n in names if there.get(n) != here.get(n)]


class Losses(NamedTuple):
    """Total and terms; the imagined path "b t d", and the weight of each of its steps "b h"."""

    total: Tensor
    terms: dict[str, Tensor]
    path: Tensor
    weight: Tensor


def frozen(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` with a gradient to ``x`` alone."""
    weights = {name: value.detach() for name, value in module.named_parameters()}
    return torch.func.functional_call(module, weights, (x,))


@torch.no_grad()
def move_towards(average: nn.Module, module: nn.Module, rate: float) -> None:
    """Updates a moving average of weights and batch-norm statistics: ``average += rate * (module - average)``.

    What pixels are standardised by is copied: weights that lag behind still mean the same pixels.

    Args:
        average: the module that is changed.
        module: of the same architecture.
        rate: in [0, 1].
    """
    ours, theirs = ([*part.parameters(), *part.buffers()] for part in (average, module))
    moving = [(old, new) for old, new in zip(ours, theirs, strict=True) if old.is_floating_point()]
    torch._foreach_lerp_([old for old, _ in moving], [new for _, new in moving], rate)
    for part, new in zip(average.modules(), module.modules(), strict=True):
        if isinstance(part, PatchConv):
            for copied, buffer in zip(part.buffers(), new.buffers(), strict=True):
                copied.copy_(buffer)
