"""The rules of Push: contact in MuJoCo, drawing in NumPy, for any number of tables at once; needs no OpenGL.

Lengths are in table widths: ``x`` to the right and ``y`` downwards, both from 0 to 1. A state is five numbers: x and y
of the agent, x and y of the block, and the block's angle in radians, of which quarter turns look the same. Nothing
moves by itself: every step starts from rest and the block stops at once when it is no longer pushed (quasi-static
pushing: Lynch, Maekawa and Tanie 1992), so that one picture shows the whole state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from jepa_rl.envs.gl import backend_environment

SIZE = 64  # pixels
RADIUS = 0.045  # of the agent
HALF = 0.09  # half a side of the block
MAX_STEP = 0.08  # how far a full action moves the agent
AGENT_RANGE = (RADIUS, 1 - RADIUS)
# Of the block's middle: the agent always fits between the block and the edge of the table.
BLOCK_RANGE = (0.22, 0.78)
PLACES = (0.26, 0.74)  # where the block starts and its goals lie
APART = (0.2, 0.35)  # how far the goal lies from the block's start
NEAR = 0.3  # the agent starts at most this far from the block's middle
GOAL_RADIUS = 0.06  # the goal counts as reached within this distance of the block's middle
TOUCHED = 1e-4  # a block that moved less was not pushed
SUBSTEPS = 10  # of the simulation in one step, 0.1 s

BACKGROUND, BLOCK, AGENT = (205, 195, 180), (50, 90, 200), (220, 50, 50)  # colours

Array = np.ndarray
Reward = Literal["sparse", "dense"]

SCENE = f"""
<mujoco>
  <option timestep="0.01" integrator="implicitfast" gravity="0 0 0"><flag warmstart="disable"/></option>
  <default>
    <geom friction="0.4" condim="3" solref="0.02 1"/>
    <joint limited="true"/>
  </default>
  <worldbody>
    <body name="agent">
      <joint name="agent_x" type="slide" axis="1 0 0" range="{AGENT_RANGE[0]} {AGENT_RANGE[1]}"/>
      <joint name="agent_y" type="slide" axis="0 1 0" range="{AGENT_RANGE[0]} {AGENT_RANGE[1]}"/>
      <geom type="sphere" size="{RADIUS}" mass="1"/>
    </body>
    <body name="block">
      <joint type="slide" axis="1 0 0" range="{BLOCK_RANGE[0]} {BLOCK_RANGE[1]}" damping="50"/>
      <joint type="slide" axis="0 1 0" range="{BLOCK_RANGE[0]} {BLOCK_RANGE[1]}" damping="50"/>
      <joint type="hinge" axis="0 0 1" limited="false" damping="0.25"/>
      <geom type="box" size="{HALF} {HALF} 0.05" mass="0.5"/>
    </body>
  </worldbody>
  <actuator>
    <velocity joint="agent_x" kv="300"/>
    <velocity joint="agent_y" kv="300"/>
  </actuator>
