"""Options of the flow: Heun's method, whose order is known, and hidden states aligned with clean ones."""

import json
from itertools import pairwise

import pytest
import torch

from jepa_rl.dynamics import FlowDynamics
from jepa_rl.dynamics.flow.schedule import euler, heun, heun_levels, levels_of
from jepa_rl.testing import DynamicsContract, seeded
from jepa_rl.training import descend


def make_flow(**options):
    torch.manual_seed(0)
    flow = FlowDynamics(4, 2, width=16, depth=2, **options)
    for name, weight in flow.network.named_parameters():  # heads and modulations start at zero
        if "modulation" in name or "head" in name:
            torch.nn.init.normal_(weight, std=0.2, generator=seeded(len(name)))
    flow.average.load_state_dict(flow.network.state_dict())
    return flow.eval()


# -- Heun's method ------------------------------------------------------------------------------------


class TestFlowByHeun(DynamicsContract):
    def make_dynamics(self):
        return make_flow(solver="heun", evaluations=5)


class TestFlowWithMemoryByHeun(DynamicsContract):
    def make_dynamics(self):
        return make_flow(solver="heun", evaluations=3, context=3)


MEAN, STD = 1.5, 0.3


def gaussian(levels):
    """The expected clean state of a normal distribution, whose flow is known: noise e ends at MEAN + STD e."""

    def denoise(x, number):
        level = levels[number]
        variance = (1 - level) ** 2 * STD**2 + level**2
        return MEAN + (1 - level) * STD**2 / variance * (x - (1 - level) * MEAN)

    return denoise


def error_of(integrate, levels):
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)
    return (integrate(gaussian(levels), noise, levels) - (MEAN + STD * noise)).abs().max().item()


def test_heun_is_of_second_order_and_euler_of_first():
    """Half the step: a quarter of the error, and half of it. Even levels, so that the last step is small."""
    levels = {n: [*levels_of(n, 1.0)[:-1], 1e-9, 0.0] for n in (40, 80)}
    assert error_of(heun, levels[40]) / error_of(heun, levels[80]) == pytest.approx(4, abs=0.5)
    assert error_of(euler, levels[40]) / error_of(euler, levels[80]) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("evaluations", [17, 33])
