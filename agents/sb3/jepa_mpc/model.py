"""The world model of ``JEPAMPC``: JEPA latents with reward, termination, value and a policy prior."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_rl.agents.sb3.jepa_mpc.networks import (
    ModelConfig,
    ObservationDecoder,
    ObservationEncoder,
    random_shift,
)
from jepa_rl.dynamics import MLPDynamics, SimplexDynamics
from jepa_rl.heads import CategoricalPolicy, GaussianPolicy, Perceptron, TwoHot
from jepa_rl.objectives import terms
from jepa_rl.world_model import WorldModel


class ControlModel(nn.Module):
    """Encoder, dynamics (a ``Dynamics`` for the planners) and heads.

    Args:
        space: of one observation, by name.
        action_dim: width of a model action.
        groups: number of options of each choice in it; empty for continuous actions.
        config: sizes and weights.
        discount: of one step.
        frames: stacked in every picture.
    """

    def __init__(
        self,
        space: dict[str, spaces.Box],
        action_dim: int,
        groups: tuple[int, ...],
        config: ModelConfig,
        discount: float,
        frames: int = 1,
    ) -> None:
        super().__init__()
        d, a, w = config.latent_dim, action_dim, config.width
        self.config, self.discount = config, discount
        self.latent_dim, self.action_dim = d, a
        self.encoder = ObservationEncoder(space, config, frames)
        self.dynamics = (
            SimplexDynamics(d, a, w, config.depth)
            if config.latent == "simplex"
            else MLPDynamics(d, a, w, config.depth)
        )
        self.two_hot = TwoHot(config.bins)
        self.reward_head = Perceptron(d + a, w, config.bins, config.depth, last_scale=0.0)
        self.end_head = Perceptron(d, w, 1, config.depth, last_scale=0.0) if config.termination else None
        self.value_heads = Perceptron(d + a, w, config.bins, config.depth, config.values, last_scale=0.0)
        self.target_heads = copy.deepcopy(self.value_heads).requires_grad_(False)
        self.policy: GaussianPolicy | CategoricalPolicy = (
            CategoricalPolicy(d, groups, w, config.depth) if groups else GaussianPolicy(d, a, w, config.depth)
        )
        self.decoder = ObservationDecoder(space, config) if config.objective == "reconstruction" else None
        if config.frozen:
            self.encoder.requires_grad_(False)
            self.dynamics.requires_grad_(False)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))  # of the values, for the policy's loss

    def warm_start(self, path: str | Path) -> None:
        """Takes encoder and dynamics from a world model that ``fit`` trained without reward, on any data.

        Raises:
            FileNotFoundError, ValueError: as ``WorldModel.load``.
            ValueError: if its parts are not those of this model; nothing has changed then.
        """
        world, names = WorldModel.load(path), list(self.encoder.pictures)
        there: list[tuple[nn.Module, nn.Module | None]] = [
            (world.dynamics, self.dynamics),
            (world.encoder, next(iter(self.encoder.pictures.values()), None)),
        ]
        unlike = [
            f"{type(old).__name__} instead of {type(new).__name__}"
            for old, new in there
            if type(old) is not type(new)
        ]
        unlike += [text for old, new in there for text in _unlike(old, new)]
        if unlike or len(names) != 1 or self.encoder.perceptron is not None:
            raise ValueError(
                f"{path} does not fit: {'; '.join(unlike[:4]) or 'the observation must be one picture'}. Both models "
                "need the same pixels, latent_dim, encoder and its widths, dynamics width and depth, blocks of one "
                "step, and latents that are not a simplex: policy_kwargs=dict(model=ModelConfig(...))"
            )
        for old, new in there:
            assert new is not None
            new.load_state_dict(old.state_dict())

    def encode(self, observations: dict[str, Tensor]) -> Float[Tensor, "b d"]:
        if self.config.frozen:  # its batch norm, too
            self.encoder.eval()
        return self.encoder(observations)

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n h+1 d"]:
        """The ``Dynamics`` contract."""
        return self.dynamics.rollout(z, actions, futures=futures, generator=generator)

    def reward(self, z: Float[Tensor, "b d"], action: Float[Tensor, "b a"]) -> Float[Tensor, " b"]:
        return self.two_hot.decode(self.reward_head(torch.cat([z, action], dim=-1)))

    def alive(self, z: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Probability that the episode did not end on the way into ``z``."""
        if self.end_head is None:
            return torch.ones_like(z[..., 0])
        return torch.sigmoid(-self.end_head(z)[..., 0])

    def value(self, z: Float[Tensor, "b d"], action: Float[Tensor, "b a"]) -> Float[Tensor, "e b"]:
        return self.two_hot.decode(self.value_heads(torch.cat([z, action], dim=-1)))

    # -- learning -----------------------------------------------------------------------------------

    def loss(self, batch: ControlBatch, generator: torch.Generator | None = None) -> Losses:
        """World model and values on windows; the latents come back for the policy's loss."""
        c, h = self.config, batch.actions.shape[1]
        seen = batch.observations
        if self.decoder is not None:  # what is painted moves with what is seen
            seen = self._shifted(seen, generator)
        now = {name: x[:, 0] for name, x in seen.items()}
        later = self.encoder.runs({name: x[:, 1:] for name, x in seen.items()})
        if self.decoder is None:
            now, later = self._shifted(now, generator), self._shifted(later, generator)
        z = self.encode(now)
        # Acting meets all states alike, and so do first states of windows. Later ones lie more often at episodes' ends:
        # where episodes are short, their statistics would shrink the latents that are acted upon.
        with torch.no_grad(), statistics_kept(self.encoder):
            targets = self.encoder.windows(later, h)
            # Behind an episode's end frames are repeated, so stacks there show a standstill that never was.
            last = targets[torch.arange(len(z), device=z.device), batch.valid.sum(1) - 1]
            if batch.future is not None:
                last = self.encode(self._shifted(batch.future, generator))
            returns = self._targets(last, batch, generator)
        path = self.rollout(z, batch.actions)[:, 0]
        decay = c.decay ** torch.arange(h, device=z.device)
        weight = decay * batch.valid / decay.sum() / len(z)  # b h

        def mean(values: Float[Tensor, "b h"]) -> Tensor:
            return (values * weight).sum()

        pairs = torch.cat([path[:, :-1], batch.actions], dim=-1).flatten(0, 1)
        rewards = self.reward_head(pairs).unflatten(0, (-1, h))
        values = self.value_heads(pairs).unflatten(1, (-1, h))
        found = {
            "reward": mean(self.two_hot.loss(rewards, self.two_hot.encode(batch.rewards))),
            "value": mean(self.two_hot.loss(values, self.two_hot.encode(returns)).mean(0)),
        }
        if self.end_head is not None:
            ends = self.end_head(path[:, 1:].flatten(0, 1)).view(-1, h)
            found["end"] = mean(
                F.binary_cross_entropy_with_logits(ends, batch.terminated.float(), reduction="none")
            )
        if self.decoder is not None:
            share = c.decay ** torch.arange(h + 1, device=z.device)
            there = F.pad(batch.valid, (1, 0), value=True)  # the first state is always there
            painted = share * there / share.sum() / len(z)
            found["reconstruction"] = self.decoder.loss(path.flatten(0, 1), seen, painted.flatten())
        elif not c.frozen:
            found["consistency"] = mean((path[:, 1:] - targets).square().mean(-1))
            if c.latent == "sigreg":
                found["anti_collapse"] = terms.sigreg(z.unsqueeze(0), generator)
            elif c.latent == "vicreg":
                variance, covariance = terms.variance(z.unsqueeze(1)), terms.covariance(z.unsqueeze(1))
                found["anti_collapse"] = variance + terms.VICREG_COVARIANCE * covariance
        total = torch.stack([getattr(c, name) * value for name, value in found.items()]).sum()
        return Losses(total, found, path.detach(), weight)

    @torch.no_grad()
    def _targets(
        self, future: Float[Tensor, "b d"], batch: ControlBatch, generator: torch.Generator | None
    ) -> Float[Tensor, "b h"]:
        """Rewards up to ``future``, then ``min(Q1, Q2)(z, policy(z))`` of two heads of the moving average.

        Rewards that were paid travel faster than values that are learned from values: with one-step targets the
        values were a third of the returns for thousands of updates.
        """
        action, _ = self.policy.sample(future, generator)
        logits = self.target_heads(torch.cat([future, action], dim=-1))
        pair = torch.randperm(self.config.values, generator=generator, device=future.device)[:2]
        least = self.two_hot.decode(logits[pair]).amin(0)
        if self.end_head is not None:  # without it the agent does not know of ends
            least = least * ~batch.ended
        return batch.returns + batch.discounts * least.unsqueeze(1)

    def policy_loss(self, losses: Losses, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The policy climbs the mean of the value heads, in units of their spread, and keeps some entropy."""
        z, h = losses.path, losses.weight.shape[1]
        rows = z[:, :-1].flatten(0, 1)
        action, neg_entropy = self.policy.sample(rows, generator)
        # The heads are not to move: detached weights, live inputs.
        value = self.two_hot.decode(frozen(self.value_heads, torch.cat([rows, action], dim=-1))).mean(0)
        with torch.no_grad():
            low, high = torch.quantile(value[::h], torch.tensor([0.05, 0.95], device=z.device))
            self.scale.lerp_((high - low).clamp_min(1.0), 0.01)
        gain = value / self.scale - self.config.entropy * neg_entropy
        loss = -(gain.view(-1, h) * losses.weight).sum()
        return {"policy": loss, "entropy": -neg_entropy.mean().detach(), "value_mean": value.mean().detach()}

    def after_update(self) -> None:
        """Moves the target heads towards the value heads."""
        move_towards(self.target_heads, self.value_heads, self.config.target_rate)

    def _shifted(
        self, observations: dict[str, Tensor], generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        """Pictures "b c y x", or all pictures "b t c y x" of a window alike, moved at random."""
        if not self.config.shift:
            return observations
        return {
            name: random_shift(x.flatten(1, -3), self.config.shift, generator).view(x.shape)
            if x.ndim >= 4
            else x
            for name, x in observations.items()
        }


def _unlike(old: nn.Module, new: nn.Module | None) -> list[str]:
    """Weights whose shapes differ, in words."""
    there = {name: tuple(value.shape) for name, value in old.state_dict().items()}
    here = {} if new is None else {name: tuple(value.shape) for name, value in new.state_dict().items()}
    names = sorted(there.keys() | here)
    return [f"{n} {there.get(n)} instead of {here.get(n)}" for n in names if there.get(n) != here.get(n)]


class ControlBatch(NamedTuple):
    """``replay.Windows`` as tensors."""

    observations: dict[str, Tensor]
    actions: Float[Tensor, "b h a"]
    rewards: Float[Tensor, "b h"]
    terminated: Bool[Tensor, "b h"]
    valid: Bool[Tensor, "b h"]
    returns: Float[Tensor, "b h"]
    discounts: Float[Tensor, "b h"]
    ended: Bool[Tensor, " b"]
    future: dict[str, Tensor] | None


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


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms inside normalise as they would, and remember nothing of it."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def move_towards(average: nn.Module, module: nn.Module, rate: float) -> None:
    """All floats of ``average``, statistics of batch norms included, go ``rate`` of the way to those of ``module``."""
    pairs = zip(average.state_dict().values(), module.state_dict().values(), strict=True)
    moving = [(old, new) for old, new in pairs if old.is_floating_point()]
    torch._foreach_lerp_([old for old, _ in moving], [new for _, new in moving], rate)


class ReturnCost:
    """Minus the return of a plan: rewards, survival and the value at its end. A ``Cost`` for the planners.

    Args:
        model: whose heads say so.
        terminal: whether the value of the last state counts.
    """

    def __init__(self, model: ControlModel, terminal: bool = True) -> None:
        self.model, self.terminal = model, terminal

    def __call__(
        self, latents: Float[Tensor, "b n t d"], actions: Float[Tensor, "b h a"]
    ) -> Float[Tensor, "b n"]:
        model, h = self.model, actions.shape[1]
        taken = actions.unsqueeze(1).expand(-1, latents.shape[1], -1, -1)
        rewards = model.reward(latents[:, :, :-1].flatten(0, 2), taken.flatten(0, 2)).view(taken.shape[:3])
        alive = model.alive(latents[:, :, 1:].flatten(0, 2)).view(taken.shape[:3]).cumprod(-1)
        discount = model.discount ** torch.arange(h, device=latents.device)
        before = torch.cat([torch.ones_like(alive[..., :1]), alive[..., :-1]], dim=-1)
        total = (rewards * before * discount).sum(-1)
        if self.terminal:
            last = latents[:, :, -1].flatten(0, 1)
            value = model.value(last, model.policy.mode(last)).mean(0).view(total.shape)
            total = total + model.discount**h * alive[..., -1] * value
        return -total
