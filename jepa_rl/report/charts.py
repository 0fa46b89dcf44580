"""Charts as pictures that stand inside a page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from jepa_rl.report.contents import Chart
from jepa_rl.report.series import Evaluations, Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 400  # of a line; longer ones are averaged
KINDS = {
    b"\x89PNG": "image/png", b"GIF8": "image/gif", b"\xff\xd8\xff": "image/jpeg",
    b"<svg": "image/svg+xml", b"<?xm": "image/svg+xml",
}  # fmt: skip
STYLE: Any = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "font.size": 8,
    "axes.titlesize": 9, "svg.hashsalt": "jepa-rl", "legend.frameon": False,
}  # fmt: skip


def data_uri(data: bytes) -> str:
    """A picture or film as the address of an ``img`` or ``video``.

    Raises:
        ValueError: it is of another kind than PNG, GIF, JPEG, SVG or MP4.
    """
    kind = next((kind for start, kind in KINDS.items() if data.startswith(start)), None)
    if kind is None and data[4:8] == b"ftyp":
        kind = "video/mp4"
    if kind is None:
        raise ValueError(f"expected a PNG, GIF, JPEG, SVG or MP4, got a file that begins with {data[:8]!r}")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def line_chart(chart: Chart) -> bytes:
    """The chart as an SVG."""
    figure, axis = _figure()
    many = len(chart.lines) > 1
    for label, series in chart.lines.items():
        steps, values = thin(series)
        axis.plot(
            steps,
            values,
            label=label or None,
            linewidth=1.2,
            marker="o" if len(steps) < 25 else None,
            markersize=2.5,
        )
    axis.set(title=chart.title, xlabel="step")
    if many and len(chart.lines) <= 10:
        axis.legend(fontsize=6.5)
    return _svg(figure)


def returns_chart(name: str, found: Evaluations) -> bytes:
    """Mean and range of the evaluation episodes."""
    figure, axis = _figure()
    axis.fill_between(
        found.steps, [min(r) for r in found.returns], [max(r) for r in found.returns], alpha=0.2
    )
    axis.plot(found.steps, found.means.values, marker="o", markersize=3, linewidth=1.2)
    axis.set(title=name, xlabel="step", ylabel="return")
    return _svg(figure)


def bar_chart(title: str, bars: dict[str, dict[str, float]], line: float | None = None) -> bytes:
    """Groups of bars: ``{"linear probe": {"x": 0.9, "y": 0.8}, ...}``, with a dashed line where one helps."""
    figure, axis = _figure()
    names = list(dict.fromkeys(name for group in bars.values() for name in group))
    width = 0.8 / max(1, len(bars))
    for number, (label, group) in enumerate(bars.items()):
        heights = [group.get(name, np.nan) for name in names]
        at = np.arange(len(names)) + (number - (len(bars) - 1) / 2) * width
        drawn = axis.bar(at, heights, width, label=label)
        axis.bar_label(drawn, [f"{h:.2f}" for h in heights], fontsize=6.5)
    if line is not None:
        axis.axhline(line, color="gray", linestyle="--", linewidth=0.8)
    axis.set(title=title, xticks=np.arange(len(names)), xticklabels=names)
    axis.margins(y=0.12)
    if len(bars) > 1:
        axis.legend(fontsize=6.5)
    return _svg(figure)


def thin(series: Series, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most ``points`` points, each the mean of its neighbours."""
    steps, values = np.array(series.steps, float), np.array(series.values, float)
    if len(steps) <= points:
        return steps, values
    groups = np.array_split(np.arange(len(steps)), points)
    return np.array([steps[g].mean() for g in groups]), np.array([values[g].mean() for g in groups])


def _figure() -> tuple[Figure, Any]:
    import matplotlib
    from matplotlib.figure import Figure  # slow to import; needs no display

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.6), layout="constrained")
        return figure, figure.subplots()


def _svg(figure: Figure) -> bytes:
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
