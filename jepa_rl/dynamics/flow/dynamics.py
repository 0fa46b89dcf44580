"""Rectified flow over paths of latents: several futures, each drawn in a few evaluations of a small transformer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.dynamics.base import Standardised, energy_score, entrance, in_chunks, shared_noise
from jepa_rl.registry import register_dynamics

# Evaluations that the sampler is trained to make do with; other counts follow the plain flow.
FEW_EVALUATIONS = (1, 2, 4)
LOW_NOISE = (0.05, 0.4)  # levels of the loss's term of this name

# Keys and values "b n k w" of the tokens before, for each block; k < context.
Past = list[tuple[Tensor, Tensor]]


@register_dynamics("flow")
class FlowDynamics(Standardised):
    """Draws futures of latents from a conditional rectified flow over paths.

    A path of states ``z_1 .. z_h`` is denoised from ``x = (1 - l) z + l * noise`` (Liu et al. 2023, arXiv:2209.03003)
    by a causal transformer of DiT blocks (Peebles and Xie 2023) whose AdaLN reads the action, the noise level ``l`` of
    the token and of the one before. Every state has a level of its own (Diffusion Forcing, Chen et al. 2024,
    arXiv:2407.01392), so that states are sampled one after the other with cached keys and values, all at once, or in
    between (``Schedule``). The network names the clean latent, as a change of the state before: latents lie near
    few dimensions of their space, and velocities do not (Li and He 2025, arXiv:2511.13720).

    Few evaluations: beside the flow the network learns jumps over a whole part of it, as shortcut models do (Frans et
    al. 2025), but by what comes of them: the sampler's futures are scored against the one that happened by the energy
    score (Gneiting and Raftery 2007), which is least for the true distribution alone; with ``unroll`` it runs over its
    own states there (Self Forcing, Huang et al. 2025, arXiv:2506.08009). 1, 2 and 4 evaluations of a state behind a
    clean one are trained; any other number, and states behind noisy ones, integrate the flow itself.

    What came before ``z`` is not asked for: latents of stacked frames know it. ``context`` is what a path remembers of
    itself.

    Planning, ``rollout`` uses the moving average of the weights; in training mode the weights themselves.

    Args:
        latent_dim, action_dim: widths of latent and action.
        width: of a token.
        depth: blocks.
        heads: of attention.
        mlp_ratio: hidden units of a block's perceptron, in widths.
        context: states that a token attends to, itself included. 1 for worlds whose latent says all.
        evaluations: of the network for each state that ``rollout`` draws.
        shift: of the noise levels towards noise, for wide latents (RAE, Zheng et al. 2025, arXiv:2510.11690:
            ``sqrt(width / 4096)`` there); below 1 towards clean latents; 1 changes nothing.
        energy: weight of the energy score beside flow matching; 0 trains the flow alone.
        low_noise: weight of more flow matching at low noise levels (``LOW_NOISE``). Which of several futures it will be
            is settled there, so that its exact place is learned without the noise that the choice makes elsewhere.
        samples: futures drawn for each window in the energy score.
        unroll: states that these futures run over on their own; at least ``context``, so that jumps meet cached states.
        average_rate: how far the average moves towards the weights after an update.
        lag: of each state behind the one before while ``rollout`` draws, see ``schedule``: 1 draws one after the other
            with cached keys and values, 0 all at once, and what lies between is Diffusion Forcing's pyramid. Below 1 a
            state must meet the whole path before it, so ``context`` should reach over it; learn on windows of several
            steps.
        context_noise: level to which states that were drawn are noised before the next one is drawn from them (with
            ``lag`` 1): what is wrong with them then hides in noise that the network knows (Diffusion Forcing, 3.3).
        drop: share of windows that are learned without their actions, for ``guidance``.
        guidance: 1 asks for what the actions lead to; above, for what they lead to more than others do
            (classifier-free guidance, Ho and Salimans 2022): ``without + guidance * (with - without)``, at twice the
            cost. For conditions such as goals (``FlowProposals``); an honest model of the world has 1.

    Raises:
        ValueError: for sizes below 1, ``heads`` that do not divide ``width``, or other numbers that make no sense.
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        width: int = 96,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: int = 2,
        context: int = 1,
        evaluations: int = 4,
        shift: float = 1.0,
        energy: float = 1.0,
        low_noise: float = 0.0,
        samples: int = 2,
        unroll: int = 1,
        average_rate: float = 0.005,
        lag: float = 1.0,
        context_noise: float = 0.0,
        drop: float = 0.0,
        guidance: float = 1.0,
    ) -> None:
        super().__init__(latent_dim, action_dim)
        sizes = dict(width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio, context=context)
        sizes |= dict(evaluations=evaluations, unroll=unroll)
        if wrong := {name: size for name, size in sizes.items() if size < 1}:
            raise ValueError(f"sizes must be at least 1, got {wrong}")
        if width % heads:
            raise ValueError(f"heads must divide width, got {heads} and {width}")
        if not shift > 0 or samples < 2 or not 0 < average_rate <= 1:
            raise ValueError(
                "shift must be positive, samples at least 2 and average_rate in (0, 1], got "
                f"{shift}, {samples}, {average_rate}"
            )
        if not energy >= 0 or not low_noise >= 0:
            raise ValueError(f"energy and low_noise must be at least 0, got {energy}, {low_noise}")
        if not 0 <= lag <= 1 or not 0 <= context_noise < 1 or not 0 <= drop < 1:
            raise ValueError(
                "lag must lie in [0, 1], context_noise and drop must lie in [0, 1), got "
                f"{lag}, {context_noise}, {drop}"
            )
        if not abs(guidance) < float("inf") or (guidance != 1 and not drop):
            raise ValueError(
                f"guidance must be finite, and 1 where drop is 0, got guidance={guidance}, drop={drop}"
            )
        self.evaluations, self.context, self.shift = evaluations, context, shift
        self.lag, self.context_noise, self.drop, self.guidance = lag, context_noise, drop, guidance
        self.energy, self.low_noise, self.average_rate = energy, low_noise, average_rate
        self.samples, self.unroll = samples, max(unroll, context)
        steering = action_dim + (drop > 0)  # one number more says whether there is an action
        self.network = Denoiser(latent_dim, steering, width, depth, heads, mlp_ratio, context)
        self.average = copy.deepcopy(self.network).requires_grad_(False)

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
        """``futures`` paths of each row; all rows meet the same noise.

        Rows are rolled out in parts, so that memory stays bounded for any number of candidates.

        Args:
            evaluations: of the network for each state, in place of the sampler's own number.

        Raises:
            ValueError: for fewer than one future or evaluation, widths that are not the model's, or NaN in ``z``.
        """
        count = self.evaluations if evaluations is None else evaluations
        if count < 1:
            raise ValueError(f"evaluations must be at least 1, got {count}")
        self.check(z, actions, futures)
        h = actions.shape[1]
        noise = shared_noise(futures, h, z, generator)[None]
        unrest = shared_noise(futures, h, z, generator)[None] if self.context_noise and h > 1 else None
        earlier = self._levels_before(h, noise, 0.0)

        def part(rows: Tensor, taken: Tensor) -> Tensor:
            first, steering = self.standardise(rows), self._steering(taken)
            if self.lag < 1:
                levels = schedule(h, count, self.lag, self.shift, z.device).to(z)
                path = self._along(first, steering, noise.expand(len(rows), -1, -1, -1), levels)
            else:
                path = self._draw(first, steering, noise, count, earlier, unrest)
            return self.destandardise(path, rows)

        # One after the other, what the actions do is known for all evaluations before the first; else one evaluation
        # reads whole paths.
        width, layers = self.network.width, self.network.depth
        held = h * width * (count * (1 + 6 * layers) if self.lag == 1 else (1 + 6 + 4 * futures) * layers)
        return in_chunks(part, z, actions, futures * width, held + futures * (h + 1) * self.latent_dim)

    def _steering(
        self, actions: Float[Tensor, "b h a"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 1 h s"]:
        """What the network reads of the actions; in training some are missing."""
        steering = self.standardise_actions(actions)[:, None]
        if not self.drop:
            return steering
        there = torch.ones_like(steering[..., :1])
        if self.training:
            draw: dict[str, Any] = dict(generator=generator, device=actions.device)
            there = there * (torch.rand(len(actions), 1, 1, 1, **draw) >= self.drop)
        return torch.cat([steering * there, there], dim=-1)

    def _with_and_without(self, steering: Tensor) -> Tensor:
        """The actions, and below them none where guidance compares the two."""
        return torch.cat([steering, torch.zeros_like(steering)]) if self._guided() else steering

    def _guided(self) -> bool:
        return self.guidance != 1 and not self.training

    def _levels_before(self, horizon: int, like: Tensor, first: Tensor | float) -> Tensor | float:
        """Noise levels "b|1 1 h 1" of the states that each one is drawn from, ``first`` being that of ``z``."""
        if not self.context_noise:
            return 0.0
        first = torch.as_tensor(first).to(like).reshape(-1, 1, 1, 1)
        later = like.new_full((len(first), 1, horizon - 1, 1), self.context_noise)
        return torch.cat([first, later], dim=2)

    def _clean(
        self,
        net: Denoiser,
        x: Tensor,
        before: Tensor,
        earlier: Tensor | float,
        way: Way,
        past: Past | None = None,
    ) -> tuple[Float[Tensor, "b n t d"], Past]:
        """The clean latents that the network sees in ``x``, and what it keeps of its tokens."""
        guided = self._guided()
        if guided:
            x, before = (torch.cat([part, part]) if len(part) > 1 else part for part in (x, before))
        change, kept = net(x, before, way, past)
        clean = (1.0 - earlier) * before + self.change * change
        if guided:
            known, unknown = clean.chunk(2)
            clean = torch.lerp(unknown, known, self.guidance)
        return clean, kept

    def _levels(self, evaluations: int) -> list[float]:
        """Noise levels from 1 to 0 that ``evaluations`` jumps lead through."""
        return shifted(torch.linspace(1.0, 0.0, evaluations + 1), self.shift).tolist()

    def _jumps(self, evaluations: int) -> bool:
        return self.energy > 0 and evaluations in FEW_EVALUATIONS

    def _draw(
        self,
        z: Float[Tensor, "b d"],
        steering: Float[Tensor, "b 1 h s"],
        noise: Float[Tensor, "#b n h d"],
        count: int,
        earlier: Tensor | float = 0.0,
        unrest: Float[Tensor, "#b n h d"] | None = None,
    ) -> Float[Tensor, "b n h d"]:
        """States 1 to h, standardised, one after the other; ``unrest`` is what noises them for the next one."""
        net = self.network if self.training else self.average
        h = noise.shape[2]
        levels, jumps = self._levels(count), self._jumps(count)
        steering = self._with_and_without(steering)
        ways = [
            net.modulations(steering, level, earlier, level - to if jumps else 0.0)
            for level, to in pairwise(levels)
        ]
        clean = net.modulations(steering, 0.0, earlier, 0.0) if self.context > 1 else None
        # What rows or futures share is not repeated: it spreads out where it meets the rest.
        before, past, path = z[:, None, None], None, []
        for i in range(h):
            x = noise[:, :, i : i + 1]
            known = earlier[:, :, i : i + 1] if isinstance(earlier, Tensor) else earlier
            for (level, to), way in zip(pairwise(levels), ways, strict=True):
                x = jump(x, self._clean(net, x, before, known, way.at(i), past)[0], level, to)
            if clean is not None and i + 1 < h:
                past = self._clean(net, x, before, known, clean.at(i), past)[1]
            before = x if unrest is None else torch.lerp(x, unrest[:, :, i : i + 1], self.context_noise)
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

        ``schedule`` makes levels; states whose level does not change come back as they are. No cache: the whole path
        is read in every evaluation.

        Args:
            path: states at ``levels[0]``: noise where that is 1, given (clean) latents where it is 0.

        Raises:
            ValueError: for levels that rise, lie outside [0, 1] or are not of the path's length.
        """
        self.check(z, actions, path.shape[1])
        if levels.ndim != 2 or levels.shape[1] != path.shape[2] or path.shape[2] != actions.shape[1]:
            raise ValueError(
                f"levels must be (evaluations + 1, {actions.shape[1]}) for a path of as many states, got "
                f"{tuple(levels.shape)} and a path of {path.shape[2]}"
            )
        if levels.min() < 0 or levels.max() > 1 or (levels.diff(dim=0) > 0).any():
            raise ValueError("levels must lie in [0, 1] and never rise")
        given = levels[0] == 0
        x = torch.where(given[:, None], self.standardise(path), path)
        x = self._along(self.standardise(z), self._steering(actions), x, levels.to(x))
        return torch.where(given[:, None], path, x * self.std + self.mean)

    def _along(
        self, z: Tensor, steering: Tensor, x: Float[Tensor, "b n h d"], levels: Float[Tensor, "levels h"]
    ) -> Float[Tensor, "b n h d"]:
        """``denoise`` of standardised states."""
        net = self.network if self.training else self.average
        first = z[:, None, None].expand(-1, x.shape[1], 1, -1)
        steering = self._with_and_without(steering)
        trained = [jump for k in FEW_EVALUATIONS for jump in pairwise(self._levels(k))]
        for now, to in pairwise(levels):
            step = now - to
            before = torch.cat([first, x[:, :, :-1]], dim=2)
            earlier = F.pad(now, (1, -1))[None, None, :, None]
            level, size = now[None, None, :, None], step[None, None, :, None]
            jumps = size if self.energy > 0 else torch.zeros_like(size)
            # A jump that was never trained, from this level or behind a noisy state, is a part of the plain flow.
            few = torch.stack([((now - a).abs() + (to - b).abs() < 1e-5) for a, b in trained]).any(0)[:, None]
            few = few & (earlier[0, 0] == 0)
            way = net.modulations(steering, level, earlier, torch.where(few, jumps, 0.0))
            clean, _ = self._clean(net, x, before, earlier, way)
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
        path = self.standardise(latents)
        terms = {"flow": self._flow_matching(path, actions, generator)}
        total = terms["flow"]
        if self.low_noise:
            terms["low_noise"] = self._flow_matching(path, actions, generator, low=True)
            total = total + self.low_noise * terms["low_noise"]
        if self.energy:
            terms["energy"] = self._own_futures(path, actions, generator)
            total = total + self.energy * terms["energy"]
        return total, terms

    def _flow_matching(
        self, path: Tensor, actions: Tensor, generator: torch.Generator | None, low: bool = False
    ) -> Tensor:
        """Squared error of the velocity, (clean - z) / level, at levels drawn for every state anew.

        In three quarters of the windows every other state is given, as it will be where states are drawn one
        after the other; a window of one state has none to give.
        """
        b, h = actions.shape[:2]
        draw: dict[str, Any] = dict(generator=generator, device=path.device, dtype=path.dtype)
        if low:
            level = torch.empty(b, h, device=path.device, dtype=path.dtype).uniform_(
                *LOW_NOISE, generator=generator
            )
        else:
            level = shifted(torch.randn(b, h, **draw).sigmoid(), self.shift)
        odd = (torch.rand(b, 1, **draw) < 0.5).long()
        given = (torch.arange(h, device=path.device) % 2 == odd) & (torch.rand(b, 1, **draw) < 0.75 * (h > 1))
        known = self._context_levels(path, generator)
        level = torch.where(given[:, None, :, None], known, level[:, None, :, None])
        z = path[:, None, 1:]
        x = torch.lerp(z, torch.randn(z.shape, **draw), level)
        before = torch.cat([self._noised(path[:, None, :1], known, generator), x[:, :, :-1]], dim=2)
        earlier = torch.cat([known.expand(b, 1, 1, 1), level[:, :, :-1]], dim=2)
        way = self.network.modulations(self._steering(actions, generator), level, earlier, 0.0)
        clean, _ = self._clean(self.network, x, before, earlier, way)
        error = ((clean - z) / level.clamp_min(0.05)).square()
        return (error * (level > 0)).sum() / ((level > 0).sum() * path.shape[-1]).clamp_min(1)

    def _context_levels(self, path: Tensor, generator: torch.Generator | None) -> Float[Tensor, "#b 1 1 1"]:
        """Noise level of what is given in each window: that of the context in half of them."""
        if not self.context_noise:
            return path.new_zeros(1, 1, 1, 1)
        half = torch.rand(len(path), 1, 1, 1, generator=generator, device=path.device) < 0.5
        return self.context_noise * half.to(path)

    def _noised(self, x: Tensor, level: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.context_noise:
            return x
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return torch.lerp(x, noise, level)

    def _own_futures(self, path: Tensor, actions: Tensor, generator: torch.Generator | None) -> Tensor:
        """Mean energy score of the sampler's futures, each number of evaluations on a share of the windows.

        All numbers in every update: they share the weights, and each of them alone would pull these its own way.
        """
        order = torch.randperm(len(FEW_EVALUATIONS), generator=generator, device=path.device)
        shares = zip(order.tolist(), path.chunk(len(order)), actions.chunk(len(order)), strict=False)
        scores = [
            self._energy_of(FEW_EVALUATIONS[i], states, taken, generator).sum() for i, states, taken in shares
        ]
        return torch.stack(scores).sum() / len(path)

    def _energy_of(
        self, count: int, path: Tensor, actions: Tensor, generator: torch.Generator | None
    ) -> Float[Tensor, " b"]:
        """Energy score of futures of ``unroll`` states by ``count`` evaluations, mean over each window."""
        draw: dict[str, Any] = dict(generator=generator, device=path.device)
        u = min(self.unroll, actions.shape[1])
        pieces = actions.shape[1] // u
        starts = path[:, : pieces * u : u].flatten(0, 1)
        truth = path[:, 1 : 1 + pieces * u].unflatten(1, (pieces, u)).flatten(0, 1)
        taken = actions[:, : pieces * u].unflatten(1, (pieces, u)).flatten(0, 1)
        shape = (len(starts), self.samples, u, path.shape[-1])
        noise = torch.randn(shape, dtype=path.dtype, **draw)
        known = self._context_levels(starts, generator)
        starts = self._noised(starts[:, None, None], known, generator)[:, 0, 0]
        unrest = torch.randn(shape, dtype=path.dtype, **draw) if self.context_noise and u > 1 else None
        earlier = self._levels_before(u, path, known)
        drawn = self._draw(starts, self._steering(taken, generator), noise, count, earlier, unrest)
        score = torch.stack([energy_score(drawn[:, :, i], truth[:, i]) for i in range(u)])
        return score.mean(0).unflatten(0, (len(path), pieces)).mean(1)

    @torch.no_grad()
    def after_update(self) -> None:
        """Moves the average towards the weights; call after every optimiser step."""
        for average, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
            average.lerp_(weight, self.average_rate)


def shifted(level: Tensor, shift: float) -> Tensor:
    """Noise levels moved towards noise (``shift`` above 1) or towards clean latents."""
    return shift * level / (1 + (shift - 1) * level)


def jump(x: Tensor, clean: Tensor, level: Tensor | float, to: Tensor | float) -> Tensor:
    """From noise level ``level`` to ``to`` along the line from ``x`` to the clean latent."""
    return clean if isinstance(to, float) and to == 0.0 else clean + (x - clean) * (to / level)


# -- the network ------------------------------------------------------------------------------------


class Way(NamedTuple):
    """What the action and the levels do to each block: shift, scale, gate, twice; "b n|1 t w" each."""

    entering: Tensor
    blocks: list[tuple[Tensor, ...]]

    def at(self, i: int) -> Way:
        """For one token alone."""
        blocks = [tuple(part[:, :, i : i + 1] for part in block) for block in self.blocks]
        return Way(self.entering[:, :, i : i + 1], blocks)


class Denoiser(nn.Module):
    """A causal transformer that names the clean latent of every noisy one. Tokens are "b n t w"."""

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        context: int,
    ) -> None:
        super().__init__()
        self.width, self.depth = width, depth
        self.embed_noisy = entrance(latent_dim, width, bias=True)
        self.embed_before = entrance(latent_dim, width)
        self.embed_action = entrance(action_dim, width)
        self.steer = entrance(action_dim, width)
        self.embed_levels = nn.Linear(3 * FREQUENCIES, width)
        self.condition = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, context) for _ in range(depth))
        self.head = nn.Linear(width, latent_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def modulations(
        self,
        actions: Float[Tensor, "b 1 t a"],
        level: Tensor | float,
        earlier: Tensor | float,
        size: Tensor | float,
    ) -> Way:
        """Levels of a state, of the one before and of the jump: numbers, or "b|1 1 t 1"."""
        waves = torch.cat([waves_of(x, actions) for x in (level, earlier, size)], dim=-1)
        c = F.silu(self.steer(actions) + self.embed_levels(waves))
        c = F.silu(self.condition(c))
        return Way(self.embed_action(actions), [block.modulations(c) for block in self._blocks()])

    def forward(
        self,
        x: Float[Tensor, "#b n t d"],
        before: Float[Tensor, "b #n t d"],
        way: Way,
        past: Past | None = None,
    ) -> tuple[Float[Tensor, "b n t d"], Past]:
        """Changes that lead to the clean latents, and keys and values for the tokens that follow."""
        y = self.embed_noisy(x) + self.embed_before(before) + way.entering
        kept: Past = []
        for i, block in enumerate(self._blocks()):
            y, pair = block(y, way.blocks[i], None if past is None else past[i])
            kept.append(pair)
        return self.head(F.layer_norm(y, y.shape[-1:])), kept

    def _blocks(self) -> Iterator[Block]:
        yield from self.blocks  # type: ignore[misc]  # ModuleList forgets what it holds


FREQUENCIES = 16


def waves_of(level: Tensor | float, like: Float[Tensor, "b 1 t a"]) -> Float[Tensor, "b 1 t f"]:
    """Sines and cosines of a level in [0, 1]."""
    steps = torch.arange(FREQUENCIES // 2, device=like.device, dtype=like.dtype)
    angles = torch.as_tensor(level, device=like.device, dtype=like.dtype) * torch.pi * 2.0 ** (steps / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).expand(*like.shape[:-1], -1)


class Block(nn.Module):
    """Attention to the last ``context`` states and a gated perceptron, both modulated (DiT's AdaLN-zero)."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, context: int) -> None:
        super().__init__()
        self.heads, self.context = heads, context
        if context > 1:
            self.query_key_value = nn.Linear(width, 3 * width, bias=False)
            self.attended = nn.Linear(width, width)
            self.nearness = nn.Parameter(torch.zeros(context, heads))  # of states 0, 1, ... steps back
        self.up = nn.Linear(width, 2 * mlp_ratio * width)
        self.down = nn.Linear(mlp_ratio * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def modulations(self, condition: Float[Tensor, "b 1 t w"]) -> tuple[Tensor, ...]:
        """Shift, scale (around 1) and gate of the attention where there is any, then those of the perceptron."""
        # Without attention its half is spared.
        first = 0 if self.context > 1 else self.modulation.out_features // 2
        found = F.linear(condition, self.modulation.weight[first:], self.modulation.bias[first:])
        parts = found.chunk(found.shape[-1] // condition.shape[-1], dim=-1)
        return tuple(1 + part if i % 3 == 1 else part for i, part in enumerate(parts))

    def forward(
        self, x: Float[Tensor, "b n t w"], way: tuple[Tensor, ...], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        mlp_shift, mlp_scale, mlp_gate = way[-3:]
        pair = (x, x)
        if self.context > 1:
            shift, scale, gate = way[:3]
            y = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale)
            query, key, value = self.query_key_value(y).chunk(3, dim=-1)
            mixed, pair = self._attend(query, key, value, past)
            x = torch.addcmul(x, gate, self.attended(mixed))
        y = torch.addcmul(mlp_shift, F.layer_norm(x, x.shape[-1:]), mlp_scale)
        opened, value = self.up(y).chunk(2, dim=-1)
        return torch.addcmul(x, mlp_gate, self.down(F.silu(opened) * value)), pair

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attention of each token to itself and the ``context - 1`` before it, written out.

        Positions count back from each token, so that cached keys stay what they are however long the path grows.
        """
        if past is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(past, (key, value), strict=True))
        t, known = query.shape[2], key.shape[2]
        q, keys, values = (part.unflatten(-1, (self.heads, -1)) for part in (query, key, value))
        scores, seen = [], []
        for back in range(min(self.context, known)):
            first = known - t - back  # of the keys that the tokens meet; tokens without one meet nothing
            missing = max(0, -first)
            rows = slice(first + missing, first + t)
            k, v = (F.pad(part[:, :, rows], (0, 0, 0, 0, missing, 0)) for part in (keys, values))
            score = (q * k).sum(-1) * q.shape[-1] ** -0.5 + self.nearness[back]
            if missing:
                nothing = torch.arange(t, device=q.device)[:, None] < missing
                score = score.masked_fill(nothing, -torch.inf)
            scores.append(score)
            seen.append(v)
        weights = torch.stack(scores).softmax(0).unsqueeze(-1)
        mixed = torch.stack([w * v for w, v in zip(weights, seen, strict=True)]).sum(0).flatten(-2)
        keep = self.context - 1
        return mixed, (key[:, :, -keep:], value[:, :, -keep:])


# -- noise levels along a path ----------------------------------------------------------------------


def schedule(
    horizon: int,
    evaluations: int,
    lag: float = 1.0,
    shift: float = 1.0,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "levels h"]:
    """Noise levels of ``horizon`` states over the evaluations of ``FlowDynamics.denoise``: from all 1 to all 0.

    Args:
        evaluations: that each state goes through.
        lag: how far a state is behind the one before, in states: 0 denoises all at once, 1 one after the other, and
            what lies between is Diffusion Forcing's pyramid, the near future nearly clean while the far one is noise.
            A state never sees later ones, so that each is drawn from its own law at any lag, but what belongs together
            in a path only as far as the earlier state is settled before the later one.
        shift: that of the model.

    Raises:
        ValueError: for counts below 1 or a lag outside [0, 1].
    """
    if horizon < 1 or evaluations < 1 or not 0.0 <= lag <= 1.0:
        raise ValueError(
            f"need counts of at least 1 and a lag in [0, 1], got {horizon}, {evaluations}, {lag}"
        )
    begins = torch.round(torch.arange(horizon, device=device) * lag * evaluations)
    rows = torch.arange(int(begins[-1]) + evaluations + 1, device=device)
    return shifted((1.0 - (rows[:, None] - begins) / evaluations).clamp(0.0, 1.0), shift)
