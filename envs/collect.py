"""Collecting episodes: runs a policy and writes its observations to an episode store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from jepa_rl.acting import BatchActor, PredictingAgent, scalar_reward
from jepa_rl.data import Episode, EpisodeStore
from jepa_rl.data.layout import Layout
from jepa_rl.envs.episode_writer import EpisodeWriter
from jepa_rl.envs.policies import Policy, RandomPolicy
from jepa_rl.envs.recorder import Recorder
from jepa_rl.envs.workers import Workers
from jepa_rl.envs.wrappers.fresh import keep_last_observations
from jepa_rl.progress import Progress
from jepa_rl.spaces import world_spec
from jepa_rl.types import ActionSpec, WorldSpec

# (observations, which environments start an episode, which still count) to actions that the space contains.
_Act = Callable[[Any, np.ndarray, np.ndarray], np.ndarray]


def collect(
    env: gym.Env | VectorEnv,
    store: str | Path | EpisodeStore,
    *,
    policy: str | Policy | Any = "random",
    episodes: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    extras: Sequence[str] = (),
    progress: bool = True,
) -> EpisodeStore:
    """Plays ``policy`` in ``env`` and stores every episode when it ends.

    Finished episodes are written every two seconds and at the end, also after an error or Ctrl-C; a killed process
    loses those of the last two seconds. Only the newest frame of each observation is stored; the sampler stacks frames
    again.

    Several environments at once are faster. ``PixelObservation`` gives pictures of any environment::

        env = gym.make_vec("CartPole-v1", 8, "sync", wrappers=[PixelObservation], render_mode="rgb_array")
        store = collect(env, "runs/cartpole/episodes", steps=20_000, seed=0)

    Args:
        env: an environment or Gymnasium vector environment (any autoreset mode) with uint8 pixels
            ``(frames * c, y, x)``, or a Dict with these under ``"pixels"``; see ``PixelObservation``. It is not closed.
        store: an open store, or a folder: created, or added to if it holds a store of the same layout.
        policy: ``"random"``; an object with Stable-Baselines3's ``predict`` (its ``VecNormalize``, if it has one,
            normalises what it sees, not what is stored); or a function of (batched observations,
            ``np.random.Generator``) that returns actions ``(n, a)``, ``(n,)`` or (MultiDiscrete) ``(n, choices)``.
            Continuous actions are clipped to the bounds.
        episodes: number of complete episodes, shared evenly among the environments (the first ones play one more if
            the number does not divide). Taking those that finish first instead would favour short episodes.
        steps: stop after at least this many environment steps; running episodes are stored as truncated.
        seed: of the environments' first reset and of the policy's generator. Equal seeds give equal data.
        extras: names of Dict observations or of ``info`` entries to store with each frame, for probes.
        progress: show the progress (``jepa_rl.progress``).

    Returns:
        The store, with its writer's lock released.

    Raises:
        TypeError, ValueError: if the environment, the policy or the store does not fit, or a reward, action or extra is
            NaN or infinite.
        RuntimeError: if the process of an environment ended, or did not answer for ten minutes; finished episodes are
            stored.
    """
    goal = goal_of(episodes, steps)
    seed = None if seed is None else int(seed)  # Gymnasium takes no NumPy numbers
    venv, act, states, recorder, observations, layout = _begin(env, policy, seed, extras)
    n = venv.num_envs
    share = np.full(n, np.iinfo(np.int64).max) if episodes is None else (episodes + n - 1 - np.arange(n)) // n
    store = open_store(store, layout)
    done, unit = 0, "episode" if steps is None else "step"
    with EpisodeWriter(store) as writer:
        with Progress("Collecting", goal, unit, shown=progress) as bar:
            bar.files(store.path)
            for played, ended in _play(venv, act, states, recorder, observations, share):
                writer.add(map(_copy, ended))  # the recorder will use their arrays again
                progressed = played if steps is not None else len(ended)
                done += progressed
                bar.update(progressed)
                if done >= goal:
                    break
        if steps is not None:
            running = np.flatnonzero(recorder.lengths > 0).tolist()
            writer.add(recorder.episode(i, terminated=False, truncated=True) for i in running)
    return store


def goal_of(episodes: int | None, steps: int | None) -> int:
    """How many of either are to be collected.

    Raises:
        ValueError: unless exactly one of them is given, and is at least 1.
    """
    if (episodes is None) == (steps is None):
        raise ValueError(f"pass either episodes or steps, got episodes={episodes} and steps={steps}")
    goal = steps if steps is not None else episodes or 0
    if goal < 1:
        raise ValueError(f"episodes and steps must be at least 1, got {goal}")
    return goal


def episode_layout(env: gym.Env, extras: Sequence[str] = ()) -> Layout:
    """What a store of the environment's episodes looks like; resets it.

    Raises:
        TypeError, ValueError: as ``collect``.
    """
    return _begin(env, "random", None, extras)[-1]


def play_episode(
    env: gym.Env, policy: str | Policy | Any, seed: int | None, extras: Sequence[str] = ()
) -> Episode:
    """The episode that ``collect(env, store, policy=policy, episodes=1, seed=seed, extras=extras)`` stores.

    Raises:
        TypeError, ValueError: as ``collect``.
    """
    venv, act, states, recorder, observations, _ = _begin(env, policy, seed, extras)
    steps = _play(venv, act, states, recorder, observations, np.ones(1, np.int64))
    return next(_copy(ended[0]) for _, ended in steps if ended)


def _begin(
    env: gym.Env | VectorEnv, policy: str | Policy | Any, seed: int | None, extras: Sequence[str]
) -> tuple[VectorEnv, _Act, _States, Recorder, Any, Layout]:
    """Resets the environments; what ``_play`` takes but for the shares, and the layout of a store."""
    venv, spec = _as_vector_env(env), world_spec(env)
    act = _actor(policy, spec.action, venv.num_envs, np.random.default_rng(seed))
    states = _States(venv, spec, extras)
    with Workers(venv).answering():
        observations, infos = venv.reset(seed=seed)
    rows = states.rows(observations, infos, np.ones(venv.num_envs, bool))
    return venv, act, states, Recorder(rows, spec.action), observations, states.layout(rows)


def _copy(episode: Episode) -> Episode:
    extras = {name: values.copy() for name, values in episode.extras.items()}
    arrays = {name: getattr(episode, name).copy() for name in ("frames", "actions", "rewards")}
    return replace(episode, **arrays, extras=extras)


def _play(
    venv: VectorEnv, act: _Act, states: _States, recorder: Recorder, observations: Any, share: np.ndarray
) -> Iterator[tuple[int, list[Episode]]]:
    """Steps the environments endlessly; yields (environment steps recorded, finished episodes) after each step.

    ``share``: number of episodes to record in each environment, int64 ``(n,)``. Afterwards it is stepped, because the
    others need it, but not recorded.
    """
    left, workers = share.copy(), Workers(venv)
    resetting = np.zeros(venv.num_envs, bool)  # NEXT_STEP: these ignore their action and reset
    starts = ~resetting
    while True:
        wanted = left > 0
        actions = act(observations, starts, wanted)
        with workers.answering():
            observations, rewards, terminated, truncated, infos = venv.step(actions)
        over = (terminated | truncated) & ~resetting
        live, recorded = ~resetting & wanted, over & wanted
        recorder.step(live, actions, rewards, states.arrived(observations, infos, live, recorded))
        ended = np.flatnonzero(recorded).tolist()
        episodes = [recorder.episode(i, terminated[i], truncated[i]) for i in ended]
        recorder.lengths[ended] = 0
        left[ended] -= 1
        yield int(live.sum()), episodes

        if states.autoreset is AutoresetMode.NEXT_STEP:
            starts, resetting = resetting, over
        else:
            starts = over
            if states.autoreset is AutoresetMode.DISABLED and over.any():
                with workers.answering():
                    observations, infos = venv.reset(options={"reset_mask": over.copy()})
        beginning = starts & (left > 0)
        if beginning.any():
            recorder.begin(beginning, states.rows(observations, infos, beginning))


class _States:
    """Extracts the newest frames and the extras from what a vector environment returns.

    ``rows`` are a dict of arrays ``(n, ...)``: ``"frames"`` and the extras.
    """

    def __init__(self, venv: VectorEnv, spec: WorldSpec, extras: Sequence[str]) -> None:
        self.autoreset = AutoresetMode(venv.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        if self.autoreset is AutoresetMode.SAME_STEP:
            keep_last_observations(venv)
        self._spec, self._extras = spec, tuple(extras)
        assert spec.pixels is not None, "world_spec asks for pixels"
        self._channels, self._sides = spec.pixels[0] // spec.frames, spec.pixels[1:]

    def layout(self, rows: Mapping[str, np.ndarray]) -> Layout:
        extras = {name: (rows[name].shape[1:], rows[name].dtype) for name in self._extras}
        shape = (self._channels, *self._sides)
        return Layout.make(shape, self._spec.action, self._spec.frames, extras, self._spec.source)

    def rows(self, observations: Any, infos: Mapping[str, Any], needed: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of all environments.

        Args:
            observations, infos: from the vector environment.
            needed: bool ``(n,)``; where False, extras may be missing.
        """
        pixels = observations["pixels"] if isinstance(observations, dict) else observations
        rows = {"frames": pixels[:, -self._channels :]}
        for name in self._extras:
            in_observation = isinstance(observations, dict) and name in observations
            rows[name] = observations[name] if in_observation else _from_info(name, infos, needed)
        return rows

    def arrived(
        self, observations: Any, infos: Mapping[str, Any], live: np.ndarray, done: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Rows of the states after a step; from ``final_obs`` where the environment has already been reset.

        Args:
            observations, infos: from the vector environment.
            live: bool ``(n,)``; where False, extras may be missing.
            done: bool ``(n,)``; where an episode ended in this step.
        """
        if self.autoreset is not AutoresetMode.SAME_STEP or not done.any():
            return self.rows(observations, infos, live)
        if "final_obs" not in infos:
            raise ValueError(
                "SAME_STEP autoreset needs infos['final_obs'] when an episode ends, got the keys "
                f"{sorted(infos)}; without it the episode's last picture is lost. Let the environment give it, or use "
                "another AutoresetMode"
            )
        rows = {name: np.array(values) for name, values in self.rows(observations, infos, live).items()}
        finals = [infos["final_obs"][i] for i in np.flatnonzero(done)]
        for name in self._extras:
            if isinstance(observations, dict) and name in observations:
                rows[name][done] = np.stack([final[name] for final in finals])
            else:
                rows[name][done] = _from_info(name, infos["final_info"], done)[done]
        pixels = [final["pixels"] if isinstance(final, dict) else final for final in finals]
        rows["frames"][done] = np.stack(pixels)[:, -self._channels :]
        return rows


def _from_info(name: str, infos: Mapping[str, Any], needed: np.ndarray) -> np.ndarray:
    known = sorted(key for key in infos if not key.startswith("_"))
    if name not in infos:
        raise ValueError(f"the environment's info has no entry {name!r} to store; it has {known}")
    values = np.asarray(infos[name])
    missing = needed & ~np.asarray(infos.get(f"_{name}", needed), bool)
    if missing.any():
        raise ValueError(f"info entry {name!r} is missing in environments {np.flatnonzero(missing).tolist()}")
    if values.dtype.kind not in "biuf":
        raise TypeError(f"info entry {name!r} must be numbers or booleans to be stored, got {values.dtype}")
    return values


def _actor(policy: str | Policy | Any, action: ActionSpec, num_envs: int, rng: np.random.Generator) -> _Act:
    """The policy as one function, whichever kind it is."""
    if policy == "random":
        policy = RandomPolicy(action, num_envs)
    if isinstance(policy, PredictingAgent):
        choose: _Act = BatchActor(policy)
    elif callable(policy):
        getattr(policy, "reset", lambda: None)()

        def choose(observations: Any, starts: np.ndarray, needed: np.ndarray) -> np.ndarray:
            return policy(observations, rng)
    else:
        raise TypeError(
            "policy must be 'random', an object with Stable-Baselines3's predict(observation, state, episode_start, "
            f"deterministic), or a function of (observations, rng), got {policy!r}"
        )

    def act(observations: Any, starts: np.ndarray, needed: np.ndarray) -> np.ndarray:
        actions = np.asarray(choose(observations, starts, needed))
        shape = (num_envs, *action.shape)
        if actions.shape != shape:
            raise ValueError(f"the policy must return actions of shape {shape}, got {actions.shape}")
        action.encode(actions)  # raises for NaN and for choices that do not exist
        return actions.astype(np.int64) if action.kind == "discrete" else action.clip(actions)

    return act


def _as_vector_env(env: gym.Env | VectorEnv) -> VectorEnv:
    if isinstance(env, VectorEnv):
        return env
    if isinstance(env, gym.Env):
        # Gymnasium's vector environments take no rewards of shape (1,).
        venv = SyncVectorEnv([lambda: gym.wrappers.TransformReward(env, scalar_reward)])
        venv.closed = True  # otherwise its garbage collection would close the caller's environment
        return venv
    raise TypeError(
        f"expected a gymnasium.Env or gymnasium.vector.VectorEnv, got {type(env).__name__}; "
        "make one with gymnasium.make or gymnasium.make_vec"
    )


def open_store(store: str | Path | EpisodeStore, layout: Layout) -> EpisodeStore:
    """The store, open for ``collect``: created where there is none.

    Raises:
        ValueError: if it holds episodes of another layout.
    """
    if not isinstance(store, EpisodeStore):
        return EpisodeStore.create(
            store,
            layout.frame_shape,
            layout.action,
            frames=layout.frames,
            extras=layout.extras,
            source=layout.source,
            exist_ok=True,
        )
    if store.layout != layout:
        raise ValueError(f"{store.path} holds a store with {store.layout}, this environment gives {layout}")
    return store
