"""Heads on latents against closed forms and torch's own distributions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical, Normal, TanhTransform, TransformedDistribution
from torch.testing import assert_close

from jepa_rl.heads import (
    CategoricalPolicy,
    GaussianPolicy,
    Perceptron,
    PictureDecoder,
    TwoHot,
    symexp,
    symlog,
)


@settings(deadline=None)
@given(st.floats(-1e4, 1e4))
def test_symexp_undoes_symlog(x):
    value = torch.tensor(x, dtype=torch.float64)
    assert_close(symexp(symlog(value)), value)


@settings(deadline=None)
@given(st.floats(-2e4, 2e4))
def test_a_two_hot_distribution_has_the_mean_that_went_in(x):
    two_hot = TwoHot(bins=51, limit=10.0).double()
    weights = two_hot.encode(torch.tensor([x], dtype=torch.float64))
    assert_close(weights.sum(-1), torch.ones(1, dtype=torch.float64))
    assert (weights > 0).sum() <= 2
    assert_close(two_hot.decode(weights.clamp_min(1e-30).log())[0].item(), x, rtol=1e-4, atol=1e-4)


def test_the_best_logits_are_those_of_the_distribution_itself():
    two_hot = TwoHot(bins=21)
    weights = two_hot.encode(torch.tensor([3.3]))
    best = two_hot.loss(weights.clamp_min(1e-12).log(), weights)
    assert two_hot.loss(torch.zeros(1, 21), weights) > best
    entropy = -(weights * weights.clamp_min(1e-12).log()).sum(-1)
    assert_close(best, entropy)


def test_values_beyond_the_bins_are_clipped():
    two_hot = TwoHot(bins=11, limit=2.0)
    assert_close(two_hot.encode(torch.tensor([1e9]))[0, -1].item(), 1.0)


@pytest.mark.parametrize(
    ("bins", "limit", "words"),
    [(1, 10.0, "bins must be at least 2, got 1"), (11, 0.0, "limit must be positive, got 0")],
)
def test_bins_that_make_no_sense_are_refused(bins, limit, words):
    with pytest.raises(ValueError, match=words):
        TwoHot(bins, limit)


def test_members_of_an_ensemble_are_perceptrons_of_their_own():
    torch.manual_seed(0)
    many = Perceptron(5, 16, 3, depth=2, members=4)
    x = torch.randn(7, 5)
    together = many(x)
    assert together.shape == (4, 7, 3)
    for e in range(4):
        one = Perceptron(5, 16, 3, depth=2)
        weights = {name: value[e] for name, value in many.state_dict().items()}
        one.load_state_dict(weights)
        assert_close(one(x), together[e], rtol=1e-4, atol=1e-5)


def test_a_perceptron_is_linear_norm_silu():
    torch.manual_seed(0)
    ours = Perceptron(5, 8, 2, depth=1)
    theirs = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 2))
    with torch.no_grad():
        theirs[0].weight.copy_(ours.weights[0].T)
        theirs[3].weight.copy_(ours.weights[1].T)
        theirs[0].bias.zero_()
        theirs[3].bias.zero_()
    x = torch.randn(6, 5)
    assert_close(ours(x), theirs(x))


def test_the_density_of_the_squashed_gaussian_is_that_of_torch():
    torch.manual_seed(0)
    policy = GaussianPolicy(4, 3, width=16).double()
    z = torch.randn(50, 4, dtype=torch.float64)
    action, density = policy.sample(z, torch.Generator().manual_seed(1))
    mean, std = policy._mean_std(z)
    reference = TransformedDistribution(Normal(mean, std), TanhTransform())
    assert_close(density, reference.log_prob(action).sum(-1), rtol=1e-6, atol=1e-6)
    assert action.abs().max() <= 1


def test_choices_are_drawn_as_often_as_they_are_likely():
    torch.manual_seed(0)
    policy = CategoricalPolicy(2, (2, 3), width=8)
    with torch.no_grad():
        policy.network.biases[-1].copy_(torch.tensor([[0.0, 1.0, 0.5, 0.0, -1.0]]))
        policy.network.weights[-1].zero_()
    action, _ = policy.sample(torch.zeros(40_000, 2), torch.Generator().manual_seed(0))
    expected = torch.cat([part[0].exp() for part in policy.logits(torch.zeros(1, 2))])
    assert_close(action.detach().mean(0), expected.detach(), rtol=0, atol=0.01)
    assert action.sum(-1).allclose(torch.full((40_000,), 2.0))
    assert_close(policy.mode(torch.zeros(1, 2)), torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0]]))


def test_the_entropy_of_choices_is_exact_and_has_its_gradient():
    policy = CategoricalPolicy(2, (2, 3), width=8).double()
    z = torch.randn(20, 2, dtype=torch.float64)
    _, neg_entropy = policy.sample(z, torch.Generator().manual_seed(0))
    reference = sum(Categorical(logits=part).entropy() for part in policy.logits(z))
    assert_close(neg_entropy, -reference)
    found, expected = (
        torch.autograd.grad(total, policy.network.biases[-1])[0]
        for total in (-neg_entropy.sum(), reference.sum())
    )
    assert expected.abs().max() > 1e-3
    assert_close(found, expected)


@pytest.mark.parametrize("policy", [GaussianPolicy(4, 3, width=8), CategoricalPolicy(4, (2, 3), width=8)])
def test_rows_take_turns_with_the_draws(policy):
    z = torch.randn(2, 4)
    alone, _ = policy.sample(z, torch.Generator().manual_seed(0))
    together, _ = policy.sample(z.repeat(3, 1), torch.Generator().manual_seed(0), draws=2)
    assert_close(together, alone.repeat(3, 1))


def test_pictures_are_decoded_from_latents():
    torch.manual_seed(0)
    decoder = PictureDecoder(4, channels=3, size=16, width=16)
    z, pictures = torch.randn(4, 4), torch.rand(4, 3, 16, 16)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    for _ in range(400):
        loss = (decoder(z) - pictures).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.025  # noise, whose variance is 0.083, learned by heart
    with pytest.raises(ValueError, match="multiple of 8, got 20"):
        PictureDecoder(4, 3, 20)
