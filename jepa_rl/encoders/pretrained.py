"""An encoder on a pretrained vision transformer: DINOv2 and v3, CLIP, SigLIP, I-JEPA, V-JEPA 2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from jepa_rl.distributed import BatchNorm
from jepa_rl.encoders.backbone import ROWS, Backbone
from jepa_rl.encoders.components import PrincipalComponents
from jepa_rl.encoders.frames import EachFrame, with_differences
from jepa_rl.encoders.vision_transformer import VisionTransformer
from jepa_rl.encoders.weights import Source
from jepa_rl.modes import evaluating
from jepa_rl.registry import register_encoder

Pooling = Literal["map", "mean", "class"]
Projection = Literal["pca", "trained"]


class FeatureEncoder(EachFrame):
    """Latents of stacked frames from the features of a backbone, by a projection that is fixed or learns.

    ``"pca"``: principal components of one frame's features, ``latent_dim / frames`` of them, those of the k frames side
    by side, oldest first. They use neither labels nor predictions; ``fit_projection`` fits them once, and until then
    there are no latents. ``"trained"``: one linear layer for each frame, and the network and batch norm by which
    ``FramesEncoder`` joins frames, which the objective trains.

    Args:
        backbone: reads one frame.
        channels: input channels ``frames * c``, the oldest frame first.
        frames: in the stack.
        latent_dim: width of the latent.
        pooling: what is projected: the whole ``"map"`` of tokens, which says best where things are; its ``"mean"``; or
            the ``"class"`` token.
        projection: see above.
        frame_dim: of ``"trained"``: width of the features of one frame.

    Raises:
        ValueError: for settings that make no sense.
    """

    def __init__(
        self,
        backbone: Backbone,
        channels: int,
        frames: int,
        latent_dim: int,
        pooling: Pooling = "map",
        projection: Projection = "pca",
        frame_dim: int = 64,
    ) -> None:
        super().__init__()
        self.split(channels, frames)
        if self.channels > 3:
            raise ValueError(
                f"pretrained backbones read frames of 1 to 3 channels, got {self.channels} ({channels} in {frames} "
                "frames); leave out the others, or use 'frames'"
            )
        for name, value, known in (("pooling", pooling, Pooling), ("projection", projection, Projection)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {get_args(known)}, got {value!r}")
        fixed = projection == "pca"
        if fixed and latent_dim % frames:
            raise ValueError(
                f"the principal components of {frames} frames stand side by side: latent_dim must be a multiple of "
                f"{frames}, got {latent_dim}"
            )
        self.latent_dim = latent_dim
        dim = latent_dim // frames if fixed else frame_dim
        self.frame = FrameFeatures(backbone, pooling, dim, fixed)
        self.join: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if not fixed:
            self.join = nn.Sequential(nn.Linear(frames * dim, 128), nn.SiLU(), nn.Linear(128, latent_dim))
            self.norm = BatchNorm(latent_dim, affine=False)

    @property
    def fitted(self) -> bool:
        """Whether the projection needs no fitting, or was fitted."""
        project = self.frame.project
        return not isinstance(project, PrincipalComponents) or bool(project.count > 0)

    def joined(self, stacks: Float[Tensor, "b t k n"]) -> Float[Tensor, "b t d"]:
        """See ``EachFrame.joined``."""
        return stacks.flatten(2) if isinstance(self.join, nn.Identity) else super().joined(stacks)

    def windows(self, runs: UInt8[Tensor, "b f y x"], steps: int) -> Float[Tensor, "b t d"]:
        """Latents of every stack of consecutive frames.

        Raises:
            ValueError: before ``fit_projection``. Black pictures, on which a world model tries its parts, pass.
        """
        if not self.fitted and runs.any():
            raise ValueError(
                "the projection was not fitted: call fit_projection(pixels) of the encoder once, with pictures of the "
                "environment, or train it with projection='trained'"
            )
        return super().windows(runs, steps)

    def tokens(
        self, pixels: UInt8[Tensor, "b c y x"], keep: Int64[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b l w"]:
        """The backbone's tokens of the newest frame's patches, then their differences from frame to frame.

        Args:
            pixels: stacked frames.
            keep: patches, counted row by row, the same in every frame of a stack; only these enter the backbone. None
                keeps all.
        """
        if keep is None:
            return super().tokens(pixels)
        kept = keep.repeat_interleave(self.frames, 0)
        stacks = self._stacks(lambda frames: self.frame.tokens(frames, kept), pixels)
        return with_differences(stacks).flatten(2, 3)[:, 0]

    @torch.no_grad()
    def fit_projection(self, pixels: UInt8[Tensor, "n c y x"] | Iterable[UInt8[Tensor, "_ c y x"]]) -> float:
        """Fits the principal components to the frames of pictures, in one pass and bounded memory.

        Dynamics that were trained before read other latents: train them anew.

        Args:
            pixels: pictures of the environment, as the encoder reads them; one tensor, or any number of them one after
                the other. A thousand frames are few, ten thousand are enough.

        Returns:
            The share of the features' variance that the components have.

        Raises:
            ValueError: if the projection is trained, or the frames vary in fewer directions than it has components;
                nothing has changed then.
        """
        project = self.frame.project
        if not isinstance(project, PrincipalComponents):
            raise ValueError("projection='trained' learns from the objective; only 'pca' is fitted")
        with evaluating(self):
            return project.fit(self._features([pixels] if isinstance(pixels, Tensor) else pixels))

    def _features(self, several: Iterable[Tensor]) -> Iterator[Float[Tensor, "b f"]]:
        """Features of all frames, some at a time."""
        device = self.frame.project.weight.device
        for pixels in several:
            frames = pixels.unflatten(1, (-1, self.channels)).flatten(0, 1)
            for part in frames.split(4 * ROWS):
                yield self.frame.features(part.to(device))


class FrameFeatures(nn.Module):
    """Features of single frames and their projection.

    Args:
        backbone, pooling: as for ``FeatureEncoder``.
        dim: width of the answer.
        fixed: principal components, or a linear layer that learns.

    Raises:
        ValueError: if the backbone has no class token and it is asked for.
    """

    def __init__(self, backbone: Backbone, pooling: Pooling, dim: int, fixed: bool) -> None:
        super().__init__()
        if pooling == "class" and not backbone.class_token:
            raise ValueError("this backbone has no class token; use pooling='map' or 'mean'")
        self.backbone, self.pooling, self.patches = backbone, pooling, backbone.grid**2
        inputs = backbone.width * (self.patches if pooling == "map" else 1)
        self.project: Any = PrincipalComponents(inputs, dim) if fixed else nn.Linear(inputs, dim)

    def forward(self, frames: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b n"]:
        """The projection of the features."""
        return self.project(self.features(frames))

    def features(self, frames: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b f"]:
        """What is projected, float32."""
        tokens = self.backbone(frames)
        if self.pooling == "class":
            return tokens[:, 0]
        places = tokens[:, -self.patches :]
        return places.flatten(1) if self.pooling == "map" else places.mean(1)

    def tokens(
        self, frames: UInt8[Tensor, "b c y x"], keep: Int64[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b l w"]:
        """The tokens of the patches, or of those in ``keep``."""
        if keep is None:
            return self.backbone(frames)[:, -self.patches :]
        return self.backbone(frames, keep)[:, -keep.shape[1] :]


@register_encoder("pretrained")
class PretrainedEncoder(FeatureEncoder):
    """A pretrained vision transformer, frozen by default, that reads each frame of a stack, and a projection.

    Supported are DINOv2 (with and without registers), DINOv3, the vision towers of CLIP and SigLIP, I-JEPA, and V-JEPA
    2, a model of clips, which is shown each frame as often as its shortest clip is long: a scene that stands still. It
    needs ``pip install "jepa-rl[pretrained]"``.

    Frames are uint8 until they reach the device; there they are resized and normalised as the weights' own
    configuration says. A frozen backbone always works in float32 and in evaluation mode.

    A file of the world model holds the projection; of a frozen backbone it holds the name and a SHA-256 of the weights,
    not the weights: name a folder by a path that will be there, too, or a name on the hub. Where ``frozen=False`` it
    holds the trained weights, and the named folder still says their architecture.

    Args:
        channels: input channels ``frames * c``: grey, two channels (shown as red and green) or RGB; oldest frame first.
        size: input rows and columns.
        latent_dim: width of the latent.
        frames: in the stack.
        name: a folder that ``save_pretrained`` wrote, or a name on the hub such as ``"facebook/dinov2-small"``.
        block: the last block that is run, counted from 1, followed by the model's final norm if it has one; None for
            all. Middle blocks are faster, and often better for control.
        resolution: rows and columns that frames are resized to, a multiple of the patch; None for the least that holds
            ``size``. The cost grows with its square: 8 x 8 patches (112 pixels for patches of 14) are a good start.
        pooling: ``"map"``, ``"mean"`` or ``"class"``, see ``FeatureEncoder``.
        projection: ``"pca"`` or ``"trained"``, see ``FeatureEncoder``.
        frozen: whether the weights stay as they are.
        source: ``revision``, ``local_files_only``, ``checksum``, ``image_mean`` and ``image_std``, see
            ``jepa_rl.encoders.Source``.

    Raises:
        ImportError: ``transformers`` is missing.
        FileNotFoundError: there is no such folder, and the hub cannot be reached or has no such weights.
        ValueError: for weights of another checksum, kinds of models that are not supported, and settings that do not
            fit the model.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        latent_dim: int,
        frames: int,
        name: str,
        block: int | None = None,
        resolution: int | None = None,
        pooling: Pooling = "map",
        projection: Projection = "pca",
        frozen: bool = True,
        **source: Any,
    ) -> None:
        if projection == "pca" and not frozen:
            raise ValueError(
                "frozen=False trains the backbone, and principal components of what it was would no longer fit; use "
                "projection='trained'"
            )
        backbone = VisionTransformer(Source.of(name, source), size, block, resolution, frozen)
        super().__init__(backbone, channels, frames, latent_dim, pooling, projection)
