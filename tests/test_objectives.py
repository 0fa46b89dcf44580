"""Every term against a value worked out by hand."""

import math

import numpy as np
import pytest
import torch

from jepa_rl import ActionSpec, Batch, WorldModel, WorldModelConfig, WorldSpec
from jepa_rl.diagnostics.probes import fit_mlp_probe, r2_score
from jepa_rl.encoders.base import tokens_of
from jepa_rl.encoders.conv import MEASURED
from jepa_rl.objectives import (
    Unrolled,
    covariance,
    inverse_dynamics,
    prediction,
    sigreg,
    straightness,
    time_similarity,
    variance,
)
from jepa_rl.objectives.base import SharedStatistics
from jepa_rl.objectives.inverse import ActionReader
from jepa_rl.objectives.terms import CharacteristicFunction
from jepa_rl.testing import ObjectiveContract
from jepa_rl.training import descend
from jepa_rl.types import ControlBatch


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def epps_pulley(characteristic, limit=5.0, points=20001):
    """The integral of |phi(w) - exp(-w^2/2)|^2 exp(-w^2/2) over [-limit, limit], for a real phi, finely."""
    w = torch.linspace(-limit, limit, points, dtype=torch.float64)
    normal = torch.exp(-0.5 * w**2)
    return float(torch.trapezoid((characteristic(w) - normal) ** 2 * normal, w))


def test_sigreg_of_a_point_mass():
    """All latents 0: phi is 1 everywhere. The coarse rule of 17 knots is within 1% of the fine integral."""
    expected = epps_pulley(torch.ones_like)
    assert sigreg(torch.zeros(1, 50, 4), seeded()).item() == pytest.approx(expected, rel=0.01)


def test_sigreg_of_a_wide_gaussian():
    """N(0, s^2): phi(w) = exp(-s^2 w^2 / 2)."""
    s = 2.0
    z = s * torch.randn(1, 200_000, 2, generator=seeded(1))
    expected = epps_pulley(lambda w: torch.exp(-0.5 * (s * w) ** 2))
    assert sigreg(z, seeded(), projections=16).item() == pytest.approx(expected, rel=0.05)


def test_sigreg_of_a_standard_normal_is_its_sampling_error():
    """E|phi_b - phi|^2 = (1 - |phi|^2) / b, so the expected statistic is known, and small."""
    b = 100
    w = torch.linspace(-5, 5, 20001, dtype=torch.float64)
    normal = torch.exp(-0.5 * w**2)
    expected = float(torch.trapezoid((1 - normal**2) / b * normal, w))
    z = torch.randn(400, b, 8, generator=seeded(2))
    assert sigreg(z, seeded()).item() == pytest.approx(expected, rel=0.05)


def test_sigreg_is_the_epps_pulley_statistic():
    """Against its definition with sines and cosines, value and gradient."""
    z = (2.0 * torch.randn(3, 40, 5, generator=seeded()) + 0.3).requires_grad_()
    directions = torch.randn(5, 7, generator=seeded())
    angles = (z @ (directions / directions.norm(dim=0))).unsqueeze(-1) * torch.linspace(0, 5, 17)
    window = torch.exp(-0.5 * torch.linspace(0, 5, 17) ** 2)
    error = (angles.cos().mean(1) - window).square() + angles.sin().mean(1).square()
    expected = 2 * torch.trapezoid(error * window, dx=5 / 16).mean()
    found = sigreg(z, seeded(), projections=7)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, z)[0] for value in (found, expected)))


def test_characteristic_function_in_float64():
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=seeded()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: CharacteristicFunction.apply(x, 0.3, 6), (x,))


def test_sigreg_pushes_towards_unit_scale():
    for scale, sign in ((0.3, 1.0), (3.0, -1.0)):
        z = (scale * torch.randn(1, 500, 4, generator=seeded(3))).requires_grad_()
        sigreg(z, seeded()).backward()
        assert torch.sign((-z.grad * z).sum()) == sign  # the step against the gradient grows or shrinks z


def test_prediction_is_the_mean_squared_error():
    assert prediction(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 4.0]]])).item() == 2.5


def test_variance_hinge():
    z = torch.tensor([[0.0, 0.0], [2.0, 0.5]])  # sample variances 2 and 0.125
    expected = 0.5 * (1.0 - math.sqrt(0.125 + 1e-4))
    assert variance(z).item() == pytest.approx(expected, abs=1e-6)


