"""MuJoCo's pictures do not depend on other environments, threads or forks: held against fresh processes."""

import ctypes.util
import functools
import json
import os
import subprocess
import sys

import pytest

from jepa_rl.envs import gl

pytest.importorskip("mujoco")
pytest.importorskip("dm_control", reason='needs pip install "jepa-rl[dmc]"')
pytestmark = pytest.mark.gl

NAMES = ("Reacher-v5", "dmc/reacher-easy-v0", "InvertedPendulum-v5", "dmc/cartpole-swingup-v0")
HELPERS = """
import gymnasium as gym, hashlib, json, numpy as np, sys, threading
from jepa_rl.envs import PixelObservation

def make(name):
    size = {} if name.startswith("dmc") else {"width": 96, "height": 96}
    return PixelObservation(gym.make(name, render_mode="rgb_array", **size), size=32, frames=1)

def play(name, steps=3):
    '''Yields at each step a digest of what is observed and rendered.'''
    env, rng = make(name), np.random.default_rng(0)
    observation = env.reset(seed=3)[0]
    for step in range(steps):
        assert observation.max() > 60 and env.render().max() > 60, "black"
        yield hashlib.md5(observation.tobytes() + np.ascontiguousarray(env.render()).tobytes()).hexdigest()
        observation = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))[0]
    env.close()
"""


@pytest.fixture(params=["egl", "osmesa"])
def backend(request):
    """Each of the two that is installed."""
    missing = not gl._egl_works() if request.param == "egl" else ctypes.util.find_library("OSMesa") is None
    if missing:
        pytest.skip(f"no {request.param} here")
    return request.param


