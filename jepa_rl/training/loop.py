"""The training loop. It knows no algorithm: a model gives ``loss`` and ``after_update``, a sampler gives batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl import distributed
from jepa_rl.memory import keep_freed_memory
from jepa_rl.progress import Progress
from jepa_rl.training.checkpoint import TrainingState, seeded_generators
from jepa_rl.training.config import TrainConfig
from jepa_rl.training.contracts import Sampler, Trainable, check_loss, fingerprint_of, sample_own
from jepa_rl.training.optimisers import descend, optimizers_of
from jepa_rl.training.run_log import RunLog
from jepa_rl.types import Metrics, WorldSpec


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: numbers, by their TensorBoard tags.
        figures: Matplotlib figures, by their TensorBoard tags.
        alarm: what is wrong, in words; None if nothing is.
    """

    metrics: Metrics
    figures: Mapping[str, Any]
    alarm: str | None = None


# Looks at a model in evaluation mode, without gradients.
Evaluate = Callable[[Any], Evaluation]


@dataclass(frozen=True)
class TrainResult:
    """What ``fit`` returns.

    Attributes:
        metrics: the last of each.
        seconds: spent in this call.
        alarms: all of the run: (step, text).
    """

    metrics: Metrics
    seconds: float
    alarms: tuple[tuple[int, str], ...]


def fit(
    model: Trainable,
    sampler: Sampler,
    config: TrainConfig,
    out: str | Path,
    *,
    evaluate: Evaluate | None = None,
    resume: bool = True,
    progress: bool | str = True,
) -> TrainResult:
    """Trains a model in the folder ``out``.

    There it writes TensorBoard events, ``progress.csv`` (the same numbers, one line a log),
    ``checkpoint.safetensors`` and ``model.safetensors``.

    Inside ``jepa_rl.distributed.join`` several processes train one model; each calls ``fit`` with the same arguments.
    The first of them writes, evaluates and shows the progress.

    A run that was stopped at any moment goes on from its last checkpoint exactly as if it had never stopped:
    the checkpoint holds weights, optimiser, generators and the step. A run that had already finished returns
    its last metrics at once. The model is left in evaluation mode.

    Args:
        model: learns in place; a ``WorldModel``, or another ``nn.Module`` that is ``Trainable``.
        sampler: draws batches.
        config: how long and how fast.
        out: folder of the run.
        evaluate: called with the model in evaluation mode every ``evaluate_every`` updates and at the end;
            ``jepa_rl.diagnostics.world_model_evaluation`` makes one.
        resume: continue from a checkpoint in ``out``; False refuses to overwrite one.
        progress: show the progress (``jepa_rl.progress``); a text is its name, instead of "Training".

    Raises:
        TypeError: the model's configuration cannot be written to a checkpoint, or its loss is no tensor.
        ValueError: the windows have other blocks or actions than the model; ``out`` holds a checkpoint of another
            model, configuration or other data; or the loss is not a finite scalar with a gradient in the first update
            (nothing is written then); or it or its gradient became NaN or infinite later (the last checkpoint stays);
            or ``out`` holds another program's ``progress.csv``; or ``batch_size`` cannot be divided among the
            processes, or they have other settings or data than the first.
        ProcessLost: another process of the run ended or does not answer.
    """
    if not isinstance(model, Trainable):
        raise TypeError(
            f"fit trains an nn.Module with config, loss, after_update and save (jepa_rl.training.Trainable), got "
            f"{type(model).__name__}"
        )
    _check_windows(model, sampler)
    out, began = Path(out), time.perf_counter()
    keep_freed_memory()
    state = TrainingState(model, optimizers_of(model, config), config, fingerprint_of(sampler))
    checkpoint = out / "checkpoint.safetensors"
    with distributed.together(), seeded_generators(config.seed, state.device):
        distributed.check_divides(config.batch_size)
        distributed.check_alike("settings or data", state.identity)
        there = distributed.by_first(checkpoint.exists)
        if there and not resume:
            raise ValueError(
                f"{checkpoint} exists: pass resume=True to go on with it, or choose another folder"
            )
        if there:
            state.restore(checkpoint)
        else:
            distributed.copy_first(model.state_dict().values())
        if state.step < config.steps:
            _train(state, sampler, checkpoint, evaluate, progress)
        model.eval()
        distributed.by_first(lambda: model.save(out / "model.safetensors"))
    return TrainResult(state.metrics, time.perf_counter() - began, tuple(state.alarms))


def _check_windows(model: Trainable, sampler: Sampler) -> None:
    """Where both say what they were made for: that the windows have the model's actions and blocks."""
    reads, holds = getattr(model, "spec", None), getattr(sampler, "spec", None)
    if not (isinstance(reads, WorldSpec) and isinstance(holds, WorldSpec)):
        return
    if reads.block != holds.block:
        raise ValueError(
            f"the model's latent step is {reads.block} environment steps, that of the windows {holds.block}; make both "
            f"alike: spec.with_block({holds.block}) for the model, or WindowSampler(..., block={reads.block})"
        )
    if reads.action.size != holds.action.size:
        raise ValueError(
            f"the model is driven by {reads.action}, the episodes hold {holds.action}; train on episodes of the "
            "model's environment"
        )