</mujoco>
"""


class Physics:
    """The simulation: from states and actions to the next states, row by row.

    Raises:
        ImportError: if MuJoCo is missing: ``pip install "jepa-rl[push]"``.
    """

    def __init__(self) -> None:
        try:
            with backend_environment():
                import mujoco
                from mujoco import rollout
        except ImportError as error:
            raise ImportError(f'MuJoCo is missing ({error}): pip install "jepa-rl[push]"') from error
        self._rollout = rollout.rollout
        self._model = mujoco.MjModel.from_xml_string(SCENE)
        self._data = mujoco.MjData(self._model)
        self._size = mujoco.mj_stateSize(self._model, mujoco.mjtState.mjSTATE_FULLPHYSICS)

    def step(self, state: Float[Array, "n 5"], action: Float[Array, "n 2"]) -> Float[Array, "n 5"]:
        """One environment step of every row, from rest.

        Args:
            state: see above.
            action: in [-1, 1], of length at most 1 (shortened where longer); times ``MAX_STEP`` it is the move.
        """
        if not len(state):  # MuJoCo's rollout would end the interpreter
            return state.copy()
        action = np.clip(action, -1.0, 1.0)
        action = action / np.maximum(np.linalg.norm(action, axis=-1, keepdims=True), 1.0)
        start = np.zeros((len(state), self._size))
        start[:, 1:6] = state  # behind the time; the rest are velocities
        speed = action * MAX_STEP / (SUBSTEPS * 0.01)
        control = np.repeat(speed[:, None], SUBSTEPS, axis=1)
        path, _ = self._rollout(self._model, self._data, start, control)
        return path[:, -1, 1:6].copy()


class PushDynamics:
    """The true dynamics as ``Dynamics``, for an oracle: latents are states, "b 5".

    Args:
        block: environment steps in a latent step.
    """

    latent_dim = 5

    def __init__(self, block: int = 1) -> None:
        self.block, self.action_dim, self._physics = block, 2 * block, Physics()

    def rollout(
        self,
        z: Float[torch.Tensor, "b 5"],
        actions: Float[torch.Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[torch.Tensor, "b 1 h+1 5"]:
        """States; see ``jepa_rl.types.Dynamics``."""
        state, steps = z.double().numpy(), actions.double().numpy().reshape(len(z), -1, self.block, 2)
        path = [state]
        for block in steps.swapaxes(0, 1):
            for action in block.swapaxes(0, 1):
                state = self._physics.step(state, action)
            path.append(state)
        return torch.from_numpy(np.stack(path, axis=1)[:, None]).to(z)


def push_distance(state: Float[torch.Tensor, "*b 5"], goal: Float[torch.Tensor, "*g 5"]) -> torch.Tensor:
    """Distance of true states to a goal for ``GoalCost``: of the block to its goal, and a tenth of that to the agent.

    The second term leads the agent to the block; the agent's place in the goal picture and the angle do not count.
    """
    agent, block = state[..., :2], state[..., 2:4]
    return (block - goal[..., 2:4]).norm(dim=-1) + 0.1 * (agent - block).norm(dim=-1)


def draw(state: Float[Array, "n 5"]) -> UInt8[Array, "n 3 64 64"]:
    """Pictures from above with smooth edges: the blue block, and the red agent in front of it.

    Args:
        state: see above.
    """
    grid = ((np.arange(SIZE) + 0.5) / SIZE).astype(np.float32)
    agent, block, angle = np.split(state.astype(np.float32)[..., None, None], [2, 4], axis=1)
    x, y = grid - block[:, 0], grid[:, None] - block[:, 1]
    cos, sin = np.cos(angle[:, 0]), np.sin(angle[:, 0])
    outside = np.maximum(np.abs(cos * x + sin * y), np.abs(cos * y - sin * x)) - HALF
    away = np.hypot(grid - agent[:, 0], grid[:, None] - agent[:, 1]) - RADIUS
    scene = np.empty((len(state), 3, SIZE, SIZE), np.float32)
    scene[:] = np.array(BACKGROUND, np.float32)[:, None, None]
    for distance, colour in ((outside, BLOCK), (away, AGENT)):
        cover = np.clip(0.5 - SIZE * distance, 0.0, 1.0)[:, None]
        scene += cover * (np.array(colour, np.float32)[:, None, None] - scene)
    return np.rint(scene).astype(np.uint8)


def behind(
    block: Float[Array, "*b 2"], angle: Float[Array, "*b"], direction: Float[Array, "*b 2"]
) -> Float[Array, "*b 2"]:
    """Where the agent touches the block, ready to push it in a direction through its middle.

    Args:
        block, angle: of the block.
        direction: of length 1.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    along = (
        cos * direction[..., 0] + sin * direction[..., 1],
        cos * direction[..., 1] - sin * direction[..., 0],
    )
    reach = (HALF + RADIUS) / np.maximum(np.abs(along[0]), np.abs(along[1]))
    return np.clip(block - reach[..., None] * direction, *AGENT_RANGE)


@dataclass
class PushState:
    """Everything that changes, one row per table."""

    now: Float[Array, "n 5"]
    goal: Float[Array, "n 5"]
    goal_image: UInt8[Array, "n 3 64 64"]
    pushed: Bool[Array, " n"]  # whether the last step moved the block
    steps: np.ndarray  # (n,) int

    def copy(self) -> PushState:
        return replace(self, **{name: value.copy() for name, value in vars(self).items()})


def _place(name: str, value: Any, low: float, high: float) -> Float[Array, 2]:
    array = np.asarray(value, np.float64)
    if array.shape != (2,) or not ((array >= low) & (array <= high)).all():
        raise ValueError(
            f"options[{name!r}] must be (x, y) within [{low}, {high}] table widths, got {value!r}"
        )
    return array


def _around(
    rng: np.random.Generator, middle: Float[Array, 2], apart: tuple[float, float], within: tuple[float, float]
) -> Float[Array, 2]:
    """A random place at such a distance from another; x and y lie within the given range."""
    while True:
        place = rng.uniform(*within, 2)
        if apart[0] <= np.linalg.norm(place - middle) <= apart[1]:
            return place