def test_covariance_of_two_equal_dimensions():
    z = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])  # covariance matrix full of 2
    assert covariance(z).item() == pytest.approx((4.0 + 4.0) / 2)
    assert covariance(
        torch.tensor([[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    ).item() == pytest.approx(0.0)


def test_time_similarity_and_straightness():
    line = torch.arange(4.0)[None, :, None] * torch.tensor([1.0, 2.0])
    assert time_similarity(line).item() == pytest.approx((1 + 4) / 2)
    assert straightness(line).item() == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="windows need two steps or more, got 1"):
        straightness(line[:, :2])
    corner = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]])
    assert straightness(corner).item() == pytest.approx(1.0, abs=1e-5)
    back = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])
    assert straightness(back).item() == pytest.approx(2.0, abs=1e-5)


def test_inverse_dynamics():
    assert inverse_dynamics(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 0.0]]])).item() == 0.5
    logits = torch.zeros(1, 1, 1, 4)
    onehot = torch.eye(4)[2].view(1, 1, 1, 4)
    assert inverse_dynamics(logits, onehot, discrete=True).item() == pytest.approx(math.log(4))


SPEC = WorldSpec((1, 16, 16), 1, ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)))


def test_objective_is_the_weighted_sum():
    torch.manual_seed(0)
    weights = {"prediction": 2.0, "sigreg": 0.0, "variance": 3.0, "time_similarity": 0.5}
    world = WorldModel(WorldModelConfig(SPEC, 4, encoder_options={"widths": (4,)}, objective_options=weights))
    pixels = torch.randint(0, 256, (6, 3, 1, 16, 16), generator=seeded(), dtype=torch.uint8)
    batch = Batch(pixels, torch.zeros(6, 2, 2), torch.zeros(6, 2), torch.zeros(6, 2, dtype=torch.bool))
    total, terms = world.eval().loss(batch, seeded())
    assert set(terms) == {"prediction", "variance", "time_similarity"}
    z = world.encode_windows(pixels)
    path = world.rollout(z[:, 0], batch.actions)[:, 0]
    torch.testing.assert_close(terms["prediction"], prediction(path[:, 1:], z[:, 1:]))
    expected = 2.0 * terms["prediction"] + 3.0 * variance(z) + 0.5 * time_similarity(z)
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(sigreg=-1.0), "at least 0"),
        (dict(prediction=0.0, sigreg=0.0), "not all 0"),
        (dict(target="teacher"), "target"),
        (dict(ema_decay=1.0), "ema_decay"),
    ],
)
def test_weights_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        WorldModel(WorldModelConfig(SPEC, 4, encoder_options={"widths": (4,)}, objective_options=settings))


def encoded_with_shared_statistics(norm, first, later):
    shared = SharedStatistics(norm)
    with shared.measured(len(first)):
        norm(first)
    with shared.used():
        return norm(later)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_later_states_are_normalised_by_the_first_states_statistics(momentum):
    """Batch norm with a tiny eps: (later - mean of first) / biased std of first; the running mean is PyTorch's own."""
    norm = torch.nn.BatchNorm1d(1, eps=1e-12, affine=False, momentum=momentum)
    earlier, first = torch.tensor([[10.0], [20.0]]), torch.tensor([[1.0], [5.0]])
    norm(earlier)
    before = norm.running_mean.item()
    later = encoded_with_shared_statistics(norm, first, torch.tensor([[3.0], [7.0]]))
    torch.testing.assert_close(later, torch.tensor([[0.0], [2.0]]))
    share = 0.5 if momentum is None else momentum  # the mean of two batches
    assert norm.running_mean.item() == pytest.approx((1 - share) * before + share * 3.0)
    assert norm.momentum == momentum and norm.training


def encoder_of_frames():
    torch.manual_seed(0)
    spec = WorldSpec((6, 16, 16), 2, ActionSpec("continuous", 1, (-1.0,), (1.0,)))
    options = {"encoder_options": {"widths": (8, 8)}}
    world = WorldModel(WorldModelConfig(spec, 8, encoder="frames", objective="change", **options)).train()
    world.encoder.frame.convolutions[0].measured.fill_(MEASURED)
    return world


