"""Planners as JSON: what files of agents say of them."""

from __future__ import annotations

from jepa_rl.agents.planners.categorical import CategoricalCEM
from jepa_rl.agents.planners.cem import CEM
from jepa_rl.agents.planners.gradient import GradientPlanner
from jepa_rl.agents.planners.icem import ICEM
from jepa_rl.agents.planners.mppi import MPPI
from jepa_rl.agents.planners.tree import TreeSearch
from jepa_rl.risk import load_risk, risk_settings
from jepa_rl.types import JSON, Planner, as_tuples

# Planners whose settings are plain numbers, by the name that files have for them.
PLANNERS: dict[str, type[Planner]] = {
    planner.__name__: planner for planner in (CEM, ICEM, MPPI, GradientPlanner, CategoricalCEM, TreeSearch)
}


def planner_settings(planner: Planner) -> JSON | None:
    """Name and settings of one of ``PLANNERS``; None for others, and for a risk of the user's own."""
    name = type(planner).__name__
    if PLANNERS.get(name) is not type(planner):
        return None
    settings = {"name": name} | dict(vars(planner))
    if "risk" in settings:
        settings["risk"] = risk_settings(settings["risk"])
        if settings["risk"] is None:
            return None
    return settings


def planner_from(settings: JSON) -> Planner:
    """The planner that ``planner_settings`` described.

    Raises:
        ValueError: if it is none of ``PLANNERS``, or has no such settings: the file is of another version.
    """
    given = {name: as_tuples(value) for name, value in settings.items() if name not in ("name", "risk")}
    if settings["name"] not in PLANNERS:
        raise ValueError(
            f"there is no planner {settings['name']!r}, only {sorted(PLANNERS)}; pass it: load(path, planner=...)"
        )
    try:
        if "risk" in settings:
            given["risk"] = load_risk(settings["risk"])
        return PLANNERS[settings["name"]](**given)
    except (TypeError, KeyError) as error:
        raise ValueError(f"a {settings['name']} of this version has other settings: {error}") from error
