"""Dynamics that draw futures: contract, known distributions, noise levels, caches and errors."""

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from jepa_rl import (
    ActionSpec,
    Episode,
    EpisodeStore,
    TrainConfig,
    WindowSampler,
    WorldModel,
    WorldModelConfig,
    WorldSpec,
    fit,
)
from jepa_rl.agents import CEM
from jepa_rl.dynamics import (
    EnsembleDynamics,
    FlowDynamics,
    FlowNetwork,
    FlowSampling,
    FlowTraining,
    HeldActions,
    MixtureDynamics,
    energy_score,
    is_markov,
    schedule,
)
from jepa_rl.dynamics.flow.settings import OPTIONS
from jepa_rl.risk import CVaR, expected_cost
from jepa_rl.testing import DynamicsContract, seeded


def as_if_trained(model):
    """Heads and modulations start at zero; random ones let everything matter."""
    for name, weight in model.named_parameters():
        if "modulation" in name or "head" in name or "nearness" in name:
            torch.nn.init.normal_(weight, std=0.2, generator=seeded(len(name)))
    if isinstance(model, FlowDynamics):
        model.average.load_state_dict(model.network.state_dict())
    return model.eval()


def make_flow(context=1, **options):
    torch.manual_seed(0)
    return as_if_trained(FlowDynamics(6, 2, width=32, depth=2, heads=4, context=context, **options))


class TestFlowDynamics(DynamicsContract):
    def make_dynamics(self):
        return make_flow()


class TestFlowDynamicsWithMemory(DynamicsContract):
    def make_dynamics(self):
        return make_flow(context=3, evaluations=2)


class TestEnsembleDynamics(DynamicsContract):
    def make_dynamics(self):
        torch.manual_seed(0)
        return EnsembleDynamics(6, 2, members=3, width=16).eval()


class TestMixtureDynamics(DynamicsContract):
    differentiable = True

    def make_dynamics(self):
        torch.manual_seed(0)
        return MixtureDynamics(6, 2, width=16).eval()


# -- noise levels and caches ------------------------------------------------------------------------


@pytest.mark.parametrize("evaluations", [1, 2, 3])
@pytest.mark.parametrize(("context", "shift"), [(1, 1.0), (2, 1.0), (4, 1.0), (2, 0.5)])
def test_the_cache_changes_nothing(context, shift, evaluations):
    """State by state with cached keys, against the whole path in every evaluation."""
    model = make_flow(context, evaluations=evaluations, shift=shift)
    z, actions = torch.randn(5, 6, generator=seeded(1)), torch.randn(5, 6, 2, generator=seeded(2))
    with torch.no_grad():
        drawn = model.rollout(z, actions, futures=3, generator=seeded(3))[:, :, 1:]
        noise = torch.randn(3, 6, 6, generator=seeded(3)).expand(5, -1, -1, -1)
        whole = model.denoise(z, actions, noise, schedule(6, evaluations, shift=shift))
    torch.testing.assert_close(drawn, whole, rtol=1e-4, atol=1e-4)


def test_clean_states_come_back_untouched():
    model = make_flow(context=3)
    z, actions = torch.randn(4, 6), torch.randn(4, 5, 2)
    path = torch.randn(4, 2, 5, 6)
    levels = schedule(5, 4, lag=0.0)
    levels[:, [0, 3]] = 0.0  # given
    with torch.no_grad():
        found = model.denoise(z, actions, path, levels)
    torch.testing.assert_close(found[:, :, [0, 3]], path[:, :, [0, 3]], rtol=0, atol=0)
    assert (found[:, :, [1, 2, 4]] != path[:, :, [1, 2, 4]]).all()


def test_schedules_lead_from_noise_to_clean_and_the_near_future_first():
    for lag, rows in ((0.0, 5), (0.5, 11), (1.0, 17)):
        levels = schedule(4, 4, lag)
        assert levels.shape == (rows, 4)
        assert (levels[0] == 1).all() and (levels[-1] == 0).all() and (levels.diff(dim=0) <= 0).all()
        assert (levels.diff(dim=1) >= 0).all()
    assert ((schedule(4, 4, 1.0) > 0) & (schedule(4, 4, 1.0) < 1)).sum(1).max() == 1  # one after the other
    with pytest.raises(ValueError, match="lag"):
        schedule(4, 4, 1.5)


