"""From an environment or its id to latents in one call."""

from __future__ import annotations

import os
from typing import Any

import gymnasium as gym

from jepa_rl.envs.wrappers.latent import LatentObservation, LoadedModel, load_model
from jepa_rl.envs.wrappers.pixels import PixelObservation
from jepa_rl.spaces import env_spaces, pixel_space
from jepa_rl.types import WorldSpec
from jepa_rl.world_model import WorldModel


def wrap(
    env_or_id: gym.Env | str,
    model: str | os.PathLike[str] | WorldModel,
    *,
    key: str | None = None,
    history: int = 1,
    append_state: bool = False,
    device: str = "cpu",
    **make_kwargs: Any,
) -> LatentObservation:
    """An environment that shows the latents of a world model.

    Makes the environment (with ``render_mode="rgb_array"``) if given its id, wraps it in ``PixelObservation`` with the
    size and number of frames that the model reads unless its observations have them, and encodes the pictures.

    Args:
        env_or_id: an environment, or its id for ``gymnasium.make``.
        model: a world model, such as ``JEPAMPC(...).world``, or the path of a saved one; the environment's ``spec`` can
            be written as JSON with a path alone.
        key: which entry of a Dict observation is the picture (see ``PixelObservation``).
        history, append_state, device: see ``LatentObservation``.
        **make_kwargs: passed on to ``gymnasium.make``.

    Raises:
        ValueError: as ``PixelObservation`` and ``LatentObservation``.
        TypeError: for ``make_kwargs`` with an environment; and as ``LatentObservation``.

    Warns:
        UserWarning: if both record how their pictures were made, and the environment makes them differently from those
            that the model was trained on (another id, argument, wrapper or action repeat).
    """
    encoder: WorldModel | LoadedModel
    if isinstance(model, WorldModel):
        encoder, spec = model, model.spec
    else:
        encoder = LoadedModel(os.fspath(model), load_model(model, device))
        spec = encoder.model.spec
    if spec.parts or spec.pixels is None:
        raise ValueError(
            f"the world model reads {dict(spec.shapes)}; wrap needs one of pictures alone, as "
            "world_spec(PixelObservation(...)) describes"
        )
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
    return LatentObservation(env, encoder, history, append_state, device)


def _is_ready(env: gym.Env, spec: WorldSpec, append_state: bool) -> bool:
    """Whether the environment already shows what the encoder reads."""
    observation, _, frames = env_spaces(env)
    try:
        pixels = pixel_space(observation).shape
    except ValueError:
        return False
    has_state = isinstance(observation, gym.spaces.Dict) and "state" in observation.spaces
    return pixels == spec.pixels and frames == spec.frames and (has_state or not append_state)
