"""Planners against their contract and on problems whose answer is known."""

import json
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_rl.agents import CEM, ICEM, MPPI, CategoricalCEM, GradientPlanner, TreeSearch
from jepa_rl.agents.planners import BasePlanner, SamplingPlanner, make_problem, planner_from, planner_settings
from jepa_rl.agents.planners.icem import coloured
from jepa_rl.agents.planners.mppi import softmin
from jepa_rl.costs import ActionPenalty, GoalCost
from jepa_rl.risk import CVaR
from jepa_rl.testing import COMPASS, PlannerContract, PointMass, seeded
from jepa_rl.types import Plan


class TestCEM(PlannerContract):
    def make_planner(self):
        return CEM(horizon=5, samples=64, elites=8, iterations=4)


class TestICEM(PlannerContract):
    def make_planner(self):
        return ICEM(horizon=5, samples=64, elites=8, iterations=4)


class TestMPPI(PlannerContract):
    def make_planner(self):
        return MPPI(horizon=5, samples=64, elites=16, iterations=4)


class TestGradientPlanner(PlannerContract):
    def make_planner(self):
        return GradientPlanner(horizon=5, restarts=4, iterations=20)


class TestCategoricalCEM(PlannerContract):
    def make_planner(self):
        return CategoricalCEM(horizon=5, samples=64, elites=8, iterations=4)


@dataclass(frozen=True)
class Shooting(SamplingPlanner[torch.Tensor]):
    """Uniform plans, and the best of them: a planner of a user's own in few lines."""

    actions = "continuous"

    def begin(self, start):
        return start

    def propose(self, state, iteration, generator):
        drawn = 2 * torch.rand(self.samples, *state.shape[1:], generator=generator) - 1
        return torch.cat([state[:, None], drawn.expand(len(state), -1, -1, -1)], 1)

    def refit(self, state, elites, costs):
        return elites[:, 0]

    def answers(self, state, best):
        return [best]


class TestShooting(PlannerContract):
    def make_planner(self):
        return Shooting(5, samples=200, elites=2, iterations=3)


class GoStraight(BasePlanner):
    """One candidate or the better of a few, without a search: what ``BasePlanner`` leaves to do."""

    horizon = 5

    def plan(self, dynamics, cost, z, warm_start=None, generator=None, proposals=None):
        problem, start = make_problem(self, dynamics, cost, z, warm_start, generator, proposals)
        steps = torch.linspace(-1, 1, 9)
        grid = torch.cartesian_prod(steps, steps)[:, None].expand(-1, self.horizon, -1)
        grid = torch.cat([start[:, None], grid.expand(len(z), -1, -1, -1)], 1)
        candidates = problem.with_proposals(grid)
        return problem.finish(candidates, candidates, problem.costs(candidates))


class TestGoStraight(PlannerContract):
    def make_planner(self):
        return GoStraight()


@pytest.mark.parametrize("planner", [CEM(4, risk=CVaR(0.5), futures=3), ICEM(4), MPPI(4, keep_best=False),
                                     GradientPlanner(4), CategoricalCEM(4, choices=(2, 3)), TreeSearch(4, width=7)],
                         ids=lambda planner: type(planner).__name__)  # fmt: skip
def test_settings_come_back_from_json(planner):
    assert planner_from(json.loads(json.dumps(planner_settings(planner)))) == planner


def test_settings_of_other_planners_are_not_written_and_not_guessed():
    assert planner_settings(Shooting(4)) is None
    assert planner_settings(CEM(4, risk=lambda costs: costs.amax(-1))) is None
    with pytest.raises(ValueError, match=r"no planner 'Shooting'.*pass it: load\(path, planner="):
        planner_from({"name": "Shooting", "horizon": 4})
    with pytest.raises(ValueError, match="CEM of this version has other settings"):
        planner_from({"name": "CEM", "horizon": 4, "no_such": 1})


