"""Warnings that point at the user's line."""

from __future__ import annotations

import inspect
import warnings


def warn_caller(message: str) -> None:
    """``warnings.warn`` as a UserWarning of the line outside this package that led here."""
    frame, level = inspect.currentframe(), 1  # as warnings.warn counts
    while frame is not None and frame.f_globals.get("__name__", "").startswith("jepa_rl."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
