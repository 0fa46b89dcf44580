"""Importing this, which ``jepa_rl`` does first, raises ``ImportError`` where Python or PyTorch are too old."""

from __future__ import annotations

import re
import sys

PYTHON, TORCH = (3, 11), (2, 8)  # as in setup.cfg


def check_versions(python: tuple[int, ...], torch: str | None) -> None:
    """Says in words what would otherwise fail somewhere deep in an import.

    Args:
        python: ``sys.version_info``.
        torch: ``torch.__version__``; None if it is not installed.

    Raises:
        ImportError: one is missing or too old.
    """
    if tuple(python[:2]) < PYTHON:
        raise ImportError(
            f"jepa-rl needs Python {_dotted(PYTHON)} or newer, this is {_dotted(python[:2])} ({sys.executable}): make "
            f"an environment with a newer one, `python{_dotted(PYTHON)} -m venv .venv`, and install it there"
        )
    needed = f"jepa-rl needs PyTorch {_dotted(TORCH)} or newer"
    line = f'`pip install -U "torch>={_dotted(TORCH)},<3"`'
    if torch is None:
        raise ImportError(f"{needed}, which is not installed: {line}")
    found = re.match(r"(\d+)\.(\d+)", torch)
    if found and (int(found[1]), int(found[2])) < TORCH:
        raise ImportError(f"{needed}, found {torch}: {line}")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _torch_version() -> str | None:
    try:
        import torch  # the rest of the library imports it next, so that this costs nothing
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None
    return torch.__version__


check_versions(tuple(sys.version_info[:2]), _torch_version() if sys.version_info >= PYTHON else None)
