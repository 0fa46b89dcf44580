"""Parts that do not keep their contract: each is refused by name, with the fix, before anything is written."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from jepa_rl import TrainConfig, WindowSampler, WorldModel, WorldModelConfig, fit
from jepa_rl.agents import CEM, JEPAMPC, MPCAgent
from jepa_rl.agents.planners import BasePlanner
from jepa_rl.control import ControlConfig
from jepa_rl.costs import GoalCost
from jepa_rl.dynamics import TrainableDynamics
from jepa_rl.envs import PixelObservation, collect
from jepa_rl.objectives import Objective
from jepa_rl.registry import DYNAMICS, ENCODERS, OBJECTIVES, Registry

NAN = float("nan")


@pytest.fixture(autouse=True)
def registers(monkeypatch):
    """What a test registers is forgotten after it."""
    for registry in (ENCODERS, DYNAMICS, OBJECTIVES):
        monkeypatch.setattr(registry, "_parts", dict(registry._parts))


def rooms():
    return PixelObservation(gym.make("jepa_rl/TwoRooms-v0", max_episode_steps=15), size=16, frames=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return collect(rooms(), tmp_path_factory.mktemp("bad") / "episodes", episodes=4, seed=0, progress=False)


class Linear(nn.Module):
    def __init__(self, channels, size, latent_dim, change=lambda z: z):
        super().__init__()
        self.latent_dim, self.change = latent_dim, change
        self.layer = nn.Linear(channels * size**2, latent_dim)

    def forward(self, pixels):
        return self.change(self.layer(pixels.flatten(1) / 255))


class Still(TrainableDynamics):
    """The state stays; ``change`` is made of the path."""

    def __init__(self, latent_dim, action_dim, change=lambda path: path):
        super().__init__(latent_dim, action_dim)
        self.change = change

    def rollout(self, z, actions, *, futures=1, generator=None):
        return self.change(z[:, None, None].repeat(1, 1, actions.shape[1] + 1, 1))


class Spread(Objective):
    """Latents of unit spread; ``change`` is made of the loss."""

    def __init__(self, change=lambda loss: (loss, {"spread": loss})):
        super().__init__()
        self.change = change

    def loss(self, world, batch, generator=None):
        return self.change((world.encode_windows(batch.observations).std(0) - 1).square().mean())


def build(store, **config):
    return WorldModel(WorldModelConfig(store.spec, 8, **config))


# -- names and options ------------------------------------------------------------------------------


# Of the JEPA objectives, whether they name their options or hand them on: none that the spec gives.
ACCEPTED = r"takes no option 'sigregg', only \['covariance', 'ema_decay', .*'sigreg', .*'variance'\]$"


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"encoder": Linear}, TypeError, "encoder must be a registered name.*got the class Linear"),
        ({"objective": Spread()}, TypeError, "objective must be a registered name.*got Spread"),
        ({"objective": {"sigreg": 1.0}}, TypeError, "got dict; .*objective_options"),
        ({"dynamics_options": None}, TypeError, "dynamics_options must be a dict.*got NoneType"),
        ({"encoder_options": {"channels": 5}}, ValueError, "gets channels=2 from the spec.*leave it out"),
        ({"encoder_options": {"depht": 5}}, ValueError, r"encoder 'conv' takes no option 'depht', only \["),
        *(
            ({"objective": name, "objective_options": {"sigregg": 1}}, ValueError, f"objective '{name}' {ACCEPTED}")
            for name in ("jepa", "lewm", "eb_jepa", "ema")
        ),
        ({"dynamics": "flow", "dynamics_options": {"witdh": 8}}, ValueError, "dynamics 'flow'.*'witdh', only"),
        ({"encoder": "mine"}, ValueError, r"import the module that registers it, with @register_encoder\('mine'\)"),
    ],
)  # fmt: skip
def test_names_and_options(store, config, error, words):
    with pytest.raises(error, match=words):
        build(store, **config)


def test_an_argument_that_is_missing_is_named_with_the_options(store):
    @ENCODERS.register("deep")
    class Deep(Linear):
        def __init__(self, channels, size, latent_dim, depth):
            super().__init__(channels, size, latent_dim)

    with pytest.raises(
        ValueError, match=r"encoder 'deep' cannot be built with encoder_options=\{\}: .*'depth'"
    ):
        build(store, encoder="deep")


def test_what_is_registered_is_a_named_module():
    registry = Registry("encoder")
    with pytest.raises(TypeError, match=r'a name is missing: write @register_encoder\("mine"\)'):
        registry.register(Linear)
    with pytest.raises(TypeError, match=r"encoder 'mine' must be a subclass of torch\.nn\.Module"):
        registry.register("mine")(len)
    registry.register("mine")(Linear)
    with pytest.raises(ValueError, match=r"'mine' is .*Linear already; register .*Still under another name"):
        registry.register("mine")(Still)


# -- answers of encoders and dynamics ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda z: z[:, :4], r"torch.float32 \(2, 4\)"),
        (lambda z: z.double(), r"torch.float64 \(2, 8\)"),
        (lambda z: (z, z), "tuple"),
        (lambda z: None, "NoneType"),
    ],
)
def test_an_encoder_that_answers_something_else(store, change, found):
    ENCODERS.register("linear")(Linear)
    with pytest.raises(ValueError, match=rf"encoder 'linear' must answer float32 latents .*got {found}"):
        build(store, encoder="linear", encoder_options={"change": change})


def test_an_encoder_that_cannot_read_pixels_says_what_it_was_tried_on(store):
    @ENCODERS.register("floats")
    class Floats(Linear):
        def forward(self, pixels):
            return self.layer(pixels.flatten(1))

    with pytest.raises(RuntimeError) as raised:
        build(store, encoder="floats")
    assert "encoder 'floats' was tried on zeros" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path[:, :, 1:], r"here \(2, 1, 4, 8\) for h = 3 .*got torch.float32 \(2, 1, 3, 8\)"),
        (lambda path: path[:, 0], r"got torch.float32 \(2, 4, 8\)"),
        (lambda path: path.repeat(1, 2, 1, 1), r"futures=1, got torch.float32 \(2, 2, 4, 8\)"),
        (lambda path: path.double(), "got torch.float64"),
        (lambda path: [path], "got list"),
        (lambda path: path + 1, "present state z, unchanged"),
        (lambda path: path * NAN, "present state z, unchanged"),
    ],
)
def test_dynamics_that_answer_something_else(store, change, words):
    DYNAMICS.register("still")(Still)
    with pytest.raises(ValueError, match=f"dynamics 'still' must answer .*{words}"):
        build(store, dynamics="still", dynamics_options={"change": change})


def test_dynamics_of_another_width_of_actions(store):
    @DYNAMICS.register("other")
    class Other(Still):
        def __init__(self, latent_dim):
            super().__init__(latent_dim, 7)

    with pytest.raises(ValueError, match="dynamics 'other' must have action_dim=2, as the spec says, got 7"):
        build(store, dynamics="other")


# -- answers of losses ------------------------------------------------------------------------------

LOSSES = {
    "no terms": (lambda x: x, TypeError, "pair.*got Tensor; return total"),
    "terms without names": (lambda x: (x, [x]), TypeError, r"pair.*got \(Tensor, list\)"),
    "a vector": (lambda x: (x.expand(3), {}), ValueError, r"scalar of floats, got shape \(3,\)"),
    "a float": (lambda x: (x.item(), {}), TypeError, "scalar tensor, got float"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_objectives_and_dynamics(store, tmp_path, name):
    change, error, words = LOSSES[name]
    OBJECTIVES.register("spread")(Spread)

    @DYNAMICS.register("still")
    class Odd(Still):
        def loss(self, latents, actions, generator=None):
            return change(latents.square().mean())

    windows, settings = WindowSampler(store, steps=2), TrainConfig(steps=2, batch_size=4)
    mine = build(store, objective="spread")
    mine.objective.change = change
    for model in (
        mine,
        build(store, dynamics="still"),
        build(store, dynamics="still", objective="consistency"),
    ):
        with pytest.raises(error, match=words):
            fit(model, windows, settings, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_term_that_is_nan_is_named_at_once(store, tmp_path):
    OBJECTIVES.register("spread")(Spread)
    model = build(store, objective="spread")
    model.objective.change = lambda loss: (loss, {"odd": loss * NAN})
    with pytest.raises(ValueError, match=r"its terms are \{'odd': nan\}"):
        settings = TrainConfig(steps=2, batch_size=4)
        fit(model, WindowSampler(store, steps=2), settings, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def small_agent(**options):
    kwargs = {"control": ControlConfig(width=24, bins=21), "horizon": 2, "samples": 8, "elites": 4} | options
    return JEPAMPC(
        "CnnPolicy", rooms(), learning_starts=20, batch_size=8, n_step=3, seed=0, policy_kwargs=kwargs
    )


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (LOSSES["a vector"][0], ValueError, r"the objective's loss must be a scalar of floats, got shape \(3,\)"),
        (LOSSES["no terms"][0], TypeError, "the objective's loss must be a pair"),
        (lambda x: (x.detach(), {}), ValueError, "the objective's loss has no gradient; leave out .detach"),
        (lambda x: (x * NAN, {}), ValueError, "within the last 1 updates.*an objective of your own"),
    ],
)  # fmt: skip
def test_losses_beside_reward(change, error, words):
    OBJECTIVES.register("spread")(Spread)
    agent = small_agent(world={"latent_dim": 8, "objective": "spread"})
    agent.policy.model.world.objective.change = change
    before = {name: value.clone() for name, value in agent.policy.model.named_parameters()}
    with pytest.raises(error, match=words):
        agent.learn(25)
    if "within the last" not in words:  # nothing was learned before
        after = agent.policy.model.named_parameters()
        assert all(torch.equal(value, before[name]) for name, value in after)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"world": "runs/mine/model.safetensors"}, "world must be a dict .*got str; .*warm_start"),
        ({"control": {"width": 8}}, "control must be a jepa_rl.control.ControlConfig"),
    ],
)
def test_settings_of_another_type(options, words):
    with pytest.raises(TypeError, match=words):
        small_agent(**options)


# -- what an objective holds ------------------------------------------------------------------------


def test_an_objective_that_keeps_the_world_or_the_encoder(store, tmp_path):
    @OBJECTIVES.register("keeps")
    class Keeps(Spread):
        def loss(self, world, batch, generator=None):
            self.world = world
            return super().loss(world, batch, generator)

    model, settings = build(store, objective="keeps"), TrainConfig(steps=2, batch_size=4)
    with pytest.raises(ValueError, match=r"Keeps\.world is the world model.*use the world that loss"):
        fit(model, WindowSampler(store, steps=2), settings, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()

    @OBJECTIVES.register("shares")
    class Shares(Spread):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

    with pytest.raises(ValueError, match=r"'objective.encoder\..* are one tensor.*copy.deepcopy\(encoder\)"):
        build(store, objective="shares")

    @OBJECTIVES.register("teaches")
    class Teaches(Spread):
        def __init__(self, encoder):
            super().__init__()
            self.teacher = copy.deepcopy(encoder)

    build(store, objective="teaches").save(tmp_path / "model.safetensors")


# -- planners and costs -----------------------------------------------------------------------------


class Lost(BasePlanner):
    horizon = 4

    def plan(self, dynamics, cost, z, warm_start=None, generator=None, proposals=None):
        return torch.zeros(len(z), 4, 2)


class Endless(BasePlanner):
    def plan(self, dynamics, cost, z, warm_start=None, generator=None, proposals=None):
        raise AssertionError("not reached")


SEARCH = CEM(horizon=4, samples=8, elites=4, iterations=1)


@pytest.mark.parametrize(
    ("planner", "cost", "error", "words"),
    [
        (Endless(), GoalCost, TypeError, "planner must be an object .*which lacks horizon$"),
        (CEM, GoalCost, TypeError, "planner must be an object"),
        (Lost(), GoalCost, ValueError, r"Lost.plan must return a .*Plan .* = \(1, 4, 2\), got Tensor"),
        (SEARCH, GoalCost(torch.zeros(1, 8)), TypeError, "pass a class such as GoalCost, not an instance"),
        (SEARCH, lambda goal: lambda z, a: 0.0, ValueError, r"a cost must answer a tensor .* = \(8, 1\), got float"),
        (SEARCH, lambda goal: lambda z, a: z.sum(), ValueError, r"\(8, 1\), got \(\)"),
    ],
)  # fmt: skip
def test_planners_and_costs(store, planner, cost, error, words):
    pixels = np.zeros(store.spec.pixels, np.uint8)
    with pytest.raises(error, match=words):
        agent = MPCAgent(build(store), planner, cost=cost)
        agent.set_goal(pixels)
        agent.predict(pixels)
