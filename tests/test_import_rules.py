"""Imports run in one direction, checked over the syntax trees: nothing here imports the code it looks at."""

from __future__ import annotations

import ast
import configparser
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {"jepa_rl": ROOT / "jepa_rl", "jepa_rl.agents": ROOT / "agents", "jepa_rl.envs": ROOT / "envs"}

# Downhill: a module imports from its own row or a row above it. Every module of jepa_rl stands here.
ROWS = (
    (
        "version",
        "hub",
        "files",
        "memory",
        "modes",
        "noise",
        "acting",
        "opengl",
        "checks",
        "progress",
        "csv_log",
        "cluster",
        "_checkout",
        "_required",
        "_moved",
        "distributed",
    ),
    ("specs", "batches", "types", "spaces", "sources", "registry"),
    ("encoders", "dynamics", "objectives", "heads", "costs", "risk", "inverse", "temporal", "data"),
    ("parts", "world_model"),
    ("control",),
    ("training",),
    ("diagnostics",),
    ("trials", "sweeps"),
    ("report",),
    ("presets",),
    ("testing",),
)
ROW = {name: number for number, row in enumerate(ROWS) for name in row}
DOOR = "jepa_rl.spaces"  # the only module of the modelling room that knows Gymnasium
ROOMS_ABOVE = ("jepa_rl.agents", "jepa_rl.envs")

# Import name -> distribution, where they differ.
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "PIL": "pillow", "dm_env": "dm-control"}
# Named in setup.cfg though nothing here imports them: torch.utils.tensorboard needs the first, Stable-Baselines3's
# progress bar the second.
USED_INDIRECTLY = {"tensorboard", "rich"}


def modules() -> dict[str, Path]:
    """Every module of the library by its installed name."""
    found = {}
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


MODULES = modules()


def imports(source: str, module: str = "", package: bool = False) -> Iterator[tuple[str, bool]]:
    """Absolute dotted names that ``source`` imports, and whether at import time (not inside a function)."""
    base = module.split(".") if package else module.split(".")[:-1]

    def visit(node: ast.AST, eager: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = base[: len(base) - node.level + 1] if node.level else []
            prefix = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((f"{prefix}.{alias.name}", eager) for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _type_checking(node)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, eager and not inside)

    yield from visit(ast.parse(source), True)


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imported_by(module: str) -> list[tuple[str, bool]]:
    path = MODULES[module]
    return list(imports(path.read_text(), module, path.name == "__init__.py"))


def violations(module: str, names: list[str]) -> list[str]:
    """What of ``names`` the module may not import, with the reason."""
    room = next((room for room in ROOMS_ABOVE if f"{module}.".startswith(f"{room}.")), "jepa_rl")
    wrong = []
    for name in names:
        top, _, rest = name.partition(".")
        above = next((other for other in ROOMS_ABOVE if f"{name}.".startswith(f"{other}.")), None)
        if top in ("agents", "envs"):
            wrong.append(f"{name}: write jepa_rl.{name}; the bare name gives every class a second identity")
        elif above and above != room:
            wrong.append(f"{name}: {room} may not know {above}")
        elif module == DOOR and top == "gymnasium":
            continue
        elif room == "jepa_rl" and top in ("gymnasium", "stable_baselines3"):
            wrong.append(f"{name}: the modelling room knows tensors, never {top}")
        elif room == "jepa_rl" and top == "jepa_rl" and module != "jepa_rl":
            here, there = module.split(".")[1], rest.split(".")[0]
            if there in ROW and ROW[there] > ROW[here]:
                wrong.append(f"{name}: uphill, {here} stands before {there}")
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downhill(module):
    assert violations(module, [name for name, _ in imported_by(module)]) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jepa_rl", "from jepa_rl.envs import wrap"),
        ("jepa_rl.types", "from jepa_rl import world_model"),
        ("jepa_rl.encoders.conv", "def f():\n    from ..world_model import WorldModel"),
        ("jepa_rl.costs", "if TYPE_CHECKING:\n    import gymnasium as gym"),
        ("jepa_rl.training", "from stable_baselines3.common.logger import Logger"),
        ("jepa_rl.world_model", "import jepa_rl.training"),
        ("jepa_rl.agents.planners.cem", "from jepa_rl.envs import spec"),
        ("jepa_rl.agents.planners.cem", "from jepa_rl import envs"),
        ("jepa_rl.spaces", "import jepa_rl.agents.planners.cem"),
        ("jepa_rl.spaces", "from stable_baselines3.common.vec_env import VecEnv"),
        ("jepa_rl.types", "import gymnasium"),
        ("jepa_rl.envs.collect", "from envs import two_rooms"),
    ],
)
def test_the_rule_sees_each_kind_of_wrong_import(module, source):
    assert violations(module, [name for name, _ in imports(source, module)])


def test_every_module_has_a_row():
    names = {module.split(".")[1] for module in MODULES if module != "jepa_rl"} - {"agents", "envs"}
    assert names <= ROW.keys(), f"give {sorted(names - ROW.keys())} a row in ROWS"


def test_no_import_cycles():
    """Siblings of one row may use each other, but no two modules may need each other, be it for types alone."""
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        needed = set()
        source = path.read_text().replace("if TYPE_CHECKING:", "if True:")
        for name, eager in imports(source, module, path.name == "__init__.py"):
            target = name if name in MODULES else name.rpartition(".")[0]
            if eager and target in MODULES and target != module:
                needed.add(target)
        # A package's __init__ gathers its own modules; that they import each other is not a cycle.
        graph[module] = {other for other in needed if not module.startswith(f"{other}.")}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, naming the cycle