def test_windows_and_future_states_of_change_are_normalised_alike_and_as_acting_will_be():
    world = encoder_of_frames()
    world.encoder.norm.momentum = 1.0
    pixels = torch.randint(0, 256, (5, 4, 6, 16, 16), generator=seeded(), dtype=torch.uint8)
    pixels[:, 1:, :3] = pixels[:, :-1, 3:]  # stacks share frames
    ones = torch.ones(5, 3)
    batch = ControlBatch(
        pixels, torch.zeros(5, 3, 1), ones, ones == 0, ones == 1, returns=ones, discounts=ones, ended=ones[:, 0] == 0,
        future=pixels[:, 2],
    )  # fmt: skip
    world.objective.shift = 0
    unrolled = world.objective.unroll(world, batch)
    torch.testing.assert_close(unrolled.future, unrolled.states[:, 2])
    torch.testing.assert_close(unrolled.targets, unrolled.states[:, 1:])
    assert unrolled.states.requires_grad and not unrolled.targets.requires_grad
    world.eval()
    # Training may compute in bfloat16; the unbiased variance of 20 states is 20/19 of the biased one.
    acted = world.encode(pixels[:, 0]) * (20 / 19) ** 0.5
    torch.testing.assert_close(acted, unrolled.path[:, 0], rtol=0, atol=5e-2)


def test_batch_norms_without_running_statistics_normalise_by_their_own_batch():
    norm = torch.nn.BatchNorm1d(1, eps=1e-12, affine=False, track_running_stats=False)
    later = encoded_with_shared_statistics(norm, torch.tensor([[1.0], [5.0]]), torch.tensor([[3.0], [7.0]]))
    torch.testing.assert_close(later, torch.tensor([[-1.0], [1.0]]))


def world_of(objective, latent_dim=4, **options):
    torch.manual_seed(0)
    small = {"widths": (4,)}
    return WorldModel(
        WorldModelConfig(
            SPEC, latent_dim, encoder_options=small, objective=objective, objective_options=options
        )
    )


def test_the_papers_weights_on_the_scale_of_our_terms():
    """LeWorldModel multiplies the statistic by its batch of 128; EB-JEPA averages over off-diagonal entries."""
    assert world_of("lewm").objective.weights["sigreg"] == pytest.approx(0.09 * 128, rel=0.01)
    z = torch.randn(50, 3, 9, generator=seeded())
    flat = z.flatten(0, 1) - z.flatten(0, 1).mean(0)
    c = flat.T @ flat / (len(flat) - 1)
    published = 8.0 * c[~torch.eye(9, dtype=torch.bool)].square().mean()
    ours = world_of("eb_jepa", latent_dim=9).objective.weights["covariance"] * covariance(z)
    torch.testing.assert_close(ours, published)


def test_the_variance_term_acts_before_the_batch_norm():
    """Behind it every standard deviation is 1, so that the hinge is 0 whatever the encoder does."""
    world = world_of("jepa", prediction=0.0, sigreg=0.0, variance=1.0)
    pixels = torch.randint(0, 256, (16, 2, 1, 16, 16), generator=seeded(), dtype=torch.uint8)
    batch = Batch(pixels, torch.zeros(16, 1, 2), torch.zeros(16, 1), torch.zeros(16, 1, dtype=torch.bool))
    entering = world.encoder.project(world.encoder.convolutions(pixels.flatten(0, 1)).float().flatten(1))
    total, _ = world.train().loss(batch, seeded())
    torch.testing.assert_close(total, variance(entering), rtol=0.02, atol=0.02)
    assert total > 0.1 and variance(world.encode_windows(pixels)) < 1e-3
    (gradient,) = torch.autograd.grad(total, world.encoder.project.weight)
    assert gradient.abs().sum() > 0


