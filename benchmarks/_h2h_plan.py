"""What of the head-to-head is missing, and what it takes: processor seconds of finished stages, or guesses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from _h2h_cache import prefixes, seconds_known
from _h2h_cells import Cell

# Processor seconds of a stage where none like it is finished.
GUESSES = {"data": 60.0, "encoder": 60.0, "latents": 3.0, "dynamics": 90.0, "play": 60.0, "measures": 20.0}
# Of arms that differ much from these, on one core with AVX512-BF16.
OF_ARMS = {
    ("encoder", "vae"): 200.0, ("encoder", "dino"): 400.0, ("encoder", "vjepa"): 1300.0, ("encoder", "ijepa"): 900.0,
    ("encoder", "mae"): 550.0, ("encoder", "nepa"): 1250.0, ("encoder", "jepa_sigreg_vit"): 1000.0,
    ("encoder", "vae_vit"): 1300.0, ("encoder", "simclr"): 180.0, ("encoder", "moco"): 180.0,
    ("encoder", "reconstruction"): 170.0, ("latents", "dinov2"): 300.0, ("latents", "efficientnet"): 300.0,
    ("encoder", "random"): 1.0, ("encoder", "state"): 0.0, ("encoder", "pixels"): 0.0, ("dynamics", "pixels"): 150.0,
}  # fmt: skip


def print_plan(cells: Sequence[Cell], root: Path, is_recorded: Callable[[Cell], bool]) -> None:
    missing = [cell for cell in cells if not is_recorded(cell)]
    known = seconds_known(root)
    seconds = {kind: 0.0 for kind in GUESSES}
    for kind, name in stages_of(missing):
        seconds[kind] += expected(kind, name, known)
    print(f"{len(missing)} of {len(cells)} cells are missing")
    for kind, total in seconds.items():
        print(f"  {kind:<10}{total / 3600:7.2f} core-hours")
    print(f"  {'together':<10}{sum(seconds.values()) / 3600:7.2f} core-hours")


def expected(kind: str, name: str, known: dict[tuple[str, str], float]) -> float:
    """Processor seconds of a stage: the mean of finished ones of its task and arm, or of its kind, or a guess."""
    parts = name.split(".")
    guess = OF_ARMS.get((kind, parts[1])) if len(parts) > 1 else None
    near = [prefix for prefix in prefixes(name) if len(prefix.split(".")) >= 2]
    far = [] if guess is not None else [parts[0], ""]
    return next(
        (known[kind, p] for p in [*near, *far] if (kind, p) in known),
        GUESSES[kind] if guess is None else guess,
    )


def stages_of(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Kind and name of all stages, each once."""
    found: dict[tuple[str, str], None] = {}
    for cell in cells:
        encoder = f"{cell.task}.{cell.arm}.{cell.seed}"
        stages = {"data": f"{cell.task}.{cell.seed}", "encoder": encoder, "latents": encoder}
        stages |= {kind: str(cell) for kind in ("dynamics", "play", "measures")}
        found |= dict.fromkeys(stages.items())
    return list(found)
