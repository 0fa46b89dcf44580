"""Encoders and dynamics under the shipped contracts; the world model's loss, targets and files."""

import copy
import pickle
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jepa_rl import ActionSpec, Batch, WorldModel, WorldModelConfig, WorldSpec
from jepa_rl.dynamics import CausalTransformerDynamics, GRUDynamics, HeldActions, MLPDynamics
from jepa_rl.encoders import ConvEncoder, FramesEncoder, KeypointEncoder, ViTEncoder, conv
from jepa_rl.encoders.conv import PatchConv
from jepa_rl.encoders.keypoints import blurred, gaussian
from jepa_rl.files import FORMAT_VERSION, load_tensors, save_tensors
from jepa_rl.objectives import EB_JEPA, EMA, LEWM
from jepa_rl.testing import DynamicsContract, EncoderContract

CONTINUOUS = WorldSpec((2, 32, 32), 1, ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)), 2)
DISCRETE = WorldSpec((3, 32, 32), 3, ActionSpec("discrete", 4, start=1), 3)


def build(spec=CONTINUOUS, **options):
    torch.manual_seed(0)
    return WorldModel(WorldModelConfig(spec, latent_dim=8, **options))


def windows(spec, b=6, h=3, seed=0):
    rng = np.random.default_rng(seed)
    action = spec.action
    if action.kind == "discrete":
        raw = rng.integers(action.start, action.start + action.size, (b, h, spec.block))
    else:
        raw = rng.uniform(-1, 1, (b, h, spec.block, action.size))
    return Batch(
        torch.from_numpy(rng.integers(0, 256, (b, h + 1, *spec.pixels), dtype=np.uint8)),
        torch.from_numpy(action.encode(raw)).reshape(b, h, -1),
        torch.zeros(b, h),
        torch.zeros(b, h, dtype=torch.bool),
    )


class TestConvWorld(EncoderContract):
    pixels = (2, 32, 32)

    def make_encoder(self):
        return build().eval()


class TestFramesWorld(EncoderContract):
    pixels = (3, 32, 32)

    def make_encoder(self):
        return build(DISCRETE, encoder="frames", encoder_options={"frames": 3, "widths": (8, 8)}).eval()


class TestKeypointsAndCoarseFeaturesOfFrames(EncoderContract):
    pixels = (3, 32, 32)

    def make_encoder(self):
        options = {"frames": 3, "widths": (16, 8), "keypoints": 4, "narrow": 6, "coarse": 4}
        return build(DISCRETE, encoder="frames", encoder_options=options).eval()


class TestFramesOfKeypointsWorld(EncoderContract):
    pixels = (3, 32, 32)

    def make_encoder(self):
        return build(DISCRETE, encoder="frames", encoder_options={"frames": 3, "keypoints": 4}).eval()


class TestKeypointWorld(EncoderContract):
    pixels = (2, 32, 32)

    def make_encoder(self):
        return build(encoder="keypoints", encoder_options={"keypoints": 3, "widths": (16, 8, 8)}).eval()


class TestViTWorld(EncoderContract):
    pixels = (2, 32, 32)

    def make_encoder(self):
        return build(encoder="vit", encoder_options={"width": 24, "depth": 1, "heads": 2}).eval()


class TestMLP(DynamicsContract):
    def make_dynamics(self):
        torch.manual_seed(0)
        return MLPDynamics(6, 3, width=16)


class TestGRU(DynamicsContract):
    def make_dynamics(self):
        torch.manual_seed(0)
        return GRUDynamics(6, 3, width=16)


class TestHeld(DynamicsContract):
    def make_dynamics(self):
        torch.manual_seed(0)
        return HeldActions(MLPDynamics(6, 6, width=16), 2)