def test_consistency_spreads_latents_whose_batch_norm_cannot():
    """Pictures that differ in one bright square: the variance before the norm is below its epsilon of 1e-5 at first."""
    spec = WorldSpec((9, 64, 64), 3, ActionSpec("continuous", 1, low=(-1.0,), high=(1.0,)))
    torch.manual_seed(0)
    world = WorldModel(
        WorldModelConfig(spec, 8, encoder="frames", objective="consistency", objective_options={"shift": 0})
    )
    # Standardised pixels are spread from the start.
    world.encoder.frame.convolutions[0].measured.fill_(MEASURED)
    pixels = torch.zeros(16, 3, 9, 64, 64, dtype=torch.uint8)
    for i in range(16):
        pixels[i, :, :, 4 * (i // 4) : 4 * (i // 4) + 4, 4 * (i % 4) : 4 * (i % 4) + 4] = 100
    batch = Batch(pixels, torch.zeros(16, 2, 1), torch.zeros(16, 2), torch.zeros(16, 2, dtype=torch.bool))
    optimiser = torch.optim.Adam(world.parameters(), lr=1e-3)
    found = []
    for _ in range(40):
        found.append(world.encode(pixels[:, 0]).std(0).mean().item())
        loss, _ = world.objective.loss(world, batch, seeded())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert found[0] < 0.5, found
    assert found[-1] > 0.8, found


class TestChange(ObjectiveContract):
    def make_world(self) -> WorldModel:
        return encoder_of_frames()


def test_changes_count_in_units_of_their_spread():
    """One dimension changes a hundred times as much as the other, both are predicted at half their size: (1/2)^2."""
    world = world_of("change", latent_dim=2, consistency=0.0, anti_collapse=0.0, inverse_dynamics=0.0)
    moved = torch.randn(4000, 1, 2, generator=seeded()) * torch.tensor([100.0, 1.0]) * 20
    first = 1000 * torch.randn(4000, 1, 2, generator=seeded(1))
    states = torch.cat([first, first + moved], dim=1)
    path = torch.cat([first, first + moved / 2], dim=1)
    zeros = torch.zeros(4000, 1)
    batch = Batch(
        torch.zeros(4000, 2, 1, 16, 16, dtype=torch.uint8), torch.zeros(4000, 1, 2), zeros, zeros.bool()
    )
    unrolled = Unrolled(path, states[:, 1:], states[:, 1], batch.observations, states)
    total, found = world.objective.shape(world, batch, unrolled, 1.0)
    assert total.item() == found["change"].item() == pytest.approx(0.25, rel=0.02)


def test_an_action_that_sets_a_speed_is_read_from_three_states():
    """``x`` moves by the speed that it had, and the action changes the speed: the second difference of ``x``."""
    spec = WorldSpec((1, 16, 16), 1, ActionSpec("discrete", 2))
    generator = seeded()
    pushes = torch.randint(2, (512, 4), generator=generator)
    speeds = torch.cat([torch.randn(512, 1, generator=generator), 2.0 * pushes - 1], dim=1).cumsum(1)
    places = torch.cat([torch.randn(512, 1, generator=generator), speeds[:, :-1]], dim=1).cumsum(1)[..., None]
    actions, error = torch.nn.functional.one_hot(pushes, 2).float(), {}
    for states in (2, 3):
        torch.manual_seed(0)
        reader = ActionReader(1, spec, states, width=32)
        optimizer = torch.optim.AdamW(reader.parameters(), lr=1e-2)
        for _ in range(200):
            found = reader.error(places, actions)
            descend(found, [optimizer], reader.parameters(), 1.0)
        error[states] = found.item()
    assert error[3] < 0.1 and error[2] > 0.5, error
    with pytest.raises(
        ValueError, match=r"inverse_states=3 needs windows of 2 steps or more, got 1.*inverse_states=2"
    ):
        reader.error(places[:, :2], actions[:, :1])
    with pytest.raises(ValueError, match="two states or more, got inverse_states=1"):
        world_of("change", latent_dim=2, inverse_states=1)


class TestDense(ObjectiveContract):
    def make_world(self) -> WorldModel:
        torch.manual_seed(0)
        spec = WorldSpec((6, 16, 16), 2, ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)))
        options = {"encoder_options": {"widths": (8, 8)}, "dynamics_options": {"width": 16, "depth": 1}}
        return WorldModel(WorldModelConfig(spec, 8, encoder="frames", objective="dense", **options)).train()


@pytest.mark.parametrize("encoder", ["conv", "frames", "keypoints", "vit"])
def test_local_features_of_windows_are_those_of_their_pictures(encoder):
    spec = WorldSpec((6, 16, 16), 2, ActionSpec("continuous", 1, (-1.0,), (1.0,)))
    options = {"vit": {"patch": 4, "width": 16, "heads": 2, "depth": 1}, "keypoints": {"keypoints": 4}}.get(
        encoder, {}
    )
    world = WorldModel(WorldModelConfig(spec, 8, encoder=encoder, encoder_options=options)).eval()
    windows = torch.randint(0, 256, (3, 1, 10, 16, 16), dtype=torch.uint8)[:, 0]
    # Stacks of two frames of three channels: each state shares a frame with the next.
    frames = torch.cat([windows, windows[:, :2]], dim=1).unflatten(1, (4, 3))
    stacks = torch.stack([frames[:, t : t + 2].flatten(1, 2) for t in range(3)], dim=1)
    found = tokens_of(world.encoder, stacks)
    for t in range(3):
        torch.testing.assert_close(found[:, t], world.encoder.tokens(stacks[:, t]), rtol=1e-4, atol=1e-5)
    if encoder == "frames":
        one = world.encoder.frame.tokens(frames.flatten(0, 1)).unflatten(0, (3, 4))
        expected = torch.cat([one[:, 1], one[:, 1] - one[:, 0]], dim=1)
        torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-5)