def test_rows_in_parts_are_the_rows_at_once(monkeypatch):
    model = make_flow(context=2)
    z, actions = torch.randn(40, 6), torch.randn(40, 4, 2)
    with torch.no_grad():
        once = model.rollout(z, actions, futures=4, generator=seeded(0))
        monkeypatch.setattr("jepa_rl.dynamics.base.AT_ONCE", 7 * 4 * 32)
        parts = model.rollout(z, actions, futures=4, generator=seeded(0))
    torch.testing.assert_close(parts, once, rtol=1e-4, atol=1e-4)


MEMORY = """
import resource, torch
from jepa_rl.dynamics import FlowDynamics
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB
flow = FlowDynamics(4, 2, width=64).eval()
z, actions = torch.zeros(600, 4), torch.zeros(600, 12, 2)
with torch.no_grad():
    flow.rollout(z[:4], actions[:4], evaluations=50)
    before = peak()
    flow.rollout(z, actions, evaluations=50)
    print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="units of ru_maxrss")
def test_a_rollout_of_many_evaluations_holds_little_at_once():
    """What the actions do to 50 evaluations of 12 states of 600 rows would be 1.2 GB."""
    found = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 500, found.stdout


def test_jumps_behind_noisy_states_are_parts_of_the_plain_flow():
    """Few-step jumps are trained behind clean states alone."""
    model = make_flow(context=2)
    z, actions, noise = torch.randn(3, 6), torch.randn(3, 2, 2), torch.randn(3, 2, 2, 6)
    levels = schedule(2, 2, lag=0.0)
    with torch.no_grad():
        found = model.denoise(z, actions, noise, levels)
        jumps, flow = model.settings, replace(model.settings, training=FlowTraining(energy=0.0))
        model.settings = flow
        plain = model.denoise(z, actions, noise, levels)
    torch.testing.assert_close(found[:, :, 1][..., 0] == plain[:, :, 1][..., 0], torch.zeros(3, 2).bool())
    # The second state differs by what the first one became; behind the same first one it does not.
    given = torch.cat([found[:, :, :1], noise[:, :, 1:]], dim=2)
    levels[:, 0] = 0.3
    with torch.no_grad():
        behind_noisy = model.denoise(z, actions, given, levels)[:, :, 1]
        model.settings = jumps
        again = model.denoise(z, actions, given, levels)[:, :, 1]
    torch.testing.assert_close(behind_noisy, again, rtol=0, atol=0)


# -- distributions with known answers ---------------------------------------------------------------


def train(model, draw, updates=400, rate=3e-3, batch=128):
    """``draw(batch, generator)`` gives windows of latents and actions."""
    generator = seeded(0)
    model.train().observe(*draw(4000, generator))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    schedule_ = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, updates)
    for _ in range(updates):
        loss, _ = model.loss(*draw(batch, generator), generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule_.step()
        getattr(model, "after_update", lambda: None)()
    return model.eval()


def coin(batch, generator):
    """A step of one to the left or to the right, to the right with probability (1 + action) / 2."""
    actions = 2 * torch.rand(batch, 2, 1, generator=generator) - 1
    right = torch.rand(batch, 2, 1, generator=generator) < (1 + actions) / 2
    first = torch.randn(batch, 1, 1, generator=generator)
    moves = torch.where(right, 1.0, -1.0) + 0.05 * torch.randn(batch, 2, 1, generator=generator)
    return torch.cat([first, first + moves.cumsum(1)], dim=1), actions


COINS = {
    "flow": lambda: FlowDynamics(1, 1, width=32, depth=1, average_rate=0.02),
    "flow, low noise": lambda: FlowDynamics(
        1, 1, width=32, depth=1, average_rate=0.02, shift=0.5, low_noise=2.0
    ),
    "mixture": lambda: MixtureDynamics(1, 1, width=32),
}


@pytest.mark.parametrize("kind", COINS)
def test_a_coin_falls_as_often_as_it_should_and_never_on_its_edge(kind):
    torch.manual_seed(0)
    quick = {"updates": 900} if kind == "mixture" else {"updates": 300, "rate": 8e-3, "batch": 256}
    model = train(COINS[kind](), coin, **quick)
    actions = torch.tensor([-0.8, -0.4, 0.0, 0.4, 0.8])[:, None, None]
    with torch.no_grad():
        moves = model.rollout(torch.zeros(5, 1), actions, futures=2000, generator=seeded(5))[:, :, 1, 0]
    torch.testing.assert_close((moves > 0).float().mean(1), (1 + actions[:, 0, 0]) / 2, atol=0.08, rtol=0)
    assert ((moves.abs() - 1).abs() > 0.5).float().mean() < 0.05


def test_the_few_step_sampler_knows_the_coin_in_one_evaluation():
    torch.manual_seed(0)
    model = train(FlowDynamics(1, 1, width=32, depth=1, average_rate=0.02), coin)
    plain = train(FlowDynamics(1, 1, width=32, depth=1, energy=0.0, average_rate=0.02), coin)
    z, actions = torch.zeros(1, 1), torch.zeros(1, 1, 1)
    truth = torch.tensor([[1.0], [-1.0]])[None].repeat(1, 500, 1) + 0.05 * torch.randn(
        1, 1000, 1, generator=seeded(1)
    )
    with torch.no_grad():
        scores = {
            k: energy_score(model.rollout(z, actions, futures=1000, generator=seeded(2), evaluations=k)[:, :, 1],
                            truth[:, j]).item()
            for j, k in enumerate((1, 4))
        }  # fmt: skip
        moves = plain.rollout(z, actions, futures=1000, generator=seeded(2), evaluations=1)[:, :, 1, 0]
    assert scores[1] < 0.65 and scores[4] < 0.65  # two points, one hit: 1 - 1 / 2
    assert (
        (moves.abs() - 1).abs() > 0.2
    ).float().mean() > 0.6  # one step of the plain flow lands between them


@pytest.mark.parametrize("windows", [1, 2, 4])
def test_learns_from_fewer_windows_than_numbers_of_evaluations_as_from_more(windows):
    model = make_flow(samples=4).train()
    terms = [
        model.loss(torch.zeros(windows, 2, 6), torch.zeros(windows, 1, 2), seeded(i))[1] for i in range(60)
    ]
    found = torch.stack([term["energy"] for term in terms]).detach()
    model.eval()
    with torch.no_grad():  # of the sampler itself, whose average still is the weights
        expected = [
            energy_score(model.rollout(torch.zeros(1, 6), torch.zeros(1, 1, 2), futures=4000, evaluations=k)[:, :, 1],
                         torch.zeros(1, 6))
            for k in (1, 2, 4)
        ]  # fmt: skip
    torch.testing.assert_close(found.mean(), torch.cat(expected).mean(), atol=0.1, rtol=0.1)


def linear(batch, generator, steps=3):
    """z' = A z + B a + noise."""
    z = torch.randn(batch, 1, 2, generator=generator)
    actions = torch.randn(batch, steps, 1, generator=generator)
    path = [z[:, 0]]
    for action in actions.unbind(1):
        path.append(path[-1] @ A.T + action @ B.T + 0.3 * torch.randn(batch, 2, generator=generator))
    return torch.stack(path, 1), actions