def calls(source: str, method: str) -> int:
    """How often ``<anything>.method(...)`` is called."""
    nodes = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return sum(isinstance(called, ast.Attribute) and called.attr == method for called in nodes)


def test_gradients_are_made_in_one_place():
    """``jepa_rl.training.descend``: whatever has to happen to every gradient, such as averaging it, happens there."""
    made = {module for module, path in MODULES.items() if calls(path.read_text(), "backward")}
    assert made == {"jepa_rl.training.optimisers"}


def networks_with_a_loss(source: str) -> list[str]:
    """Classes that are networks by a base called ``Module`` (or a policy or features extractor) and have a ``loss``."""
    kinds = {"Module", "BasePolicy", "BaseFeaturesExtractor"}
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and kinds & {
            ast.unparse(base).split(".")[-1] for base in node.bases
        }:
            methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            found += [node.name] if methods & {"loss"} else []
    return found


def test_agents_have_no_networks_that_are_trained():
    """What learns stands in jepa_rl; an agent or planner may hold it, as Stable-Baselines3's policies do."""
    for module, path in MODULES.items():
        if module.startswith("jepa_rl.agents"):
            source = path.read_text()
            assert networks_with_a_loss(source) == [], module
            bases = [
                b
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.ClassDef)
                for b in node.bases
            ]
            assert "nn.Module" not in map(ast.unparse, bases), module


def test_parts_are_known_by_registers_and_not_by_lists():
    """A list of names in an annotation would refuse a part of the user's own."""
    tree = ast.parse(MODULES["jepa_rl.parts"].read_text())
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    fields = {
        node.target.id: ast.unparse(node.annotation)
        for node in classes["WorldModelConfig"].body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert {fields[name] for name in ("encoder", "dynamics", "objective")} == {"str"}
    assert not any("Literal" in annotation for annotation in fields.values())


def test_the_rules_on_networks_see_what_they_forbid():
    assert calls("total.sum().backward()", "backward") == 1 and not calls("'x.backward()'", "backward")
    source = "class A(nn.Module):\n    def loss(self): ...\nclass B(BasePolicy):\n    def predict(self): ..."
    assert networks_with_a_loss(source) == ["A"]


# --- packaging -------------------------------------------------------------------------------------


def configuration() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def names_in(requirements: str) -> set[str]:
    """Distribution names, lower case, of a requirement list in setup.cfg."""
    return {re.split(r"[\[<>=!~; ]", line.strip())[0].lower() for line in requirements.strip().splitlines()}


def test_every_package_is_listed():
    """A package that is missing here works in the editable install and is missing from the wheel."""
    folders = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert set(configuration()["options"]["packages"].split()) == folders


def test_every_folder_with_code_is_a_package():
    assert [p for p in MODULES.values() if not (p.parent / "__init__.py").exists()] == []


def third_party() -> dict[str, bool]:
    """Distributions that the library and the examples import, and whether any does so at import time."""
    found = [pair for module in MODULES for pair in imported_by(module)]
    for path in (ROOT / "examples").glob("*.py"):
        found += imports(path.read_text())
    seen: dict[str, bool] = {}
    for name, eager in found:
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and top != "jepa_rl":
            distribution = DISTRIBUTIONS.get(top, top).replace("_", "-").lower()
            seen[distribution] = seen.get(distribution, False) or eager
    return seen


def test_what_is_imported_is_declared_and_what_is_declared_is_used():
    parser = configuration()
    core = names_in(parser["options"]["install_requires"])
    extras = {name: names_in(value) for name, value in parser["options.extras_require"].items()}
    optional = set().union(*(value for name, value in extras.items() if name not in ("dev", "docs")))
    seen = third_party()
    assert {name for name, eager in seen.items() if eager} - core == set(), "import these inside a function"
    assert seen.keys() - core - optional == set(), "declare these in setup.cfg"
    assert (core | optional) - seen.keys() - USED_INDIRECTLY == set(), "nothing uses these: drop them"


def test_every_dependency_is_explained_and_pinned():
    parser = configuration()
    requirements = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    names = set().union(*map(names_in, requirements))
    explained = (ROOT / "docs/dependencies.md").read_text().lower()
    assert [name for name in sorted(names) if f"`{name}" not in explained] == []
    pins = {
        re.split("[=]=", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    assert names - pins - USED_INDIRECTLY == set(), "add tested versions to constraints.txt"


def test_version_is_the_newest_in_the_changelog():
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version = re.search(r'__version__ = "(.+)"', (ROOT / "jepa_rl/version.py").read_text())
    assert newest and version and newest[1] == version[1]


def test_the_version_to_cite_is_the_present_one():
    version = re.search(r'__version__ = "(.+)"', (ROOT / "jepa_rl/version.py").read_text())
    cited = [
        re.search(pattern, (ROOT / page).read_text(), re.MULTILINE)
        for page, pattern in (("CITATION.cff", r"^version: (.+)$"), ("docs/cite.md", r"version = \{(.+)\}"))
    ]
    assert version and [found and found[1] for found in cited] == [version[1]] * 2
