"""Environments in other processes that die, hang or lie at any step: an error in words, and the store whole.

Escaped is a run that neither goes on nor ends within a minute, an error without words, a store that lost an episode or
does not hold what was stored, and numbers that went through although they were no numbers.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from _trust_runs import Spot, promising, quiet, warm
from _trust_worlds import Sums
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from stable_baselines3.common.vec_env import SubprocVecEnv

from jepa_rl import EpisodeStore
from jepa_rl.envs import SB3LatentObservation, VectorLatentObservation, collect, episode_writer, workers

SECONDS, LIMIT = 60, 1.0  # of a try, and of one step before it counts as hanging
FAULTS = ("exit", "kill", "raise", "hang", "shape", "float", "nan", "rewards", "none")
WAYS = ("collect", "vector", "sb3")
SAID = {"exit": "process ended", "kill": "process ended", "hang": "did not answer"}  # by these faults


class Faulty(Spot):
    """Goes wrong in one step or reset, counted from the first.

    Args:
        fault: of ``FAULTS``, or "" for none.
        at: number of the call.
    """

    def __init__(self, fault: str, at: int) -> None:
        super().__init__()
        self.fault, self.faulty, self.calls = fault, at, 0

    def reset(self, **options):
        seen, info = super().reset(**options)
        seen, _ = self._spoilt(seen, None)
        return seen, info

    def step(self, action):
        seen, reward, *rest = super().step(action)
        seen, reward = self._spoilt(seen, reward)
        return seen, reward, *rest

    def _spoilt(self, seen: Any, reward: Any) -> tuple[Any, Any]:
        self.calls += 1
        if (
            not self.fault
            or self.calls < self.faulty
            or (reward is None and self.fault in ("nan", "rewards"))
        ):
            return seen, reward  # a reset has no reward: the next step goes wrong instead
        self.faulty = 10**9
        if self.fault == "exit":
            os._exit(3)
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "raise":
            raise ArithmeticError("the simulation blew up at step 7")
        spoilt: dict[str, tuple[Any, Any]] = {
            "shape": (seen[:, :5], reward), "float": (seen / 255, reward), "none": (None, reward),
            "nan": (seen, float("nan")), "rewards": (seen, [1.0, 2.0]),
        }  # fmt: skip
        return spoilt[self.fault]


def run(
    tries: int, folder: Path, known: dict[str, Any], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Plays ``tries`` faults."""
    warm()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    outcomes: Counter[str] = Counter()
    escapes: list[str] = []
    kinds: Counter[str] = Counter()
    for number in range(tries):
        rng = random.Random(number)
        way, fault = WAYS[number % len(WAYS)], FAULTS[number // len(WAYS) % len(FAULTS)]
        at, which = rng.randrange(1, 30), rng.randrange(3)
        trial = partial(play, way, fault, at, which, rng, folder / "store")
        outcome, words = _alone(trial, folder / "report.json")
        kinds[f"{way}, {fault}: {outcome}"] += 1
        outcomes[outcome] += 1
        if outcome == "escaped":
            escapes.append(f"{number} ({way}, {fault}, call {at} of environment {which}): {words}")
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "worker_faults": tries, "workers_escaped": outcomes["escaped"], "outcomes": dict(outcomes),
        "kinds": dict(sorted(kinds.items())), "escapes": escapes[:30],
    }  # fmt: skip


def _alone(work: Callable[[], tuple[str, str]], report: Path) -> tuple[str, str]:
    """Plays in a process group of its own, which is ended when it takes too long."""
    report.unlink(missing_ok=True)
    pid = os.fork()
    if not pid:
        os.setsid()
        quiet()
        try:
            report.write_text(json.dumps(work()))
        except BaseException:
            report.write_text(json.dumps(("escaped", traceback.format_exc()[-1500:])))
        finally:
            os._exit(0)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # workers that are left, and the run if it hangs
    if not report.exists():
        os.waitpid(pid, 0)
        return "escaped", f"it did not end within {SECONDS} s"
    return tuple(json.loads(report.read_text()))


def play(way: str, fault: str, at: int, which: int, rng: random.Random, folder: Path) -> tuple[str, str]:
    """One run in which environment ``which`` of three goes wrong; the outcome, and what was wrong with it."""
    workers.STEP_LIMIT = LIMIT
    makes = [lambda i=i: Faulty(fault if i == which else "", at) for i in range(3)]
    stored = [0]
    shutil.rmtree(folder, ignore_errors=True)
    try:
        if way == "collect":
            _collect(makes, rng, folder, stored)
        elif way == "vector":
            env = VectorLatentObservation(AsyncVectorEnv(makes, shared_memory=rng.random() < 0.5), Sums())
            env.reset(seed=0)
            _step(env, lambda: env.step(env.action_space.sample()))
        else:
            venv = SB3LatentObservation(SubprocVecEnv(makes, start_method="fork"), Sums())
            venv.reset()
            _step(venv, lambda: venv.step(np.zeros((3, 2), np.float32)))
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        outcome = "refused" if len(str(error)) >= 20 else f"no words: {error!r}"
        if fault in SAID and SAID[fault] not in str(error):
            outcome = f"{error!r} does not say {SAID[fault]!r}"
    except Exception as error:
        outcome = f"raw: {error!r}"
    else:
        outcome = "went on"
    never = (("collect", "nan"), ("collect", "shape"), ("vector", "shape"), ("sb3", "shape"))
    if outcome == "went on" and (way, fault) in never:
        outcome = f"{fault} went through"
    if way == "collect" and (folder / "store.json").exists():
        store = EpisodeStore.open(folder)
        store.verify()
        if len(store) < stored[0]:
            outcome = f"{stored[0]} episodes were stored, {len(store)} are there"
    return (outcome, "") if outcome in ("refused", "went on") else ("escaped", outcome)


def _step(env: Any, step: Callable[[], Any]) -> None:
    for _ in range(40):
        seen = step()[0]
        if not np.isfinite(seen).all():
            raise AssertionError("latents are NaN")


def _collect(makes: list[Any], rng: random.Random, folder: Path, stored: list[int]) -> None:
    episode_writer.WRITE_EVERY = 0.0
    promising(EpisodeStore, "append_many", lambda store: stored.__setitem__(0, len(store)))
    env: gym.vector.VectorEnv = AsyncVectorEnv(
        makes, shared_memory=rng.random() < 0.5, autoreset_mode=rng.choice(list(AutoresetMode))
    )
    collect(env, folder, steps=100, seed=0, progress=False)
