"""Compares how two environments make their observations, as ``WorldSpec.source`` records it."""

from __future__ import annotations

import json
from typing import Any

from jepa_rl.spaces import default_arguments

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
    found += _differing(old_arguments, new_arguments, default_arguments(old_id), default_arguments(new_id))
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
