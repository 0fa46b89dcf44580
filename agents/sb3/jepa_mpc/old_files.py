"""Refuses zip files of version 0.1.0, whose model was another one."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from stable_baselines3.common.save_util import open_path


def check_saved(path: str | Path | io.BufferedIOBase) -> None:
    """Looks at a zip file of ``JEPAMPC.save`` without unpickling anything.

    Files that are no zip files, or hold no settings, pass: Stable-Baselines3 names what is wrong with them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if version 0.1.0 wrote it.
    """
    file = open_path(path, "r", suffix="zip")
    at = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            settings = json.loads(archive.read("data")) if "data" in archive.namelist() else {"source": ""}
    except (zipfile.BadZipFile, json.JSONDecodeError):
        return
    finally:
        if isinstance(path, str | Path):
            file.close()
        else:
            file.seek(at)
    if "source" not in settings:  # 0.2.0 began to save how the environment was made
        raise ValueError(
            f"{path} was saved by jepa-rl 0.1.0, whose JEPAMPC had another model, so its weights do not fit; finish "
            "with it there, or train anew"
        )
