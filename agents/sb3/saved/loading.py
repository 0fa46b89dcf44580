"""Loads agents from Stable-Baselines3's zip files without executing anything in them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from jepa_rl.agents.sb3.droq import DropoutDQNPolicy, DroQPolicy
from jepa_rl.agents.sb3.saved.pickles import PickleError, read_pickle
from jepa_rl.agents.sb3.saved.rebuild import Rebuild, name_of
from jepa_rl.agents.sb3.saved.zip_file import SavedZip

Algorithm = TypeVar("Algorithm", bound=BaseAlgorithm)

PICKLED = ":serialized:"  # Stable-Baselines3's mark of a setting that is a pickle
NEEDED = {"policy_class", "policy_kwargs", "observation_space", "action_space", "use_sde", "verbose"}


class SafeLoading(BaseAlgorithm):
    """An algorithm of Stable-Baselines3 whose ``load`` and ``set_parameters`` execute nothing in a file.

    Attributes:
        known_classes: classes besides those of Stable-Baselines3 and torch that its files may name, such as a features
            extractor of a subclass. Their constructors are then called with what stands in a file.
    """

    known_classes: ClassVar[tuple[type, ...]] = ()

    @classmethod
    def load(
        cls,
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        trust: bool = False,
        **kwargs: Any,
    ) -> Self:
        """As in Stable-Baselines3, but nothing in the file is executed unless it is trusted.

        Stable-Baselines3 pickles the settings. Here the pickles are read as data, and the known settings (spaces,
        schedules, configurations, ...) are made anew by their constructors.

        Args:
            path, env, device, custom_objects, print_system_info, force_reset, **kwargs: as in Stable-Baselines3.
                ``custom_objects`` gives settings by name in place of those in the file, such as functions of your own.
            trust: True: unpickle the settings, which can execute anything. Only for files whose author you trust.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, holds settings that are not known, or no agent of this kind. Nothing has been
                executed then.
        """
        saved = SavedZip.read(path)
        settings = saved.settings()
        cls._check_settings(saved.name, settings)
        if not trust:
            saved.check_members()
            custom_objects = known_settings(cls, saved.name, settings, custom_objects)
        # Stable-Baselines3 unpickles only what is not among the custom objects.
        options: dict[str, Any] = dict(custom_objects=custom_objects, print_system_info=print_system_info)
        return super().load(saved.open(), env, device, force_reset=force_reset, **options, **kwargs)

    @classmethod
    def _check_settings(cls, name: str, settings: Mapping[str, Any]) -> None:
        """Refuses files by their settings; a subclass may.

        Args:
            name: of the file, for messages.
            settings: as the file has them, pickles as text.
        """

    def set_parameters(
        self,
        load_path_or_dict: Any,
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """As in Stable-Baselines3, which reads the weights alone; the file is checked as in ``load``."""
        if not isinstance(load_path_or_dict, dict):
            saved = SavedZip.read(load_path_or_dict)
            saved.check_members()
            load_path_or_dict = saved.open()
        super().set_parameters(load_path_or_dict, exact_match, device)


def load_agent(
    algorithm: type[Algorithm],
    path: str | Path | io.BufferedIOBase,
    env: GymEnv | None = None,
    *,
    trust: bool = False,
    custom_objects: dict[str, Any] | None = None,
    **options: Any,
) -> Algorithm:
    """``SafeLoading.load`` for any algorithm of Stable-Baselines3: ``load_agent(PPO, "agent.zip")``.

    Args:
        algorithm: class of the agent.
        path, env, trust, custom_objects: as there.
        **options: further arguments of the algorithm's ``load``.

    Raises:
        FileNotFoundError, ValueError: as there.
    """
    if issubclass(algorithm, SafeLoading):
        return algorithm.load(path, env, custom_objects=custom_objects, trust=trust, **options)
    saved = SavedZip.read(path)
    if not trust:
        saved.check_members()
        custom_objects = known_settings(algorithm, saved.name, saved.settings(), custom_objects)
    return algorithm.load(saved.open(), env, custom_objects=custom_objects, **options)


def known_settings(
    algorithm: type[BaseAlgorithm],
    name: str,
    settings: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All settings of a file that are pickled, as objects.

    Args:
        algorithm: class of the agent, whose policies and ``known_classes`` may be named.
        name: of the file, for messages.
        settings: as the file has them, pickles as text.
        given: objects by name; they take the place of those in the file.

    Raises:
        ValueError: if settings are missing, unknown or damaged, or would replace what an agent does.
    """
    given = dict(given or {})
    if missing := sorted(NEEDED - settings.keys() - given.keys()):
        raise ValueError(f"{name} holds no agent of Stable-Baselines3: {missing} are missing; save it again")
    # A name of an environment would be imported, and an attribute hides a method of the same name.
    foreign = [key for key in settings if key == "env" or callable(getattr(algorithm, key, None))]
    if foreign := sorted(set(foreign) - given.keys()):
        raise ValueError(
            f"{name} has settings that no agent saves: {foreign}. Pass the environment with env=; if you trust who "
            "wrote the file, load it with trust=True, which can execute anything in it"
        )
    ours = (*getattr(algorithm, "known_classes", ()), DroQPolicy, DropoutDQNPolicy)
    known = (*algorithm.policy_aliases.values(), *ours)
    pickled = {key: value for key, value in settings.items() if key not in given and is_pickled(value)}
    found, unknown = rebuilt(pickled, known)
    if unknown:
        raise ValueError(
            f"{name} has pickled settings that are not known, and unpickling can execute anything: "
            f"{in_words(unknown)}. Nothing was unpickled. Pass your own with custom_objects="
            f"{{{next(iter(unknown))!r}: ...}}; or, if you trust who wrote the file, load it with trust=True"
        )
    return found | given


def is_pickled(setting: Any) -> bool:
    """Whether Stable-Baselines3 would unpickle a setting."""
    return isinstance(setting, dict) and PICKLED in setting


def in_words(unknown: Mapping[str, str]) -> str:
    """Names of settings, each with the reason for which it is refused."""
    return "; ".join(f"{key!r}: {why}" for key, why in unknown.items())


def rebuilt(settings: Mapping[str, Any], known: Iterable[type] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings as Stable-Baselines3 writes them (``data_to_json``), with the pickled ones made anew.

    Args:
        settings: by name.
        known: classes that they may name, besides those of Stable-Baselines3 and torch.

    Returns:
        The settings; and of those that are unknown or damaged, and not among them, the reason.
    """
    make = Rebuild({name_of(kind): kind for kind in known})
    found: dict[str, Any] = {}
    unknown: dict[str, str] = {}
    for key, value in settings.items():
        try:
            found[key] = make(_pickle_of(value[PICKLED])) if is_pickled(value) else value
        except PickleError as error:
            unknown[key] = str(error)
    return found, unknown


def _pickle_of(text: Any) -> Any:
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise PickleError("it is no text in base64") from error
    return read_pickle(data)