def two_things(rows: int, seed: int, steps: int = 3) -> tuple[Batch, torch.Tensor]:
    """A large block that moves with the action, and below it a small one that moves by itself; where the latter is."""
    rng = np.random.default_rng(seed)
    block, small = rng.integers(0, 9, rows), rng.integers(0, 7, rows)
    at, frames, actions, places = np.arange(rows), [], [], []
    for _ in range(steps + 1):
        picture = np.zeros((rows, 1, 16, 16), np.uint8)
        for column in range(8):
            picture[at, 0, 0:8, block + column] = 255
        for column in range(2):
            picture[at, 0, 14:16, 2 * small + column] = 255
        push = rng.integers(-1, 2, rows)
        frames.append(picture)
        actions.append(push)
        places.append(small)
        block, small = np.clip(block + push, 0, 8), (small + 1) % 7
    zeros = torch.zeros(rows, steps)
    moves = torch.from_numpy(np.stack(actions[:-1], 1)[..., None]).float()
    return Batch(torch.from_numpy(np.stack(frames, 1)), moves, zeros, zeros.bool()), torch.from_numpy(
        places[0]
    )


def place_read(draw, latent_dim: int, objective: str, **options) -> float:
    """R2 of a probe for where the small thing of ``draw`` is, after 200 updates."""
    spec = WorldSpec((1, 16, 16), 1, ActionSpec("continuous", 1, (-1.0,), (1.0,)))
    torch.manual_seed(0)
    world = WorldModel(
        WorldModelConfig(
            spec, latent_dim, encoder_options={"widths": (8, 16)}, dynamics_options={"width": 32, "depth": 1},
            objective=objective, objective_options=options,
        )
    ).train()  # fmt: skip
    optimizer = torch.optim.Adam(world.parameters(), lr=2e-3)
    for update in range(200):
        loss, _ = world.loss(draw(64, update)[0], None)
        descend(loss, [optimizer], world.parameters(), 1.0)
        world.after_update()
    batch, place = draw(1000, 10_000)
    z = world.eval().encode(batch.pixels[:, 0]).detach()
    target = torch.nn.functional.one_hot(place, 7).float()
    probe = fit_mlp_probe(z[:600], target[:600], torch.Generator().manual_seed(0), steps=300)
    return float(r2_score(probe(z[600:]), target[600:]).mean())


def test_dense_prediction_reads_a_small_thing_beside_a_large_one():
    read = {name: place_read(two_things, 8, name, sigreg=1.0) for name in ("dense", "lewm")}
    assert read["dense"] > read["lewm"] + 0.2, read


def goal_and_tip(rows: int, seed: int, steps: int = 3) -> tuple[Batch, torch.Tensor]:
    """A large block that stands still, and below it a small one that the action moves; where the latter is."""
    rng = np.random.default_rng(seed)
    goal, tip, at = rng.integers(0, 9, rows), rng.integers(0, 7, rows), np.arange(rows)
    frames, actions, first = [], [], tip
    for _ in range(steps + 1):
        picture = np.zeros((rows, 1, 16, 16), np.uint8)
        for column in range(8):
            picture[at, 0, 0:10, goal + column] = 255
        for column in range(2):
            picture[at, 0, 14:16, 2 * tip + column] = 80
        push = rng.integers(-1, 2, rows)
        frames.append(picture)
        actions.append(push)
        tip = np.clip(tip + push, 0, 6)
    zeros = torch.zeros(rows, steps)
    moves = torch.from_numpy(np.stack(actions[:-1], 1)[..., None]).float()
    return Batch(torch.from_numpy(np.stack(frames, 1)), moves, zeros, zeros.bool()), torch.from_numpy(first)


def test_change_reads_what_moves_beside_what_stands_still():
    read = {name: place_read(goal_and_tip, 4, name, shift=0) for name in ("change", "consistency")}
    assert read["change"] > 0.8 and read["consistency"] < 0.3, read


def test_an_encoder_without_local_features_is_refused():
    spec = WorldSpec(None, 1, ActionSpec("continuous", 1, (-1.0,), (1.0,)), parts=(("observation", (3,)),))
    with pytest.raises(ValueError, match=r"needs one picture and an encoder with tokens"):
        WorldModel(WorldModelConfig(spec, 8, objective="dense"))
    pictures = WorldSpec((1, 16, 16), 1, ActionSpec("continuous", 1, (-1.0,), (1.0,)))
    with pytest.raises(ValueError, match="dense_decay must lie in"):
        WorldModel(WorldModelConfig(pictures, 8, objective="dense", objective_options={"dense_decay": 1.0}))
