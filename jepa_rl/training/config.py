"""How long and how fast ``fit`` learns."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from jepa_rl.checks import check_each, check_not_negative, is_share


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run; plain numbers, written into checkpoints.

    Attributes:
        steps: optimiser updates.
        batch_size: windows in a batch, of all processes together where there are several.
        learning_rate: peak of a one-cycle schedule: linear warm-up, then a cosine to zero.
        weight_decay: of matrices only.
        warmup: share of the steps spent warming up.
        clip: largest gradient norm.
        seed: of sampling and of the terms that draw numbers.
        log_every, evaluate_every, checkpoint_every: in updates.
        optimizer: "adamw", or "muon": Muon (Jordan et al. 2024) for matrices, AdamW for everything else. Muon moves a
            matrix equally far in all of its directions, at AdamW's rates (Liu et al. 2025, arXiv:2502.16982); one of
            its updates costs more than one of AdamW's.

    Raises:
        ValueError: for a number out of its range, or an unknown optimiser.
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
        for field in fields(self):  # NumPy's numbers, which JSON and so checkpoints do not know
            if isinstance(value := getattr(self, field.name), np.generic):
                object.__setattr__(self, field.name, value.item())
        for name in ("steps", "batch_size", "log_every", "evaluate_every", "checkpoint_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
        if not isinstance(self.seed, int):
            raise ValueError(f"seed must be a whole number, got {self.seed!r}")
        check_each(lambda value: value > 0, "be positive", learning_rate=self.learning_rate, clip=self.clip)
        check_not_negative(weight_decay=self.weight_decay)
        check_each(is_share, "lie in [0, 1)", warmup=self.warmup)
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f'optimizer must be "adamw" or "muon", got {self.optimizer!r}')

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of update ``step`` (0 is the first)."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))
