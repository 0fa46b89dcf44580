"""The learned temporal distance in worlds whose distances are known."""

import pytest
import torch

from jepa_rl.agents import TreeSearch
from jepa_rl.costs import GoalCost, least_of
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.temporal import TemporalDistance
from jepa_rl.training import descend, train_temporal_distance


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def episodes_of(paths):
    """Paths "episodes t d", without actions that matter."""
    count, t, d = paths.shape
    return LatentEpisodes(
        paths.reshape(-1, d), torch.zeros(count * (t - 1), 1), torch.full((count,), t - 1), {"made": "here"}
    )


def height(time):
    """Of a climber: three steps up for every unit, one step down."""
    phase = time % 16
    return torch.where(phase < 12, phase / 3, 16 - phase)


def test_up_a_hill_is_farther_than_down():
    paths = height(torch.arange(16.0)[:, None] + torch.arange(60.0))[..., None]
    distance = train_temporal_distance(
        episodes_of(paths),
        max_offset=16,
        updates=400,
        batch_size=128,
        learning_rate=3e-3,
        apart=0.0,
        expectile=0.02,
        progress=False,
    )
    places = torch.linspace(0, 4, 9)
    found = distance(places[:, None, None], places[None, :, None])
    up = places[None] - places[:, None]
    assert (found - torch.where(up > 0, 3 * up, -up)).abs().mean() < 0.6
    assert (found > found.T)[up >= 1].all()
    assert found[up >= 1].mean() > 2 * found[up <= -1].mean()


def u_turn(s):
    """A corridor of length 10 in the shape of a U: ends two apart, ten steps on foot."""
    down, up = s.clamp(max=4), (s - 6).clamp(min=0)
    return torch.stack([down - up, (s - 4).clamp(0, 2)], dim=-1)


def walks(count, steps, generator):
    """Back and forth along the corridor, mostly onwards."""
    place = 10 * torch.rand(count, 1, generator=generator)
    sign = (torch.rand(count, 1, generator=generator) < 0.5).float() * 2 - 1
    moves = sign * (0.4 + 0.6 * torch.rand(count, steps, generator=generator))
    path = [place]
    for move in moves.T:
        path.append((path[-1] + move[:, None]).clamp(0, 10))
    return torch.cat(path, dim=1)


@pytest.fixture(scope="module")
def in_the_corridor():
    paths = u_turn(walks(300, 20, seeded()))
    return train_temporal_distance(
        episodes_of(paths),
        max_offset=20,
        updates=500,
        batch_size=128,
        learning_rate=3e-3,
        apart=0.0,
        progress=False,
    )


def test_a_wall_between_neighbours_counts(in_the_corridor):
    places = torch.linspace(0, 10, 21)
    found = in_the_corridor(u_turn(places)[:, None], u_turn(places)[None])
    true = (places[:, None] - places[None]).abs()  # steps of the fastest walk
    correlation = torch.corrcoef(torch.stack([found.flatten(), true.flatten()]))[0, 1]
    assert correlation > 0.95
    # The ends are two apart, as the middle and the corner before it are.
    end, other, near = u_turn(torch.tensor([0.0, 10.0, 2.0]))
    assert in_the_corridor(end, other) > 3 * in_the_corridor(end, near)


class Corridor:
    """Actions move along the corridor; the straight way to the other end is a wall."""

    latent_dim, action_dim = 2, 1

    def rollout(self, z, actions, *, futures=1, generator=None):
        x, y = z.unbind(-1)
        place = torch.where(y > 1.99, 10 - x, torch.where(y > 0, 4 + y, x))
        path = [place]
        for action in actions[..., 0].unbind(1):
            path.append((path[-1] + action).clamp(0, 10))
        return torch.cat([z[:, None, None], u_turn(torch.stack(path[1:], 1))[:, None]], dim=2)


