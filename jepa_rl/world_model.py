"""Encoder, dynamics and objective composed into one module."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from jepa_rl.dynamics import CausalTransformerDynamics, GRUDynamics, MLPDynamics
from jepa_rl.encoders import ConvEncoder, FramesEncoder, ViTEncoder
from jepa_rl.files import load_tensors, save_tensors
from jepa_rl.objectives import Objective
from jepa_rl.types import ActionSpec, Batch, WorldSpec

ENCODERS = {"conv": ConvEncoder, "frames": FramesEncoder, "vit": ViTEncoder}
DYNAMICS = {"mlp": MLPDynamics, "gru": GRUDynamics, "transformer": CausalTransformerDynamics}


@dataclass(frozen=True)
class WorldModelConfig:
    """All that is needed to build a world model again; plain numbers and names, written into checkpoints.

    Attributes:
        spec: the pixels and actions it speaks.
        latent_dim: width of the latent.
        encoder, dynamics: names in ``ENCODERS`` and ``DYNAMICS``.
        encoder_options, dynamics_options: further constructor arguments of these.
        objective: what training minimises.
    """

    spec: WorldSpec
    latent_dim: int = 64
    encoder: Literal["conv", "frames", "vit"] = "conv"
    dynamics: Literal["mlp", "gru", "transformer"] = "mlp"
    encoder_options: dict[str, Any] = field(default_factory=dict)
    dynamics_options: dict[str, Any] = field(default_factory=dict)
    objective: Objective = field(default_factory=lambda: Objective(sigreg=0.5))

    def __post_init__(self) -> None:
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {self.latent_dim}")
        if self.encoder not in ENCODERS or self.dynamics not in DYNAMICS:
            raise ValueError(
                f"encoder must be one of {list(ENCODERS)} and dynamics one of {list(DYNAMICS)}, "
                f"got {self.encoder!r} and {self.dynamics!r}"
            )
        if self.spec.pixels[1] != self.spec.pixels[2]:
            raise ValueError(
                f"pixels must be square, got {self.spec.pixels}; use PixelObservation(env, size=...)"
            )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> WorldModelConfig:
        """The inverse of ``dataclasses.asdict`` followed by JSON, which turns tuples into lists."""
        data = {name: _tuples(value) for name, value in data.items()}
        spec = data.pop("spec")
        action = ActionSpec(**spec.pop("action"))
        return cls(
            spec=WorldSpec(action=action, **spec), objective=Objective(**data.pop("objective")), **data
        )


def _tuples(value: Any) -> Any:
    """JSON values with tuples for lists."""
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class WorldModel(nn.Module):
    """A joint-embedding predictive world model: it encodes pixels and predicts encodings, never pixels.

    ``encode`` serves the wrappers, ``rollout`` the planners (it is a ``Dynamics``), ``loss`` the training.

    Args:
        config: what to build; ``WorldModelConfig(spec)`` is the small default.
    """

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config, self.spec = config, config.spec
        self.latent_dim, self.action_dim = config.latent_dim, config.spec.action_dim
        channels, size, _ = config.spec.pixels
        self.encoder = ENCODERS[config.encoder](channels, size, config.latent_dim, **config.encoder_options)
        self.dynamics = DYNAMICS[config.dynamics](
            config.latent_dim, self.action_dim, **config.dynamics_options
        )
        if config.objective.inverse_dynamics:
            self.inverse = nn.Sequential(
                nn.Linear(2 * config.latent_dim, 256), nn.SiLU(), nn.Linear(256, self.action_dim)
            )
        if config.objective.target == "ema":
            self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)

    def encode(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b d"]:
        """Latents float32 of stacked frames uint8.

        Raises:
            ValueError: if shape or dtype differ from what the model was built for.
        """
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != self.spec.pixels:
            raise ValueError(
                f"expected uint8 pixels of shape (b, {', '.join(map(str, self.spec.pixels))}), got {pixels.dtype} "
                f"{tuple(pixels.shape)}; PixelObservation(env, size={self.spec.pixels[1]}, "
                f"frames={self.spec.frames}) makes them"
            )
        return self.encoder(pixels)

    def step(self, z: Float[Tensor, "b d"], action: Float[Tensor, "b a"]) -> Float[Tensor, "b d"]:
        """The next latent."""
        return self.rollout(z, action.unsqueeze(1))[:, 0, 1]

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n h+1 d"]:
        """Open-loop prediction; ``[:, :, 0]`` is ``z``.

        Raises:
            ValueError: if the widths of ``z`` or ``actions`` are not the model's.
        """
        if z.shape[-1] != self.latent_dim or actions.shape[-1] != self.action_dim:
            raise ValueError(
                f"expected latents of width {self.latent_dim} and actions of width {self.action_dim} (blocks of "
                f"{self.spec.block} x {self.spec.action.size}), got {z.shape[-1]} and {actions.shape[-1]}"
            )
        return self.dynamics.rollout(z, actions, futures=futures, generator=generator)

    def encode_windows(self, pixels: UInt8[Tensor, "b t c y x"]) -> Float[Tensor, "b t d"]:
        """Latents of windows, encoded as one batch."""
        return self.encode(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])

    def loss(
        self, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective's total and its terms on a batch of windows."""
        objective = self.config.objective
        latents = self.encode_windows(batch.pixels)
        if objective.target == "ema":
            with torch.no_grad():
                targets = self.target_encoder(batch.pixels[:, 1:].flatten(0, 1)).view_as(latents[:, 1:])
        else:
            targets = latents[:, 1:] if objective.target == "online" else latents[:, 1:].detach()
        predicted = self.rollout(latents[:, 0], batch.actions)[:, 0, 1:]
        discrete = self.spec.action.kind == "discrete"
        guesses = self._guess_actions(latents, batch.actions) if objective.inverse_dynamics else None
        return objective(latents, predicted, targets, guesses, discrete, generator)

    def _guess_actions(self, latents: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        guess = self.inverse(torch.cat([latents[:, :-1], latents[:, 1:]], dim=-1))
        if self.spec.action.kind == "discrete":  # one softmax for each action of the block
            sizes = (self.spec.block, self.spec.action.size)
            return guess.unflatten(-1, sizes), actions.unflatten(-1, sizes)
        return guess, actions

    @torch.no_grad()
    def after_update(self) -> None:
        """Moves the target encoder towards the encoder; call after every optimiser step."""
        if self.config.objective.target != "ema":
            return
        decay = self.config.objective.ema_decay
        for target, online in zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True):
            target.lerp_(online, 1.0 - decay)
        for target, online in zip(self.target_encoder.buffers(), self.encoder.buffers(), strict=True):
            target.copy_(online)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, configuration included; atomic."""
        save_tensors(path, "world_model", self.state_dict(), {"config": asdict(self.config)})

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> WorldModel:
        """Reads a file of ``save`` or a training checkpoint of ``fit``, or a folder that holds ``model.safetensors``.

        The model comes in evaluation mode. Nothing in the file is executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, corrupt, foreign or from a newer version.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "model.safetensors"
        tensors, header = load_tensors(path, ("world_model", "training"), device)
        if any(name.startswith("model.") for name in tensors):
            tensors = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
        try:
            model = cls(WorldModelConfig.from_json(header["config"])).to(device)
            model.load_state_dict(tensors)
        except (TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{path} does not describe a world model of this version: {error}") from error
        return model.eval()