A = 0.9 * torch.tensor([[math.cos(0.6), -math.sin(0.6)], [math.sin(0.6), math.cos(0.6)]])  # it rotates
B = torch.tensor([[0.5], [0.0]])
START = torch.tensor([1.0, -0.5])


def assert_moments(paths, actions):
    """Mean and covariance of every state of paths "n h+1 2" from START, in closed form."""
    mean, covariance = START, torch.zeros(2, 2)
    for i, action in enumerate(actions):
        mean = A @ mean + B @ action
        covariance = A @ covariance @ A.T + 0.09 * torch.eye(2)
        torch.testing.assert_close(paths[:, i + 1].mean(0), mean, atol=0.12, rtol=0)
        torch.testing.assert_close(torch.cov(paths[:, i + 1].T), covariance, atol=0.06, rtol=0.2)


def test_several_steps_of_a_rotating_gaussian_have_the_closed_forms_mean_and_covariance():
    torch.manual_seed(0)
    model = train(FlowDynamics(2, 1, width=48, depth=1, average_rate=0.02), linear, updates=350)
    z, actions = START[None], torch.tensor([[[0.5], [-1.0], [0.3]]])
    with torch.no_grad():
        paths = model.rollout(z, actions, futures=4000, generator=seeded(1))[0]
    assert_moments(paths, actions[0])


@pytest.fixture(scope="module")
def rotating():
    """A flow with memory that learnt three steps of ``linear``."""
    torch.manual_seed(0)
    flow = FlowDynamics(2, 1, width=48, context=3, average_rate=0.02, energy=0.0)
    return train(flow, linear, updates=800)


