"""TableEdge with real contact: a puck that is flicked over a table in MuJoCo, with random friction."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from jepa_rl.envs.gl import Renderer, backend_environment
from jepa_rl.envs.worlds import table_edge_rules as rules
from jepa_rl.spaces import check_actions

HEIGHT = 0.4  # of the table, m; it is 1 m wide
SPEED = 0.84  # of the hardest flick, m/s: 0.12 m at the median friction
FRICTION = 0.3  # median of the sliding coefficient
SPREAD = 0.4  # standard deviation of its logarithm, drawn anew for every flick
REST = 0.005  # m/s: slower than this it lies still
LONGEST = 300  # simulation steps of one flick, 1.5 s
REACH = 0.02  # m below the table's top at which it counts as fallen

SCENE = f"""
<mujoco>
  <option timestep="0.005" cone="elliptic"/>
  <visual><headlight ambient="0.5 0.5 0.5" diffuse="0.5 0.5 0.5"/></visual>
  <worldbody>
    <camera name="above" pos="0.6 0.5 2.1" xyaxes="1 0 0 0 1 0" fovy="38"/>
    <geom name="floor" type="plane" pos="0.6 0.5 0" size="2 2 0.1" rgba="0.16 0.16 0.2 1"/>
    <geom name="table" type="box" pos="0.5 0.5 {HEIGHT / 2}" size="0.5 0.5 {HEIGHT / 2}" rgba="0.67 0.51 0.35 1"/>
    <geom type="box" pos="-0.01 0.5 {HEIGHT}" size="0.01 0.52 0.03" rgba="0.5 0.36 0.24 1"/>
    <geom type="box" pos="0.5 -0.01 {HEIGHT}" size="0.5 0.01 0.03" rgba="0.5 0.36 0.24 1"/>
    <geom type="box" pos="0.5 1.01 {HEIGHT}" size="0.5 0.01 0.03" rgba="0.5 0.36 0.24 1"/>
    <body name="goal" mocap="true" pos="0.9 0.5 {HEIGHT + 0.001}">
      <geom type="cylinder" size="{rules.RADIUS} 0.001" rgba="0.2 0.75 0.3 1" contype="0" conaffinity="0"/>
    </body>
    <body name="puck" pos="0.3 0.5 {HEIGHT + 0.02}">
      <freejoint/>
      <geom name="puck" type="cylinder" size="{rules.RADIUS} 0.02" mass="0.1" rgba="0.9 0.2 0.2 1"/>
    </body>
  </worldbody>
</mujoco>
"""


class MujocoTableEdgeEnv(gym.Env[np.ndarray, np.ndarray], gym.utils.EzPickle):
    """``jepa_rl/MujocoTableEdge-v0``: flick a puck to the goal near the edge of a table, over which it can slide.

    Observation: uint8 ``(3, 64, 64)``, from above. Action: ``Box(-1, 1, (2,))``, a flick along x and y of strength at
    most 1. The puck slides until friction stops it; its coefficient is drawn anew for every flick (log-normal around
    0.3), so that hard flicks move it by about 0.12 +- 0.05 m, and gentle ones by little and with certainty. Past the
    edge it tips over and falls, and all further rewards are 0. Reward and ``info`` are those of
    ``jepa_rl/TableEdge-v0``; one environment step lasts until the puck lies still. Episodes are cut off after 40 steps,
    never terminated.

    Args:
        goal: (x, y) on the table, or None for random near the edge.
        anywhere: whether episodes start anywhere on the table, half of them near the edge.
        render_mode: None or ``"rgb_array"``.

    ``reset(options=...)`` takes ``start`` and ``goal`` (x, y), in m.

    Raises:
        ImportError: if dm_control is missing: ``pip install "jepa-rl[dmc]"``.
        gymnasium.error.DependencyNotInstalled: at the first picture, if no OpenGL library works.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(
        self,
        goal: tuple[float, float] | None = None,
        anywhere: bool = False,
        render_mode: str | None = None,
    ) -> None:
        gym.utils.EzPickle.__init__(self, goal, anywhere, render_mode)
        try:
            with backend_environment():
                from dm_control import mujoco
        except ImportError as error:
            raise ImportError(f'dm_control is missing ({error}): pip install "jepa-rl[dmc]"') from error
        self.observation_space = gym.spaces.Box(0, 255, (3, rules.SIZE, rules.SIZE), np.uint8)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._goal = None if goal is None else rules.on_table("goal", goal)
        self.anywhere, self.render_mode = anywhere, render_mode
        self.physics: Any = mujoco.Physics.from_xml_string(SCENE)
        self._renderers: dict[int, Renderer] = {}
        self._status = "new"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self._check_open()
        super().reset(seed=seed)
        start, self.goal = rules.start_and_goal(self.np_random, options, self._goal, self.anywhere)
        self.physics.reset()
        self.physics.data.qpos[:3] = [*np.clip(start, rules.RADIUS, None), HEIGHT + 0.02]
        self.physics.data.mocap_pos[0, :2] = self.goal
        self.fallen, self._status = False, "running"
        self.physics.forward()
        return self._picture(rules.SIZE).transpose(2, 0, 1).copy(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._check_running()
        push = np.clip(check_actions(action, (2,)), -1.0, 1.0)
        friction = FRICTION * np.exp(SPREAD * self.np_random.standard_normal())
        if not self.fallen:
            self._flick(push, friction)
        paid = rules.reward(self.position, np.array(self.fallen), self.goal)
        return self._picture(rules.SIZE).transpose(2, 0, 1).copy(), float(paid), False, False, self._info()

    def _flick(self, push: np.ndarray, friction: float) -> None:
        """Sets the puck's speed and simulates until it lies still, on the table or beside it."""
        model, data = self.physics.model, self.physics.data
        model.geom_friction[:, 0] = friction
        strength = rules.strength(push)
        data.qvel[:] = 0.0
        # Friction takes v * v / (2 friction g) to stop it: the square root makes distance linear in strength.
        data.qvel[:2] = SPEED * np.sqrt(strength) * push / max(float(np.linalg.norm(push)), 1e-9)
        for _ in range(LONGEST):
            self.physics.step()
            if np.abs(data.qvel).max() < REST:
                break
        data.qvel[:] = 0.0
        self.fallen = bool(data.qpos[2] < HEIGHT - REACH)

    @property
    def position(self) -> np.ndarray:
        """x and y of the puck, m."""
        return self.physics.data.qpos[:2].copy()

    def _info(self) -> dict[str, Any]:
        return {
            "position": self.position.astype(np.float32),
            "fallen": self.fallen,
            "goal_position": self.goal.astype(np.float32),
        }

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        self._check_running()
        return self._picture(6 * rules.SIZE)

    def close(self) -> None:
        """Free the simulation's OpenGL contexts. A second call does nothing."""
        self._status = "closed"
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _picture(self, size: int) -> np.ndarray:
        if size not in self._renderers:
            self._renderers[size] = Renderer(self.physics, size, "above", fast=True)
        return self._renderers[size].render()

    def _check_open(self) -> None:
        if self._status == "closed":
            raise ClosedEnvironmentError("this environment is closed; make a new one")

    def _check_running(self) -> None:
        self._check_open()
        if self._status == "new":
            raise ResetNeeded("call reset() before using the environment")
