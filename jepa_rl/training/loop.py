"""The training loop. It knows no algorithm: a model gives ``loss`` and ``after_update``, a sampler gives batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from jepa_rl.memory import keep_freed_memory
from jepa_rl.training.checkpoint import TrainingState, seeded_generators
from jepa_rl.training.optimisers import descend, optimizers_of
from jepa_rl.types import Metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Trainable(Protocol):
    """What ``fit`` needs of a model beside being an ``nn.Module``."""

    def loss(
        self, batch: Any, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def after_update(self) -> None: ...


class Sampler(Protocol):
    """What ``fit`` needs of the data, such as ``jepa_rl.data.WindowSampler``."""

    def sample(self, batch_size: int, rng: np.random.Generator) -> Any:
        """What ``loss`` takes: a ``Batch``, or anything else with ``to(device)`` and ``states``."""
        ...


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to learn.

    Attributes:
        steps: optimiser updates.
        batch_size: windows in a batch.
        learning_rate: peak of a one-cycle schedule: linear warm-up, then a cosine to zero.
        weight_decay: on matrices only.
        warmup: share of the steps spent warming up.
        clip: largest gradient norm.
        seed: of sampling and of the terms that draw numbers.
        log_every, evaluate_every, checkpoint_every: in updates.
        optimizer: "adamw", or "muon": Muon (Jordan et al. 2024) for matrices, AdamW for everything else. Muon moves a
            matrix equally far in all of its directions, at AdamW's rates (Liu et al. 2025, arXiv:2502.16982): an update
            costs more and leads further.
    """

    steps: int = 4000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.05
    clip: float = 1.0
    seed: int = 0
    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 500
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0 or not self.clip > 0:
            raise ValueError(
                f"learning_rate and clip must be positive, got {self.learning_rate}, {self.clip}"
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must lie in [0, 1), got {self.warmup}")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f'optimizer must be "adamw" or "muon", got {self.optimizer!r}')

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of update ``step`` (0 is the first)."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: numbers, figures for TensorBoard and a warning in words."""

    metrics: Metrics
    figures: Mapping[str, Any]
    alarm: str | None = None


Evaluate = Callable[[Any], Evaluation]


@dataclass(frozen=True)
class TrainResult:
    """Last metrics, seconds spent in this call, and all alarms of the run (step, text)."""

    metrics: Metrics
    seconds: float
    alarms: tuple[tuple[int, str], ...]


def fit(
    model: Any,
    sampler: Sampler,
    config: TrainConfig,
    out: str | Path,
    *,
    evaluate: Evaluate | None = None,
    resume: bool = True,
    progress: bool = True,
) -> TrainResult:
    """Trains a model; writes TensorBoard events, ``checkpoint.safetensors`` and ``model.safetensors`` to ``out``.

    A run that was stopped at any moment goes on from its last checkpoint exactly as if it had never stopped:
    the checkpoint holds weights, optimiser, generators and the step. A run that had already finished returns
    its last metrics at once. The model is left in evaluation mode.

    Args:
        model: an ``nn.Module`` that is ``Trainable`` and has ``save`` and ``config`` (such as ``WorldModel``).
        sampler: draws batches.
        config: how long and how fast.
        out: folder of the run.
        evaluate: called with the model in evaluation mode every ``evaluate_every`` updates and at the end;
            ``jepa_rl.diagnostics.world_model_evaluation`` makes one.
        resume: continue from a checkpoint in ``out``; False refuses to overwrite one.
        progress: show a progress bar.

    Raises:
        ValueError: ``out`` holds a checkpoint of another model or configuration, or the loss or its gradient
            became NaN or infinite (the last checkpoint stays).
    """
    out, began = Path(out), time.perf_counter()
    keep_freed_memory()
    state = TrainingState(model, optimizers_of(model, config), config)
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists() and not resume:
        raise ValueError(f"{checkpoint} exists: pass resume=True to go on with it, or choose another folder")
    with seeded_generators(config.seed, state.device):
        if checkpoint.exists():
            state.restore(checkpoint)
        if state.step < config.steps:
            _train(state, sampler, checkpoint, evaluate, progress)
    model.eval()
    model.save(out / "model.safetensors")
    return TrainResult(state.metrics, time.perf_counter() - began, tuple(state.alarms))


def _train(
    state: TrainingState, sampler: Sampler, checkpoint: Path, evaluate: Evaluate | None, progress: bool
) -> None:
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    config, meter = state.config, _Meter(state.step)
    steps = range(state.step, config.steps)
    bar = tqdm(steps, initial=state.step, total=config.steps, disable=not progress, unit="update")
    with SummaryWriter(str(checkpoint.parent), purge_step=state.step + 1) as writer, bar:
        for step in bar:
            meter.add(*_update(state, sampler))
            state.step = done = step + 1
            if _due(done, config.log_every, config):
                found = meter.flush() | {"jepa/learning_rate": config.learning_rate_at(step)}
                state.metrics |= found
                bar.set_postfix_str(
                    f"loss {found['jepa/loss']:.4f}, {found['jepa/frames_per_second']:.0f} frames/s"
                )
                _write(writer, found, done)
            with meter.pause():
                if evaluate is not None and _due(done, config.evaluate_every, config):
                    meter.check()
                    _evaluate(state, evaluate, writer)
                if _due(done, config.checkpoint_every, config):
                    meter.check()
                    state.save(checkpoint)


def _due(done: int, every: int, config: TrainConfig) -> bool:
    return done % every == 0 or done == config.steps


def _update(state: TrainingState, sampler: Sampler) -> tuple[int, dict[str, Tensor]]:
    """One step of the optimiser; frames seen, and the terms of the loss."""
    model, config = state.model.train(), state.config
    optimizers = list(state.optimizers.values())
    for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
        group["lr"] = config.learning_rate_at(state.step)
    batch = sampler.sample(config.batch_size, state.rng).to(state.device)
    loss, terms = model.loss(batch, state.generator)
    norm = descend(loss, optimizers, model.parameters(), config.clip)
    model.after_update()
    terms = {"loss": loss, "gradient_norm": norm} | terms
    return batch.states, {k: v.detach() for k, v in terms.items()}


def _evaluate(state: TrainingState, evaluate: Evaluate, writer: SummaryWriter) -> None:
    state.model.eval()
    with torch.no_grad():
        found = evaluate(state.model)
    state.metrics |= found.metrics
    _write(writer, found.metrics, state.step)
    for name, figure in found.figures.items():
        writer.add_figure(name, figure, state.step)
    if found.alarm:
        state.alarms.append((state.step, found.alarm))
        writer.add_text("jepa/alarm", found.alarm, state.step)
        tqdm.write(f"step {state.step}: {found.alarm}")


def _write(writer: SummaryWriter, metrics: Metrics, step: int) -> None:
    for name, value in metrics.items():
        writer.add_scalar(name, value, step)


class _Meter:
    """Means of the terms since the last flush. The numbers stay on the device until then: no wait per update."""

    def __init__(self, step: int) -> None:
        self.restart(step)

    def restart(self, step: int) -> None:
        self.step, self.count, self.frames, self.began = step, 0, 0, time.perf_counter()
        self.sums: dict[str, Tensor] = {}

    def add(self, frames: int, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1
        self.frames += frames

    def check(self) -> None:
        """Raises ValueError if a term was NaN or infinite since the last flush."""
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        if not all(map(math.isfinite, means.values())):
            raise ValueError(
                f"the loss or its gradient became NaN or infinite within updates {self.step + 1} to "
                f"{self.step + self.count} (means: {means}); lower the learning rate, and check the data"
            )

    def flush(self) -> Metrics:
        self.check()
        metrics = {f"jepa/{name}": float(total) / self.count for name, total in self.sums.items()}
        metrics["jepa/frames_per_second"] = self.frames / (time.perf_counter() - self.began)
        self.restart(self.step + self.count)
        return metrics

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside does not count as time spent training."""
        paused = time.perf_counter()
        yield
        self.began += time.perf_counter() - paused
