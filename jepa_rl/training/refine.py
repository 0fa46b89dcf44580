"""A second phase of training: the dynamics alone, on latents of the frozen encoder.

Joint training spends nearly all its time in the encoder, and sharp events such as contacts are rare in its
batches. On latents of a frozen encoder an update costs a few matrix products, so that the dynamics can see a hundred
times as many, longer windows. The encoder cannot collapse, since it does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from jepa_rl.data.latent_windows import LatentBatch, LatentEpisodes, LatentWindowSampler
from jepa_rl.data.view import Episodes
from jepa_rl.distributed import is_first
from jepa_rl.dynamics.base import TrainableDynamics
from jepa_rl.training.config import TrainConfig
from jepa_rl.training.loop import TrainResult, fit
from jepa_rl.types import JSON
from jepa_rl.world_model import WorldModel, WorldModelConfig


@dataclass(frozen=True)
class FrozenConfig:
    """What a checkpoint of this phase belongs to.

    Attributes:
        model: configuration of the world model.
        encoder: fingerprint of its encoder; dynamics that were trained on other latents are not resumed.
    """

    model: WorldModelConfig
    encoder: str

    @classmethod
    def from_json(cls, data: JSON) -> FrozenConfig:
        """The inverse of ``dataclasses.asdict`` followed by JSON; reads version 0.1.0, too."""
        return cls(WorldModelConfig.from_json(data["model"]), data["encoder"])


class DynamicsAlone(nn.Module):
    """What ``fit`` trains where latents are given; a subclass has ``config`` and ``save``, see ``Trainable``.

    Args:
        dynamics: learn, in place.
    """

    def __init__(self, dynamics: TrainableDynamics) -> None:
        super().__init__()
        self.dynamics = dynamics

    def loss(
        self, batch: LatentBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Error of the open-loop rollout over the window, or the loss of dynamics that draw futures."""
        return self.dynamics.loss(batch.latents, batch.actions, generator)

    def after_update(self) -> None:
        self.dynamics.after_update()


class FrozenEncoder(DynamicsAlone):
    """What ``fit`` trains in this phase: the dynamics of a world model alone.

    Args:
        model: its encoder stays as it is; its dynamics learn, in place.
    """

    def __init__(self, model: WorldModel) -> None:
        super().__init__(model.dynamics)
        self.config, self.save = FrozenConfig(model.config, model.encoder_fingerprint()), model.save


REFINE = TrainConfig(
    steps=6000, batch_size=128, learning_rate=2e-3, warmup=0.1, weight_decay=1e-3, checkpoint_every=1000
)


def refine_dynamics(
    model: WorldModel,
    episodes: Episodes | LatentEpisodes,
    out: str | Path,
    *,
    steps: int = 6,
    config: TrainConfig = REFINE,
    resume: bool = True,
    progress: bool = True,
) -> TrainResult:
    """Encodes the episodes once and trains the dynamics of ``model`` on them, in place.

    Args:
        model: a trained world model. Of several processes (``jepa_rl.distributed``) each encodes all episodes.
        episodes: those that it was trained on, or more; or the same encoded already (``LatentEpisodes.encode``).
        out: folder of the run, another than that of the joint training; see ``fit`` for what is written there.
        steps: latent steps of the windows, h; longer than in joint training.
        config: how long and how fast.
        resume, progress: as for ``fit``.

    Raises:
        ValueError: ``out`` holds a run on another encoder's latents; and as ``fit``, ``LatentEpisodes.encode`` and
            ``LatentWindowSampler``.
    """
    progress = progress and is_first()
    if isinstance(episodes, LatentEpisodes):
        latents = episodes
    else:
        latents = LatentEpisodes.encode(model, episodes, progress=progress)
    sampler = LatentWindowSampler(latents, steps, model.spec.block)
    seen = sampler.sample(10_000, np.random.default_rng(config.seed))
    model.dynamics.observe(seen.latents, seen.actions)
    result = fit(
        FrozenEncoder(model), sampler, config, out, resume=resume, progress=progress and "Refining dynamics"
    )
    model.eval()
    return result
