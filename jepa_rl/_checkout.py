"""Importing this, which ``jepa_rl`` does first, lets a clone of the repository import what an installed package has.

``agents/`` and ``envs/`` stand beside ``jepa_rl/`` there. A Python that starts in the clone takes that folder for
``jepa_rl``, whatever is installed, and would not find ``jepa_rl.agents``.
"""

from __future__ import annotations

import sys
from pathlib import Path

_BESIDE = Path(__file__).resolve().parent.parent
if all((_BESIDE / name).is_file() for name in ("setup.cfg", "agents/__init__.py", "envs/__init__.py")):
    sys.modules["jepa_rl"].__path__.append(str(_BESIDE))
