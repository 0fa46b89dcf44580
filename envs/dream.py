"""A world model with reward as an environment: agents train in imagined states, many at a time.

Episodes start in states that were seen and are cut off after a few steps, before errors of the model add up
(model-based policy optimisation, Janner et al. 2019, arXiv:1906.08253; Dreamer, Hafner et al. 2020, arXiv:1912.01603).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor, nn

from jepa_rl.checks import check_each
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.modes import evaluating
from jepa_rl.world_model import WorldModel

# latents "b d" -> pictures "b c y x" in [0, 1], such as ``jepa_rl.heads.PictureDecoder``.
Decoder = Callable[[Tensor], Tensor]


class RewardingWorld(Protocol):
    """A world model with reward and termination, such as ``jepa_rl.control.ControlModel``."""

    world: WorldModel

    def reward(self, z: Float[Tensor, "b d"], action: Float[Tensor, "b a"]) -> Float[Tensor, " b"]: ...

    def alive(self, z: Float[Tensor, "b d"]) -> Float[Tensor, " b"]: ...


class DreamStep(NamedTuple):
    """What one step of all dreams gave.

    Attributes:
        latents: the states reached, before new episodes start.
        rewards: of the step, minus the penalty.
        terminated: where the model says that the episode ended.
        truncated: where the horizon was reached.
    """

    latents: Float32[np.ndarray, "b d"]
    rewards: Float32[np.ndarray, " b"]
    terminated: Bool[np.ndarray, " b"]
    truncated: Bool[np.ndarray, " b"]

    @property
    def ended(self) -> Bool[np.ndarray, " b"]:
        """Where the episode is over, for either reason."""
        return self.terminated | self.truncated


class Dream:
    """Imagined episodes side by side; the environments of ``dream_envs`` are thin shells around it.

    Args:
        model: a ``ControlModel`` (of an agent: ``agent.policy.average``), or whatever has its ``world``, ``reward`` and
            ``alive``. It is not changed here; where an agent goes on learning it, draw its starts anew.
        starts: latents "m d" of states in which episodes may start, or encoded episodes (without their last states).
        num_envs: dreams that are stepped as one batch.
        horizon: steps of an episode, unless the model ends it before.
        futures: next states that the dynamics draw for each dream (ensemble, mixture, flow), which goes on from one of
            them. More than one serve the penalty.
        penalty: taken off the reward for each unit of standard deviation of these futures, averaged over latent
            dimensions (MOPO, Yu et al. 2020, arXiv:2005.13239).
        seed: of starts, futures and ends.
        residuals: adds, this many times, to every next state the error that the dynamics made in one step of the
            episodes ``starts``, drawn anew each time. Without it dreams of dynamics that draw one future have no noise,
            and an agent relies on states that the encoder never shows so exactly.

    Raises:
        TypeError: if the model has no reward or termination, or is no world model, or for residuals without episodes.
        ValueError: for numbers out of range, starts of another width or not finite, a penalty without futures that
            differ, or dynamics with a memory.
    """

    def __init__(
        self,
        model: RewardingWorld,
        starts: Float[Tensor, "m d"] | LatentEpisodes,
        num_envs: int = 1,
        horizon: int = 15,
        futures: int = 1,
        penalty: float = 0.0,
        seed: int | None = None,
        *,
        residuals: float = 0.0,
    ) -> None:
        missing = [name for name in ("world", "reward", "alive") if not hasattr(model, name)]
        if missing:
            raise TypeError(
                f"a dream needs a world model with reward and termination, but {type(model).__name__} has no "
                f"{', '.join(missing)}; take a jepa_rl.control.ControlModel, such as agent.policy.average of a JEPAMPC"
            )
        check_each(lambda n: n >= 1, "be at least 1", num_envs=num_envs, horizon=horizon, futures=futures)
        check_each(
            lambda n: 0 <= n < float("inf"), "be finite and at least 0", penalty=penalty, residuals=residuals
        )
        world = model.world
        if world.spec.block != 1:
            raise ValueError(
                f"an agent acts in every environment step, the world model predicts blocks of {world.spec.block}; "
                "train it with block=1"
            )
        if not world.markov:
            raise ValueError(
                f"a dream goes on from imagined states, but {type(world.dynamics).__name__} remembers more than the "
                "newest one; choose dynamics without a memory"
            )
        if residuals and not isinstance(starts, LatentEpisodes):
            raise TypeError(
                "residuals are errors of the model in episodes, but starts are latents alone; pass "
                "LatentEpisodes.encode(model.world, store), or agent.seen_steps() of a JEPAMPC"
            )
        states = _states(starts, world)
        self.model, self.spec = model, world.spec.action
        # The model need not be a module, and the world is usually a part of it: a list goes through each once.
        self._modules = nn.ModuleList(part for part in (model, world) if isinstance(part, nn.Module))
        device = next(world.parameters()).device
        self.starts = states.detach().to(device, torch.float32, copy=True)
        self.num_envs, self.horizon, self.futures, self.penalty = num_envs, horizon, futures, penalty
        self.generator = torch.Generator(device)
        self.seed(seed)
        self._latents, self._steps = self.starts[:1].repeat(num_envs, 1), np.zeros(num_envs, np.int64)
        self._begun = False
        self._residuals: Tensor | None = None
        if residuals and isinstance(starts, LatentEpisodes):
            self._residuals = residuals * self._errors(starts)
        if penalty:
            self._check_penalty()

    @torch.no_grad()
    def _check_penalty(self) -> None:
        dynamics, generator = self.model.world.dynamics, torch.Generator(self.starts.device).manual_seed(0)
        z = self.starts[:64]
        action = torch.zeros(len(z), self.spec.size, device=z.device)
        with evaluating(self._modules):
            drawn = dynamics.draw(z, action, self.futures, generator)
        if drawn.shape[1] < 2 or not drawn.std(1).any():
            raise ValueError(
                f"a penalty needs futures that differ, but {self.futures} of {type(dynamics).__name__} do not; take "
                "futures of 2 or more and dynamics that draw them (ensemble, mixture, flow)"
            )

    @torch.no_grad()
    def _errors(self, episodes: LatentEpisodes) -> Float[Tensor, "steps d"]:
        """What the dynamics miss in each step of the episodes."""
        device = self.starts.device
        latents, actions = episodes.latents.to(device), episodes.actions.to(device)
        at = (torch.arange(len(actions)) + episodes.episode_of_step).to(device)
        generator = torch.Generator(device).manual_seed(0)
        with evaluating(self._modules):
            drawn = [
                self.model.world.dynamics.draw(latents[rows], taken, 1, generator)[:, 0]
                for rows, taken in zip(at.split(4096), actions.split(4096), strict=True)
            ]
        return latents[at + 1] - torch.cat(drawn)

    def seed(self, seed: int | None) -> None:
        """Seeds starts, futures and ends; with None, from the operating system."""
        self.generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))

    @property
    def latents(self) -> Float32[np.ndarray, "b d"]:
        """A copy of the present states."""
        return self._latents.cpu().numpy().copy()

    def start(self, rows: Bool[np.ndarray, " b"]) -> None:
        """Starts new episodes in these rows."""
        self._begun = True
        at = torch.from_numpy(np.flatnonzero(rows)).to(self.starts.device)
        drawn = torch.randint(
            len(self.starts), (len(at),), generator=self.generator, device=self.starts.device
        )
        self._latents = self._latents.index_copy(0, at, self.starts[drawn])
        self._steps[rows] = 0

    @torch.no_grad()
    def step(self, actions: np.ndarray) -> DreamStep:
        """One step of every dream; those that end stay where they are until ``start``.

        Args:
            actions: of the environment, one for each dream; continuous ones are clipped to their bounds.

        Raises:
            gymnasium.error.ResetNeeded: before the first ``start``.
            ValueError: for actions of another shape, NaN or choices that there are not, or if the model's reward or
                next state is not finite.
        """
        if not self._begun:
            raise ResetNeeded("call reset() before using the environment")
        shape = (self.num_envs, *self.spec.shape)
        if np.shape(actions) != shape:
            raise ValueError(f"actions must have shape {shape}, got {np.shape(actions)}")
        encoded = self.spec.encode(np.asarray(actions))  # refuses NaN and choices that there are not
        z, device = self._latents, self.starts.device
        taken = torch.from_numpy(encoded.clip(-1.0, 1.0)).to(device)
        with evaluating(self._modules):
            drawn = self.model.world.dynamics.draw(z, taken, self.futures, self.generator)
            rewards = self.model.reward(z, taken)
            if self.penalty:
                rewards = rewards - self.penalty * drawn.std(1).mean(-1)
            chosen = torch.randint(drawn.shape[1], (self.num_envs,), generator=self.generator, device=device)
            self._latents = drawn[torch.arange(self.num_envs, device=device), chosen]
            if self._residuals is not None:
                missed = torch.randint(
                    len(self._residuals), (self.num_envs,), generator=self.generator, device=device
                )
                self._latents = self._latents + self._residuals[missed]
            alive = self.model.alive(self._latents)
        for name, value in (("reward", rewards), ("next state", self._latents)):
            if not torch.isfinite(value).all():
                raise ValueError(f"the model's {name} is NaN or infinite; train it anew, at a lower rate")
        ended = torch.rand(self.num_envs, generator=self.generator, device=device) >= alive
        self._steps += 1
        terminated = ended.cpu().numpy()
        truncated = (self._steps >= self.horizon) & ~terminated
        return DreamStep(self.latents, rewards.float().cpu().numpy(), terminated, truncated)

    def step_and_restart(self, actions: np.ndarray) -> tuple[DreamStep, Float32[np.ndarray, "b d"]]:
        """``step``, then new episodes where one ended; the step, and the states to act in."""
        found = self.step(actions)
        if not found.ended.any():
            return found, found.latents
        self.start(found.ended)
        return found, self.latents

    @torch.no_grad()
    def pictures(self, decoder: Decoder | None) -> UInt8[np.ndarray, "b y x c"]:
        """The present states as pictures; of a decoder of all stacked frames the newest.

        Raises:
            ValueError: if there is no decoder.
        """
        if decoder is None:
            raise ValueError(
                "latents cannot be drawn without a decoder; pass decoder=, a module from latents to pictures in [0, 1] "
                "such as jepa_rl.heads.PictureDecoder"
            )
        with evaluating(decoder):
            drawn = decoder(self._latents)
        spec = self.model.world.spec
        channels = spec.pixels[0] // spec.frames if spec.pixels else drawn.shape[1]  # of one frame
        newest = drawn[:, -channels:]
        if channels != 3:
            newest = newest[:, -1:].repeat(1, 3, 1, 1)
        return (255 * newest.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _states(starts: Float[Tensor, "m d"] | LatentEpisodes, world: WorldModel) -> Float[Tensor, "m d"]:
    """The states in which dreams may start, checked."""
    if isinstance(starts, LatentEpisodes):  # an episode's last state may be one in which it is over
        last = starts.lengths.cumsum(0) + torch.arange(len(starts.lengths))
        kept = torch.ones(len(starts.latents), dtype=torch.bool)
        kept[last] = False
        starts = starts.latents[kept.to(starts.latents.device)]
    if starts.ndim != 2 or starts.shape[1] != world.latent_dim or not len(starts):
        raise ValueError(
            f"starts must be latents of shape (m, {world.latent_dim}) of this world model, got "
            f"{tuple(starts.shape)}; encode states with model.world.encode, or a store with "
            "LatentEpisodes.encode(model.world, store)"
        )
    if not torch.isfinite(starts).all():
        raise ValueError("starts hold NaN or infinite latents")
    return starts
