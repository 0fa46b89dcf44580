"""The contract of objectives as tests."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from jepa_rl.objectives import Objective
from jepa_rl.testing.checks import check_loss, reached, seeded
from jepa_rl.training import descend
from jepa_rl.types import ControlBatch
from jepa_rl.world_model import WorldModel


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
            return spec.unnamed(found)

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
        check_loss(*world.loss(self._batch(world), seeded()))

    def test_its_gradient_reaches_the_encoder(self) -> None:
        world = self.make_world()
        assert reached(world.loss(self._batch(world), seeded())[0], world.encoder)

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
        check_loss(*world.objective.shape(world, batch, unrolled, 0.5, seeded()))
