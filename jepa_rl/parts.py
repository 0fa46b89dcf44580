"""The parts of a world model: named in a configuration, built from it, and checked against their contracts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import jepa_rl.dynamics
import jepa_rl.encoders
import jepa_rl.objectives  # noqa: F401  (each registers its parts)
from jepa_rl.encoders.base import ObservationEncoder
from jepa_rl.modes import evaluating
from jepa_rl.registry import DYNAMICS, ENCODERS, OBJECTIVES
from jepa_rl.types import JSON, OBSERVATION, WorldSpec, as_tuples


@dataclass(frozen=True)
class WorldModelConfig:
    """All that is needed to build a world model again; plain numbers and names, written into checkpoints.

    Attributes:
        spec: observations and actions.
        latent_dim: width of the latent.
        encoder, dynamics, objective: names of registered parts; the encoder is that of pictures.
        encoder_options, dynamics_options, objective_options: their constructor arguments, but for those that come from
            the spec.

    Raises:
        ValueError: for a name that is not registered, a latent_dim below 1, or pictures that are not square.
    """

    spec: WorldSpec
    latent_dim: int = 64
    encoder: str = "conv"
    dynamics: str = "mlp"
    encoder_options: dict[str, Any] = field(default_factory=dict)
    dynamics_options: dict[str, Any] = field(default_factory=dict)
    objective: str = "jepa"
    objective_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {self.latent_dim}")
        for registry, name in (
            (ENCODERS, self.encoder),
            (DYNAMICS, self.dynamics),
            (OBJECTIVES, self.objective),
        ):
            registry.check(name)
        for shape in self.spec.shapes.values():
            if len(shape) == 3 and shape[1] != shape[2]:
                raise ValueError(f"pixels must be square, got {shape}; use PixelObservation(env, size=...)")

    @classmethod
    def from_json(cls, data: JSON) -> WorldModelConfig:
        """The inverse of ``dataclasses.asdict`` followed by JSON, which turns tuples into lists.

        Reads configurations of version 0.1.0, too, whose objective was a dict of weights.
        """
        data = {name: as_tuples(value) for name, value in data.items() if name != "spec"} | {
            "spec": data["spec"]
        }
        if isinstance(data["objective"], dict):
            data |= {"objective": "jepa", "objective_options": data["objective"]}
        return cls(**data | {"spec": WorldSpec.from_json(data["spec"])})


def build_encoder(config: WorldModelConfig) -> nn.Module:
    """The encoder of the only picture, or an ``ObservationEncoder`` of all observations."""

    def make_picture(shape: tuple[int, ...]) -> nn.Module:
        channels, size, _ = shape
        known: dict[str, Any] = {"channels": channels, "size": size, "frames": config.spec.frames}
        known |= {"spec": config.spec, "latent_dim": config.latent_dim}
        return ENCODERS.build(config.encoder, config.encoder_options, known)

    if config.spec.parts:
        return ObservationEncoder(config.spec, config.latent_dim, make_picture)
    return make_picture(config.spec.shapes[OBSERVATION])


def check_base(kind: str, name: str, part: nn.Module, base: type) -> None:
    """Raises ValueError unless ``part`` is a ``base``."""
    if not isinstance(part, base):
        raise ValueError(
            f"{kind} {name!r} must be a subclass of {base.__module__}.{base.__name__}, got {type(part).__name__}"
        )


@torch.no_grad()
def check_parts(encoder: nn.Module, dynamics: Any, config: WorldModelConfig) -> None:
    """Tries encoder and dynamics on zeros.

    Args:
        encoder, dynamics: of one world model, on the CPU.
        config: what they were built from.

    Raises:
        ValueError: unless they answer in the widths, shapes and dtypes of their contracts. What they raise themselves
            passes through, with a note of what was tried.
    """
    d, a, spec = config.latent_dim, config.spec.action_dim, config.spec
    for name, part in (("encoder", encoder), ("dynamics", dynamics)):
        if getattr(part, "latent_dim", None) != d:
            raise ValueError(
                f"{name} {getattr(config, name)!r} must have latent_dim={d}, as the configuration says, got "
                f"{getattr(part, 'latent_dim', None)}"
            )
    if dynamics.action_dim != a:
        raise ValueError(
            f"dynamics {config.dynamics!r} must have action_dim={a}, as the spec says, got {dynamics.action_dim}"
        )
    seen = {
        name: torch.zeros(2, *shape, dtype=torch.uint8 if len(shape) == 3 else torch.float32)
        for name, shape in spec.shapes.items()
    }
    with evaluating(encoder), evaluating(dynamics):
        with noting(f"encoder {config.encoder!r} was tried on zeros: {spec.shapes}, pictures uint8, b = 2"):
            z = encoder(spec.unnamed(seen))
        if not isinstance(z, Tensor) or tuple(z.shape) != (2, d) or z.dtype != torch.float32:
            raise ValueError(
                f"encoder {config.encoder!r} must answer float32 latents (b, {d}), here (2, {d}), got {described(z)}"
            )
        z, actions = torch.zeros(2, d), torch.zeros(2, 3, a)
        for futures in (1, 2):
            call, generator = f"rollout(z, actions, futures={futures})", torch.Generator().manual_seed(0)
            with noting(f"dynamics {config.dynamics!r} were tried: {call} on zeros"):
                path = dynamics.rollout(z, actions, futures=futures, generator=generator)
            shapes = [(2, n, 4, d) for n in range(1, futures + 1)]  # point dynamics answer one future
            if not isinstance(path, Tensor) or path.shape not in shapes or path.dtype != torch.float32:
                raise ValueError(
                    f"dynamics {config.dynamics!r} must answer float32 latents (b, futures, h + 1, {d}), here "
                    f"{' or '.join(map(str, shapes))} for h = 3 actions and futures={futures}, got {described(path)}"
                )
            if not torch.equal(path[:, :, 0], z[:, None].expand(-1, path.shape[1], -1)):
                raise ValueError(
                    f"dynamics {config.dynamics!r} must answer the present state z, unchanged, as state 0 of a path"
                )


@contextmanager
def noting(what: str) -> Iterator[None]:
    """Adds a note to what is raised inside."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise


def described(value: Any) -> str:
    """dtype and shape of a tensor; of anything else its type."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def check_held_once(world: nn.Module) -> None:
    """Raises ValueError for weights under two names: files could not hold them, and averages would move them twice."""
    names: dict[int, str] = {}
    for name, tensor in (
        *world.named_parameters(remove_duplicate=False),
        *world.named_buffers(remove_duplicate=False),
    ):
        if names.setdefault(id(tensor), name) != name:
            raise ValueError(
                f"{names[id(tensor)]!r} and {name!r} are one tensor, and a world model holds each once; an objective "
                "reads world.encoder in its loss, and makes a teacher with copy.deepcopy(encoder)"
            )


def config_header(config: WorldModelConfig) -> JSON:
    """The header of a file with a world model: its configuration, and the modules that register parts not our own."""
    return {"config": asdict(config), "registered_by": registered_by(config)}


def registered_by(config: WorldModelConfig) -> JSON:
    """The modules that register encoder, dynamics and objective, for those that are not our own."""
    named = {"encoder": ENCODERS, "dynamics": DYNAMICS, "objective": OBJECTIVES}
    homes = {kind: registry.home(getattr(config, kind)) for kind, registry in named.items()}
    return {kind: home for kind, home in homes.items() if not home.startswith("jepa_rl.")}
