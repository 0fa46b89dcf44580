"""Collecting episodes by several processes, on one machine or a cluster: for environments that are slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from jepa_rl.cluster import Parcel, ray_running
from jepa_rl.data import Episode, EpisodeStore
from jepa_rl.data.layout import Layout
from jepa_rl.envs.collect import episode_layout, goal_of, open_store, play_episode
from jepa_rl.envs.episode_writer import EpisodeWriter
from jepa_rl.envs.policies import Policy
from jepa_rl.progress import Progress

# Episodes for each actor that may be on their way, finished ones that wait for an earlier one included.
AHEAD = 4
RESTARTS = 3  # of an actor
CLOSE_SECONDS = 5.0


def collect_on_ray(
    make_env: Callable[[], gym.Env],
    store: str | Path | EpisodeStore,
    *,
    policy: str | Policy | Any = "random",
    episodes: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    extras: Sequence[str] = (),
    actors: int | None = None,
    address: str | None = None,
    progress: bool = True,
) -> EpisodeStore:
    """Plays ``policy`` in several processes (Ray actors), and stores their episodes. Needs the extra ``[ray]``.

    Episode ``k`` depends on ``seed + k`` alone, so that the number of actors changes nothing: the store is the one that
    the same is played to without Ray by ::

        for k in range(episodes):
            collect(make_env(), store, policy=policy, episodes=1, seed=seed + k)

    Where an actor is lost (killed, out of memory, a machine that went away), its episode is played again. This process
    alone writes the store, in the order of ``k``, as ``collect`` does. To go on after an interruption, pass
    ``seed + len(store)``.

    An environment that is fast is collected faster by ``collect`` and a vector environment: starting Ray takes seconds.

    Args:
        make_env: makes the environment, a single one as ``collect`` takes; called once in each actor. It is sent there:
            a function of a module, of the script, or a ``partial`` of one (``jepa_rl.cluster.Parcel``). All of an
            episode's chance must come from ``reset(seed=...)``, as Gymnasium asks of environments.
        store: an open store, or a folder, which only this process has to see.
        policy: as ``collect``. It is sent to the actors, too, and each episode is played by a fresh copy: it must be
            sendable (an agent whose model is on the CPU is), and remember nothing of earlier episodes. PyTorch's global
            generator is seeded for each episode, which agents draw from that are not deterministic.
        episodes: number of episodes.
        steps: play episodes, whole ones, until there are at least so many environment steps.
        seed: of the first episode, the next one has the next number. Seeds of other collections should lie farther away
            than their episodes are many. None draws one.
        extras: as ``collect``.
        actors: processes, each of which takes one core; as many as Ray has cores if None.
        address: of a Ray cluster (``jepa_rl.cluster.ray_running``); None starts Ray on this machine.
        progress: show the progress (``jepa_rl.progress``).

    Returns:
        The store, with its writer's lock released.

    Raises:
        ImportError, ConnectionError: as ``ray_running``.
        TypeError, ValueError: as ``collect``, also where environment or policy cannot be sent, or there are fewer cores
            than actors. What the environment or the policy raises is raised here; earlier episodes are stored.
        RuntimeError: if an actor was lost too often.
    """
    goal = goal_of(episodes, steps)
    if actors is not None and actors < 1:
        raise ValueError(f"episodes, steps and actors must be at least 1, got {goal} and actors={actors}")
    seed = int(np.random.SeedSequence().generate_state(1)[0] >> 1) if seed is None else int(seed)
    sent = Parcel(make_env, "make_env"), Parcel(policy, "policy")
    with ray_running(address, actors) as ray, _players(ray, sent, seed, tuple(extras), actors) as players:
        with _words(ray):
            store = open_store(store, ray.get(players[0].layout.remote()))
        done, unit = 0, "episode" if steps is None else "step"
        with EpisodeWriter(store) as writer, Progress("Collecting", goal, unit, shown=progress) as bar:
            bar.files(store.path)
            for episode in _in_order(ray, players, episodes):
                writer.add([episode])
                progressed = 1 if steps is None else len(episode)
                done += progressed
                bar.update(progressed)
                if done >= goal:
                    break
    return store


class _Player:
    """One actor: an environment, and episodes in it."""

    def __init__(self, make_env: Parcel, policy: Parcel, seed: int, extras: tuple[str, ...]) -> None:
        self._make_env, self._policy, self._seed, self._extras = make_env, policy, seed, extras
        self._env: gym.Env | None = None

    def env(self) -> gym.Env:
        """Made here and not in ``__init__``, whose errors Ray reports as a lost actor."""
        if self._env is None:
            torch.set_num_threads(1)
            self._env = self._make_env.open()()
            if not isinstance(self._env, gym.Env):
                raise TypeError(f"make_env must return a gymnasium.Env, got {type(self._env).__name__}")
        return self._env

    def layout(self) -> Layout:
        return episode_layout(self.env(), self._extras)

    def play(self, number: int) -> tuple[int, Episode]:
        seed = self._seed + number
        torch.manual_seed(seed)
        return number, play_episode(self.env(), self._policy.open(), seed, self._extras)

    def close(self) -> None:
        if self._env is not None:
            self._env.close()


@contextmanager
def _players(
    ray: Any, sent: tuple[Parcel, Parcel], seed: int, extras: tuple[str, ...], actors: int | None
) -> Iterator[list[Any]]:
    """The actors; Ray starts a lost one again and calls again what it was doing."""
    there = int(ray.cluster_resources().get("CPU", 0))
    actors = there if actors is None else actors
    if actors > there:
        raise ValueError(f"{actors} actors take {actors} cores, and Ray has {there}: pass actors={there}")
    kind = ray.remote(_Player).options(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS)
    make_env, policy = map(ray.put, sent)
    players = [kind.remote(make_env, policy, seed, extras) for _ in range(actors)]
    try:
        yield players
        with suppress(Exception):  # a courtesy: they end all the same
            ray.get([player.close.remote() for player in players], timeout=CLOSE_SECONDS)
    finally:
        for player in players:
            ray.kill(player)


def _in_order(ray: Any, players: list[Any], episodes: int | None) -> Iterator[Episode]:
    """Episodes 0, 1, ...; endlessly if their number is not given."""
    numbers = iter(range(episodes)) if episodes is not None else count()
    idle = list(players)
    playing: dict[Any, Any] = {}  # what will be an episode, and who plays it
    waiting: dict[int, Episode] = {}
    for number in range(episodes) if episodes is not None else count():
        while number not in waiting:
            while idle and len(playing) + len(waiting) < AHEAD * len(players):
                if (later := next(numbers, None)) is None:
                    break
                player = idle.pop()
                playing[player.play.remote(later)] = player
            ready, _ = ray.wait(list(playing), num_returns=1)
            idle.append(playing.pop(ready[0]))
            with _words(ray):
                found, episode = ray.get(ready[0])
            waiting[found] = episode
        yield waiting.pop(number)


@contextmanager
def _words(ray: Any) -> Iterator[None]:
    """Errors of the environment and the policy as they were raised there, and lost actors in words."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(
            f"an actor was lost {RESTARTS + 1} times, the last time by: {error}. The environment may crash, or want "
            "more memory than there is: play an episode of it alone, or pass fewer actors"
        ) from error
