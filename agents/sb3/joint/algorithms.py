"""SAC, TD3, DQN and PPO whose encoder learns from their own loss and from a JEPA objective.

    agent = JEPASAC("CnnPolicy", PixelObservation(env))
    agent.learn(50_000)
    latent_env = wrap(env, agent.world)

Everything else is Stable-Baselines3's: its losses, networks, callbacks, ``save``, ``load`` and ``evaluate_policy``.
That a self-predictive loss on the agent's own data makes pixels learnable in few steps is known from SPR (Schwarzer et
al. 2021, arXiv:2007.05929) for DQN and MLR (Yu et al. 2022, arXiv:2201.12096) for SAC; random shifts come from DrQ
(Kostrikov et al. 2020, arXiv:2004.13649). Here the objective is any of this library's, the default that of JEPAMPC.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from jepa_rl.agents.sb3.baselines import FALLING, SHORT_DQN
from jepa_rl.agents.sb3.droq import DropoutDQNPolicy, DroQPolicy
from jepa_rl.agents.sb3.joint.base import Joint, JointOffPolicy
from jepa_rl.agents.sb3.joint.buffers import JEPARolloutBuffer, ScaledRewards
from jepa_rl.checks import check_not_negative, check_whole
from jepa_rl.training.optimisers import descend

PPO_RATE = LinearSchedule(6e-4, 6e-5, 1.0)  # from 1e-3 on the policy breaks before the encoder is of use
ENCODER_BATCH = 128  # of windows, in JEPAPPO's second phase: objectives compare the states of a batch

REPLAY_SETTINGS = {
    "buffer_size", "gradient_steps", "learning_starts", "optimize_memory_usage", "replay_buffer_class",
    "replay_buffer_kwargs", "train_freq",
}  # fmt: skip

# Of TD3 and SAC: the target networks follow soon, and values travel over two steps; over five, what the replay's older
# policies did holds even SAC from the true state of the swing-up at 540 of 860.
FEW_UPDATES: dict[str, Any] = {
    "buffer_size": 100_000, "batch_size": 128, "tau": 0.02, "n_steps": 2, "learning_rate": FALLING
}  # fmt: skip
# A temperature that starts at 1 drowns scaled rewards for thousands of updates; one that starts at 0.01 explores too
# little for reacher, which SAC then solves half as well, even from the true state.
SAC_SETTINGS: dict[str, Any] = FEW_UPDATES | {"ent_coef": "auto_0.1"}


class JEPASAC(JointOffPolicy, SAC):
    """SAC from pixels. The defaults differ from SAC's where few updates need it; other arguments are SAC's.

    Its critics have dropout and layer norm: ``"CnnPolicy"`` is ``DroQPolicy``.

    Args:
        policy: ``"CnnPolicy"``.
        env: shows uint8 pixels, such as ``PixelObservation(env)``.
        learning_rate: of agent and encoder; falls to a tenth by the end of ``learn``. A constant one is better for runs
            of a few hundred updates.
        **settings: of ``SAC``, by default those of ``SAC_SETTINGS``; ``policy_kwargs=jepa_policy_kwargs(...)``, with
            ``dropout_rate`` as an option more. ``buffer_size`` counts states, one more for each episode
            than steps: 12 kB each for a frame of 64 x 64 in colour.

    Raises:
        ValueError: for other observations, a foreign features extractor or replay, a replay larger than memory; while
            training for NaN or infinite rewards, observations or losses.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = SAC.policy_aliases | {"CnnPolicy": DroQPolicy}

    def __init__(
        self,
        policy: Any,
        env: GymEnv | str | None,
        learning_rate: float | Schedule = FALLING,
        **settings: Any,
    ) -> None:
        super().__init__(policy, env, **SAC_SETTINGS | {"learning_rate": learning_rate} | settings)


class JEPATD3(JointOffPolicy, TD3):
    """TD3 from pixels; arguments and errors as ``JEPASAC``."""

    def __init__(
        self,
        policy: Any,
        env: GymEnv | str | None,
        learning_rate: float | Schedule = FALLING,
        **settings: Any,
    ) -> None:
        super().__init__(policy, env, **FEW_UPDATES | {"learning_rate": learning_rate} | settings)


