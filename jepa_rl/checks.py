"""Checks of numbers that users set: each says the name, the value and what it must be."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral


def check_each(fits: Callable[[float], bool], must: str, **settings: float) -> None:
    """Raises ValueError for the first of ``settings`` that does not fit, saying what it ``must``."""
    for name, value in settings.items():
        if not fits(value):
            raise ValueError(f"{name} must {must}, got {value}")


def check_not_negative(**settings: float) -> None:
    """Raises ValueError for the first of ``settings`` that is below 0, or NaN."""
    check_each(lambda value: value >= 0, "be at least 0", **settings)


def check_whole(least: int = 1, **settings: int) -> None:
    """Raises ValueError for the first of ``settings`` that is no whole number, or below ``least``."""
    for name, value in settings.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def positive(value: float) -> bool:
    """Above 0 and finite."""
    return 0.0 < value < float("inf")


def is_share(value: float) -> bool:
    """Within [0, 1)."""
    return 0.0 <= value < 1.0
