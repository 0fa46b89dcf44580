"""What several contracts check with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_raises(error: type[Exception], call: Callable[[], Any], because: str) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"expected a {error.__name__}: {because}")


def reached(total: Tensor, module: nn.Module) -> bool:
    """Whether a gradient of ``total`` reaches a parameter of ``module``."""
    learned = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(total, learned, allow_unused=True)
    return any(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in found)


def check_loss(total: Tensor, terms: Mapping[str, Tensor]) -> None:
    assert total.shape == () and total.requires_grad, f"expected a scalar with a gradient, got {total!r}"
    assert torch.isfinite(total), f"expected a finite loss, got {total.item()}"
    wrong = {name: tuple(value.shape) for name, value in terms.items() if value.shape != ()}
    assert terms and not wrong, f"terms must be named scalars, got {wrong or 'none'}"
