"""What a report shows, for the page and the text alike: charts in groups, and settings and results as rows."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from jepa_rl.report.run import Run
from jepa_rl.report.series import Series

# (title, patterns of tags); a tag belongs to the first group that knows it.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Returns", (r"eval/", r"rollout/", r"monitor", r"mean return")),
    ("Latent space", (r"jepa/effective_rank", r"jepa/std", r"jepa/smoothness")),
    ("Prediction errors", (r"model/", r"jepa/(latent|reward)_error")),
    ("Planning", (r"plan/",)),
    ("Speed", (r"time/", r".*/frames_per_second", r".*fps")),
    ("Losses", (r"jepa/", r"train/")),
)
UNCHECKED = "Nothing looked for a collapse (fit does, if it is given evaluate=world_model_evaluation(...))"
CLEARED = "nothing was found any more in the last evaluation"
OTHER = "Other metrics"
RETURN = "mean return of the evaluation episodes"
HINTS = {
    "jepa/effective_rank": "dimensions in use; near 1 is a collapse",
    "model/rollout_error": "1 is predicting no change",
    "jepa/latent_error": "1 is predicting no change",
    "model/action_gap": "0 ignores the actions",
}
# Of the last values, the ones that the text names.
HEADLINES = (
    r"eval/mean_reward", r"rollout/ep_rew_mean", r"mean return", r"jepa/loss", r"jepa/effective_rank", r"jepa/std_min",
    r"model/rollout_error_\d+", r"jepa/latent_error_\d+", r"model/action_gap", r"plan/error",
)  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """Lines over steps.

    Attributes:
        title: name of the metric.
        hint: how to read it; may be empty.
        lines: series by label.
    """

    title: str
    hint: str
    lines: dict[str, Series]


def charts(run: Run) -> dict[str, list[Chart]]:
    """All charts by the title of their group. Metrics that differ by a number at their end share one."""
    tags: dict[str, dict[str, Series]] = {}
    evaluated = any(part.evaluations is not None for part in run.parts)
    several = len({part.name for part in run.parts if not part.empty}) > 1
    for part in run.parts:
        found = dict(part.events.series)
        if evaluated:  # these say the same
            found = {tag: s for tag, s in found.items() if not tag.startswith("eval/mean_reward")}
        if part.evaluations is not None:
            found[RETURN] = part.evaluations.means
        found |= {f"monitor: return of each episode ({name})": s for name, s in part.monitors.items()}
        for tag, series in found.items():
            family, number = re.fullmatch(r"(.*?)(?:_(\d+))?", tag).groups()  # type: ignore[union-attr]
            label = [
                part.name if several and part.name != "." else "",
                f"{number} ahead" if number and "error" in family else number or "",
            ]
            tags.setdefault(family, {})[", ".join(filter(None, label))] = series
    grouped: dict[str, list[Chart]] = {title: [] for title in [*(title for title, _ in GROUPS), OTHER]}
    for tag, lines in sorted(tags.items()):
        grouped[_group(tag)].append(Chart(tag, HINTS.get(tag, ""), lines))
    return {title: found for title, found in grouped.items() if found}


def _group(tag: str) -> str:
    return next((title for title, known in GROUPS if any(re.match(k, tag) for k in known)), OTHER)


def headlines(run: Run) -> list[tuple[str, str]]:
    """(metric, last value) of what matters most."""
    found = []
    for group in charts(run).values():
        for chart in group:
            for label, series in chart.lines.items():
                tag = (
                    f"{chart.title}_{label.rsplit(', ', 1)[-1].split()[0]}"
                    if label.endswith("ahead")
                    else chart.title
                )
                if any(re.match(known, tag) for known in HEADLINES):
                    name = f"{chart.title} ({label})" if label else chart.title
                    found.append((name, f"{number(series.last)} at step {number(series.steps[-1])}"))
    return found


def rows(value: Any, name: str = "") -> list[tuple[str, str]]:
    """(name, text) of every entry of a JSON value; nested names are joined by dots."""
    if isinstance(value, dict):
        return [
            row for key, part in value.items() for row in rows(part, f"{name}.{key}" if name else str(key))
        ]
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return [(f"{name} ({len(value)} entries), the last", plain(value[-1]))]
    if isinstance(value, list) and any(isinstance(part, dict | list) for part in value) and len(value) <= 12:
        return [row for index, part in enumerate(value) for row in rows(part, f"{name}[{index}]")]
    return [(name, plain(value))]


def results(run: Run) -> dict[str, list[tuple[str, str]]]:
    """Rows of each ``results.json`` by a title, without repetitions of the run's settings."""
    known = set(rows(run.settings or {}))
    return {
        "Results" if where == "." else f"Results of {where}": [row for row in rows(found) if row not in known]
        for where, found in run.results.items()
    }


def alarms(run: Run) -> list[tuple[str, str]]:
    """(where and when, text) of each alarm, and of the last check where it found nothing any more."""
    found = [
        (", ".join([*_part(where), "at the end" if step is None else f"step {number(step)}"]), text)
        for where, step, text in run.alarms
    ]
    return found + [
        (", ".join([*_part(where), f"step {number(step)}"]), CLEARED) for where, step in run.cleared
    ]


def _part(name: str) -> list[str]:
    return [] if name == "." else [name]


def plain(value: Any) -> str:
    """One JSON value as a text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list):
        shown = [plain(part) for part in value[:12]]
        return ", ".join(shown) + (f", ... ({len(value)} in all)" if len(value) > 12 else "")
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(part)}" for key, part in value.items())
    return str(value)


def number(value: float) -> str:
    """Four digits that count, thousands apart."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def kind(run: Run) -> str:
    """What made the folder, as far as its files tell."""
    names = {part.name for part in run.parts}
    settings = [part.settings for part in run.parts]
    kinds = []
    if any("model" in found for found in settings):
        phases = [part.name for part in run.parts if "model" in part.settings]
        kinds.append("training of a world model" + (f" ({', '.join(phases)})" if phases != ["."] else ""))
    if any("agent" in found for found in settings):
        kinds.append("JEPAMPC, learning from reward")
    if not kinds and any(part.evaluations or part.monitors for part in run.parts):
        kinds.append("training of an agent")
    if not kinds and any(part.events.series for part in run.parts):
        kinds.append("metrics")
    beside = sorted(name for name in names if name != "." and "/" not in name)
    return "; ".join(kinds) or (f"results of {', '.join(beside)}" if beside else "results")
