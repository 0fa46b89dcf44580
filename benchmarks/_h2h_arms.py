"""How the encoders of the head-to-head come about: trained, pretrained, drawn at random, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _h2h_spaces import Downsample, SideBySide, Space
from _h2h_supervised import LabelledSampler, Supervised
from _h2h_tasks import Task
from torch import Tensor, nn

from jepa_rl import TrainConfig, WindowSampler, WorldModel, WorldModelConfig, fit
from jepa_rl.data.view import EpisodeView
from jepa_rl.encoders import fit_readout
from jepa_rl.objectives.base import norms_of
from jepa_rl.objectives.tokens import TokenObjective

FIT_FRAMES = 8192  # that principal components are fitted to


class Budget(NamedTuple):
    """Of the training of an encoder, the same for all arms of a task.

    Attributes:
        updates: of the optimiser.
        pictures: in each.
        width: of the latent of one frame.
    """

    updates: int
    pictures: int
    width: int


@dataclass(frozen=True)
class Arm:
    """One way to a latent space.

    Attributes:
        family: ``"prediction"``, ``"recognition"``, ``"reconstruction"``, ``"pixels"``, ``"floor"`` or ``"ceiling"``.
        tier: ``"A"`` decides, ``"B"`` is shown beside it, ``"-"`` bounds both.
        make: how its encoder comes about, a name in ``MAKERS``.
        sees: what it learns from: ``"pictures"``, ``"clips"``, ``"clips and actions"``, ``"labels"`` or nothing.
        encoder, encoder_options: of one frame.
        objective, objective_options: that it is trained by.
        learning_rate: peak.
        stacked: whether its objective looks at states of k frames side by side, not at single frames.
        window: latent steps of a training window.
        whiten: see ``Space``.
        tried: changes to these, of which tuning seeds choose one; the first is none.
        chosen: number of the one that was chosen.
    """

    family: str
    tier: str
    make: str
    sees: str = ""
    encoder: str = ""
    encoder_options: dict[str, Any] | None = None
    objective: str = "frames_jepa"
    objective_options: dict[str, Any] | None = None
    learning_rate: float = 1e-3
    stacked: bool = False
    window: int = 3
    whiten: bool = False
    tried: tuple[dict[str, Any], ...] = ({},)
    chosen: int = 0


def make_encoder(arm: Arm, task: Task, train: EpisodeView, budget: Budget, seed: int, folder: Path) -> None:
    """Makes the encoder of an arm in a folder; a training that was stopped goes on."""
    MAKERS[arm.make].make(arm, task, train, budget, seed, folder)


def load_space(arm: Arm, folder: Path) -> Space:
    """The space of an arm whose encoder was made in ``folder``; its scale is not known yet."""
    return Space(MAKERS[arm.make].load(arm, folder), arm.whiten, half=arm.make == "pretrained")


# -- trained ------------------------------------------------------------------------------------------


def world_of(arm: Arm, task: Task, train: EpisodeView, budget: Budget) -> WorldModel:
    """An untrained world model; its encoder reads frames singly, also where the objective looks at stacks."""
    frames = task.frames if arm.stacked else 1
    spec = WindowSampler(train, 1, frames=frames).spec.with_block(task.block)
    encoder, options = arm.encoder, arm.encoder_options or {}
    if frames > 1:
        encoder, options = "side_by_side", {"frame": encoder, "options": options}
    config = WorldModelConfig(
        spec, frames * budget.width, encoder, "mlp", options, {"width": 192, "depth": 2},
        arm.objective, scheduled(arm, budget.updates),
    )  # fmt: skip
    return WorldModel(config)


def scheduled(arm: Arm, updates: int) -> dict[str, Any]:
    """Options of the objective; a teacher's schedule ends with the training."""
    options = dict(arm.objective_options or {})
    if "ema" in options:
        options["ema"] = (*options["ema"], updates)
    if arm.objective == "dino":
        options["schedule"] = updates
    return options


