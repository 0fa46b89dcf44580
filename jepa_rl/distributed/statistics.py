"""Statistics over the rows of all processes, with gradients. All processes have equally many rows."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from jepa_rl.distributed.group import exchange, is_together, processes, rank
from jepa_rl.distributed.rows import whole_batch


class _Sum(torch.autograd.Function):
    """The sum over processes of a tensor. Each process's loss depends on it, so gradients are summed, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alike: bool) -> Tensor:
        ctx.alike = alike
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.alike), None


class _Gather(torch.autograd.Function):
    """The tensors of all processes, stacked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alike: bool) -> Tensor:
        ctx.rank, ctx.alike = rank(), alike
        found = x.new_zeros(processes(), *x.shape)
        found[ctx.rank] = x
        return _summed(found)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.alike)[ctx.rank], None


def _summed(x: Tensor, alike: bool = False) -> Tensor:
    """The sum over processes, in new memory; complex numbers, too. Without an exchange, if they have the same."""
    if alike:
        return x * processes()
    found = x.detach().clone(memory_format=torch.contiguous_format)
    exchange(torch.view_as_real(found) if found.is_complex() else found)
    return found


def total(x: Shaped[Tensor, "*s"], alike: bool = False) -> Shaped[Tensor, "*s"]:
    """The sum over processes of a tensor, real or complex.

    Args:
        x: this process's.
        alike: whether all processes compute the same from it, down to their losses: then they have the same gradient,
            which needs no exchange.
    """
    return _Sum.apply(x, alike) if is_together() else x


def average(x: Shaped[Tensor, "*s"], alike: bool = False) -> Shaped[Tensor, "*s"]:
    """The mean over processes of a tensor, real or complex; ``alike`` as in ``total``."""
    return total(x, alike) / processes() if is_together() else x


def gather(x: Shaped[Tensor, "*s"], alike: bool = False) -> Shaped[Tensor, "p *s"]:
    """The tensors of all p processes; ``alike`` as in ``total``."""
    return _Gather.apply(x, alike) if is_together() else x.unsqueeze(0)


def mean(x: Tensor, dims: int | tuple[int, ...] = 0) -> Tensor:
    """``x.mean(dims)`` over the rows of all processes."""
    return average(x.mean(dims))


def moments(x: Tensor, dims: int | tuple[int, ...] = 0, alike: bool = False) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance over the rows of all processes, and over how many numbers they were taken.

    The variance is that inside the processes plus that of their means, which loses no digits where the mean is large.
    ``alike`` as in ``total``.
    """
    around = x.mean(dims, keepdim=True)
    here, count = around.squeeze(dims), whole_batch(x.numel())
    spread = (x - around).square().mean(dims)  # ``x.var`` of rows takes ten times as long
    means, variances = gather(torch.stack([here, spread]), alike).unbind(1)
    centre = means.mean(0)
    return centre, (variances + (means - centre).square()).mean(0), count // here.numel()


def var(x: Tensor, dims: int | tuple[int, ...] = 0, alike: bool = False) -> Tensor:
    """``x.var(dims)``, unbiased, over the rows of all processes; ``alike`` as in ``total``."""
    if not is_together():
        return x.var(dims)
    _, biased, count = moments(x, dims, alike)
    return biased * (count / (count - 1))


def std(x: Tensor, dims: int | tuple[int, ...] = 0) -> Tensor:
    """``x.std(dims)``, unbiased, over the rows of all processes."""
    return var(x, dims).sqrt() if is_together() else x.std(dims)


class BatchNorm(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` of rows "b d" whose batch is that of all processes; files and state are the same.

    ``nn.SyncBatchNorm`` does this on GPUs alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and is_together()):
            return super().forward(x)
        mean, biased, count = moments(x)
        if self.running_mean is not None and self.running_var is not None:
            self._remember(mean.detach(), biased.detach() * (count / (count - 1)))
        y = (x - mean) * (biased + self.eps).rsqrt()
        return y if self.weight is None else y * self.weight + self.bias

    @torch.no_grad()
    def _remember(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)


def check_parts(model: nn.Module) -> None:
    """Refuses parts that would learn from the statistics of one process's rows, where there are several.

    Raises:
        ValueError: naming the first batch norm of another kind, or objective that is not ``divided``.
    """
    for name, part in model.named_modules() if is_together() else ():
        if not getattr(part, "divided", True):
            raise ValueError(
                f"the {name} {type(part).__name__} trains in one process only, got several; start the script without "
                "torchrun, or choose an objective whose attribute divided is True"
            )
        kind = nn.modules.batchnorm._BatchNorm
        if isinstance(part, kind) and part.training and not isinstance(part, BatchNorm | nn.SyncBatchNorm):
            raise ValueError(
                f"{name} is a {type(part).__name__}, whose statistics would be those of one process's rows; take "
                "jepa_rl.distributed.BatchNorm for rows 'b d' (its weights and files are those of BatchNorm1d), a "
                "layer norm, or on GPUs nn.SyncBatchNorm"
            )
