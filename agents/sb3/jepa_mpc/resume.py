"""Checkpoints from which a killed run of ``JEPAMPC`` resumes bit for bit."""

from __future__ import annotations

import json
import re
import warnings
from collections import deque
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.vec_env import VecEnv

from jepa_rl.agents.sb3.jepa_mpc.monitor import PlanRecord
from jepa_rl.agents.sb3.progress import write_csv
from jepa_rl.files import load_tensors, naming, plain, save_tensors
from jepa_rl.spaces import by_name, source_of
from jepa_rl.training.checkpoint import check_same, optimizer_tensors, restore_optimizer
from jepa_rl.version import __version__

if TYPE_CHECKING:
    from jepa_rl.agents.sb3.jepa_mpc.algorithm import JEPAMPC


class ResumableRun(BaseCallback):
    """Saves a run of ``JEPAMPC`` in a folder; the same script, started again, resumes it.

    ``model.learn(100_000, callback=ResumableRun("runs/cartpole"))`` trains for 100,000 steps in total, however often
    the process is killed. Model, optimisers, target networks, replay, random generators and counters are restored. On a
    CPU with the same number of threads the result is bit for bit that of an uninterrupted run. The folder holds
    ``checkpoint.safetensors``, ``episodes/`` and ``progress.csv``, the metrics of the whole run; no code in them is
    executed.

    - Environments cannot be saved, so checkpoints are written where no episode is running: when a rollout begins and
      the episodes of all environments have just ended (always the case between episodes with one environment and
      ``train_freq=1``). The next episodes start from a seed that is derived from the run's seed and the numbers of
      episodes and steps so far. If this does not happen within ``every`` steps after a checkpoint is due, the running
      episodes are cut off.
    - Environments are reset a second time after an episode has ended. ``Monitor`` allows this by default.
    - If ``learning_rate`` or ``n_step`` change during training, another total number of steps would make them jump, so
      it is refused. With constants a run can be prolonged.
    - Other callbacks, and values that TensorBoard averages between two writes, are not restored.

    Args:
        folder: of this run alone.
        every: environment steps between two checkpoints.

    Raises:
        TypeError: if the model is not a ``JEPAMPC``, or its environment is a ``VecNormalize``.
            At the start of training, too, if a setting cannot be written to a checkpoint.
        ValueError: if ``every`` is below 1; at the start of training, if the folder holds a run with another
            environment, other spaces, other settings or another total of steps, or is damaged, or its ``episodes`` were
            not written by a run. Nothing has changed then.

    Warns:
        UserWarning: if another version of jepa-rl wrote the checkpoint; the result may then differ from that of an
            uninterrupted run.
    """

    model: JEPAMPC

    def __init__(self, folder: str | Path, every: int = 5000) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self.folder, self.every = Path(folder), every
        self._due = self._total = 0

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file."""
        return self.folder / "checkpoint.safetensors"

    @property
    def episodes(self) -> Path:
        """The folder of the replay's files."""
        return self.folder / "episodes"

    def _on_training_start(self) -> None:
        model = self.model
        if not hasattr(model, "model_optimizer"):
            raise TypeError(
                f"ResumableRun keeps runs of JEPAMPC, got {type(model).__name__}; use CheckpointCallback"
            )
        if model.get_vec_normalize_env() is not None:
            raise TypeError(
                "VecNormalize changes while it runs and is not part of a checkpoint: JEPAMPC scales observations and "
                "rewards by itself, leave it out"
            )
        settings, self._total = settings_of(model), model._total_timesteps
        if self.checkpoint.exists():
            tensors, header = load_tensors(self.checkpoint, ("jepa_mpc run",))
            with naming(self.checkpoint, "does not describe a run of this version"):
                check_same(self.checkpoint, "run", header["settings"], settings)
                check_total(self.checkpoint, header, model)
                if header["num_timesteps"] >= self._total:  # no steps left to train: keep the planned total
                    self._total = header.get("total_timesteps", self._total)
                self._warn_of_another_version(header.get("version"))
                model.replay_buffer.restore(self.episodes, [int(number) for number in header["episodes"]])
                restore_run(model, tensors, header)
            # The episodes that the environments are playing now are not part of that run.
            model._last_episode_starts = np.ones(model.n_envs, bool)
        else:
            forget_episodes(self.episodes)
            model.replay_buffer.keep_in(self.episodes)
        write_csv(model.logger, self.folder, keep_to=model.num_timesteps)
        self._due = self._next_due()

    def _on_rollout_start(self) -> None:
        model = self.model
        ended, due = bool(np.all(model._last_episode_starts)), model.num_timesteps >= self._due
        if not ended:
            if model.num_timesteps < self._due + self.every:
                return
            model.replay_buffer.cut(by_name(model._last_obs))
            model._record = PlanRecord(model.n_envs, model.gamma)
        if due:
            self._save()
        begin_episodes(model)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        # Saves everything learned so far; a prolonged run starts new episodes anyway.
        self.model.replay_buffer.cut(by_name(self.model._last_obs))
        self._save()

    def _warn_of_another_version(self, version: str | None) -> None:
        if version != __version__:
            warnings.warn(
                f"{self.checkpoint} was written by jepa-rl {version or 'of an older version'}, this is {__version__}: "
                "the run goes on, but perhaps not as it would have there",
                stacklevel=2,
            )

    def _next_due(self) -> int:
        return (self.model.num_timesteps // self.every + 1) * self.every

    def _save(self) -> None:
        replay = self.model.replay_buffer
        tensors, header = run_state(self.model)
        header |= {"settings": settings_of(self.model), "episodes": replay.numbers()}
        header |= {"total_timesteps": self._total, "version": __version__}
        save_tensors(self.checkpoint, "jepa_mpc run", tensors, header)
        replay.drop_files(
            before=min(replay.numbers(), default=0)
        )  # the new checkpoint does not refer to them
        self._due = self._next_due()


def forget_episodes(folder: Path) -> None:
    """Deletes the episodes of a run that was killed before its first checkpoint and starts from the beginning.

    Raises:
        ValueError: if the folder holds other files; nothing is deleted then.
    """
    files = list(folder.iterdir()) if folder.exists() else []
    written = re.compile(r"\.?\d{8}\.safetensors(\.[0-9a-f]{8})?")  # complete, or partly written
    foreign = sorted(path.name for path in files if not written.fullmatch(path.name))
    if foreign:
        raise ValueError(
            f"{folder} holds {foreign[:3]}, which no run of JEPAMPC wrote; give ResumableRun a folder of its own"
        )
    for path in files:
        path.unlink()


def check_total(checkpoint: Path, header: dict[str, Any], model: JEPAMPC) -> None:
    """Refuses a total of steps with which what changes over the training would jump at the checkpoint.

    Args:
        checkpoint: the file, for the message.
        header: its content; files of version 0.1.0 do not say their total, and pass.
        model: an agent that is about to learn, with ``_total_timesteps`` set.

    Raises:
        ValueError: if learning rate or ``n_step`` would be others than in the run so far.
    """
    done, planned, total = header["num_timesteps"], header.get("total_timesteps"), model._total_timesteps
    if planned is None or done >= total:
        return
    before, after = (
        (model.lr_schedule(left), model.n_step_at(left))
        for left in (max(0.0, 1 - done / n) for n in (planned, total))
    )
    if before != after:
        raise ValueError(
            f"{checkpoint} belongs to a run of {planned:,} steps, {done:,} of which are done. With {total:,} steps "
            f"its learning rate would jump from {before[0]:.3g} to {after[0]:.3g}, its n_step from {before[1]} to "
            f"{after[1]}; learn {planned:,} steps, or start a run with constants, which can be prolonged, in another "
            "folder"
        )


def begin_episodes(model: JEPAMPC) -> None:
    """Starts a new episode in every environment, seeded by the run's seed and its numbers of episodes and steps."""
    assert model.env is not None
    where = [model.seed or 0, model._episode_num, model.num_timesteps]
    seed = np.random.SeedSequence(where).generate_state(1)[0]
    model.env.seed(int(seed >> 1))  # 31 bits: SB3 adds the number of the environment
    model._last_obs = cast(
        Any, model.env.reset()
    )  # SB3's type allows a tuple, which JEPAMPC's spaces exclude
    model._last_episode_starts = np.ones(model.n_envs, bool)


def run_state(model: JEPAMPC) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Everything that changes while ``model`` learns, except its replay: tensors, and a header for JSON."""
    tensors = {f"policy.{name}": value for name, value in model.policy.state_dict().items()}
    for name in ("model_optimizer", "policy_optimizer"):
        tensors |= optimizer_tensors(name, getattr(model, name))
    tensors |= {"noise": model.noise.get_state(), "exploration": model.policy.generator.get_state()}
    header: dict[str, Any] = {
        "num_timesteps": model.num_timesteps,
        "episodes_played": model._episode_num,
        "updates": model._n_updates,
        "rng": model.rng.bit_generator.state,
        "action_rng": model.action_space.np_random.bit_generator.state,
        "recent": [dict(episode) for episode in model.ep_info_buffer or ()],
    }
    return tensors, json.loads(json.dumps(header, default=_plain, skipkeys=True))


def _plain(value: Any) -> Any:
    """Extra entries of an episode (``Monitor(info_keywords=...)``): NumPy values as Python's, others as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def restore_policy(model: JEPAMPC, tensors: dict[str, torch.Tensor]) -> None:
    """Restores the weights only, which is enough to act."""
    model.policy.load_state_dict({name[7:]: v for name, v in tensors.items() if name.startswith("policy.")})


def restore_run(model: JEPAMPC, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    """Restores what ``run_state`` returned.

    Args:
        model: an agent with the settings of the saved run.
        tensors, header: of the checkpoint.
    """
    restore_policy(model, tensors)
    for name in ("model_optimizer", "policy_optimizer"):
        restore_optimizer(name, getattr(model, name), tensors)
    model.noise.set_state(tensors["noise"])
    model.policy.generator.set_state(tensors["exploration"])
    model.rng.bit_generator.state = header["rng"]
    model.action_space.np_random.bit_generator.state = header["action_rng"]
    model.num_timesteps = model._num_timesteps_at_start = int(header["num_timesteps"])
    model._episode_num, model._n_updates = int(header["episodes_played"]), int(header["updates"])
    model.ep_info_buffer = deque(map(dict, header["recent"]), maxlen=model._stats_window_size)
    model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)


def settings_of(model: JEPAMPC) -> dict[str, Any]:
    """Settings that must be equal to resume a run, as JSON values.

    Raises:
        TypeError: if one of them cannot be written as JSON.
    """
    names = (
        "gamma",
        "batch_size",
        "buffer_size",
        "learning_starts",
        "gradient_steps",
        "steps",
        "encoder_rate",
    )
    found = {name: getattr(model, name) for name in (*names, "max_grad_norm", "seed", "n_envs")}
    rate, freq = model.learning_rate, model.train_freq
    assert isinstance(freq, TrainFreq), "SB3 converts it when it sets up the model"
    found |= {
        "n_step": model.n_step,
        "device": model.device.type,
        "environment": environment_of(model.env),
        "observation_space": str(model.observation_space),
        "action_space": str(model.action_space),
        "learning_rate": [rate(left) for left in (1.0, 0.5, 0.0)] if callable(rate) else rate,
        "train_freq": [freq.frequency, freq.unit.value],
        # Its seed is the agent's.
        "policy": str(sorted(_plain_numbers(model.policy.settings | {"seed": None}).items())),
    }
    return json.loads(json.dumps(found, default=plain))


def _plain_numbers(value: Any) -> Any:
    """Settings with NumPy numbers as Python's, so that equal settings have equal text."""
    if isinstance(value, dict):
        return {name: _plain_numbers(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain_numbers(part) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: _plain_numbers(getattr(value, f.name)) for f in fields(value) if f.init}
        )
    return value.item() if isinstance(value, np.generic) else value


def environment_of(env: VecEnv | None) -> str | None:
    """Id, arguments, time limit and wrappers of the first environment; no arguments if it is in another process."""
    if env is None:
        return None
    # The text of a Gymnasium environment consists of its class names and its id.
    return source_of(env) or str(env.unwrapped.env_method("__str__", indices=[0])[0])
