"""JEPA model-predictive control, learned online from reward: a Stable-Baselines3 algorithm."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import LinearSchedule

from jepa_rl.agents.sb3.jepa_mpc.episodes import EpisodicAlgorithm
from jepa_rl.agents.sb3.jepa_mpc.monitor import finite_terms, model_metrics
from jepa_rl.agents.sb3.jepa_mpc.policy import JEPAMPCPolicy
from jepa_rl.memory import keep_freed_memory
from jepa_rl.spaces import env_spaces, observation_boxes, source_of
from jepa_rl.training import descend
from jepa_rl.types import ControlBatch, Metrics
from jepa_rl.world_model import WorldModel


class JEPAMPC(EpisodicAlgorithm):
    """Learns a JEPA world model, reward, value and termination online, and plans with them.

    ``JEPAMPC("CnnPolicy", env).learn(100_000)``: the defaults are the preset ``laptop``, which is the measured one
    (benchmarks/dmc_pixels.py, with a discount and a number of updates for each task); ``jepa_mpc_preset`` names larger
    ones.

    - Observations: pixels, vectors or a Dict of both. Frames that ``PixelObservation(frames=k)`` stacked are stored
      once each; stacks made by others (``VecFrameStack``) are stored whole and take k times the memory.
    - Actions: a flat Box, Discrete or MultiDiscrete.
    - Returns beyond +-22,000 are clipped: scale them down (``gymnasium.wrappers.TransformReward``).
    - ``VecNormalize`` is not needed: observed vectors and rewards go through symlog.
    - The replay is saved in its own format, under a path; everything else that Stable-Baselines3 does with an
      off-policy algorithm works.
    - ``ResumableRun`` as a callback resumes a killed run.
    - Inside ``jepa_rl.distributed.join`` several processes share the updates (docs/scale.md).

    The reference is TD-MPC2 (Hansen, Su and Wang 2024, arXiv:2310.16828). Changes, and their reasons:

    - Encoder: the first convolution reads patches: faster on a processor.
    - Anti-collapse: VICReg instead of a simplex (SimNorm), and loss weights to match: the simplex collapsed from pixels
      at the learning rates that a few thousand updates need.
    - Dynamics: gated blocks (SwiGLU): lower prediction error.
    - Value heads: fewer, for speed; the mean of all heads, at the policy's mode, is the value at the end of a plan.
    - Value targets: sums of several rewards, since values learn faster than from one-step targets; all steps of a
      window bootstrap from the same later state, which saves encoding one for each.
    - Termination: a head predicts the end of the episode, so that plans and values account for it.
    - Acting weights: a moving average of the model, since single weights are noisy at high learning rates.
    - Planned action: the mean of many elites (higher returns than the best plan; docs/lab-notes/search.md), weighted by
      costs in units of their standard deviation, so that the temperature does not depend on the scale of rewards.
    - Exploration: the agent follows one of the best plans, as the mean of the elites has no noise.
    - Learning rates: high, because updates are few, and falling; the encoder's is not lower than the rest.
    - Observed vectors: symlog, since they come in any unit.
    - Search: fewer samples and iterations, for speed.
    - Windows: they may run beyond an episode's end (masked), so that short episodes count in full.
    - Discount: an argument, since episodes need not have a known length.
    - Without a measurement of their own: no dropout; a narrower range of standard deviations of the policy prior.

    ``save`` writes Stable-Baselines3's zip file; ``load`` executes nothing in it, unless ``trust=True``.
    ``save_weights`` writes what acts as safetensors without pickles (``from_weights``).

    Args:
        policy: ``"CnnPolicy"`` (pictures), ``"MlpPolicy"`` or ``"MultiInputPolicy"``; all three plan.
        env: environment, vectorised environment or id.
        learning_rate: of everything but the encoder. High, because updates are few; it falls to a tenth by the end of
            each call of ``learn``. Pass a constant if training consists of many calls.
        buffer_size: rows of the replay, one for each state of an episode.
        learning_starts: random environment steps before the first update; that first call of ``train`` then also does
            the updates that these steps would have had.
        batch_size: windows in a batch.
        gamma: discount of one step.
        train_freq, gradient_steps: as in Stable-Baselines3.
        steps: length of the windows that the model is rolled out over.
        n_step: rewards in a value target, counted from the start of the window; at least ``steps``. A pair ``(first,
            last)`` falls geometrically from first to last over the first half of the training, as in BBF (Schwarzer
            et al. 2023, arXiv:2305.19452): many rewards learn values faster at the start, but they are off-policy,
            from earlier and worse policies.
        encoder_rate: the encoder's learning rate, relative to the rest.
        max_grad_norm: largest gradient norm.
        policy_kwargs: of ``JEPAMPCPolicy``: the search, ``world=dict(...)`` (encoder, dynamics and objective) and
            ``control=ControlConfig(...)``.
        seed: None: initial weights and environments differ from run to run (with ``ResumableRun`` only the weights);
            the generators of batches, searches and exploration start from 0 even then, so that runs can be resumed.
        stats_window_size, tensorboard_log, verbose, device: as in Stable-Baselines3.

    Raises:
        ValueError: for observations of another kind, actions that are not flat or not bounded, a replay larger than
            memory, a ``VecEnv`` without ``info["terminal_observation"]``, or NaN or infinite rewards, observations,
            losses or gradients.
        TypeError: for a Box of whole numbers as actions.
        AssertionError: Stable-Baselines3's, for actions of another kind.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(
        ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"), JEPAMPCPolicy
    )

    def __init__(
        self,
        policy: str | type[JEPAMPCPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = LinearSchedule(1e-3, 1e-4, 1.0),  # noqa: B008  (it holds no state)
        buffer_size: int = 100_000,
        learning_starts: int = 1000,
        batch_size: int = 96,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        steps: int = 3,
        n_step: int | tuple[int, int] = (10, 3),
        encoder_rate: float = 1.0,
        max_grad_norm: float = 20.0,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
            support_multi_env=True,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete),
        )
        if policy == "CnnPolicy" and not any(
            len(box.shape) == 3 for box in observation_boxes(self.observation_space).values()
        ):
            raise ValueError(
                f"CnnPolicy is for pictures, got {self.observation_space}; wrap the environment in "
                "jepa_rl.envs.PixelObservation, or pass 'MlpPolicy'"
            )
        first, last = n_step if isinstance(n_step, tuple) else (n_step, n_step)
        if not 1 <= steps <= last <= first:
            raise ValueError(
                f"n_step must be at least steps={steps}, which must be at least 1, and must not rise; got {n_step}"
            )
        self.steps, self.n_step, self.frames, self.source = steps, n_step, 1, ""
        self.encoder_rate, self.max_grad_norm = encoder_rate, max_grad_norm
        self._n_updates = 0
        if _init_setup_model:
            self._setup_model()
            if self.env is not None:  # raises before training if it does not fit into memory
                self._make_replay()

    def _setup_model(self) -> None:
        keep_freed_memory()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        seed = 0 if self.seed is None else self.seed
        if self.env is not None:
            self.frames, self.source = env_spaces(self.env).frames, source_of(self.env)
        policy = self.policy_class(
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            discount=self.gamma,
            frames=self.frames,
            source=self.source,
            seed=seed,
            **self.policy_kwargs,
        )
        self.policy = cast(JEPAMPCPolicy, policy.to(self.device))
        model, rate = self.policy.model, self.lr_schedule(1)
        encoder = list(model.world.encoder.parameters())
        known = {id(p) for p in (*encoder, *model.policy.parameters(), *model.target_heads.parameters())}
        rest = [p for p in model.parameters() if id(p) not in known]
        self.model_optimizer = torch.optim.Adam(
            [{"params": encoder, "lr": rate * self.encoder_rate}, {"params": rest, "lr": rate}], fused=True
        )
        self.policy_optimizer = torch.optim.Adam(model.policy.parameters(), lr=rate, eps=1e-5, fused=True)
        self.replay_buffer = None  # an agent that is loaded only to act needs none
        self._seed_generators(seed)
        self._plans = None
        self._convert_train_freq()

    def _seed_generators(self, seed: int) -> None:
        """Seeds the generators of batches, losses, searches and exploration."""
        self.rng = np.random.default_rng(seed)
        self.noise = torch.Generator(self.device).manual_seed(seed)
        self.policy.generator = torch.Generator(self.device).manual_seed(seed)

    def set_random_seed(self, seed: int | None = None) -> None:
        """As in Stable-Baselines3; seeds the agent's own generators, too. Deterministic searches keep their seed."""
        super().set_random_seed(seed)
        if seed is not None and hasattr(self, "rng"):  # False while the constructor runs
            self._seed_generators(seed)

    # -- learning -----------------------------------------------------------------------------------

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Updates the world model with its heads, then the policy prior, ``gradient_steps`` times."""
        if not len(self.replay_buffer.episodes):
            return
        began = time.perf_counter()
        if not self._n_updates:
            gradient_steps = max(gradient_steps, self._updates_owed())
        self._update_learning_rate([self.model_optimizer, self.policy_optimizer])
        self.model_optimizer.param_groups[0]["lr"] *= self.encoder_rate
        self.policy.set_training_mode(True)
        update = self._helpers.update if self._helpers else self._update
        found: Metrics = {}
        for done in range(1, gradient_steps + 1):
            batch = self.replay_buffer.sample(batch_size, self.steps, self.rng, self.n_step_now, self.gamma)
            # Those after the first follow so closely that they are looked at together.
            seen = done == gradient_steps or self._n_updates + done == 1
            found = update(batch, done if seen else 0)
        self._n_updates += gradient_steps
        self.logger.record_mean("time/train_ms", 1e3 * (time.perf_counter() - began))
        self.logger.record("train/n_step", self.n_step_now)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in found.items():
            self.logger.record(f"train/{name}", value)

    def _update(self, batch: ControlBatch, unseen: int) -> Metrics:
        """One update of everything; of several processes, each with its rows.

        Args:
            batch: this process's rows.
            unseen: the number of updates, with this one, whose terms have not been looked at, if they are to be now. 0:
                they are not, which saves waiting for the device.

        Returns:
            Terms of the losses; none if they are not looked at.

        Raises:
            ValueError: if one is NaN or infinite.
        """
        batch, model = batch.to(self.device), self.policy.model
        learning = [p for group in self.model_optimizer.param_groups for p in group["params"]]
        losses = model.loss(batch, self.noise)
        norm = descend(losses.total, [self.model_optimizer], learning, self.max_grad_norm)
        acting = model.policy_loss(losses, self.noise)
        descend(acting["policy"], [self.policy_optimizer], model.policy.parameters(), self.max_grad_norm)
        model.after_update()
        self.policy.after_update()
        return finite_terms(losses.terms | acting | {"gradient_norm": norm}, unseen) if unseen else {}

    @property
    def world(self) -> WorldModel:
        """The world model that acts, the averaged one: ``wrap(env, agent.world)``, ``agent.world.save(path)``."""
        return self.policy.world

    @property
    def n_step_now(self) -> int:
        """``n_step`` at this point of the training."""
        return self.n_step_at(self._current_progress_remaining)

    def n_step_at(self, remaining: float) -> int:
        """``n_step`` when the share ``remaining`` of the training is still to come."""
        # Stable-Baselines3's zip files make lists of tuples.
        first, last = self.n_step if isinstance(self.n_step, tuple | list) else (self.n_step,) * 2
        fallen = min(1.0, 2 * (1 - remaining))
        return round(first * (last / first) ** fallen)

    def dump_logs(self) -> None:
        """As in Stable-Baselines3, with ``jepa/*`` measured on windows from the replay."""
        if self._n_updates and len(self.replay_buffer):
            # A generator of its own, so that logging does not change what is learned.
            batch = self.replay_buffer.sample(256, self.steps, np.random.default_rng(self.num_timesteps))
            for name, value in model_metrics(self.policy.average, batch.to(self.device)).items():
                self.logger.record(name, value)
        super().dump_logs()

    # -- files --------------------------------------------------------------------------------------

    def save_weights(self, path: str | Path) -> None:
        """Writes the weights that act, and the settings, to one safetensors file without pickles; atomic.

        ``JEPAMPC.from_weights(path, env)`` reads it, and ``WorldModel.load(path)`` the world model inside it. Replay,
        optimisers, target networks and the callbacks' state are left out: ``save`` keeps more, ``ResumableRun`` all.

        Raises:
            OSError: if the disk is full or the folder is not writable; an older file is unchanged.
        """
        from jepa_rl.agents.sb3.jepa_mpc.weights import save_weights

        save_weights(self, path)

    @classmethod
    def from_weights(cls, path: str | Path, env: GymEnv | str, **changes: Any) -> Self:
        """An agent with the weights of a file of ``save_weights``; no code in the file is executed.

        It acts as the saved one did, ``predict(..., deterministic=True)`` bit for bit on the same machine. ``learn``
        goes on from there with an empty replay, at the learning rate and ``n_step`` that training ended with, and
        without random steps at first.

        Args:
            path: the file, or ``"hub:cartpole-swingup"``, a checkpoint of the package by its name (``jepa_rl.hub``).
            env: as for ``JEPAMPC``; made as the one that the agent was trained in.
            changes: arguments of ``JEPAMPC`` that shall differ; in ``policy_kwargs`` those of the search.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or holds something else, the name is unknown, the environment shows or takes
                other things than the one of the training, or ``policy_kwargs`` hold ``world`` or ``control``.

        Warns:
            UserWarning: if the environment makes its pictures in another way, or repeats actions otherwise.
        """
        from jepa_rl.agents.sb3.jepa_mpc.weights import load_weights

        return load_weights(cls, path, env, **changes)

    @classmethod
    def _check_settings(cls, name: str, settings: Mapping[str, Any]) -> None:
        """Refuses other agents, and files of version 0.1.0."""
        kind = settings.get("policy_class")
        module = str(kind.get("__module__", "")) if isinstance(kind, Mapping) else ""
        if module.startswith("stable_baselines3."):
            raise ValueError(
                f"{name} holds an agent whose policy is of {module}, not a JEPAMPC; load it by its own class, or by "
                "jepa_rl.agents.sb3.saved.load_agent"
            )
        if "source" not in settings:  # 0.2.0 began to save how the environment was made
            raise ValueError(
                f"{name} was saved by jepa-rl 0.1.0, whose JEPAMPC had another model, so its weights do not fit; "
                "finish with it there, or train anew"
            )

    def _excluded_save_params(self) -> list[str]:
        own = [
            "model_optimizer", "policy_optimizer", "noise", "rng", "_plans", "_record", "_step_began", "_helpers"
        ]  # fmt: skip
        return [*super()._excluded_save_params(), *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "model_optimizer", "policy_optimizer"], []
