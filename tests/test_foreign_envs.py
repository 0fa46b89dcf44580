"""Other people's environments: pictures, latents and both checkers on each of them."""

import os
import subprocess
import sys

# Before pygame is first used; without it box2d's and Atari's windows look for a display and a sound card.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import AtariPreprocessing, FilterObservation, FrameStackObservation
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from jepa_rl.envs import LatentObservation, PixelObservation, world_spec, wrap
from jepa_rl.envs.gl import find_backend
from jepa_rl.world_model import WorldModel, WorldModelConfig


def make(env_id, **kwargs):
    return gym.make(env_id, **{"render_mode": "rgb_array"} | kwargs)


def atari(env_id, **kwargs):
    ale_py = pytest.importorskip("ale_py")
    gym.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return make(env_id, **kwargs)


def minigrid(*wrappers):
    pytest.importorskip("minigrid")
    import minigrid.wrappers

    env = make("MiniGrid-Empty-5x5-v0")
    for wrapper in wrappers:
        env = getattr(minigrid.wrappers, wrapper)(env)
    return env


def preprocessed_atari(**stacking):
    env = AtariPreprocessing(atari("ALE/Pong-v5", frameskip=1), grayscale_newaxis=bool(stacking))
    return FrameStackObservation(env, 4) if stacking.get("stack") else env


WORLDS = {
    "CartPole": lambda: PixelObservation(make("CartPole-v1")),
    "Pendulum": lambda: PixelObservation(make("Pendulum-v1"), keep_state=True),
    "Acrobot": lambda: PixelObservation(make("Acrobot-v1"), grayscale=True),
    "MountainCarContinuous": lambda: PixelObservation(make("MountainCarContinuous-v0")),
    "FrozenLake": lambda: PixelObservation(make("FrozenLake-v1"), keep_state=True),
    "CarRacing": lambda: PixelObservation(make("CarRacing-v3")),
    "MiniGrid rendered": lambda: PixelObservation(minigrid()),
    "MiniGrid FullyObs": lambda: PixelObservation(minigrid("FullyObsWrapper"), key="image"),
    "MiniGrid RGBImgObs": lambda: PixelObservation(
        FilterObservation(minigrid("RGBImgObsWrapper"), ["image", "direction"]), key="image", keep_state=True
    ),
    "MiniGrid ImgObs": lambda: PixelObservation(minigrid("RGBImgPartialObsWrapper", "ImgObsWrapper")),
    "Atari": lambda: PixelObservation(atari("ALE/Pong-v5")),
    "Atari gray": lambda: PixelObservation(preprocessed_atari()),
    "Atari stacked": lambda: PixelObservation(preprocessed_atari(stack=True), frames=1),
    "Atari memory, rendered": lambda: PixelObservation(atari("ALE/Pong-v5", obs_type="ram")),
}
SHAPES = {
    "Acrobot": (3, 64, 64),
    "Atari gray": (3, 64, 64),
    "Atari stacked": (4, 64, 64),
}
MUJOCO = ["InvertedPendulum-v5", "Reacher-v5"]


def latent(env):
    """The environment behind an untrained world model made for it."""
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(world_spec(env), latent_dim=8)).eval()
    return LatentObservation(env, model, append_state=isinstance(env.observation_space, gym.spaces.Dict))


def check(make_env, shape):
    env = make_env()
    observation, _ = env.reset(seed=0)
    pixels = observation["pixels"] if isinstance(observation, dict) else observation
    assert pixels.shape == shape and pixels.dtype == np.uint8
    assert pixels.std() > 1, "the picture is blank"
    picture = env.render()
    assert picture is not None and picture.shape[2] == 3
    env.close()
    # MiniGrid's own wrappers record no arguments, so their specs cannot be made again.
    remakes = all(wrapper.kwargs is not None for wrapper in env.spec.additional_wrappers)
    check_env(make_env(), skip_render_check=not remakes, skip_close_check=not remakes)
    check_env_sb3(make_env())
    env = latent(make_env())
    check_env(env, skip_render_check=True, skip_close_check=True)
    check_env_sb3(env)


@pytest.mark.parametrize("name", WORLDS)
def test_pictures_latents_and_both_checkers(name):
    check(WORLDS[name], SHAPES.get(name, (9, 64, 64)))


@pytest.fixture
def opengl():
    """Skips where no OpenGL library works, unless the run insists on one."""
    pytest.importorskip("mujoco")
    try:
        find_backend()
    except DependencyNotInstalled as error:
        if os.environ.get("JEPA_RL_REQUIRE_GL") == "1":
            raise
        pytest.skip(str(error))


@pytest.mark.gl
@pytest.mark.parametrize("env_id", MUJOCO)
def test_gymnasium_mujoco(opengl, env_id):
    check(lambda: PixelObservation(make(env_id), keep_state=True), (9, 64, 64))


@pytest.mark.gl
def test_gymnasium_mujoco_renders_without_a_display_or_settings(opengl):
    """In a fresh process: the first import of a rendering library decides for all."""
    unset = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")
    }
    code = (
        "import gymnasium as gym, os; from jepa_rl.envs import PixelObservation\n"
        "env = PixelObservation(gym.make('Reacher-v5', render_mode='rgb_array'))\n"
        "print(env.reset(seed=0)[0].std() > 1, 'MUJOCO_GL' in os.environ)"
    )
    run = subprocess.run([sys.executable, "-c", code], env=unset, capture_output=True, text=True, timeout=60)
    assert run.stdout.split() == ["True", "False"], run.stderr


def test_an_opengl_library_that_cannot_be_used_is_named(monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setenv("PYOPENGL_PLATFORM", "abacus")
    env = PixelObservation(make("Reacher-v5"))
    with pytest.raises(DependencyNotInstalled, match=r"egl.*abacus"):
        env.reset()
    assert "MUJOCO_GL" not in os.environ


def test_wrap_takes_any_of_them_by_id(tmp_path):
    for env_id in ("Pendulum-v1", "CarRacing-v3"):
        env = PixelObservation(make(env_id), size=32, frames=2)
        WorldModel(WorldModelConfig(world_spec(env), latent_dim=4)).save(tmp_path / "model.safetensors")
        latents = wrap(env_id, tmp_path / "model.safetensors")
        latents.reset(seed=0)
        assert latents.step(latents.action_space.sample())[0].shape == (4,)
