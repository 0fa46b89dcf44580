"""Environments in other processes that die or hang."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from dots import Dot
from gymnasium.vector import AsyncVectorEnv
from stable_baselines3.common.vec_env import SubprocVecEnv

from jepa_rl import EpisodeStore
from jepa_rl.envs import SB3LatentObservation, VectorLatentObservation, collect, workers

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked, with the environments below"),
    # Gymnasium closes what is garbage, and finds the processes gone.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:.*Calling `close`"),
]


class Faulty(Dot):
    """Ends or stops its process in one step."""

    def __init__(self, fault="", at=0):
        super().__init__(length=6)
        self.fault, self.at, self.steps = fault, at, 0

    def step(self, action):
        self.steps += 1
        if self.steps == self.at:
            os.kill(os.getpid(), {"dies": signal.SIGKILL, "hangs": signal.SIGSTOP}[self.fault])
        return super().step(action)


class Mean:
    latent_dim = 1

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().mean((1, 2, 3))[:, None]


FAULTS = [
    ("dies", r"process ended .*exit codes by environment: \{1: -9\}"),
    ("hangs", "did not answer within 5 s"),
]


@pytest.fixture
def makes(monkeypatch):
    monkeypatch.setattr(workers, "STEP_LIMIT", 5.0)
    yield lambda fault, at=9: [Faulty, lambda: Faulty(fault, at), Faulty]
    for process in multiprocessing.active_children():
        process.kill()


@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_collect_stores_what_was_finished_and_says_what_happened(tmp_path, makes, fault, words):
    """Forked workers hold each other's pipes open, so that waiting for a dead one alone would never end."""
    env = AsyncVectorEnv(makes(fault), context="fork")
    with pytest.raises(RuntimeError, match=words):
        collect(env, tmp_path, steps=100, seed=0, progress=False)
    store = EpisodeStore.open(tmp_path)
    store.verify()
    assert len(store) == 3 and (store.lengths == 6).all()


@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_wrappers_say_what_happened(makes, fault, words):
    env = VectorLatentObservation(AsyncVectorEnv(makes(fault, 2), context="fork"), Mean())
    env.reset(seed=0)
    env.step(np.zeros((3, 1), np.float32))
    with pytest.raises(RuntimeError, match=words):
        env.step(np.zeros((3, 1), np.float32))


@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_stable_baselines3s_workers_too(makes, fault, words):
    venv = SB3LatentObservation(SubprocVecEnv(makes(fault, 2), start_method="fork"), Mean())
    venv.reset()
    venv.step(np.zeros((3, 1), np.float32))
    with pytest.raises(RuntimeError, match=words):
        venv.step(np.zeros((3, 1), np.float32))


def test_what_has_ended_well_is_not_watched():
    env = AsyncVectorEnv([Faulty], context="fork")
    watched = workers.Workers(env)
    with watched.answering():
        env.reset(seed=0)
    env.close()
    time.sleep(2 * workers.LOOK)
    assert not watched.trouble
