"""Short runs of everything that promises to survive a kill, each in a folder of its own and the same every time.

A run is started in a fresh process, goes on with what it finds in its folder, says what it has promised to keep
(``acknowledge``), and returns a digest of what it has learned.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from _processes import free_port
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from jepa_rl import (
    EpisodeStore,
    TrainConfig,
    WindowSampler,
    WorldModel,
    WorldModelConfig,
    distributed,
    fit,
    refine_dynamics,
)
from jepa_rl.agents import JEPADQN, JEPAMPC, JEPASAC, EvaluationCallback, ResumableRun, jepa_policy_kwargs
from jepa_rl.agents.sb3.baselines import REPLAY, SaveAtEvaluation, load_saved
from jepa_rl.control import ControlConfig
from jepa_rl.csv_log import read_csv
from jepa_rl.envs import collect, episode_writer
from jepa_rl.files import load_tensors
from jepa_rl.training.checkpoint import TrainingState

Acknowledge = Callable[[Any], None]

WORLD: dict[str, Any] = {
    "encoder_options": {"widths": (8, 8)},
    "dynamics_options": {"width": 24, "depth": 2},
}
EPISODES = 40  # of one call of collect
TRAIN = TrainConfig(steps=40, batch_size=8, checkpoint_every=4, log_every=4, evaluate_every=40, seed=3)
CONTROL_STEPS, JOINT_STEPS, LEG = 120, 120, 40


class Spot(gym.Env):
    """A bright spot on 16 x 16 pixels that actions push about; episodes of unlike lengths, random starts."""

    metadata = {"frames": 2, "render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (2, 16, 16), np.uint8)

    def __init__(self, discrete: bool = False) -> None:
        self.discrete = discrete
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.uniform(2, 13, 2)
        self.left = int(self.np_random.integers(5, 15))
        self.before = self._picture()
        return np.stack([self.before, self.before]), {}

    def step(self, action):
        push = np.array([action - 1.0, 0.0]) if self.discrete else action
        self.at = np.clip(self.at + push + 0.1 * self.np_random.normal(size=2), 0, 15)
        now, before = self._picture(), self.before
        self.left, self.before = self.left - 1, now
        return np.stack([before, now]), float(-abs(self.at - 8).mean()), False, self.left == 0, {}

    def _picture(self):
        picture = np.zeros((16, 16), np.uint8)
        picture[tuple(self.at.astype(int))] = 255
        return picture


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    Attributes:
        play: runs in a folder to its end, from whatever is there; returns a digest of the outcome.
        holds: raises, or returns False, unless a folder holds what was acknowledged; None if nothing was yet.
        attempts: after so many kills of one run it is left to finish.
        right: whether the folder of a finished run is as it should be, where the digest does not tell.
        two: whether two processes play it; ``play`` is then told how to say the number of the other one.
    """

    play: Callable[..., str]
    holds: Callable[[Path, Any], bool]
    attempts: int = 12
    right: Callable[[Path], bool] = lambda folder: True
    two: bool = False


def digest(parts: Mapping[str, Any]) -> str:
    """Of tensors, arrays and JSON values by name, bit for bit."""
    found = hashlib.blake2b(digest_size=16)
    for name, value in sorted(parts.items()):
        found.update(name.encode())
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().contiguous().numpy()
        found.update(
            value.tobytes() if isinstance(value, np.ndarray) else json.dumps(value, default=str).encode()
        )
    return found.hexdigest()


def promising(owner: type, method: str, acknowledge: Callable[[Any], None]) -> None:
    """Says after each call of a method that writes that it has returned: from then on a promise holds."""
    write = getattr(owner, method)

    def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        answer = write(self, *args, **options)
        acknowledge(self)
        return answer

    setattr(owner, method, wrapped)


# -- collect ------------------------------------------------------------------------------------------


def play_collect(folder: Path, acknowledge: Acknowledge) -> str:
    """Episodes in calls of ``EPISODES``; what a killed call has stored stays, and the next call has another seed.

    ``calls.json`` notes where the episodes of each call begin, so that they can be compared with those of the same
    call that was not killed.
    """
    episode_writer.WRITE_EVERY = 0.0  # every step that ends an episode writes
    promising(EpisodeStore, "append_many", lambda store: acknowledge(len(store)))
    path, calls = folder / "episodes", folder / "calls.json"
    begun = json.loads(calls.read_text()) if calls.exists() else []
    kept = len(EpisodeStore.open(path)) if (path / "store.json").exists() else 0
    begun.append(kept)
    calls.with_suffix(".new").write_text(json.dumps(begun))
    calls.with_suffix(".new").replace(calls)
    collect(spots(), path, episodes=EPISODES, seed=len(begun), progress=False)
    return ""


