"""The shipped contracts catch parts that break them."""

import pytest
import torch

from jepa_rl.agents import CEM
from jepa_rl.testing import DynamicsContract, EncoderContract, PlannerContract, PointMass


def run(contract, name):
    getattr(contract(), name)()


class Mean:
    """A sound encoder: means of the channels."""

    latent_dim = 3

    def encode(self, pixels):
        return pixels.float().mean((2, 3))


class TestSoundEncoder(EncoderContract):
    def make_encoder(self):
        return Mean()


class TestSoundDynamics(DynamicsContract):
    def make_dynamics(self):
        return PointMass()


class InPlace(Mean):
    def encode(self, pixels):
        return pixels.bitwise_not_().float().mean((2, 3))


class BatchNormed(Mean):
    def encode(self, pixels):
        z = super().encode(pixels)
        return z - z.mean(0)


class Double(Mean):
    def encode(self, pixels):
        return super().encode(pixels).double()


class Constant(Mean):
    def encode(self, pixels):
        return torch.zeros(len(pixels), 3)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (InPlace, "test_leaves_the_pixels_alone"),
        (BatchNormed, "test_a_latent_does_not_depend_on_its_neighbours"),
        (Double, "test_gives_one_finite_float32_latent_per_picture"),
        (Constant, "test_different_pictures_have_different_latents"),
    ],
)
def test_broken_encoders_are_caught(broken, test):
    class Contract(EncoderContract):
        def make_encoder(self):
            return broken()

    with pytest.raises(AssertionError):
        run(Contract, test)


class ForgetsNow(PointMass):
    def rollout(self, z, actions, **options):
        return super().rollout(z, actions)[:, :, 1:]


class NoisePerRow(PointMass):
    def rollout(self, z, actions, *, futures=1, generator=None):
        noise = torch.randn(len(z), futures, 1, 2, generator=generator)
        path = super().rollout(z, actions).expand(-1, futures, -1, -1)
        return torch.cat([path[:, :, :1], path[:, :, 1:] + noise], dim=2)


class GlobalNoise(PointMass):
    def rollout(self, z, actions, *, futures=1, generator=None):
        path = super().rollout(z, actions).expand(-1, futures, -1, -1)
        return torch.cat([path[:, :, :1], path[:, :, 1:] + torch.randn(futures, 1, 2)], dim=2)


class Clairvoyant(PointMass):
    def rollout(self, z, actions, **options):
        path = super().rollout(z, actions).clone()
        path[:, :, 1:] += actions.sum((1, 2))[:, None, None, None]
        return path


class Detached(PointMass):
    def rollout(self, z, actions, **options):
        return super().rollout(z, actions.detach())


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (ForgetsNow, "test_gives_the_promised_shapes_and_starts_from_now"),
        (NoisePerRow, "test_rows_meet_common_random_numbers_and_do_not_touch_each_other"),
        (GlobalNoise, "test_equal_seeds_give_equal_futures"),
        (GlobalNoise, "test_leaves_its_inputs_and_the_global_generator_alone"),
        (Clairvoyant, "test_later_actions_do_not_change_earlier_latents"),
        (Clairvoyant, "test_rolling_out_in_two_parts_changes_nothing"),
    ],
)
def test_broken_dynamics_are_caught(broken, test):
    class Contract(DynamicsContract):
        def make_dynamics(self):
            return broken()

    with pytest.raises(AssertionError):
        run(Contract, test)


def test_dynamics_without_a_gradient_are_caught():
    class Contract(DynamicsContract):
        def make_dynamics(self):
            return Detached()

    with pytest.raises(RuntimeError, match="grad"):
        run(Contract, "test_a_gradient_reaches_the_actions")


class Searcher:
    """Wraps a sound planner and spoils its plan."""

    horizon, actions = 5, "continuous"

    def __init__(self):
        self.inner = CEM(5, samples=32, elites=4, iterations=2)

    def plan(self, dynamics, cost, z, warm_start=None, generator=None):
        return self.inner.plan(dynamics, cost, z, warm_start, generator)


class Remembers(Searcher):
    last = None

    def plan(self, dynamics, cost, z, warm_start=None, generator=None):
        plan = super().plan(dynamics, cost, z, self.last, generator)
        self.last = plan.actions
        return plan


class IgnoresGenerator(Searcher):
    def plan(self, dynamics, cost, z, warm_start=None, generator=None):
        return super().plan(dynamics, cost, z, warm_start)


class IgnoresWarmStart(Searcher):
    def plan(self, dynamics, cost, z, warm_start=None, generator=None):
        return super().plan(dynamics, cost, z, None, generator)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (Remembers, "test_equal_seeds_give_equal_plans_whatever_was_planned_before"),
        (IgnoresGenerator, "test_leaves_its_inputs_and_the_global_generator_alone"),
        (IgnoresWarmStart, "test_refuses_arguments_of_the_wrong_shape_or_not_finite"),
    ],
)
def test_broken_planners_are_caught(broken, test):
    class Contract(PlannerContract):
        def make_planner(self):
            return broken()

    with pytest.raises(AssertionError):
        run(Contract, test)


def test_shapes_are_checked_while_tests_run():
    """A wrong shape that PyTorch would broadcast is refused (conftest.py), at least among a test's first calls."""
    from jepa_rl.objectives.terms import prediction

    refused = False
    try:
        prediction(torch.zeros(2, 3, 4), torch.zeros(2, 3, 1))
    except Exception as error:  # jaxtyping's own class; pytest.raises switches the checks off
        refused = "target" in str(error)
    assert refused
