"""Masks, and the objectives that predict what they hide."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from moving_disc import SPEC, VIT, discs, known_place, learn, seeded, world_of

from jepa_rl import TrainConfig, WorldModel, WorldModelConfig, fit
from jepa_rl.encoders import ConvEncoder, ViTEncoder, fit_readout
from jepa_rl.encoders.conv import MEASURED
from jepa_rl.objectives.masked_autoencoder import patches_of
from jepa_rl.objectives.masks import block_mask, block_sides, random_mask, taken, tube_mask
from jepa_rl.testing import EncoderContract, ObjectiveContract

CPU = torch.device("cpu")
SMALL = {"width": 16, "depth": 1}
MASKED = {"ijepa": SMALL | {"targets": 2}, "vjepa": SMALL | {"ratio": 0.5}, "mae": SMALL}


class TestImageJEPA(ObjectiveContract):
    def make_world(self) -> WorldModel:
        return world_of("ijepa", **MASKED["ijepa"])


class TestVideoJEPA(ObjectiveContract):
    def make_world(self) -> WorldModel:
        return world_of("vjepa", **MASKED["vjepa"])


class TestMaskedAutoencoder(ObjectiveContract):
    def make_world(self) -> WorldModel:
        return world_of("mae", **MASKED["mae"])


class TestViTOfAllTokens(EncoderContract):
    pixels = (1, 16, 16)

    def make_encoder(self):
        torch.manual_seed(0)
        return ViTEncoder(1, 16, 4, causal=True, **VIT).eval()


# -- masks ---------------------------------------------------------------------------------------


def test_random_masks_split_the_places_and_hide_each_equally_often():
    mask = random_mask(2000, 4, 12, seeded(), CPU)
    both = torch.cat([mask.seen, mask.hidden[:, 0]], 1).sort(1).values
    assert torch.equal(both, torch.arange(16).expand(2000, -1))
    share = mask.hidden.flatten().bincount() / 2000
    assert (share - 0.75).abs().max() < 4 * math.sqrt(0.75 * 0.25 / 2000)


def test_sides_of_blocks():
    assert block_sides(12.8, 1.0, 8) == (3, 4)  # the root of 12 is 3.5, rounded to even
    assert block_sides(12.8, 1.5, 8) == (4, 3)
    assert block_sides(64, 1.0, 8) == (8, 8)
    assert block_sides(0.3, 1.0, 4) == (1, 1)


def test_a_context_holds_no_place_of_its_targets():
    for seed in range(5):
        mask = block_mask(50, 8, 4, (0.15, 0.2), (0.85, 1.0), seeded(seed), CPU)
        assert mask.hidden.shape[:2] == (50, 4) and mask.seen.shape[1] >= 1
        for seen, hidden in zip(mask.seen, mask.hidden, strict=True):
            assert not set(seen.tolist()) & set(hidden.flatten().tolist())
            for block in hidden:  # a full rectangle
                rows, columns = (block // 8).unique(), (block % 8).unique()
                assert len(rows) * len(columns) == len(block) and len(block) <= 0.2 * 64
                assert rows.diff().eq(1).all() and columns.diff().eq(1).all()
    assert mask.hidden[:, 0, 0].unique().numel() > 5  # each picture has places of its own


def test_tubes_hide_whole_blocks_and_as_many_places_as_asked():
    mask = tube_mask(40, 8, 24, 1, 0.25, seeded(), CPU)
    assert mask.hidden.shape == (40, 1, 24) and mask.seen.shape == (40, 40)
    for hidden in mask.hidden[:, 0]:  # one block of at most 16 places is hidden as a whole; the rest fills up
        inside = torch.zeros(64).index_fill(0, hidden, 1.0).view(1, 1, 8, 8)
        assert any(
            F.avg_pool2d(inside, (high, 16 // high), 1).max() == 1 for high in (3, 4, 5) if 16 // high <= 8
        )


@pytest.mark.parametrize("objective", MASKED)
def test_a_tube_and_every_mask_come_from_the_generator(objective):
    world, (batch, _) = world_of(objective, **MASKED[objective]), discs(8, seeded(3))
    found = [world.objective.token_loss(world, batch, seeded(s))[0].item() for s in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_a_tube_is_at_the_same_place_in_all_frames(monkeypatch):
    """What enters the encoder, window by window: each frame gives the same places."""
    world, (batch, _) = world_of("vjepa", **MASKED["vjepa"]), discs(6, seeded(3), steps=2)
    kept, tokens = [], world.encoder.tokens
    monkeypatch.setattr(world.encoder, "tokens", lambda p, keep=None: kept.append(keep) or tokens(p, keep))
    world.objective.token_loss(world, batch, seeded())
    frames = kept[0].view(6, 3, -1)
    assert torch.equal(frames[:, 0], frames[:, 1]) and torch.equal(frames[:, 0], frames[:, 2])
    assert not torch.equal(frames[0], frames[1])


# -- nothing leaks ---------------------------------------------------------------------------------


def test_tokens_of_kept_places_do_not_depend_on_the_others():
    torch.manual_seed(0)
    encoder = ViTEncoder(1, 16, 4, **VIT).eval()
    pixels = torch.randint(0, 256, (5, 1, 16, 16), dtype=torch.uint8)
    mask = random_mask(5, 4, 10, seeded(), CPU)
    hidden = torch.zeros(5, 16).scatter(1, mask.hidden[:, 0], 1.0).view(5, 1, 4, 4)
    hidden = hidden.repeat_interleave(4, 2).repeat_interleave(4, 3).bool()
    changed = torch.where(hidden, 255 - pixels, pixels)
    torch.testing.assert_close(
        encoder.tokens(changed, mask.seen), encoder.tokens(pixels, mask.seen), rtol=0, atol=0
    )
    assert not torch.equal(encoder.tokens(changed), encoder.tokens(pixels))
    every = torch.arange(16).expand(5, -1)
    torch.testing.assert_close(encoder.tokens(pixels, every), encoder.tokens(pixels))


@pytest.mark.parametrize("objective", MASKED)
def test_what_is_predicted_does_not_depend_on_hidden_pixels(objective, monkeypatch):
    """Pixels of all hidden places are inverted: the predictor answers the same, and the targets change."""
    world, (batch, _) = world_of(objective, **MASKED[objective]), discs(8, seeded(3))
    world.encoder.patches.measured.fill_(MEASURED)  # the mean picture knows hidden pixels, too
    asked, forward = [], world.objective.predictor.forward

    def listen(tokens, seen, hidden, **rest):
        asked.append((seen, hidden, forward(tokens, seen, hidden, **rest)))
        return asked[-1][2]

    monkeypatch.setattr(world.objective.predictor, "forward", listen)
    first, _ = world.objective.token_loss(world, batch, seeded(5))
    seen = asked[0][0]
    if objective == "ijepa":  # rows are repeated for each target
        seen = seen[:: len(seen) // 16]
    if objective == "vjepa":  # both frames of a window in one row
        seen = seen.view(16, -1)
    visible = torch.zeros(16, 16).scatter(1, seen, 1.0).view(8, 2, 1, 4, 4)
    visible = visible.repeat_interleave(4, 3).repeat_interleave(4, 4).bool()
    changed = dataclasses.replace(batch, observations=torch.where(visible, batch.pixels, 255 - batch.pixels))
    second, _ = world.objective.token_loss(world, changed, seeded(5))
    torch.testing.assert_close(asked[1][2], asked[0][2], rtol=0, atol=0)
    assert first != second


# -- losses ------------------------------------------------------------------------------------------


def test_mae_counts_hidden_patches_alone():
    """By hand: a decoder that always answers 0.5, against the pixels of each hidden patch, normalised or not."""
    batch, _ = discs(4, seeded(3))
    pixels = batch.pixels.flatten(0, 1)
    mask = random_mask(8, 4, 12, seeded(5), CPU)
    for normalise in (True, False):
        world = world_of("mae", normalise=normalise, **SMALL)
        torch.nn.init.zeros_(world.objective.predictor.head.weight)
        torch.nn.init.constant_(world.objective.predictor.head.bias, 0.5)
        found, _ = world.objective.token_loss(world, batch, seeded(5))
        total = 0.0
        for picture, places in zip(pixels.double() / 255, mask.hidden[:, 0], strict=True):
            for place in places.tolist():
                row, column = 4 * (place // 4), 4 * (place % 4)
                patch = picture[0, row : row + 4, column : column + 4]
                if normalise:
                    patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
                total += float((patch - 0.5).square().mean()) / (8 * 12)
        assert found.item() == pytest.approx(total, rel=1e-4)


def test_patches_are_in_the_order_of_the_tokens():
    encoder = ViTEncoder(1, 16, 4, **VIT).eval()
    pixels = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    expected = (
        patches_of(pixels, 4, normalise=False) @ encoder.patches.weight.flatten(1).T + encoder.patches.bias
    )
    torch.testing.assert_close(encoder.embeddings(pixels), expected, rtol=1e-4, atol=1e-5)


def test_vjepa_is_an_l1_norm_and_ijepa_a_smooth_one_against_normalised_tokens_of_the_teacher(monkeypatch):
    batch, _ = discs(4, seeded(3))
    for objective, norm in (("ijepa", F.smooth_l1_loss), ("vjepa", F.l1_loss)):
        world = world_of(objective, **MASKED[objective])
        torch.nn.init.zeros_(world.objective.predictor.head.weight)
        torch.nn.init.constant_(world.objective.predictor.head.bias, 0.5)
        found, _ = world.objective.token_loss(world, batch, seeded(5))
        tokens = F.layer_norm(
            world.encoder.tokens(batch.pixels.flatten(0, 1)), (32,)
        )  # the teacher is a copy yet
        if objective == "ijepa":
            hidden = block_mask(8, 4, 2, (0.15, 0.2), (0.85, 1.0), seeded(5), CPU).hidden.flatten(1)
        else:
            hidden = tube_mask(4, 4, 8, 8, 0.15, seeded(5), CPU).hidden[:, 0].repeat_interleave(2, 0)
        target = taken(tokens, hidden)
        torch.testing.assert_close(found, norm(torch.full_like(target, 0.5), target))


@pytest.mark.parametrize("objective", MASKED)
def test_only_the_tokens_loss_reaches_the_tokens_and_nothing_the_teacher(objective):
    """Readout and dynamics train the last layer and the dynamics; the tokens' loss trains all before the last layer."""
    world, (batch, _) = world_of(objective, **MASKED[objective]), discs(8, seeded(3))
    total, terms = world.loss(batch, seeded())
    body, last = world.encoder.patches.weight, world.encoder.project.weight

    def reached(loss, weight):
        return torch.autograd.grad(loss, weight, retain_graph=True, allow_unused=True)[0] is not None

    first = next(iter(terms.values()))
    assert reached(first, body) and not reached(first, last)
    assert reached(terms["readout"], last) and not reached(terms["readout"], body)
    dynamics = next(world.dynamics.parameters())
    assert reached(terms["dynamics"], dynamics) and not reached(terms["dynamics"], last)
    teacher = getattr(world.objective, "teacher", torch.nn.Module())
    assert not any(p.requires_grad for p in teacher.parameters()) and reached(total, body)


