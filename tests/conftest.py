"""Shared by the suite: tests marked ``gl`` need OpenGL, and say so where there is none."""

from __future__ import annotations

import os

import pytest
from gymnasium.error import DependencyNotInstalled

from jepa_rl.envs.gl import find_backend


@pytest.fixture(scope="session")
def missing_gl() -> str | None:
    """Why pictures of dm_control cannot be rendered here, or None if they can."""
    try:
        import dm_control  # noqa: F401

        find_backend()
    except (ImportError, DependencyNotInstalled) as error:
        return str(error)
    return None


@pytest.fixture(autouse=True)
def _gl_or_skip(request: pytest.FixtureRequest) -> None:
    """Skip ``@pytest.mark.gl`` tests without OpenGL; fail them where JEPA_RL_REQUIRE_GL=1 (as in CI)."""
    if request.node.get_closest_marker("gl") is None:
        return
    reason = request.getfixturevalue("missing_gl")
    if reason is not None and os.environ.get("JEPA_RL_REQUIRE_GL") == "1":
        pytest.fail(f"JEPA_RL_REQUIRE_GL=1, but {reason}")
    if reason is not None:
        pytest.skip(reason)
