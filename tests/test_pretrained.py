"""The encoder ``pretrained``, on tiny models that are made here from configurations, saved to a folder and loaded."""

import hashlib
import json
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
import transformers as hf
from safetensors import safe_open

from jepa_rl import ActionSpec, TrainConfig, WindowSampler, WorldModel, WorldModelConfig, WorldSpec, fit
from jepa_rl.agents import JEPAMPC
from jepa_rl.control import world_config
from jepa_rl.encoders import PretrainedEncoder
from jepa_rl.encoders.components import PrincipalComponents
from jepa_rl.encoders.weights import Source, normalisation, weights_checksum
from jepa_rl.envs import PixelObservation, collect, wrap
from jepa_rl.testing import EncoderContract

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
VIT = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, patch_size=4)
MLP, PICTURE = dict(intermediate_size=32), dict(image_size=16)
TEXT = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


def dinov2(**options):
    return hf.Dinov2Model(hf.Dinov2Config(**VIT, **PICTURE, mlp_ratio=2, **options))


def clip():
    vision, text = hf.CLIPVisionConfig(**VIT, **MLP, **PICTURE), hf.CLIPTextConfig(**TEXT)
    return hf.CLIPModel(hf.CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict()))


def siglip():
    vision, text = hf.SiglipVisionConfig(**VIT, **MLP, **PICTURE), hf.SiglipTextConfig(**TEXT)
    return hf.SiglipModel(hf.SiglipConfig(vision_config=vision.to_dict(), text_config=text.to_dict()))


def vjepa2(size=16):
    predictor = dict(pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=2)
    return hf.VJEPA2Model(
        hf.VJEPA2Config(**VIT, **predictor, crop_size=size, mlp_ratio=2, frames_per_clip=4, tubelet_size=2)
    )


MODELS = {
    "dinov2": dinov2,
    "dinov2 with registers": lambda: hf.Dinov2WithRegistersModel(
        hf.Dinov2WithRegistersConfig(**VIT, **PICTURE, mlp_ratio=2)
    ),
    "dinov3": lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VIT, **MLP, **PICTURE)),
    "clip": clip,
    "clip's tower": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VIT, **MLP, **PICTURE)),
    "siglip": siglip,
    "siglip's tower": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**VIT, **MLP, **PICTURE)),
    "ijepa": lambda: hf.IJepaModel(hf.IJepaConfig(**VIT, **MLP, **PICTURE)),
    "vjepa2": vjepa2,
}


def save(model, folder, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2, generator=generator)
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return model


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A folder with a small DINOv2."""
    folder = tmp_path_factory.mktemp("dino")
    save(dinov2(), folder)
    return str(folder)


def pictures(count, channels=3, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def normalised(pixels):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


@torch.no_grad()
def reference(model, pixels):
    """The model's own last hidden state."""
    x, model = normalised(pixels), getattr(model, "vision_model", model)
    if model.config.model_type == "vjepa2":
        return model(pixel_values_videos=torch.stack([x, x], 1), skip_predictor=True).last_hidden_state
    resized = pixels.shape[-1] != 16 and "dino" not in model.config.model_type
    return model(pixel_values=x, **{"interpolate_pos_encoding": True} if resized else {}).last_hidden_state


