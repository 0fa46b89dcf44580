"""A causal transformer over the latest latents, steered by the actions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.checks import check_each, is_share
from jepa_rl.dynamics.base import TrainableDynamics
from jepa_rl.registry import register_dynamics

# Rows rolled out at a time when no gradient is wanted, so that activations stay in the processor's cache.
ROWS = 512

# Windows up to this long are attended to row by row.
FEW = 4

# Keys and values, "b heads e" for each token.
KeysValues = tuple[list[Tensor], list[Tensor]]


@register_dynamics("transformer")
class CausalTransformerDynamics(TrainableDynamics):
    """The predictor of LeWorldModel (Maes et al. 2026): causal attention, AdaLN-zero actions.

    The next latent is read off the newest token of a window of the last ``context`` latents. Each
    latent is one token; the action taken in it sets the shift, scale and gate of every block
    (Peebles and Xie 2023, DiT), which start at zero, so that an untrained block passes its input on.
    Positions count from the start of the window: while the window grows, the keys and values of
    older tokens are kept; once it slides, every token moves and the window is read afresh. Either
    way only the newest token passes the last block's perceptron and the head, and the
    modulations of each action are computed once.

    Args:
        latent_dim, action_dim: widths of latent and action.
        width: width of a token.
        depth: blocks.
        heads, head_dim: attention heads and the width of each.
        mlp_width: hidden units of a block's perceptron and of the head.
        context: latents in the window.
        dropout: share of activations dropped in training.

    Raises:
        ValueError: for a size below 1 or a dropout outside [0, 1).
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        head_dim: int = 32,
        mlp_width: int = 512,
        context: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(latent_dim, action_dim)
        sizes = dict(width=width, depth=depth, heads=heads)
        sizes |= dict(head_dim=head_dim, mlp_width=mlp_width, context=context)
        check_each(lambda size: size >= 1, "be at least 1", **sizes)
        check_each(is_share, "lie in [0, 1)", dropout=dropout)
        self.context, self.markov = context, context == 1
        self.position = nn.Parameter(0.02 * torch.randn(context, 1, latent_dim))
        same = latent_dim == width
        self.embed_latent = nn.Identity() if same else nn.Linear(latent_dim, width)
        self.embed_action = nn.Sequential(
            nn.Linear(action_dim, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )
        self.blocks = nn.ModuleList(Block(width, heads, head_dim, mlp_width, dropout) for _ in range(depth))
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, latent_dim)
        )

    def predict(
        self, latents: Float[Tensor, "b t d"], actions: Float[Tensor, "b t a"]
    ) -> Float[Tensor, "b t d"]:
        """The next latent after each of ``t <= context`` given ones (teacher forcing).

        Raises:
            ValueError: if the window is longer than ``context``.
        """
        steps = latents.shape[1]
        if steps > self.context:
            raise ValueError(
                f"a window holds at most context={self.context} latents, got {steps}; build the dynamics "
                "with a larger context, or shorten it"
            )
        x = self.embed_latent(latents.transpose(0, 1) + self.position[:steps])
        for block, modulation in zip(self.blocks, self._modulations(actions), strict=True):
            x, _ = block(x, modulation)
        return self.head(x).transpose(0, 1)

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b 1 h+1 d"]:
        """The predicted path, ``z`` first; one future whatever ``futures`` asks for. Differentiable."""
        if torch.is_grad_enabled() or z.is_cuda:
            return self._roll(z, actions)
        parts = max(1, -(-len(z) // ROWS))
        return torch.cat(
            [self._roll(*part) for part in zip(z.chunk(parts), actions.chunk(parts), strict=True)]
        )

    def _roll(self, z: Float[Tensor, "b d"], actions: Float[Tensor, "b h a"]) -> Float[Tensor, "b 1 h+1 d"]:
        modulations = self._modulations(actions)
        path, cache = [z], [None] * len(self.blocks)
        for now in range(actions.shape[1]):
            grows = now < self.context
            first = now if grows else now + 1 - self.context  # of the tokens to be read
            position = self.position[now : now + 1] if grows else self.position
            x = self.embed_latent(torch.stack(path[first:]) + position)
            for i, block in enumerate(self.blocks):
                modulation = [m[first : now + 1] for m in modulations[i]]
                past = cache[i] if grows else None
                x, cache[i] = block(x, modulation, past, newest_only=i + 1 == len(self.blocks))
            path.append(self.head(x[-1]))
        return torch.stack(path, dim=1).unsqueeze(1)

    def _modulations(self, actions: Float[Tensor, "b h a"]) -> list[tuple[Tensor, ...]]:
        """Shift, scale and gate (twice) of each block for each action, "h b width" each."""
        condition = F.silu(self.embed_action(actions.transpose(0, 1)))
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]  # ModuleList forgets what it holds
        return [block.modulations(condition) for block in blocks]


class Block(nn.Module):
    """Attention and perceptron, each shifted, scaled and gated by the action. Tokens are "t b width"."""

    one: Tensor

    def __init__(self, width: int, heads: int, head_dim: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        inner = heads * head_dim
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * inner, bias=False)
        self.attention_out = nn.Linear(inner, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        # Turns the predicted scales s into factors 1 + s without a pass over the activations.
        one = torch.zeros(6, width)
        one[1] = one[4] = 1.0
        self.register_buffer("one", one.flatten(), persistent=False)

    def modulations(self, condition: Float[Tensor, "h b w"]) -> tuple[Tensor, ...]:
        return F.linear(condition, self.modulation.weight, self.modulation.bias + self.one).chunk(6, dim=-1)

    def forward(
        self,
        x: Float[Tensor, "t b w"],
        modulation: list[Tensor] | tuple[Tensor, ...],
        past: KeysValues | None = None,
        newest_only: bool = False,
    ) -> tuple[Tensor, KeysValues]:
        """The tokens after this block (the newest alone if asked), and all keys and values so far."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        y = self.attention_norm(torch.addcmul(shift, _normalise(x), scale))
        keys, values = past if past else ([], [])
        pairs = self.key_value(y).unflatten(-1, (2, self.heads, -1))  # t b 2 heads e
        keys, values = [*keys, *pairs[:, :, 0]], [*values, *pairs[:, :, 1]]
        if newest_only:
            x, y, gate = x[-1:], y[-1:], gate[-1:]
            mlp_shift, mlp_scale, mlp_gate = mlp_shift[-1:], mlp_scale[-1:], mlp_gate[-1:]
        x = torch.addcmul(x, gate, self._drop(self.attention_out(self._attend(y, keys, values))))
        y = self.mlp_norm(torch.addcmul(mlp_shift, _normalise(x), mlp_scale))
        y = self.mlp_out(self._drop(F.gelu(self.mlp_in(y))))
        return torch.addcmul(x, mlp_gate, self._drop(y)), (keys, values)

    def _attend(
        self, y: Float[Tensor, "i b w"], keys: list[Tensor], values: list[Tensor]
    ) -> Float[Tensor, "i b e"]:
        """Attention of the ``i`` newest tokens over all of them, none looking ahead."""
        oldest = values[:1] if len(y) == len(keys) else []  # attends to itself alone and needs no query
        asking = y[len(oldest) :]
        out = [*oldest]
        if len(asking):
            queries = self.query(asking).unflatten(-1, (self.heads, -1))
            dropout = self.dropout if self.training else 0.0
            few = len(keys) <= FEW and not dropout
            out += _attend_to_few(queries, keys, values) if few else _attend(queries, keys, values, dropout)
        return torch.stack(out).flatten(-2)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def _attend(
    queries: Float[Tensor, "i b heads e"], keys: list[Tensor], values: list[Tensor], dropout: float
) -> Tensor:
    """Causal attention of the ``i`` newest tokens: "i b heads e"."""
    q, k, v = (x.permute(1, 2, 0, 3) for x in (queries, torch.stack(keys), torch.stack(values)))
    mask = torch.ones(len(queries), len(keys), dtype=torch.bool, device=q.device).tril(
        len(keys) - len(queries)
    )
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).permute(2, 0, 1, 3)


def _attend_to_few(
    queries: Float[Tensor, "i b heads e"], keys: list[Tensor], values: list[Tensor]
) -> list[Tensor]:
    """The same written out. For a handful of tokens the products of whole rows beat the fused kernel,
    which is made for long sequences: 2 times in float32 and 5 times in bfloat16 on a processor."""
    out = []
    for i, query in enumerate(queries):
        seen = len(keys) - len(queries) + i + 1
        scores = torch.stack([(query * key).sum(-1) for key in keys[:seen]]) * query.shape[-1] ** -0.5
        weights = scores.softmax(0).unsqueeze(-1).to(query)
        mixed = weights[0] * values[0]
        for weight, value in zip(weights[1:], values[1:seen], strict=True):
            mixed = torch.addcmul(mixed, weight, value)
        out.append(mixed)
    return out


def _normalise(x: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w"]:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)