@pytest.mark.parametrize(("kind", "futures"), [(CEM, 3), (MPPI, 3), (ICEM, 1)])
def test_candidates_priced_in_chunks_share_their_futures(kind, futures, monkeypatch):
    """Where memory is short the plan is the same."""
    planner = kind(4, samples=30, elites=6, futures=futures)
    ask = (PointMass(shake=0.02), GoalCost(torch.tensor([[0.4, 0.2]])), torch.zeros(2, 2))
    at_once = planner.plan(*ask, generator=seeded(0))
    monkeypatch.setattr("jepa_rl.agents.planners.base.PATHS_AT_ONCE", 7 * 3 * 5 * 2)
    in_turns = planner.plan(*ask, generator=seeded(0))
    torch.testing.assert_close(in_turns.actions, at_once.actions)
    torch.testing.assert_close(in_turns.candidate_costs, at_once.candidate_costs)


THOROUGH = [
    CEM(6, samples=400, elites=40, iterations=20, min_std=0.0),
    ICEM(6, samples=400, elites=40, iterations=20, noise_beta=0.5),
    MPPI(6, samples=400, elites=40, iterations=20, min_std=0.0),
    GradientPlanner(6, iterations=200, learning_rate=0.02),
]


@dataclass(frozen=True, eq=False)
class Linear:
    """``z' = A z + B a``: a double integrator, position and velocity."""

    A: torch.Tensor
    B: torch.Tensor
    latent_dim: int = 2
    action_dim: int = 1

    def rollout(self, z, actions, *, futures=1, generator=None):
        path = [z]
        for action in actions.unbind(1):
            path.append(path[-1] @ self.A.T + action @ self.B.T)
        return torch.stack(path, 1).unsqueeze(1)


@pytest.mark.parametrize("planner", THOROUGH, ids=lambda p: type(p).__name__)
def test_linear_quadratic_problem_has_the_riccati_answer(planner):
    """The cost of the plan equals ``z' P z`` of the finite-horizon Riccati recursion."""
    A, B, r = torch.tensor([[1.0, 0.3], [0.0, 1.0]]), torch.tensor([[0.05], [0.3]]), 0.1
    z = torch.tensor([[0.5, 0.0], [-0.3, 0.2]])
    P = torch.zeros(2, 2)
    gains = []
    for _ in range(planner.horizon):  # the state now is free, every later one costs |z|^2
        W = P + torch.eye(2)
        K = torch.linalg.solve(r * torch.eye(1) + B.T @ W @ B, B.T @ W @ A)
        P = A.T @ W @ (A - B @ K)
        gains.append(K)

    def cost(latents, actions):
        return latents[:, :, 1:].square().sum((-2, -1)) + r * actions.square().sum((-2, -1))[:, None]

    plan = planner.plan(Linear(A, B), cost, z, generator=seeded())
    optimum = torch.einsum("bi,ij,bj->b", z, P, z)
    torch.testing.assert_close(plan.cost, optimum, rtol=5e-3, atol=0)
    torch.testing.assert_close(plan.actions[:, 0], -z @ gains[-1].T, rtol=0, atol=0.05)


@pytest.mark.parametrize("planner", THOROUGH, ids=lambda p: type(p).__name__)
def test_finds_the_way_around_an_obstacle(planner):
    """A disc stands on the straight line to the goal; a path that touches it pays."""
    dynamics = PointMass(0.4 * torch.eye(2))
    centre, radius = torch.tensor([0.6, 0.03]), 0.35

    def disc(latents, actions):
        depth = (radius - torch.linalg.vector_norm(latents - centre, dim=-1)).clamp_min(0.0)
        return 20.0 * depth.sum(-1)

    cost = GoalCost(torch.tensor([[1.2, 0.0]])) + disc
    plan = planner.plan(dynamics, cost, torch.zeros(1, 2), generator=seeded())
    path = plan.branches[0, 0]
    assert torch.linalg.vector_norm(path[-1] - torch.tensor([1.2, 0.0])) < 0.1
    assert torch.linalg.vector_norm(path - centre, dim=-1).min() > radius - 0.03


def test_bandit():
    """One decision, one best arm, found among twenty."""
    prices = torch.rand(20, generator=seeded(3)) + 0.1
    prices[13] = 0.0

    def cost(latents, actions):
        return (actions[:, 0] @ prices)[:, None]

    dynamics = PointMass(torch.zeros(20, 1))
    plan = CategoricalCEM(1, samples=64, elites=8).plan(dynamics, cost, torch.zeros(2, 1), generator=seeded())
    assert plan.actions.argmax(-1).flatten().tolist() == [13, 13] and plan.cost.abs().max() == 0