# -- features ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_features_are_those_of_transformers(kind, tmp_path):
    model = save(MODELS[kind](), tmp_path)
    for size in (16, 24):
        encoder, pixels = PretrainedEncoder(3, size, 4, 1, str(tmp_path)), pictures(2, size=size)
        tokens = encoder.frame.backbone(pixels)
        if kind == "vjepa2":  # the grid of its rotary positions is that of the configured size
            other = vjepa2(size)
            other.load_state_dict(model.state_dict())
            model = other.eval()
        torch.testing.assert_close(tokens, reference(model, pixels), rtol=1e-5, atol=1e-5)
        places = encoder.tokens(pixels)
        assert places.shape == (2, (size // 4) ** 2, 24)
        torch.testing.assert_close(places, tokens[:, -places.shape[1] :], rtol=0, atol=0)


def test_a_middle_block_is_a_hidden_state_and_the_last_norm(tmp_path):
    model, pixels = save(dinov2(), tmp_path), pictures(2)
    with torch.no_grad():
        hidden = model(pixel_values=normalised(pixels), output_hidden_states=True).hidden_states
        for block in (1, 2, 3):
            encoder = PretrainedEncoder(3, 16, 4, 1, str(tmp_path), block=block)
            wanted = model.layernorm(hidden[block])
            torch.testing.assert_close(encoder.frame.backbone(pixels), wanted, rtol=1e-5, atol=1e-5)


def test_frames_are_resized_and_coloured(dino):
    backbone = PretrainedEncoder(3, 16, 4, 1, dino, resolution=8).frame.backbone
    stripes = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    stripes[..., ::2] = 100
    half = torch.full((1, 3, 8, 8), 50, dtype=torch.uint8)
    torch.testing.assert_close(backbone.prepare(stripes), normalised(half))  # means of areas
    large = PretrainedEncoder(3, 14, 4, 1, dino).frame.backbone
    assert (large.resolution, large.grid) == (16, 4)
    torch.testing.assert_close(large.prepare(half), normalised(half.new_full((1, 3, 16, 16), 50)))
    backbone = PretrainedEncoder(1, 16, 4, 1, dino).frame.backbone
    grey = pictures(1, 1)
    torch.testing.assert_close(backbone.prepare(grey), normalised(grey.expand(-1, 3, -1, -1)))
    two = pictures(1, 2)
    torch.testing.assert_close(
        backbone.prepare(two), normalised(torch.cat([two, torch.zeros_like(grey)], dim=1))
    )


def test_frozen_weights_move_with_the_encoder_and_are_no_parameters(dino):
    encoder = PretrainedEncoder(3, 16, 4, 1, dino)
    (model,) = encoder.frame.backbone._held
    assert not list(encoder.parameters()) and not model.training
    encoder.train().double()
    assert not model.training and all(weight.dtype == torch.float64 for weight in model.parameters())
    assert encoder.frame.backbone(pictures(1)).dtype == torch.float64


def test_left_out_patches_are_not_read(dino):
    encoder, pixels = PretrainedEncoder(6, 16, 4, 2, dino, pooling="mean"), pictures(3, 6)
    all_places = torch.arange(16).expand(3, 16)
    torch.testing.assert_close(encoder.tokens(pixels, all_places), encoder.tokens(pixels))
    keep = torch.tensor([[0, 5], [2, 1], [15, 3]])
    seen = encoder.tokens(pixels, keep)
    assert seen.shape == (3, 2 * 2, 24)
    other = pixels.clone()
    other[:, :, 8:12, 4:8] = 0  # place 9
    torch.testing.assert_close(encoder.tokens(other, keep), seen)
    other[0, :, :4, :4] = 0  # place 0
    assert not torch.allclose(encoder.tokens(other, keep)[0], seen[0])


def test_pooling(dino):
    pixels = pictures(2)
    features = {
        pooling: PretrainedEncoder(3, 16, 4, 1, dino, pooling=pooling).frame.features(pixels)
        for pooling in ("map", "mean", "class")
    }
    tokens = PretrainedEncoder(3, 16, 4, 1, dino).frame.backbone(pixels)
    torch.testing.assert_close(features["map"], tokens[:, 1:].flatten(1))
    torch.testing.assert_close(features["mean"], tokens[:, 1:].mean(1))
    torch.testing.assert_close(features["class"], tokens[:, 0])


class TestFittedContract(EncoderContract):
    pixels = (6, 16, 16)

    @pytest.fixture(autouse=True)
    def folder(self, dino):
        self.dino = dino

    def make_encoder(self):
        encoder = PretrainedEncoder(6, 16, 8, 2, self.dino).eval()
        encoder.fit_projection(pictures(20, 6))
        return encoder


# -- projection -------------------------------------------------------------------------------------


def test_principal_components_in_one_pass_are_those_of_all_rows():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 40, generator=generator) * 0.8 ** torch.arange(40) + 3.0
    project = PrincipalComponents(40, 5)
    assert not project(rows).any()
    share = project.fit(rows.split(37))
    centred = (rows - rows.mean(0)).double()
    _, size, axes = torch.linalg.svd(centred, full_matrices=False)
    variance = size.square() / 300
    assert share == pytest.approx(float(variance[:5].sum() / variance.sum()), rel=1e-6)
    latents = project(rows).double()
    wanted = centred @ axes[:5].T / variance[:5].mean().sqrt()
    signs = (latents * wanted).sum(0).sign()
    torch.testing.assert_close(latents * signs, wanted, rtol=1e-4, atol=1e-4)
    assert latents.var(0, correction=0).mean() == pytest.approx(1.0, rel=1e-4)
    assert project.count == 300


def test_principal_components_of_too_few_rows_are_refused():
    project = PrincipalComponents(40, 5)
    project.fit([torch.randn(20, 40, generator=torch.Generator().manual_seed(0))])
    before = {name: value.clone() for name, value in project.state_dict().items()}
    with pytest.raises(ValueError, match=r"4 frames vary in 3 directions, fewer than the 5 components"):
        project.fit([torch.randn(4, 40)])
    with pytest.raises(ValueError, match=r"0 frames vary in 0 directions"):
        project.fit([torch.zeros(0, 40)])
    assert all(torch.equal(before[name], value) for name, value in project.state_dict().items())


def test_latents_wait_for_the_projection(dino):
    encoder, pixels = PretrainedEncoder(6, 16, 8, 2, dino), pictures(20, 6)
    with pytest.raises(ValueError, match=r"call fit_projection\(pixels\) of the encoder once"):
        encoder(pixels)
    share = encoder.fit_projection(iter(pixels.split(5)))
    assert 0.1 < share < 1
    z = encoder(pixels)
    assert z.shape == (20, 8) and not z.requires_grad
    single = PretrainedEncoder(3, 16, 4, 1, dino)
    single.fit_projection(torch.cat([pixels[:, :3], pixels[:, 3:]]))
    torch.testing.assert_close(z[:, 4:], single(pixels[:, 3:]), rtol=1e-3, atol=1e-4)  # newest frame last
    # A frame that several stacks share is the same in each.
    windows = torch.cat([pixels[:1], torch.cat([pixels[:1, 3:], pixels[1:2, :3]], 1)])[None]
    torch.testing.assert_close(encoder.windows(encoder.runs(windows), 2)[0], encoder(windows[0]))


# -- world models and files -------------------------------------------------------------------------


def spec(frames=1):
    return WorldSpec((3 * frames, 16, 16), frames, ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)))


