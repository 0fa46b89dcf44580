"""Critics that do not learn latents by heart."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import SACPolicy
from torch import nn


class DroQPolicy(SACPolicy):
    """SAC's policy with dropout and layer norm in the critics, as in DroQ (Hiraoka et al. 2022, arXiv:2110.02034).

    For latents, and wherever updates are many and steps few: plain critics fit the errors of each stored latent instead
    of the value::

        SAC(DroQPolicy, wrap(env, "model.safetensors"), gradient_steps=2)

    Each critic's hidden layer is a linear one, dropout, layer norm and activation, in this order. Target critics draw
    no dropout. Everything else is ``SACPolicy``'s.

    Args:
        dropout_rate: share of the hidden units that an update leaves out; 0: layer norm alone.
        **settings: of ``SACPolicy``.

    Raises:
        ValueError: if ``dropout_rate`` is not in [0, 1).
    """

    def __init__(self, *args: Any, dropout_rate: float = 0.01, **settings: Any) -> None:
        self.dropout_rate = checked_rate(dropout_rate)  # SACPolicy makes its critics while it is made itself
        super().__init__(*args, **settings)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        critic = super().make_critic(features_extractor)
        for index, q_network in enumerate(critic.q_networks):
            assert isinstance(q_network, nn.Sequential), "Stable-Baselines3's critics are sequences of layers"
            critic.q_networks[index] = regularised(q_network, self.dropout_rate)
            setattr(critic, f"qf{index}", critic.q_networks[index])
        return critic.to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"dropout_rate": self.dropout_rate}


class DropoutDQNPolicy(DQNPolicy):
    """DQN's policy with the hidden layers of ``DroQPolicy`` in its Q-network; the target network draws no dropout.

    It suits states and latents, and runs of some ten thousand steps: DQN on CartPole-v1 from the true state, with the
    settings of ``JEPADQN``, ends at 500 with it and at 214 without (docs/lab-notes/joint.md)::

        DQN(DropoutDQNPolicy, wrap(env, "model.safetensors"), n_steps=5, tau=0.02, target_update_interval=1)

    Args:
        dropout_rate: share of the hidden units that an update leaves out; 0: layer norm alone.
        **settings: of ``DQNPolicy``.

    Raises:
        ValueError: if ``dropout_rate`` is not in [0, 1).
    """

    def __init__(self, *args: Any, dropout_rate: float = 0.01, **settings: Any) -> None:
        self.dropout_rate = checked_rate(dropout_rate)
        super().__init__(*args, **settings)

    def make_q_net(self) -> QNetwork:
        network = super().make_q_net()
        network.q_net = regularised(network.q_net, self.dropout_rate)
        return network.to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"dropout_rate": self.dropout_rate}


def checked_rate(dropout_rate: float) -> float:
    """The same rate.

    Raises:
        ValueError: if it is not in [0, 1).
    """
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate must be at least 0 and below 1, got {dropout_rate}")
    return dropout_rate


def regularised(layers: nn.Sequential, dropout_rate: float) -> nn.Sequential:
    """The same perceptron with dropout and layer norm behind every linear layer but the last."""
    *hidden, last = layers
    found: list[nn.Module] = []
    for layer in hidden:
        found.append(layer)
        if isinstance(layer, nn.Linear):
            found += [nn.Dropout(dropout_rate), nn.LayerNorm(layer.out_features)]
    return nn.Sequential(*found, last)
