"""How JEPAMPC meets its environments: plans as actions, whole episodes in the replay, runs that are cut short."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from jaxtyping import Float
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback, TrainFreq
from torch import Tensor

from jepa_rl.acting import scalar_rewards
from jepa_rl.agents.sb3.checks import check_terminal_observations
from jepa_rl.agents.sb3.jepa_mpc.monitor import EnvClock, PlanRecord, search_metrics
from jepa_rl.agents.sb3.jepa_mpc.policy import JEPAMPCPolicy
from jepa_rl.agents.sb3.progress import LearningProgress, write_csv
from jepa_rl.agents.sb3.saved import SafeLoading
from jepa_rl.agents.sb3.whole_episodes import WholeEpisodes, replay_path
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.data.replay import EpisodeReplay
from jepa_rl.modes import evaluating
from jepa_rl.objectives.base import each
from jepa_rl.spaces import by_name, observation_boxes


class EpisodicAlgorithm(SafeLoading, WholeEpisodes):
    """Stable-Baselines3's off-policy algorithm with a planning policy and a replay of whole episodes.

    A subclass sets the attributes in its constructor and in ``_setup_model``, and adds ``train``.

    Attributes:
        policy: plans.
        replay_buffer: an ``EpisodeReplay``; None for an agent that was loaded and has not learned since.
        frames: stacked in every picture.
    """

    policy: JEPAMPCPolicy
    replay_buffer: Any
    frames: int
    _step_began: float | None  # when the environments' step began, in seconds; None before the first
    _helpers: Any = None  # the other processes, if there are any: processes.Helpers, while learn runs
    _plans: tuple[np.ndarray, ...] | None  # the search's last plans, one for each environment

    @property
    def _episodes(self) -> EpisodeReplay | None:
        replay: EpisodeReplay | None = self.replay_buffer
        return replay

    def _make_replay(self) -> None:
        self.replay_buffer = EpisodeReplay(
            observation_boxes(self.observation_space),
            self.policy.action.size,
            self.buffer_size,
            frames=self.frames,
            num_envs=self.n_envs,
        )

    def learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> Self:
        """As in Stable-Baselines3. Inside ``jepa_rl.distributed.join`` all processes call it; the first one acts.

        Raises:
            RuntimeError: if the process of an environment died; whatever an environment raises passes through.
            ValueError, ProcessLost: as ``shared_updates``.
        """
        from jepa_rl.agents.sb3.jepa_mpc.processes import shared_updates  # it knows JEPAMPC, a subclass

        try:
            with shared_updates(cast(Any, self)) as acts:
                return super().learn(total_timesteps, *args, **kwargs) if acts else self
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            processes = getattr(self.env.unwrapped, "processes", ()) if self.env is not None else ()
            for process in processes:
                process.join(timeout=1)  # its pipe breaks a moment before it is gone
            if all(process.is_alive() for process in processes):
                raise
            raise RuntimeError(
                f"the process of an environment died after {self.num_timesteps} steps ({error!r}); its own message "
                "stands above. Make the environments anew; with ResumableRun learning goes on from the last checkpoint"
            ) from error

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        self._step_began = None
        self._record = PlanRecord(self.n_envs, self.gamma)
        if callback is None:
            given: list[BaseCallback] = []
        elif isinstance(callback, list):
            given = callback
        else:
            given = [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]
        shown = [LearningProgress()] if progress_bar else []  # instead of SB3's bar, which floods log files
        return super()._init_callback([EnvClock(), *given, *shown])

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        *args: Any,
        **kw: Any,
    ) -> tuple[int, BaseCallback]:
        if self.replay_buffer is None:
            self._make_replay()
        if self._end_running_episodes(reset_num_timesteps):
            self._plans = None
        found = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kw)
        if (
            self.logger.dir is not None and self.tensorboard_log is not None and not self._custom_logger
        ):  # beside TensorBoard's events
            write_csv(self.logger, self.logger.dir, None)
        return found

    def _updates_owed(self) -> int:
        """The number of updates that there would be if the random steps had been followed by updates, too."""
        if self.gradient_steps < 0:
            return self.num_timesteps
        freq = self.train_freq
        assert isinstance(freq, TrainFreq), "SB3 converts it when it sets up the model"
        steps = freq.frequency * self.n_envs
        rollouts = (
            self._episode_num // freq.frequency
            if freq.unit.value == "episode"
            else self.num_timesteps // steps
        )
        return self.gradient_steps * rollouts

    # -- acting -------------------------------------------------------------------------------------

    def select_state(self, state: Any, rows: np.ndarray) -> Any:
        """``JEPAMPCPolicy.select_state``."""
        return self.policy.select_state(state, rows)

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions for the environments and for the replay."""
        self._unstored = True
        if self.num_timesteps < learning_starts:
            actions = np.array([self.action_space.sample() for _ in range(n_envs)])
            self._step_began = time.perf_counter()
            return actions, self.policy.action.encode(actions)
        assert self._last_obs is not None, "SB3 resets the environments before it asks for actions"
        tensors, _ = self.policy.obs_to_tensor(self._last_obs)
        model_actions, self._plans = self.policy.act(
            tensors, self._plans, self._last_episode_starts, deterministic=False
        )
        plan, policy = self.policy.last_plan, self.policy
        assert plan is not None
        self._record.promised(-plan.cost.cpu().numpy())
        metrics = search_metrics(plan, policy.planner.samples, policy.planner.elites)
        metrics |= {f"time/{name}_ms": 1e3 * seconds for name, seconds in policy.seconds.items()}
        for name, value in metrics.items():
            self.logger.record_mean(name, value)
        self._step_began = time.perf_counter()
        return policy.action.decode(model_actions), model_actions

    def _store_transition(
        self, replay_buffer: Any, buffer_action: np.ndarray, new_obs: Any, reward: np.ndarray,
        dones: np.ndarray, infos: list[dict[str, Any]],
    ) -> None:  # fmt: skip
        check_terminal_observations(dones, infos)
        reward = scalar_rewards(reward, len(dones))
        following = by_name(new_obs)
        if dones.any():  # Stable-Baselines3 keeps new_obs as the next observation: do not write into it
            following = {name: value.copy() for name, value in following.items()}
        for i in np.flatnonzero(dones):
            for name, value in by_name(infos[i]["terminal_observation"]).items():
                following[name][i] = value
        cut = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        ended = dones & ~cut
        replay_buffer.add(by_name(self._last_obs), buffer_action, reward, following, ended, dones)
        for name, number in self._record.paid(reward, ended, dones).items():
            self.logger.record_mean(name, number)
        self._last_obs, self._last_episode_starts = new_obs, dones
        self._unstored = False

    # -- files --------------------------------------------------------------------------------------

    def save_replay_buffer(self, path: str | Path | io.BufferedIOBase) -> None:
        """Writes the finished episodes to one safetensors file, whatever the suffix.

        Raises:
            ValueError: if there is no replay yet.
        """
        if self.replay_buffer is None:
            raise ValueError(
                "there is no replay to save: this agent was loaded, and has not learned since; save the "
                "replay of the agent that learned, or call learn first"
            )
        self.replay_buffer.save(replay_path(path))

    def load_replay_buffer(
        self, path: str | Path | io.BufferedIOBase, truncate_last_traj: bool = True
    ) -> None:
        """Replaces the replay's episodes by those of a file of ``save_replay_buffer``; no code in it is executed.

        Raises:
            ValueError, FileNotFoundError: as ``EpisodeReplay.load``.
        """
        if self.replay_buffer is None:
            self._make_replay()
        self.replay_buffer.load(replay_path(path), replace=True)

    @torch.no_grad()
    def seen_steps(self, count: int = 2000, seed: int = 0) -> LatentEpisodes:
        """Steps drawn from the replay, as the world model that acts encodes their states: starts of a dream.

        Args:
            count: number of steps, drawn with replacement.
            seed: of the draw.

        Returns:
            Episodes of one step each.

        Raises:
            ValueError: if ``count`` is below 1, or no episode has ended yet.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if self.replay_buffer is None or not len(self.replay_buffer):
            raise ValueError("no episode has ended yet, so no state is known; call learn first")
        rng, latents, actions = np.random.default_rng(seed), [], []
        with evaluating(self.policy.world):
            for rows in np.array_split(np.arange(count), -(-count // 256)):
                batch = self.replay_buffer.sample(len(rows), 1, rng).to(self.device)
                latents.append(self.policy.world.encode(each(batch.observations, lambda x: x.flatten(0, 1))))
                actions.append(batch.actions[:, 0])
        return LatentEpisodes(torch.cat(latents), torch.cat(actions), torch.ones(count, dtype=torch.int64))

    def seen_latents(self, count: int = 2000, seed: int = 0) -> Float[Tensor, "m d"]:
        """The states of ``seen_steps`` before their steps; arguments and errors as there."""
        return self.seen_steps(count, seed).latents[::2]