@pytest.mark.parametrize("lag", [1.0, 0.5, 0.0])
def test_paths_drawn_in_any_order_have_the_closed_forms_moments(rotating, lag):
    """One state after the other, as a pyramid and all at once."""
    rotating.set_sampling(lag=lag, evaluations=12)
    z, actions = START[None], torch.tensor([[[0.5], [-1.0], [0.3]]])
    with torch.no_grad():
        paths = rotating.rollout(z, actions, futures=3000, generator=seeded(1))[0]
    assert_moments(paths, actions[0])
    if lag == 0.0:
        return  # one that knows nothing of the later states: see ``schedule``
    step = paths[:, 2] - paths[:, 1] @ A.T - B @ actions[0, 1]  # states of one path belong together
    torch.testing.assert_close(torch.cov(step.T), 0.09 * torch.eye(2), atol=0.04, rtol=0)


def drift(batch, generator):
    """A step to a side that a coin chooses once: only who remembers the first step knows the second."""
    side = torch.where(torch.rand(batch, 1, 1, generator=generator) < 0.5, 1.0, -1.0)
    first = 5 * torch.randn(batch, 1, 1, generator=generator)
    return first + side * torch.arange(3.0)[None, :, None], torch.zeros(batch, 2, 1)


def test_a_memory_of_two_states_goes_on_in_the_direction_that_it_took():
    same = {}
    for context in (1, 2):
        torch.manual_seed(0)
        flow = FlowDynamics(1, 1, width=64, depth=1, context=context, average_rate=0.02)
        model = train(flow, drift, rate=5e-3)
        with torch.no_grad():
            path = model.rollout(torch.zeros(1, 1), torch.zeros(1, 2, 1), futures=500, generator=seeded(1))
        moves = path[0, :, :, 0].diff(dim=1).sign()
        assert 0.4 < (moves[:, 0] > 0).float().mean() < 0.6
        same[context] = float((moves[:, 0] == moves[:, 1]).float().mean())
    assert same[2] > 0.97 and same[1] < 0.7, same


def test_guidance_without_a_classifier_asks_for_more_of_what_the_action_means():
    """Behind action a the mean is a; without it 0. Guidance 2 goes to 2a, and 1 is the plain model."""

    def shifted_normal(batch, generator):
        actions = torch.where(torch.rand(batch, 1, 1, generator=generator) < 0.5, 0.5, -0.5)
        moves = actions + 0.5 * torch.randn(batch, 1, 1, generator=generator)
        return torch.cat([torch.zeros(batch, 1, 1), moves], dim=1), actions

    torch.manual_seed(0)
    model = train(FlowDynamics(1, 1, width=32, depth=1, average_rate=0.02, drop=0.3), shifted_normal)
    z, actions = torch.zeros(2, 1), torch.tensor([0.5, -0.5])[:, None, None]
    means = {}
    for guidance in (0.0, 1.0, 2.0):
        model.set_sampling(guidance=guidance)
        with torch.no_grad():
            means[guidance] = model.rollout(z, actions, futures=2000, generator=seeded(1))[:, :, 1, 0].mean(1)
    torch.testing.assert_close(means[0.0], torch.zeros(2), atol=0.12, rtol=0)
    torch.testing.assert_close(means[1.0], actions[:, 0, 0], atol=0.1, rtol=0)
    assert means[2.0][0] > 0.75 and means[2.0][1] < -0.75, means


def test_the_mixtures_nats_are_those_of_a_normal_distribution():
    """An untrained head says a normal law of its own mean and spread: its negative log likelihood is in every book."""
    torch.manual_seed(0)
    model = MixtureDynamics(3, 2, components=1, width=16)
    torch.nn.init.zeros_(model.out.weight)
    torch.nn.init.zeros_(model.out.bias)  # mean: the state before; standard deviation: 1
    latents, actions = torch.randn(50, 4, 3, generator=seeded(1)), torch.zeros(50, 3, 2)
    law = torch.distributions.Normal(latents[:, :-1], 1.0)
    expected = -law.log_prob(latents[:, 1:]).mean()
    loss, terms = model.loss(latents, actions)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms["nll"], expected)


