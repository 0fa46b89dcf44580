"""Encoder, dynamics and objective composed into one module."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.dynamics.base import TrainableDynamics, check_rollout
from jepa_rl.files import load_tensors, naming, save_tensors
from jepa_rl.memory import weights_within
from jepa_rl.objectives.base import Objective, each
from jepa_rl.parts import (
    WorldModelConfig,
    build_encoder,
    check_base,
    check_held_once,
    check_parts,
    config_header,
    registered_by,
)
from jepa_rl.registry import DYNAMICS, ENCODERS, OBJECTIVES
from jepa_rl.types import JSON, Batch, Observations, as_tuples

__all__ = ["WorldModel", "WorldModelConfig", "build_saved", "rename_old"]


class WorldModel(nn.Module):
    """A joint-embedding predictive world model: it encodes observations and predicts latents, not pixels.

    The wrappers call ``encode``, planners ``rollout`` (it is a ``Dynamics``), and training ``loss``.

    Args:
        config: ``WorldModelConfig(spec)`` is the default, a small model.

    Raises:
        ValueError: if an option is unknown, or a part does not keep its contract: another ``latent_dim``, latents or
            paths of other shapes or dtypes, weights that another part holds, too.
        TypeError: if a part is no registered name, or its options are no dict.
    """

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config, self.spec = config, config.spec
        self.latent_dim, self.action_dim = config.latent_dim, config.spec.action_dim
        self.encoder = build_encoder(config)
        known = {"latent_dim": self.latent_dim, "action_dim": self.action_dim, "spec": self.spec}
        self.dynamics: Any = DYNAMICS.build(config.dynamics, config.dynamics_options, known)
        check_base("dynamics", config.dynamics, self.dynamics, TrainableDynamics)
        check_parts(self.encoder, self.dynamics, config)
        known |= {"encoder": self.encoder, "world_dynamics": self.dynamics}
        self.objective: Any = OBJECTIVES.build(config.objective, config.objective_options, known)
        check_base("objective", config.objective, self.objective, Objective)
        check_held_once(self)
        self._updated = False  # whether after_update was called
        self.register_load_state_dict_pre_hook(rename_old)
        self.register_load_state_dict_pre_hook(make_copies)

    def encode(self, observations: Observations) -> Float[Tensor, "b d"]:
        """Latents float32 "b d" of uint8 pixels "b c y x", or of observations "b ..." by name.

        Raises:
            TypeError: for anything but tensors.
            ValueError: if names, shapes or dtypes differ from what the model was built for.
        """
        seen = self.spec.named(observations)
        if not all(isinstance(x, Tensor) for x in seen.values()):
            raise TypeError("encode reads tensors: torch.from_numpy makes one of a NumPy array")
        for name, shape in self.spec.shapes.items():
            x = seen.get(name)
            picture = len(shape) == 3
            if x is None or tuple(x.shape[1:]) != shape or (picture and x.dtype != torch.uint8):
                found = f"{sorted(seen)}" if x is None else f"{x.dtype} {tuple(x.shape)}"
                fix = (
                    f"PixelObservation(env, size={shape[1]}, frames={self.spec.frames}) makes them"
                    if picture
                    else "use observations of the environment that it was trained on"
                )
                raise ValueError(
                    f"expected {'uint8 pixels' if picture else name} of shape (b, {', '.join(map(str, shape))}), got "
                    f"{found}; {fix}"
                )
        return self.encoder(self.spec.unnamed(seen))

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

    @property
    def registered_by(self) -> JSON:
        """Where parts that are not ours are registered; written into files."""
        return registered_by(self.config)

    @property
    def markov(self) -> bool:
        """See ``TrainableDynamics.markov``."""
        return self.dynamics.markov

    def encode_windows(self, observations: Observations) -> Float[Tensor, "b t d"]:
        """Latents of windows "b t ...", encoded as one batch."""
        b, t = next(iter(self.spec.named(observations).values())).shape[:2]
        return self.encode(each(observations, lambda x: x.flatten(0, 1))).unflatten(0, (b, t))

    def loss(
        self, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective's total and its terms on a batch of windows."""
        return self.objective.loss(self, batch, generator)

    def after_update(self) -> None:
        """Moves what follows the weights (averages, teachers); call after every optimiser step.

        Raises:
            ValueError: in the first update, if the objective keeps the world model, whose weights would then never end.
        """
        if not self._updated:  # a loss that keeps the world does so when it is first called
            check_not_kept(self, self.objective)
            self._updated = True
        self.dynamics.after_update()
        self.objective.after_update(self)

    # -- other dynamics with the same encoder ----------------------------------------------------

    def with_dynamics(self, dynamics: str, **options: Any) -> WorldModel:
        """A world model with a copy of this encoder and new, untrained dynamics: train them with ``refine_dynamics``.

        Args:
            dynamics: a registered name.
            options: their constructor arguments, except those that come from the spec.
        """
        config = replace(self.config, dynamics=dynamics, dynamics_options=options)
        other = WorldModel(config).to(next(self.parameters()).device)
        fresh = {f"dynamics.{name}": tensor for name, tensor in other.dynamics.state_dict().items()}
        left_out = ("dynamics.", *self.training_only)
        kept = {k: v for k, v in self.state_dict().items() if not k.startswith(left_out)}
        other.load_state_dict(kept | fresh)
        return other.eval()

    @property
    def training_only(self) -> tuple[str, ...]:
        """How the names of weights begin that files of a finished model leave out: ``Objective.copies``."""
        return tuple(f"objective.{name}." for name in self.objective.copies)

    def finished(self) -> dict[str, Tensor]:
        """The state dict without what is ``training_only``."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(self.training_only)}

    def encoder_fingerprint(self) -> str:
        """A digest of the encoder's weights; encoders with equal digests give equal latents."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.encoder.state_dict().items()):
            if not name.endswith("num_batches_tracked"):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def check_encoder(self, path: str | Path, fingerprint: str | None, trainer: str) -> None:
        """Checks that dynamics or proposals were trained on latents of this encoder.

        Args:
            path: their file, for the message.
            fingerprint: ``encoder_fingerprint`` of the encoder that they were trained with.
            trainer: name of the function that trains them, for the message.

        Raises:
            ValueError: if the fingerprint differs from this encoder's.
        """
        if fingerprint != self.encoder_fingerprint():
            raise ValueError(
                f"{path} was trained on another encoder's latents (fingerprint {fingerprint}, this encoder's is "
                f"{self.encoder_fingerprint()}); use the world model that it was trained with, or train anew for this "
                f"one with {trainer}"
            )

    def save_dynamics(self, path: str | Path) -> None:
        """Writes the dynamics alone, with the fingerprint of their encoder; atomic."""
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
        held = (*tensors.values(), *self.state_dict().values())
        with naming(path, "does not describe dynamics of this version"), weights_within(held):
            other = self.with_dynamics(header["dynamics"], **as_tuples(header["dynamics_options"]))
            other.dynamics.load_state_dict(tensors)
        return other

    # -- files -------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, configuration included; atomic."""
        save_tensors(path, "world_model", self.finished(), config_header(self.config))

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> WorldModel:
        """Reads a world model; no code in the file is executed.

        Args:
            path: a file of ``save``, of ``JEPAMPC.save_weights`` (the world inside it) or a training checkpoint of
                ``fit``; a folder that holds ``model.safetensors``; or ``"hub:two-rooms"``, a checkpoint of the package
                by its name (``jepa_rl.hub.names()``).
            device: where it goes.

        Returns:
            The model in evaluation mode.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, corrupt, foreign or from a newer version, or the name is unknown.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "model.safetensors"
        tensors, header = load_tensors(path, ("world_model", "training", "control"), device)
        for prefix in ("model.", "world."):  # of files that hold more than a world model
            if inside := {
                name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)
            }:
                tensors = inside
        return build_saved(path, tensors, header).to(device).eval()


def build_saved(path: str | Path, tensors: Mapping[str, Tensor], header: JSON) -> WorldModel:
    """The world model of a file's tensors and header, in training mode.

    Args:
        path: the file, for messages.
        tensors: the state dict of the model.
        header: from ``config_header``.

    Raises:
        ValueError: if they do not describe one of this version, or name a part that is not registered.
    """
    with naming(path, "does not describe a world model of this version"), weights_within(tensors.values()):
        data, homes = header["config"], header.get("registered_by", {})
        old = isinstance(data["objective"], dict)
        for kind, registry in (("encoder", ENCODERS), ("dynamics", DYNAMICS), ("objective", OBJECTIVES)):
            if not (old and kind == "objective"):
                registry.check(data[kind], homes.get(kind))
        model = WorldModel(WorldModelConfig.from_json(data))
        model.load_state_dict(dict(tensors))
    return model


def check_not_kept(world: WorldModel, objective: nn.Module) -> None:
    """Raises ValueError if ``objective`` holds the world model that holds it: the weights would never end."""
    if kept := [name for name, part in objective.named_modules() if part is world]:
        raise ValueError(
            f"{type(objective).__name__}.{kept[0]} is the world model, which holds this objective; use the "
            "world that loss, unroll, shape and after_update are given"
        )


def rename_old(_: nn.Module, tensors: dict[str, Tensor], prefix: str, *__: Any) -> None:
    """Hook of ``load_state_dict`` for files of version 0.1.0, where the objective's parts belonged to the model."""
    for old in ("inverse.", "target_encoder."):
        for name in [name for name in tensors if name.startswith(prefix + old)]:
            tensors[f"{prefix}objective.{name[len(prefix) :]}"] = tensors.pop(name)


def make_copies(world: nn.Module, tensors: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Hook of ``load_state_dict``: where weights of ``Objective.copies`` are missing, their sources' are taken."""
    copies: Mapping[str, str] = world.objective.copies  # type: ignore[union-attr, assignment]
    for name, source in copies.items():
        here, there = f"{prefix}objective.{name}.", f"{prefix}{source}."
        if not any(key.startswith(here) for key in tensors):
            tensors |= {here + k.removeprefix(there): t for k, t in tensors.items() if k.startswith(there)}