def spots() -> gym.vector.VectorEnv:
    return gym.make_vec(
        "trust/Spot-v0", 3, "sync", vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    )


def right_episodes(folder: Path) -> bool:
    """Whether the episodes of every call are the first ones of the same call that nobody killed."""
    store, begun = EpisodeStore.open(folder / "episodes"), json.loads((folder / "calls.json").read_text())
    for call, (first, end) in enumerate(zip(begun, [*begun[1:], len(store)], strict=True), 1):
        if end == first:
            continue
        alone = collect(spots(), folder / f"call-{call}", episodes=EPISODES, seed=call, progress=False)
        for i in range(end - first):
            one, other = store.episode(first + i), alone.episode(i)
            if not all(
                np.array_equal(one.column(c), other.column(c)) for c in ("frames", "actions", "rewards")
            ):
                return False
    return True


def holds_episodes(folder: Path, acknowledged: int | None) -> bool:
    """The store opens, has no fewer episodes than were acknowledged, and each is whole."""
    if acknowledged is None:
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the line that a kill left unfinished
        store = EpisodeStore.open(folder / "episodes")
    return len(store) >= acknowledged and all(len(store.episode(i)) for i in range(len(store)))


# -- fit and refine_dynamics --------------------------------------------------------------------------


def model(store: EpisodeStore) -> WorldModel:
    torch.manual_seed(0)
    objective = {"sigreg": 0.5, "inverse_dynamics": 1.0, "projections": 8}
    return WorldModel(WorldModelConfig(store.spec, 8, objective_options=objective, **WORLD))


def data(folder: Path) -> EpisodeStore:
    """Episodes that all runs learn from, made once beside their folders."""
    path = folder.parent / "data"
    if (path / "store.json").exists() and len(store := EpisodeStore.open(path)) == 12:
        return store
    shutil.rmtree(path, ignore_errors=True)  # the disk gave out while they were collected
    return collect(Spot(), path, episodes=12, seed=0, progress=False)


def play_fit(folder: Path, acknowledge: Acknowledge) -> str:
    promising(TrainingState, "save", lambda state: acknowledge(state.step))
    store = data(folder)
    world = model(store)
    fit(world, WindowSampler(store, 3), TRAIN, folder, progress=False)
    return outcome(world, folder)