def test_an_ensemble_answers_the_mean_of_the_coin():
    torch.manual_seed(0)
    model = train(EnsembleDynamics(1, 1, members=2, width=24), coin, updates=200)
    with torch.no_grad():
        moves = model.rollout(torch.zeros(1, 1), torch.zeros(1, 1, 1), futures=4)[0, :, 1, 0]
    assert moves.abs().max() < 0.4
    torch.testing.assert_close(moves[:2], moves[2:])


def test_the_energy_score_of_a_normal_distribution_is_its_crps():
    """CRPS of N(0, 1) at y (Gneiting and Raftery 2007, eq. 5)."""
    samples = torch.randn(1, 4000, 1, generator=seeded(0), dtype=torch.float64)
    for y in (0.0, 1.5):
        cdf, pdf = 0.5 * (1 + math.erf(y / 2**0.5)), math.exp(-y * y / 2) / math.sqrt(2 * math.pi)
        expected = y * (2 * cdf - 1) + 2 * pdf - 1 / math.sqrt(math.pi)
        found = energy_score(samples, torch.tensor([[y]], dtype=torch.float64))
        assert abs(found.item() - expected) < 0.03


# -- world models with other dynamics ---------------------------------------------------------------


def make_world(seed=0):
    torch.manual_seed(seed)
    spec = WorldSpec((3, 16, 16), 1, ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)))
    return WorldModel(WorldModelConfig(spec, latent_dim=6)).eval()


def test_dynamics_are_swapped_behind_the_same_encoder_and_kept(tmp_path):
    world = make_world()
    flow = world.with_dynamics("flow", width=32, context=2)
    as_if_trained(flow.dynamics)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    z, actions = world.encode(pixels), torch.randn(2, 3, 2)
    torch.testing.assert_close(flow.encode(pixels), z)
    paths = flow.rollout(z, actions, futures=3, generator=seeded(0))
    assert paths.shape == (2, 3, 4, 6)
    flow.save_dynamics(tmp_path / "flow.safetensors")
    again = world.load_dynamics(tmp_path / "flow.safetensors")
    torch.testing.assert_close(again.rollout(z, actions, futures=3, generator=seeded(0)), paths)
    flow.save(tmp_path / "model.safetensors")
    loaded = WorldModel.load(tmp_path / "model.safetensors")
    torch.testing.assert_close(loaded.rollout(z, actions, futures=3, generator=seeded(0)), paths)


def test_dynamics_of_another_encoder_are_refused(tmp_path):
    make_world().with_dynamics("flow", width=32).save_dynamics(tmp_path / "flow.safetensors")
    with pytest.raises(ValueError, match="another encoder"):
        make_world(seed=1).load_dynamics(tmp_path / "flow.safetensors")


def lamps(sides, rng):
    """Pictures of a lamp to the left (-1) or to the right (1), and some noise."""
    pictures = rng.integers(0, 40, (len(sides), 3, 16, 16))
    pictures[sides > 0, :, :, 8:] += 180
    pictures[sides < 0, :, :, :8] += 180
    return pictures.astype(np.uint8)


def test_futures_are_learned_beside_the_encoder_from_the_episode_store(tmp_path):
    """The right lamp burns next with probability (1 + action) / 2, whatever burns now."""
    rng = np.random.default_rng(0)
    store = EpisodeStore.create(
        tmp_path / "episodes", (3, 16, 16), ActionSpec("continuous", 1, (-1.0,), (1.0,))
    )
    for _ in range(100):
        actions = rng.uniform(-1, 1, (12, 1)).astype(np.float32)
        sides = np.where(rng.random(13) < np.append(0.5, (1 + actions) / 2), 1, -1)
        store.append(Episode(frames=lamps(sides, rng), actions=actions, rewards=np.zeros(12, np.float32)))
    torch.manual_seed(0)
    objective = {"sigreg": 1.0, "inverse_dynamics": 4.0, "target": "stop_gradient"}
    options = dict(width=32, average_rate=0.02)
    config = WorldModelConfig(
        store.spec, latent_dim=4, dynamics="flow", dynamics_options=options, objective_options=objective
    )
    world = WorldModel(config)
    training = TrainConfig(steps=300, batch_size=64, learning_rate=2e-3)
    fit(world, WindowSampler(store, 2), training, tmp_path / "run", progress=False)
    world.eval()
    actions = torch.tensor([-0.8, -0.4, 0.0, 0.4, 0.8])[:, None, None]
    with torch.no_grad():
        left, right = (world.encode(torch.from_numpy(lamps(np.full(50, side), rng))) for side in (-1, 1))
        drawn = world.rollout(left[:5], actions, futures=500, generator=seeded(0))[:, :, 1]
    axis = right.mean(0) - left.mean(0)
    place = (drawn - left.mean(0)) @ axis / axis.square().sum()  # 0: the left lamp burns, 1: the right one
    truth = (1 + actions[:, 0, 0]) / 2
    torch.testing.assert_close((place > 0.5).float().mean(1), truth, atol=0.2, rtol=0)
    assert ((place - 0.5).abs() < 0.25).float().mean() < 0.25  # the average of both is rare
    assert (world.dynamics.change != 1).all() and (world.dynamics.action_std - 3**-0.5).abs().max() < 0.1


