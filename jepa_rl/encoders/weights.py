"""Folders of pretrained weights: where they are, their checksum, and how their pictures were normalised.

Only JSON and safetensors are read or fetched: nothing in a folder is executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

FETCHED = (
    "config.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
    "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where pretrained weights are, and which they must be.

    Attributes:
        name: a local folder, or a name on the Hugging Face hub such as ``"facebook/dinov2-small"``.
        revision: a branch, tag or commit of the hub; None for its newest.
        local_files_only: whether the hub is left alone, so that the weights must have been fetched before.
        checksum: SHA-256 of ``model.safetensors``, hexadecimal, which the hub shows beside the file; None for any.
        image_mean, image_std: normalisation of the pictures, in 0..1, one number or one for each of red, green and
            blue; None for what the folder says.
    """

    name: str
    revision: str | None = None
    local_files_only: bool = False
    checksum: str | None = None
    image_mean: float | tuple[float, ...] | None = None
    image_std: float | tuple[float, ...] | None = None

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any]) -> Source:
        """A source from options by name.

        Raises:
            ValueError: for an unknown option.
        """
        known = [field.name for field in fields(cls)][1:]
        if unknown := sorted(options.keys() - known):
            raise ValueError(
                f"the pretrained encoder takes no option {unknown[0]!r}; its source takes {known}"
            )
        return cls(name, **options)


def find_folder(source: Source) -> Path:
    """The local folder of a source; a name of the hub is fetched into its cache first, unless it is there.

    Raises:
        ImportError: ``huggingface_hub`` is missing.
        FileNotFoundError: there is no such folder, or the hub does not give the weights.
        ValueError: for a name that is no text.
    """
    if not isinstance(source.name, str) or not source.name:
        raise ValueError(f"name must be a text, a folder or a name on the hub, got {source.name!r}")
    folder = Path(source.name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or source.name.startswith((".", "~")) or len(folder.parts) > 2:
        raise FileNotFoundError(
            f"there is no folder {folder}; the encoder needs the pretrained weights there (config.json, "
            "preprocessor_config.json, model.safetensors: model.save_pretrained writes them). A file of a world model "
            "names the folder and does not hold them"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ImportError(
            f'huggingface_hub is missing ({error}): pip install "jepa-rl[pretrained]"'
        ) from error
    try:
        found = snapshot_download(
            source.name,
            revision=source.revision,
            local_files_only=source.local_files_only,
            allow_patterns=list(FETCHED),
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        where = "in the cache of the hub (local_files_only)" if source.local_files_only else "on the hub"
        raise FileNotFoundError(
            f"{source.name!r} is no folder, and was not found {where}: {type(error).__name__}: {error} Fetching it "
            "takes the network once; without one, copy the folder here and name its path"
        ) from error
    return Path(found)


def config_of(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object.
    """
    if (data := read_json(folder / "config.json")) is None:
        raise FileNotFoundError(
            f"{folder} has no config.json; name a folder that model.save_pretrained wrote"
        )
    return data


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data


def weights_checksum(folder: Path, source: Source) -> str:
    """SHA-256 of ``model.safetensors``; of several parts, that of their checksums one after the other.

    Raises:
        FileNotFoundError: there are no safetensors.
        ValueError: it is not the one that ``source`` demands.
    """
    single, index = folder / "model.safetensors", read_json(folder / "model.safetensors.index.json")
    parts = sorted({Path(part).name for part in index["weight_map"].values()}) if index else []
    files = [single] if single.is_file() else [folder / part for part in parts]
    if not files or not all(file.is_file() for file in files):
        others = sorted(path.name for path in folder.glob("*.bin"))
        raise FileNotFoundError(
            f"{folder} has no model.safetensors{f', only {others}' if others else ''}; pickled weights are not "
            "read, since they can run code: convert them in a place you trust, with model.save_pretrained, or name a "
            "revision that has safetensors"
        )
    digests = [_sha256(file) for file in files]
    found = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    if source.checksum is not None and source.checksum.lower() != found:
        raise ValueError(
            f"the weights in {folder} have SHA-256 {found}, expected {source.checksum}; they are not those you asked "
            "for"
        )
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def normalisation(folder: Path, source: Source) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that pictures are normalised by, in 0..255, one for each of red, green and blue.

    Raises:
        ValueError: nothing says them, or what does makes no sense.
    """
    said: dict[str, Any] = {}
    for file in ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        data = read_json(folder / file) or {}
        said |= data.get("image_processor") or data.get("video_processor") or data
    if said.get("do_normalize") is False:
        said |= {"image_mean": 0.0, "image_std": 1.0}
    rescale = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
    found = []
    for name in ("image_mean", "image_std"):
        own = getattr(source, name)
        value = said.get(name) if own is None else own
        if value is None:
            raise ValueError(
                f"{folder} has no preprocessor_config.json that says {name}; pass image_mean and image_std, in 0..1, "
                "as the weights were trained with"
            )
        values = [float(v) for v in (value if isinstance(value, list | tuple) else (value,) * 3)]
        if (
            len(values) != 3
            or not all(map(math.isfinite, values))
            or (name == "image_std" and min(values) <= 0)
        ):
            raise ValueError(
                f"{name} of {folder} must be three finite numbers, deviations above 0, got {value}"
            )
        found.append([v / (rescale if own is None else 1 / 255) for v in values])
    return found[0], found[1]