# -- readout -----------------------------------------------------------------------------------------


def test_the_exact_readout_is_whitened_principal_components():
    torch.manual_seed(0)
    encoder = ViTEncoder(1, 16, 3, **VIT)
    pixels = discs(300, seeded())[0].pixels[:, 0]
    share = fit_readout(encoder, pixels)
    z, tokens = encoder.eval()(pixels).detach(), encoder.tokens(pixels).flatten(1).detach()
    torch.testing.assert_close(z.T @ z / 300, torch.eye(3), rtol=0, atol=1e-3)
    values = torch.linalg.eigvalsh((tokens - tokens.mean(0)).T.double() @ (tokens - tokens.mean(0)).double())
    assert share == pytest.approx(float(values[-3:].sum() / values.sum()), rel=1e-3)
    with pytest.raises(ValueError, match="vary in fewer directions than the latent's 3"):
        fit_readout(encoder, pixels[:2])
    with pytest.raises(ValueError, match="ConvEncoder; use 'vit'"):
        fit_readout(ConvEncoder(1, 16, 3), pixels)


def test_the_learned_readout_approaches_the_principal_components():
    """Of tokens that stand still: the linear decoder explains nearly what two exact components do, uncorrelated."""
    world = world_of("mae", latent_dim=2, **SMALL)
    pixels, objective = discs(150, seeded())[0].pixels[:, 0], world.objective
    tokens = world.encoder.tokens(pixels).detach()
    world.encoder.tokens = lambda _: tokens
    optimiser = torch.optim.Adam(
        [*world.encoder.project.parameters(), *objective.decoder.parameters()], lr=2e-2
    )
    for _ in range(150):
        z, loss = objective.read(world, pixels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    best = fit_readout(world.encoder, pixels)
    assert 1 - loss.item() == pytest.approx(best, abs=0.02) and 0.2 < best < 0.95
    assert abs(float((z[:, 0] * z[:, 1]).detach().mean())) < 0.1


# -- refusals, files, learning -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ("mae", {"ratio": 0.0}, "hides nothing"),
        ("mae", {"ratio": 1.0}, "hides everything"),
        ("mae", {"ratio": 1.5}, "is no share"),
        ("vjepa", {"ratio": 0.99}, "hides everything"),
        ("vjepa", {"blocks": 0}, "blocks must be at least 1"),
        ("ijepa", {"targets": 0}, "hides nothing"),
        ("ijepa", {"targets": 4}, "hide up to 12 places, everything where a context has only 12"),
        ("ijepa", {"target_scale": (0.3, 0.2)}, "target_scale must be two shares"),
        ("ijepa", {"targets": 2, "ema": (1.0, 1.0, 5)}, "ema must be"),
        ("mae", {"width": 20}, "width must be a multiple of 16"),
        ("mae", {"readout": -1.0}, "readout must be at least 0"),
    ],
)
def test_masks_and_settings_that_make_no_sense(objective, options, message):
    with pytest.raises(ValueError, match=message):
        world_of(objective, **options)


