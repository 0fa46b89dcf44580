"""What the library may not do to a file or on a machine, checked over the syntax trees: nothing is imported here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("jepa_rl", "agents", "envs")

# Everything that stands in the library all the same, each with its reason.
ALLOWED = {
    (
        "agents/sb3/saved/loading.py",
        "super().load",
    ): "SB3 unpickles what custom_objects does not give: nothing",
    ("agents/sb3/jepa_mpc/policy.py", "super().load"): "only with trust=True",
    ("agents/sb3/baselines.py", ".load_replay_buffer"): "our own format, or with trust=True",
    ("agents/sb3/baselines.py", "stable_baselines3.common.vec_env.VecNormalize.load"): "only with trust=True",
    ("jepa_rl/_moved.py", "importlib.import_module"): "of names in its own table",
    ("jepa_rl/cluster.py", "pickle"): "of what this process sent to Ray's others, never of a file",
    ("envs/gl.py", "importlib.import_module"): "of mujoco's two GL backends",
}

MODULES = {
    "pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "code", "pty",
    "subprocess", "multiprocessing.reduction",
}  # fmt: skip
BUILTINS = {"eval", "exec", "__import__"}
CALLS = {
    "os.system", "os.popen", "os.startfile", "importlib.import_module", "runpy.run_path", "runpy.run_module",
    "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "yaml.load", "yaml.full_load",
    "yaml.unsafe_load", "pandas.read_pickle", "stable_baselines3.common.save_util.load_from_pkl",
    "stable_baselines3.common.save_util.load_from_zip_file", "stable_baselines3.common.save_util.json_to_data",
    "stable_baselines3.common.vec_env.VecNormalize.load",
}  # fmt: skip
FAMILIES = ("os.exec", "os.spawn", "os.posix_spawn")
METHODS = {
    "load_replay_buffer",
    "recover_environment",
}  # of Stable-Baselines3 and Minari, whatever they are called on


def found_in(source: str) -> Iterator[str]:
    """Names of what is forbidden in a source, as its imports resolve them."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                if forbidden_module(alias.name):
                    yield alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            yield from (
                name for name in (f"{node.module}.{a.name}" for a in node.names) if forbidden_module(name)
            )
    for node in ast.walk(tree):
        # Named is enough: load = torch.load; load(path)
        if isinstance(node, ast.Name | ast.Attribute) and (name := dotted(node, names)) in CALLS | BUILTINS:
            yield name
        if isinstance(node, ast.Call):
            yield from forbidden_call(node, names)


def forbidden_module(name: str) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in MODULES)


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """``torch.load`` for ``t.load`` after ``import torch as t``."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    return f"{dotted(node.value, names)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def forbidden_call(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    name = dotted(node.func, names)
    risky = ("weights_only", "allow_pickle", "shell", "trust_remote_code")
    given = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg in risky}
    if name == "torch.load" and given.get("weights_only") != "True":
        yield name
    if name == "numpy.load" and given.get("allow_pickle", "False") != "False":
        yield name
    if name.startswith(FAMILIES) or name == "compile":  # an argument of ours is called compile, too
        yield name
    if given.get("shell", "False") != "False" or given.get("trust_remote_code", "False") != "False":
        yield name
    if isinstance(node.func, ast.Attribute):
        of_super = isinstance(node.func.value, ast.Call) and dotted(node.func.value.func, names) == "super"
        if of_super and node.func.attr == "load":
            yield "super().load"
        if not of_super and node.func.attr in METHODS:
            yield f".{node.func.attr}"


def test_the_library_executes_nothing_but_what_is_listed():
    found = set()
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            found |= {(path.relative_to(ROOT).as_posix(), name) for name in found_in(path.read_text())}
    assert found - ALLOWED.keys() == set(), "do without, or list it with the reason for which it is safe"
    assert ALLOWED.keys() - found == set(), "nothing uses these: take them off the list"


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=not trust)",
        "from torch import load as read\nread(path)",
        "import pickle",
        "from cloudpickle import loads",
        "def f():\n    import joblib.numpy_pickle",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "from numpy import load\nload(path, allow_pickle=trust)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "exec(compile(text, '', 'exec'))",
        "run = eval\nrun(text)",
        "from os import system\nsystem(text)",
        "import os\nos.execvp(name, arguments)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "run(text, shell=True)",
        "from transformers import AutoModel\nAutoModel.from_pretrained(name, trust_remote_code=True)",
        "import importlib\nimportlib.import_module(name)",
        "from stable_baselines3.common.save_util import load_from_pkl\nload_from_pkl(path)",
        "from stable_baselines3.common.vec_env import VecNormalize\nVecNormalize.load(path, venv)",
        "agent.load_replay_buffer(path)",
        "class A(B):\n    @classmethod\n    def load(cls, path):\n        return super().load(path)",
        "dataset.recover_environment()",
    ],
)
def test_each_kind_is_seen(source):
    assert list(found_in(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import re\nre.compile(text)",
        "model.eval()",
        "import torch\ntorch.compile(model)",
        "import pickletools",
        "super().load_replay_buffer(path)",
    ],
)
def test_what_only_looks_alike_is_not(source):
    assert not list(found_in(source))