def fresh(code: str, backend: str | None, timeout: float = 120) -> str:
    """What a fresh interpreter prints."""
    kept = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HELPERS + code],
        env=kept | ({"MUJOCO_GL": backend} if backend else {}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@functools.cache
def alone(backend: str) -> dict[str, list[str]]:
    """Digests of each environment alone in a process of its own, forked before anything was drawn."""
    lines = fresh(
        f"""
import os
for name in {NAMES}:
    if not os.fork():
        print(json.dumps((name, list(play(name)))), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, name
""",
        backend,
    )
    return dict(map(json.loads, lines.splitlines()))


def test_interleaved_environments_show_what_each_shows_alone(backend):
    """In turn, with others opened, drawn, closed and forgotten in between."""
    together = json.loads(
        fresh(
            f"""
names = {NAMES}
plays = {{name: play(name) for name in names}}
seen = {{name: [] for name in names}}
for step in range(3):
    for name in names:
        seen[name].append(next(plays[name]))
        other = make(names[step])
        other.reset(seed=9)
        other.render()
        if step % 2: other.close()
        del other
print(json.dumps(seen))
""",
            backend,
        )
    )
    assert together == alone(backend)


def test_environments_that_nobody_wrapped_are_undisturbed_by_ours(backend):
    """Gymnasium's viewer opened before ours, and dm_control's own renderer, draw on as before."""
    fresh(
        """
first = gym.make("Reacher-v5", render_mode="rgb_array")
first.reset(seed=0)
before = first.render().copy()
for name in ("dmc/reacher-easy-v0", "Reacher-v5"):
    ours = make(name)
    ours.reset(seed=0)
    assert np.array_equal(first.render(), before), name
    ours.close()
    assert np.array_equal(first.render(), before), name
first.close()  # was current all the time
ours = make("dmc/reacher-easy-v0")
ours.reset(seed=0)
theirs, picture = ours.unwrapped.physics.render(64, 64), ours.render()
bare = gym.make("Reacher-v5", render_mode="rgb_array")
bare.reset(seed=0)
assert np.array_equal(bare.render(), before)
assert np.array_equal(ours.render(), picture) and np.array_equal(bare.render(), before)
assert np.array_equal(ours.unwrapped.physics.render(64, 64), theirs)
""",
        backend,
    )


def test_pictures_that_other_wrappers_draw_inside_ours_are_right_too(backend):
    fresh(
        """
def rendered(seed):
    inner = gym.wrappers.AddRenderObservation(gym.make("Reacher-v5", render_mode="rgb_array", width=96, height=96))
    return PixelObservation(inner, size=32, frames=1)
one, other = rendered(1), rendered(2)
first = one.reset(seed=1)[0]
second = other.reset(seed=2)[0]
assert not np.array_equal(first, second)
assert np.array_equal(one.reset(seed=1)[0], first) and np.array_equal(other.reset(seed=2)[0], second)
other.close()
assert np.array_equal(one.reset(seed=1)[0], first)
""",
        backend,
    )


def test_evaluation_leaves_training_pictures_alone_and_its_videos_are_right(backend):
    """Episodes played and filmed beside an environment that goes on, wrapped by us or by Gymnasium alone."""
    fresh(
        """
from jepa_rl.agents.evaluation import play_episodes

class Still:  # keeps what it saw of the first of its environments
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.seen = getattr(self, "seen", []) + [observation[0]]
        assert not np.array_equal(observation[0], observation[1])
        return np.zeros((len(episode_start), 2), np.float32), state

def bare():
    env = gym.make("Reacher-v5", render_mode="rgb_array", width=96, height=96, max_episode_steps=4)
    return gym.wrappers.AddRenderObservation(env)

training = make("Reacher-v5")
training.reset(seed=0)
for make_env in (lambda: PixelObservation(bare(), size=96, frames=1), bare):
    agent = Still()
    played = play_episodes(agent, make_env, [1, 2, 3], pictures=True)
    seen = [np.moveaxis(x, 0, 2) if len(x) == 3 else x for x in agent.seen]
    assert np.array_equal(played.pictures[:3], seen[1:]) and min(p.max() for p in seen) > 60
    assert training.step(np.zeros(2, np.float32))[0].max() > 60
""",
        backend,
    )


def test_a_second_thread_draws_the_same_picture(backend):
    shown = json.loads(
        fresh(
            f"""
seen = {{name: [] for name in {NAMES[:2]}}}
for name, digests in seen.items():
    steps = play(name)
    digests.append(next(steps))
    for _ in range(2):
        worker = threading.Thread(target=lambda: digests.append(next(steps)))
        worker.start()
        worker.join()
print(json.dumps(seen))
""",
            backend,
        )
    )
    assert shown == {name: alone(backend)[name] for name in NAMES[:2]}


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("Reacher-v5", "gym.make(name, render_mode='rgb_array')"),
        ("dmc/reacher-easy-v0", "make(name)"),
    ],
)
def test_workers_forked_after_a_draw_refuse_in_words_instead_of_hanging(backend, name, drawn):
    shown = fresh(
        f"""
name = {name!r}
env = {drawn}
env.reset(seed=0)
env.render()
venv = gym.vector.AsyncVectorEnv([lambda: make(name)] * 2, context="fork")
try:
    venv.reset(seed=0)
    venv.close()
    print("drawn")
except RuntimeError as error:
    print("refused" if "forkserver" in str(error) else error)
""",
        backend,
    )
    # With one processor llvmpipe has no threads that a fork could lack, and what others have drawn is no matter.
    alone = len(os.sched_getaffinity(0)) == 1 and drawn != "make(name)"
    assert shown.strip() == ("drawn" if alone else "refused")


def test_workers_forked_before_the_first_draw_render(backend):
    fresh(
        """
env = make("Reacher-v5")
venv = gym.vector.AsyncVectorEnv([lambda: make("Reacher-v5")] * 2, context="fork")
seen = venv.reset(seed=[3, 3])[0]
assert np.array_equal(seen[0], env.reset(seed=3)[0])
venv.close()
""",
        backend,
    )


def test_environments_that_contain_a_mujoco_one_find_opengl_without_settings():
    fresh(
        """
import os
class Maze(gym.Env):
    '''As Gymnasium-Robotics' PointMaze: built around an environment, not derived from one.'''
    metadata = {"render_modes": ["rgb_array"]}
    def __init__(self, render_mode):
        from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
        self.inner, self.render_mode = ReacherEnv(render_mode=render_mode), render_mode
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space
    def reset(self, *, seed=None, options=None):
        return self.inner.reset(seed=seed)
    def render(self):
        return self.inner.render()

assert PixelObservation(Maze("rgb_array"), size=32).reset(seed=0)[0].std() > 1
assert "MUJOCO_GL" not in os.environ
""",
        None,
    )


def test_unclosed_environments_leave_quietly(backend):
    code = "kept = [make(n) for n in ('Reacher-v5', 'dmc/reacher-easy-v0')]\nfor e in kept: e.reset(seed=0)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HELPERS + code],
        env={k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"} | {"MUJOCO_GL": backend},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