def test_a_search_among_very_many_options_gathers_where_they_are_good():
    """Six choices among a hundred, each the better the nearer it is to an option of its own."""
    best = torch.tensor([5, 90, 40, 70, 20, 55])
    far = (torch.arange(100) - best[:, None]).abs() / 100.0

    def cost(latents, actions):
        return (actions * far).sum((1, 2))[:, None]

    dynamics, z = PointMass(torch.zeros(100, 1)), torch.zeros(1, 1)
    plan = CategoricalCEM(6, samples=256, elites=32, iterations=8).plan(dynamics, cost, z, generator=seeded())
    blind = CategoricalCEM(6, samples=8 * 256, elites=2, iterations=1).plan(
        dynamics, cost, z, generator=seeded()
    )
    assert plan.cost.item() < 0.5 * blind.cost.item()


def binary_plans(seed, count=400, horizon=5):
    """Two choices at each of five places, whose prices add up: the best plan and all others are known."""
    prices = torch.randn(count, horizon, generator=seeded(seed))

    def cost(latents, actions):
        plans = actions[..., 1].unflatten(0, (count, -1))
        return (plans * prices[:, None]).sum(-1).flatten()[:, None]

    planner = CategoricalCEM(horizon, samples=64, elites=32, iterations=3)  # as JEPAMPC searches
    plan = planner.plan(PointMass(torch.zeros(2, 1)), cost, torch.zeros(count, 1), generator=seeded(1))
    assert torch.equal(plan.actions.argmax(-1), (prices < 0).long())
    return planner, plan, prices


def test_exploration_among_few_choices_follows_other_plans_than_the_best():
    """32 plans, of which the last iteration draws the best one most of the time, and it in many copies.

    Of the better half of the plans that differ, one is the best. The others differ from it where it costs least, at one
    or two of five places that are all alike on average: their first action is another in a fifth to two fifths. So the
    share of other first actions is about (k - 1) / k times that for k = 3 to 8 plans: 0.13 to 0.35.
    """
    planner, plan, prices = binary_plans(0)
    explored = torch.cat([planner.explore(plan, seeded(i)) for i in range(5)])
    other = (explored[:, 0] != plan.actions.repeat(5, 1, 1)[:, 0]).any(-1)
    assert 0.13 < other.float().mean() < 0.35  # copies of the best plan: 0.002
    # It costs less than a third of what a plan at random would: that is sum |price| / 2 above the best.
    paid = (explored[..., 1] * prices.repeat(5, 1)).sum(-1) - plan.cost.repeat(5)
    assert paid.mean() < prices.abs().sum(-1).mean() / 2 / 3
    assert (paid >= -1e-5).all()


def test_exploration_takes_each_of_the_distinct_plans_alike_and_none_that_is_forbidden():
    """Three distinct plans in twenty copies, one of them infinitely dear: the other two are followed half the time."""
    planner = CategoricalCEM(2, samples=64)
    plans = torch.eye(2)[torch.tensor([[0, 0], [1, 0], [1, 1]])].repeat(20, 1, 1).expand(1000, -1, -1, -1)
    costs = torch.tensor([1.0, 3.0, torch.inf]).repeat(20).expand(1000, -1)
    branches = torch.zeros(1000, 1, 3, 1)
    plan = Plan(plans[:, 0], costs[:, 0], plans, costs, branches)
    explored = planner.explore(plan, seeded(0)).argmax(-1)
    assert {tuple(row) for row in explored.tolist()} == {(0, 0), (1, 0)}
    assert (explored[:, 0] == 1).float().mean().item() == pytest.approx(0.5, abs=0.06)
    alone = Plan(plans[:, 0], costs[:, 0], plans[:, ::3], costs[:, ::3], branches)
    assert (planner.explore(alone, seeded(0)).argmax(-1) == 0).all()