def test_encoders_that_cannot_leave_tokens_out():
    with pytest.raises(
        ValueError, match=r"need one picture and an encoder with tokens, summary, readout .* use 'vit'"
    ):
        WorldModel(WorldModelConfig(SPEC, 8, encoder_options={"widths": (4,)}, objective="mae"))
    with pytest.raises(ValueError, match="not causal, got ViTEncoder with 16 tokens; use 'vit'"):
        world_of("mae", encoder={"causal": True})
    encoder, pixels = ViTEncoder(1, 16, 4, **VIT), torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="keep must hold at least one place"):
        encoder.tokens(pixels, torch.zeros(2, 0, dtype=torch.long))


def test_a_finished_model_comes_without_teacher_and_trains_on(tmp_path):
    world = learn(world_of("ijepa", **MASKED["ijepa"]), 2, 1e-2)
    world.save(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * sum(
        t.numel() for k, t in world.state_dict().items() if not k.startswith("objective.teacher.")
    ) + 20_000
    again, pixels = WorldModel.load(tmp_path / "model.safetensors"), discs(3, seeded())[0].pixels[:, 0]
    torch.testing.assert_close(again.encode(pixels), world.eval().encode(pixels), rtol=0, atol=0)
    for teacher, encoder in zip(
        again.objective.teacher.parameters(), again.encoder.parameters(), strict=True
    ):
        assert torch.equal(teacher, encoder) and teacher is not encoder
    other = world.with_dynamics("gru")
    torch.testing.assert_close(other.encode(pixels), world.encode(pixels), rtol=0, atol=0)
    learn(again, 1, 1e-2)


class Drawn:
    """A sampler of fresh drawings."""

    def sample(self, size, rng):
        return discs(size, seeded(int(rng.integers(2**31))))[0]


def test_a_stopped_run_goes_on_exactly(tmp_path):
    config = TrainConfig(steps=4, batch_size=8, checkpoint_every=2, evaluate_every=3)
    whole, cut, again = (world_of("vjepa", **MASKED["vjepa"]) for _ in range(3))
    fit(whole, Drawn(), config, tmp_path / "whole", progress=False)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(cut, Drawn(), config, tmp_path / "cut", evaluate=stop, progress=False)
    fit(again, Drawn(), config, tmp_path / "cut", progress=False)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert int(whole.objective.schedule.done) == 4


@pytest.mark.parametrize("objective", MASKED)
def test_the_planners_latent_knows_more_of_the_disc_than_before(objective):
    """As trained together, tokens and readout."""
    options = MASKED[objective] | ({} if objective == "mae" else {"ema": (0.98, 1.0, 1000)})
    before, after = (known_place(learn(world_of(objective, **options), n, 1e-2)) for n in (0, 25))
    assert after > before + 0.2, (before, after)
