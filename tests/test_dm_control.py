"""The dm_control adapter: contracts with Gymnasium and Stable-Baselines3, and both looks of its pictures."""

from __future__ import annotations

import ctypes.util
import os
import pickle
import subprocess
import sys

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ClosedEnvironmentError, DependencyNotInstalled, ResetNeeded
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from jepa_rl.envs import gl
from jepa_rl.envs.dm_control import TASKS, DMControlEnv, register_dm_control

pytest.importorskip("dm_control", reason='needs pip install "jepa-rl[dmc]"')
register_dm_control()
# Scalar observations (finger), a matrix (manipulator), no limit on actions (lqr), plain (reacher).
VARIED = ["finger-turn_easy", "manipulator-bring_ball", "lqr-lqr_2_1", "reacher-easy"]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, where nothing has been imported or rendered yet."""
    kept = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def rollout(env: gym.Env, seed: int | None, steps: int = 20) -> list[np.ndarray]:
    observation, _ = env.reset(seed=seed)
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, *env.action_space.shape))
    return [observation] + [env.step(action)[0] for action in actions]


# The suite


def test_the_written_down_tasks_are_those_of_the_suite():
    with gl.backend_environment():
        from dm_control import suite

    assert {(domain, task) for domain, tasks in TASKS.items() for task in tasks} == set(suite.ALL_TASKS)


def test_registering_and_importing_load_no_simulator():
    done = run_python(
        "import sys, gymnasium as gym; from jepa_rl.envs.dm_control import register_dm_control\n"
        "register_dm_control(); register_dm_control()\n"
        "assert 'dmc/dog-fetch-v0' in gym.registry\n"
        "print([m for m in ('dm_control', 'mujoco', 'OpenGL') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


# Contracts


@pytest.mark.parametrize("name", VARIED)
def test_state_environments_pass_both_checkers(name):
    env = gym.make(f"dmc/{name}-v0")
    check_env(env.unwrapped, skip_render_check=True)
    sb3_check_env(env)
    observation, info = env.reset(seed=0)
    assert observation.dtype == np.float32 and observation.ndim == 1
    assert env.action_space.is_bounded() and np.abs(env.action_space.high).max() <= 2
    assert info["state"].dtype == np.float64 and len(info["qpos"]) == env.unwrapped.physics.model.nq
    env.close()


@pytest.mark.gl
@pytest.mark.parametrize("name", ["reacher-easy", "ball_in_cup-catch"])
def test_pixel_environments_pass_both_checkers(name):
    options = {"observation": "pixels", "render": "fast", "size": 48, "render_mode": "rgb_array"}
    env = gym.make(f"dmc/{name}-v0", **options)
    check_env(env.unwrapped)
    env = gym.make(f"dmc/{name}-v0", **options)
    sb3_check_env(env)
    assert env.reset(seed=0)[0].shape == (48, 48, 3)
    assert env.render().shape == (240, 240, 3)
    env.close()


@pytest.mark.parametrize("name", ["reacher-easy", "lqr-lqr_2_1"])
def test_equal_seeds_give_equal_runs_and_others_do_not(name):
    env, other = gym.make(f"dmc/{name}-v0"), gym.make(f"dmc/{name}-v0")
    first, again = rollout(env, 7), rollout(other, 7)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, rollout(env, 8))
    unseeded = rollout(other, None)
    assert not np.array_equal(first, unseeded), "reset() without a seed must go on, not start over"
    rollout(env, 7)
    np.testing.assert_array_equal(unseeded, rollout(env, None))


def test_the_time_limit_truncates_at_1000_steps():
    env = gym.make("dmc/cartpole-balance-v0")
    assert env.spec.max_episode_steps == 1000
    env.reset(seed=0)
    action = np.zeros(1, np.float32)
    ends = [env.step(action)[2:4] for _ in range(1000)]
    assert ends[:-1] == [(False, False)] * 999 and ends[-1] == (False, True)


def test_a_task_that_ends_terminates_and_needs_a_reset():
    env = DMControlEnv("lqr", "lqr_2_1")
    env.reset(seed=0)
    env.set_state(np.zeros_like(env.get_state()))  # at rest in the middle: lqr is solved
    _, _, terminated, truncated, _ = env.step(np.zeros(1))
    assert terminated and not truncated
    with pytest.raises(ResetNeeded, match=r"reset\(\) before step"):
        env.step(np.zeros(1))


def test_spec_survives_json():
    env = gym.make("dmc/walker-walk-v0", render="fast", observation="pixels", size=32)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.observation_space == env.observation_space
    assert again.unwrapped._fast


def test_pickling_keeps_the_arguments():
    env = DMControlEnv("finger", "spin", size=32, observation="pixels")
    for copy in (pickle.loads(pickle.dumps(env)), cloudpickle.loads(cloudpickle.dumps(env))):
        assert copy.observation_space == env.observation_space


@pytest.mark.gl
def test_worker_processes_render():
    def make() -> gym.Env:
        return DMControlEnv("reacher", "easy", observation="pixels", render="fast", render_mode="rgb_array")

    venv = gym.vector.AsyncVectorEnv([make, make], context="forkserver")
    try:
        observations, _ = venv.reset(seed=[1, 2])
        assert observations.shape == (2, 64, 64, 3)
        assert not np.array_equal(observations[0], observations[1])
    finally:
        venv.close()


@pytest.mark.gl
def test_a_fork_after_rendering_is_refused_instead_of_hanging():
    done = run_python(
        "import os\n"
        "from jepa_rl.envs.dm_control import DMControlEnv\n"
        "env = DMControlEnv('cartpole', 'balance', render='fast', render_mode='rgb_array')\n"
        "env.reset(); env.render()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    for e in (env, DMControlEnv('cartpole', 'balance', render_mode='rgb_array')):\n"
        "        try: e.reset(); e.render()\n"
        "        except RuntimeError as error: print('refused:', 'forkserver' in str(error), flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
    )
    assert done.stdout.split("\n")[:2] == ["refused: True"] * 2, done.stderr


# State in and out


def test_set_state_brings_back_observation_and_future():
    env = DMControlEnv("walker", "walk")
    rollout(env, 3)
    state, action = env.get_state(), np.full(6, 0.3)
    here = env.set_state(state)
    then = [env.step(action)[0] for _ in range(5)]
    np.testing.assert_array_equal(env.set_state(state), here)
    np.testing.assert_array_equal([env.step(action)[0] for _ in range(5)], then)
    np.testing.assert_array_equal(env.set_state(state), here)
    np.testing.assert_array_equal(env.get_state(), state)


# Pictures


@pytest.mark.gl
@pytest.mark.parametrize("name", ["cartpole-swingup", "ball_in_cup-catch", "walker-walk"])
def test_default_pictures_are_dm_controls_and_fast_ones_show_the_same_scene(name):
    looks = {}
    for look in ("default", "fast"):
        env = gym.make(f"dmc/{name}-v0", render=look, render_mode="rgb_array", render_size=64)
        env.reset(seed=5)
        looks[look] = env.render()
        reference = env.unwrapped.physics.render(64, 64, camera_id=0)
        body = env.unwrapped.physics.render(64, 64, camera_id=0, segmentation=True)[..., 0]
        planes = np.flatnonzero(env.unwrapped.physics.model.geom_type == 0)
        foreground = (body >= 0) & ~np.isin(body, planes)
        np.testing.assert_array_equal(env.render(), looks[look], err_msg="two renderers disturb each other")
        env.close()
    np.testing.assert_array_equal(looks["default"], reference)
    assert not np.array_equal(looks["fast"], looks["default"])
    # The bodies, unlike sky and shadow, are lit alike in both looks.
    difference = np.abs(looks["fast"].astype(int) - looks["default"]).mean(-1)
    assert foreground.sum() > 20
    assert np.median(difference[foreground]) < 25


@pytest.mark.gl
def test_cameras_can_be_chosen():
    pictures = []
    for camera in (0, 1, "fixed", -1):
        env = DMControlEnv("cartpole", "balance", camera=camera, render="fast", render_mode="rgb_array")
        env.reset(seed=0)
        pictures.append(env.render())
        env.close()
    np.testing.assert_array_equal(pictures[0], pictures[2])
    assert not np.array_equal(pictures[0], pictures[1])
    for camera in (7, "nowhere"):
        env = DMControlEnv("cartpole", "balance", camera=camera, render_mode="rgb_array")
        env.reset()
        with pytest.raises(ValueError, match="fixed"):
            env.render()


@pytest.mark.gl
def test_terrain_that_changes_per_episode_is_shown():
    pictures = []
    for seeds in ([0, 1], [1]):
        env = DMControlEnv("quadruped", "escape", render="fast", render_size=64, render_mode="rgb_array")
        for seed in seeds:
            env.reset(seed=seed)
            pictures.append(env.render())
        env.close()
    first, second, second_afresh = pictures
    np.testing.assert_array_equal(second, second_afresh)
    assert not np.array_equal(first, second)


@pytest.mark.gl
@pytest.mark.parametrize("backend", ["egl", "osmesa"])
def test_each_backend_renders_and_leaves_quietly(backend):
    if backend == "egl" and not gl._egl_works():
        pytest.skip("no EGL device here")
    if backend == "osmesa" and ctypes.util.find_library("OSMesa") is None:
        pytest.skip("no libOSMesa here")
    done = run_python(
        "from jepa_rl.envs.dm_control import DMControlEnv\n"
        "env = DMControlEnv('reacher', 'easy', 'pixels', 'fast')\n"
        "print(env.reset(seed=0)[0].mean() > 1)",  # and no close()
        MUJOCO_GL=backend,
    )
    assert done.stdout.strip() == "True", done.stderr
    assert "Traceback" not in done.stderr and "Error" not in done.stderr


@pytest.mark.gl
def test_rendering_works_where_dm_control_was_imported_first():
    done = run_python(
        "from dm_control import suite\n"  # without MUJOCO_GL it settles for GLFW, screen or not
        "from jepa_rl.envs.dm_control import DMControlEnv\n"
        "print(DMControlEnv('reacher', 'easy', 'pixels', 'fast').reset(seed=0)[0].mean() > 1)"
    )
    assert done.stdout.strip() == "True", done.stderr


# Without OpenGL


def test_without_gl_the_error_says_what_to_install(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(DependencyNotInstalled, match=r"apt-get install libegl1 .*libosmesa6"):
        gl.find_backend()
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(DependencyNotInstalled, match=r"tried egl.*apt-get"):
        gl.find_backend()
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(DependencyNotInstalled, match="'osmesa' or 'glfw', got 'vulkan'"):
        gl.find_backend()


def test_without_gl_states_work_and_pictures_say_why_not():
    done = run_python(
        "import ctypes.util; ctypes.util.find_library = lambda name: None\n"
        "from gymnasium.error import DependencyNotInstalled\n"
        "from jepa_rl.envs.dm_control import DMControlEnv\n"
        "env = DMControlEnv('reacher', 'easy', render_mode='rgb_array')\n"
        "env.reset(seed=0); env.step(env.action_space.sample()); print('states work')\n"
        "try: env.render()\n"
        "except DependencyNotInstalled as error: print('apt-get install libegl1' in str(error))\n"
    )
    assert done.stdout.split("\n")[:2] == ["states work", "True"], done.stderr


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain": "reacher", "task": "middling"}, r"tasks of 'reacher' are \('easy', 'hard'\)"),
        ({"domain": "reachr", "task": "easy"}, "'reacher'"),
        ({"observation": "image"}, r"observation must be one of \('state', 'pixels'\), got 'image'"),
        ({"render": "quick"}, "render must be one of"),
        ({"render_mode": "human"}, "render_mode must be one of"),
        ({"size": 0}, "size must be a positive whole number of pixels, got 0"),
        ({"render_size": 64.0}, "render_size must be"),
    ],
)
def test_wrong_arguments_name_the_right_ones(arguments, message):
    with pytest.raises(ValueError, match=message):
        DMControlEnv(**{"domain": "reacher", "task": "easy"} | arguments)


def test_use_at_the_wrong_time_is_named():
    env = DMControlEnv("cartpole", "balance", render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match="the episode is new"):
        env.step(np.zeros(1))
    with pytest.raises(ResetNeeded, match="before render"):
        env.render()
    env.close()
    env.close()
    for call in (env.reset, env.render, env.get_state, lambda: env.step(np.zeros(1))):
        with pytest.raises(ClosedEnvironmentError, match="make a new one"):
            call()


def test_bad_actions_and_states_change_nothing():
    env = DMControlEnv("reacher", "easy")
    env.reset(seed=0)
    before = env.get_state()
    for action in ([np.nan, 0], [0, np.inf], [0.0], [0, 0, 0]):
        with pytest.raises(ValueError, match="action"):
            env.step(np.array(action))
    for state in (before[:-1], np.full_like(before, np.nan)):
        with pytest.raises(ValueError, match=r"state must be finite with shape \(4,\)"):
            env.set_state(state)
    np.testing.assert_array_equal(env.get_state(), before)


def test_actions_are_clipped_to_their_bounds():
    env = DMControlEnv("cartpole", "swingup")
    runs = []
    for push in (1.0, 5.0):
        env.reset(seed=0)
        runs.append(env.step(np.array([push]))[0])
    np.testing.assert_array_equal(*runs)
