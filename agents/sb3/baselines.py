"""Stable-Baselines3's PPO, SAC and DQN on latents, pixels or states, trained and evaluated in the same way.

Only the environments decide what the agent sees, so a comparison is one factory and one call for each observation::

    def pixels(n): return make_vec_env(lambda: PixelObservation(gym.make(name, render_mode="rgb_array")), n)
    def latents(n): return SB3LatentObservation(pixels(n), "model.safetensors")
    def states(n): return make_vec_env(name, n)
    run = train_baseline("ppo", latents, 100_000, "runs/ppo_latents")
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecMonitor,
    VecNormalize,
    is_vecenv_wrapped,
    unwrap_vec_normalize,
)
from stable_baselines3.sac.policies import CnnPolicy

from jepa_rl.agents.evaluation import EvaluationCallback
from jepa_rl.agents.sb3.saved import load_agent
from jepa_rl.agents.sb3.whole_episodes import WholeEpisodes

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "sac": SAC, "dqn": DQN}
FALLING = LinearSchedule(1e-3, 1e-4, 1.0)  # pays in the last third of some ten thousand updates
# DQN's defaults are meant for millions of Atari steps; these suit runs of some ten thousand steps. With
# ``DropoutDQNPolicy`` they solve CartPole-v1 from state; with value targets over one step they end at a fourth of that.
SHORT_DQN: dict[str, Any] = {
    "train_freq": 4, "gradient_steps": 2, "learning_rate": FALLING, "batch_size": 128, "n_steps": 5,
    "tau": 0.02, "target_update_interval": 1, "exploration_fraction": 0.2, "exploration_final_eps": 0.05,
}  # fmt: skip
REPLAY, NORMALIZATION = "replay.pkl", "vecnormalize.pkl"  # beside a saved agent
EVALUATION_SEED = 1_000_000  # added to the seed, so that evaluation episodes are not training episodes


@dataclass(frozen=True)
class BaselineRun:
    """A trained agent and the results of its evaluations.

    Attributes:
        model: the agent after its last update; its environment is closed.
        timesteps: environment steps (of all environments together) at each of the k evaluations.
        returns: undiscounted return of every evaluation episode.
        seconds: wall-clock time of training, including evaluations.
    """

    model: BaseAlgorithm
    timesteps: Int[np.ndarray, " k"]
    returns: Float[np.ndarray, "k episodes"]
    seconds: float


class LeanCnnPolicy(CnnPolicy):
    """SAC's CnnPolicy without a gradient that SAC discards: bit-for-bit the same training in 80% of the time.

    The actor's loss also produces gradients in the critic's convolutions. They are never used, because the critic's
    gradients are set to zero before its own loss, so they are not computed here.
    """

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return _LeanCritic(**kwargs).to(self.device)


class _LeanCritic(ContinuousCritic):
    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Actions that require a gradient come from the actor; the critic's own loss uses the replay's, which do not.
        for_actor = actions.requires_grad or self.share_features_extractor
        with torch.set_grad_enabled(torch.is_grad_enabled() and not for_actor):
            features = self.extract_features(obs, self.features_extractor)
        both = torch.cat([features, actions], dim=1)
        return tuple(q_net(both) for q_net in self.q_networks)


class SaveAtEvaluation(BaseCallback):
    """Saves agent, replay and ``VecNormalize`` after each evaluation, for ``load_saved``; deletes the previous save.

    If the process is killed, one complete save is left. The statistics of ``VecNormalize``, and the replays of
    Stable-Baselines3's own algorithms, are pickles, its only format for them.

    Args:
        curve: the evaluations; it must come before this callback in the list of callbacks.
        folder: of this run alone.
        more: called with the folder of a save before it is completed, to write further files into it.
    """

    def __init__(
        self, curve: EvaluationCallback, folder: Path, more: Callable[[Path], None] | None = None
    ) -> None:
        super().__init__()
        self.curve, self.folder, self.more, self._step = curve, folder, more, 0

    @staticmethod
    def newest(folder: Path) -> Path | None:
        """The folder of the latest save; None if there is none."""
        whole = folder.glob("[0-9]*/agent.zip")  # not "part", which a killed process may have left
        return max((path.parent for path in whole), key=lambda path: int(path.name), default=None)

    def _on_training_start(self) -> None:
        self._step = self.num_timesteps  # a resumed run has already saved this point

    def _on_step(self) -> bool:
        step = self.curve.results[-1]["step"]
        if step > self._step:
            try:
                self._save(step)
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"could not save the agent in {self.folder} after {step} steps ({error}); free some space or "
                    f"choose another folder. The save before it, after {self._step} steps, is intact if there was one",
                ) from error
            self._step = step
        return True

    def _save(self, step: int) -> None:
        part = self.folder / "part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        self.model.save(part / "agent.zip")
        if isinstance(self.model, OffPolicyAlgorithm):
            self.model.save_replay_buffer(part / REPLAY)
        normalize = self.model.get_vec_normalize_env()
        if normalize is not None:
            normalize.save(str(part / NORMALIZATION))
        if self.more is not None:
            self.more(part)
        part.rename(self.folder / str(step))
        for older in self.folder.iterdir():
            if older.name != str(step):
                shutil.rmtree(older)


Algorithm = TypeVar("Algorithm", bound=BaseAlgorithm)


def load_saved(
    algorithm: type[Algorithm], saved: Path, env: VecEnv, device: str = "auto", *, trust: bool = False
) -> Algorithm:
    """The agent in ``saved``, with its replay and the statistics of its ``VecNormalize``; learning goes on from there.

    Args:
        algorithm: class of the agent.
        saved: ``SaveAtEvaluation.newest``.
        env: to go on in; a ``VecNormalize`` if the agent was trained in one. Its statistics are replaced.
        device: of the agent.
        trust: True: unpickle what Stable-Baselines3 pickles, which can execute anything. Only for what you saved
            yourself, or whose author you trust.

    Raises:
        ValueError: if only one of the agent and ``env`` is normalised, or ``saved`` holds what has to be unpickled and
            is not trusted; and as ``load_agent``.
    """
    normalize, file = unwrap_vec_normalize(env), saved / NORMALIZATION
    if file.exists() != (normalize is not None):
        trained, given = ("in", "not") if file.exists() else ("outside", "")
        raise ValueError(
            f"the agent in {saved} was trained {trained} a VecNormalize, env is {given} one; make them alike"
        )
    pickled = [name for name in (REPLAY, NORMALIZATION) if (saved / name).exists()]
    if issubclass(algorithm, WholeEpisodes):  # its replay is in a format of our own
        pickled.remove(REPLAY)
    if pickled and not trust:
        raise ValueError(
            f"{saved} holds {pickled}, which Stable-Baselines3 unpickles, and that can execute anything; if you saved "
            "it yourself, or trust who did, pass trust=True"
        )
    model = load_agent(algorithm, saved / "agent.zip", env, device=device, trust=trust)
    if isinstance(model, OffPolicyAlgorithm):
        model.load_replay_buffer(saved / REPLAY)
    if normalize is not None:
        statistics = VecNormalize.load(str(file), normalize.venv)
        normalize.obs_rms, normalize.ret_rms = statistics.obs_rms, statistics.ret_rms
    return model


def train_baseline(
    algorithm: Literal["ppo", "sac", "dqn"],
    make_venv: Callable[[int], VecEnv],
    total_timesteps: int,
    log_dir: str | Path,
    *,
    n_envs: int = 4,
    seed: int = 0,
    evaluations: int = 10,
    eval_episodes: int = 10,
    **settings: Any,
) -> BaselineRun:
    """Trains one agent and evaluates its deterministic policy ``evaluations`` times at equal intervals.

    Pictures use Stable-Baselines3's CnnPolicy, Dicts its MultiInputPolicy, vectors its MlpPolicy. Settings are its
    defaults with two exceptions: SAC makes one update per environment step for any number of environments, and the
    replay buffer is not larger than the run (pictures: at most 100,000 steps).

    Writes TensorBoard events, ``evaluations.npz`` and ``best_model.zip`` to ``log_dir``. Stable-Baselines3 seeds the
    global generators of Python, NumPy and torch with ``seed``; equal seeds give equal runs.

    Args:
        algorithm: ``"ppo"`` (any actions), ``"sac"`` (continuous) or ``"dqn"`` (discrete).
        make_venv: returns a ``VecEnv`` of the given number of environments; called for training and for evaluation.
        total_timesteps: environment steps of all environments together; rounded up to whole rollouts.
        log_dir: folder of the run.
        n_envs: number of environments.
        seed: of weights, exploration and environments.
        evaluations: number of evaluations.
        eval_episodes: episodes in each evaluation.
        **settings: constructor arguments of the algorithm, e.g. ``learning_rate``, ``n_steps``, ``device``.

    Raises:
        ValueError: if the algorithm is unknown or does not fit the action space, or a number is below 1.
    """
    _check_numbers(
        total_timesteps=total_timesteps, n_envs=n_envs, evaluations=evaluations, eval_episodes=eval_episodes
    )
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {list(ALGORITHMS)}, got {algorithm!r}")
    venvs: list[VecEnv] = []
    try:
        for first_seed in (seed, seed + EVALUATION_SEED):
            venvs.append(_monitored(make_venv(n_envs)))
            _check_actions(algorithm, venvs[-1].action_space)
            venvs[-1].seed(first_seed)
        train, held_out = venvs
        normalize = unwrap_vec_normalize(held_out)
        if (
            normalize is not None
        ):  # EvalCallback copies the statistics of training; returns are the environment's own
            normalize.training = normalize.norm_reward = False
        space = train.observation_space
        # A copy: Stable-Baselines3 writes into the policy_kwargs that it is given.
        settings = _defaults(algorithm, space, total_timesteps) | copy.deepcopy(settings)
        model = ALGORITHMS[algorithm](policy_for(space), train, seed=seed, **settings)
        model.set_logger(configure(str(log_dir), ["tensorboard"]))
        evaluate = EvalCallback(
            held_out,
            n_eval_episodes=eval_episodes,
            eval_freq=max(1, total_timesteps // evaluations // n_envs),
            log_path=str(log_dir),
            best_model_save_path=str(log_dir),
            verbose=0,
        )
        start = time.perf_counter()
        model.learn(total_timesteps, callback=evaluate)
        seconds = time.perf_counter() - start
        model.logger.close()
        timesteps, returns = evaluate.evaluations_timesteps, evaluate.evaluations_results
        return BaselineRun(model, np.array(timesteps), np.array(returns), seconds)
    finally:
        for venv in venvs:
            venv.close()


def policy_for(space: spaces.Space) -> str:
    """Stable-Baselines3's policy for observations of ``space``."""
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"


def _defaults(algorithm: str, space: spaces.Space, total_timesteps: int) -> dict[str, Any]:
    if algorithm == "ppo":
        return {}
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    longest = 100_000 if any(is_image_space(part) for part in parts) else 1_000_000
    buffer = {"buffer_size": min(longest, max(total_timesteps, 1000))}
    if algorithm == "sac":
        return buffer | {"gradient_steps": -1}  # as many updates as environment steps
    return buffer


def _monitored(venv: VecEnv) -> VecEnv:
    """``venv`` with episode returns in ``info``, which Stable-Baselines3 logs."""
    if is_vecenv_wrapped(venv, VecMonitor) or all(venv.env_is_wrapped(Monitor)):
        return venv
    return VecMonitor(venv)


def _check_actions(algorithm: str, space: spaces.Space) -> None:
    wanted = {"sac": spaces.Box, "dqn": spaces.Discrete}.get(algorithm)
    if wanted is not None and not isinstance(space, wanted):
        others = "'ppo' or 'dqn'" if isinstance(space, spaces.Discrete) else "'ppo' or 'sac'"
        raise ValueError(f"{algorithm!r} needs {wanted.__name__} actions, got {space}; use {others}")


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