def world(dino, frames=1, **options):
    config = WorldModelConfig(spec(frames), 8, "pretrained", encoder_options={"name": dino, **options})
    return WorldModel(config)


def test_a_file_names_the_backbone_and_knows_its_checksum(tmp_path):
    folder, path, pixels = tmp_path / "dino", tmp_path / "world.safetensors", pictures(20)
    save(dinov2(), folder)
    model = world(str(folder)).eval()
    model.encoder.fit_projection(pixels)
    model.save(path)
    with safe_open(path, "pt") as file:
        names = {name for name in file.keys() if name.startswith("encoder.")}  # noqa: SIM118
    held = [f"backbone.{name}" for name in ("checksum", "mean", "std")]
    held += [f"project.{name}" for name in ("mean", "weight", "count")]
    assert names == {f"encoder.frame.{name}" for name in held}
    torch.testing.assert_close(WorldModel.load(path).encode(pixels), model.encode(pixels), rtol=0, atol=0)
    save(dinov2(), folder, seed=1)
    with pytest.raises(
        ValueError, match=r"are not those that this file was made with: their SHA-256 is \w{64}"
    ):
        WorldModel.load(path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        WorldModel.load(path)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"A file of a world model names the folder"):
        WorldModel.load(path)


def test_a_frozen_backbone_may_be_much_larger_than_the_file_that_names_it(tmp_path):
    sizes = VIT | dict(hidden_size=384, num_hidden_layers=1)
    model = save(hf.Dinov2Model(hf.Dinov2Config(**sizes, **PICTURE)), tmp_path / "dino")
    small = world(str(tmp_path / "dino"), pooling="class").eval()
    small.encoder.fit_projection(pictures(20))
    small.save(tmp_path / "world.safetensors")
    held = sum(tensor.numel() for tensor in small.state_dict().values())
    assert sum(weight.numel() for weight in model.parameters()) > 3 * held + 2**20
    again = WorldModel.load(tmp_path / "world.safetensors")
    torch.testing.assert_close(again.encode(pictures(2)), small.encode(pictures(2)), rtol=0, atol=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    env = PixelObservation(gym.make("jepa_rl/TwoRooms-v0", max_episode_steps=10), size=16, frames=1)
    return collect(env, tmp_path_factory.mktemp("rooms") / "episodes", episodes=4, seed=0, progress=False)


@pytest.mark.parametrize("frozen", [True, False])
def test_what_learns(frozen, dino, store, tmp_path):
    options = {"name": dino, "projection": "trained", "frozen": frozen}
    model = WorldModel(WorldModelConfig(store.spec, 8, "pretrained", encoder_options=options))
    before = {name: p.clone() for name, p in model.encoder.named_parameters()}
    backbone = model.encoder.frame.backbone
    held = [p.clone() for p in (backbone._held[0] if frozen else backbone.model).parameters()]
    fit(
        model,
        WindowSampler(store, steps=2),
        TrainConfig(steps=2, batch_size=4),
        tmp_path / "run",
        progress=False,
    )
    moved = {name for name, p in model.encoder.named_parameters() if not torch.equal(before[name], p)}
    assert {name for name in before if "backbone" not in name} <= moved
    after = list((backbone._held[0] if frozen else backbone.model).parameters())
    same = [torch.equal(old, new) for old, new in zip(held, after, strict=True)]
    assert all(same) if frozen else sum(same) < len(same) / 4
    again = WorldModel.load(tmp_path / "run" / "model.safetensors")
    pixels = WindowSampler(store, steps=1).sample(4, np.random.default_rng(0)).pixels[:, 0]
    torch.testing.assert_close(again.encode(pixels), model.eval().encode(pixels), rtol=0, atol=0)


def test_latents_for_agents(dino, store, tmp_path):
    env = PixelObservation(gym.make("jepa_rl/TwoRooms-v0", max_episode_steps=10), size=16, frames=1)
    settings = {"latent_dim": 8, "encoder": "pretrained", "encoder_options": {"name": dino}}
    model = WorldModel(world_config(store.spec, settings)).eval()
    model.encoder.fit_projection(
        WindowSampler(store, steps=1).sample(40, np.random.default_rng(0)).pixels[:, 0]
    )
    model.save(tmp_path / "world.safetensors")
    latent, _ = wrap(env, tmp_path / "world.safetensors").reset(seed=0)
    pixels, _ = env.reset(seed=0)
    np.testing.assert_allclose(latent, model.encode(torch.from_numpy(pixels)[None])[0], rtol=1e-5, atol=1e-5)
    agent = JEPAMPC(
        "CnnPolicy", env, learning_starts=12, batch_size=4, seed=0, n_step=3,
        policy_kwargs={
            "world": settings, "samples": 8, "elites": 4, "iterations": 1, "proposals": 2, "horizon": 3,
        },
    )  # fmt: skip
    agent.policy.warm_start(tmp_path / "world.safetensors")
    agent.learn(14)
    assert agent.num_timesteps >= 14
    for acting in (agent.world, agent.policy.model.world):
        torch.testing.assert_close(
            acting.eval().encode(torch.from_numpy(pixels)[None])[0], torch.from_numpy(latent)
        )


# -- weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block": 4}, r"block must lie in 1 to 3"),
        ({"resolution": 15}, r"multiple of 4, the patch of .*, got 15; 12 or 16 is one"),
        ({"resolution": 2}, r"multiple of 4, the patch of .*, got 2; 4 or 8 is one"),
        ({"resolution": 0}, r"multiple of 4, the patch of .*, got 0; 4 or 8 is one"),
        ({"pooling": "max"}, r"pooling must be one of \('map', 'mean', 'class'\), got 'max'"),
        ({"projection": "random"}, r"projection must be one of"),
        ({"frozen": False}, r"use projection='trained'"),
        ({"revison": "main"}, r"takes no option 'revison'"),
        ({"checksum": "0" * 64}, r"have SHA-256 \w{64}, expected 0000"),
        ({"image_std": 0.0}, r"deviations above 0, got 0.0"),
    ],
)
def test_wrong_options(options, words, dino):
    with pytest.raises(ValueError, match=words):
        world(dino, **options)