def play_two(folder: Path, acknowledge: Acknowledge, partner: Callable[[int], None]) -> str:
    """``fit`` in two processes, as ``torchrun`` starts them: this one is the first, and forks the other."""
    port, store = free_port(), data(folder)
    pid = os.fork()
    places = {
        "RANK": "0" if pid else "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    os.environ.update(places)
    code = 1
    try:
        if pid:
            partner(pid)
            promising(TrainingState, "save", lambda state: acknowledge(state.step))
        world = model(store)
        with distributed.join(timeout=30):
            fit(world, WindowSampler(store, 3), TRAIN, folder, progress=False)
        code = 0
    finally:
        if not pid:
            os._exit(code)
    os.waitpid(pid, 0)
    return outcome(world, folder)


def play_refine(folder: Path, acknowledge: Acknowledge) -> str:
    promising(TrainingState, "save", lambda state: acknowledge(state.step))
    store = data(folder)
    world = model(store).eval()
    refine_dynamics(world, store, folder, steps=3, config=TRAIN, progress=False)
    return outcome(world, folder)


def outcome(world: WorldModel, folder: Path) -> str:
    """Digest of a trained world model and of what was logged."""
    return digest(world.state_dict() | {"logged": logged(folder)})


def logged(folder: Path) -> list[str]:
    """The steps in progress.csv: each once, whatever was killed."""
    return [row[0] for row in read_csv(folder / "progress.csv")[1]]


def holds_checkpoint(folder: Path, acknowledged: int | None) -> bool:
    if acknowledged is None:
        return True
    _, header = load_tensors(folder / "checkpoint.safetensors", ("training",))
    return header["step"] >= acknowledged


# -- JEPAMPC with ResumableRun ------------------------------------------------------------------------


def play_control(folder: Path, acknowledge: Acknowledge) -> str:
    promising(ResumableRun, "_save", lambda run: acknowledge(run.model.num_timesteps))
    search = dict(samples=8, elites=3, iterations=2, proposals=2)
    world = {"latent_dim": 16, **WORLD}
    agent = JEPAMPC(
        "CnnPolicy", Spot(), seed=3, learning_starts=30, batch_size=8, buffer_size=120, n_step=3,
        policy_kwargs={"world": world, "control": ControlConfig(width=24, bins=21), **search},
    )  # fmt: skip
    agent.learn(CONTROL_STEPS, callback=ResumableRun(folder, every=20))
    drawn = agent.replay_buffer.sample(64, 3, np.random.default_rng(0))
    replay = {"replay.pixels": drawn.pixels, "replay.rewards": drawn.rewards}
    return digest(
        agent.policy.state_dict() | replay | {"logged": logged(folder), "steps": agent.num_timesteps}
    )


def holds_run(folder: Path, acknowledged: int | None) -> bool:
    if acknowledged is None:
        return True
    _, header = load_tensors(folder / "checkpoint.safetensors", ("jepa_mpc run",))
    for number in header["episodes"]:
        load_tensors(folder / "episodes" / f"{number:08d}.safetensors", ("replay",))
    return header["num_timesteps"] >= acknowledged


# -- joint training with Stable-Baselines3 ------------------------------------------------------------


def joint(folder: Path, acknowledge: Acknowledge, discrete: bool) -> str:
    """Legs of ``LEG`` steps, each from the last save: what a kill interrupts is one leg, and that is run again."""
    promising(SaveAtEvaluation, "_on_step", lambda save: acknowledge(save._step) if save._step else None)
    algorithm: Any = JEPADQN if discrete else JEPASAC
    kwargs = jepa_policy_kwargs(latent_dim=8, steps=2, net_arch=[8], world=WORLD)
    settings = dict(buffer_size=300, learning_starts=20, batch_size=8, seed=3, policy_kwargs=kwargs)

    def make() -> gym.Env:
        return Spot(discrete)

    while True:
        saved, env = SaveAtEvaluation.newest(folder / "saved"), make_vec_env(make, 1)
        agent = (
            algorithm("CnnPolicy", env, **settings) if saved is None else load_saved(algorithm, saved, env)
        )
        left = JOINT_STEPS - agent.num_timesteps
        if left <= 0:
            drawn = agent.replay_buffer.episodes.sample(64, 2, np.random.default_rng(0))
            replay = {"replay.pixels": drawn.pixels, "replay.rewards": drawn.rewards}
            return digest(agent.policy.state_dict() | agent.joint.state_dict() | replay)
        curve = EvaluationCallback(make, LEG, 1, 0, folder / "curve.json")
        agent.learn(
            min(LEG, left),
            callback=[curve, SaveAtEvaluation(curve, folder / "saved")],
            reset_num_timesteps=saved is None,
        )


def holds_saved(folder: Path, acknowledged: int | None) -> bool:
    if acknowledged is None:
        return True
    saved = SaveAtEvaluation.newest(folder / "saved")
    if saved is None or int(saved.name) < acknowledged:
        return False
    load_tensors(saved / REPLAY, ("replay",))
    return True


KINDS: dict[str, Kind] = {
    "collect": Kind(play_collect, holds_episodes, attempts=6, right=right_episodes),
    "fit": Kind(play_fit, holds_checkpoint),
    "refine_dynamics": Kind(play_refine, holds_checkpoint),
    "jepa_mpc": Kind(play_control, holds_run),
    "joint_sac": Kind(lambda folder, tell: joint(folder, tell, False), holds_saved),
    "joint_dqn": Kind(lambda folder, tell: joint(folder, tell, True), holds_saved),
    "two_processes": Kind(play_two, holds_checkpoint, two=True),
}


def quiet() -> None:
    """This process prints nothing any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def warm() -> None:
    """Imports what runs import late, and sets one thread, before processes are forked."""
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    from tqdm import tqdm

    # Forked processes share tqdm's lock: after a kill of one that holds it all others would wait for ever.
    # The thread of its monitor may hold it at a fork, too.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    torch.set_num_threads(1)
    if "trust/Spot-v0" not in gym.registry:
        gym.register("trust/Spot-v0", Spot)