def sample(
    rng: np.random.Generator, options: dict[str, Any] | None
) -> tuple[Float[Array, 5], Float[Array, 5]]:
    """The states in which an episode starts and which its goal picture shows.

    In the goal picture the agent stands behind the block, as after a straight push from where the block starts, and
    the block's angle is the one of the start.

    Args:
        rng: draws what ``options`` do not give.
        options: of ``reset``: ``agent``, ``block``, ``goal`` (x, y), ``angle`` (radians).

    Raises:
        ValueError: for unknown options, places off the table, an agent inside the block, or a goal where the block is.
    """
    options = options or {}
    if unknown := set(options) - {"agent", "block", "goal", "angle"}:
        raise ValueError(f"unknown reset options {sorted(unknown)}; known: agent, angle, block, goal")
    block, angle = rng.uniform(*PLACES, 2), float(options.get("angle", rng.uniform(-np.pi / 4, np.pi / 4)))
    if not np.isfinite(angle):
        raise ValueError(f"options['angle'] must be finite, in radians, got {angle}")
    if "block" in options:
        block = _place("block", options["block"], *BLOCK_RANGE)
    free = HALF * np.sqrt(2) + RADIUS
    goal = _around(rng, block, APART, PLACES)
    agent = _around(rng, block, (free, NEAR), AGENT_RANGE)
    if "goal" in options:
        goal = _place("goal", options["goal"], *BLOCK_RANGE)
    if "agent" in options:
        agent = _place("agent", options["agent"], *AGENT_RANGE)
    if np.linalg.norm(agent - block) < free:
        raise ValueError(f"the agent at {agent} must be at least {free:.3f} from the block at {block}")
    way = goal - block
    if np.linalg.norm(way) <= GOAL_RADIUS:
        raise ValueError(f"the goal {goal} must be more than {GOAL_RADIUS} from the block at {block}")
    end = behind(goal, np.array(angle), way / np.linalg.norm(way))
    return np.array([*agent, *block, angle]), np.array([*end, *goal, angle])


class PushCore:
    """The rules of the single and the vectorised environment, see ``jepa_rl.envs.worlds.batched.Rules``."""

    pixels: gym.spaces.Box = gym.spaces.Box(0, 255, (3, SIZE, SIZE), np.uint8)
    actions: gym.spaces.Box = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, reward: Reward = "sparse") -> None:
        if reward not in ("sparse", "dense"):
            raise ValueError(f"reward must be 'sparse' or 'dense', got {reward!r}")
        self.reward, self._physics = reward, Physics()

    def new_state(self, n: int) -> PushState:
        states, images = np.zeros((n, 5)), np.zeros((n, 3, SIZE, SIZE), np.uint8)
        return PushState(states, states.copy(), images, np.zeros(n, bool), np.zeros(n, np.int64))

    def begin(
        self,
        state: PushState,
        rows: np.ndarray,
        rngs: list[np.random.Generator],
        options: dict[str, Any] | None = None,
    ) -> None:
        episodes = [sample(rng, options) for rng in rngs]
        state.now[rows], state.goal[rows] = (np.stack(column) for column in zip(*episodes, strict=True))
        state.goal_image[rows] = draw(state.goal[rows])
        state.pushed[rows], state.steps[rows] = False, 0

    def advance(self, state: PushState, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before, distance = state.now, self._distance(state)
        state.now = self._physics.step(before, actions)
        state.pushed = np.abs(state.now - before)[:, 2:].max(axis=1) > TOUCHED
        state.steps += 1
        left = self._distance(state)
        success = left <= GOAL_RADIUS
        # Dense: what the block has come nearer (potential-based, so the best policy stays the same).
        return success.astype(np.float64) + (distance - left if self.reward == "dense" else 0.0), success

    @staticmethod
    def _distance(state: PushState) -> Float[Array, " n"]:
        return np.linalg.norm(state.now[:, 2:4] - state.goal[:, 2:4], axis=-1)

    def observe(self, state: PushState) -> UInt8[Array, "n 3 64 64"]:
        return draw(state.now)

    def info(self, state: PushState) -> dict[str, np.ndarray]:
        return {
            "goal": state.goal_image.copy(),
            "state": state.now.astype(np.float32),
            "goal_state": state.goal.astype(np.float32),
            "pushed": state.pushed.copy(),
            "success": self._distance(state) <= GOAL_RADIUS,
        }
