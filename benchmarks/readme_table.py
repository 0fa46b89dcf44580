"""Write the figures in ``benchmarks/results/*.json`` into the README, between its two markers.

python benchmarks/readme_table.py           # rewrite the block
python benchmarks/readme_table.py --check   # exit 1 if the block does not say what the files say
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
START, END = "<!-- figures: benchmarks/readme_table.py -->", "<!-- /figures -->"


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def interval(bounds: list[float]) -> str:
    return f"{percent(bounds[0])} to {percent(bounds[1])}"


def two_rooms(r: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Two Rooms, goal in the other room, random wall and door: success", percent(r["success_rate"])),
        ("... 95% interval", interval(r["success_ci95"])),
        ("... random actions", percent(r["random_success_rate"])),
        ("... the same search on the true simulator", percent(r["oracle_dynamics_success_rate"])),
    ]


def goal_planning(r: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"{r['task']}, goal picture 25 steps ahead: success", percent(r["success_rate"])),
        ("... 95% interval", interval(r["success_ci95"])),
        ("... random actions", percent(r["random_success_rate"])),
        ("... training per seed", f"{r['train_seconds'] / 60:.0f} min"),
    ]


def planning_speed(r: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("CEM, 1 environment: time of stable-worldmodel / ours", f"{r['ratio_1_env']:.1f}x"),
        ("CEM, 16 environments: time of stable-worldmodel / ours", f"{r['ratio_16_envs']:.1f}x"),
        (
            "... with our search in bfloat16, 1 and 16 environments",
            f"{r['ratio_1_env_bfloat16_against_float32']:.1f}x, {r['ratio_16_envs_bfloat16_against_float32']:.1f}x",
        ),
    ]


def wrapper_speed(r: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("PPO training frames per second, latents / CnnPolicy on pixels", f"{r['ppo_fps_ratio']:.1f}x"),
        ("encoding one observation (64 x 64, 3 frames)", f"{r['encode_ms']:.2f} ms"),
    ]


def rendering(r: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            "dm_control pixels, our fast look / dm_control's own rendering, median of tasks",
            f"{r['median_ratio']:.1f}x",
        )
    ]


def dmc_pixels(r: dict[str, Any]) -> list[tuple[str, str]]:
    labels = {
        "jepa_mpc": "JEPAMPC from pixels",
        "sac_pixels": "SAC from pixels",
        "sac_latents": "SAC on frozen latents",
        "sac_online_latents": "SAC on latents that go on learning",
        "sac_state": "SAC from state",
        "random": "random actions",
    }
    rows = []
    for task, methods in r["results"].items():
        for i, method in enumerate(name for name in labels if name in methods):
            found = methods[method]
            seeds, (low, high) = len(found["seeds"]), found["ci95"]
            label = labels[method].replace("SAC", found["preset"]) if "sac" in method else labels[method]
            if method == "jepa_mpc":
                label = label.replace("pixels", found["observations"])
            cut = found["train_episode_frames"]
            budget = f"{found['frames']:,} frames" + (f" in episodes of {cut}" if cut else "")
            look = f"action repeat {found['action_repeat']}, {found['render']} rendering"
            lead = "... " if i else f"{task}, {budget}, {look}: "
            interval = f" ({low:.0f} to {high:.0f})" if high > low else ""
            rows.append(
                (
                    f"{lead}{label}, return, {seeds} seed{'s' * (seeds > 1)}{minutes(found['wall_seconds'])}",
                    f"{found['iqm']:.0f}{interval}",
                )
            )
    return rows


def minutes(seconds: list[float]) -> str:
    """Of the shortest and the longest run."""
    least, most = (round(extreme(seconds) / 60) for extreme in (min, max))
    if not most:
        return ""
    return f" of {least} min" if least == most else f" of {least} to {most} min"


def jepa_mpc_ablations(r: dict[str, Any]) -> list[tuple[str, str]]:
    labels = {
        "full": "in full",
        "warm_start": "warm start from a world model of random play",
        "frozen": "that one, frozen",
        "no_prior": "no policy prior",
        "no_value": "no value",
        "no_prediction": "no prediction",
        "reconstruction": "reconstruction instead",
    }
    found = {label: r["results"][name] for name, label in labels.items() if name in r["results"]}
    seeds = max(len(variant["runs"]) for variant in found.values())
    what = (
        f"JEPAMPC, {r['task']}, {r['frames']:,} frames, {seeds} seed{'s' * (seeds > 1)}: {' / '.join(found)}"
    )
    return [(what, " / ".join(f"{variant['return']:.0f}" for variant in found.values()))]


def branching(r: dict[str, Any]) -> list[tuple[str, str]]:
    energy, kept = r["energy_score_ratio_to_oracle"], r["return_ratio_to_oracle"]
    return [
        (
            "TableEdge, fall probability, error of 10 bins: flow, 4 evaluations",
            f"{r['frequency_mae']['flow_4']:.3f}",
        ),
        (
            "... energy score / the true sampler's: flow, mixture, ensemble, point",
            ", ".join(f"{energy[k]:.2f}" for k in ("flow_4", "mixture", "ensemble", "point")),
        ),
        (
            "... return / the oracle planner's: flow with CVaR, flow by the mean, mixture, ensemble, point",
            ", ".join(
                f"{kept[k]['ratio']:.2f}" for k in ("flow_cvar", "flow", "mixture", "ensemble", "point")
            ),
        ),
        (
            "... return with real contact (MuJoCo): flow with CVaR, mixture, ensemble, point, random actions",
            ", ".join(
                f"{r['return_mujoco'][k]['mean']:.1f}"
                for k in ("flow_cvar", "mixture", "ensemble", "point", "random")
            ),
        ),
        (
            "... planning time with 8 futures / the point predictor's",
            f"{r['planning_time_ratio_8_futures']:.1f}x",
        ),
        (
            "Fork, distance to the nearer of the two true outcomes, point / flow",
            f"{r['impossible_average_ratio']:.1f}x",
        ),
    ]


TASK_NAMES = {"two_rooms": "Two Rooms"}


def flow_proposals(r: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for task, planners in r["planners"].items():
        shown = [planners[name] for name in ("flow_proposals", "flow_proposals_refined", "cem")]
        rows.append(
            (
                f"{TASK_NAMES.get(task, task)}, proposals of a flow / refined once / CEM: success, ms of a decision",
                " / ".join(f"{found['success_rate']:.2f}" for found in shown)
                + ", "
                + " / ".join(f"{found['plan_ms']:.0f}" for found in shown)
                + " ms",
            )
        )
    return rows


def data_speed(r: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            "episode store, stacked frames sampled per second, 3 frames",
            f"{r['sample_frames_per_second_stack_3']:,.0f}",
        ),
        ("collecting Two Rooms, environment steps per second", f"{r['collect_steps_per_second']:,.0f}"),
    ]


ROWS = {
    "two_rooms": two_rooms,
    "goal_planning": goal_planning,
    "planning_speed": planning_speed,
    "wrapper_speed": wrapper_speed,
    "dmc_pixels": dmc_pixels,
    "jepa_mpc_ablations": jepa_mpc_ablations,
    "branching": branching,
    "flow_proposals": flow_proposals,
    "rendering": rendering,
    "data_speed": data_speed,
}


def block() -> str:
    """The markdown between the markers: one table, and the machine that each row comes from."""
    lines = ["", "| what | figure | from |", "|---|---|---|"]
    machines = []
    for name, rows in ROWS.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        lines += [f"| {what} | {figure} | `{path.name}` |" for what, figure in rows(result)]
        machine = result["machine"]
        machines.append(f"{machine['cores']} cores of {machine['cpu']}, {machine.get('gpu') or 'no GPU'}")
    if not machines:
        return "\nNo benchmark results are stored yet.\n\n"
    return "\n".join([*lines, "", f"Measured on {'; '.join(dict.fromkeys(machines))}.", ""]) + "\n"


def rewritten(text: str) -> str:
    head, start, rest = text.partition(START)
    _, end, tail = rest.partition(END)
    if not (start and end):
        sys.exit(f"{README.name} needs the markers {START} and {END}")
    return head + start + "\n" + block() + end + tail


def main() -> None:
    text = README.read_text()
    new = rewritten(text)
    if "--check" in sys.argv[1:]:
        sys.exit(0 if new == text else "README.md is out of date: run python benchmarks/readme_table.py")
    README.write_text(new)


if __name__ == "__main__":
    main()
