"""Warnings with the line of the user's code."""

from __future__ import annotations

import inspect
import warnings


def warn_caller(message: str) -> None:
    """Warns with a UserWarning at the innermost line outside this package."""
    frame, level = inspect.currentframe(), 1  # as warnings.warn counts
    while frame is not None and frame.f_globals.get("__name__", "").startswith("jepa_rl."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
