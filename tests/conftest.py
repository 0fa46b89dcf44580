"""Shared by the suite: annotations are checked while tests run; ``gl`` tests say so where there is no OpenGL."""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import hypothesis
import jaxtyping
import pytest
from beartype import beartype
from gymnasium.error import DependencyNotInstalled


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """What every function and dataclass of jepa_rl goes through while tests run: beartype, for arrays and tensors.

    Whether other types are right is for mypy to say.
    """
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if _holds_arrays(hint)}
    if not function.__annotations__:
        return function
    strict = beartype(function)

    @functools.wraps(function)
    def counted(*args: Any, **options: Any) -> Any:
        global calls
        calls += 1
        if calls == CALLS:
            jaxtyping.config.update("jaxtyping_disable", True)
        return strict(*args, **options)

    return counted


CALLS = 1500  # checked in one test; trainings, which repeat themselves, took twice as long with all of them checked
calls = 0


@pytest.fixture(autouse=True)
def annotations_are_checked(disabled: bool = jaxtyping.config.jaxtyping_disable) -> None:
    """Each test has its own first calls checked."""
    global calls
    calls = 0
    jaxtyping.config.update("jaxtyping_disable", disabled)


def _holds_arrays(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_holds_arrays, get_args(hint)))


# Shapes and dtypes of every call in the numeric rooms are held against the annotations; users pay nothing for it. A
# checked call costs about 40 microseconds, so that rooms with many calls and few arrays are left out.
# JAXTYPING_DISABLE=1 turns it off.
MODELS = (
    "types",
    "specs",
    "batches",
    "encoders",
    "dynamics",
    "objectives",
    "heads",
    "costs",
    "risk",
    "world_model",
    "control",
)
NUMERIC = (*MODELS, "data", "training", "diagnostics", "agents.planners", "agents.futures", "agents.inverse")
sys.modules["annotation_checks"] = sys.modules[__name__]  # a name that checked modules can import
# It must stand before jepa_rl is imported anywhere.
jaxtyping.install_import_hook([f"jepa_rl.{room}" for room in NUMERIC], "annotation_checks.checked")

from jepa_rl.envs.gl import find_backend  # noqa: E402
from jepa_rl.testing import planners  # noqa: E402


@contextmanager
def unchecked() -> Iterator[None]:
    """Annotations are not checked inside: what is tested there is our own refusal, in our words."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def without_annotation_checks() -> Iterator[None]:
    """For what torch.compile traces: it cannot look into the checks."""
    with unchecked():
        yield


def _raises(raises: Callable[..., Any] = pytest.raises) -> Callable[..., Any]:
    @contextmanager
    def unchecked_raises(*args: Any, **options: Any) -> Iterator[Any]:
        with unchecked(), raises(*args, **options) as caught:
            yield caught

    return unchecked_raises


# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

pytest.raises = _raises()
planners.assert_raises = unchecked()(planners.assert_raises)


@pytest.fixture(scope="module", autouse=True)
def _garbage_is_collected_in_its_own_file() -> Iterator[None]:
    """Finalizers run code and warn: not in the tests of another file."""
    yield
    gc.collect()


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
