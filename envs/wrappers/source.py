"""Compares how an environment makes its pictures with how a model's training pictures were made."""

from __future__ import annotations

from typing import Any

from jepa_rl.envs.wrappers.warn import warn_caller
from jepa_rl.sources import differences
from jepa_rl.spaces import source_of
from jepa_rl.types import WorldSpec


def warn_of_differences(encoder: Any, env: Any) -> None:
    """Warns if an environment makes its pictures differently from those that an encoder was trained on.

    Args:
        encoder: nothing is compared unless its ``spec`` records the source of its pictures.
        env: environment, Gymnasium vector environment or Stable-Baselines3 ``VecEnv``; nothing is compared if
            it does not record how it was made.

    Warns:
        UserWarning: names every difference.
    """
    spec = getattr(encoder, "spec", None)  # a user's encoder need not have a spec
    found = differences(spec.source, source_of(env)) if isinstance(spec, WorldSpec) else []
    if found:
        warn_caller(
            "the encoder learned from pictures that were made otherwise: "
            + "; ".join(found)
            + ". Its latents mean what they meant there; make the environment the same way, or train on this one"
        )
