"""Build the sdist and the wheel, check both, install the wheel elsewhere with the core dependencies only, and use it.

Run as ``python tests/wheel_check.py`` (or ``make wheel``); pytest does not collect it, for it takes minutes.
It finds what the editable install hides: packages missing from ``setup.cfg``, top-level ``agents`` or
``envs``, optional dependencies imported too early, and files that only the repository has.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Runs in the fresh environment, in an empty folder, in isolated mode.
SMOKE = """
import importlib, importlib.util, pkgutil, sys
from pathlib import Path

import jepa_rl
assert Path(jepa_rl.__file__).is_relative_to(sys.prefix), jepa_rl.__file__
for name in ("agents", "envs", "tests", "examples", "benchmarks"):
    assert importlib.util.find_spec(name) is None, f"top-level {name} is importable"
names = sorted(module.name for module in pkgutil.walk_packages(jepa_rl.__path__, "jepa_rl."))
for name in names:
    importlib.import_module(name)
print(f"imported {len(names)} modules of jepa_rl {jepa_rl.__version__}")
for name in ("mujoco", "dm_control", "minari", "pyarrow", "av", "h5py", "transformers", "pytest"):
    assert name not in sys.modules, f"{name} is optional but was imported"

import gymnasium as gym
env = gym.make("jepa_rl.envs:jepa_rl/TwoRooms-v0")
observation, info = env.reset(seed=0)
assert observation.shape == info["goal"].shape == (2, 64, 64), observation.shape
observation, reward, terminated, truncated, info = env.step(env.action_space.sample())

import torch
from jepa_rl.spaces import world_spec
from jepa_rl.world_model import WorldModel, WorldModelConfig
model = WorldModel(WorldModelConfig(world_spec(env))).eval()
z = model.encode(torch.from_numpy(observation)[None])
assert z.shape == (1, model.latent_dim), z.shape
assert model.rollout(z, torch.zeros(1, 3, model.action_dim)).shape == (1, 1, 4, model.latent_dim)
model.save("model.safetensors")
again = WorldModel.load("model.safetensors").encode(torch.from_numpy(observation)[None])
torch.testing.assert_close(again, z)
print("environment, encoder, dynamics and checkpoint work")

from jepa_rl import hub
for name in hub.names():
    print(name, WorldModel.load(f"hub:{name}").spec.shapes, hub.card(name).score)

from jepa_rl.agents import JEPAMPC
JEPAMPC("MlpPolicy", "Pendulum-v1", learning_starts=20, batch_size=8).learn(25, progress_bar=True)
print("an agent learns, behind a progress bar")
"""


def run(*command: str | Path, cwd: Path) -> None:
    print("+", *(str(part).partition("\n")[0] or "<smoke>" for part in command), flush=True)
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment.setdefault("OMP_NUM_THREADS", "1")  # small models: threads that wait for each other only cost
    subprocess.run([str(part) for part in command], cwd=cwd, env=environment, check=True)


def expected_members() -> set[str]:
    """Every module of the three rooms by its place in the wheel."""
    folders = {"jepa_rl": "jepa_rl", "agents": "jepa_rl/agents", "envs": "jepa_rl/envs"}
    paths = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    members = set()
    for path in paths:
        top, _, rest = path.partition("/")
        shipped = top == "jepa_rl" and rest.startswith("hub/")
        if rest.endswith(".py") or rest == "py.typed" or shipped:
            members.add(f"{folders[top]}/{rest}")
    return members


def check_contents(wheel: Path) -> None:
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = expected_members()
    if found != expected:
        sys.exit(f"wheel misses {sorted(expected - found)} and holds too much: {sorted(found - expected)}")
    print(f"{wheel.name} holds all {len(found)} files")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="jepa-rl-wheel-") as folder:
        here = Path(folder)
        dist, elsewhere = here / "dist", here / "elsewhere"
        elsewhere.mkdir()
        run(
            sys.executable, "-m", "build", "--outdir", dist, ROOT, cwd=elsewhere
        )  # the wheel out of the sdist
        (wheel,) = dist.glob("*.whl")
        run(sys.executable, "-m", "twine", "check", "--strict", *sorted(dist.iterdir()), cwd=elsewhere)
        check_contents(wheel)
        venv.create(here / "venv", with_pip=True)
        python = here / "venv" / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=elsewhere)
        run(python, "-I", "-c", SMOKE, cwd=elsewhere)
        with_extras = {ROOT / f"examples/{name}.py" for name in ("rl_zoo3_train", "dream", "sweep")}
        examples = set((ROOT / "examples").glob("*.py")) - with_extras
        for example in sorted(examples):  # the core dependencies are enough for each
            run(python, "-I", example, "--quick", cwd=elsewhere)
    print("the wheel works")


if __name__ == "__main__":
    main()
