"""Switching modules to evaluation mode temporarily."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Context manager: ``module`` is in evaluation mode inside; afterwards every submodule has its own mode again.

    Does nothing if ``module`` is not an ``nn.Module``.
    """
    training = [part for part in module.modules() if part.training] if isinstance(module, nn.Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