def test_chain_prefers_the_far_prize():
    """A step left pays a little at once; only four steps right in a row reach the prize."""
    dynamics = PointMass(torch.tensor([[-1.0], [1.0]]))

    def cost(latents, actions):
        position = latents[..., 0]
        return -(0.1 * (position[:, :, 1:] < 0).sum(-1) + 10.0 * (position[:, :, -1] >= 4))

    plan = CategoricalCEM(4, samples=128, elites=8).plan(
        dynamics, cost, torch.zeros(1, 1), generator=seeded()
    )
    assert plan.actions.argmax(-1).tolist() == [[1, 1, 1, 1]] and plan.cost.item() == pytest.approx(-10.0)


def test_block_of_discrete_actions_holds_one_choice_per_environment_step():
    """Two environment steps of four choices make one latent step; the goal needs right, then up."""
    dynamics = PointMass(COMPASS.repeat(2, 1))
    planner = CategoricalCEM(2, samples=128, elites=16, choices=4)
    plan = planner.plan(dynamics, GoalCost(torch.tensor([[0.4, 0.4]])), torch.zeros(1, 2), generator=seeded())
    choices = plan.actions.unflatten(-1, (2, 4))
    assert (choices.sum(-1) == 1).all()
    torch.testing.assert_close(plan.branches[0, 0, -1], torch.tensor([0.4, 0.4]))
    with pytest.raises(ValueError, match="choices=3 does not divide"):
        CategoricalCEM(2, choices=3).plan(dynamics, GoalCost(torch.zeros(1, 2)), torch.zeros(1, 2))


def test_unlike_choices_beside_each_other():
    """One of two sides and one of three steps at once; the goal needs the second side and the third step."""
    dynamics = PointMass(torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 2.0]]))
    planner = CategoricalCEM(2, samples=64, elites=8, choices=(2, 3))
    goal = dynamics.rollout(torch.zeros(1, 2), torch.tensor([[[0.0, 1, 0, 0, 1]] * 2]))[0, 0, -1:]
    plan = planner.plan(dynamics, GoalCost(goal), torch.zeros(1, 2), generator=seeded())
    torch.testing.assert_close(plan.actions[0], torch.tensor([[0.0, 1, 0, 0, 1]] * 2))
    with pytest.raises(ValueError, match=r"choices=\(2, 2\) are 4 components, actions have 5"):
        CategoricalCEM(2, choices=(2, 2)).plan(dynamics, GoalCost(goal), torch.zeros(1, 2))


@dataclass(frozen=True)
class Fork:
    """A fork: the risky way (a > 0) ends at 0 or 4 with equal chance, the safe way at 2.5."""

    latent_dim: int = 1
    action_dim: int = 1

    def rollout(self, z, actions, *, futures=1, generator=None):
        won = torch.rand(futures, generator=generator) < 0.5  # belongs to a future, not to a row
        end = torch.where(actions[:, :1] > 0, torch.where(won, 0.0, 4.0)[:, None], 2.5)
        start = z[:, None].expand(-1, futures, -1)
        return torch.stack([start, *[end] * actions.shape[1]], dim=2)


@pytest.mark.parametrize("planner", [CEM, ICEM, MPPI])
def test_risk_decides_at_a_fork(planner):
    def cost(latents, actions):
        return latents[:, :, -1, 0]

    def worst(costs):
        return costs.amax(-1)

    def plan(**settings):
        return planner(1, futures=200, **settings).plan(Fork(), cost, torch.zeros(1, 1), generator=seeded())

    mean = plan()
    assert mean.actions.item() > 0 and mean.cost.item() == pytest.approx(2.0, abs=0.35)
    assert mean.branches.shape == (1, 200, 2, 1)
    cautious = plan(risk=worst)
    assert cautious.actions.item() <= 0 and cautious.cost.item() == 2.5


@pytest.mark.parametrize(("keep_best", "action"), [(True, 0.61), (False, 0.2)])
def test_a_mean_is_not_drawn_to_the_few_plans_that_a_model_flatters(keep_best, action):
    def cost(latents, actions):
        flattered = (actions[:, 0] > 0.6) & (actions[:, 0] < 0.62)
        return (actions[:, 0] - 0.2).square() - flattered.float()

    planner = MPPI(1, samples=256, elites=128, init_std=0.5, temperature=1.0, keep_best=keep_best)
    plan = planner.plan(PointMass(torch.eye(1)), cost, torch.zeros(1, 1), generator=seeded())
    assert plan.actions.item() == pytest.approx(action, abs=0.07)


