"""Encoder, dynamics and objective composed into one module."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from jepa_rl.dynamics import (
    CausalTransformerDynamics,
    EnsembleDynamics,
    FlowDynamics,
    GRUDynamics,
    MixtureDynamics,
    MLPDynamics,
)
from jepa_rl.dynamics.base import Standardised, check_rollout
from jepa_rl.encoders import ConvEncoder, FramesEncoder, KeypointEncoder, ViTEncoder
from jepa_rl.files import load_tensors, save_tensors
from jepa_rl.objectives import Objective, prediction
from jepa_rl.types import ActionSpec, Batch, WorldSpec

ENCODERS = {"conv": ConvEncoder, "frames": FramesEncoder, "keypoints": KeypointEncoder, "vit": ViTEncoder}
# Those that draw futures bring a loss of their own; of the others the open-loop rollout is held against the window.
DYNAMICS = {
    "mlp": MLPDynamics, "gru": GRUDynamics, "transformer": CausalTransformerDynamics,
    "flow": FlowDynamics, "ensemble": EnsembleDynamics, "mixture": MixtureDynamics,
}  # fmt: skip


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
    encoder: Literal["conv", "frames", "keypoints", "vit"] = "conv"
    dynamics: Literal["mlp", "gru", "transformer", "flow", "ensemble", "mixture"] = "mlp"
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
            ValueError: if the shapes of ``z`` or ``actions`` are not the model's, ``z`` is not finite, or ``futures``
                is below 1.
        """
        check_rollout(self.latent_dim, self.action_dim, z, actions, futures, self.spec.block)
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
        path = torch.cat([latents[:, :1], targets], dim=1)
        if self.training and isinstance(self.dynamics, Standardised):
            self.dynamics.follow(path.detach(), batch.actions)
        missed, _ = dynamics_loss(self.dynamics, path, batch.actions, generator)
        discrete = self.spec.action.kind == "discrete"
        guesses = self._guess_actions(latents, batch.actions) if objective.inverse_dynamics else None
        return objective(latents, missed, guesses, discrete, generator)

    def _guess_actions(self, latents: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        guess = self.inverse(torch.cat([latents[:, :-1], latents[:, 1:]], dim=-1))
        if self.spec.action.kind == "discrete":  # one softmax for each action of the block
            sizes = (self.spec.block, self.spec.action.size)
            return guess.unflatten(-1, sizes), actions.unflatten(-1, sizes)
        return guess, actions

    @torch.no_grad()
    def after_update(self) -> None:
        """Moves the target encoder, and the average of the dynamics; call after every optimiser step."""
        getattr(self.dynamics, "after_update", lambda: None)()
        if self.config.objective.target != "ema":
            return
        decay = self.config.objective.ema_decay
        for target, online in zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True):
            target.lerp_(online, 1.0 - decay)
        for target, online in zip(self.target_encoder.buffers(), self.encoder.buffers(), strict=True):
            target.copy_(online)

    # -- other dynamics behind the same encoder ----------------------------------------------------

    def with_dynamics(self, dynamics: str, **options: Any) -> WorldModel:
        """A world model with a copy of this encoder and new, untrained dynamics: train them with ``refine_dynamics``.

        Args:
            dynamics: a name in ``DYNAMICS``.
            options: further constructor arguments of these.
        """
        config = replace(self.config, dynamics=dynamics, dynamics_options=options)  # type: ignore[arg-type]
        other = WorldModel(config).to(next(self.parameters()).device)
        fresh = {f"dynamics.{name}": tensor for name, tensor in other.dynamics.state_dict().items()}
        kept = {k: v for k, v in self.state_dict().items() if not k.startswith("dynamics.")}
        other.load_state_dict(kept | fresh)
        return other.eval()

    def encoder_fingerprint(self) -> str:
        """A digest of the encoder's weights: latents of two encoders mean the same where it is the same."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.encoder.state_dict().items()):
            if not name.endswith("num_batches_tracked"):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def check_encoder(self, path: str | Path, fingerprint: str | None, trainer: str) -> None:
        """Raises ValueError unless what ``path`` holds was trained on latents of this encoder, by ``trainer``."""
        if fingerprint != self.encoder_fingerprint():
            raise ValueError(
                f"{path} was trained on another encoder's latents (fingerprint {fingerprint}, this encoder's is "
                f"{self.encoder_fingerprint()}); use the world model that it was trained with, or train anew for this "
                f"one with {trainer}"
            )

    def save_dynamics(self, path: str | Path) -> None:
        """Writes the dynamics alone, and which encoder they belong to; atomic."""
        config = asdict(self.config)
        header = {name: config[name] for name in ("dynamics", "dynamics_options")}
        header["encoder"] = self.encoder_fingerprint()
        save_tensors(path, "dynamics", self.dynamics.state_dict(), header)

    def load_dynamics(self, path: str | Path) -> WorldModel:
        """A world model with this encoder and the dynamics of a file of ``save_dynamics``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the dynamics were trained on another encoder's latents, or as ``load``.
        """
        tensors, header = load_tensors(path, ("dynamics",))
        self.check_encoder(path, header.get("encoder"), "refine_dynamics")
        try:
            other = self.with_dynamics(header["dynamics"], **_tuples(header["dynamics_options"]))
            other.dynamics.load_state_dict(tensors)
        except (TypeError, KeyError, RuntimeError) as error:
            raise ValueError(f"{path} does not describe dynamics of this version: {error}") from error
        return other

    # -- files -------------------------------------------------------------------------------------

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


def dynamics_loss(
    dynamics: Any,
    latents: Float[Tensor, "b t d"],
    actions: Float[Tensor, "b h a"],
    generator: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What dynamics have to pay on windows of latents, and its terms: their own loss, or their rollout's error."""
    if hasattr(dynamics, "loss"):
        return dynamics.loss(latents, actions, generator)
    error = prediction(dynamics.rollout(latents[:, 0], actions)[:, 0, 1:], latents[:, 1:])
    return error, {"prediction": error}
