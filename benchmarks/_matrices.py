"""One small matrix per question, task by method, for the README and docs/results.md.

Each function reads what is recorded and answers markdown: a table, and a caption that says what the figures are, which
seeds they come from and what differs between the columns. Files that are missing leave their rows out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from _intervals import shown
from _record import ROOT, not_recorded

RESULTS = ROOT / "benchmarks" / "results"
CHOSEN_ON = {0, 1, 2}  # training seeds that settings of the goal tasks were chosen on


def load(name: str) -> dict[str, Any] | None:
    path: Path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def facts(result: Any, name: str) -> Iterator[Any]:
    """Every value of this name, anywhere in a file."""
    if isinstance(result, dict):
        if name in result:
            yield result[name]
        result = list(result.values())
    for value in result if isinstance(result, list) else ():
        yield from facts(value, name)


def untold(result: dict[str, Any]) -> bool:
    """Whether some figure of the file does not tell how it was made."""
    told = list(facts(result, "not_recorded"))
    return any(told) if told else bool(set(not_recorded(result)) - {"settings"})


def score(found: dict[str, Any], form: str, pooled: bool = True) -> str:
    """A summary of seeds; of older files, which do not have the points, their mean and how it was found."""
    if found["per_seed"]:
        return shown(found, form, pooled)
    bounds = found.get("bootstrap_of_these_seeds")
    spread = f" (bootstrap {bounds[0]:{form}} to {bounds[1]:{form}})" if bounds else ""
    return f"{found['mean']:{form}}{spread}"


def matrix(
    corner: str, rows: Sequence[tuple[str, Mapping[str, str]]], caption: str, order: Sequence[str] = ()
) -> str:
    """A table whose columns are those that any row has, in this order, others behind as they first appear."""
    return "\n".join([grid(corner, rows, order), "", caption, ""])


def grid(corner: str, rows: Sequence[tuple[str, Mapping[str, str]]], order: Sequence[str] = ()) -> str:
    """The table of ``matrix`` without its caption."""
    found = dict.fromkeys(name for _, cells in rows for name in cells)
    columns = [*(name for name in order if name in found), *(name for name in found if name not in order)]
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells.get(c, 'not run') for c in columns)} |" for name, cells in rows]
    return "\n".join(lines)


def mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f}"


def mark(result: dict[str, Any]) -> str:
    return " †" if untold(result) else ""


# -- the questions ----------------------------------------------------------------------------------


def goals() -> str:
    """Does it reach a goal picture?"""
    methods = {
        "agent": "ours", "true_dynamics": "same search, true simulator", "cem": "CEM",
        "inverse_model": "inverse model", "random": "random",
    }  # fmt: skip
    rows, notes = [], []
    for name, task, how in (
        ("two_rooms", "Two Rooms, goal in the other room", "TreeSearch"),
        ("goal_planning", "{task}, goal picture 25 steps ahead", "CEM"),
    ):
        if (r := load(name)) is None:
            continue
        label = task.format(task=r.get("task", "").removeprefix("dmc/").removesuffix("-v0")) + mark(r)
        found = r["success"]
        rows.append((label, {methods[k]: score(found[k], ".1%") for k in methods if k in found}))
        seeds = ", ".join(map(str, r["seeds"]))
        tuned = ", which settings were chosen on" if CHOSEN_ON & set(r["seeds"]) else ""
        notes.append(f"{label.partition(',')[0]}: {how}, training seeds {seeds}{tuned}.")
    caption = (
        "Share of unseen episodes in which the goal was reached; in brackets, training seed by training seed. "
        + " ".join(notes)
    )
    return matrix("success", rows, caption) if rows else ""


def control() -> str:
    """What does it reach from reward?"""
    methods = {
        "jepa_mpc": "JEPAMPC, pixels", "sac_joint": "JEPASAC or JEPADQN, pixels",
        "sac_drq": "..., agent's loss alone", "sac_pixels": "SAC or DQN, pixels",
        "sac_latents": "..., frozen latents", "sac_grown": "..., growing latents", "sac_state": "..., state",
        "random": "random",
    }  # fmt: skip
    if (r := load("dmc_pixels")) is None:
        return ""
    rows, notes, results = [], [], r["results"]
    for task, found in results.items():
        if found.keys() <= {"sac_state", "random"}:
            continue
        cells = {
            label: score(found[name], ".0f", pooled=not found[name]["not_recorded"])
            for name, label in methods.items()
            if name in found
        }
        first = found.get("jepa_mpc") or next(iter(found.values()))
        rows.append((f"{task}{mark({'results': {task: found}})}", cells))
        cut, size = first["train_episode_frames"], found.get("jepa_mpc", {}).get("preset", "laptop")
        notes.append(
            f"{task}: {first['frames']:,} frames{f' in episodes of {cut}' if cut else ''}, action repeat "
            f"{first['action_repeat']}, {first['render']} rendering, {first['observations']}"
            f"{'' if size == 'laptop' else f', JEPAMPC with the preset `{size}`'}."
        )
    caption = (
        "Return of the last evaluation, training seed by training seed; a single number is one seed. "
        + " ".join(notes)
    )
    return matrix("return", rows, caption, list(methods.values()))


def branching() -> str:
    """Does it help to imagine several futures?"""
    if (r := load("branching")) is None:
        return ""
    kept = r["return_ratio_to_true_dynamics"]
    kinds = ("flow", "mixture", "ensemble", "point")
    rows = [
        (
            f"{label}{mark(r)}",
            {k: score(kept[f"{k}{end}"], ".2f") if f"{k}{end}" in kept else "one future" for k in kinds},
        )
        for label, end in (("by the mean of the futures", ""), ("by the worst quarter (CVaR)", "_cvar"))
    ]
    caption = (
        "TableEdge: return of plans over drawn futures, divided by that of the same search with the true dynamics; 1 "
        f"is as good. Training seeds {', '.join(map(str, r['seeds']['table_edge']))}, one encoder for all columns."
    )
    return matrix("return ratio, plans", rows, caption)


def speed() -> str:
    """How fast is it?"""
    rows, caption = [], "A plan by CEM: time of stable-worldmodel / ours."
    if (r := load("planning_speed")) is not None:
        labels = {
            "ratio_{}": "the same weights, both in float32",
            "ratio_{}_bfloat16": "the same weights, both in bfloat16",
        }
        if "ratio_own_1_env" in r:
            reached = f"{r['success_peer']:.0%} of the goals reached, ours {r['success_own']:.0%}"
            labels["ratio_own_{}"] = f"each side's own predictor, float32; {reached}"
            caption += (
                " Own predictors: LeWorldModel's transformer against a perceptron of 192 units, trained on the same "
                "latents of Two Rooms (goals in the same room); the smaller network is what is faster."
            )
        for key, label in labels.items():
            columns = (
                ("1 environment", key.format("1_env")),
                ("16 environments", key.format("16_envs")),
            )
            cells = {column: f"{r[name]:.1f}x" for column, name in columns if name in r}
            rows.append((f"{label}{mark(r)}", cells))
    if (wrapper := load("wrapper_speed")) is not None:
        caption += (
            f" PPO trains on {wrapper['ppo_fps_ratio']:.1f} times as many frames a second from latents as from pixels; "
            f"encoding an observation takes {wrapper['encode_ms']:.2f} ms{mark(wrapper)}."
        )
    if (now := load("processor_speed")) is not None:
        caption += (
            f" On a processor with {now['isa']} an update of the world model is {now['joint_update_ratio']:.1f} times "
            f"as fast as in 0.1.0, one of JEPAMPC {now['jepa_mpc_update_ratio']:.1f} times{mark(now)}."
        )
    if (rendering := load("rendering")) is not None:
        caption += (
            f" Our fast look of dm_control draws {rendering['median_ratio']:.0f} times as fast as its own"
            f"{mark(rendering)} (median of tasks; the pictures differ)."
        )
    return matrix("time ratio", rows, caption) if rows else f"{caption}\n"


SPACES = {
    "state": "the true state, for comparison", "jepa_sigreg": "prediction: JEPA, SIGReg",
    "jepa_vicreg": "prediction: JEPA, variance and covariance", "action_free": "prediction: JEPA without actions",
    "vjepa": "prediction: masked video", "dino": "recognition: DINO, in-domain",
    "dinov2": "recognition: DINOv2, frozen", "vae": "reconstruction: VAE", "pixels": "pixels, 16 x 16",
    "random": "an untrained encoder",
}  # fmt: skip
TASKS = {"two_rooms": "Two Rooms", "reacher": "reacher", "table_edge": "TableEdge"}


def spaces() -> str:
    """Which space should it plan in?"""
    if (r := load("head_to_head")) is None:
        return ""
    found = {
        (c["arm"], c["task"], c["dynamics"]): c["success"] for c in r["cells"] if c["distractor"] is None
    }
    rows = []
    for arm, label in SPACES.items():
        cells = {}
        for task, name in TASKS.items():
            sides = [found.get((arm, task, dynamics)) for dynamics in ("point", "flow")]
            if any(sides):
                cells[name] = " / ".join(mean(x) if x else "not run" for x in sides)
        if cells:
            rows.append((label, cells))
    broken = [
        SPACES[arm].partition(": ")[2] for arm, works in r["works"].items() if not works and arm in SPACES
    ]
    own = f" By their own measure these do not work here: {', '.join(broken)}." if broken else ""
    counts = {len(found[key]) for key in found if key[0] in SPACES and key[1] in TASKS}
    seeds = (
        f"{min(counts)} to {max(counts)} training seeds"
        if len(counts) > 1
        else f"{max(counts)} training seed"
    )
    caption = (
        "Success in the closed loop of plans with point dynamics / with the flow on the same frozen latents: same "
        "data, network (but for DINOv2, masked video and pixels), planner and 200 paired episodes; "
        f"{seeds}.{own}"
    )
    return matrix("success", rows, caption)


def depth() -> str:
    """How far must a plan look ahead, in which space?"""
    if (r := load("search_depth")) is None:
        return ""
    tables, seeds = [], set()
    for task, name in TASKS.items():
        rows = []
        for row in (row for row in r["rows"] if row["task"] == task and row["arm"] in SPACES):
            cells = {
                f"{horizon} block{'s' if int(horizon) > 1 else ''}": mean(values)
                for horizon, values in row["success"].items()
            }
            rows.append((SPACES[row["arm"]], cells | {"order of prices": mean(row["order"])}))
            seeds.add(tuple(row["seeds"]))
        if rows:
            tables.append(grid(name, rows))
    caption = (
        "Success of the head-to-head's paired episodes, point dynamics, by how many blocks a plan looks ahead; order "
        "of prices: rank correlation of the price and the decisions that are left along an expert's ways. Training "
        f"seeds {', '.join(map(str, sorted({seed for some in seeds for seed in some})))}"
        f"{', not all for every space' if len(seeds) > 1 else ''}."
    )
    return "\n\n".join([*tables, f"{caption}\n"])


MATRICES = {
    "goals": goals, "spaces": spaces, "depth": depth, "control": control, "branching": branching, "speed": speed,
}  # fmt: skip
