"""The training loop. It knows no algorithm: a model gives ``loss`` and ``after_update``, a sampler gives batches."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from jepa_rl.files import load_tensors, save_tensors
from jepa_rl.types import Batch, Metrics


class Trainable(Protocol):
    """What ``fit`` needs of a model beside being an ``nn.Module``."""

    def loss(
        self, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def after_update(self) -> None: ...


class Sampler(Protocol):
    """What ``fit`` needs of the data, such as ``jepa_rl.data.WindowSampler``."""

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch: ...


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to learn.

    Attributes:
        steps: optimiser updates.
        batch_size: windows in a batch.
        learning_rate: peak of a one-cycle schedule: linear warm-up, then a cosine to zero.
        weight_decay: AdamW's, on matrices only.
        warmup: share of the steps spent warming up.
        clip: largest gradient norm.
        seed: of sampling and of the terms that draw numbers.
        log_every, evaluate_every, checkpoint_every: in updates.
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
    """Last metrics, seconds spent in this call, and the alarms that were raised (step, text)."""

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
    the checkpoint holds weights, optimiser, generators and the step.

    Args:
        model: an ``nn.Module`` that is ``Trainable`` and has ``save`` and ``config`` (such as ``WorldModel``).
        sampler: draws batches.
        config: how long and how fast.
        out: folder of the run.
        evaluate: called with the model in evaluation mode every ``evaluate_every`` updates and at the end;
            ``world_model_evaluation`` makes one.
        resume: continue from a checkpoint in ``out``; False refuses to overwrite one.
        progress: show a progress bar.

    Raises:
        ValueError: ``out`` holds a checkpoint of another model or configuration, or the loss became NaN or
            infinite (the last checkpoint stays).
    """
    out = Path(out)
    device = next(model.parameters()).device
    optimizer = _optimizer(model, config)
    rng = np.random.default_rng(config.seed)
    generator = torch.Generator(device).manual_seed(config.seed)
    checkpoint = out / "checkpoint.safetensors"
    first = 0
    if checkpoint.exists():
        if not resume:
            raise ValueError(
                f"{checkpoint} exists: pass resume=True to go on with it, or choose another folder"
            )
        first = _restore(checkpoint, model, optimizer, rng, generator, config)
    state = _State(model, optimizer, rng, generator, config)
    writer = SummaryWriter(str(out), purge_step=first)
    meter = _Meter()
    metrics: Metrics = {}
    alarms: list[tuple[int, str]] = []
    began = time.perf_counter()
    bar = tqdm(
        range(first, config.steps), initial=first, total=config.steps, disable=not progress, unit="update"
    )
    try:
        for step in bar:
            frames, terms = _update(model, sampler, optimizer, config, step, rng, generator, device)
            meter.add(frames, terms)
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                metrics |= meter.flush()
                metrics["jepa/learning_rate"] = config.learning_rate_at(step)
                bar.set_postfix_str(
                    f"loss {metrics['jepa/loss']:.4f}, {metrics['jepa/frames_per_second']:.0f} frames/s"
                )
                _write(writer, metrics, done)
            if evaluate is not None and (done % config.evaluate_every == 0 or done == config.steps):
                found = _evaluate(model, evaluate)
                metrics |= found.metrics
                _write(writer, found.metrics, done)
                for name, figure in found.figures.items():
                    writer.add_figure(name, figure, done)
                if found.alarm:
                    alarms.append((done, found.alarm))
                    writer.add_text("jepa/alarm", found.alarm, done)
                    tqdm.write(f"step {done}: {found.alarm}")
            if done % config.checkpoint_every == 0 or done == config.steps:
                state.save(checkpoint, done)
        model.eval()
        model.save(out / "model.safetensors")
    finally:
        writer.close()
        bar.close()
    return TrainResult(metrics, time.perf_counter() - began, tuple(alarms))


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate)


def _update(model, sampler, optimizer, config, step, rng, generator, device):
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate_at(step)
    batch = sampler.sample(config.batch_size, rng).to(device)
    loss, terms = model.loss(batch, generator)
    if not torch.isfinite(loss):
        values = {name: float(value) for name, value in terms.items()}
        raise ValueError(
            f"the loss became {float(loss)} at update {step} ({values}); lower the learning rate"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    model.after_update()
    terms = {"loss": loss.detach(), "gradient_norm": norm} | {k: v.detach() for k, v in terms.items()}
    return batch.pixels.shape[0] * batch.pixels.shape[1], terms


def _evaluate(model: nn.Module, evaluate: Evaluate) -> Evaluation:
    model.eval()
    with torch.no_grad():
        found = evaluate(model)
    model.train()
    return found


def _write(writer: SummaryWriter, metrics: Metrics, step: int) -> None:
    for name, value in metrics.items():
        writer.add_scalar(name, value, step)


class _Meter:
    """Means of the terms since the last flush, without a host read per update."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count, self.frames, self.began = 0, 0, time.perf_counter()

    def add(self, frames: int, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.count += 1
        self.frames += frames

    def flush(self) -> Metrics:
        metrics = {f"jepa/{name}": float(total) / self.count for name, total in self.sums.items()}
        metrics["jepa/frames_per_second"] = self.frames / (time.perf_counter() - self.began)
        self.reset()
        return metrics


class _State:
    """Everything that an exact resume needs, as one file."""

    def __init__(self, model, optimizer, rng, generator, config) -> None:
        self.model, self.optimizer, self.rng, self.generator, self.config = (
            model,
            optimizer,
            rng,
            generator,
            config,
        )

    def save(self, path: Path, step: int) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in slots.items()}
        tensors["generator"] = self.generator.get_state()
        header = {
            "config": asdict(self.model.config),
            "train": asdict(self.config),
            "step": step,
            "rng": self.rng.bit_generator.state,
        }
        save_tensors(path, "training", tensors, header)


def _restore(path, model, optimizer, rng, generator, config) -> int:
    tensors, header = load_tensors(path, ("training",))
    wanted = {"config": json.loads(json.dumps(asdict(model.config))), "train": asdict(config)}
    for name, value in wanted.items():
        if header[name] != value:
            differing = {k: (header[name].get(k), v) for k, v in value.items() if header[name].get(k) != v}
            raise ValueError(
                f"{path} belongs to another {name} configuration (there, here): {differing}; "
                "use the same configuration to resume, or another folder"
            )
    model.load_state_dict({name[6:]: t for name, t in tensors.items() if name.startswith("model.")})
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".")
            slots.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    rng.bit_generator.state = header["rng"]
    generator.set_state(tensors["generator"].cpu())
    return int(header["step"])
