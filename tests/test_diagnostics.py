"""Measurements on latents whose answer is known."""

import math

import numpy as np
import pytest
import torch

from jepa_rl.diagnostics import (
    action_shuffle_gap,
    collapse_alarm,
    effective_rank,
    fit_linear_probe,
    fit_mlp_probe,
    latent_map,
    r2_score,
    rollout_error,
    smoothness,
    surprise,
    wilson_interval,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Integrator:
    """z' = z + a: the truth of the windows below."""

    latent_dim = action_dim = 3

    def rollout(self, z, actions, *, futures=1, generator=None):
        return torch.cat([z[:, None], z[:, None] + actions.cumsum(1)], 1)[:, None]


class Copy(Integrator):
    """Ignores the actions."""

    def rollout(self, z, actions, *, futures=1, generator=None):
        return z[:, None, None].expand(-1, 1, actions.shape[1] + 1, -1)


@pytest.fixture
def paths():
    actions = torch.randn(64, 4, 3, generator=seeded())
    return Integrator().rollout(torch.randn(64, 3, generator=seeded(1)), actions)[:, 0], actions


def test_effective_rank_of_known_spectra():
    orthogonal = torch.linalg.qr(torch.randn(100, 8, generator=seeded()) - 0.0)[0]
    centred = orthogonal - orthogonal.mean(0)
    assert effective_rank(torch.linalg.qr(centred)[0]) == pytest.approx(8.0, rel=0.02)
    line = torch.linspace(-1, 1, 50)[:, None] * torch.ones(5)
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-3)
    two = torch.cat([torch.eye(2), -torch.eye(2)]) * torch.tensor([3.0, 1.0])  # singular values 3 : 1
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(two) == pytest.approx(expected, rel=1e-4)


def test_rollout_error_is_relative_to_copying(paths):
    latents, actions = paths
    assert rollout_error(Integrator(), latents, actions).max() < 1e-10
    torch.testing.assert_close(rollout_error(Copy(), latents, actions), torch.ones(4))


def test_action_gap(paths):
    latents, actions = paths
    assert action_shuffle_gap(Copy(), latents, actions, seeded()) == pytest.approx(0.0, abs=1e-6)
    assert action_shuffle_gap(Integrator(), latents, actions, seeded()) > 100


def test_surprise_finds_the_jump(paths):
    latents, actions = paths
    jumped = latents.clone()
    jumped[5, 3:] += 10.0  # one teleport between states 2 and 3
    found = surprise(Integrator(), jumped, actions)
    assert found.shape == (64, 4)
    assert found[5, 2].item() == pytest.approx(10.0 * math.sqrt(3), rel=1e-4)
    assert found.flatten().sort().values[-2] < 1e-4


def test_smoothness():
    line = torch.arange(5.0)[None, :, None] * torch.ones(2)
    assert smoothness(line) == pytest.approx(1.0)
    zigzag = torch.tensor([[[0.0], [1.0], [0.0], [1.0]]])
    assert smoothness(zigzag) == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="at least 3"):
        smoothness(line[:, :2])


def test_probes_read_what_is_there():
    z = torch.randn(4000, 5, generator=seeded())
    linear, curved = z @ torch.randn(5, 2, generator=seeded(1)) + 3.0, (z[:, :1] * z[:, 1:2])
    train, test = slice(0, 3000), slice(3000, None)
    probe = fit_linear_probe(z[train], linear[train], ridge=1e-8)
    assert r2_score(probe(z[test]), linear[test]).min() > 0.9999
    assert r2_score(fit_linear_probe(z[train], curved[train])(z[test]), curved[test]).item() < 0.1
    mlp = fit_mlp_probe(z[train], curved[train], seeded(), steps=800)
    assert r2_score(mlp(z[test]), curved[test]).item() > 0.9
    noise = torch.randn(4000, 1, generator=seeded(7))
    assert r2_score(fit_linear_probe(z[train], noise[train])(z[test]), noise[test]).item() < 0.05


def test_r2():
    truth = torch.tensor([[0.0], [2.0]])
    assert r2_score(truth, truth).item() == 1.0
    assert r2_score(torch.ones(2, 1), truth).item() == 0.0


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (dict(rank=1.0, std=torch.zeros(8), action_gap=1.0, copy_ratio=0.1), "hardly vary"),
        (dict(rank=1.2, std=torch.ones(8), action_gap=1.0, copy_ratio=0.1), "effective dimensions"),
        (dict(rank=8.0, std=torch.ones(8), action_gap=0.0, copy_ratio=0.1), "ignores the actions"),
        (
            dict(rank=8.0, std=torch.ones(8), action_gap=1.0, copy_ratio=1.5),
            "worse than predicting no change",
        ),
        (
            dict(rank=8.0, std=torch.ones(8), action_gap=1.0, copy_ratio=0.5, has_motion=False),
            "do not change",
        ),
    ],
)
def test_the_alarm_says_what_is_wrong(facts, word):
    assert word in collapse_alarm(**facts)
    assert collapse_alarm(8.0, torch.ones(8), 1.0, 0.5) is None


def test_latent_map_has_one_panel_a_colour():
    figure = latent_map(torch.randn(30, 6), {"time": np.arange(30), "x": np.ones(30)})
    assert [axis.get_title() for axis in figure.axes[:2]] == ["time", "x"]


def test_wilson_interval():
    low, high = wilson_interval(47, 50)
    assert (low, high) == pytest.approx((0.838, 0.979), abs=1e-3)
    assert wilson_interval(50, 50)[1] == 1.0 and wilson_interval(0, 5)[0] == 0.0
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(6, 5)
