"""Rectified flow over paths of latents: several futures, each drawn in a few evaluations of a small transformer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepa_rl.distributed import own_draw
from jepa_rl.dynamics.base import Standardised, in_chunks, shared_noise
from jepa_rl.dynamics.flow.losses import Projector, flow_matching, matching_terms, sampler_energy
from jepa_rl.dynamics.flow.network import Denoiser, Modulation, Past
from jepa_rl.dynamics.flow.schedule import (
    FEW_EVALUATIONS,
    check_levels,
    euler,
    jump,
    levels_of,
    schedule,
    steps_of,
)
from jepa_rl.dynamics.flow.settings import FlowNetwork, FlowSampling, FlowSettings, FlowTraining, Solver
from jepa_rl.noise import normal
from jepa_rl.registry import register_dynamics


@register_dynamics("flow")
class FlowDynamics(Standardised):
    """Draws futures of latents from a conditional rectified flow over paths.

    A path of states ``z_1 .. z_h`` is denoised from ``x = (1 - l) z + l * noise`` (Liu et al. 2023, arXiv:2209.03003)
    by a causal transformer of DiT blocks (Peebles and Xie 2023) whose AdaLN reads the action, the noise level ``l`` of
    the token and of the one before. Every state has a level of its own (Diffusion Forcing, Chen et al. 2024,
    arXiv:2407.01392), so that states are sampled one after the other with cached keys and values, all at once, or in
    between (``schedule``). The network predicts the clean latent, as a change of the state before: latents lie near
    few dimensions of their space, and velocities do not (Li and He 2025, arXiv:2511.13720).

    Few evaluations: beside the flow the network learns jumps over a whole part of it, as shortcut models do (Frans et
    al. 2025), but by the futures that they lead to: the sampler's futures are scored against the one that happened by
    the energy score (Gneiting and Raftery 2007), which is least for the true distribution alone; with ``unroll`` it
    runs over its own states there (Self Forcing, Huang et al. 2025, arXiv:2506.08009). 1, 2 and 4 evaluations of a
    state behind a clean one are trained; any other number, and states behind noisy ones, integrate the flow itself.

    The past before ``z`` is not asked for: latents of stacked frames know it. ``context`` is what a path remembers of
    itself.

    In evaluation mode ``rollout`` uses the moving average of the weights, in training mode the weights themselves.

    Args:
        latent_dim, action_dim: widths of latent and action.
        network, training, sampling: settings, in groups; or fields of a group by name.
        options: the same settings by name, flat, as ``WorldModelConfig.dynamics_options`` and files have them:
            ``FlowDynamics(d, a, width=64, energy=4.0)``. See ``jepa_rl.dynamics.flow.settings.OPTIONS``.

    Raises:
        TypeError: for an unknown option.
        ValueError: for settings that make no sense.
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        network: FlowNetwork | Mapping[str, Any] | None = None,
        training: FlowTraining | Mapping[str, Any] | None = None,
        sampling: FlowSampling | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(latent_dim, action_dim)
        self.settings = FlowSettings.of(network, training, sampling, options)
        # One input more says whether there is an action.
        condition_dim = action_dim + (self.settings.training.drop > 0)
        self.network = Denoiser(latent_dim, condition_dim, self.settings.network)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        if self.settings.training.repa:
            self.projector = Projector(self.settings.network.width, latent_dim)

    @property
    def context(self) -> int:
        """States that a token attends to."""
        return self.settings.network.context

    @property
    def unroll(self) -> int:
        """States that futures run over on their own in the energy score."""
        return max(self.settings.training.unroll, self.context)

    @property
    def markov(self) -> bool:  # type: ignore[override]
        """Whether the newest state says all: no memory of the path, and states drawn one after the other."""
        return self.context == 1 and self.settings.sampling.lag == 1

    def set_sampling(self, **options: Any) -> None:
        """Changes fields of ``FlowSampling``, which no weight depends on: ``flow.set_sampling(evaluations=1)``."""
        self.settings = replace(self.settings, sampling=replace(self.settings.sampling, **options))

    # -- sampling -----------------------------------------------------------------------------------

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
        evaluations: int | None = None,
    ) -> Float[Tensor, "b n h+1 d"]:
        """``futures`` paths of each row; all rows share their noise.

        Rows are rolled out in chunks, so that memory stays bounded for any number of candidates.

        Args:
            z, actions, futures, generator: see ``jepa_rl.types.Dynamics``.
            evaluations: of the network for each state, in place of the sampler's own number.

        Raises:
            ValueError: for fewer than one future or evaluation, widths that are not the model's, or NaN in ``z``.
        """
        sampling = self.settings.sampling
        count = sampling.evaluations if evaluations is None else evaluations
        if count < 1:
            raise ValueError(f"evaluations must be at least 1, got {count}")
        self.check(z, actions, futures)
        h = actions.shape[1]
        noise = shared_noise(futures, h, z, generator)[None]

        def part(rows: Tensor, taken: Tensor) -> Tensor:
            first, steering = self.standardise(rows), self.steering(taken)
            if sampling.lag < 1:
                levels = schedule(h, count, sampling.lag, self.settings.training.shift, z.device).to(z)
                path = self._denoise(first, steering, noise.expand(len(rows), -1, -1, -1), levels)
            else:
                path = self.draw_states(first, steering, noise, count, sampling.solver)
            return self.destandardise(path, rows)

        # One after the other, the modulations of all evaluations are known before the first; else one evaluation
        # reads whole paths.
        width, layers = self.network.width, self.network.depth
        held = h * width * (count * (1 + 6 * layers) if sampling.lag == 1 else (1 + 6 + 4 * futures) * layers)
        return in_chunks(part, z, actions, futures * width, held + futures * (h + 1) * self.latent_dim)

    def draw(
        self,
        z: Float[Tensor, "b d"],
        action: Float[Tensor, "b a"],
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n d"]:
        """See ``TrainableDynamics.draw``."""
        actions = action.unsqueeze(1)
        self.check(z, actions, futures)
        noise = normal((len(z), futures, 1, self.latent_dim), z, generator)
        first, steering, how = self.standardise(z), self.steering(actions), self.settings.sampling
        drawn = self.draw_states(first, steering, noise, how.evaluations, how.solver)
        return self.destandardise(drawn, z)[:, :, 1]

    def steering(
        self,
        actions: Float[Tensor, "b h a"],
        generator: torch.Generator | None = None,
        own: Callable[[Callable[[int], Tensor], int], Tensor] = own_draw,
    ) -> Float[Tensor, "b 1 h s"]:
        """The actions as the network reads them; in training some are left out (``drop``).

        Args:
            actions: between the states.
            generator: of what is left out.
            own: gives this process's rows of what is drawn, see ``jepa_rl.distributed.own_draw``.
        """
        steering = self.standardise_actions(actions)[:, None]
        drop = self.settings.training.drop
        if not drop:
            return steering
        there = torch.ones_like(steering[..., :1])
        if self.training:
            draw: dict[str, Any] = dict(generator=generator, device=actions.device)
            there = there * (own(lambda n: torch.rand(n, 1, 1, 1, **draw), len(actions)) >= drop)
        return torch.cat([steering * there, there], dim=-1)

    def _with_and_without(self, steering: Tensor) -> Tensor:
        """The actions, and below them none where guidance compares the two."""
        return torch.cat([steering, torch.zeros_like(steering)]) if self._guided() else steering

    def _guided(self) -> bool:
        return self.settings.sampling.guidance != 1 and not self.training

    def predict_clean(
        self,
        net: Denoiser,
        x: Tensor,
        before: Tensor,
        previous_level: Tensor | float,
        modulation: Modulation,
        past: Past | None = None,
    ) -> tuple[Float[Tensor, "b n t d"], Past]:
        """The clean latents that the network predicts.

        Args:
            net: the network, or its average.
            x: noisy states "#b n t d".
            before: the state before each of them, "b #n t d".
            previous_level: noise level of ``before``.
            modulation: see ``Denoiser.modulations``.
            past: keys and values of earlier tokens.

        Returns:
            The latents, and keys and values for the tokens that follow.
        """
        guided = self._guided()
        if guided:
            x, before = (torch.cat([part, part]) if len(part) > 1 else part for part in (x, before))
        change, kept = net(x, before, modulation, past)
        clean = (1.0 - previous_level) * before + self.change * change
        if guided:
            known, unknown = clean.chunk(2)
            clean = torch.lerp(unknown, known, self.settings.sampling.guidance)
        return clean, kept

    def draw_states(
        self,
        z: Float[Tensor, "b d"],
        steering: Float[Tensor, "b 1 h s"],
        noise: Float[Tensor, "#b n h d"],
        count: int,
        solver: Solver = "euler",
    ) -> Float[Tensor, "b n h d"]:
        """States 1 to h, standardised, one after the other, in ``count`` evaluations each.

        Args:
            z: state now, standardised.
            steering: see the method of this name.
            noise: that the states are drawn from.
            count: evaluations.
            solver: see ``FlowSampling``.
        """
        net = self.network if self.training else self.average
        integrate, levels = steps_of(solver, count, self.settings.training.shift)
        jumps = self.settings.training.energy > 0 and count in FEW_EVALUATIONS and integrate is euler
        steering = self._with_and_without(steering)
        modulations = [
            net.modulations(steering, level, 0.0, level - to if jumps else 0.0)
            for level, to in pairwise(levels)
        ]
        remembered = net.modulations(steering, 0.0, 0.0, 0.0) if self.context > 1 else None
        # What rows or futures share is not repeated: it broadcasts where it is combined with the rest.
        before, past, path = z[:, None, None], None, []

        def denoise(x: Tensor, number: int) -> Tensor:  # of state i, seen from the level of this number
            return self.predict_clean(net, x, before, 0.0, modulations[number].at(i), past)[0]

        for i in range(noise.shape[2]):
            x = integrate(denoise, noise[:, :, i : i + 1], levels)
            if remembered is not None and i + 1 < noise.shape[2]:
                past = self.predict_clean(net, x, before, 0.0, remembered.at(i), past)[1]
            before = x
            path.append(x)
        return torch.cat(path, dim=2)

    def denoise(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        path: Float[Tensor, "b n h d"],
        levels: Float[Tensor, "levels h"],
    ) -> Float[Tensor, "b n h d"]:
        """States 1 to h brought from ``levels[0]`` to ``levels[-1]``, all of them in each of ``m`` evaluations.

        States whose level does not change come back as they are. No cache: the whole path is read in every evaluation.

        Args:
            z: state now.
            actions: between the states.
            path: states at ``levels[0]``: noise where that is 1, given (clean) latents where it is 0.
            levels: noise levels before and after each evaluation; ``schedule`` makes some.

        Raises:
            ValueError: for levels that rise, lie outside [0, 1] or are not of the path's length.
        """
        self.check(z, actions, path.shape[1])
        check_levels(levels, actions.shape[1], path.shape[2])
        given = levels[0] == 0
        x = torch.where(given[:, None], self.standardise(path), path)
        x = self._denoise(self.standardise(z), self.steering(actions), x, levels.to(x))
        return torch.where(given[:, None], path, x * self.std + self.mean)

    def _denoise(
        self, z: Tensor, steering: Tensor, x: Float[Tensor, "b n h d"], levels: Float[Tensor, "levels h"]
    ) -> Float[Tensor, "b n h d"]:
        """``denoise`` of standardised states."""
        net = self.network if self.training else self.average
        first = z[:, None, None].expand(-1, x.shape[1], 1, -1)
        steering = self._with_and_without(steering)
        shift = self.settings.training.shift
        trained = [step for k in FEW_EVALUATIONS for step in pairwise(levels_of(k, shift))]
        for now, to in pairwise(levels):
            step = now - to
            before = torch.cat([first, x[:, :, :-1]], dim=2)
            previous_level = F.pad(now, (1, -1))[None, None, :, None]
            level, size = now[None, None, :, None], step[None, None, :, None]
            jumps = size if self.settings.training.energy > 0 else torch.zeros_like(size)
            # A jump that was never trained, from this level or behind a noisy state, is a part of the plain flow.
            few = torch.stack([((now - a).abs() + (to - b).abs() < 1e-5) for a, b in trained]).any(0)[:, None]
            few = few & (previous_level[0, 0] == 0)
            modulation = net.modulations(steering, level, previous_level, torch.where(few, jumps, 0.0))
            clean, _ = self.predict_clean(net, x, before, previous_level, modulation)
            x = torch.where(step[:, None] > 0, jump(x, clean, level.clamp_min(1e-6), to[:, None]), x)
        return x

    # -- training -----------------------------------------------------------------------------------

    def loss(
        self,
        latents: Float[Tensor, "b t d"],
        actions: Float[Tensor, "b h a"],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow matching at a level of its own for each state, and the energy score of the few-step sampler."""
        path, weights = self.standardise(latents), self.settings.training
        terms = matching_terms(self, path, actions, generator)
        total = terms["flow"] + weights.repa * terms["repa"] if weights.repa else terms["flow"]
        if weights.low_noise:
            terms["low_noise"] = flow_matching(self, path, actions, generator, low=True)
            total = total + weights.low_noise * terms["low_noise"]
        if weights.energy:
            terms["energy"] = self.jump_loss(path, actions, generator)
            total = total + weights.energy * terms["energy"]
        return total, terms

    def jump_loss(
        self,
        path: Float[Tensor, "b t d"],
        actions: Float[Tensor, "b h a"],
        generator: torch.Generator | None,
    ) -> Tensor:
        """What jumps over a part of the flow are trained by, on standardised states: see ``sampler_energy``."""
        return sampler_energy(self, path, actions, generator)

    @torch.no_grad()
    def after_update(self) -> None:
        """Moves the average towards the weights; call after every optimiser step."""
        for average, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
            average.lerp_(weight, self.settings.training.average_rate)
