"""Stable-Baselines3's PPO, SAC and DQN on latents, pixels or states, trained and evaluated alike.

What they see is decided by the environments alone, so a comparison is three factories and one call each::

    def pixels(n): return make_vec_env(lambda: PixelObservation(gym.make(name, render_mode="rgb_array")), n)
    def latents(n): return VecLatentObservation(pixels(n), "model.safetensors")
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
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecMonitor,
    VecNormalize,
    is_vecenv_wrapped,
    unwrap_vec_normalize,
)
from stable_baselines3.sac.policies import CnnPolicy

from jepa_rl.agents.evaluation import EvaluationCallback

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "sac": SAC, "dqn": DQN}
# DQN's defaults are Atari's, for millions of steps; these suit runs of ten thousands.
SHORT_DQN: dict[str, Any] = {
    "train_freq": 4, "gradient_steps": 2, "learning_rate": 5e-4, "target_update_interval": 500,
    "exploration_fraction": 0.2, "exploration_final_eps": 0.05, "batch_size": 64,
}  # fmt: skip
NORMALIZATION = "vecnormalize.pkl"  # beside a saved agent
EVALUATION_SEED = 1_000_000  # added to the seed, so that no episode of the evaluation is one of the training


@dataclass(frozen=True)
class BaselineRun:
    """A trained agent and what its evaluations found.

    Attributes:
        model: the agent after its last update; its environment is closed.
        timesteps: environment steps (of all environments together) at each of the k evaluations.
        returns: undiscounted return of every evaluation episode.
        seconds: wall clock of training, evaluations included.
    """

    model: BaseAlgorithm
    timesteps: Int[np.ndarray, " k"]
    returns: Float[np.ndarray, "k episodes"]
    seconds: float


class LeanCnnPolicy(CnnPolicy):
    """SAC's CnnPolicy without a gradient that SAC throws away: the same training, bit for bit, in four fifths the time.

    The actor's loss reaches the critic's convolutions, but only the actor steps on it, and the critic's
    gradients are zeroed before its own loss. They are not computed here.
    """

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return _LeanCritic(**kwargs).to(self.device)


class _LeanCritic(ContinuousCritic):
    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Actions with a gradient are the actor's own; the critic learns from the replay's, which have none.
        for_actor = actions.requires_grad or self.share_features_extractor
        with torch.set_grad_enabled(torch.is_grad_enabled() and not for_actor):
            features = self.extract_features(obs, self.features_extractor)
        both = torch.cat([features, actions], dim=1)
        return tuple(q_net(both) for q_net in self.q_networks)


class SaveAtEvaluation(BaseCallback):
    """Keeps agent and replay as they are at the newest point of the curve, for ``load_saved``.

    A kill at any moment leaves a whole one. Replay and ``VecNormalize`` are pickles (Stable-Baselines3 has no other
    format): load only what you saved yourself.

    Args:
        curve: stands before this among the callbacks.
        folder: of this run alone.
        more: writes whatever else belongs to it into the folder that it is given.
    """

    def __init__(
        self, curve: EvaluationCallback, folder: Path, more: Callable[[Path], None] | None = None
    ) -> None:
        super().__init__()
        self.curve, self.folder, self.more, self._step = curve, folder, more, 0

    @staticmethod
    def newest(folder: Path) -> Path | None:
        """The folder of what was saved last; None if nothing was."""
        whole = folder.glob("[0-9]*/agent.zip")  # not "part", which a kill may have left
        return max((path.parent for path in whole), key=lambda path: int(path.name), default=None)

    def _on_training_start(self) -> None:
        self._step = self.num_timesteps  # a run that goes on has saved this point already

    def _on_step(self) -> bool:
        step = self.curve.results[-1]["step"]
        if step > self._step:
            self._step, part = step, self.folder / "part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            self.model.save(part / "agent.zip")
            if isinstance(self.model, OffPolicyAlgorithm):
                self.model.save_replay_buffer(part / "replay.pkl")
            normalize = self.model.get_vec_normalize_env()
            if normalize is not None:
                normalize.save(str(part / NORMALIZATION))
            if self.more is not None:
                self.more(part)
            part.rename(self.folder / str(step))
            for older in self.folder.iterdir():
                if older.name != str(step):
                    shutil.rmtree(older)
        return True


Algorithm = TypeVar("Algorithm", bound=BaseAlgorithm)


def load_saved(algorithm: type[Algorithm], saved: Path, env: VecEnv, device: str = "auto") -> Algorithm:
    """The agent in ``saved``, with its replay and the statistics of its ``VecNormalize``; learning goes on from there.

    Args:
        algorithm: class of the agent.
        saved: ``SaveAtEvaluation.newest``.
        env: to go on in; a ``VecNormalize`` if the agent was trained in one. Its statistics are replaced.
        device: of the agent.

    Raises:
        ValueError: if only one of the agent and ``env`` is normalised.
    """
    normalize, file = unwrap_vec_normalize(env), saved / NORMALIZATION
    if file.exists() != (normalize is not None):
        trained, given = ("in", "not") if file.exists() else ("outside", "")
        raise ValueError(
            f"the agent in {saved} was trained {trained} a VecNormalize, env is {given} one; make them alike"
        )
    model = algorithm.load(saved / "agent.zip", env=env, device=device)
    if isinstance(model, OffPolicyAlgorithm):
        model.load_replay_buffer(saved / "replay.pkl")
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
    """Train one agent; evaluate it ``evaluations`` times at equal distances with its deterministic policy.

    Pictures get Stable-Baselines3's CnnPolicy, Dicts its MultiInputPolicy, vectors its MlpPolicy. Settings
    are its own defaults but for two: SAC learns once per environment step however many environments there
    are, and the replay buffer is no longer than the run (pictures: at most 100,000 steps).

    Writes TensorBoard events, ``evaluations.npz`` and ``best_model.zip`` to ``log_dir``. Stable-Baselines3
    seeds Python's, NumPy's and torch's global generators with ``seed``; equal seeds give equal runs.

    Args:
        algorithm: ``"ppo"`` (any actions), ``"sac"`` (continuous) or ``"dqn"`` (discrete).
        make_venv: makes so many environments; called for training and again for evaluation.
        total_timesteps: environment steps of all environments together; rounded up to whole rollouts.
        log_dir: folder of the run.
        n_envs: environments stepped together.
        seed: of weights, exploration and environments.
        evaluations: number of evaluations.
        eval_episodes: episodes in each.
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
        return buffer | {"gradient_steps": -1}  # as many as environment steps
    return buffer


def _monitored(venv: VecEnv) -> VecEnv:
    """With episode returns in ``info``, for which Stable-Baselines3 asks."""
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
