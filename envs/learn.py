"""A world model of any environment in one call: random play, joint training, refining."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from jepa_rl.checks import check_whole
from jepa_rl.data import EpisodeStore, WindowSampler
from jepa_rl.diagnostics import world_model_evaluation
from jepa_rl.envs.collect import collect
from jepa_rl.envs.policies import SmoothRandomPolicy
from jepa_rl.envs.wrappers.pixels import PixelObservation
from jepa_rl.files import open_run, write_atomic
from jepa_rl.presets import preset as world_preset
from jepa_rl.spaces import env_spaces, pixel_space, world_spec
from jepa_rl.training.loop import fit
from jepa_rl.training.refine import REFINE, refine_dynamics
from jepa_rl.world_model import WorldModel

REFINE_STEPS = (
    6  # latent steps of the windows that the dynamics are refined on, where episodes are long enough
)


def learn_world_model(
    env: gym.Env | str,
    out: str | Path,
    *,
    frames: int = 3,
    block: int = 1,
    preset: str = "agent",
    steps: int = 20_000,
    updates: int | None = None,
    refine_updates: int = 2_000,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
) -> WorldModel:
    """Collects random play, trains a preset on it, then the dynamics alone; no reward, no labels.

    The defaults suit what feeds an agent: three pictures, since one shows no speeds, and a latent step for each
    environment step. For planning far ahead where nothing has a speed, ``frames=1, block=5, preset="laptop"``. A call
    that was stopped goes on where it stopped; one that had finished returns its model at once. The steps are those of
    ``collect``, ``preset``, ``fit`` and ``refine_dynamics``: call these where you need other settings.

    Args:
        env: an environment that shows pictures or renders them (``render_mode="rgb_array"``), or its id. Its episodes
            must end. It is wrapped in ``PixelObservation`` (64 x 64) unless its observations are stacked uint8
            pictures already.
        out: folder of the run; afterwards ``model.safetensors`` in it is the world model, ``episodes/`` the data,
            and ``joint/`` and ``refined/`` hold TensorBoard events. It knows an environment by its id or class:
            after a change inside it pass ``resume=False`` or another folder.
        frames: pictures in an observation.
        block: environment steps in a latent step.
        preset: name in ``WORLD_PRESETS``.
        steps: environment steps of random play.
        updates: of encoder and dynamics together; None: as many as the preset says.
        refine_updates: of the dynamics alone, on latents of the frozen encoder; 0 leaves that out.
        seed: of everything that is drawn.
        resume: go on with the run in ``out``; False deletes it first.
        progress: show progress bars.

    Returns:
        The world model, in evaluation mode.

    Raises:
        ValueError: a count is below 1 (``refine_updates``: 0); ``out`` holds a run with other settings; random play
            gave a single episode; there is no preset of that name; and as ``PixelObservation``, ``collect`` and
            ``WindowSampler``.

    Warns:
        UserWarning: the last evaluation on held-out episodes (a tenth of them) found a collapse.
    """
    check_whole(steps=steps, **({} if updates is None else {"updates": updates}))
    check_whole(least=0, refine_updates=refine_updates)
    out, made = Path(out), isinstance(env, str)
    if isinstance(env, str):
        env = gym.make(env, render_mode="rgb_array")
    with env if made else nullcontext():
        shown = env if _shows_stacked_pictures(env) else PixelObservation(env, size=64, frames=frames)
        spec = world_spec(shown, block)
        config, training, window = world_preset(preset, spec)
        training = replace(training, steps=training.steps if updates is None else updates, seed=seed)
        settings = {
            "source": spec.source,
            "environment": type(shown.unwrapped).__qualname__,  # one that is not registered has no source
            "actions": str(env.action_space),
            "frames": spec.frames,
            "block": block,
            "preset": preset,
            "steps": steps,
            "seed": seed,
            "updates": training.steps,
            "refine_updates": refine_updates,
        }
        open_run(out, settings, resume=resume)
        store = _random_play(shown, out / "episodes", steps, seed, progress)
    if len(store) < 2:
        raise ValueError(
            f"random play of {steps} steps is one episode, but a tenth of the episodes is held out: give the "
            "environment a time limit (gymnasium.wrappers.TimeLimit), or collect more steps; then pass resume=False"
        )
    train, held_out = store.split(0.1, seed=seed)
    torch.manual_seed(seed)
    model = WorldModel(config)
    evaluate = world_model_evaluation(WindowSampler(held_out, window, block), seed=seed)
    sampler = WindowSampler(train, window, block)
    trained = fit(model, sampler, training, out / "joint", evaluate=evaluate, progress=progress)
    if refine_updates:
        longest = min(REFINE_STEPS, int(np.median(train.lengths)) // block)
        refining = replace(REFINE, steps=refine_updates, seed=seed)
        refine_dynamics(
            model, train, out / "refined", steps=max(window, longest), config=refining, progress=progress
        )
    model.save(out / "model.safetensors")
    found = {
        "episodes": len(store),
        "steps": store.num_steps,
        "alarms": [alarm for _, alarm in trained.alarms],
    }
    write_atomic(out / "results.json", json.dumps(found, indent=2).encode())
    for step, alarm in trained.alarms:
        if step == training.steps:
            warnings.warn(f"the world model in {out} is of little use: {alarm}", stacklevel=2)
    return model


def _shows_stacked_pictures(env: gym.Env) -> bool:
    """Whether the observations are what ``PixelObservation`` makes; its ``metadata["frames"]`` says so."""
    if "frames" not in env.metadata:
        return False
    try:
        pixel_space(env_spaces(env).observation)
    except ValueError:
        return False
    return True


def _random_play(env: gym.Env, path: Path, steps: int, seed: int, progress: bool) -> EpisodeStore:
    """Episodes of smooth random actions, which get farther than white noise; those of a stopped run are kept."""
    there = 0
    if (path / "store.json").exists():
        store = EpisodeStore.open(path)
        if (there := store.num_steps) >= steps:
            return store
    policy = SmoothRandomPolicy(world_spec(env).action, 1)
    return collect(env, path, policy=policy, steps=steps - there, seed=seed + there, progress=progress)