@pytest.mark.parametrize("kind", ["flow", "mixture", "ensemble"])
def test_a_world_model_trains_with_them_from_pixels(kind):
    from jepa_rl import Batch

    world = make_world().with_dynamics(kind, width=32).train()
    batch = Batch(
        torch.randint(0, 256, (8, 4, 3, 16, 16), dtype=torch.uint8), torch.randn(8, 3, 2), torch.zeros(8, 3),
        torch.zeros(8, 3, dtype=torch.bool),
    )  # fmt: skip
    loss, _ = world.loss(batch, seeded(0))
    loss.backward()
    world.after_update()
    gradients = [p.grad for p in world.encoder.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in gradients) and any(grad.any() for grad in gradients)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in world.dynamics.parameters())


# -- settings -----------------------------------------------------------------------------------------


def test_settings_by_name_and_in_groups_are_the_same():
    """Flat names are those of files; groups may come as JSON, too, and flat names win over them."""
    flat = dict(width=16, heads=2, context=2, energy=4.0, shift=0.5, drop=0.1, evaluations=2, guidance=1.5)
    groups = dict(
        network=FlowNetwork(width=16, heads=2, context=2),
        training=FlowTraining(energy=4.0, shift=0.5, drop=0.1),
        sampling=FlowSampling(evaluations=2, guidance=1.5),
    )
    made = [
        FlowDynamics(6, 2, **flat),
        FlowDynamics(6, 2, **groups),
        FlowDynamics(6, 2, **{name: asdict(group) for name, group in groups.items()}),
        FlowDynamics(6, 2, **groups | {"network": FlowNetwork(heads=2, context=2)}, width=16),
    ]
    assert all(model.settings == made[0].settings for model in made)
    again = FlowDynamics(6, 2, **json.loads(json.dumps(made[0].settings.flat())))
    assert again.settings == made[0].settings
    assert OPTIONS["width"] == "network" and OPTIONS["energy"] == "training" and OPTIONS["lag"] == "sampling"


@pytest.mark.parametrize("groups", [False, True])
def test_a_world_model_comes_back_from_disk_with_either(groups, tmp_path):
    given = dict(network=FlowNetwork(width=8, heads=2)) if groups else dict(width=8, heads=2)
    make_world().with_dynamics("flow", **given).save(tmp_path / "world.safetensors")
    loaded = WorldModel.load(tmp_path / "world.safetensors")
    assert loaded.dynamics.settings.network == FlowNetwork(width=8, heads=2)


def test_noise_of_the_context_of_old_files_is_refused_in_words_and_its_absence_is_not():
    assert FlowDynamics(6, 2, context_noise=0.0).settings == FlowDynamics(6, 2).settings
    with pytest.raises(ValueError, match=r"context_noise=0.1 .* is gone.*Train anew without"):
        make_world().with_dynamics("flow", context_noise=0.1)


def test_a_flow_is_markov_where_a_state_is_drawn_from_the_one_before_alone():
    assert is_markov(FlowDynamics(6, 2)) and is_markov(make_world().with_dynamics("flow"))
    for memory in ({"context": 2}, {"lag": 0.5}):
        assert not is_markov(FlowDynamics(6, 2, **memory))
        assert not is_markov(HeldActions(make_world().with_dynamics("flow", **memory), 1))


