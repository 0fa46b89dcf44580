"""The contracts as tests: subclass one in a test file, say how to make your part, and run pytest.

::

    from jepa_rl.testing import DynamicsContract

    class TestMyDynamics(DynamicsContract):
        def make_dynamics(self):
            return MyDynamics(latent_dim=8, action_dim=2).eval()

Every test builds the part anew. The contracts themselves are described in ``jepa_rl.types``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.testing import assert_close

from jepa_rl.costs import ActionPenalty, GoalCost
from jepa_rl.dynamics import TrainableDynamics
from jepa_rl.dynamics.base import is_markov
from jepa_rl.objectives import Objective
from jepa_rl.training import descend
from jepa_rl.types import ActionSpec, ControlBatch, Dynamics, Encoder, Plan, Planner, WorldSpec
from jepa_rl.world_model import WorldModel


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_raises(error: type[Exception], call: Callable[[], Any], because: str) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"expected a {error.__name__}: {because}")


def encode(encoder: Any, pixels: Tensor) -> Tensor:
    """Latents of an ``Encoder``, or of any ``nn.Module`` whose ``forward`` gives them."""
    return encoder.encode(pixels) if isinstance(encoder, Encoder) else encoder(pixels)


class EncoderContract:
    """What every encoder promises. Say how to make one, and set ``pixels`` if it reads another shape."""

    pixels: tuple[int, int, int] = (3, 64, 64)
    tolerance: float = 1e-4

    def make_encoder(self) -> Any:
        """The encoder (an ``Encoder``, or an ``nn.Module`` with ``forward``), in evaluation mode, always the same."""
        raise NotImplementedError

    def _pictures(self, batch: int, seed: int = 0) -> Tensor:
        return torch.randint(0, 256, (batch, *self.pixels), generator=seeded(seed), dtype=torch.uint8)

    @torch.no_grad()
    def test_gives_one_finite_float32_latent_per_picture(self) -> None:
        encoder = self.make_encoder()
        assert encoder.latent_dim >= 1
        for batch in (1, 3):
            z = encode(encoder, self._pictures(batch))
            assert z.shape == (batch, encoder.latent_dim), tuple(z.shape)
            assert z.dtype == torch.float32 and torch.isfinite(z).all()

    @torch.no_grad()
    def test_equal_pictures_have_equal_latents(self) -> None:
        encoder, pixels = self.make_encoder(), self._pictures(2)
        assert_close(encode(encoder, pixels), encode(encoder, pixels), rtol=0, atol=0)

    @torch.no_grad()
    def test_different_pictures_have_different_latents(self) -> None:
        z = encode(self.make_encoder(), self._pictures(2))
        assert not torch.equal(z[0], z[1]), "the encoder gives a constant"

    @torch.no_grad()
    def test_leaves_the_pixels_alone(self) -> None:
        pixels = self._pictures(2)
        before = pixels.clone()
        encode(self.make_encoder(), pixels)
        assert torch.equal(pixels, before)

    @torch.no_grad()
    def test_a_latent_does_not_depend_on_its_neighbours(self) -> None:
        encoder, pixels = self.make_encoder(), self._pictures(4)
        alone = torch.cat([encode(encoder, p[None]) for p in pixels])
        assert_close(encode(encoder, pixels), alone, rtol=self.tolerance, atol=self.tolerance)

    def test_works_under_inference_mode(self) -> None:
        with torch.inference_mode():
            assert not encode(self.make_encoder(), self._pictures(1)).requires_grad


class DynamicsContract:
    """What all dynamics promise, those with one future and those that draw several.

    Attributes:
        differentiable: whether a gradient reaches the actions.
    """

    differentiable: bool = True
    tolerance: float = 1e-4
    horizon: int = 5
    futures: int = 3

    def make_dynamics(self) -> Dynamics:
        """The dynamics in evaluation mode, the same at every call."""
        raise NotImplementedError

    def _inputs(self, dynamics: Dynamics, batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = seeded(seed)
        z = torch.randn(batch, dynamics.latent_dim, generator=generator)
        actions = 2 * torch.rand(batch, self.horizon, dynamics.action_dim, generator=generator) - 1
        return z, actions

    def _close(self, actual: Tensor, expected: Tensor, because: str) -> None:
        assert_close(
            actual, expected, rtol=self.tolerance, atol=self.tolerance, msg=lambda m: f"{because}\n{m}"
        )

    @torch.no_grad()
    def test_gives_the_promised_shapes_and_starts_from_now(self) -> None:
        dynamics = self.make_dynamics()
        assert isinstance(dynamics, Dynamics)
        for batch in (1, 3):
            z, actions = self._inputs(dynamics, batch)
            for futures in (1, self.futures):
                path = dynamics.rollout(z, actions, futures=futures, generator=seeded())
                n = path.shape[1]
                assert n in (1, futures), f"asked for {futures} futures, got {n}"
                assert path.shape == (batch, n, self.horizon + 1, dynamics.latent_dim), tuple(path.shape)
                assert path.dtype == z.dtype and torch.isfinite(path).all()
                assert_close(path[:, :, 0], z[:, None].expand(-1, n, -1), rtol=0, atol=0)

    @torch.no_grad()
    def test_equal_seeds_give_equal_futures(self) -> None:
        dynamics = self.make_dynamics()
        inputs = self._inputs(dynamics)
        first, second = (
            dynamics.rollout(*inputs, futures=self.futures, generator=seeded(7)) for _ in range(2)
        )
        assert_close(first, second, rtol=0, atol=0)

    @torch.no_grad()
    def test_leaves_its_inputs_and_the_global_generator_alone(self) -> None:
        dynamics = self.make_dynamics()
        z, actions = self._inputs(dynamics)
        before, state = (z.clone(), actions.clone()), torch.get_rng_state()
        dynamics.rollout(z, actions, futures=self.futures, generator=seeded())
        assert torch.equal(z, before[0]) and torch.equal(actions, before[1])
        assert torch.equal(torch.get_rng_state(), state), "randomness must come from the generator passed in"

    @torch.no_grad()
    def test_rows_meet_common_random_numbers_and_do_not_touch_each_other(self) -> None:
        """A row has the same futures alone and in a batch: noise belongs to a future, not to a row."""
        dynamics = self.make_dynamics()
        z, actions = self._inputs(dynamics)
        together = dynamics.rollout(z, actions, futures=self.futures, generator=seeded(1))
        for i in range(len(z)):
            alone = dynamics.rollout(
                z[i : i + 1], actions[i : i + 1], futures=self.futures, generator=seeded(1)
            )
            self._close(together[i : i + 1], alone, f"row {i} differs alone and in a batch")

    @torch.no_grad()
    def test_later_actions_do_not_change_earlier_latents(self) -> None:
        dynamics = self.make_dynamics()
        z, actions = self._inputs(dynamics)
        other = actions.clone()
        other[:, -1] = -other[:, -1]
        first, second = (
            dynamics.rollout(z, a, futures=self.futures, generator=seeded(2)) for a in (actions, other)
        )
        self._close(first[:, :, :-1], second[:, :, :-1], "the last action changed the past")

    @torch.no_grad()
    def test_rolling_out_in_two_parts_changes_nothing(self) -> None:
        dynamics = self.make_dynamics()
        z, actions = self._inputs(dynamics)
        whole = dynamics.rollout(z, actions, generator=seeded(3))
        draws = dynamics.rollout(z, actions, futures=2, generator=seeded(3)).shape[1] > 1
        if draws or not is_markov(dynamics):
            return  # says nothing about dynamics with memory or with chance
        middle = dynamics.rollout(z, actions[:, :2])[:, 0, -1]
        because = "2 + rest is not whole: dynamics with memory set markov = False"
        self._close(dynamics.rollout(middle, actions[:, 2:])[:, 0], whole[:, 0, 2:], because)

    def test_a_gradient_reaches_the_actions(self) -> None:
        if not self.differentiable:
            return
        dynamics = self.make_dynamics()
        z, actions = self._inputs(dynamics)
        actions.requires_grad_()
        last = dynamics.rollout(z, actions, generator=seeded())[:, :, -1]
        (gradient,) = torch.autograd.grad(last.square().sum(), actions)
        assert torch.isfinite(gradient).all()


class TrainableDynamicsContract(DynamicsContract):
    """What dynamics that learn promise beside. ``make_dynamics`` gives a ``TrainableDynamics`` in evaluation mode."""

    learning_rate: float = 3e-3
    updates: int = 120

    def _windows(self, dynamics: Dynamics, batch: int = 64, steps: int = 3) -> tuple[Tensor, Tensor]:
        """Latents "b t d" of a linear world with a little noise, and actions "b h a"."""
        generator = seeded(3)
        d, a = dynamics.latent_dim, dynamics.action_dim
        actions = 2 * torch.rand(batch, steps, a, generator=generator) - 1
        push = 0.5 * torch.randn(a, d, generator=generator)
        path = [torch.randn(batch, d, generator=generator)]
        for i in range(steps):
            noise = 0.05 * torch.randn(batch, d, generator=generator)
            path.append(0.9 * path[-1] + actions[:, i] @ push + noise)
        return torch.stack(path, dim=1), actions

    def test_its_loss_is_a_finite_scalar_with_a_gradient_and_named_terms(self) -> None:
        dynamics = self.make_dynamics()
        assert isinstance(dynamics, TrainableDynamics), "subclass jepa_rl.dynamics.TrainableDynamics"
        total, terms = dynamics.train().loss(*self._windows(dynamics), seeded())
        _check_loss(total, terms)
        assert _reached(total, dynamics)

    def test_equal_seeds_give_equal_losses_and_the_global_generator_stays(self) -> None:
        dynamics = self.make_dynamics()
        assert isinstance(dynamics, TrainableDynamics)
        dynamics.eval()
        windows = self._windows(dynamics)
        state = torch.get_rng_state()
        first, second = (dynamics.loss(*windows, seeded(5))[0].item() for _ in range(2))
        assert first == second, "the same generator must give the same loss"
        assert torch.equal(torch.get_rng_state(), state), "randomness must come from the generator passed in"

    def test_it_learns_a_linear_world(self) -> None:
        dynamics = self.make_dynamics()
        assert isinstance(dynamics, TrainableDynamics)
        latents, actions = self._windows(dynamics)
        dynamics.observe(latents, actions)

        def error() -> float:
            with torch.no_grad():
                path = dynamics.eval().rollout(latents[:, 0], actions, futures=4, generator=seeded(1))
            return float((path.mean(1)[:, 1:] - latents[:, 1:]).square().mean())

        before, generator = error(), seeded(2)
        optimizer = torch.optim.Adam(dynamics.parameters(), lr=self.learning_rate)
        dynamics.train()
        for _ in range(self.updates):
            descend(dynamics.loss(latents, actions, generator)[0], [optimizer], dynamics.parameters(), 10.0)
            dynamics.after_update()
        assert error() < 0.5 * before, f"the rollout's error went from {before:.3g} to {error():.3g}"


class ObjectiveContract:
    """What every objective promises. Say how to make a small world model with it, the same at every call.

    Attributes:
        learns: whether a few updates on one batch must lower its loss.
    """

    learns: bool = True

    def make_world(self) -> WorldModel:
        """A world model, in training mode, of small pictures and latent steps of one environment step."""
        raise NotImplementedError

    def _batch(self, world: WorldModel, batch: int = 12, steps: int = 3) -> ControlBatch:
        rng, spec = seeded(4), world.spec

        def seen(lead: tuple[int, ...]) -> Any:
            found = {
                name: torch.randint(0, 256, (*lead, *shape), generator=rng, dtype=torch.uint8)
                if len(shape) == 3
                else torch.randn(*lead, *shape, generator=rng)
                for name, shape in spec.shapes.items()
            }
            return found if spec.parts else next(iter(found.values()))

        actions = 2 * torch.rand(batch, steps, spec.action_dim, generator=rng) - 1
        if groups := spec.action.groups * spec.block:
            parts = actions.split(groups, -1)
            actions = torch.cat([F.one_hot(x.argmax(-1), x.shape[-1]).float() for x in parts], -1)
        valid = torch.ones(batch, steps, dtype=torch.bool)
        valid[0, -1] = False  # one window runs over the end of its episode
        return ControlBatch(
            seen((batch, steps + 1)), actions, torch.randn(batch, steps, generator=rng), ~valid, valid,
            returns=torch.randn(batch, steps, generator=rng), discounts=torch.full((batch, steps), 0.9),
            ended=~valid[:, -1], future=seen((batch,)),
        )  # fmt: skip

    def test_its_loss_is_a_finite_scalar_with_named_terms(self) -> None:
        world = self.make_world()
        assert isinstance(world.objective, Objective), "subclass jepa_rl.objectives.Objective"
        _check_loss(*world.loss(self._batch(world), seeded()))

    def test_its_gradient_reaches_the_encoder(self) -> None:
        world = self.make_world()
        assert _reached(world.loss(self._batch(world), seeded())[0], world.encoder)

    def test_equal_seeds_give_equal_losses_and_nothing_else_is_touched(self) -> None:
        batch, state = self._batch(self.make_world()), torch.get_rng_state()
        losses = []
        for _ in range(2):
            world = self.make_world()
            torch.set_rng_state(state)
            losses.append(world.loss(batch, seeded(5))[0].item())
            assert torch.equal(torch.get_rng_state(), state), "randomness must come from the generator"
        assert losses[0] == losses[1], "the same generator must give the same loss"
        again = self._batch(self.make_world())
        assert_close(batch.observations, again.observations, rtol=0, atol=0)

    def test_updates_lower_its_loss(self) -> None:
        world = self.make_world()
        batch, losses = self._batch(world), []
        optimizer = torch.optim.Adam([p for p in world.parameters() if p.requires_grad], lr=2e-3)
        for _ in range(30):
            loss, _ = world.train().loss(batch, seeded(6))
            descend(loss, [optimizer], world.parameters(), 10.0)
            world.after_update()
            losses.append(loss.item())
        assert not self.learns or min(losses[-5:]) < losses[0], losses

    def test_control_can_stand_on_it(self) -> None:
        world = self.make_world()
        batch = self._batch(world)
        unrolled = world.objective.unroll(world, batch, seeded())
        b, h = batch.actions.shape[:2]
        assert unrolled.path.shape == (b, h + 1, world.latent_dim), tuple(unrolled.path.shape)
        assert unrolled.future.shape == (b, world.latent_dim) and not unrolled.future.requires_grad
        assert unrolled.path.requires_grad, "reward and values shape the encoder through the path"
        _check_loss(*world.objective.shape(world, batch, unrolled, 0.5, seeded()))


def _reached(total: Tensor, module: nn.Module) -> bool:
    """Whether a gradient of ``total`` reaches a parameter of ``module``."""
    learned = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(total, learned, allow_unused=True)
    return any(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in found)


def _check_loss(total: Tensor, terms: Mapping[str, Tensor]) -> None:
    assert total.shape == () and total.requires_grad, f"expected a scalar with a gradient, got {total!r}"
    assert torch.isfinite(total), f"expected a finite loss, got {total.item()}"
    wrong = {name: tuple(value.shape) for name, value in terms.items() if value.shape != ()}
    assert terms and not wrong, f"terms must be named scalars, got {wrong or 'none'}"


@dataclass(frozen=True, eq=False)
class PointMass:
    """A point that every action moves: ``z' = z + action @ moves``. Dynamics with a plain answer.

    Attributes:
        moves: how far each component of the action (or each choice) moves the point.
        shake: standard deviation of noise in every step, the same for all rows; with it futures are drawn.
    """

    moves: Float[Tensor, "a d"] = field(default_factory=lambda: 0.2 * torch.eye(2))
    shake: float = 0.0

    @property
    def latent_dim(self) -> int:
        return self.moves.shape[1]

    @property
    def action_dim(self) -> int:
        return self.moves.shape[0]

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n h+1 d"]:
        steps = (actions @ self.moves).unsqueeze(1)
        if self.shake:
            shape = (futures, *steps.shape[2:])
            noise = torch.randn(shape, generator=generator, device=z.device, dtype=z.dtype)
            steps = steps + self.shake * noise
        first = z[:, None, None].expand(-1, steps.shape[1], 1, -1)
        return torch.cat([first, first + steps.cumsum(2)], dim=2)


COMPASS = 0.2 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


class PlannerContract:
    """What every planner promises, tested on a point that moves to a goal.

    A planner of discrete actions chooses among the four directions of the compass, one-hot.
    """

    @property
    def discrete(self) -> bool:
        """Whether the planner is tested on one-hot actions."""
        return self.make_planner().actions == "discrete"

    def make_planner(self) -> Planner:
        """A planner with a horizon of at least 4; small settings keep the tests fast."""
        raise NotImplementedError

    def _plan(self, batch: int = 3, warm_start: Tensor | None = None, **changes: Any) -> Plan:
        problem = self._problem(batch) | changes
        return self.make_planner().plan(**problem, warm_start=warm_start, generator=seeded())

    def _problem(self, batch: int) -> dict[str, Any]:
        goal = torch.tensor([[0.4, 0.2], [-0.3, 0.4], [0.0, -0.6]])[:batch]
        cost = GoalCost(goal) + 0.01 * ActionPenalty()
        dynamics = PointMass(COMPASS) if self.discrete else PointMass()
        return {"dynamics": dynamics, "cost": cost, "z": torch.zeros(batch, 2)}

    def _some_plan(self, batch: int = 3) -> Tensor:
        shape = (batch, self.make_planner().horizon)
        if self.discrete:
            return torch.eye(4)[torch.randint(0, 4, shape, generator=seeded(5))]
        return 2 * torch.rand(*shape, 2, generator=seeded(5)) - 1

    def test_says_what_it_searches_and_refuses_the_rest(self) -> None:
        planner = self.make_planner()
        assert isinstance(planner, Planner), "a planner has what jepa_rl.types.Planner names; see BasePlanner"
        assert planner.actions in ("continuous", "discrete", "any"), planner.actions
        assert planner.futures >= 1 and callable(planner.risk)
        continuous = WorldSpec((3, 8, 8), 1, ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)))
        discrete = WorldSpec((3, 8, 8), 1, ActionSpec("discrete", 4))
        for spec, dynamics in ((continuous, PointMass()), (discrete, PointMass(COMPASS))):
            if planner.actions in ("any", spec.action.kind):
                planner.check(spec, dynamics)
            else:
                kind = spec.action.kind
                assert_raises(
                    ValueError, partial(planner.check, spec, dynamics), f"it searches no {kind} actions"
                )

    def test_plans_have_the_promised_shapes_and_bounds(self) -> None:
        planner = self.make_planner()
        assert isinstance(planner, Planner) and planner.horizon >= 4
        plan = self._plan()
        a = 4 if self.discrete else 2
        assert plan.actions.shape == (3, planner.horizon, a), tuple(plan.actions.shape)
        assert plan.cost.shape == (3,)
        assert plan.branches.shape[0] == 3 and plan.branches.shape[2:] == (planner.horizon + 1, 2)
        seen = [plan.actions]
        if plan.candidates is not None and plan.candidate_costs is not None:
            assert plan.candidates.shape[2:] == plan.actions.shape[1:]
            assert plan.candidate_costs.shape == plan.candidates.shape[:2]
            seen.append(plan.candidates)
        for actions in seen:
            assert not actions.requires_grad
            if self.discrete:
                assert ((actions == 0) | (actions == 1)).all() and (actions.sum(-1) == 1).all()
            else:
                assert actions.abs().max() <= 1.0

    def test_cost_and_branches_are_those_of_the_plan(self) -> None:
        problem, plan = self._problem(3), self._plan()
        branches = problem["dynamics"].rollout(problem["z"], plan.actions)
        assert_close(plan.branches, branches)
        assert_close(plan.cost, problem["cost"](branches, plan.actions).mean(-1))

    def test_gets_closer_to_the_goal_than_standing_still(self) -> None:
        problem, plan = self._problem(3), self._plan()
        still = problem["z"][:, None, None].expand(-1, 1, plan.actions.shape[1] + 1, -1)
        assert (plan.cost < 0.8 * problem["cost"](still, torch.zeros_like(plan.actions))[:, 0]).all()

    def test_is_never_worse_than_its_warm_start(self) -> None:
        problem = self._problem(3)
        best = self._plan().actions
        for warm_start in (best, self._some_plan()):
            given = problem["cost"](problem["dynamics"].rollout(problem["z"], warm_start), warm_start)[:, 0]
            assert (self._plan(warm_start=warm_start).cost <= given + 1e-5).all()

    def test_is_never_worse_than_what_was_proposed(self) -> None:
        problem = self._problem(3)
        proposals = torch.stack([self._some_plan(), self._plan().actions], dim=1)
        plan = self.make_planner().plan(**problem, generator=seeded(), proposals=proposals)
        for proposed in proposals.unbind(1):
            given = problem["cost"](problem["dynamics"].rollout(problem["z"], proposed), proposed)[:, 0]
            assert (plan.cost <= given + 1e-5).all()
        wrong = proposals[:, :, :-1]
        assert_raises(
            ValueError,
            lambda: self.make_planner().plan(**problem, generator=seeded(), proposals=wrong),
            "proposals of another horizon cannot compete",
        )

    def test_equal_seeds_give_equal_plans_whatever_was_planned_before(self) -> None:
        planner, problem = self.make_planner(), self._problem(3)
        first = planner.plan(**problem, generator=seeded())
        planner.plan(**(problem | {"z": torch.ones(3, 2)}), generator=seeded(9))
        second = planner.plan(**problem, generator=seeded())
        assert_close(first.actions, second.actions, rtol=0, atol=0)

    def test_leaves_its_inputs_and_the_global_generator_alone(self) -> None:
        z, warm_start, state = torch.zeros(3, 2), self._some_plan(), torch.get_rng_state()
        before = warm_start.clone()
        self._plan(z=z, warm_start=warm_start)
        assert not z.any() and torch.equal(warm_start, before)
        assert torch.equal(torch.get_rng_state(), state), "randomness must come from the generator passed in"

    def test_equal_seeds_draw_equal_futures(self) -> None:
        dynamics = PointMass(COMPASS, 0.02) if self.discrete else PointMass(shake=0.02)
        state = torch.get_rng_state()
        first, second = (self._plan(dynamics=dynamics) for _ in range(2))
        assert_close(first.actions, second.actions, rtol=0, atol=0)
        assert_close(first.branches, second.branches, rtol=0, atol=0)
        assert torch.equal(torch.get_rng_state(), state), "randomness must come from the generator passed in"

    def test_a_plan_does_not_depend_on_its_neighbours(self) -> None:
        assert_close(self._plan(batch=3).actions[:1], self._plan(batch=1).actions, rtol=1e-4, atol=1e-4)

    def test_plans_under_inference_mode(self) -> None:
        problem = self._problem(3)
        with torch.inference_mode():  # as an agent plans: the encoder's latents are inference tensors
            assert torch.isfinite(self._plan(**(problem | {"z": torch.zeros(3, 2)})).cost).all()

    def test_a_candidate_that_costs_nan_is_never_chosen(self) -> None:
        problem = self._problem(3)

        def broken(latents: Tensor, actions: Tensor) -> Tensor:
            return torch.where(latents[:, :, -1, 0] > 0.35, torch.nan, 0.0)  # where the first goal lies

        plan = self._plan(cost=problem["cost"] + broken)
        assert torch.isfinite(plan.cost).all() and (plan.branches[0, :, -1, 0] <= 0.35).all()

    def test_says_so_when_every_candidate_costs_nan(self) -> None:
        nan = lambda latents, actions: latents.new_full(latents.shape[:2], torch.nan)  # noqa: E731
        cost = self._problem(3)["cost"] + nan
        assert_raises(ValueError, lambda: self._plan(cost=cost), "every candidate costs NaN")

    def test_refuses_arguments_of_the_wrong_shape_or_not_finite(self) -> None:
        wrong: dict[str, dict[str, Any]] = {
            "z without a batch axis": {"z": torch.zeros(2)},
            "z of the wrong width": {"z": torch.zeros(3, 5)},
            "NaN in z": {"z": torch.full((3, 2), torch.nan)},
            "a warm start that is too short": {"warm_start": self._some_plan()[:, 1:]},
            "a warm start for other environments": {"warm_start": self._some_plan(2)},
            "NaN in the warm start": {"warm_start": self._some_plan() * torch.nan},
        }
        for because, change in wrong.items():
            assert_raises(ValueError, partial(self._plan, **change), because)
