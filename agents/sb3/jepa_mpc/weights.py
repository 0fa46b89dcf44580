"""A trained ``JEPAMPC`` as one safetensors file that anybody may load: weights and settings, nothing pickled."""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv, TrainFreq

from jepa_rl.agents.sb3.jepa_mpc.policy import JEPAMPCPolicy
from jepa_rl.control import ControlModel, load_control, save_control
from jepa_rl.files import naming
from jepa_rl.sources import differences
from jepa_rl.spaces import env_spaces, observed_spec, same_actions, source_of
from jepa_rl.types import JSON, WorldSpec, as_tuples

if TYPE_CHECKING:
    from jepa_rl.agents.sb3.jepa_mpc.algorithm import JEPAMPC

Agent = TypeVar("Agent", bound="JEPAMPC")

SEARCH = (
    "horizon", "samples", "elites", "iterations", "init_std", "temperature", "proposals", "terminal_value",
    "average_rate",
)  # fmt: skip
LEARNING = ("batch_size", "steps", "encoder_rate", "max_grad_norm", "gradient_steps", "seed")
KNOWN = {*SEARCH, *LEARNING, "learning_rate", "n_step", "train_freq"}


def save_weights(agent: JEPAMPC, path: str | Path) -> None:
    """Writes what acts, the averaged model, and the settings; atomic. See ``JEPAMPC.save_weights``."""
    freq, remaining = agent.train_freq, agent._current_progress_remaining
    assert isinstance(freq, TrainFreq), "SB3 converts it when it sets up the model"
    settings: JSON = {
        "search": {name: agent.policy.settings[name] for name in SEARCH},
        "learning": {name: getattr(agent, name) for name in LEARNING}
        | {
            "learning_rate": float(agent.lr_schedule(remaining)),
            "n_step": agent.n_step_now,
            "train_freq": [freq.frequency, freq.unit.value],
        },
        "updates": int(agent.policy.updates),
    }
    save_control(path, agent.policy.average, settings)


def load_weights(algorithm: type[Agent], path: str | Path, env: GymEnv | str, **changes: Any) -> Agent:
    """An agent with the weights and settings of a file, for an environment. See ``JEPAMPC.from_weights``."""
    model, settings = load_control(path)
    verbose = changes.get("verbose", 0)
    # As Stable-Baselines3 will show it: in a VecEnv, pictures with their channels first.
    venv = algorithm._wrap_env(maybe_make_env(env, verbose), verbose)
    check_environment(path, model.world.spec, venv)
    search = changes.pop("policy_kwargs", None) or {}
    if fixed := sorted(search.keys() & {"world", "control"}):
        raise ValueError(
            f"policy_kwargs may change the search, got {fixed}, which the weights of {path} fix; train another agent "
            "with JEPAMPC(...), and give it the world with policy.warm_start(path)"
        )
    with naming(path, "holds a control model and no settings of JEPAMPC that this version knows"):
        search = as_tuples(settings["search"]) | search
        learning, updates = as_tuples(settings["learning"]), int(settings["updates"])
        unknown = sorted((settings["search"].keys() | settings["learning"].keys()) - KNOWN)
    if unknown:
        raise ValueError(
            f"{path} has settings of a newer version: {unknown}; upgrade with pip install -U jepa-rl"
        )
    with naming(path, "holds settings that JEPAMPC refuses"):
        return _build(algorithm, model, venv, search, learning | changes, updates)


def _build(
    algorithm: type[Agent], model: ControlModel, venv: Any, search: JSON, learning: JSON, updates: int
) -> Agent:
    """The agent around a loaded model; its replay is made by the first call of ``learn``."""
    config = model.world.config
    world = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "spec"}
    settings: JSON = {"gamma": model.discount, "learning_starts": 0, **learning}
    agent = algorithm(
        JEPAMPCPolicy,
        venv,
        policy_kwargs={**search, "world": world, "control": model.config},
        _init_setup_model=False,
        **settings,
    )
    agent._setup_model()
    for part in (agent.policy.model, agent.policy.average):
        part.load_state_dict(model.state_dict())
    agent.policy.updates.fill_(updates)
    agent._n_updates = updates
    agent.policy.set_training_mode(False)  # world.encode would normalise by its batch; train() switches back
    return agent


def check_environment(path: str | Path, saved: WorldSpec, env: Any) -> None:
    """Compares an environment with the one that weights were trained in.

    Args:
        path: of the weights, for messages.
        saved: what the agent observed and how it acted.
        env: the environment at hand.

    Raises:
        ValueError: if it shows or takes something else.

    Warns:
        UserWarning: if it shows the same shapes, but makes its pictures in another way, or repeats actions otherwise.
    """
    found = env_spaces(env)
    spec = observed_spec(found.observation, found.action, found.frames)
    unlike = [
        f"{what} {then} then, {now} now"
        for what, then, now in (
            ("observations", saved.shapes, spec.shapes),
            ("stacked frames", saved.frames, spec.frames),
        )
        if then != now
    ]
    if not same_actions(saved.action, spec.action):
        unlike.append(f"actions {saved.action} then, {spec.action} now")
    how = differences(saved.source, source_of(env))
    if unlike:
        raise ValueError(
            f"{path} was trained in another environment: {'; '.join([*unlike, *how])}. Make the environment as it was "
            f"made then{f' ({saved.source})' if saved.source else ''}"
        )
    if how:
        warnings.warn(
            f"{path} was trained in an environment that was made otherwise: {'; '.join(how)}. Make it the same way, or "
            "let the agent go on learning in this one",
            stacklevel=4,
        )