class Edge:
    """A step of length a earns a and falls with probability a * a, which costs 4: on average a - 4 a * a."""

    latent_dim = action_dim = 1

    def __init__(self):
        self.draws = []

    def rollout(self, z, actions, *, futures=1, generator=None):
        self.draws.append(torch.rand(futures, actions.shape[1], generator=generator))
        a = actions[..., 0].abs()[:, None]
        earned = a - 4.0 * (self.draws[-1] < a * a)
        return torch.cat([z[:, None, None].expand(-1, futures, -1, -1), earned[..., None]], 2)


@pytest.mark.parametrize("planner", [CEM, ICEM, MPPI])
def test_a_search_is_not_fooled_by_the_noise_of_a_few_futures(planner):
    """Were the futures of all iterations the same, steps just short of the smallest draw would look free."""
    found, budget = [], dict(samples=64, iterations=6, futures=8)
    for seed in range(20):
        edge = Edge()
        cost = lambda z, _: -z[:, :, 1:, 0].sum(-1)  # noqa: E731
        plan = planner(4, **budget).plan(edge, cost, torch.zeros(1, 1), generator=seeded(seed))
        steps = plan.actions.abs()
        found.append((steps - 4 * steps.square()).sum().item())
        assert not any(torch.equal(draw, edge.draws[0]) for draw in edge.draws[1:])
    assert sum(found) / len(found) > -0.15  # the best is 0.25; with one draw for all iterations about -0.3


def test_all_candidates_of_all_environments_go_through_one_rollout():
    rows = []

    class Counting(PointMass):
        def rollout(self, z, actions, **options):
            rows.append(len(z))
            return super().rollout(z, actions, **options)

    cost = GoalCost(torch.ones(3, 2))
    CEM(4, samples=50, elites=5, iterations=2).plan(Counting(), cost, torch.zeros(3, 2), generator=seeded())
    assert rows == [150, 150, 3 * 2]


def test_coloured_noise_has_unit_variance_and_its_power_law():
    white = torch.randn(20_000, 16, 1, generator=seeded())
    for beta in (0.0, 1.0, 2.0):
        noise = coloured(white, beta)
        assert noise.shape == white.shape
        assert noise.var(0).mean().item() == pytest.approx(1.0, abs=0.05)
        power = torch.fft.rfft(noise, dim=1).abs().square().mean((0, 2))
        assert (power[1] / power[4]).item() == pytest.approx(4.0**beta, rel=0.1)
    assert torch.equal(coloured(white[:, :1], 2.0), white[:, :1])


