"""Run any example with several seeds and settings at once, on Ray, and put the results into one table.

    pip install 'jepa-rl[ray]'
    python examples/sweep.py
    python examples/sweep.py --example grow --grid gradient_steps=500,2000 --fixed rounds=5 --show mean_return
    python examples/sweep.py --example my_training.py --seeds 0 1 2 --grid lr=1e-3,3e-4 --address 10.0.0.1:6379

An example is a file with a dataclass `Args`, which has fields `seed` and `out`, and a function `main(args)` that writes
`results.json` into the folder `args.out`. Every trial runs in a process of its own, with one core and one thread unless
`--cpus` says more; where that process is lost it is started again, and goes on from its checkpoints. Started again,
the sweep runs what is not finished.

Writes runs/sweep/: table.csv, results.json, trials/ (the folders of the runs), output/ (what they printed) and
TensorBoard events: `tensorboard --logdir runs/sweep` shows all of them.
"""

import importlib.util
import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import tyro

from jepa_rl.files import open_run
from jepa_rl.sweeps import over_seeds, sweep, table_text
from jepa_rl.trials import Resources


@dataclass(frozen=True)
class Args:
    example: str = "train_world_model"
    """Name of an example beside this file, or path of a file like them."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    grid: tuple[str, ...] = ("frames=1,3",)
    """Fields of the example's Args with values between commas; every combination is run with every seed."""
    fixed: tuple[str, ...] = ("steps=3000", "updates=200")
    """Fields that all trials have in common."""
    show: tuple[str, ...] = ("rollout_error_1", "action_gap", "effective_rank")
    """Results that are printed; table.csv has all of them."""
    address: str | None = None
    """Of a Ray cluster; this machine alone if None. All of its machines must see the example and the folder."""
    cpus: int = 1
    """Cores and threads of a trial."""
    gpus: float = 0.0
    """Accelerators of a trial; 0.25 lets four share one."""
    losses: int = 3
    """How many processes a trial may lose."""
    resume: bool = True
    """Run what is not finished in the folder; --no-resume deletes it and starts again."""
    quick: bool = False
    """A single trial of seconds."""
    out: Path = Path("runs/sweep")


def main(args: Args) -> None:
    if args.quick:
        few = tuple(text.split(",")[0] for text in args.grid)
        args = replace(args, seeds=args.seeds[:1], grid=few, fixed=(*args.fixed, "quick=True"))
    file = find(args.example)
    grid = [assignment(text) for text in args.grid]
    fixed = tuple(assignment(text) for text in args.fixed)
    trials = [
        settings_of(
            file, [*fixed, *zip((name for name, _ in grid), values, strict=True), ("seed", str(seed))]
        )
        for values in itertools.product(*(choices.split(",") for _, choices in grid))
        for seed in args.seeds
    ]
    swept = [name for name, _ in grid]
    kept = {"example": args.example, "fixed": args.fixed, "quick": args.quick}
    open_run(args.out, kept, resume=args.resume)
    common = {name: value for name, value in trials[0].items() if name not in (*swept, "seed")}
    named = [{name: trial[name] for name in (*swept, "seed")} for trial in trials]
    table = sweep(
        partial(run_example, file, common), named, args.out,
        address=args.address, resources=Resources(args.cpus, args.gpus, args.losses),
    )  # fmt: skip
    means = over_seeds(table, swept, args.show)
    spread = [f"{name}{end}" for name in args.show for end in ("", " from", " to")]
    print(table_text(table, [*swept, "seed", *args.show, "seconds", "processes"]))
    if len(args.seeds) > 1:
        print(f"\n{table_text(means, [*swept, 'trials', *spread])}")
    (args.out / "results.json").write_text(
        json.dumps({"trials": table, "means": means}, indent=2, default=str)
    )
    print(f"wrote {args.out}/; tensorboard --logdir {args.out}")


def find(example: str) -> Path:
    beside = Path(__file__).resolve().parent
    file = Path(example).resolve() if example.endswith(".py") else beside / f"{example}.py"
    if not file.is_file():
        names = sorted(path.stem for path in beside.glob("*.py"))
        raise FileNotFoundError(f"no example {example!r}: pass the path of a file, or one of {names}")
    return file


def assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"settings are written name=value, such as frames=1,3, got {text!r}")
    return name, value


def load(file: Path) -> ModuleType:
    """The example as a module, once in each process."""
    if file.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        sys.modules[file.stem] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[file.stem]


def settings_of(file: Path, texts: list[tuple[str, str]]) -> dict[str, Any]:
    """Settings with the types that the example's Args give them; refuses names and values that it does not take."""
    known = [field.name for field in fields(load(file).Args) if field.name != "out"]
    if unknown := sorted({name for name, _ in texts} - {*known}):
        raise ValueError(f"{file.name} has no settings {unknown}; its Args have {known}")
    line = [word for name, value in texts for word in (f"--{name}", *value.split())]
    args = tyro.cli(load(file).Args, args=line, config=(tyro.conf.FlagConversionOff,))
    return {name: getattr(args, name) for name, _ in texts}


def run_example(
    file: Path, common: Mapping[str, Any], settings: dict[str, Any], folder: Path
) -> dict[str, float]:
    """One trial: the example's main, and the numbers of its results."""
    example = load(file)
    example.main(example.Args(**common, **settings, out=folder))
    results = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in numbers(results).items() if name not in {*common, *settings}}


def numbers(value: Any, name: str = "") -> dict[str, float]:
    """Numbers in nested results, by names such as rollout_error_1 and probe_r2_door."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {name: float(value)}
    inside = (
        value.items() if isinstance(value, dict) else enumerate(value, 1) if isinstance(value, list) else ()
    )
    found = [numbers(part, f"{name}_{key}" if name else str(key)) for key, part in inside]
    return {key: number for part in found for key, number in part.items()}


if __name__ == "__main__":
    main(tyro.cli(Args))
