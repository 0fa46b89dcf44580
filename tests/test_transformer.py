"""The causal transformer dynamics: contract, key-value cache, and what an untrained one does."""

import pytest
import torch

from jepa_rl.dynamics.transformer import CausalTransformerDynamics
from jepa_rl.testing import DynamicsContract, seeded


def make(width=24, latent_dim=6, context=3, dropout=0.1):
    torch.manual_seed(0)
    model = CausalTransformerDynamics(
        latent_dim,
        2,
        width=width,
        depth=2,
        heads=3,
        head_dim=8,
        mlp_width=32,
        context=context,
        dropout=dropout,
    )
    for block in model.blocks:  # as if trained: actions matter
        torch.nn.init.normal_(block.modulation.weight, std=0.3)
    return model.eval()


class TestCausalTransformerDynamics(DynamicsContract):
    horizon = 6

    def make_dynamics(self):
        return make()


class TestMarkovWhenTheWindowIsOne(DynamicsContract):
    def make_dynamics(self):
        return make(context=1)


@pytest.mark.parametrize(("context", "width"), [(1, 24), (3, 24), (3, 6), (20, 24)])
def test_the_cache_changes_nothing(context, width):
    model = make(width=width, context=context)
    z = torch.randn(300, 6, generator=seeded())
    actions = torch.randn(300, 9, 2, generator=seeded(1))
    path = [z]
    for now in range(9):  # every window read from scratch
        first = max(0, now + 1 - context)
        window = torch.stack(path[first:], dim=1)
        path.append(model.predict(window, actions[:, first : now + 1])[:, -1])
    expected = torch.stack(path, dim=1)
    torch.testing.assert_close(model.rollout(z, actions)[:, 0], expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # in blocks of rows
        torch.testing.assert_close(model.rollout(z, actions)[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_an_untrained_model_does_not_see_its_actions():
    """AdaLN-zero: all gates start closed."""
    model = CausalTransformerDynamics(6, 2).eval()
    z = torch.randn(2, 6)
    first, second = (model.rollout(z, torch.randn(2, 4, 2, generator=seeded(i))) for i in range(2))
    torch.testing.assert_close(first, second)


def test_learns_a_linear_system():
    model = make(dropout=0.0).train()
    generator = seeded()
    A, B = 0.3 * torch.randn(6, 6, generator=generator), torch.randn(2, 6, generator=generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        path = [torch.randn(64, 6, generator=generator)]
        actions = torch.randn(64, 4, 2, generator=generator)
        for action in actions.unbind(1):
            path.append(path[-1] @ A + action @ B)
        target = torch.stack(path, 1)
        loss = (model.rollout(target[:, 0], actions)[:, 0] - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_refuses_nonsense():
    with pytest.raises(ValueError, match="context"):
        CausalTransformerDynamics(6, 2, context=0)
    with pytest.raises(ValueError, match="dropout"):
        CausalTransformerDynamics(6, 2, dropout=1.0)
    with pytest.raises(ValueError, match="at most context=3"):
        make().predict(torch.zeros(1, 4, 6), torch.zeros(1, 4, 2))
