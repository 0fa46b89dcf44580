"""A control model in one safetensors file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from jepa_rl.control.config import ControlConfig
from jepa_rl.control.model import ControlModel
from jepa_rl.files import load_tensors, naming, save_tensors
from jepa_rl.memory import weights_within
from jepa_rl.parts import config_header
from jepa_rl.types import JSON
from jepa_rl.world_model import build_saved

KIND = "control"
VALUES, TARGET = "value_heads.", "target_heads."


def save_control(path: str | Path, model: ControlModel, settings: JSON) -> None:
    """Writes world model, heads and settings; atomic. ``WorldModel.load`` reads the world model of the file.

    The target network of the values is left out: it follows the value heads closely, and only training needs it. So are
    the copies of encoder and dynamics that the objective keeps for training.

    Args:
        path: the file.
        model: its weights and configurations.
        settings: JSON values and NumPy numbers that ``load_control`` returns.

    Raises:
        TypeError, OSError: as ``save_tensors``.
    """
    header = config_header(model.world.config)
    header |= {"control": asdict(model.config), "discount": model.discount, "settings": settings}
    left_out = (TARGET, *(f"world.{name}" for name in model.world.training_only))
    tensors = {name: t for name, t in model.state_dict().items() if not name.startswith(left_out)}
    save_tensors(path, KIND, tensors, header)


def load_control(path: str | Path, device: str = "cpu") -> tuple[ControlModel, JSON]:
    """Reads a file of ``save_control``; no code in it is executed.

    Args:
        path: the file, or the name of a checkpoint of the package (``jepa_rl.hub``).
        device: where the model goes.

    Returns:
        The model in evaluation mode, its target network equal to the value heads, and the settings.

    Raises:
        FileNotFoundError, ValueError: as ``WorldModel.load``.
    """
    tensors, header = load_tensors(path, (KIND,), device)
    world = {name.removeprefix("world."): t for name, t in tensors.items() if name.startswith("world.")}
    built = build_saved(path, world, header)
    values = {name: t for name, t in tensors.items() if name.startswith(VALUES)}
    targets = {TARGET + name.removeprefix(VALUES): t for name, t in values.items()}
    with naming(path, "does not describe a control model of this version"), weights_within(tensors.values()):
        model = ControlModel(built, ControlConfig(**header["control"]), float(header["discount"]))
        model.load_state_dict(tensors | targets)
        settings = dict(header["settings"])
    return model.to(device).eval(), settings
