"""Gradients, weights and facts that all processes share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jepa_rl.distributed.group import by_first, exchange, is_together, lost_in_words, processes, rank
from jepa_rl.distributed.rows import fewest


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces gradients by their mean over processes, in one exchange for each dtype and device.

    Args:
        parameters: the same in all processes. One that has a gradient in some processes alone counts as 0 in the
            others; one that has none anywhere stays without.
    """
    if not is_together():
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for some in kinds.values():
        there = some[0].new_tensor([p.grad is not None for p in some])
        parts = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in some]
        flat = torch.cat([*parts, there])
        exchange(flat)
        flat.div_(processes())
        *means, counts = flat.split([*(p.numel() for p in some), len(some)])
        for parameter, mean, anywhere in zip(some, means, counts.tolist(), strict=True):
            if not anywhere:
                continue
            if parameter.is_contiguous():
                parameter.grad = mean.view_as(parameter)  # gradients share the memory of one exchange
            else:
                parameter.grad = torch.empty_like(parameter).copy_(mean.view_as(parameter))


@torch.no_grad()
def copy_first(tensors: Iterable[Tensor]) -> None:
    """Gives all processes the values of the first one, in place."""
    for tensor in tensors if is_together() else ():
        values = tensor.contiguous()
        with lost_in_words():
            dist.broadcast(values, src=0)
        tensor.copy_(values)


def check_alike(what: str, here: Any) -> None:
    """Refuses processes that were started with different settings or data.

    Args:
        what: these are, for the message.
        here: JSON values, which should be the same in all processes.

    Raises:
        ValueError: in all processes, if one of them has others than the first.
    """
    if not is_together():
        return
    first = by_first(lambda: here)
    alike = json.loads(json.dumps(here)) == first
    if fewest(int(alike)):
        return
    if alike:
        raise ValueError(f"another process has other {what} than the first; its message says which")
    raise ValueError(
        f"process {rank()} has other {what} than the first: {here} instead of {first}; start all processes with the "
        "same command, and let them see the same files"
    )
