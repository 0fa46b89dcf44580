"""What the flow learns by: flow matching, and the energy score of its own few-step futures."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.dynamics.base import energy_score
from jepa_rl.dynamics.flow.network import Denoiser
from jepa_rl.dynamics.flow.schedule import FEW_EVALUATIONS, shifted
from jepa_rl.dynamics.flow.settings import FlowSettings


class Sampler(Protocol):
    """What the losses need of ``FlowDynamics``."""

    network: Denoiser
    settings: FlowSettings

    @property
    def unroll(self) -> int: ...

    def steering(self, *args: Any, **kwargs: Any) -> Tensor: ...

    def predict_clean(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]: ...

    def draw_states(self, *args: Any, **kwargs: Any) -> Tensor: ...


LOW_NOISE = (0.05, 0.4)  # levels of the loss's term of this name


def flow_matching(
    flow: Sampler,
    path: Float[Tensor, "b t d"],
    actions: Float[Tensor, "b h a"],
    generator: torch.Generator | None,
    low: bool = False,
) -> Tensor:
    """Mean squared error of the velocity, (clean - z) / level, at levels drawn for every state anew.

    In three quarters of the windows every other state is given clean, as it will be where states are drawn one after
    the other; a window of one state has none to give.

    Args:
        flow: whose network is trained.
        path: states of windows, standardised.
        actions: between them.
        generator: of levels and noise.
        low: whether levels are uniform in ``LOW_NOISE`` instead of spread over all.
    """
    b, h = actions.shape[:2]
    draw: dict[str, Any] = dict(generator=generator, device=path.device, dtype=path.dtype)
    if low:
        level = torch.empty(b, h, device=path.device, dtype=path.dtype)
        level.uniform_(*LOW_NOISE, generator=generator)
    else:
        level = shifted(torch.randn(b, h, **draw).sigmoid(), flow.settings.training.shift)
    odd = (torch.rand(b, 1, **draw) < 0.5).long()
    given = (torch.arange(h, device=path.device) % 2 == odd) & (torch.rand(b, 1, **draw) < 0.75 * (h > 1))
    level = level.masked_fill(given, 0.0)[:, None, :, None]
    z = path[:, None, 1:]
    x = torch.lerp(z, torch.randn(z.shape, **draw), level)
    before = torch.cat([path[:, None, :1], x[:, :, :-1]], dim=2)
    previous_level = torch.cat([torch.zeros_like(level[:, :, :1]), level[:, :, :-1]], dim=2)
    modulation = flow.network.modulations(flow.steering(actions, generator), level, previous_level, 0.0)
    clean, _ = flow.predict_clean(flow.network, x, before, previous_level, modulation)
    error = ((clean - z) / level.clamp_min(0.05)).square()
    return (error * (level > 0)).sum() / ((level > 0).sum() * path.shape[-1]).clamp_min(1)


def sampler_energy(
    flow: Sampler,
    path: Float[Tensor, "b t d"],
    actions: Float[Tensor, "b h a"],
    generator: torch.Generator | None,
) -> Tensor:
    """Mean energy score of the sampler's futures, each number of evaluations on a share of the windows.

    All numbers in every update: they share the weights, and an update by one of them alone would change the others.

    Args:
        flow: whose sampler it is.
        path: states of windows, standardised.
        actions: between them.
        generator: of the futures, and of which windows each number of evaluations gets.
    """
    order = torch.randperm(len(FEW_EVALUATIONS), generator=generator, device=path.device)
    shares = zip(order.tolist(), path.chunk(len(order)), actions.chunk(len(order)), strict=False)
    scores = [
        _energy_of(flow, FEW_EVALUATIONS[i], states, taken, generator).sum() for i, states, taken in shares
    ]
    return torch.stack(scores).sum() / len(path)


def _energy_of(
    flow: Sampler, count: int, path: Tensor, actions: Tensor, generator: torch.Generator | None
) -> Float[Tensor, " b"]:
    """Energy score of futures of ``unroll`` states by ``count`` evaluations, mean over each window."""
    u = min(flow.unroll, actions.shape[1])
    pieces = actions.shape[1] // u
    starts = path[:, : pieces * u : u].flatten(0, 1)
    truth = path[:, 1 : 1 + pieces * u].unflatten(1, (pieces, u)).flatten(0, 1)
    taken = actions[:, : pieces * u].unflatten(1, (pieces, u)).flatten(0, 1)
    shape = (len(starts), flow.settings.training.samples, u, path.shape[-1])
    noise = torch.randn(shape, generator=generator, device=path.device, dtype=path.dtype)
    drawn = flow.draw_states(starts, flow.steering(taken, generator), noise, count)
    score = torch.stack([energy_score(drawn[:, :, i], truth[:, i]) for i in range(u)])
    return score.mean(0).unflatten(0, (len(path), pieces)).mean(1)