def test_bfloat16_training_stays_close_to_float32():
    torch.manual_seed(0)
    encoder = ConvEncoder(2, 32, 8)
    pixels = torch.randint(0, 256, (64, 2, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        trained = encoder.train()(pixels)  # bfloat16 where the processor is fast at it, batch moments
        features = encoder.project(encoder.convolutions(pixels).flatten(1))  # float32
    expected = torch.nn.functional.batch_norm(features, None, None, training=True, eps=encoder.norm.eps)
    assert (trained - expected).square().mean().sqrt() < 0.05


@pytest.mark.parametrize("patch", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [16, 17, 24])
def test_patches_of_bytes_are_a_strided_convolution(patch, size):
    torch.manual_seed(0)
    stem = PatchConv(3, size, 5, patch).eval()
    pixels = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    expected = torch.nn.functional.conv2d(
        pixels.double() / 255, stem.weight.double(), stem.bias.double(), patch
    )
    torch.testing.assert_close(stem(pixels).double(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"expected uint8 pixels, got torch.float32"):
        stem(pixels.float())


def test_patches_are_standardised_by_what_training_showed():
    torch.manual_seed(0)
    background = torch.randint(0, 200, (3, 16, 16), dtype=torch.uint8)
    pixels = background + torch.randint(0, 50, (64, 3, 16, 16), dtype=torch.uint8)
    stem = PatchConv(3, 16, 5, 4)
    stem.train()(pixels[:1])  # one picture has no spread
    stem.eval()(pixels)
    assert stem.measured == 0
    for part in pixels.split(32) * 2:
        stem.train()(part)
    assert stem.measured == 4
    centred = (pixels.double() - pixels.double().mean(0).round()) / stem.spread.double()
    assert 0.95 < centred.std() < 1.05
    expected = torch.nn.functional.conv2d(centred, stem.weight.double(), stem.bias.double(), 4)
    torch.testing.assert_close(stem.eval()(pixels).double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda stem, other: stem.load_state_dict(other.state_dict()),
        lambda stem, other: stem.load_state_dict(other.state_dict(), assign=True),
        lambda stem, other: [
            mine.copy_(its) for mine, its in zip(stem.buffers(), other.buffers(), strict=True)
        ],
        lambda stem, other: stem.double(),
        lambda stem, other: stem.train(),
    ],
)
def test_a_mean_picture_that_changes_is_read_anew(change):
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    stem, other = PatchConv(3, 16, 5, 4), PatchConv(3, 16, 5, 4)
    stem(pixels), other(255 - pixels)
    with torch.inference_mode():  # what is kept from here must do for training, too
        stem.eval()(pixels)
    change(stem, other)
    found = stem(pixels)
    found.sum().backward()
    centred = (pixels.double() - stem.mean.double().round()) / stem.spread.double()
    expected = torch.nn.functional.conv2d(centred, stem.weight.double(), stem.bias.double(), 4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda stem: pickle.loads(pickle.dumps(stem))])
def test_a_copy_reads_its_own_mean_picture(copied):
    """However often it changes: versions of tensors count anew in a copy."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    stem = PatchConv(3, 16, 5, 4)
    for _ in range(4):
        stem.train()(pixels)
    for changes in range(1, 12):
        other = copied(stem).eval()
        for _ in range(changes):
            other.mean.add_(1)
        found = other(pixels)
        other._kept = None
        assert torch.equal(found, other(pixels))


def test_statistics_of_pixels_are_fixed_after_a_while(monkeypatch):
    monkeypatch.setattr(conv, "MEASURED", 2)
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    stem = PatchConv(3, 16, 5, 4).train()
    for _ in range(3):
        stem(pixels)
    before = stem.mean.clone()
    stem(255 - pixels)
    assert stem.measured == 2 and torch.equal(stem.mean, before)


def test_pictures_that_are_all_alike_have_a_spread():
    stem = PatchConv(3, 16, 5, 4).train()
    assert stem(torch.full((4, 3, 16, 16), 7, dtype=torch.uint8)).isfinite().all()
    assert stem.spread == 1


def test_weights_without_statistics_of_pixels_read_them_as_before():
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    old = {
        name: value
        for name, value in PatchConv(3, 16, 5, 4).state_dict().items()
        if name in ("weight", "bias")
    }
    encoder = ConvEncoder(3, 16, 4, widths=(5, 8), norm=False)
    encoder.train()(pixels)
    encoder.convolutions[0].load_state_dict(old)
    expected = torch.nn.functional.conv2d(pixels / 255, old["weight"], old["bias"], 4)
    for _ in range(2):  # training does not measure them, either
        torch.testing.assert_close(encoder.train().convolutions[0](pixels), expected, rtol=1e-4, atol=1e-5)


def test_convolutions_are_in_bfloat16_only_where_that_is_fast(monkeypatch):
    """A processor limited to AVX2, as by ATEN_CPU_CAPABILITY, emulates bfloat16."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    torch.manual_seed(0)
    encoder = ConvEncoder(2, 32, 8, norm=False)
    pixels = torch.randint(0, 256, (8, 2, 32, 32), dtype=torch.uint8)
    assert torch.equal(encoder.train()(pixels), encoder.eval()(pixels))


def test_every_frame_of_a_stack_is_read_alike():
    torch.manual_seed(0)
    encoder = FramesEncoder(6, 16, 5, frames=3, widths=(8, 8), frame_dim=32, norm=False).eval()
    pixels = torch.randint(0, 256, (4, 6, 16, 16), dtype=torch.uint8)
    readings = torch.stack([encoder.frame(frame) for frame in pixels.split(2, dim=1)], dim=1)
    joined = [readings[:, 2], readings[:, 1] - readings[:, 0], readings[:, 2] - readings[:, 1]]
    torch.testing.assert_close(encoder(pixels), encoder.join(torch.cat(joined, dim=1)))
    still = pixels[:, -2:].repeat(1, 3, 1, 1)  # nothing moves: nothing is said but where things are
    there = torch.cat([readings[:, 2], torch.zeros(4, 64)], dim=1)
    torch.testing.assert_close(encoder(still), encoder.join(there))


def test_a_stack_of_unequal_frames_is_refused():
    with pytest.raises(ValueError, match="8 channels cannot be split into 3 frames"):
        FramesEncoder(8, 16, 5, frames=3)


def test_a_keypoint_is_where_its_map_is_high():
    """One map that is the brightness of each cell: a lit cell is its keypoint, two lit ones have it between them."""
    encoder = KeypointEncoder(1, 20, 5, keypoints=1, widths=(1, 1)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        encoder.convolutions[0].weight.fill_(1 / 16)
        encoder.convolutions[2].weight[0, 0, 1, 1] = 1.0
        encoder.maps.weight.fill_(100.0)
    pixels = torch.zeros(3, 1, 20, 20, dtype=torch.uint8)
    pixels[0, 0, 4:8, 16:20] = 255  # row 1 and column 4 of five
    pixels[1, 0, 4:8, 16:20] = pixels[1, 0, 4:8, 12:16] = 255
    where, height = encoder.read(pixels)
    torch.testing.assert_close(where[:, 0], torch.tensor([[1.0, -0.5], [0.75, -0.5], [0.0, 0.0]]))
    torch.testing.assert_close(height[:, 0], torch.tensor([100.0, 100.0, 0.0]))


def test_no_keypoints_are_refused():
    with pytest.raises(ValueError, match="keypoints must be at least 1, got 0"):
        KeypointEncoder(1, 32, 4, keypoints=0)


@pytest.mark.parametrize("widths", [(8, 6), (8,)])
@pytest.mark.parametrize("size", [12, 20, 64])
def test_coarse_features_are_read_beside_keypoints(size, widths):
    """The latent is a linear layer of keypoints, their heights, and the features of two further convolutions."""
    torch.manual_seed(0)
    encoder = KeypointEncoder(3, size, 5, keypoints=2, widths=widths, narrow=4, coarse=3, norm=False).eval()
    pixels = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    features = encoder.tokens(pixels).transpose(1, 2).unflatten(2, (size // 4, size // 4))
    where, height = encoder.read(pixels)
    parts = [where.flatten(1), torch.tanh(0.3 * height), encoder.coarse(features)]
    torch.testing.assert_close(encoder(pixels), encoder.project(torch.cat(parts, 1)))
    assert parts[2].abs().max() > 0
    encoder.train()(pixels).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.coarse.parameters() if p.dim() > 1
    )


@pytest.mark.parametrize("name", ["narrow", "coarse"])
def test_options_of_keypoints_need_keypoints(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
        KeypointEncoder(1, 32, 4, **{name: -1})
    with pytest.raises(ValueError, match=rf"narrow and coarse are options of keypoints, got .*{name}=4"):
        FramesEncoder(9, 32, 4, frames=3, **{name: 4})


def test_blur_makes_a_gaussian_of_a_dot_and_leaves_flat_pictures():
    weights, at = gaussian(32, 1.5), torch.arange(32.0)
    dot = torch.full((2, 1, 32, 32), 20, dtype=torch.uint8)
    dot[0, 0, 14, 17] = 255
    spread = (-((at[:, None] - 14) ** 2 + (at - 17) ** 2) / (2 * 1.5**2)).exp() / (2 * torch.pi * 1.5**2)
    soft = blurred(dot, weights)
    assert (soft[0, 0] - (20 + 235 * spread)).abs().max() <= 0.51
    assert torch.equal(soft[1], dot[1])


def test_an_encoder_with_blur_reads_blurred_pictures():
    torch.manual_seed(0)
    plain = KeypointEncoder(3, 32, 4, widths=(8, 8), sharpness=50.0).eval()
    soft = KeypointEncoder(3, 32, 4, widths=(8, 8), sharpness=50.0, blur=1.5).eval()
    soft.load_state_dict(plain.state_dict())
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(soft(pixels), plain(blurred(pixels, gaussian(32, 1.5))))
    assert (soft(pixels) - plain(pixels)).abs().max() > 0.01
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        soft(pixels.float())
    with pytest.raises(ValueError, match="blur must be at least 0, got -1"):
        KeypointEncoder(1, 32, 4, blur=-1)


@pytest.mark.parametrize(
    "make", [lambda: ConvEncoder(1, 8, 4), lambda: ViTEncoder(1, 30, 4), lambda: KeypointEncoder(1, 8, 4)]
)
def test_pictures_too_small_or_odd(make):
    with pytest.raises(ValueError, match="size"):
        make()


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("objective", [LEWM, EB_JEPA, EMA, "jepa", "consistency", "change", "reconstruction"])
@pytest.mark.parametrize("dynamics", ["mlp", "gru", "transformer"])
def test_every_combination_trains(spec, objective, dynamics):
    model, batch = build(spec, objective=objective, dynamics=dynamics), windows(spec)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss, terms = model.loss(batch, torch.Generator().manual_seed(0))
        assert all(torch.isfinite(value) for value in terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_update()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < losses[0]


def test_the_target_that_takes_no_gradient():
    """With stop-gradient, only what is predicted *from* moves the encoder: a last state alone gets no gradient."""
    for target, moves in (("online", True), ("stop_gradient", False)):
        model = build(objective_options={"sigreg": 0.0, "target": target}).eval()  # batch norm mixes no rows
        batch = windows(CONTINUOUS, h=1)
        first = model.encode(batch.pixels[:, 0]).detach()
        model.encode = lambda pixels, z=first, m=model: (
            torch.cat([z, m.encoder(pixels[len(z) :])]) if len(pixels) > len(z) else m.encoder(pixels)
        )
        model.encode_windows = lambda pixels, m=model, z=first: torch.stack([z, m.encoder(pixels[:, 1])], 1)
        model.loss(batch)[0].backward()
        gradient = sum(p.grad.abs().sum().item() for p in model.encoder.parameters() if p.grad is not None)
        assert (gradient > 0) == moves


def test_the_moving_average_follows_its_formula():
    model = build(objective=EMA, objective_options={"ema_decay": 0.9})
    before = [p.clone() for p in model.objective.target_encoder.parameters()]
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(1.0)
    model.after_update()
    for old, new, online in zip(
        before, model.objective.target_encoder.parameters(), model.encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * online)
        assert not new.requires_grad


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE])
def test_a_saved_model_is_the_same_model(spec, tmp_path):
    model = build(spec, objective=EB_JEPA, encoder_options={"widths": (8, 16)}).eval()
    model.save(tmp_path / "deep" / "model.safetensors")
    for path in (tmp_path / "deep" / "model.safetensors", tmp_path / "deep"):
        again = WorldModel.load(path)
        assert again.config == model.config and not again.training
        batch = windows(spec)
        with torch.no_grad():
            assert torch.equal(again.encode_windows(batch.pixels), model.encode_windows(batch.pixels))
            z = model.encode(batch.pixels[:, 0])
            assert torch.equal(again.rollout(z, batch.actions), model.rollout(z, batch.actions))
            assert torch.equal(model.step(z, batch.actions[:, 0]), model.rollout(z, batch.actions)[:, 0, 1])


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "model.safetensors"
    build().save(path)
    data = path.read_bytes()
    cases = {
        "truncated": data[: len(data) // 2],
        "short": data[:4],
        "empty": b"",
        "pickle": pickle.dumps({"weights": [1, 2, 3]}),
        "flipped": data[:200] + bytes([data[200] ^ 0xFF]) + data[201:],
        "flipped weight": data[:-100] + bytes([data[-100] ^ 0xFF]) + data[-99:],
        "header too long": struct.pack("<Q", 2**40) + data[8:],
    }
    for name, broken in cases.items():
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"corrupt|not written by jepa-rl|damaged"):
            print(name)
            WorldModel.load(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not written by jepa-rl"):
        WorldModel.load(path)
    save_tensors(path, "poem", {"x": torch.zeros(2)}, {})
    with pytest.raises(ValueError, match="'poem'"):
        WorldModel.load(path)
    with pytest.raises(FileNotFoundError):
        WorldModel.load(tmp_path / "nowhere.safetensors")


def test_a_file_from_the_future(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa_rl.files.FORMAT_VERSION", FORMAT_VERSION + 1)
    build().save(tmp_path / "model.safetensors")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"version.*upgrade"):
        WorldModel.load(tmp_path / "model.safetensors")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """The kernel's file-size limit, in a process of its own, stands for the full disk."""
    path = tmp_path / "model.safetensors"
    save_tensors(path, "world_model", {"x": torch.zeros(3)}, {})
    before = path.read_bytes()
    code = f"""
import resource, signal, torch
from jepa_rl.files import save_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    save_tensors({str(path)!r}, "world_model", {{"x": torch.zeros(10000)}}, {{}})
except OSError as error:
    assert "free some space" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert torch.equal(load_tensors(path, ("world_model",))[0]["x"], torch.zeros(3))


def test_wrong_inputs():
    model = build()
    with pytest.raises(ValueError, match="expected uint8"):
        model.encode(torch.zeros(1, 2, 32, 32))
    with pytest.raises(ValueError, match=r"PixelObservation\(env, size=32"):
        model.encode(torch.zeros(1, 2, 64, 64, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"torch\.from_numpy makes one"):
        model.encode(np.zeros((1, 2, 32, 32), np.uint8))
    with pytest.raises(ValueError, match="actions of width 4"):
        model.rollout(torch.zeros(1, 8), torch.zeros(1, 1, 2))
    with pytest.raises(ValueError, match="there is no encoder 'resnet', only"):
        WorldModelConfig(CONTINUOUS, encoder="resnet")
    with pytest.raises(ValueError, match="square"):
        WorldModelConfig(replace(CONTINUOUS, pixels=(2, 32, 48)))
    with pytest.raises(ValueError, match="latent_dim"):
        WorldModelConfig(CONTINUOUS, latent_dim=0)


def test_the_transformer_is_a_choice_for_the_world_model():
    model = build(dynamics="transformer", dynamics_options={"width": 32, "depth": 1})
    assert isinstance(model.dynamics, CausalTransformerDynamics)


def test_stacked_frames_are_known_from_the_spec():
    model = build(DISCRETE, encoder="frames", encoder_options={"widths": (8, 8)})
    assert model.encoder.frames == DISCRETE.frames


def test_a_subclass_that_overrides_forward_encodes_by_it():
    class Dark(ConvEncoder):
        def forward(self, pixels):
            return torch.zeros(len(pixels), self.latent_dim)

    assert not Dark(2, 32, 8).encode(torch.full((3, 2, 32, 32), 255, dtype=torch.uint8)).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent_dim": 200_000}, "weights, and the file holds"),
        ({"dynamics_options": {"depth": 10**7}}, "weights, and the file holds"),
        ({"dynamics_options": {"width": 10**12}}, "memory|overflow|weights"),
        ({"dynamics_options": {"width": 2.5}}, "cannot be built"),
        ({"spec": None}, "NoneType"),
    ],
)
def test_a_file_cannot_describe_more_than_it_holds(tmp_path, changes, words):
    """The checksum is right; weights that the file does not hold are refused before they take memory."""
    path = tmp_path / "model.safetensors"
    build().save(path)
    tensors, header = load_tensors(path, ("world_model",))
    save_tensors(path, "world_model", tensors, header | {"config": header["config"] | changes})
    with pytest.raises(ValueError, match=rf"model.safetensors does not describe a world model.*({words})"):
        WorldModel.load(path)