def train(arm: Arm, task: Task, view: EpisodeView, budget: Budget, seed: int, folder: Path) -> None:
    torch.manual_seed(seed)
    model = world_of(arm, task, view, budget)
    frames = model.spec.frames
    sampler = WindowSampler(view, arm.window, task.block, frames)
    config = TrainConfig(
        budget.updates, max(2, budget.pictures // (frames * (arm.window + 1))), arm.learning_rate, seed=seed,
        checkpoint_every=500,
    )  # fmt: skip
    fit(model, sampler, config, folder / "training", progress=False)
    if isinstance(model.objective, TokenObjective):
        fit_readout(model.encoder, some_frames(view, seed))
    model.save(folder / "encoder.safetensors")


def train_supervised(
    arm: Arm, task: Task, view: EpisodeView, budget: Budget, seed: int, folder: Path
) -> None:
    torch.manual_seed(seed)
    model = Supervised(world_of(arm, task, view, budget), len(task.names))
    config = TrainConfig(budget.updates, budget.pictures, arm.learning_rate, seed=seed, checkpoint_every=500)
    fit(model, LabelledSampler(view, task.describe), config, folder / "training", progress=False)
    model.save(folder / "encoder.safetensors")


def load_trained(arm: Arm, folder: Path) -> nn.Module:
    encoder = WorldModel.load(folder / "encoder.safetensors").encoder.requires_grad_(False)
    return encoder.frame if isinstance(encoder, SideBySide) else encoder


def some_frames(view: EpisodeView, seed: int, count: int = FIT_FRAMES) -> Tensor:
    """Frames of a view, uint8 "n c y x"."""
    sampler = WindowSampler(view, 1, frames=1)
    windows = sampler.draw(min(count, len(sampler)), np.random.default_rng(seed))
    return torch.cat([sampler.batch(part).pixels[:, 0] for part in np.array_split(windows, 16)])


# -- not trained --------------------------------------------------------------------------------------


def draw_random(arm: Arm, task: Task, view: EpisodeView, budget: Budget, seed: int, folder: Path) -> None:
    """First weights; the batch norm takes the statistics of the frames."""
    torch.manual_seed(seed)
    model = world_of(arm, task, view, budget).train()
    for norm in norms_of(model.encoder):
        norm.momentum = 1.0
    with torch.no_grad():
        model.encoder(some_frames(view, seed, 2048))
    model.save(folder / "encoder.safetensors")


def take_pretrained(arm: Arm, task: Task, view: EpisodeView, budget: Budget, seed: int, folder: Path) -> None:
    """Frozen features and their principal components: no labels, no prediction."""
    from _pretrained_weights import dinov2_folder  # registers its encoders, too

    options = dict(arm.encoder_options or {})
    if arm.encoder == "pretrained":
        options = {"name": str(dinov2_folder())} | options
    spec = WindowSampler(view, 1, frames=1).spec.with_block(task.block)
    model = WorldModel(WorldModelConfig(spec, budget.width, arm.encoder, encoder_options=options))
    model.encoder.fit_projection(some_frames(view, seed, FIT_FRAMES // 4))
    model.save(folder / "encoder.safetensors")


def load_pretrained(arm: Arm, folder: Path) -> nn.Module:
    import _pretrained_weights  # noqa: F401  (registers its encoders)

    return load_trained(arm, folder)


def nothing(arm: Arm, task: Task, view: EpisodeView, budget: Budget, seed: int, folder: Path) -> None:
    """There is no encoder to make."""


class Maker(NamedTuple):
    make: Callable[[Arm, Task, EpisodeView, Budget, int, Path], None]
    load: Callable[[Arm, Path], nn.Module | None]


MAKERS = {
    "trained": Maker(train, load_trained),
    "supervised": Maker(train_supervised, load_trained),
    "random": Maker(draw_random, load_trained),
    "pretrained": Maker(take_pretrained, load_pretrained),
    "pixels": Maker(nothing, lambda arm, folder: Downsample(**(arm.encoder_options or {"size": 16}))),
    "state": Maker(nothing, lambda arm, folder: None),
}
