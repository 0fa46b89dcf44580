"""The summary of a run as one HTML page that needs nothing but itself."""

from __future__ import annotations

import time
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from jepa_rl.report.charts import bar_chart, data_uri, line_chart, returns_chart
from jepa_rl.report.contents import CLEARED, RETURN, UNCHECKED, alarms, charts, headlines, kind, results, rows
from jepa_rl.report.run import Run
from jepa_rl.version import __version__

LARGEST = 12_000_000  # bytes of a film or picture that is put into the page
MOST = 12  # pictures and films, each

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2430; background: #f6f7f9; margin: 0; }
main { max-width: 1180px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.5em; margin: .3em 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15em; margin: 1.8em 0 .6em; }
.status, .alarm, .fault { padding: 10px 14px; border-radius: 8px; margin: 8px 0; overflow-wrap: anywhere; }
.status { background: #e4f1e6; } .open, .fault { background: #fff3d4; } .alarm { background: #fde3e1; }
.grid { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
figure { background: #fff; border: 1px solid #e2e5ea; border-radius: 8px; margin: 0; padding: 8px; min-width: 0; }
figure img, figure video { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figure.chart img { width: 100%; } .wide { grid-column: 1 / -1; }
figcaption { color: #5a6676; font-size: .85em; padding-top: 4px; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; background: #fff; border: 1px solid #e2e5ea; table-layout: fixed; }
td { padding: 4px 10px; border-top: 1px solid #eef0f3; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { width: 42%; color: #5a6676; }
summary { cursor: pointer; margin: 8px 0; } footer { color: #5a6676; font-size: .85em; margin: 2em 0; }
</style>
</head>
<body><main>
<h1>$title</h1>
<p>$kind</p>
<p class="status$state">$status</p>
$body
<footer>$footer</footer>
</main></body></html>
""")


def page(run: Run) -> str:
    """The whole page. Texts of files are escaped; pictures stand in it as data addresses."""
    sections = [
        _alarms(run), _faults(run), _results(run), _last(run), _films(run), _probes(run), _maps(run), _charts(run),
        _pictures(run), _settings(run),
    ]  # fmt: skip
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    return PAGE.substitute(
        title=escape(str(run.folder)),
        kind=escape(kind(run)),
        status=escape(run.status),
        state="" if run.finished else " open",
        body="\n".join(filter(None, sections)),
        footer=escape(f"Made by jepa-rl {__version__}, {made}"),
    )


def _section(title: str, *content: str, grid: bool = False) -> str:
    inside = "\n".join(filter(None, content))
    if not inside:
        return ""
    return f"<h2>{escape(title)}</h2>\n" + (f'<div class="grid">{inside}</div>' if grid else inside)


def _figure(data: bytes, caption: str = "", kind: str = "") -> str:
    """A picture or film with its caption, or a note of what is wrong with it."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    if len(data) > LARGEST:
        return (
            f'<p class="fault">{escape(f"{caption}: {len(data) / 1e6:.0f} MB, too large for this page")}</p>'
        )
    try:
        address = data_uri(data)
    except ValueError as error:
        return f'<p class="fault">{escape(f"{caption}: {error}")}</p>'
    if address.startswith("data:video"):
        shown = f'<video src="{address}" controls loop muted></video>'
    else:
        shown = f'<img src="{address}" alt="{escape(caption, quote=True)}">'
    return f'<figure class="{kind}">{shown}{below}</figure>'


def _file(run: Run, path: Path, kind: str = "") -> str:
    name = path.relative_to(run.folder).as_posix()
    try:
        return _figure(path.read_bytes(), name, kind)
    except OSError as error:
        return f'<p class="fault">{escape(f"{name}: {error}")}</p>'


def _table(found: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{_breakable(name)}</td><td>{escape(value)}</td></tr>" for name, value in found)
    return f"<table>{cells}</table>" if found else ""


def _breakable(name: str) -> str:
    """The escaped name, with places where a narrow screen may break it."""
    return escape(name).replace("/", "/<wbr>").replace("_", "_<wbr>").replace(".", ".<wbr>")


def _alarms(run: Run) -> str:
    shown = [
        f'<p class="{"status" if text == CLEARED else "alarm"}"><b>{escape(where)}</b>: {escape(text)}</p>'
        for where, text in alarms(run)
    ]
    return _section("Alarms", *(shown or [f"<p>{'None.' if run.evaluated else escape(UNCHECKED)}</p>"]))


def _faults(run: Run) -> str:
    return _section("Could not be read", *(f'<p class="fault">{escape(fault)}</p>' for fault in run.faults))


def _results(run: Run) -> str:
    return "\n".join(_section(title, _table(found)) for title, found in results(run).items())


def _last(run: Run) -> str:
    return _section("Last values", _table(headlines(run)))


def _films(run: Run) -> str:
    shown = [_file(run, path) for path in run.films[:MOST]]
    for part in run.parts:
        for tag, (step, data) in part.events.pictures.items():
            if data.startswith(b"GIF8") and not any(path.stem in tag for path in run.films):
                shown.append(_figure(data, f"{_prefix(part.name)}{tag}, step {step:,}"))
    return _section("Films", *shown, grid=True)


def _probes(run: Run) -> str:
    """Bars of the probes' R2 and of the error along the horizon, where ``results.json`` has them."""
    shown = []
    for where, found in run.results.items():
        if not isinstance(found, dict):
            continue
        probes = {name.removesuffix("_r2").replace("_", " "): _numbers(part)
                  for name, part in found.items() if name.endswith("probe_r2")}  # fmt: skip
        if probes := {name: part for name, part in probes.items() if part}:
            chart = bar_chart(f"{_prefix(where)}R2 of probes (1 is perfect)", probes, line=1.0)
            shown.append(_figure(chart, "What can be read off the latents of held-out episodes.", "chart"))
        errors = found.get("rollout_error")
        if isinstance(errors, list) and (bars := _numbers({str(k): e for k, e in enumerate(errors, 1)})):
            chart = bar_chart(f"{_prefix(where)}rollout error, latent steps ahead", {"error": bars}, line=1.0)
            shown.append(_figure(chart, "1 is the error of predicting no change.", "chart"))
    return _section("Probes and rollout errors", *shown, grid=True)


def _numbers(found: Any) -> dict[str, float]:
    found = found if isinstance(found, dict) else {"": found}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _maps(run: Run) -> str:
    files = [path for path in run.pictures if "latent_map" in path.name]
    shown = [_file(run, path, "wide") for path in files[:MOST]]
    for part in run.parts:
        for tag, (step, data) in part.events.pictures.items():
            if (tag == "jepa/latent_map" and not files) or tag == "jepa/std":
                shown.append(
                    _figure(data, f"{_prefix(part.name)}{tag}, step {step:,}", "wide" if "map" in tag else "")
                )
    return _section("Latent map", *shown, grid=True)


def _charts(run: Run) -> str:
    found = []
    played = {part.name: part.evaluations for part in run.parts if part.evaluations is not None}
    for title, group in charts(run).items():
        drawn = [(returns_chart(_prefix(name) + RETURN, part), "shaded: from the lowest to the highest")
                 for name, part in played.items() if title == "Returns"]  # fmt: skip
        drawn += [
            (line_chart(chart), chart.hint) for chart in group if chart.title != RETURN or len(played) > 1
        ]
        found.append(_section(title, *(_figure(*chart, "chart") for chart in drawn), grid=True))
    return "\n".join(found)


def _pictures(run: Run) -> str:
    files = [path for path in run.pictures if "latent_map" not in path.name]
    shown = [_file(run, path) for path in files[:MOST]]
    names = {path.stem for path in files}
    for part in run.parts:
        for tag, (step, data) in part.events.pictures.items():
            if not data.startswith(b"GIF8") and not tag.startswith("jepa/") and tag not in names:
                shown.append(_figure(data, f"{_prefix(part.name)}{tag}, step {step:,}"))
    return _section("Pictures", *shown, grid=True)


def _settings(run: Run) -> str:
    shown = [_table(rows(run.settings or {}))]
    for part in run.parts:
        for name, found in part.settings.items():
            table = _table(rows(found))
            shown.append(
                f"<details><summary>{escape(f'{_prefix(part.name)}{name}')}</summary>{table}</details>"
            )
    return _section("Settings", *shown)


def _prefix(part: str) -> str:
    return "" if part == "." else f"{part}: "