class JEPADQN(JointOffPolicy, DQN):
    """DQN from pixels; as ``JEPASAC``. ``"CnnPolicy"`` is ``DropoutDQNPolicy``, the defaults are ``SHORT_DQN``."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = DQN.policy_aliases | {
        "CnnPolicy": DropoutDQNPolicy
    }

    def __init__(
        self,
        policy: Any,
        env: GymEnv | str | None,
        learning_rate: float | Schedule = FALLING,
        buffer_size: int = 100_000,
        **settings: Any,
    ) -> None:
        own = {"learning_rate": learning_rate, "buffer_size": buffer_size}
        super().__init__(policy, env, **SHORT_DQN | own | settings)


class JEPAPPO(Joint, PPO):
    """PPO from pixels; other arguments are PPO's.

    Policy and encoder learn in turn, as in PPG (Cobbe et al. 2021, arXiv:2009.04416): PPO's epochs run on latents as
    they were acted on, since a ratio of probabilities says nothing about the policy while what it reads moves; then
    the encoder learns from the objective, from the errors of the values, and from what it changes in the policy,
    which is kept by its divergence. Policy and values follow the latents in that second phase.

    Args:
        policy: ``"CnnPolicy"``.
        env: shows uint8 pixels, such as ``PixelObservation(env)``.
        learning_rate: of the agent; falls to a tenth by the end of ``learn``. The encoder's is twice as high.
        encoder_epochs: passes over each rollout in the second phase, ``ENCODER_BATCH`` windows at a time.
        clone: weight of the divergence (nats) there; errors of the values have ``vf_coef``.
        **settings: of ``PPO``; ``policy_kwargs=jepa_policy_kwargs(...)``.

    Raises:
        ValueError: as ``JEPASAC``.
    """

    rollout_buffer: JEPARolloutBuffer
    encoder_rate: ClassVar[float] = 2.0

    def __init__(
        self,
        policy: Any,
        env: GymEnv | str | None,
        learning_rate: float | Schedule = PPO_RATE,
        *args: Any,
        encoder_epochs: int = 6,
        clone: float = 3.0,
        **settings: Any,
    ) -> None:
        if foreign := sorted(settings.keys() & REPLAY_SETTINGS):
            raise ValueError(f"PPO learns on rollouts and has no replay; leave out {', '.join(foreign)}")
        check_whole(encoder_epochs=encoder_epochs)
        check_not_negative(clone=clone)
        self.encoder_epochs, self.clone = encoder_epochs, clone
        super().__init__(policy, env, learning_rate, *args, **settings)

    def _setup_model(self) -> None:
        given = self.rollout_buffer_class
        if given is not None and not issubclass(given, JEPARolloutBuffer):
            raise ValueError(
                f"the rollouts must be stored in a JEPARolloutBuffer, which makes latents of pixels, got "
                f"{given.__name__}; leave out rollout_buffer_class"
            )
        self._read_env()
        self.rollout_buffer_class = given or JEPARolloutBuffer
        self.rollout_buffer_kwargs = self.rollout_buffer_kwargs | {
            "steps": self.config.steps,
            "squashed": bool(self.policy_kwargs.get("squash_output", False)),
            "seed": self.seed,
        }
        super()._setup_model()
        self.rollout_buffer.encoder = self.joint

    def train(self) -> None:
        """As in Stable-Baselines3.

        Raises:
            ValueError: for NaN or infinite rewards; nothing is learned then.
        """
        rewards = self.rollout_buffer.rewards
        if not np.isfinite(rewards).all():
            raise ValueError(
                f"rewards hold NaN or infinite values: {rewards[~np.isfinite(rewards)][:5]}; check the environment"
            )
        self._begin_update()
        super().train()
        self._train_encoder()
        self._end_update()

    def _train_encoder(self) -> None:
        """The second phase: the encoder learns, and policy and values follow it.

        The encoder's step from one batch comes when the next is encoded, the last one's in ``_end_update``.
        """
        # The copy reads latents and needs no encoder of its own; tensors in the last batch's distribution have a graph
        # and cannot be copied.
        shallow = (self.joint, self.joint), (self.policy.action_dist, copy.copy(self.policy.action_dist))
        before = copy.deepcopy(self.policy, {id(part): used for part, used in shallow})
        for _ in range(self.encoder_epochs):
            for acted, seen, returns in self.rollout_buffer.encoded(ENCODER_BATCH):
                with torch.no_grad():
                    was = before.get_distribution(acted)
                apart = kl_divergence(was, self.policy.get_distribution(seen)).sum() / len(seen)
                error = (self.policy.predict_values(seen).flatten() - returns).square().mean()
                loss = self.vf_coef * error + self.clone * apart
                descend(loss, [self.policy.optimizer], self.policy.parameters(), self.max_grad_norm)
        self.logger.record("jepa/policy_divergence", apart.item())
        self.logger.record("jepa/value_error", error.item())

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """As in Stable-Baselines3, with scaled rewards, see ``JointConfig.scale_rewards``."""
        normalised = unwrap_vec_normalize(env)
        if self.config.scale_rewards and not (normalised and normalised.norm_reward):
            env = ScaledRewards(env, self.joint.returns)
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