def _train(
    state: TrainingState, sampler: Sampler, checkpoint: Path, evaluate: Evaluate | None, progress: bool | str
) -> None:
    config, meter, began = state.config, _Meter(state.step), state.step
    distributed.check_parts(state.model.train())
    found = _update(state, sampler, first=True)  # nothing is written before one update has gone well
    name = progress if isinstance(progress, str) else "Training"
    shown = bool(progress) and distributed.is_first()
    with (
        RunLog(checkpoint.parent, began) as log,
        Progress(name, config.steps, initial=began, shown=shown) as bar,
    ):
        bar.files(checkpoint.parent)
        while True:
            meter.add(*found)
            done, logged = state.step, {}
            if _due(done, config.log_every, config):
                logged = meter.flush() | {"jepa/learning_rate": config.learning_rate_at(done - 1)}
                state.metrics |= logged
                bar.note(f"loss {logged['jepa/loss']:.4f}, {logged['jepa/frames_per_second']:.0f} frames/s")
                log.scalars(done, logged)
            with meter.pause():
                if evaluate is not None and _due(done, config.evaluate_every, config):
                    meter.check()
                    logged = logged | _evaluate(state, evaluate, log, bar)
                if logged:  # before the checkpoint, which says up to which step lines are kept
                    log.line(done, logged)
                if _due(done, config.checkpoint_every, config):
                    meter.check()
                    state.save(checkpoint)
            bar.update()
            if done == config.steps:
                return
            found = _update(state, sampler)


def _due(done: int, every: int, config: TrainConfig) -> bool:
    return done % every == 0 or done == config.steps


def _update(
    state: TrainingState, sampler: Sampler, first: bool = False
) -> tuple[int, dict[str, Float[Tensor, ""]]]:
    """One step of the optimiser.

    Args:
        state: the model and all that belongs to it.
        sampler: draws the batch.
        first: look whether loss and gradient are finite. It waits for the device, so ``_Meter`` does it later on.

    Returns:
        States seen, and the terms of the loss without gradients, on the device.

    Raises:
        TypeError, ValueError: as ``check_loss``.
    """
    model, config = state.model.train(), state.config
    optimizers = list(state.optimizers.values())
    for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
        group["lr"] = config.learning_rate_at(state.step)
    batch = sample_own(sampler, config.batch_size, state.rng).to(state.device)
    loss, terms = check_loss(model.loss(batch, state.generator), numbers=first)
    norm = descend(loss, optimizers, model.parameters(), config.clip)
    if first and not math.isfinite(norm):
        raise ValueError(
            f"the gradient of the first update is {float(norm)} though its loss is {float(loss.detach()):.4g}, so the "
            "model is spoilt: build it anew, and look for a root or logarithm of 0 or a division by 0 in the loss"
        )
    model.after_update()
    state.step += 1
    terms = {"loss": loss, "gradient_norm": norm} | dict(terms)
    return distributed.whole_batch(batch.states), {name: value.detach() for name, value in terms.items()}


def _evaluate(state: TrainingState, evaluate: Evaluate, log: RunLog, bar: Progress) -> Metrics:
    """Evaluates the model in the first process, which writes what was found; returns its numbers in all."""
    state.model.eval()

    def look() -> tuple[Metrics, str | None]:
        with torch.no_grad():
            found = evaluate(state.model)
        metrics = {name: float(value) for name, value in found.metrics.items()}  # NumPy's numbers, too
        log.scalars(state.step, metrics)
        log.figures(state.step, found.figures)
        if found.alarm:
            log.text(state.step, "jepa/alarm", found.alarm)
            bar.say(f"step {state.step}: {found.alarm}")
        return metrics, found.alarm

    metrics, alarm = distributed.by_first(look)
    state.metrics |= metrics
    if alarm:
        state.alarms.append((state.step, alarm))
    return metrics


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
        self._means()

    def _means(self) -> Metrics:
        """Means of the terms since the last flush, over all processes.

        Raises:
            ValueError: a term was NaN or infinite.
        """
        here = torch.tensor([float(total) for total in self.sums.values()], dtype=torch.float64)
        sums = distributed.average(here).tolist() if self.sums else []
        means = {name: total / self.count for name, total in zip(self.sums, sums, strict=True)}
        if not all(map(math.isfinite, means.values())):
            raise ValueError(
                f"the loss, a term of it or its gradient became NaN or infinite within updates {self.step + 1} to "
                f"{self.step + self.count} (means: {means}); lower the learning rate, and check the data"
            )
        return means

    def flush(self) -> Metrics:
        metrics = {f"jepa/{name}": value for name, value in self._means().items()}
        metrics["jepa/frames_per_second"] = self.frames / (time.perf_counter() - self.began)
        self.restart(self.step + self.count)
        return metrics

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside does not count as time spent training."""
        paused = time.perf_counter()
        yield
        self.began += time.perf_counter() - paused
