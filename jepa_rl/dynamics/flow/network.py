"""The network of the flow: a causal transformer of DiT blocks that predicts clean latents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.dynamics.base import input_layer
from jepa_rl.dynamics.flow.settings import FlowNetwork

# Sines and cosines that a noise level is embedded in.
FREQUENCIES = 16

# Keys and values "b n k w" of the tokens before, for each block; k < context.
Past = list[tuple[Tensor, Tensor]]


class Modulation(NamedTuple):
    """What the action and the noise levels change in the network.

    Attributes:
        embedded: the action's embedding, which is added to the tokens.
        blocks: of each block shift, scale and gate, for attention (where there is any) and perceptron; "b #n t w".
    """

    embedded: Float[Tensor, "b #n t w"]
    blocks: list[tuple[Tensor, ...]]

    def at(self, i: int) -> Modulation:
        """Those of token ``i`` alone."""
        blocks = [tuple(part[:, :, i : i + 1] for part in block) for block in self.blocks]
        return Modulation(self.embedded[:, :, i : i + 1], blocks)


class Denoiser(nn.Module):
    """A causal transformer that predicts the clean latent of every noisy one. Tokens are "b n t w".

    Args:
        latent_dim: width of the latents.
        action_dim: width of the condition, the actions.
        settings: sizes.
    """

    def __init__(self, latent_dim: int, action_dim: int, settings: FlowNetwork) -> None:
        super().__init__()
        width = settings.width
        self.width, self.depth = width, settings.depth
        self.embed_noisy = input_layer(latent_dim, width, bias=True)
        self.embed_before = input_layer(latent_dim, width)
        self.embed_action = input_layer(action_dim, width)
        self.steer = input_layer(action_dim, width)
        self.embed_levels = nn.Linear(3 * FREQUENCIES, width)
        self.condition = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.head = nn.Linear(width, latent_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def modulations(
        self,
        actions: Float[Tensor, "b 1 t a"],
        level: Tensor | float,
        previous_level: Tensor | float,
        size: Tensor | float,
    ) -> Modulation:
        """What actions and noise levels change in the network.

        Args:
            actions: the condition.
            level: noise level of each state, a number or "#b 1 t 1".
            previous_level: that of the state before.
            size: how far the level falls in this jump; 0 asks for the plain flow.
        """
        waves = torch.cat([waves_of(x, actions) for x in (level, previous_level, size)], dim=-1)
        c = F.silu(self.steer(actions) + self.embed_levels(waves))
        c = F.silu(self.condition(c))
        return Modulation(self.embed_action(actions), [block.modulations(c) for block in self._blocks()])

    def forward(
        self,
        x: Float[Tensor, "#b n t d"],
        before: Float[Tensor, "b #n t d"],
        modulation: Modulation,
        past: Past | None = None,
    ) -> tuple[Float[Tensor, "b n t d"], Past]:
        """Predicts changes.

        Args:
            x: noisy states.
            before: the state before each of them, noisy or clean.
            modulation: see ``modulations``.
            past: keys and values of earlier tokens, where these were read already.

        Returns:
            Changes that lead from ``before`` to the clean latents, and keys and values for the tokens that follow.
        """
        y = self.embed_noisy(x) + self.embed_before(before) + modulation.embedded
        kept: Past = []
        for i, block in enumerate(self._blocks()):
            y, pair = block(y, modulation.blocks[i], None if past is None else past[i])
            kept.append(pair)
        return self.head(F.layer_norm(y, y.shape[-1:])), kept

    def _blocks(self) -> Iterator[Block]:
        yield from self.blocks  # type: ignore[misc]  # ModuleList forgets what it holds


def waves_of(level: Tensor | float, like: Float[Tensor, "b 1 t a"]) -> Float[Tensor, "b 1 t f"]:
    """Sines and cosines of a level in [0, 1]."""
    steps = torch.arange(FREQUENCIES // 2, device=like.device, dtype=like.dtype)
    angles = torch.as_tensor(level, device=like.device, dtype=like.dtype) * torch.pi * 2.0 ** (steps / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).expand(*like.shape[:-1], -1)


class Block(nn.Module):
    """Attention to the last ``context`` states and a gated perceptron, both modulated (DiT's AdaLN-zero)."""

    def __init__(self, settings: FlowNetwork) -> None:
        super().__init__()
        width, hidden = settings.width, settings.mlp_ratio * settings.width
        self.heads, self.context = settings.heads, settings.context
        if self.context > 1:
            self.query_key_value = nn.Linear(width, 3 * width, bias=False)
            self.attended = nn.Linear(width, width)
            self.nearness = nn.Parameter(
                torch.zeros(self.context, self.heads)
            )  # of states 0, 1, ... steps back
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def modulations(self, condition: Float[Tensor, "b 1 t w"]) -> tuple[Tensor, ...]:
        """Shift, scale (around 1) and gate of the attention where there is any, then those of the perceptron."""
        # Without attention its half of the layer is not computed.
        first = 0 if self.context > 1 else self.modulation.out_features // 2
        found = F.linear(condition, self.modulation.weight[first:], self.modulation.bias[first:])
        parts = found.chunk(found.shape[-1] // condition.shape[-1], dim=-1)
        return tuple(1 + part if i % 3 == 1 else part for i, part in enumerate(parts))

    def forward(
        self,
        x: Float[Tensor, "b n t w"],
        modulation: tuple[Tensor, ...],
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The tokens after this block, and their keys and values."""
        mlp_shift, mlp_scale, mlp_gate = modulation[-3:]
        pair = (x, x)
        if self.context > 1:
            shift, scale, gate = modulation[:3]
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
        scores, attended = [], []
        for back in range(min(self.context, known)):
            first = known - t - back  # key of the first token; the first tokens may have none so far back
            missing = max(0, -first)
            rows = slice(first + missing, first + t)
            k, v = (F.pad(part[:, :, rows], (0, 0, 0, 0, missing, 0)) for part in (keys, values))
            score = (q * k).sum(-1) * q.shape[-1] ** -0.5 + self.nearness[back]
            if missing:
                nothing = torch.arange(t, device=q.device)[:, None] < missing
                score = score.masked_fill(nothing, -torch.inf)
            scores.append(score)
            attended.append(v)
        weights = torch.stack(scores).softmax(0).unsqueeze(-1)
        mixed = torch.stack([w * v for w, v in zip(weights, attended, strict=True)]).sum(0).flatten(-2)
        keep = self.context - 1
        return mixed, (key[:, :, -keep:], value[:, :, -keep:])
