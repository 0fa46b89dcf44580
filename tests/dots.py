"""An environment for tests of agents on pixels: small pictures, and a best action that is known."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

SIZE = 16


class Dot(gym.Env):
    """A bright column on a dark picture; every step pays what it lacks to the middle.

    Args:
        discrete: left, stay and right instead of a push in [-1, 1].
        length: steps of an episode.
        edge: whether the left edge ends it.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (1, SIZE, SIZE), np.uint8)
    render_mode = "rgb_array"

    def __init__(self, discrete=False, length=12, edge=False):
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (1,), np.float32)
        self.discrete, self.length, self.edge = discrete, length, edge

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.integers(1, SIZE - 1)), 0
        return self._see(), {}

    def step(self, action):
        push = float(np.squeeze(action)) - self.discrete
        self.x = float(np.clip(self.x + 2 * push, 0, SIZE - 1))
        self.t += 1
        reward, ended = -abs(self.x - SIZE / 2) / SIZE, self.edge and self.x == 0
        return self._see(), reward, ended, self.t >= self.length, {}

    def _see(self):
        picture = np.zeros((1, SIZE, SIZE), np.uint8)
        column = round(self.x)
        picture[..., max(0, column - 1) : column + 2] = 255
        return picture

    def render(self):
        return np.repeat(self._see()[0][..., None], 3, axis=-1)