# -- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_flow, lambda: EnsembleDynamics(6, 2), lambda: MixtureDynamics(6, 2)])
def test_impossible_questions_are_refused(make):
    model, z, actions = make(), torch.zeros(2, 6), torch.zeros(2, 3, 2)
    with pytest.raises(ValueError, match="futures must be at least 1"):
        model.rollout(z, actions, futures=0)
    with pytest.raises(ValueError, match="for each of them"):
        model.rollout(z, torch.zeros(2, 3, 3))
    for wrong in ((z * torch.nan, actions), (z, actions * torch.inf)):
        with pytest.raises(ValueError, match="NaN"):
            model.rollout(*wrong)
    for wrong in ((z[0], actions), (z, actions[:1]), (z, actions[:, :0])):
        with pytest.raises(ValueError, match="for each of them"):
            model.rollout(*wrong)


def test_a_point_world_model_refuses_the_same_questions():
    world, z, actions = make_world(), torch.zeros(2, 6), torch.zeros(2, 3, 2)
    with pytest.raises(ValueError, match="futures must be at least 1"):
        world.rollout(z, actions, futures=0)
    with pytest.raises(ValueError, match="NaN"):
        world.rollout(z * torch.nan, actions)
    with pytest.raises(ValueError, match="for each of them"):
        world.rollout(z, actions[:1])


def test_states_far_beyond_the_training_horizon_have_a_position():
    """Positions count back from each state, so that no path is too long."""
    model = make_flow(context=3)
    with torch.no_grad():
        path = model.rollout(torch.zeros(1, 6), torch.zeros(1, 300, 2), futures=2, generator=seeded(0))
    assert path.shape == (1, 2, 301, 6) and torch.isfinite(path).all()


def test_impossible_settings_and_levels_are_refused():
    for wrong in (
        {"width": 0},
        {"heads": 5},
        {"shift": 0.0},
        {"low_noise": -1.0},
        {"samples": 1},
        {"average_rate": 0.0},
        {"context": 0},
        {"lag": 1.5},
        {"drop": -0.1},
        {"guidance": 2.0},
    ):
        with pytest.raises(ValueError, match="must"):
            FlowDynamics(6, 2, **wrong)
    with pytest.raises(TypeError, match=r"takes no option 'breadth', only \['average_rate', 'context'"):
        FlowDynamics(6, 2, breadth=3)
    for make in (EnsembleDynamics, MixtureDynamics):
        with pytest.raises(ValueError, match="at least 1"):
            make(6, 2, 0)
    model = make_flow()
    with pytest.raises(ValueError, match="evaluations"):
        model.rollout(torch.zeros(1, 6), torch.zeros(1, 2, 2), evaluations=0)
    with pytest.raises(ValueError, match="levels"):
        model.denoise(
            torch.zeros(1, 6), torch.zeros(1, 2, 2), torch.zeros(1, 1, 2, 6), torch.tensor([[0.0], [1.0]])
        )
    with pytest.raises(ValueError, match="never rise"):
        rising = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        model.denoise(torch.zeros(1, 6), torch.zeros(1, 2, 2), torch.zeros(1, 1, 2, 6), rising)


def test_a_careful_planner_shuns_the_bet_that_a_neutral_one_takes():
    """Staying put costs 1; the coin's right side costs -4, its left side 3: -0.5 by the mean, 3 by the worse half."""
    torch.manual_seed(0)
    model = train(FlowDynamics(1, 1, width=32, average_rate=0.02), bet)

    def cost(latents, actions):
        x = latents[:, :, 1, 0]
        return torch.where(x > 0.75, -4.0, torch.where(x < -0.75, 3.0, 1.0))

    plan = {}
    for name, risk in (("neutral", expected_cost), ("careful", CVaR(0.5))):
        planner = CEM(1, samples=64, elites=8, futures=128, risk=risk)
        plan[name] = planner.plan(model, cost, torch.zeros(1, 1), generator=seeded(0))
    assert plan["neutral"].actions.item() > 0.3 and plan["careful"].actions.item() < 0.1
    assert plan["careful"].branches.shape == (1, 128, 2, 1)


def bet(batch, generator):
    """Positive actions throw a coin of height 1.5, others stay."""
    actions = 2 * torch.rand(batch, 1, 1, generator=generator) - 1
    side = torch.where(torch.rand(batch, 1, 1, generator=generator) < 0.5, 1.5, -1.5)
    moves = torch.where(actions > 0.2, side, 0.0) + 0.05 * torch.randn(batch, 1, 1, generator=generator)
    first = 0.1 * torch.randn(batch, 1, 1, generator=generator)
    return torch.cat([first, first + moves], dim=1), actions