def test_softmin_weights():
    inf = torch.inf
    costs = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0], [0.0, inf, inf], [inf, inf, inf]])
    weights = softmin(costs, 0.5)
    torch.testing.assert_close(weights[0], torch.softmax(torch.tensor([0.0, -1.0, -2.0]), 0))
    third = torch.full((3,), 1 / 3)
    torch.testing.assert_close(weights[1], third)
    torch.testing.assert_close(weights[2], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(weights[3], third)
    torch.testing.assert_close(softmin(1000 * costs[:1], 0.5), weights[:1])  # free of the unit


def test_gradient_planner_needs_a_gradient():
    class Detached(PointMass):
        def rollout(self, z, actions, **options):
            return super().rollout(z, actions.detach(), **options)

    with pytest.raises(ValueError, match="gradient"):
        GradientPlanner(4).plan(Detached(), GoalCost(torch.ones(1, 2)), torch.zeros(1, 2))


def test_gradient_planner_leaves_parameters_alone():
    from jepa_rl.dynamics.transformer import CausalTransformerDynamics

    model = CausalTransformerDynamics(2, 2, width=16, depth=1, heads=2, head_dim=8, mlp_width=16).eval()
    torch.nn.init.normal_(model.blocks[0].modulation.weight)
    with torch.inference_mode():  # as an agent plans: latents and goal are inference tensors
        z, goal = torch.zeros(1, 2) + 0, torch.ones(1, 2) + 0
        GradientPlanner(4, iterations=2).plan(model, GoalCost(goal), z, generator=seeded())
    assert all(p.grad is None for p in model.parameters())


@settings(max_examples=20, deadline=None)
@given(
    b=st.integers(1, 3),
    h=st.integers(1, 5),
    a=st.integers(1, 4),
    samples=st.integers(3, 12),
    make=st.sampled_from([CEM, ICEM, MPPI, CategoricalCEM]),
)
def test_any_shape_plans(b, h, a, samples, make):
    dynamics = PointMass(torch.ones(a, 3))
    plan = make(h, samples=samples, elites=2, iterations=2).plan(
        dynamics, GoalCost(torch.ones(b, 3)) + ActionPenalty(), torch.zeros(b, 3), generator=seeded()
    )
    assert plan.actions.shape == (b, h, a) and plan.branches.shape == (b, 1, h + 1, 3)
    assert torch.isfinite(plan.cost).all() and plan.actions.abs().max() <= 1


@pytest.mark.parametrize("make", [CEM, ICEM, MPPI, CategoricalCEM, GradientPlanner])
@pytest.mark.parametrize("setting", [{"horizon": 0}, {"iterations": 0}, {"futures": 0}, {"horizon": -3}])
def test_counts_must_be_positive(make, setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be at least 1"):
        make(**({"horizon": 4} | setting))


@pytest.mark.parametrize(
    ("make", "setting", "error", "match"),
    [
        (CEM, {"elites": 1}, ValueError, "elites must lie in"),
        (CEM, {"samples": 8, "elites": 9}, ValueError, "samples=8"),
        (CEM, {"horizon": 2.5}, TypeError, "horizon must be an int"),
        (CEM, {"init_std": 0.0}, ValueError, "init_std"),
        (CEM, {"init_std": float("nan")}, ValueError, "init_std"),
        (CEM, {"min_std": 2.0}, ValueError, "min_std"),
        (CEM, {"momentum": 1.0}, ValueError, "momentum"),
        (CEM, {"risk": "mean"}, TypeError, "risk"),
        (ICEM, {"decay": 0.5}, ValueError, "decay"),
        (ICEM, {"keep": 1.5}, ValueError, "keep"),
        (ICEM, {"noise_beta": -1.0}, ValueError, "noise_beta"),
        (MPPI, {"temperature": 0.0}, ValueError, "temperature"),
        (CategoricalCEM, {"choices": 0}, ValueError, "choices"),
        (CategoricalCEM, {"smoothing": 1.0}, ValueError, "smoothing"),
        (GradientPlanner, {"restarts": 0}, ValueError, "restarts"),
        (GradientPlanner, {"learning_rate": -1.0}, ValueError, "learning_rate"),
    ],
)
def test_settings_that_make_no_sense(make, setting, error, match):
    with pytest.raises(error, match=match):
        make(**({"horizon": 4} | setting))


def test_costs_and_risks_of_the_wrong_shape_are_named():
    with pytest.raises(ValueError, match=r"\(rows, futures\) = \(256, 1\), got \(256, 5\)"):
        CEM(4).plan(PointMass(), lambda latents, actions: latents[:, 0].sum(-1), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="a risk must answer"):
        CEM(4, risk=lambda costs: costs).plan(PointMass(), GoalCost(torch.zeros(1, 2)), torch.zeros(1, 2))


@pytest.mark.parametrize("samples", [3, 4, 7, 8])
def test_mppi_draws_pairs_that_are_mirrored_at_the_mean(samples):
    mean = torch.tensor([[[0.1], [-0.2]], [[0.0], [0.3]]])
    planner = MPPI(2, samples=samples, elites=2, init_std=0.05, min_std=0.05)
    drawn = planner.propose(planner.begin(mean), 0, seeded())
    assert drawn.shape == (2, samples, 2, 1)
    torch.testing.assert_close(drawn.mean(1), mean)
    torch.testing.assert_close(drawn[:, 0], mean)
    pairs = (samples - 1) // 2
    for i in range(1, 1 + pairs):
        torch.testing.assert_close(drawn[:, i] + drawn[:, i + pairs], 2 * mean)
        assert not torch.equal(drawn[:, i], mean)