def test_wrong_shapes(dino):
    with pytest.raises(ValueError, match="latent_dim must be a multiple of 3, got 8"):
        PretrainedEncoder(9, 16, 8, 3, dino)
    with pytest.raises(ValueError, match=r"1 to 3 channels, got 4"):
        PretrainedEncoder(4, 16, 8, 1, dino)
    with pytest.raises(ValueError, match=r"only 'pca' is fitted"):
        PretrainedEncoder(3, 16, 8, 1, dino, projection="trained").fit_projection(pictures(4))
    with pytest.raises(ValueError, match=r"expected uint8 pixels"):
        PretrainedEncoder(3, 16, 8, 1, dino).tokens(pictures(1).float())


def test_models_that_cannot(tmp_path):
    save(vjepa2(), tmp_path / "video")
    with pytest.raises(ValueError, match="no class token; use pooling='map' or 'mean'"):
        PretrainedEncoder(3, 16, 4, 1, str(tmp_path / "video"), pooling="class")
    with pytest.raises(ValueError, match="none can be left out"):
        PretrainedEncoder(3, 16, 4, 1, str(tmp_path / "video")).tokens(pictures(1), torch.zeros(1, 2).long())
    folder = tmp_path / "video"
    config = json.loads((folder / "config.json").read_text())
    for change, words in (
        ({"model_type": "bert"}, r"a model of type 'bert'; supported are \['clip'"),
        ({"quantization_config": {"quant_method": "x"}}, "quantised model"),
        ({"patch_size": [4, 4]}, "patches of"),
        ({"hidden_size": 48}, "does not hold the weights of a VJEPA2Model"),
        ({"num_hidden_layers": 4}, r"encoder\.layer\.3\..* are missing"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=words):
            PretrainedEncoder(3, 16, 4, 1, str(folder))


def test_only_safetensors_are_read(dino, tmp_path):
    save(dinov2(), tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"only \['pytorch_model.bin'\]; pickled weights are not read"
    ):
        PretrainedEncoder(3, 16, 4, 1, str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"SHA|has no"):
        PretrainedEncoder(3, 16, 4, 1, str(tmp_path))


def test_checksums(dino, tmp_path):
    """Of one file it is that of sha256sum; of several it depends on each."""
    model, source = save(dinov2(), tmp_path), Source(str(tmp_path))
    one = weights_checksum(tmp_path, source)
    assert one == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    world(str(tmp_path), checksum=one.upper())
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    parts = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(parts) > 1
    several = weights_checksum(tmp_path / "parts", source)
    parts[0].write_bytes(parts[0].read_bytes() + b" ")
    assert len({one, several, weights_checksum(tmp_path / "parts", source)}) == 3
    parts[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        weights_checksum(tmp_path / "parts", source)


def test_normalisation(tmp_path):
    source = Source(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"no preprocessor_config\.json that says image_mean; pass image_mean"
    ):
        normalisation(tmp_path, source)
    own = normalisation(tmp_path, Source(str(tmp_path), image_mean=0.5, image_std=(0.1, 0.2, 0.4)))
    assert own == ([127.5] * 3, pytest.approx([25.5, 51.0, 102.0]))
    write = (tmp_path / "video_preprocessor_config.json").write_text
    write(json.dumps({"image_mean": [0.5, 0.4, 0.2], "image_std": 0.5, "rescale_factor": 1 / 127.5}))
    assert normalisation(tmp_path, source)[0] == pytest.approx([63.75, 51.0, 25.5])
    (tmp_path / "video_preprocessor_config.json").unlink()
    nested = {"image_processor": {"image_mean": MEAN, "image_std": STD, "do_normalize": False}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert normalisation(tmp_path, source) == ([0.0] * 3, [255.0] * 3)
    (tmp_path / "processor_config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        normalisation(tmp_path, source)


def test_a_name_that_was_not_fetched_is_said_so():
    with pytest.raises(
        FileNotFoundError, match=r"is no folder, and was not found in the cache .* takes the network"
    ):
        PretrainedEncoder(3, 16, 4, 1, "jepa-rl-tests/nothing", local_files_only=True)


def test_a_missing_package_names_the_install_line(dino, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install -U "jepa-rl\[pretrained\]"'):
        world(dino)
