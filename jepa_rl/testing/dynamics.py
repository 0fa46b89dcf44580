"""The contracts of dynamics as tests, and dynamics with a known answer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.testing import assert_close

from jepa_rl.dynamics import TrainableDynamics
from jepa_rl.dynamics.base import is_markov
from jepa_rl.testing.checks import check_loss, reached, seeded
from jepa_rl.training import descend
from jepa_rl.types import Dynamics


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
        check_loss(total, terms)
        assert reached(total, dynamics)

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
