"""Teachers and their schedules, prediction without actions, and next embeddings."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from moving_disc import SPEC, discs, disturbed, known_place, learn, seeded, world_of

from jepa_rl import WorldModel, WorldModelConfig
from jepa_rl.encoders import fit_readout
from jepa_rl.objectives.jepa import follow_weights
from jepa_rl.objectives.schedule import DecaySchedule
from jepa_rl.testing import ObjectiveContract

CAUSAL = {"causal": True}


class TestTeacher(ObjectiveContract):
    def make_world(self) -> WorldModel:
        return world_of("teacher")


class TestActionFree(ObjectiveContract):
    def make_world(self) -> WorldModel:
        return world_of("action_free")


class TestNextEmbedding(ObjectiveContract):
    def make_world(self) -> WorldModel:
        return world_of("nepa", encoder=CAUSAL)


# -- schedules ---------------------------------------------------------------------------------------


def test_the_decay_rises_linearly_and_stays():
    schedule = DecaySchedule(0.9, 1.0, 4)
    found = [float(schedule.step()) for _ in range(6)]
    assert found == pytest.approx([0.9, 0.925, 0.95, 0.975, 1.0, 1.0])
    again = DecaySchedule(0.9, 1.0, 4)
    again.load_state_dict(schedule.state_dict())
    assert int(again.done) == 6


@pytest.mark.parametrize("ema", [(0.9, 0.8, 5), (1.0, 1.0, 5), (-0.1, 1.0, 5), (0.9, 1.1, 5), (0.9, 1.0, 0)])
def test_schedules_that_make_no_sense(ema):
    with pytest.raises(ValueError, match="ema must be"):
        DecaySchedule(*ema)


def test_a_weight_follows_by_hand():
    """0 follows 1 with decays 0.5 and 0.75: 0.5, then 0.75 * 0.5 + 0.25 = 0.625; buffers are copied."""
    online, average, schedule = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1), DecaySchedule(0.5, 1.0, 2)
    torch.nn.init.zeros_(average.weight)
    online.running_mean.fill_(7.0)
    for expected in (0.5, 0.625, 0.625):
        follow_weights(average, online, schedule.step())
        assert average.weight.item() == pytest.approx(expected)
    assert average.running_mean.item() == 7.0


@pytest.mark.parametrize(("objective", "name"), [("teacher", "target_encoder"), ("ijepa", "teacher")])
def test_teachers_follow_their_schedule(objective, name):
    options = {"targets": 2} if objective == "ijepa" else {}
    world = world_of(objective, ema=(0.5, 1.0, 2), **options)
    teacher = getattr(world.objective, name)
    before = teacher.project.weight.clone()
    with torch.no_grad():
        world.encoder.project.weight.add_(1.0)
    for expected in (0.5, 0.625, 0.625):
        world.after_update()
        torch.testing.assert_close(teacher.project.weight - before, torch.full_like(before, expected))


# -- teacher -----------------------------------------------------------------------------------------


def test_the_targets_are_the_teachers_latents_without_a_gradient():
    world, (batch, _) = world_of("teacher"), discs(8, seeded(3))
    world.eval()
    with torch.no_grad():
        world.objective.target_encoder.project.weight.mul_(2.0)
    loss, terms = world.loss(batch, seeded())
    later = world.objective.target_encoder(batch.pixels[:, 1])
    path = world.rollout(world.encode(batch.pixels[:, 0]), batch.actions)[:, 0, 1]
    torch.testing.assert_close(loss, F.mse_loss(path, later))
    assert set(terms) == {"prediction"}
    loss.backward()
    assert all(p.grad is None for p in world.objective.target_encoder.parameters())
    assert world.encoder.patches.weight.grad.abs().sum() > 0


def test_options_that_the_schedule_replaces_are_refused():
    with pytest.raises(ValueError, match=r"takes ema=\(start, end, updates\) instead of \['ema_decay'\]"):
        world_of("teacher", ema_decay=0.9)


@pytest.mark.parametrize(("objective", "copy"), [("teacher", "target_encoder"), ("action_free", "predictor")])
def test_copies_stay_out_of_files_and_are_made_again(objective, copy, tmp_path):
    world = learn(world_of(objective), 2, 1e-2)
    name = f"objective.{copy}."
    assert any(key.startswith(name) for key in world.state_dict())
    assert not any(key.startswith(name) for key in world.finished())
    world.save(tmp_path / "model.safetensors")
    again = WorldModel.load(tmp_path / "model.safetensors")
    source = again.encoder if objective == "teacher" else again.dynamics
    for copied, weight in zip(getattr(again.objective, copy).parameters(), source.parameters(), strict=True):
        assert torch.equal(copied, weight)
    pixels = discs(3, seeded())[0].pixels[:, 0]
    other = world.eval().with_dynamics("gru")  # their copy has another shape
    torch.testing.assert_close(other.encode(pixels), world.encode(pixels), rtol=0, atol=0)


# -- without actions ---------------------------------------------------------------------------------


def test_without_actions_is_with_actions_that_are_zero():
    """Value and gradient of the encoder, whatever the actions were."""
    batch, _ = discs(8, seeded(3))
    still = dataclasses.replace(batch, actions=torch.zeros_like(batch.actions))
    gradients = []
    for objective, seen in (("action_free", batch), ("jepa", still)):
        world = world_of(objective)
        _, terms = world.loss(seen, seeded())
        shaping = terms["prediction"] + 0.5 * terms["sigreg"]
        gradients.append((shaping, torch.autograd.grad(shaping, world.encoder.patches.weight)[0]))
    torch.testing.assert_close(*gradients)


def test_dynamics_learn_with_actions_and_do_not_shape_the_space():
    world, (batch, _) = world_of("action_free"), discs(8, seeded(3))
    total, terms = world.loss(batch, seeded())
    learned = torch.autograd.grad(
        terms["dynamics"], [*world.parameters()], allow_unused=True, retain_graph=True
    )
    reached = {name for (name, _), g in zip(world.named_parameters(), learned, strict=True) if g is not None}
    assert reached and all(name.startswith("dynamics.") for name in reached)
    moved = dataclasses.replace(batch, actions=-batch.actions)
    assert world.loss(moved, seeded())[1]["dynamics"] != terms["dynamics"]
    expected = terms["prediction"] + 0.5 * terms["sigreg"] + terms["dynamics"]
    torch.testing.assert_close(total, expected)
    with pytest.raises(ValueError, match="inverse_dynamics must be 0"):
        world_of("action_free", inverse_dynamics=1.0)


# -- next embedding ----------------------------------------------------------------------------------


def test_next_embeddings_by_hand():
    """Each patch's output against the next one's embedding without its position; the embedding gets no gradient."""
    world, (batch, _) = world_of("nepa", encoder=CAUSAL), discs(3, seeded(3))
    world.eval()
    loss, _ = world.objective.token_loss(world, batch, seeded())
    pixels, total = batch.pixels.flatten(0, 1), 0.0
    tokens, embedded = (part(pixels).detach() for part in (world.encoder.tokens, world.encoder.embeddings))
    for picture in range(6):
        for place in range(15):
            pair = tokens[picture, place], embedded[picture, place + 1]
            total -= float(pair[0] @ pair[1] / pair[0].norm() / pair[1].norm()) / 90
    assert loss.item() == pytest.approx(total, rel=1e-4)
    tokens = world.encoder.tokens
    world.encoder.tokens = lambda p: tokens(p).detach() + 0 * world.encoder.project.weight.sum()
    still, _ = world.objective.token_loss(world, batch, seeded())
    (gradient,) = torch.autograd.grad(still, world.encoder.patches.weight, allow_unused=True)
    assert gradient is None  # the way through the targets


def test_a_causal_encoder_does_not_look_ahead():
    world, (batch, _) = world_of("nepa", encoder=CAUSAL), discs(4, seeded(3))
    pixels = batch.pixels[:, 0]
    changed = pixels.clone()
    changed[:, :, 8:12, 8:12] = 255 - changed[:, :, 8:12, 8:12]  # the patch 2 * 4 + 2 = 10
    for mode in (True, False):
        world.train(mode)
        with torch.no_grad():
            before, after = world.encoder.tokens(pixels), world.encoder.tokens(changed)
        torch.testing.assert_close(before[:, :10], after[:, :10], rtol=1e-4, atol=1e-5)
        assert (before - after).abs().amax((0, 2))[10:].min() > 1e-4


def test_an_encoder_that_is_not_causal_is_refused():
    with pytest.raises(ValueError, match=r"encoder='vit', encoder_options=\{'causal': True\}"):
        world_of("nepa")
    with pytest.raises(ValueError, match="use 'vit'"):
        WorldModel(WorldModelConfig(SPEC, 8, encoder_options={"widths": (4,)}, objective="nepa"))


# -- learning ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["teacher", "action_free"])
def test_latents_know_more_of_the_disc_than_before(objective):
    before, after = (known_place(learn(world_of(objective), n, 1e-2)) for n in (0, 25))
    assert after > before + 0.2, (before, after)


def test_next_embeddings_teach_where_the_disc_is():
    """By the exact components of the tokens, which at first are mostly those of patches that tell nothing of others."""
    read, pixels = [], disturbed(300, seeded(98))[0].pixels[:, 0]
    for updates in (0, 50):
        world = learn(world_of("nepa", encoder=CAUSAL, dynamics=0.0), updates, 5e-3, disturbed)
        fit_readout(world.encoder, pixels)
        read.append(known_place(world, disturbed))
    assert read[1] > read[0] + 0.2, read
