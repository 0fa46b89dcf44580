"""Dynamics and costs behind ``torch.compile``, as searches want them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.dynamics.base import is_markov
from jepa_rl.types import Dynamics


def captured(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function`` compiled for each shape that it meets; on a GPU replayed as a CUDA graph.

    A search asks for the same few shapes at every decision, in small kernels: launching them takes a GPU longer than
    running them. What comes back is a copy, since a graph writes its next answer over the last one. Weights may change
    in place between calls.

    Args:
        function: of tensors, without random numbers. The first call with new shapes takes seconds; on a processor it
            needs a C++ compiler.
    """
    compiled = torch.compile(function, mode="reduce-overhead", dynamic=False)

    def call(*inputs: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*inputs).clone()

    return call


class CompiledDynamics:
    """Point dynamics whose rollouts are ``captured``. A ``Dynamics``."""

    def __init__(self, dynamics: Dynamics) -> None:
        self.latent_dim, self.action_dim = dynamics.latent_dim, dynamics.action_dim
        self.markov = is_markov(dynamics)
        self._rollout = captured(dynamics.rollout)

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b 1 h+1 d"]:
        """The ``Dynamics`` contract, for one future.

        Raises:
            ValueError: for more futures; what draws at random is not captured.
        """
        if futures != 1:
            raise ValueError(
                f"compiled dynamics answer one future, not {futures}; plan with the dynamics themselves"
            )
        return self._rollout(z, actions)
