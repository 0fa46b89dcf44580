"""Write the figures in ``benchmarks/results/*.json`` into README.md and pages of docs, between their markers.

python benchmarks/readme_table.py           # rewrite the blocks
python benchmarks/readme_table.py --check   # exit 1 if a block does not say what the files say

``<!-- figures: NAME -->`` and ``<!-- /figures -->`` enclose a block: one of the matrices of ``_matrices.py``, or
``all``, the list of everything that is recorded.

Fewer than five training seeds are shown as points, with their mean; from five on the mean has an interval. A figure
whose file does not tell the settings, the commit and the code behind it has a dagger.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Set
from typing import Any

from _intervals import shown, summarise
from _matrices import CHOSEN_ON, MATRICES, RESULTS, facts, score, untold
from _record import ROOT

PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "head_to_head.md")
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- /figures -->)", re.DOTALL)
Row = tuple[str, str]  # what, figure
DAGGER = (
    "† Not recorded: the agent's settings, the commit or the code behind the figure; newer files hold them all. Seeds "
    "that come from several such runs are shown without a mean. Bootstrap intervals of three seeds, which newer files "
    "do not have, hold the truth in 75 to 82% of cases, not in 95%."
)


def seeds_of(r: dict[str, Any], chosen_on: Set[int] = frozenset()) -> str:
    names = ", ".join(map(str, r["seeds"]))
    tuned = ", which settings were chosen on" if chosen_on & set(r["seeds"]) else ""
    return f"training seed{'s' * (len(r['seeds']) > 1)} {names}{tuned}"


def count_of(found: dict[str, Any]) -> str:
    number = len(found["per_seed"])
    return f"{number} seed{'s' * (number > 1)}"


def two_rooms(r: dict[str, Any]) -> list[Row]:
    found = r["success"]
    return [
        (
            f"Two Rooms, goal in the other room, random wall and door: success, {seeds_of(r, CHOSEN_ON)}",
            score(found["agent"], ".1%"),
        ),
        ("... random actions", score(found["random"], ".1%")),
        ("... the same search on the true simulator", score(found["true_dynamics"], ".1%")),
        (
            f"... CEM, cost summed over the plan, the first {r['settings']['cem_episodes']} episodes",
            score(found["cem"], ".1%"),
        ),
    ]


def goal_planning(r: dict[str, Any]) -> list[Row]:
    found = r["success"]
    return [
        (
            f"{r['task']}, goal picture 25 steps ahead: success, {seeds_of(r, CHOSEN_ON)}",
            score(found["agent"], ".1%"),
        ),
        ("... random actions", score(found["random"], ".1%")),
        ("... training", minutes(r["train_seconds"], r["machines"])),
    ]


def planning_speed(r: dict[str, Any]) -> list[Row]:
    return [
        (
            "CEM, 1 and 16 environments, both sides in float32: time of stable-worldmodel / ours",
            f"{r['ratio_1_env']:.1f}x, {r['ratio_16_envs']:.1f}x",
        ),
        (
            "... both sides in bfloat16",
            f"{r['ratio_1_env_bfloat16']:.1f}x, {r['ratio_16_envs_bfloat16']:.1f}x",
        ),
    ]


def processor_speed(r: dict[str, Any]) -> list[Row]:
    parts = {
        "joint_update": "joint update of the world model",
        "refine_update": "refine update",
        "tree_plan": "plan of the tree",
        "jepa_mpc_update": "update of JEPAMPC",
        "jepa_mpc_decision": "decision of JEPAMPC",
        "encode": "encoding one observation",
    }
    cases = r["cases"][str(r["threads"])]
    return [
        (
            f"{words}, preset `laptop`, {r['isa']}, {r['threads']} threads: time of 0.1.0 / now "
            "(now with the sizes of 0.1.0)",
            f"{r[f'{part}_ratio']:.1f}x ({r[f'{part}_ratio_same_sizes']:.1f}x), now {cases[part]['new_ms']:.1f} ms",
        )
        for part, words in parts.items()
    ]


def wrapper_speed(r: dict[str, Any]) -> list[Row]:
    return [
        ("PPO training frames per second, latents / CnnPolicy on pixels", f"{r['ppo_fps_ratio']:.1f}x"),
        ("encoding one observation (64 x 64, 3 frames)", f"{r['encode_ms']:.2f} ms"),
    ]


def rendering(r: dict[str, Any]) -> list[Row]:
    what = "dm_control pixels, our fast look / dm_control's own rendering, median of tasks"
    return [(what, f"{r['median_ratio']:.1f}x")]


def dmc_pixels(r: dict[str, Any]) -> list[Row]:
    labels = {
        "jepa_mpc": "JEPAMPC from pixels",
        "sac_pixels": "SAC from pixels",
        "sac_joint": "SAC from pixels, whose encoder also learns a JEPA objective",
        "sac_drq": "SAC, by the agent's loss alone",
        "ppo_joint": "SAC from pixels",
        "sac_latents": "SAC on frozen latents",
        "sac_grown": "SAC on latents that grow with it",
        "sac_state": "SAC from state",
        "random": "random actions",
    }
    rows = []
    for task, methods in r["results"].items():
        for i, method in enumerate(name for name in labels if name in methods):
            found = methods[method]
            label = labels[method].replace("SAC", found["preset"])
            if method == "jepa_mpc":
                label = label.replace("pixels", found["observations"])
            cut = found["train_episode_frames"]
            budget = f"{found['frames']:,} frames" + (f" in episodes of {cut}" if cut else "")
            look = f"action repeat {found['action_repeat']}, {found['render']} rendering"
            lead = "... " if i else f"{task}, {budget}, {look}: "
            took = minutes(found["wall_seconds"], found["machines"], found["threads"])
            rows.append(
                (
                    f"{lead}{label}, return, {count_of(found)}{f' of {took}' if took else ''}",
                    score(found, ".0f", pooled=not found["not_recorded"]),
                )
            )
    return rows


def minutes(seconds: list[float], machines: list[dict[str, Any]], threads: list[int] | None = None) -> str:
    """Of the shortest and the longest run on each machine; nothing for runs that took no time."""
    groups: dict[str, list[float]] = {}
    used = threads or [machine.get("torch_threads", 1) for machine in machines]
    for spent, machine, count in zip(seconds, machines, used, strict=True):
        cpu = machine["cpu"].split(",")[0].replace("(R)", "").replace(" Processor", "")
        groups.setdefault(f"{cpu}, {count} thread{'s' * (count > 1)}", []).append(spent)
    parts = []
    for name, spent in groups.items():
        least, most = (round(extreme(spent) / 60) for extreme in (min, max))
        if most:
            parts.append(f"{least} min ({name})" if least == most else f"{least} to {most} min ({name})")
    return ", ".join(parts)


def jepa_mpc_ablations(r: dict[str, Any]) -> list[Row]:
    labels = {
        "full": "in full",
        "warm_start": "warm start from a world model of random play",
        "frozen": "that one, frozen",
        "no_prior": "no policy prior",
        "long_search": "20 steps searched, without value and proposals",
        "no_prediction": "no prediction",
        "reconstruction": "reconstruction instead",
    }
    found = {label: r["results"][name] for name, label in labels.items() if name in r["results"]}
    seeds = max(len(variant["runs"]) for variant in found.values())
    what = (
        f"JEPAMPC, {r['task']}, {r['frames']:,} frames, {seeds} seed{'s' * (seeds > 1)}: {' / '.join(found)}"
    )
    return [
        (
            what,
            " / ".join(
                score(variant, ".0f", pooled=not variant["not_recorded"]) for variant in found.values()
            ),
        )
    ]


def branching(r: dict[str, Any]) -> list[Row]:
    energy, kept = r["energy_score_ratio_to_true_sampler"], r["return_ratio_to_true_dynamics"]
    kinds = {"flow": "flow", "mixture": "mixture", "ensemble": "ensemble", "point": "point"}
    seeds = {name: len(found) for name, found in r["seeds"].items()}

    def pairs(returns: dict[str, Any], form: str) -> Iterator[str]:
        """Of every kind by the mean and by CVaR, where it draws futures."""
        for name in kinds:
            cells = [score(returns[k], form) for k in (name, f"{name}_cvar") if k in returns]
            yield f"{name} {' / '.join(cells)}"

    rows = [
        (
            "TableEdge, fall probability, error of 10 bins: flow, 4 evaluations, "
            f"{seeds['table_edge']} seed{'s' * (seeds['table_edge'] != 1)}",
            f"{r['frequency_mae']['flow_4']:.3f}",
        ),
        (
            "... energy score / the true sampler's, on an encoder made for the flow: flow, mixture, ensemble, point",
            ", ".join(f"{energy[k]:.2f}" for k in ("flow_4", "mixture", "ensemble", "point")),
        ),
        (
            "... return / the same search's with the true dynamics, same encoder: plans by the mean / by CVaR",
            "; ".join(pairs(kept, ".2f")),
        ),
    ]
    if "return_mujoco" in r:
        contact = points_only(r["return_mujoco"], seeds["mujoco"])
        floor, many = (
            score(contact["random"], ".1f"),
            f"{seeds['mujoco']} seed{'s' * (seeds['mujoco'] > 1)}",
        )
        rows.append(
            (
                f"... return with real contact (MuJoCo), {many}: plans by the mean / by CVaR",
                "; ".join(
                    [*pairs(points_only(r["return_mujoco"], seeds["mujoco"]), ".1f"), f"random {floor}"]
                ),
            )
        )
    if "flow_followed" in kept:
        names = ("flow", "flow_followed", "flow_followed_keep")
        rows.append(
            (
                "... plans of the flow made anew after each step / followed for 6 / and futures discarded (`keep`)",
                " / ".join(score(kept[name], ".2f") for name in names),
            )
        )
    return [
        *rows,
        (
            "... planning time with 8 futures / the point predictor's",
            f"{r['planning_time_ratio_8_futures']:.1f}x",
        ),
        (
            "Fork, distance to the nearer of the two true outcomes, point / flow",
            f"{r['impossible_average_ratio']:.1f}x",
        ),
    ]


def points_only(returns: dict[str, Any], seeds: int) -> dict[str, Any]:
    """One seed has no interval."""
    return {k: v | {"bootstrap_of_these_seeds": None} for k, v in returns.items()} if seeds == 1 else returns


TASK_NAMES = {"two_rooms": "Two Rooms"}
COST_NAMES = {"sum": "cost summed over the plan", "last": "cost of the last state alone"}


def flow_proposals(r: dict[str, Any]) -> list[Row]:
    labels = {
        "flow_proposals": "proposals of a flow",
        "flow_proposals_refined": "refined once",
        "cem": "CEM",
        "tree": "tree",
    }
    rows = []
    for task, found in r["tasks"].items():
        planners = found["planners"]
        for cost, name in COST_NAMES.items():
            there = {label: planners[k][cost] for k, label in labels.items() if cost in planners.get(k, {})}
            if not there:
                continue
            success = " / ".join(score(row["success"], ".2f") for row in there.values())
            spent = " / ".join(", ".join(f"{ms:.0f}" for ms in row["plan_ms"]) for row in there.values())
            seeds = seeds_of(found, CHOSEN_ON)
            rows.append(
                (
                    f"{TASK_NAMES.get(task, task)}, {name}, {seeds}, {' / '.join(there)}: success, ms of a decision",
                    f"{success}, {spent} ms",
                )
            )
    return rows


def latents_that_pay(r: dict[str, Any]) -> list[Row]:
    rows: list[Row] = [*probed(r)] if "objectives" in r else []
    if "frozen_curves" in r:
        last = {name: [curve[-1] for curve in own.values()] for name, own in r["frozen_curves"].items()}
        rows.append(
            (
                f"cartpole-swingup, SAC on the frozen latents of `{r['frozen_objective']}` on that broad data, 100,000 "
                "frames more, three training seeds: `DroQPolicy` / Stable-Baselines3's own policy, the same settings",
                " / ".join(
                    ", ".join(f"{value:.0f}" for value in last[name]) for name in ("DroQPolicy", "MlpPolicy")
                ),
            )
        )
    if returns := r.get("cartpole", {}).get("ppo_frozen"):
        rows.append(
            (
                "CartPole-v1, PPO on frozen latents, trained as in the README, 50,000 steps, three training seeds",
                ", ".join(f"{value:.0f}" for value in returns),
            )
        )
    if "fps_ratio" in r:
        rates = r["frames_per_second"]
        rows.append(
            (
                "cartpole-swingup, joint SAC (`n_steps=1`, no shifts) / Stable-Baselines3's SAC with its CnnPolicy: "
                "frames a second while learning",
                f"{rates['joint']:.0f} / {rates['cnn']:.1f} ({r['fps_ratio']:.1f}x)",
            )
        )
    if (dream := r.get("dream", {})).get("steps_per_second"):
        rows.append(("steps a second in 256 dreams of the swing-up", f"{dream['steps_per_second']:,.0f}"))
    for name, own in dream.get("tasks", {}).items():
        means = own["mean_returns"]
        figures = [means[k] for k in ("dreamer", "the same agent, trained in the world", "planner", "random")]
        form = ".0f" if means["planner"] > 10 else ".2f"
        rows.append(
            (
                f"{name}, SAC trained only in the dream, training seed {dream['seed']}, return in the world / the same "
                "agent, trained in the world on these latents and as much experience / JEPAMPC, whose world model it "
                "is / random play",
                " / ".join(f"{figure:{form}}" for figure in figures),
            )
        )
    return rows


def probed(r: dict[str, Any]) -> list[Row]:
    settings, found = r["settings"], r["objectives"]
    known = {"laptop": "the preset's", "supervised": "supervision"}
    last = sorted(found, key=lambda name: name == "supervised")
    names = {name: known.get(name, f"`{name}`") for name in last}
    rows = []
    for key, where in (("r2", "held-out episodes"), ("late_r2", "the last ten of them")):
        values = " / ".join(", ".join(f"{value:.2f}" for value in found[name][key]) for name in names)
        rows.append(
            (
                f"cartpole-swingup, R2 of a probe of {', '.join(r['columns'])} after {settings['updates']:,} updates "
                f"on broad data, training seed {settings['seed']}, {where}: {' / '.join(names.values())}",
                values,
            )
        )
    return rows


def few_steps(r: dict[str, Any]) -> list[Row]:
    if "per_seed" not in r:
        return []
    at, lags = r["evaluations"].index(4), ("lag_1", "lag_0.5", "lag_0")
    weights = [name for name in r["mean"]["guidance"] if name.startswith("guidance_")]

    def cell(*keys: Any, form: str = ".3f") -> str:
        """Mean and points of a figure that lies under these keys in every seed."""
        points = []
        for found in r["per_seed"]:
            for key in keys:
                found = found[key]
            points.append([found])
        return shown(summarise(points), form)

    return [
        (
            f"Flow, paths of 4 states drawn one by one / as a pyramid (`lag=0.5`) / at once, {seeds_of(r)}: energy "
            "score / the true sampler's",
            " / ".join(cell("paths", lag, "energy_score_ratio") for lag in lags),
        ),
        (
            f"Flow, guidance by the action of {' / '.join(name.partition('_')[2] for name in weights)}: energy "
            "score / the true sampler's",
            " / ".join(cell("guidance", name, "energy_score_ratio", at) for name in weights),
        ),
    ]


def data_speed(r: dict[str, Any]) -> list[Row]:
    return [
        (
            "episode store, stacked frames sampled per second, 3 frames",
            f"{r['sample_frames_per_second_stack_3']:,.0f}",
        ),
        ("collecting Two Rooms, environment steps per second", f"{r['collect_steps_per_second']:,.0f}"),
    ]


def scale(r: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    if "gradient_difference" in r:
        rows.append(
            (
                "two processes against one, all objectives, float64: largest relative difference of a gradient / of a "
                "curve of 50 updates",
                f"{r['gradient_difference']:.0e} / {r['loss_curve_difference']:.0e}",
            )
        )
    if "throughput_ratio_2" in r:
        rows.append(
            (
                "windows a second, two processes of one thread / one (two that exchange nothing / one)",
                f"{r['throughput_ratio_2']:.2f}x ({r['throughput_ratio_2_without_exchange']:.2f}x)",
            )
        )
    if "ray_same_results" in r:
        rows.append(
            (
                f"sweep of {r['ray_trials']} trials on Ray, one worker killed: weights and losses as without Ray",
                "equal" if r["ray_same_results"] else "not equal",
            )
        )
    if "open_seconds_100gb" in r:
        rows.append(
            (
                "store of 100 GB: opening / windows a second against a store of 1 GB, pages of neither in memory "
                "(of both)",
                f"{r['open_seconds_100gb']:.2f} s / {r['sample_ratio_100gb']:.2f}x "
                f"({r['sample_ratio_cached_100gb']:.2f}x)",
            )
        )
    return rows


def trust(r: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    if "kills" in r:
        rows.append(
            (
                f"{len(r['parts']['kills'])} kinds of runs, at least {r['kills_of_each']} kills of each: "
                "acknowledged work lost / runs that end otherwise than without kills",
                f"{r['lost']} / {r['differs']}",
            )
        )
    counts = {
        "files_tried": ("damaged files", "files_escaped", "not refused in words"),
        "inputs_tried": ("odd environments and inputs", "silent_wrong", "silently wrong"),
        "worker_faults": (
            "workers that die, hang or lie",
            "workers_escaped",
            "neither refused in words nor recovered",
        ),
        "disk_faults": ("full, slow or read-only disks", "disk_escaped", "half-written files read as whole"),
    }
    for tried, (what, escaped, how) in counts.items():
        if tried in r:
            rows.append((f"{r[tried]:,} {what}: {how}", f"{r[escaped]}"))
    if "soak_steps" in r:
        rows.append(
            (
                f"{r['soak_steps']:,} environment steps through wrapper, planner and store: growth of memory",
                f"{r['soak_growth_mib']:.1f} MiB",
            )
        )
    return rows


ROWS = {
    "two_rooms": two_rooms,
    "goal_planning": goal_planning,
    "planning_speed": planning_speed,
    "processor_speed": processor_speed,
    "wrapper_speed": wrapper_speed,
    "dmc_pixels": dmc_pixels,
    "jepa_mpc_ablations": jepa_mpc_ablations,
    "branching": branching,
    "few_steps": few_steps,
    "latents_that_pay": latents_that_pay,
    "flow_proposals": flow_proposals,
    "rendering": rendering,
    "data_speed": data_speed,
    "scale": scale,
    "trust": trust,
}


def machines_of(result: dict[str, Any]) -> list[str]:
    """That the figures of a file were measured on; of a collected one those of its records."""
    found = [machine for several in facts(result, "machines") for machine in several]
    found = found or [result["machine"]]
    return [
        ("" if "cores" not in machine else f"{machine['cores']} core{'s' * (machine['cores'] > 1)} of ")
        + f"{machine['cpu']}, {machine.get('gpu') or 'no GPU'}"
        for machine in found
    ]


def everything() -> str:
    """One table of all that is recorded, and the machines that its rows come from."""
    lines = ["| what | figure | from |", "|---|---|---|"]
    machines, dagger = [], False
    for name, rows in ROWS.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        mark = " †" if untold(result) else ""
        found = rows(result)
        lines += [f"| {what} | {figure} | `{path.name}`{mark} |" for what, figure in found]
        machines += machines_of(result) if found else []
        dagger = dagger or bool(mark and found)
    if not machines:
        return "No benchmark results are stored yet.\n"
    notes = [f"Measured on {'; '.join(dict.fromkeys(machines))}.", *([f"\n{DAGGER}"] if dagger else [])]
    return "\n".join([*lines, "", *notes, ""])


BLOCKS = MATRICES | {"all": everything}


def rewritten(text: str, page: str) -> str:
    """The page with every block as the files have it."""
    names = [name for _, name, _ in BLOCK.findall(text)]
    if not names or set(names) - BLOCKS.keys():
        sys.exit(f"{page} needs markers <!-- figures: NAME --> with names of {sorted(BLOCKS)}, got {names}")
    return BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n{found[3]}", text)


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        new = rewritten(text, page.name)
        if "--check" not in sys.argv[1:]:
            page.write_text(new)
        elif new != text:
            sys.exit(f"{page.name} is out of date: run python benchmarks/readme_table.py")


if __name__ == "__main__":
    main()