def test_heun_is_nearer_than_euler_by_as_many_evaluations(evaluations):
    by_heun, by_euler = error_of(heun, heun_levels(evaluations)), error_of(euler, levels_of(evaluations, 1.0))
    assert by_heun < by_euler / 2
    fewer = error_of(heun, heun_levels(evaluations // 2 + 1))
    assert by_heun < fewer / 2.5


def test_levels_are_spread_as_in_edm():
    assert heun_levels(1) == [1.0, 0.0]
    assert heun_levels(3) == [1.0, pytest.approx(0.02 / 1.02), 0.0]
    middle = ((20 ** (1 / 7) + 0.02 ** (1 / 7)) / 2) ** 7
    assert heun_levels(5)[1] == pytest.approx(middle / (1 + middle))
    levels = heun_levels(79)
    assert len(levels) == 41 and all(a > b for a, b in pairwise(levels))


def test_as_many_evaluations_as_asked_for():
    calls = []
    heun(lambda x, number: calls.append(number) or x, torch.zeros(1), heun_levels(7))
    assert calls == [0, 1, 1, 2, 2, 3, 3]


def test_both_solvers_follow_the_same_flow():
    """Of a network, drawn by many of Euler's steps and by few of Heun's."""
    flow = make_flow(energy=0.0)
    z, actions = torch.randn(6, 4, generator=seeded()), torch.randn(6, 2, 2, generator=seeded(1))

    def drawn(solver, evaluations):
        flow.set_sampling(solver=solver, evaluations=evaluations)
        with torch.no_grad():
            return flow.rollout(z, actions, futures=4, generator=seeded(2))

    truth = drawn("euler", 1000)
    off = [(drawn(solver, 21) - truth).square().mean().sqrt() for solver in ("heun", "euler")]
    assert off[0] < off[1] / 2 and off[0] < 0.05
    flow.set_sampling(solver="heun", evaluations=5)
    one = flow.draw(z, actions[:, 0], futures=3, generator=seeded(3))
    assert one.shape == (6, 3, 4)


def test_training_does_not_depend_on_how_futures_are_drawn():
    windows = torch.randn(8, 3, 4, generator=seeded()), torch.randn(8, 2, 2, generator=seeded(1))
    losses = [
        make_flow(**options).train().loss(*windows, seeded(2))[0].item()
        for options in ({}, {"solver": "heun", "evaluations": 5})
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "rk4"}, "solver must be one of"),
        ({"solver": "heun", "evaluations": 4}, "odd number of evaluations"),
        ({"solver": "heun", "evaluations": 5, "lag": 0.5}, "needs lag=1"),
        ({"repa": -1.0}, "repa must be at least 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FlowDynamics(4, 2, width=16, **options)


def test_a_rollout_by_heun_refuses_even_numbers():
    flow = make_flow(solver="heun", evaluations=5)
    with pytest.raises(ValueError, match="odd number of evaluations"):
        flow.rollout(torch.zeros(1, 4), torch.zeros(1, 2, 2), evaluations=2)


# -- aligned hidden states ----------------------------------------------------------------------------


def test_alignment_trains_the_middle_block_and_is_not_read_by_rollouts():
    torch.manual_seed(0)
    plain = FlowDynamics(4, 2, width=32, depth=2)
    torch.manual_seed(0)
    flow = FlowDynamics(4, 2, width=32, depth=2, repa=1.0)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, flow.state_dict()[name])
    z, actions = torch.randn(6, 4, generator=seeded()), torch.randn(6, 2, 2, generator=seeded(1))
    paths = [model.eval().rollout(z, actions, generator=seeded(2)) for model in (plain, flow)]
    assert torch.equal(*paths)

    windows = torch.randn(64, 3, 4, generator=seeded(3)), torch.randn(64, 2, 2, generator=seeded(4))
    flow.train()
    _, terms = flow.loss(*windows, seeded(5))
    _, other = plain.train().loss(*windows, seeded(5))
    assert terms["flow"].item() == other["flow"].item() and "repa" not in other
    terms["repa"].backward()
    moved = {
        name for name, weight in flow.named_parameters() if weight.grad is not None and weight.grad.any()
    }
    assert any(name.startswith("projector") for name in moved)
    assert any(name.startswith("network.blocks.0") for name in moved)
    assert not any(name.startswith(("network.blocks.1", "network.head", "average")) for name in moved)


def test_hidden_states_come_to_know_the_clean_ones():
    """The next state is the action, so that the middle block can tell it whatever the noise."""
    torch.manual_seed(0)
    flow = FlowDynamics(2, 2, width=32, depth=2, repa=1.0, energy=0.0).train()
    generator, terms = seeded(), []
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    for _ in range(150):
        actions = torch.randn(64, 1, 2, generator=generator)
        latents = torch.cat([torch.randn(64, 1, 2, generator=generator), actions], dim=1)
        total, found = flow.loss(latents, actions, generator)
        descend(total, [optimizer], flow.parameters(), 10.0)
        terms.append(found["repa"].item())
        assert total.item() == pytest.approx(found["flow"].item() + found["repa"].item(), rel=1e-4)
    assert terms[0] > 0.7 and sum(terms[-10:]) / 10 < 0.15


def test_options_come_back_from_json():
    flow = make_flow(solver="heun", evaluations=5, repa=0.5)
    again = FlowDynamics(4, 2, **json.loads(json.dumps(flow.settings.flat())))
    assert again.settings == flow.settings and again.state_dict().keys() == flow.state_dict().keys()
