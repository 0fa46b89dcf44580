"""How far plans look ahead: the measures of benchmarks/search_depth.py."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jepa_rl.envs.worlds import table_edge_rules as rules

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The folder, whose files import each other by their bare names."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


class Place:
    """A space of positions, as they are or bent; a picture is read by where its object is drawn."""

    def __init__(self, bend) -> None:
        self.bend = bend

    def read(self, seen):
        return torch.from_numpy(self.bend(seen.state[..., :2]))


def straight_way(length):
    from _h2h_tasks import Seen
    from search_depth import Way

    goal = np.array([0.8, 0.5], np.float32)
    at = goal - np.array([0.1, 0.0], np.float32) * np.arange(length)[::-1, None]
    lies = np.zeros((length, 1), np.float32)

    def seen(position, fallen):
        pixels = rules.draw(position, fallen[:, 0] > 0, np.repeat(goal[None], len(position), 0))
        return Seen(pixels[:, None], np.concatenate([position, fallen], 1)[:, None])

    return Way(seen(at, lies), seen(goal[None], lies[:1]))


@pytest.mark.parametrize(
    ("bend", "order"),
    [
        (lambda place: place, 1.0),
        (
            lambda place: place * 0 + (place == place.max()),
            0.6**0.5,
        ),  # knows the goal alone: ranks 2, 2, 2, 0
        (lambda place: place * 0, 0.0),
        (lambda place: 1 / (0.85 - place[..., :1]), 1.0),  # stretched, but in order
        (lambda place: np.where(place < 0.75, place * -1, place), 0.2),  # rises, but for the goal
    ],
    ids=["straight", "goal alone", "blind", "stretched", "backwards"],
)
def test_the_order_of_prices_along_a_way(bend, order):
    import search_depth

    pipeline = SimpleNamespace(latents=None, space=Place(bend))
    found = search_depth.order_of(pipeline, [straight_way(4)])
    assert found["ways"] == 1
    assert found["order"] == pytest.approx(order, abs=1e-6)


@pytest.mark.filterwarnings("ignore:windows of")
def test_a_quick_run_is_reported_and_other_code_is_not_counted_with_it(tmp_path, monkeypatch, capsys):
    import _record
    import _search_depth_report
    import search_depth

    _record.commit(), _record.code()  # are kept for the tests behind this one, which have another root
    monkeypatch.setattr(_record, "ROOT", tmp_path)
    search_depth.main(search_depth.Args(quick=True, tasks=("table_edge",), out=tmp_path / "runs"))
    assert "table_edge.state.point.3: success by horizon 1:" in capsys.readouterr().out
    records = tmp_path / "runs/quick_depth/depth"
    _search_depth_report.write_report(records, quick=True)
    written = json.loads((tmp_path / "runs/benchmarks/search_depth.quick.json").read_text())
    rows = {row["arm"]: row for row in written["rows"]}
    assert set(rows) == {"jepa_sigreg", "state"} and list(rows["state"]["success"]) == ["1", "2", "3", "6"]
    assert (tmp_path / "runs/benchmarks/head_to_head_depth.png").exists()
    file = next(records.glob("*/state/seed_3.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"code": "other"}))
    with pytest.raises(ValueError, match="different code"):
        _search_depth_report.write_report(records, quick=True)


def test_order_and_success_are_correlated_without_the_bounds():
    from _search_depth_report import correlations

    def row(arm, order, success):
        return {"task": "reacher", "arm": arm, "order": order, "success": {"1": success}}

    rows = [row("vae", [0.1, 0.2], [0.3, 0.4]), row("dino", [0.5], [0.9]), row("pixels", [0.0], [0.1])]
    rows.append(row("state", [0.0], [1.0]))
    assert correlations(rows) == {"reacher": {"1": pytest.approx(1.0)}}


def test_unknown_names_are_told_with_the_known_ones():
    import search_depth

    with pytest.raises(ValueError, match=r"--tasks: there is no push; choose of two_rooms"):
        search_depth.main(search_depth.Args(tasks=("push",)))
    with pytest.raises(ValueError, match=r"--arms: there is no clip; choose of jepa_sigreg"):
        search_depth.main(search_depth.Args(arms=("clip",)))
