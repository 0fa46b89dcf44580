"""Actions of an agent for several environments at once, and rewards as plain floats.

Used by ``jepa_rl.agents.evaluation`` and ``jepa_rl.envs.collect``.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int64


@runtime_checkable
class PredictingAgent(Protocol):
    """Stable-Baselines3's ``predict``; ``state`` is what the last call returned, None at the beginning."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Bool[np.ndarray, " n"] | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]: ...


@runtime_checkable
class NormalizedAgent(Protocol):
    """An agent that may have been trained on observations normalised by Stable-Baselines3's ``VecNormalize``."""

    def get_vec_normalize_env(self) -> Any | None: ...


@runtime_checkable
class SelectiveAgent(Protocol):
    """An agent that can continue with a subset of its environments, so that finished ones cost nothing."""

    def select_state(self, state: Any, rows: Int64[np.ndarray, " m"]) -> Any:
        """The part of ``state`` (None before the first call) of the environments ``rows``, in that order.

        Raises:
            NotImplementedError: if the agent keeps per-environment data outside ``state``.
        """
        ...


class BatchActor:
    """Calls ``predict`` for ``n`` environments and passes the agent's state from call to call.

    Observations are normalised by the agent's own ``VecNormalize`` (``NormalizedAgent``). Stable-Baselines3 saves that
    in a separate file: an agent that was loaded without it gets raw observations. Environments that are no longer
    needed leave the batch if the agent allows it (``SelectiveAgent``), and stay in it otherwise.

    Args:
        agent: anything with Stable-Baselines3's ``predict``.
        deterministic: passed on to it.
    """

    def __init__(self, agent: PredictingAgent, deterministic: bool = False) -> None:
        self.agent, self.deterministic = agent, deterministic
        self._rows: np.ndarray | None = None  # the environments in the batch
        self._state: Any = None
        self._actions: np.ndarray | None = None

    def __call__(
        self, observations: Any, starts: Bool[np.ndarray, " n"], needed: Bool[np.ndarray, " n"]
    ) -> np.ndarray:
        """Actions of all environments, ``(n, ...)``; those of environments that are not needed are arbitrary.

        Args:
            observations: of all environments, ``(n, ...)``, or a Dict of such arrays.
            starts: where an episode has just begun.
            needed: bool; whose actions are used. An environment that was not needed once must not be needed later.

        Raises:
            ValueError: if the agent returns actions of another number of environments.
        """
        if self._rows is None:
            self._rows = np.arange(len(starts))
        self._leave_out(needed)
        rows = self._rows
        if isinstance(observations, dict):
            seen: Any = {name: value[rows] for name, value in observations.items()}
        else:
            seen = observations[rows]
        actions, self._state = self.agent.predict(
            normalized_for(self.agent, seen),
            state=self._state,
            episode_start=starts[rows],
            deterministic=self.deterministic,
        )
        actions = np.asarray(actions)
        if actions.shape[:1] != rows.shape:
            raise ValueError(
                f"predict must return one action for each of {len(rows)} environments, got shape {actions.shape}"
            )
        if self._actions is None:
            self._actions = np.repeat(actions[:1], len(starts), axis=0)
        self._actions[rows] = actions
        return self._actions.copy()

    def _leave_out(self, needed: Bool[np.ndarray, " n"]) -> None:
        assert self._rows is not None and np.isin(np.flatnonzero(needed), self._rows).all()
        keep = np.flatnonzero(needed[self._rows])
        if len(keep) == len(self._rows) or not isinstance(self.agent, SelectiveAgent):
            return
        try:
            self._state = self.agent.select_state(self._state, keep)
        except NotImplementedError:
            return
        self._rows = self._rows[keep]


def normalized_for(agent: Any, observations: Any) -> Any:
    """Observations normalised by the agent's ``VecNormalize``, if it has one."""
    normalize = agent.get_vec_normalize_env() if isinstance(agent, NormalizedAgent) else None
    return observations if normalize is None else normalize.normalize_obs(observations)


def scalar_reward(reward: Any) -> float:
    """The reward of one step as a float; some environments return an array of one element.

    Raises:
        ValueError: if it is an array of several elements, or of none.
    """
    values = np.asarray(reward)
    if values.size != 1:
        raise ValueError(
            f"a reward must be one number, got an array of shape {values.shape}: {values.tolist()}; reduce it to one, "
            "for instance with gymnasium.wrappers.TransformReward"
        )
    return float(values.reshape(()))


def scalar_rewards(rewards: Any, n: int) -> Float[np.ndarray, " n"]:
    """The rewards of ``n`` environments, shape ``(n,)``; ``(n, 1)`` is accepted, too.

    Raises:
        ValueError: for another shape.
    """
    rewards = np.asarray(rewards)
    if rewards.shape not in ((n,), (n, 1)):
        raise ValueError(f"expected one reward for each of {n} environments, got shape {rewards.shape}")
    return rewards.reshape(n)
