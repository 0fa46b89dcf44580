"""What the flow learns by: flow matching, and the energy score of its own few-step futures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.distributed import average, own_chunks, own_draw
from jepa_rl.dynamics.base import energy_score
from jepa_rl.dynamics.flow.network import Denoiser
from jepa_rl.dynamics.flow.schedule import FEW_EVALUATIONS, shifted
from jepa_rl.dynamics.flow.settings import FlowSettings


class Sampler(Protocol):
    """What the losses need of ``FlowDynamics``."""

    network: Denoiser
    projector: Projector  # where ``FlowTraining.repa`` is above 0
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
        empty: dict[str, Any] = dict(device=path.device, dtype=path.dtype)
        level = own_draw(lambda n: torch.empty(n, h, **empty).uniform_(*LOW_NOISE, generator=generator), b)
    else:
        level = own_draw(lambda n: torch.randn(n, h, **draw), b).sigmoid()
        level = shifted(level, flow.settings.training.shift)
    odd, some = (own_draw(lambda n: torch.rand(n, 1, **draw), b) for _ in range(2))
    given = (torch.arange(h, device=path.device) % 2 == (odd < 0.5).long()) & (some < 0.75 * (h > 1))
    level = level.masked_fill(given, 0.0)[:, None, :, None]
    z = path[:, None, 1:]
    x = torch.lerp(z, own_draw(lambda n: torch.randn(n, *z.shape[1:], **draw), b), level)
    before = torch.cat([path[:, None, :1], x[:, :, :-1]], dim=2)
    previous_level = torch.cat([torch.zeros_like(level[:, :, :1]), level[:, :, :-1]], dim=2)
    modulation = flow.network.modulations(flow.steering(actions, generator), level, previous_level, 0.0)
    clean, _ = flow.predict_clean(flow.network, x, before, previous_level, modulation)
    error = ((clean - z) / level.clamp_min(0.05)).square()
    count = average((level > 0).sum().to(error)) * path.shape[-1]
    return (error * (level > 0)).sum() / count.clamp_min(1)


class Projector(nn.Sequential):
    """Hidden states to the width of what they are aligned with; for training alone.

    Args:
        width: of hidden states.
        features: what they are compared with.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, features))


def matching_terms(
    flow: Sampler,
    path: Float[Tensor, "b t d"],
    actions: Float[Tensor, "b h a"],
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Flow matching, and how far its hidden states are from the clean states (REPA, Yu et al. 2024, eq. 8).

    Args:
        flow, path, actions, generator: see ``flow_matching``.

    Returns:
        ``"flow"``, and where the weight ``repa`` is above 0 ``"repa"``: one minus the cosine between the clean states
        and the projected outputs of the middle block, mean over states.
    """
    if not flow.settings.training.repa:
        return {"flow": flow_matching(flow, path, actions, generator)}
    found: list[Tensor] = []
    middle = flow.network.blocks[(flow.network.depth - 1) // 2]
    handle = middle.register_forward_hook(lambda module, inputs, output: found.append(output[0]))
    try:
        terms = {"flow": flow_matching(flow, path, actions, generator)}
    finally:
        handle.remove()
    cosine = F.cosine_similarity(flow.projector(found[0]), path[:, None, 1:], dim=-1)
    return terms | {"repa": 1 - cosine.mean()}


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
    sizes, chunks = zip(*own_chunks(len(path), len(order)), strict=True)
    shares = zip(order.tolist(), path.split(sizes), actions.split(sizes), chunks, strict=False)
    scores = [
        _energy_of(flow, FEW_EVALUATIONS[i], states, taken, rows, generator).sum()
        for i, states, taken, rows in shares
    ]
    return torch.stack(scores).sum() / len(path)


def _energy_of(
    flow: Sampler,
    count: int,
    path: Float[Tensor, "b t d"],
    actions: Float[Tensor, "b h a"],
    rows: range,
    generator: torch.Generator | None,
) -> Float[Tensor, " b"]:
    """Energy score of futures of ``unroll`` states by ``count`` evaluations, mean over each window.

    Args:
        flow, generator: see ``sampler_energy``.
        count: evaluations.
        path, actions: of this process's windows among ``rows`` of the whole batch.
        rows: of the whole batch.
    """
    u = min(flow.unroll, actions.shape[1])
    pieces = actions.shape[1] // u
    starts = path[:, : pieces * u : u].flatten(0, 1)
    truth = path[:, 1 : 1 + pieces * u].unflatten(1, (pieces, u)).flatten(0, 1)
    taken = actions[:, : pieces * u].unflatten(1, (pieces, u)).flatten(0, 1)
    shape = (flow.settings.training.samples, u, path.shape[-1])

    def own(draw: Callable[[int], Tensor], _: int) -> Tensor:
        """``own_draw`` of pieces."""
        found = own_draw(lambda n: draw(n * pieces).unflatten(0, (n, pieces)), len(path), rows)
        return found.flatten(0, 1)

    noise = own(
        lambda n: torch.randn(n, *shape, generator=generator, device=path.device, dtype=path.dtype),
        len(starts),
    )
    drawn = flow.draw_states(starts, flow.steering(taken, generator, own), noise, count)
    score = torch.stack([energy_score(drawn[:, :, i], truth[:, i]) for i in range(u)])
    return score.mean(0).unflatten(0, (len(path), pieces)).mean(1)