def test_plans_priced_by_steps_leave_a_dead_end(in_the_corridor):
    start, goal = u_turn(torch.tensor([[0.0]]))[0], u_turn(torch.tensor([[10.0]]))[0]
    planner = TreeSearch(5, width=8, branches=4, step_cost=0.01)
    ends = {}
    for name, cost in {
        "straight": GoalCost(goal, "last"), "steps": GoalCost(goal, "last", in_the_corridor)
    }.items():  # fmt: skip
        plan = planner.plan(Corridor(), cost, start, generator=seeded(1))
        ends[name] = Corridor().rollout(start, plan.actions)[0, 0, -1]
    assert torch.equal(ends["straight"], start[0])  # any step leads away from the goal
    assert ends["steps"][0] > 3.5  # towards the turn


def test_it_is_a_quasimetric_and_broadcasts():
    torch.manual_seed(0)
    distance = TemporalDistance(3, limit=5.0, width=16)
    a, b, c = torch.randn(3, 50, 3, generator=seeded())
    assert torch.equal(distance(a, a), torch.zeros(50))
    assert (distance(a, c) <= distance(a, b) + distance(b, c) + 1e-4).all()
    assert not torch.allclose(distance(a, b), distance(b, a), atol=0.1)
    pairs = distance(a[:, None], b[None])
    assert pairs.shape == (50, 50)
    torch.testing.assert_close(pairs.diagonal(), distance(a, b))


def test_the_loss_counts_steps_and_other_episodes():
    """All states are embedded alike: every distance is 0, and each of the terms is known."""
    distance = TemporalDistance(2, limit=10.0, width=4, expectile=0.25, apart=2.0)
    torch.nn.init.zeros_(distance.network[-1].weight)
    z = torch.randn(4, 2, generator=seeded())
    steps = torch.tensor([1.0, 2.0, 3.0, 4.0])
    total, terms = distance.loss(z, z, steps, torch.tensor([0, 0, 1, 1]))
    assert terms["steps"].item() == pytest.approx(0.25 * (1 + 4 + 9 + 16) / 4 / 100)
    assert terms["apart"].item() == pytest.approx(1.0)
    assert total.item() == pytest.approx(terms["steps"].item() + 2.0)
    alone, terms = distance.loss(z, z, steps, torch.zeros(4, dtype=torch.long))
    assert terms["apart"].item() == 0.0 and alone.item() == pytest.approx(terms["steps"].item())


@pytest.mark.parametrize(("expectile", "expected"), [(0.1, 2.4), (0.5, 4.0)])
def test_an_expectile_of_two_ways_is_what_it_should_be(expectile, expected):
    """One way of 2 steps and one of 6, as often: the expectile is 2 (1 - e) + 6 e."""
    torch.manual_seed(0)
    distance = TemporalDistance(1, limit=6.0, width=8, expectile=expectile)
    z, goal, steps = torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([2.0, 6.0])
    optimizer = torch.optim.Adam(distance.parameters(), lr=1e-2)
    for _ in range(200):
        descend(
            distance.loss(z, goal, steps, torch.zeros(2, dtype=torch.long))[0],
            [optimizer],
            distance.parameters(),
            10.0,
        )
    assert distance(z, goal)[0].item() == pytest.approx(expected, abs=0.02)


def test_equal_seeds_train_equal_distances_and_leave_the_generator_alone():
    paths, state = u_turn(walks(20, 8, seeded())), torch.get_rng_state()
    made = [
        train_temporal_distance(
            episodes_of(paths), block=2, max_offset=8, updates=3, batch_size=16, progress=False
        )
        for _ in range(2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert made[0].limit == 4.0
    for name, tensor in made[0].state_dict().items():
        assert torch.equal(tensor, made[1].state_dict()[name])


def test_its_cost_says_what_a_plan_costs_at_least():
    goal = torch.zeros(1, 2)
    assert least_of(GoalCost(goal, "last", TemporalDistance(2, 5.0))) == 0.0
    assert least_of(GoalCost(goal, "last", lambda z, g: (z - g).sum(-1))) == -torch.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0.0}, "limit must be positive"),
        ({"expectile": 1.0}, "expectile must lie in"),
        ({"features": 1}, "features must be a whole number of at least 2"),
        ({"apart": -1.0}, "apart must be at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TemporalDistance(2, **{"limit": 5.0} | options)


def test_episodes_without_steps_are_refused():
    nothing = LatentEpisodes(torch.zeros(0, 2), torch.zeros(0, 1), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="hold no steps"):
        train_temporal_distance(nothing)
