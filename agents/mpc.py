"""Model-predictive control: plan, execute the beginning of the plan, look, plan again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from jepa_rl.agents.base import LatentAgent, Observation
from jepa_rl.agents.futures import Futures, check_keep, compare, replaced
from jepa_rl.agents.planners.saved import planner_from, planner_settings
from jepa_rl.costs import GoalCost
from jepa_rl.dynamics import HeldActions
from jepa_rl.files import naming
from jepa_rl.modes import evaluating
from jepa_rl.types import JSON, Cost, Dynamics, Plan, Planner


class MPCState(NamedTuple):
    """What the agent carries from one call of ``predict`` to the next; never written to.

    Attributes:
        plan: model actions of single environment steps, ``s = horizon * block`` of them.
        position: environment steps of the plan that were executed.
        calls: of ``predict`` so far; it makes the noise of every search its own.
        futures: that were predicted for the plan, where the agent compares them with what it observes (``keep``).
    """

    plan: Float[np.ndarray, "n s size"]
    position: Int64[np.ndarray, " n"]
    calls: int
    futures: Futures | None = None


class MPCAgent(LatentAgent):
    """Acts by planning in a world model; Stable-Baselines3's ``predict``, for one environment or many.

    Observations are uint8 pixels ``(c, y, x)`` or ``(n, c, y, x)``, or Dicts of them under ``"pixels"`` and
    ``"goal"`` (``jepa_rl.envs.GoalObservation``); without a goal in them, that of ``set_goal`` holds.

    Nothing is hidden in the agent: plans travel in ``state``, and ``episode_start`` says which of them are
    over. The action of an environment does not depend on the others beside it.

    Args:
        model: a world model (``encode``, ``rollout``, ``spec``) or the path of a saved one.
        planner: searches; its horizon counts latent steps, each ``model.spec.block`` environment steps long.
        cost: goal latents "b d" -> ``Cost``, such as ``partial(GoalCost, reduce="last")``. It is called with
            None where there is no goal: ``lambda _: cost`` is for a cost that needs none.
        hold: search for one action per latent step, held over the block (``HeldActions``).
        replan_every: environment steps of a plan that are executed (default: one block).
        keep: observe after every block while a plan is under way, and discard the futures that did not happen: only
            this share of them, the nearest to the observations, survives. A plan that costs more in those than on
            average, or that led to where none of them is, is made anew at once (``refuted``). None: do not observe
            before ``replan_every`` is over. Needs plans that are followed for longer than a block, and several futures.
        precision: of the search. ``"bfloat16"`` is several times faster with wide predictors where the processor
            or GPU has it (AVX512-BF16, AMX, Ampere); encoding stays float32.
        seed: of the searches; equal seeds and equal calls give equal actions.

    Attributes:
        last_plan: what the last search saw, one row for each of the environments ``last_rows``; for pictures
            and logs only, no action depends on it.

    Raises:
        ValueError: if plans are shorter than ``replan_every``, or the planner does not fit the actions.
        TypeError: if ``model`` or ``planner`` are of another kind.
    """

    def __init__(
        self,
        model: Any,
        planner: Planner,
        *,
        cost: Callable[[Any], Cost] = GoalCost,
        hold: bool = False,
        replan_every: int | None = None,
        keep: float | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__(model)
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {precision!r}")
        block = self.spec.block
        self.planner, self.cost, self.hold, self.keep, self.seed = planner, cost, hold, keep, seed
        self.precision: Literal["float32", "bfloat16"] = precision
        self.replan_every = block if replan_every is None else replan_every
        self.dynamics: Dynamics = HeldActions(self.model, block) if hold else self.model
        self.last_plan: Plan | None = None
        self.last_rows = np.zeros(0, np.int64)
        self._check_settings()

    def predict(
        self,
        observation: Observation,
        state: MPCState | None = None,
        episode_start: Bool[np.ndarray, " n"] | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, MPCState]:
        """The next action of each environment, in its own units, and the state for the next call.

        Args:
            observation: of one environment, or a batch of them.
            state: what the last call returned; None at the beginning.
            episode_start: where an episode has just begun and the old plan is over.
            deterministic: no difference; the searches are always seeded.

        Raises:
            ValueError: for pixels, goals or a state of the wrong shape, a missing goal, or NaN in the model.
        """
        pixels, goals, alone = self._read(observation)
        plan, position, calls, futures = self._resume(state, len(pixels))
        due = position >= self.replan_every
        if episode_start is not None:
            starts = np.broadcast_to(np.asarray(episode_start, bool).reshape(-1), due.shape)
            plan = np.where(starts[:, None, None], np.float32(0.0), plan)
            due = due | starts
        if futures is not None:
            between = np.flatnonzero(~due & (position % self.spec.block == 0))
            if between.size:
                assert self.keep is not None  # else the state holds no futures
                observed, step = self.encode(pixels[between]), position[between] // self.spec.block
                futures, due[between] = compare(futures, observed, between, step, self.keep)
        rows = np.flatnonzero(due)
        if rows.size:
            plan, position = plan.copy(), position.copy()
            goals = goals if goals is None or len(goals) == 1 else goals[rows]
            plan[rows], drawn = self._plan(
                pixels[rows], goals, self._shifted(plan[rows], position[rows]), calls
            )
            futures = replaced(futures, rows, drawn)
            position[rows], self.last_rows = 0, rows
        actions = self.spec.action.decode(plan[np.arange(len(plan)), position])
        return actions[0] if alone else actions, MPCState(plan, position + 1, calls + 1, futures)

    def select_state(self, state: MPCState | None, rows: Int64[np.ndarray, " m"]) -> MPCState | None:
        state = super().select_state(state, rows)
        if state is None:
            return None
        plan, position, calls, futures = state
        if futures is not None:
            where = torch.from_numpy(rows).to(futures.errors.device)
            futures = Futures(*(part.index_select(0, where) for part in futures))
        return MPCState(plan[rows], position[rows], calls, futures)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file with world model and settings; atomic.

        A ``FlowPlanner`` (it has a file of its own), a planner of yours, or a cost other than ``GoalCost`` or a
        ``partial`` of it, is not written: pass it to ``load`` again.

        Raises TypeError if ``model`` is not a ``WorldModel``.
        """
        settings = {
            "planner": planner_settings(self.planner), "cost": _cost_settings(self.cost),
            "hold": self.hold, "replan_every": self.replan_every, "keep": self.keep,
            "precision": self.precision, "seed": self.seed,
        }  # fmt: skip
        self._save(path, "mpc_agent", settings, {})

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        planner: Planner | None = None,
        cost: Callable[[Any], Cost] | None = None,
        device: str = "cpu",
    ) -> MPCAgent:
        """Reads a file of ``save``; ``planner`` and ``cost``, where given, take the place of those in it.

        Raises:
            FileNotFoundError, ValueError: as ``WorldModel.load``; ValueError too if planner or cost are
                neither in the file nor given.
        """
        model, settings, _ = cls._load(path, "mpc_agent", device)
        with naming(path, "does not describe an agent of this version"):
            if planner is None:
                saved = settings["planner"]
                if saved is None:
                    raise ValueError(
                        f"{path} was saved with a planner of its own; pass it: load(path, planner=...)"
                    )
                planner = planner_from(saved)
            if cost is None:
                if settings["cost"] is None:
                    raise ValueError(
                        f"{path} was saved with a cost of its own; pass it: load(path, cost=...)"
                    )
                cost = partial(GoalCost, **settings["cost"])
            older: JSON = {"precision": "float32", "keep": None}  # of files from before there was a choice
            settings = older | settings
            names = ("hold", "replan_every", "keep", "precision", "seed")
            return cls(model, planner, cost=cost, **{name: settings[name] for name in names})

    @torch.no_grad()
    def _plan(
        self,
        pixels: UInt8[np.ndarray, "b c y x"],
        goals: UInt8[np.ndarray, "g c y x"] | None,
        warm_start: Float[Tensor, "b h a"],
        calls: int,
    ) -> tuple[Float[np.ndarray, "b s size"], Futures | None]:
        """One search for all rows; the actions of single environment steps, and what they may lead to."""
        latents = self.encode(pixels if goals is None else np.concatenate([pixels, goals]))
        z, goal = latents[: len(pixels)], None if goals is None else latents[len(pixels) :]
        entropy = np.random.SeedSequence([self.seed, calls]).generate_state(1, np.uint64)[0]
        generator = torch.Generator(self.device).manual_seed(int(entropy >> np.uint64(1)))
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        cost, drawn = self._cost_of(goal), None
        with evaluating(self.model), half:
            plan = self.planner.plan(self.dynamics, cost, z, warm_start.to(z), generator)
            self._check_plan(plan, tuple(warm_start.shape))
            if self.keep is not None:
                if plan.branches.shape[1] < 2:
                    raise ValueError(
                        f"keep={self.keep} discards futures, and the dynamics drew one; use dynamics that draw "
                        "several, such as FlowDynamics, or keep=None"
                    )
                costs = cost(plan.branches, plan.actions).float()
                drawn = Futures(plan.branches.float(), costs, torch.zeros_like(costs))
        self.last_plan = plan
        actions = plan.actions.repeat(1, 1, self.spec.block) if self.hold else plan.actions
        return actions.reshape(len(pixels), -1, self.spec.action.size).float().cpu().numpy(), drawn

    def _check_plan(self, plan: Any, shape: tuple[int, ...]) -> None:
        found = tuple(plan.actions.shape) if isinstance(plan, Plan) else type(plan).__name__
        if found != shape:
            raise ValueError(
                f"{type(self.planner).__name__}.plan must return a jepa_rl.types.Plan (problem.finish makes one) with "
                f"actions (environments, horizon, width) = {shape}, got {found}"
            )

    def _cost_of(self, goal: Float[Tensor, "b d"] | None) -> Cost:
        if goal is not None:
            try:
                return self.cost(goal)
            except TypeError as error:
                raise TypeError(
                    "cost is called with the latents of the goal (b, d) and gives the cost of plans: pass a class such "
                    f"as GoalCost, not an instance of it, or lambda goal: cost; got {self.cost!r} ({error})"
                ) from error
        try:
            return self.cost(None)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "the cost needs a goal and there is none: wrap the environment in jepa_rl.envs.GoalObservation, "
                f"call set_goal(pixels), or pass a cost that needs none ({error})"
            ) from error

    def _shifted(self, plan: np.ndarray, position: np.ndarray) -> Float[Tensor, "b h a"]:
        """The old plans moved on by what was executed, their last action repeated, as a warm start."""
        steps = plan.shape[1]
        index = np.minimum(position[:, None] + np.arange(steps), steps - 1)
        moved = plan[np.arange(len(plan))[:, None], index].reshape(len(plan), self.planner.horizon, -1)
        return torch.from_numpy(moved[..., : self.spec.action.size] if self.hold else moved)

    def _resume(self, state: MPCState | None, n: int) -> MPCState:
        shape = (n, self.planner.horizon * self.spec.block, self.spec.action.size)
        if state is None:
            return MPCState(np.zeros(shape, np.float32), np.full(n, self.replan_every), 0)
        state = MPCState(*state)
        if state.plan.shape != shape or state.position.shape != (n,):
            raise ValueError(
                f"state must hold plans of shape {shape}, got {state.plan.shape}; pass what the last call of "
                "this agent returned for the same environments, or None to start afresh"
            )
        if self.keep is None:
            return state._replace(futures=None)
        paths = (n, self.planner.futures, self.planner.horizon + 1, self.dynamics.latent_dim)
        found = None if state.futures is None else tuple(state.futures.paths.shape)
        if found != paths:
            raise ValueError(
                f"state must hold futures of shape {paths}, got {found}; pass what the last call of this agent "
                "returned for the same environments, or None to start afresh"
            )
        return state

    def _check_settings(self) -> None:
        if isinstance(self.planner, type) or not isinstance(self.planner, Planner):
            names = ("horizon", "actions", "futures", "risk", "check", "plan")
            missing = ", ".join(name for name in names if not hasattr(self.planner, name))
            raise TypeError(
                "planner must be an object with horizon, actions, futures, risk, check and plan (a "
                f"jepa_rl.agents.BasePlanner has all but horizon and plan), got {self.planner!r}"
                + (f", which lacks {missing}" if missing else "")
            )
        steps = self.planner.horizon * self.spec.block
        if not 1 <= self.replan_every <= steps:
            raise ValueError(
                f"replan_every must lie in [1, {steps}] environment steps (horizon {self.planner.horizon} x block "
                f"{self.spec.block}), got {self.replan_every}; lengthen the horizon or replan more often"
            )
        check_keep(self.keep, self.planner.futures, self.spec.block, self.replan_every)
        self.planner.check(self.spec, self.dynamics)


def _cost_settings(cost: Callable[[Any], Cost]) -> JSON | None:
    """The keywords of a ``GoalCost``; None for what cannot be written."""
    if cost is GoalCost:
        return {}
    if not isinstance(cost, partial) or cost.func is not GoalCost or cost.args:
        return None
    return dict(cost.keywords) if all(isinstance(value, str) for value in cost.keywords.values()) else None
