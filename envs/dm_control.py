"""The dm_control suite as Gymnasium environments: ``gym.make("dmc/reacher-easy-v0")``.

Tassa et al., "dm_control: Software and Tasks for Continuous Control", 2020. Needs
``pip install "jepa-rl[dmc]"``; dm_control is imported when the first environment is made, not before.
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from jepa_rl.envs.gl import Renderer, backend_environment

# dm_control.suite.ALL_TASKS, written down so that registering imports nothing.
TASKS: dict[str, tuple[str, ...]] = {
    "acrobot": ("swingup", "swingup_sparse"),
    "ball_in_cup": ("catch",),
    "cartpole": (
        "balance",
        "balance_sparse",
        "swingup",
        "swingup_sparse",
        "two_poles",
        "three_poles",
    ),
    "cheetah": ("run",),
    "dog": ("stand", "walk", "trot", "run", "fetch"),
    "finger": ("spin", "turn_easy", "turn_hard"),
    "fish": ("upright", "swim"),
    "hopper": ("stand", "hop"),
    "humanoid": ("stand", "walk", "run", "run_pure_state"),
    "humanoid_CMU": ("stand", "walk", "run"),
    "lqr": ("lqr_2_1", "lqr_6_2"),
    "manipulator": ("bring_ball", "bring_peg", "insert_ball", "insert_peg"),
    "pendulum": ("swingup",),
    "point_mass": ("easy", "hard"),
    "quadruped": ("walk", "run", "escape", "fetch"),
    "reacher": ("easy", "hard"),
    "stacker": ("stack_2", "stack_4"),
    "swimmer": ("swimmer6", "swimmer15"),
    "walker": ("stand", "walk", "run"),
}
EPISODE_STEPS = 1000


def register_dm_control() -> None:
    """Register every task of the suite as ``dmc/<domain>-<task>-v0``, 1,000 steps long."""
    for domain, tasks in TASKS.items():
        for task in tasks:
            name = f"dmc/{domain}-{task}-v0"
            if name not in gym.registry:
                gym.register(
                    name,
                    entry_point="jepa_rl.envs.dm_control:DMControlEnv",
                    kwargs={"domain": domain, "task": task},
                    max_episode_steps=EPISODE_STEPS,
                )


class DMControlEnv(gym.Env, gym.utils.EzPickle):
    """One task of the suite.

    Observations are dm_control's, flattened to one float32 vector in its own order; or, with
    ``observation="pixels"``, uint8 pictures (size, size, 3) rendered at that size, while ``render()``
    returns pictures of ``render_size`` for video. ``info`` holds the float64 physics state (``"state"``: qpos,
    qvel, act) and ``"qpos"``, for probes and metrics only.

    ``terminated`` is dm_control's own end of a task (discount 0), which few tasks have. The time limit of
    1,000 steps is Gymnasium's: ``gym.make`` adds it and reports ``truncated``. Actions outside the bounds are
    clipped; actuators without a limit (lqr only) are given [-1, 1].

    Equal seeds give equal runs; ``reset()`` without a seed continues the same random stream. Pickling saves the
    arguments, not the state.

    Args:
        domain, task: names from ``TASKS``.
        observation: ``"state"`` or ``"pixels"``.
        render: ``"default"``, or ``"fast"`` for plainer pictures, many times faster (see ``Renderer``).
        size: height and width of pixel observations.
        render_size: height and width of ``render()``.
        camera: number or name of a camera of the model, -1 for MuJoCo's free camera.
        render_mode: ``"rgb_array"`` or None.

    Raises:
        ValueError: if an argument is not one of these; in ``step``, for an action of another shape or with
            NaN or infinite values.
        ImportError: if dm_control is not installed.
        gymnasium.error.DependencyNotInstalled: at the first picture, if no OpenGL library works.
        gymnasium.error.ResetNeeded, gymnasium.error.ClosedEnvironmentError: when used at the wrong time.
        dm_control.rl.control.PhysicsError: if the simulation diverges.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(
        self,
        domain: str,
        task: str,
        observation: Literal["state", "pixels"] = "state",
        render: Literal["default", "fast"] = "default",
        size: int = 64,
        render_size: int = 240,
        camera: int | str = 0,
        render_mode: str | None = None,
    ) -> None:
        gym.utils.EzPickle.__init__(
            self, domain, task, observation, render, size, render_size, camera, render_mode
        )
        if task not in TASKS.get(domain, ()):
            known = f"the tasks of {domain!r} are {TASKS[domain]}" if domain in TASKS else f"{list(TASKS)}"
            raise ValueError(f"no task {domain!r}, {task!r} in the suite; {known}")
        _check_choice("observation", observation, ("state", "pixels"))
        _check_choice("render", render, ("default", "fast"))
        _check_choice("render_mode", render_mode, (None, "rgb_array"))
        for name, value in {"size": size, "render_size": render_size}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number of pixels, got {value!r}")
        self.render_mode = render_mode
        self._pixels, self._fast, self._camera = observation == "pixels", render == "fast", camera
        self._size, self._render_size = size, render_size
        self._env = _load(domain, task)
        self._renderers: dict[int, Renderer] = {}
        self._status: Literal["new", "running", "over", "closed"] = "new"
        self._seeded = False
        self.metadata = {**self.metadata, "render_fps": round(1 / self._env.control_timestep())}

        bounds = self._env.action_spec()
        limited = self.physics.model.actuator_ctrllimited.astype(bool)
        self.action_space = spaces.Box(
            np.where(limited, bounds.minimum, -1).astype(np.float32),
            np.where(limited, bounds.maximum, 1).astype(np.float32),
        )
        if self._pixels:
            self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        else:
            width = self._env.observation_spec()["observations"].shape[0]
            self.observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)

    @property
    def physics(self) -> Any:
        """The ``dm_control.mujoco.Physics`` underneath."""
        return self._env.physics

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._check_open()
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self._env.task.random.seed(int(self.np_random.integers(2**32)))
            self._seeded = True
        timestep = self._env.reset()
        for renderer in self._renderers.values():
            renderer.reload_terrain()
        self._status = "running"
        return self._observation(timestep.observation["observations"]), self._info()

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._check_running("step")
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape:
            raise ValueError(f"action must have shape {self.action_space.shape}, got {action.shape}")
        if not np.isfinite(action).all():
            raise ValueError(f"action holds NaN or infinite values: {action}; check the policy that made it")
        timestep = self._env.step(np.clip(action, self.action_space.low, self.action_space.high))
        if timestep.last():
            self._status = "over"
        terminated = timestep.last() and timestep.discount == 0
        truncated = timestep.last() and not terminated
        observation = self._observation(timestep.observation["observations"])
        return observation, float(timestep.reward), terminated, truncated, self._info()

    def render(self) -> np.ndarray | None:
        """The present picture, uint8 (render_size, render_size, 3)."""
        self._check_open()
        if self.render_mode is None:
            gym.logger.warn("render() shows nothing without gym.make(..., render_mode='rgb_array')")
            return None
        if self._status == "new":
            raise ResetNeeded("call reset() before render()")
        return self._picture(self._render_size)

    def get_state(self) -> np.ndarray:
        """Physics state, float64 (nq + nv + na,): qpos, qvel, act. Targets of a task are not part of it."""
        self._check_open()
        return self.physics.get_state()

    def set_state(self, state: np.ndarray) -> np.ndarray:
        """Put the physics into a state from ``get_state`` and return the observation there.

        What ``reset`` drew besides (the target of reacher, say) stays, and so does the step count.
        """
        self._check_running("set_state")
        state = np.asarray(state, np.float64)
        expected = self.physics.get_state().shape
        if state.shape != expected or not np.isfinite(state).all():
            raise ValueError(f"state must be finite with shape {expected}, got {state.shape}: {state}")
        self.physics.set_state(state)
        self.physics.data.qacc_warmstart[:] = 0  # the solver's memory of where it was before
        self.physics.after_reset()
        observation = self._env.task.get_observation(self.physics)
        return self._observation(np.concatenate([np.ravel(part) for part in observation.values()]))

    def close(self) -> None:
        """Free the simulation's OpenGL contexts. A second call does nothing."""
        if self._status != "closed":
            self._status = "closed"
            for renderer in self._renderers.values():
                renderer.close()
            self._renderers.clear()
            self._env.close()

    def _observation(self, state: np.ndarray) -> np.ndarray:
        return self._picture(self._size) if self._pixels else state.astype(np.float32)

    def _info(self) -> dict[str, np.ndarray]:
        return {"state": self.physics.get_state(), "qpos": self.physics.position()}

    def _picture(self, size: int) -> np.ndarray:
        if (
            size not in self._renderers
        ):  # made late, so that workers forked before the first picture can render
            self._renderers[size] = Renderer(self.physics, size, self._camera, self._fast)
        return self._renderers[size].render()

    def _check_open(self) -> None:
        if self._status == "closed":
            raise ClosedEnvironmentError("this environment is closed; make a new one")

    def _check_running(self, what: str) -> None:
        self._check_open()
        if self._status != "running":
            raise ResetNeeded(f"call reset() before {what}(): the episode is {self._status}")


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def _load(domain: str, task: str) -> Any:
    """dm_control's environment without its time limit (counting float seconds, it can be one step off)."""
    try:
        with backend_environment():
            from dm_control import suite
    except ImportError as error:
        raise ImportError(f'dm_control is missing ({error}): pip install "jepa-rl[dmc]"') from error
    return suite.load(
        domain,
        task,
        task_kwargs={"random": 0, "time_limit": float("inf")},  # seeded anew by reset
        environment_kwargs={"flat_observation": True},
    )
