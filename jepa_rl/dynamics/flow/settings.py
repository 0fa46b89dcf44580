"""Settings of ``FlowDynamics`` in three groups, and the flat names by which configurations and files have them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar, get_args

from jepa_rl.checks import check_each, check_not_negative, check_whole, is_share

MOST_EVALUATIONS = 10_000

Solver = Literal["euler", "heun"]


@dataclass(frozen=True)
class FlowNetwork:
    """Sizes of the network.

    Attributes:
        width: of a token.
        depth: blocks.
        heads: of attention.
        mlp_ratio: hidden units of a block's perceptron, in widths.
        context: states that a token attends to, itself included. 1 for worlds whose latent says all.

    Raises:
        ValueError: for sizes below 1, or ``heads`` that do not divide ``width``.
    """

    width: int = 96
    depth: int = 2
    heads: int = 4
    mlp_ratio: int = 2
    context: int = 1

    def __post_init__(self) -> None:
        check_whole(**asdict(self))
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, got heads={self.heads} and width={self.width}")


@dataclass(frozen=True)
class FlowTraining:
    """What the network is trained to.

    Attributes:
        energy: weight of the energy score beside flow matching; 0 trains the flow alone.
        low_noise: weight of more flow matching at low noise levels (``LOW_NOISE``). Which of several futures it will be
            is settled at higher ones, so that its exact place is learned without the noise of that choice.
        samples: futures drawn for each window in the energy score.
        unroll: states that these futures run over on their own; at least ``context``, so that jumps meet cached states.
        average_rate: how far the average moves towards the weights after an update.
        shift: of the noise levels towards noise, for wide latents (RAE, Zheng et al. 2025, arXiv:2510.11690:
            ``sqrt(width / 4096)`` there); below 1 towards clean latents; 1 changes nothing. The sampler uses it, too.
        drop: share of windows that are learned without their actions, for ``FlowSampling.guidance``.
        repa: weight of one minus the cosine between the clean states and a projection of the middle block's hidden
            states in flow matching (REPA, Yu et al. 2024, arXiv:2410.06940). Features are those of a pretrained encoder
            there; here latents are such features already. The projector is for training alone: rollouts do not read it.

    Raises:
        ValueError: for numbers that make no sense.
    """

    energy: float = 1.0
    low_noise: float = 0.0
    samples: int = 2
    unroll: int = 1
    average_rate: float = 0.005
    shift: float = 1.0
    drop: float = 0.0
    repa: float = 0.0

    def __post_init__(self) -> None:
        check_each(lambda shift: shift > 0, "be positive", shift=self.shift)
        check_whole(2, samples=self.samples)
        check_whole(unroll=self.unroll)
        check_each(lambda rate: 0 < rate <= 1, "lie in (0, 1]", average_rate=self.average_rate)
        check_not_negative(energy=self.energy, low_noise=self.low_noise, repa=self.repa)
        check_each(is_share, "lie in [0, 1)", drop=self.drop)


@dataclass(frozen=True)
class FlowSampling:
    """How ``rollout`` draws.

    Attributes:
        evaluations: of the network for each state. 1, 2 and 4 are trained as jumps.
        lag: of each state behind the one before, see ``schedule``: 1 draws one after the other with cached keys and
            values, 0 all at once, and what lies between is Diffusion Forcing's pyramid. Below 1 a state needs the whole
            path before it, so ``context`` should reach over it; learn on windows of several steps.
        guidance: 1 asks for what the actions lead to; above, for what they lead to more than others do
            (classifier-free guidance, Ho and Salimans 2022): ``without + guidance * (with - without)``, at twice the
            cost. For conditions such as goals (``FlowProposals``); an honest model of the world has 1. Others need
            ``FlowTraining.drop``.
        solver: ``"euler"`` takes the trained jumps, or Euler's steps along the flow where there are none; ``"heun"``
            integrates the flow to second order, without jumps, in an odd number of evaluations (EDM, Karras et al.
            2022, arXiv:2206.00364; see ``schedule.heun``), for states drawn one after the other (``lag=1``).

    Raises:
        ValueError: for numbers that make no sense.
    """

    evaluations: int = 4
    lag: float = 1.0
    guidance: float = 1.0
    solver: Solver = "euler"

    def __post_init__(self) -> None:
        check_whole(evaluations=self.evaluations)
        check_each(
            lambda n: n <= MOST_EVALUATIONS, f"be at most {MOST_EVALUATIONS}", evaluations=self.evaluations
        )
        check_each(lambda lag: 0 <= lag <= 1, "lie in [0, 1]", lag=self.lag)
        check_each(math.isfinite, "be finite", guidance=self.guidance)
        if self.solver not in get_args(Solver):
            raise ValueError(f"solver must be one of {get_args(Solver)}, got {self.solver!r}")
        if self.solver == "heun" and (self.lag != 1 or self.evaluations % 2 == 0):
            raise ValueError(
                "the solver heun needs lag=1 and an odd number of evaluations, two for each step and one for the last; "
                f"got lag={self.lag} and evaluations={self.evaluations}"
            )


Group = TypeVar("Group", FlowNetwork, FlowTraining, FlowSampling)

GROUPS: dict[str, type] = {"network": FlowNetwork, "training": FlowTraining, "sampling": FlowSampling}

# The key map of flat options: option -> group. Configurations (``dynamics_options``) and files of every version have
# them flat.
OPTIONS = {field.name: group for group, kind in GROUPS.items() for field in fields(kind)}


@dataclass(frozen=True)
class FlowSettings:
    """All settings of ``FlowDynamics``.

    Raises:
        ValueError: for a guidance other than 1 without windows that are learned without their actions.
    """

    network: FlowNetwork
    training: FlowTraining
    sampling: FlowSampling

    def __post_init__(self) -> None:
        if self.sampling.guidance != 1 and not self.training.drop:
            raise ValueError(
                f"guidance must be 1 where drop is 0, got guidance={self.sampling.guidance}; train with drop=0.1 or so"
            )

    @classmethod
    def of(
        cls,
        network: FlowNetwork | Mapping[str, Any] | None,
        training: FlowTraining | Mapping[str, Any] | None,
        sampling: FlowSampling | Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> FlowSettings:
        """Settings from groups and flat options.

        Args:
            network, training, sampling: a group, or its fields by name; None for the defaults.
            options: fields by the names in ``OPTIONS``, which replace those of the groups. ``context_noise``, an option
                of version 0.1.0, may be there if it is 0.

        Raises:
            TypeError: for an unknown option.
            ValueError: for values that make no sense, and a ``context_noise`` other than 0.
        """
        if noise := options.get("context_noise"):
            raise ValueError(
                f"context_noise={noise} noised the states that others are drawn from; this option of version 0.1.0 is "
                "gone, and a model that was trained with it would draw other futures without it. Train anew without "
                "it, or use the model with jepa-rl 0.1.0"
            )
        flat: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
        for name, value in options.items():
            if name == "context_noise":
                continue
            if name not in OPTIONS:
                raise TypeError(f"FlowDynamics takes no option {name!r}, only {sorted(OPTIONS)}")
            flat[OPTIONS[name]][name] = value
        return cls(
            _group(FlowNetwork, network, flat["network"]),
            _group(FlowTraining, training, flat["training"]),
            _group(FlowSampling, sampling, flat["sampling"]),
        )

    def flat(self) -> dict[str, Any]:
        """All options by the names in ``OPTIONS``; plain numbers, as files hold them."""
        return asdict(self.network) | asdict(self.training) | asdict(self.sampling)


def _group(kind: type[Group], given: Group | Mapping[str, Any] | None, flat: Mapping[str, Any]) -> Group:
    if given is None or isinstance(given, Mapping):
        return kind(**{**(given or {}), **flat})
    return replace(given, **flat)
