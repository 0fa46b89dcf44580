"""Risks against their closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa_rl.risk import (
    ChanceConstraint,
    CVaR,
    Entropic,
    expected_cost,
    load_risk,
    risk_settings,
    worst_case,
)


def test_cvar_of_a_normal_distribution():
    """Mean of the worst tenth of N(0, 1): pdf(quantile) / 0.1 = 1.755 (Rockafellar and Uryasev 2000)."""
    costs = torch.randn(4, 200_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(CVaR(0.1)(costs), torch.full((4,), 1.755), atol=0.02, rtol=0)
    torch.testing.assert_close(CVaR(0.5)(costs), torch.full((4,), math.sqrt(2 / math.pi)), atol=0.01, rtol=0)


def test_cvar_counts_the_last_future_in_part():
    costs = torch.tensor([[4.0, 1.0, 3.0, 2.0]])
    values = {0.1: 4.0, 0.25: 4.0, 0.5: 3.5, 0.625: (4 + 3 + 0.5 * 2) / 2.5, 1.0: 2.5}
    for alpha, value in values.items():
        torch.testing.assert_close(CVaR(alpha)(costs), torch.tensor([value]))


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), st.floats(0.01, 1.0))
def test_cvar_lies_between_mean_and_worst_case(costs, alpha):
    costs = torch.tensor([costs], dtype=torch.float64)
    value = CVaR(alpha)(costs)
    assert expected_cost(costs) - 1e-6 <= value <= worst_case(costs) + 1e-6
    torch.testing.assert_close(CVaR(1.0)(costs), expected_cost(costs))


def test_entropic_risk_of_a_normal_distribution_is_mean_plus_half_the_aversion_times_variance():
    costs = (
        3 + 2 * torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[None]
    )
    for aversion in (-0.5, 0.01, 0.5):
        torch.testing.assert_close(
            Entropic(aversion)(costs),
            torch.tensor([3 + aversion * 4 / 2], dtype=torch.float64),
            atol=0.03,
            rtol=0,
        )
    assert torch.isfinite(Entropic(5.0)(torch.tensor([[1e4, -1e4]])))


def test_a_chance_constraint_forbids_and_then_ranks_by_how_often_it_is_broken():
    costs = torch.tensor([[1.0, 1.0, 1.0, 900.0], [8.0, 8.0, 8.0, 8.0], [0.0, 0.0, 900.0, 900.0]])
    priced = ChanceConstraint(limit=500, probability=0.1)(costs)
    assert priced.argsort().tolist() == [1, 0, 2]
    assert priced[1] == 8.0
    allowed = ChanceConstraint(limit=500, probability=0.25, risk=worst_case)(costs)
    assert allowed[0] == 900.0 and allowed[2] > 1e6


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (CVaR, {"alpha": 0.0}),
        (CVaR, {"alpha": 1.1}),
        (CVaR, {"alpha": float("nan")}),
        (Entropic, {"aversion": 0.0}),
        (Entropic, {"aversion": float("inf")}),
        (ChanceConstraint, {"limit": 1.0, "probability": 1.0}),
    ],
)
def test_risks_that_make_no_sense_are_refused(kind, options):
    with pytest.raises(ValueError, match=r"must (lie|be)"):
        kind(**options)


@pytest.mark.parametrize(
    "risk", [expected_cost, CVaR(0.3), ChanceConstraint(2.0, 0.2, CVaR(0.5)), Entropic(0.2)]
)
def test_risks_are_written_and_read(risk):
    settings = risk_settings(risk)
    again = load_risk(settings)
    assert again == risk
    assert risk_settings(lambda costs: costs.mean(-1)) is None
    assert risk_settings(ChanceConstraint(2.0, risk=lambda costs: costs.mean(-1))) is None
