"""The whole way from an environment's id to latents, in one call."""

from __future__ import annotations

import os
from typing import Any

import gymnasium as gym

from jepa_rl.envs.wrappers.latent import LatentObservation, load_encoder
from jepa_rl.envs.wrappers.pixels import PixelObservation
from jepa_rl.spaces import env_spaces, pixel_space
from jepa_rl.types import WorldSpec


def wrap(
    env_or_id: gym.Env | str,
    checkpoint: str | os.PathLike[str],
    *,
    key: str | None = None,
    history: int = 1,
    append_state: bool = False,
    **make_kwargs: Any,
) -> LatentObservation:
    """An environment that shows the latents of a saved world model.

    Makes the environment (with ``render_mode="rgb_array"``) if given its id, gives it pictures of the size
    and the number of frames that the model reads unless it shows them already, and encodes them.

    Args:
        env_or_id: an environment, or its id for ``gymnasium.make``.
        checkpoint: path of a saved world model.
        key: which entry of a Dict observation is the picture (see ``PixelObservation``).
        history, append_state: see ``LatentObservation``.
        **make_kwargs: passed on to ``gymnasium.make``.

    Raises:
        As ``PixelObservation`` and ``LatentObservation``; TypeError for ``make_kwargs`` with an environment.
    """
    spec = load_encoder(os.fspath(checkpoint)).spec
    if isinstance(env_or_id, str):
        env = gym.make(env_or_id, **{"render_mode": "rgb_array"} | make_kwargs)
    elif make_kwargs:
        raise TypeError(
            f"{sorted(make_kwargs)} go to gymnasium.make: pass the environment's id, not {env_or_id}"
        )
    else:
        env = env_or_id
    if not _is_ready(env, spec, append_state):
        gray = spec.pixels[0] == spec.frames
        env = PixelObservation(env, spec.pixels[1], spec.frames, gray, key, keep_state=append_state)
    return LatentObservation(env, checkpoint, history=history, append_state=append_state)


def _is_ready(env: gym.Env, spec: WorldSpec, append_state: bool) -> bool:
    """Whether the environment already shows what the encoder reads."""
    observation, _, frames = env_spaces(env)
    try:
        pixels = pixel_space(observation).shape
    except ValueError:
        return False
    has_state = isinstance(observation, gym.spaces.Dict) and "state" in observation.spaces
    return pixels == spec.pixels and frames == spec.frames and (has_state or not append_state)
