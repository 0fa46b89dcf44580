"""Pretrained vision transformers of Hugging Face's ``transformers``: loaded, and run on frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from jepa_rl.encoders.backbone import Backbone
from jepa_rl.encoders.weights import Source, config_of, find_folder, normalisation, weights_checksum
from jepa_rl.memory import weights_from_elsewhere


class Family(NamedTuple):
    """How one kind of model is called.

    Attributes:
        model: its class in ``transformers``.
        class_token: whether it has one.
        resized: whether it must be told to resize its grid of positions.
        rotary: whether a token's position is its place in the sequence, so that none may be left out.
    """

    model: str
    class_token: bool
    resized: bool = False
    rotary: bool = False


FAMILIES = {
    "dinov2": Family("Dinov2Model", True),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", True),
    "dinov3_vit": Family("DINOv3ViTModel", True, rotary=True),
    "clip": Family("CLIPVisionModel", True, resized=True),
    "clip_vision_model": Family("CLIPVisionModel", True, resized=True),
    "siglip": Family("SiglipVisionModel", False, resized=True),
    "siglip_vision_model": Family("SiglipVisionModel", False, resized=True),
    "ijepa": Family("IJepaModel", False, resized=True),
    "vjepa2": Family("VJEPA2Model", False, rotary=True),
}


@dataclass(frozen=True)
class Loaded:
    """A model in memory.

    Attributes:
        model: of ``transformers``, float32, with the blocks that are run.
        family: what it is.
        patch: rows and columns of a patch, pixels.
        clip: frames of the shortest clip that it reads; 0 for models of pictures.
    """

    model: nn.Module
    family: Family
    patch: int
    clip: int


class VisionTransformer(Backbone):
    """A vision transformer of ``transformers``: one token for each patch, behind the class token and the like.

    Args:
        source: where the weights are.
        size: rows and columns of the frames, pixels.
        block: the last block that is run, counted from 1; None for all.
        resolution: rows and columns that frames are resized to; None for the least whole number of patches that holds
            them.
        frozen: whether the weights stay as they are.

    Raises:
        ImportError: ``transformers`` is missing or too old.
        FileNotFoundError, ValueError: as ``find_folder``, ``weights_checksum``, ``load`` and ``normalisation``.
    """

    def __init__(
        self, source: Source, size: int, block: int | None, resolution: int | None, frozen: bool
    ) -> None:
        folder = find_folder(source)
        checksum = weights_checksum(folder, source)
        mean, std = normalisation(folder, source)
        wanted = size if resolution is None else resolution
        # A world model's file holds no frozen weights, so that they may be many more than are in it.
        with weights_from_elsewhere() if frozen else nullcontext():
            loaded = load(folder, block, wanted, exact=resolution is not None)
        grid = -(-wanted // loaded.patch)
        self.family, self.clip, self.class_token = loaded.family, loaded.clip, loaded.family.class_token
        super().__init__(loaded.model, source.name, checksum, mean, std, grid * loaded.patch, grid, frozen)

    def read(
        self, model: Any, pictures: Float[Tensor, "b 3 y x"], keep: Int64[Tensor, "b m"] | None
    ) -> Float[Tensor, "b l w"]:
        """See ``Backbone.read``; with ``keep`` the class token and the like stay.

        Raises:
            ValueError: if ``keep`` is asked of a model whose positions are places in the sequence.
        """
        if keep is not None and self.family.rotary:
            raise ValueError(
                f"{self.name} takes a token's position from its place in the sequence, so that none can be left out; "
                "use a backbone with learned positions, such as DINOv2, for objectives that mask"
            )
        with leaving_out(model, keep, self.grid**2):
            if self.clip:
                clips = pictures[:, None].expand(-1, self.clip, -1, -1, -1)
                return model(pixel_values_videos=clips, skip_predictor=True).last_hidden_state
            options = {"interpolate_pos_encoding": True} if self.family.resized else {}
            return model(pixel_values=pictures, **options).last_hidden_state


def load(folder: Path, block: int | None, resolution: int, exact: bool) -> Loaded:
    """Reads a model from a folder: safetensors alone, and no code.

    Args:
        folder: with ``config.json`` and the weights.
        block: the last block to keep; None for all.
        resolution: rows and columns of the pictures that it will read.
        exact: whether ``resolution`` must be a multiple of the patch; otherwise it is rounded up to one.

    Raises:
        ImportError: ``transformers`` is missing or too old.
        ValueError: for a kind of model that is not known, blocks or a resolution that it does not have, or weights that
            are missing or do not fit.
    """
    data = config_of(folder)
    kind = data.get("model_type")
    if kind not in FAMILIES or "quantization_config" in data:
        raise ValueError(
            f"{folder} holds a {'quantised ' * ('quantization_config' in data)}model of type {kind!r}; supported are "
            f"{sorted(FAMILIES)}, not quantised"
        )
    family = FAMILIES[kind]
    cls = transformers_class(family.model)
    config = cls.config_class.from_pretrained(folder, local_files_only=True)
    depth = config.num_hidden_layers
    if block is not None and not 1 <= block <= depth:
        raise ValueError(f"block must lie in 1 to {depth}, the blocks of {folder}, got {block}")
    patch, grid = config.patch_size, getattr(config, "image_size", None)
    if not isinstance(patch, int) or (isinstance(grid, list | tuple) and len(set(grid)) > 1):
        raise ValueError(f"{folder} wants patches of {patch} and pictures of {grid}; both must be square")
    if exact and (resolution < 1 or resolution % patch):
        near = max(patch, resolution // patch * patch)
        raise ValueError(
            f"resolution must be a multiple of {patch}, the patch of {folder}, got {resolution}; {near} or "
            f"{near + patch} is one"
        )
    config.num_hidden_layers = block or depth
    if kind == "vjepa2":  # rotary positions count the patches of crop_size; the predictor is not used
        config.crop_size = -(-resolution // patch) * patch
        config.pred_num_hidden_layers = 0
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False  # SigLIP's pooling, not used
    return Loaded(read(cls, folder, config), family, patch, config.tubelet_size if kind == "vjepa2" else 0)


def read(cls: Any, folder: Path, config: Any) -> nn.Module:
    """The model of a configuration with the weights of a folder; blocks behind the last one are left in the file.

    Raises:
        ValueError: if weights are missing or of other shapes.
    """
    try:
        with quiet():
            model, info = cls.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True,
                attn_implementation="sdpa", output_loading_info=True,
            )  # fmt: skip
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{folder} does not hold the weights of a {cls.__name__}: {error}") from error
    if info["missing_keys"]:
        raise ValueError(
            f"{folder} does not hold the weights of a {cls.__name__}: {sorted(info['missing_keys'])[:4]} are missing"
        )
    return model


def transformers_class(name: str) -> Any:
    """A class of ``transformers``, which is imported now: it takes two seconds.

    Raises:
        ImportError: it is missing or too old.
    """
    install = 'pip install -U "jepa-rl[pretrained]"'
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"transformers is missing ({error}): {install}") from error
    try:
        return getattr(transformers, name)
    except AttributeError as error:
        raise ImportError(f"transformers {transformers.__version__} has no {name}: {install}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Context manager: ``transformers`` says nothing of weights that are left in the file, and shows no progress."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


@contextmanager
def leaving_out(model: nn.Module, keep: Int64[Tensor, "b m"] | None, patches: int) -> Iterator[None]:
    """Context manager: only the patches of ``keep`` (None: all) enter the first block; what is no patch stays."""
    if keep is None:
        yield
        return
    first = next(part for part in model.modules() if isinstance(part, nn.ModuleList))[0]

    def choose(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, *rest = arguments
        before = tokens.shape[1] - patches
        chosen = (keep + before).unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        return torch.cat([tokens[:, :before], tokens.gather(1, chosen)], dim=1), *rest

    hook = first.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()
