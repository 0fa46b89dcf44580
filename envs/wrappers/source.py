"""Compares how an environment makes its pictures with how a model's training pictures were made."""

from __future__ import annotations

import inspect
import json
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from jepa_rl.envs.wrappers.warn import warn_caller
from jepa_rl.spaces import source_of
from jepa_rl.types import WorldSpec

# Wrappers and arguments that change neither pictures nor their sequence.
NO_PICTURES = {
    "Autoreset",
    "ClipAction",
    "ClipReward",
    "FreshObservation",
    "GoalObservation",
    "LatentObservation",
    "Monitor",
    "NormalizeReward",
    "OrderEnforcing",
    "PassiveEnvChecker",
    "RecordEpisodeStatistics",
    "RecordVideo",
    "RescaleAction",
    "TimeLimit",
    "TransformReward",
}
NO_ARGUMENTS = {
    "keep_state",
    "max_episode_steps",
    "num_envs",
    "render_mode",
    "vector_kwargs",
    "vectorization_mode",
    "wrappers",
}


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


def differences(learned: str, present: str) -> list[str]:
    """Differences between the ways in which two environments make pictures, in words.

    Args:
        learned, present: as ``jepa_rl.spaces.source_of`` gives them; empty if unknown.
    """
    if not learned or not present:
        return []
    (old_id, old_arguments, *_), *old_wrappers = json.loads(learned)
    (new_id, new_arguments, *_), *new_wrappers = json.loads(present)
    found = [] if old_id == new_id else [f"environment {old_id!r} then, {new_id!r} now"]
    found += _differing(old_arguments, new_arguments, _defaults(old_id), _defaults(new_id))
    if "wrappers" in old_arguments or "wrappers" in new_arguments:
        return found  # of gymnasium.make_vec: functions, which cannot be compared
    return found + _differing_wrappers(old_wrappers, new_wrappers)


def _differing(
    old: dict[str, Any], new: dict[str, Any], old_defaults: dict[str, Any], new_defaults: dict[str, Any]
) -> list[str]:
    found = []
    for name in sorted((old.keys() | new.keys()) - NO_ARGUMENTS):
        then = old.get(name, old_defaults.get(name))
        now = new.get(name, new_defaults.get(name))
        if then != now:
            found.append(f"{name}={then!r} then, {name}={now!r} now")
    return found


def _differing_wrappers(old: list[Any], new: list[Any]) -> list[str]:
    then = [(name, arguments) for name, arguments in old if name not in NO_PICTURES]
    now = [(name, arguments) for name, arguments in new if name not in NO_PICTURES]
    if [name for name, _ in then] != [name for name, _ in now]:
        return [f"wrappers {_listed(then)} then, {_listed(now)} now"]
    found = []
    for (name, old_arguments), (_, new_arguments) in zip(then, now, strict=True):
        found += [f"{name}: {words}" for words in _differing(old_arguments, new_arguments, {}, {})]
    return found


def _listed(wrappers: list[tuple[str, dict[str, Any]]]) -> str:
    def words(name: str, arguments: dict[str, Any]) -> str:
        return f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items() if k not in NO_ARGUMENTS)})"

    return "[" + ", ".join(words(*wrapper) for wrapper in wrappers) + "]"


def _defaults(env_id: str) -> dict[str, Any]:
    """Default arguments of an environment, as JSON; empty if they are unknown."""
    spec = gym.registry.get(env_id)
    if spec is None or spec.entry_point is None:
        return {}
    try:
        creator = spec.entry_point if callable(spec.entry_point) else load_env_creator(spec.entry_point)
        parameters = inspect.signature(creator).parameters
    except (ImportError, AttributeError, TypeError, ValueError):
        return {}
    given = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return json.loads(json.dumps(given | dict(spec.kwargs), default=lambda value: type(value).__qualname__))
