"""Push: a disc pushes a block to the place that a goal picture shows; needs MuJoCo, but no OpenGL."""

from __future__ import annotations

import cv2
import numpy as np
from gymnasium.vector import AutoresetMode

from jepa_rl.envs.worlds.batched import RulesEnv, RulesVectorEnv
from jepa_rl.envs.worlds.push_rules import PushCore, PushState, Reward, draw


def display(state: PushState, row: int) -> np.ndarray:
    """One of many tables, uint8 ``(384, 384, 3)``, with the block's goal as a pale shadow."""
    now, goal = draw(state.now[row : row + 1])[0], state.goal_image[row]
    image = np.rint(0.75 * now + 0.25 * goal).astype(np.uint8).transpose(1, 2, 0)
    return cv2.resize(image, None, fx=6, fy=6, interpolation=cv2.INTER_LINEAR)


class PushEnv(RulesEnv[PushState]):
    """``jepa_rl/Push-v0``: push the block to where the goal picture shows it.

    Observation: uint8 ``(3, 64, 64)``, the table from above. Action: ``Box(-1, 1, (2,))``, the agent's move, at most
    0.08 table widths long. The block moves only while the agent pushes it, and turns where it is pushed off its middle;
    it stays in the middle 0.56 of the table, so that the agent can always go round it. Reward: 1 once the block's
    middle is within 0.06 table widths (4 pixels) of its goal, which ends the episode; ``reward="dense"`` adds
    what it has come nearer. The goal is at least 0.25 from the start. In the goal picture the agent stands behind
    the block and the block has the angle of the start; neither counts.

    ``info`` holds ``goal`` (a picture like the observation) and, for probes and scores only, ``state`` and
    ``goal_state`` (x and y of the agent, x and y of the block, its angle in radians), ``pushed`` (whether the step
    moved the block) and ``success``. Contact is MuJoCo's; ``push_rules.PushDynamics`` is the simulation as dynamics for
    a planner, and ``env.unwrapped.state.now`` may be set.

    Args:
        reward: ``"sparse"`` or ``"dense"``.
        render_mode: None or ``"rgb_array"``; ``render()`` shows the goal as a pale shadow.

    ``reset(options=...)`` takes ``agent``, ``block``, ``goal`` (x, y) and ``angle``.

    Raises:
        ImportError: if MuJoCo is missing: ``pip install "jepa-rl[push]"``.
    """

    def __init__(self, reward: Reward = "sparse", render_mode: str | None = None) -> None:
        super().__init__(PushCore(reward), display, render_mode)


class PushVectorEnv(RulesVectorEnv[PushState]):
    """Many Push tables stepped as one array; the same rules as ``PushEnv``.

    Args:
        num_envs: number of tables.
        max_episode_steps: truncation limit.
        autoreset_mode: Gymnasium's NEXT_STEP (default), SAME_STEP or DISABLED.
        reward, render_mode: as for ``PushEnv``.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = 60,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        reward: Reward = "sparse",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(PushCore(reward), display, num_envs, max_episode_steps, autoreset_mode, render_mode)
