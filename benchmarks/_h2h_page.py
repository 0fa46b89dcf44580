"""The tables of the head-to-head's write-up, as Markdown: docs/head_to_head_tables.md is made of them alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from _h2h_answers import AGAINST, FAMILIES, MEASURES, REACHED, Cells, mean_of
from _h2h_table import ARMS

Results = Mapping[str, Any]


def page(results: Results, cells: Cells) -> str:
    """All tables.

    Args:
        results: what ``head_to_head.json`` holds.
        cells: records by (task, arm, dynamics).
    """
    said = results["answers"]
    columns = ("dinov2, flow", "best", "success", "share")
    tables = {
        "Success": success_tables(results["cells"]),
        "Decisive differences": differences_table(results["differences"]),
        "Own strength": strength_table(results["strength"]),
        "Arms that work": table(("arm", "works"), list(results["works"].items())),
        "Smoothness along actions, and errors of rollouts": families_table(said),
        "A distribution over futures": distribution_table(said["distribution_at_forks"]),
        "The flow on frozen DINOv2": plain_table(said["flow_on_dinov2"], columns),
        "Other dynamics on the same spaces": against_table(said),
        "What pixels cost": costs_table(said["cost_of_pixels"]),
        "Unpredictable noise": noise_table(said["noise"]),
        "What foretells success": foretelling_table(said["foretells_success"]),
        "Surprise": surprise_table(results["surprise"]),
        "Measures": measures_table(cells),
    }
    begin = (
        "# Which space to plan in: all tables\n\nMade by `python benchmarks/head_to_head.py --report` from "
        "`benchmarks/results/head_to_head/`; what they mean is in [the write-up](head_to_head.md), what was fixed "
        "beforehand in the [protocol](head_to_head_protocol.md).\n"
    )
    return begin + "".join(
        f"\n## {title}\n\n{rows}\n" + (f"\n{CAPTIONS[title]}\n" if title in CAPTIONS else "")
        for title, rows in tables.items()
        if rows
    )


CAPTIONS = {
    "Success": "Of 200 paired episodes; mean over training seeds, and theirs one by one if there are several.",
    "Decisive differences": "An interval and p-values from five training seeds on.",
    "Own strength": "Share of the way from the random encoder to the supervised one; of decoders to an R2 of 1.",
    "Arms that work": "An arm that passes on fewer than two of tier A's tasks is broken; it does not count as beaten.",
    "Smoothness along actions, and errors of rollouts": "Point dynamics, median of a family's arms; curvature "
    "in degrees, errors in deviations of the state beyond the probe's own.",
    "A distribution over futures": "Success with the flow minus that with the point predictor; the mean is that of "
    f"the arms that reach {REACHED} with either.",
    "Other dynamics on the same spaces": "Errors at the end of the horizon; milliseconds of a decision.",
    "What pixels cost": "Pixels over `jepa_sigreg`, point dynamics: multiply-adds of a step, processor seconds of "
    "training and of a decision.",
    "What foretells success": "Rank correlation over arms, signed so that 1 is a perfect forecast; exploratory.",
    "Surprise": "AUC against ordinary steps.",
    "Measures": "Mean over seeds.",
}


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Nothing if there are no rows."""
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return "\n".join(lines + [f"| {' | '.join(map(shown, row))} |" for row in rows]) if rows else ""


def shown(value: Any) -> str:
    """Two digits behind the point; nothing for what is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def success_tables(cells: Sequence[Mapping[str, Any]]) -> str:
    """A table a task and distractor: a row an arm, a column its dynamics."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        found.setdefault(" ".join(filter(None, (cell["task"], cell["distractor"]))), []).append(cell)
    return "\n\n".join(f"### {task}\n\n{success_table(own)}" for task, own in found.items())


def success_table(cells: Sequence[Mapping[str, Any]]) -> str:
    known = {(c["arm"], c["dynamics"]): c for c in cells}
    common = [name for name in ("point", "flow") if any(c["dynamics"] == name for c in cells)]
    columns = common + sorted({c["dynamics"] for c in cells}.difference(common))
    rows = [
        [arm, *(in_words(known.get((arm, column))) for column in columns)]
        for arm in ARMS
        if any(c["arm"] == arm for c in cells)
    ]
    return table(["arm", *columns], rows)


