"""The variational autoencoder: its bound against closed forms, and what a few updates learn."""

import math

import pytest
import torch
from discs import batch_of, discs, make_world, measured, seeded, updates

from jepa_rl import WorldModel, WorldSpec
from jepa_rl.diagnostics.probes import fit_linear_probe, r2_score
from jepa_rl.objectives import kl_to_standard_normal
from jepa_rl.objectives.vae import unexplained
from jepa_rl.testing import ObjectiveContract


class TestVAE(ObjectiveContract):
    def make_world(self) -> WorldModel:
        return make_world("vae", encoder_options={"widths": (8,)})


class TestVAEOfScales(ObjectiveContract):
    def make_world(self) -> WorldModel:
        return make_world("vae", encoder_options={"widths": (8,)}, scales=(1, 4))


def test_the_divergence_is_that_of_torch_distributions():
    mean, log_variance = torch.randn(2, 5, 3, generator=seeded(), dtype=torch.float64)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected.double())


def test_the_bound_of_a_linear_gaussian_is_the_evidence_at_the_posterior_and_less_elsewhere():
    """z ~ N(0, 1), x = 2 z + 0.5 e: p(x) = N(0, 4.25), and the posterior of z is N(8 x / 17, 1 / 17)."""
    x, w, s = 1.3, 2.0, 0.5

    def bound(mean, variance):
        error = (x - w * mean) ** 2 + w**2 * variance
        likelihood = -error / (2 * s**2) - math.log(s * math.sqrt(2 * math.pi))
        tensors = (torch.tensor([[value]], dtype=torch.float64) for value in (mean, math.log(variance)))
        return likelihood - kl_to_standard_normal(*tensors).item()

    evidence = -(x**2) / (2 * 4.25) - 0.5 * math.log(2 * math.pi * 4.25)
    assert bound(8 * x / 17, 1 / 17) == pytest.approx(evidence, abs=1e-9)
    for mean, variance in ((8 * x / 17 + 0.1, 1 / 17), (8 * x / 17, 0.1), (0.0, 1.0)):
        assert bound(mean, variance) < evidence - 0.01


def test_the_loss_is_the_negative_bound_of_a_value():
    """Variances of almost 0, so that nothing is random: the errors by hand, and a divergence in closed form."""
    world = make_world("vae", beta=3.0, noise=0.2, dynamics=0.0).eval()
    head = world.objective.log_variance
    with torch.no_grad():
        head.weights[-1].zero_()
        head.biases[-1].fill_(-30.0)
    pictures = discs(6, 0)[0]
    total, terms = world.loss(batch_of(pictures), seeded())
    z = world.encode(pictures)
    decoded = world.objective.decoders["observation"](z)
    error = (decoded - pictures / 255).square().mean()
    kl = (0.5 * (z.square() - 1 + 30 + math.exp(-30))).sum(1).mean()
    torch.testing.assert_close(terms["reconstruction"], error, rtol=1e-4, atol=0)
    torch.testing.assert_close(terms["kl"], kl)
    torch.testing.assert_close(total, error / (2 * 0.04) + 3 * kl / (3 * 16 * 16), rtol=1e-4, atol=0)


def test_scales_measure_the_share_of_the_variance_that_is_not_explained():
    """One pixel of four moves; a decoding that misses half of it, and one that puts it into the wrong pixel."""
    shown = torch.zeros(4, 1, 4, 4)
    shown[:2, 0, 0, 0] = 1.0
    half, beside = shown / 2 + 0.25 * (shown.mean(0) > 0), shown.roll(1, dims=3)
    variance = 1 / 3  # of the pixel; nothing else moves
    expected = 0.25**2 / variance
    torch.testing.assert_close(unexplained(half, shown, (1,)), torch.tensor([expected]), rtol=1e-3, atol=0)
    near, far = unexplained(beside, shown, (1, 2))
    assert near == pytest.approx(2 * 0.5 / variance, rel=1e-3) and far == 0
    still = torch.zeros(4, 1, 4, 4)
    assert unexplained(still, still, (1, 2, 4)).tolist() == [0, 0, 0]
    # A picture that stands still does not drown what moves: its error is as it is.
    assert unexplained(still + 0.5, still, (1, 2)).tolist() == [0.25, 0.25]


def test_the_noise_is_the_generators():
    world, batch = make_world("vae").eval(), batch_of(discs(6, 0)[0])
    losses = [world.loss(batch, seeded(seed))[0].item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def probed(world):
    """R2 of a linear probe of the disc's place, on unseen discs."""
    pictures, place = discs(800, 10_000)
    with torch.no_grad():
        z = world.encode(pictures)
    probe = fit_linear_probe(z[:400], place[:400])
    return r2_score(probe(z[400:]), place[400:]).mean().item()


def test_it_reconstructs_unseen_discs_and_knows_their_places():
    untrained = probed(measured(make_world("vae")))
    world = make_world("vae")
    updates(world, 80)
    found = probed(world.eval())
    assert found > untrained + 0.15, (untrained, found)
    pictures = discs(200, 20_000)[0]
    with torch.no_grad():
        decoded = world.objective.decoders["observation"](world.encode(pictures))
    seen = pictures / 255
    error, spread = (decoded - seen).square().mean(), (seen - seen.mean(0)).square().mean()
    assert error < 0.5 * spread, (error, spread)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "beta must be at least 0"),
        ({"noise": 0.0}, "noise must be positive"),
        ({"scales": (1, 3)}, "scales must be"),
        ({"scales": (2, 3)}, "scales must be"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        make_world("vae", **options)


def test_pictures_that_no_decoder_draws_are_refused():
    spec = make_world("vae").spec
    with pytest.raises(ValueError, match="multiple of 8"):
        make_world("vae", WorldSpec((3, 20, 20), 1, spec.action))