def in_words(cell: Mapping[str, Any] | None) -> str:
    """Mean and seeds of a cell, and the mean with the arm's own search."""
    if cell is None:
        return ""
    text, own = f"{np.mean(cell['success']):.2f}", cell.get("success_own_search")
    if len(cell["success"]) > 1:
        text += f" ({', '.join(f'{x:.2f}' for x in cell['success'])})"
    return f"{text}; own search {np.mean(own):.2f}" if own else text


def differences_table(differences: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for found in differences:
        numbers = [found.get(k) for k in ("mean", "halfwidth", "p_holm")]
        own = "; ".join(
            f"{task} {', '.join(f'{x:+.2f}' for x in points)}" for task, points in found["per_seed"].items()
        )
        rows.append([found["name"], *("" if x is None else f"{x:.3f}" for x in numbers), own])
    return table(["difference", "mean", "half width", "p, Holm", "by task, seed by seed"], rows)


def strength_table(strengths: Sequence[Mapping[str, Any]]) -> str:
    columns = ("task", "distractor", "arm", "figure", "value", "random", "supervised", "share", "passed")
    return table(columns, [[row[c] for c in columns] for row in strengths])


def families_table(said: Results) -> str:
    """Smoothness and growing errors of families, task by task."""
    names = ("jumpiness", "curvature", "state_curvature", "first", "last", "growth")
    rows = []
    for task, smooth in said["smoother_along_actions"].items():
        grown = said["errors_compound"][task]["families"]
        for family in [f for f in FAMILIES if f in grown]:
            figures = smooth["families"][family] | grown[family]
            rows.append([task, family, *(figures[name] for name in names)])
    columns = ("jumpiness", "curvature", "the state's", "error, first step", "last step", "growth")
    return table(("task", "family", *columns), rows)


def distribution_table(found: Results) -> str:
    arms = [arm for arm in ARMS if any(arm in own["arms"] for own in found.values())]
    rows = [[task, own["mean"], *(own["arms"].get(arm) for arm in arms)] for task, own in found.items()]
    return table(("task", "mean", *arms), rows)


def plain_table(found: Results, columns: Sequence[str]) -> str:
    return table(("task", *columns), [[task, *(own[c] for c in columns)] for task, own in found.items()])


def against_table(said: Results) -> str:
    """Every kind of dynamics that was run beside another on the same seeds."""
    rows = [
        [row["task"], row["arm"], first, second, len(row["seeds"])]
        + [row[side]["success"] for side in (first, second)]
        + [1000 * row[side]["decision_seconds"] for side in (first, second)]
        + [row[side]["rollout_error"][-1] for side in (first, second)]
        for question, (first, second) in AGAINST.items()
        for row in said[question]
    ]
    pairs = [f"{name} of {side}" for name in ("success", "decision", "error") for side in ("first", "second")]
    return table(("task", "arm", "first", "second", "seeds", *pairs), rows)


def costs_table(found: Results) -> str:
    rows = [
        [task, own["pixels"]["success"], own["jepa_sigreg"]["success"]]
        + [own[f"{name}_ratio"] for name in ("step", "training", "decision")]
        for task, own in found.items()
    ]
    return table(("task", "success, pixels", "success, latent", "step", "training", "decision"), rows)


def noise_table(noise: Results) -> str:
    columns = ("task", "arm", "family", "dynamics", "seeds", "plain", "distracted", "lost")
    rows = [
        [kind, *(len(row[c]) if c == "seeds" else row[c] for c in columns)]
        for kind, found in noise.items()
        for row in found
    ]
    return table(("distractor", *columns), rows)


def foretelling_table(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    names = list(found[0]["correlation"])
    rows = []
    for row in found:
        held = row["left_out"]
        best = held and f"{held['measure']}: {held['value']:.2f}"
        rows.append([row["task"], *(row["correlation"][name] for name in names), best])
    return table(("task", *names, "best of the other tasks"), rows)


def surprise_table(found: Sequence[Mapping[str, Any]]) -> str:
    facts = ("task", "distractor", "arm", "dynamics")
    kinds = list(dict.fromkeys(name for row in found for name in row if name not in facts))
    return table((*facts, *kinds), [[row.get(name) for name in (*facts, *kinds)] for row in found])


def measures_table(cells: Cells) -> str:
    """A row a cell."""
    rows = [
        [*key, *(mean_of([run["measures"] for run in runs], read) for read in MEASURES.values())]
        for key, runs in sorted(cells.items())
    ]
    return table(("task", "arm", "dynamics", *MEASURES), rows)
