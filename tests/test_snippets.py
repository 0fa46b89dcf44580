"""README and docs: every block of Python runs as pasted, and every command names what is there.

The blocks of a page run in order, in one namespace and an empty folder, as a reader who pastes them one after the other
has it. ``JEPA_RL_SHORT=0`` runs them as they stand, which takes hours; by default ``SHORTER`` cuts their budgets, the
numbers of steps, updates and samples, and ``FEWER`` those that are defaults. Nothing else is changed.

A comment before a block says what is special about it: ``<!-- snippet: gl -->`` for one that needs OpenGL and stands
for itself, ``<!-- snippet: imports my_parts -->`` for one that uses the rest of its page as a module,
``<!-- snippet: ray -->`` for one that test_ray.py runs, where Ray is running.
"""

from __future__ import annotations

import ast
import configparser
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from jepa_rl.agents import grow
from jepa_rl.envs import learn_world_model
from jepa_rl.registry import DYNAMICS, ENCODERS, OBJECTIVES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "api" not in p.parts)]
SHORT = os.environ.get("JEPA_RL_SHORT", "1") != "0"
SHORTER = (
    (r"model\.learn\(50_000", "model.learn(99"),  # until an episode of CartPole has ended
    (r"\.learn\(\d[\d_]{2,}", ".learn(40"),
    (r"\b(updates|refine_updates)=\d[\d_]*", r"\1=3"),
    (r"TrainConfig\(steps=\d[\d_]*", "TrainConfig(steps=3"),
    (r"replace\(training, steps=\d[\d_]*", "replace(training, steps=3"),
    (r"\bsteps=\d+_\d+", "steps=300"),
    (r"\bepisodes=\d+", "episodes=3"),
    (r"\brounds=\d+", "rounds=2"),
    (r"\bin range\(\d{3,}\)", "in range(3)"),
    (r"\blearning_starts=\d+", "learning_starts=30"),
    (r"\bmax_episode_steps=\d+", "max_episode_steps=20"),
    (r'PPO\("MlpPolicy", (\w+)\)', r'PPO("MlpPolicy", \1, n_steps=64)'),
)
FEWER = {"steps": 300, "updates": 3, "refine_updates": 3}  # of learn_world_model


class Snippet(NamedTuple):
    line: int
    note: str
    code: str


def snippets(page: Path) -> list[Snippet]:
    text = page.read_text()
    found = re.finditer(r"(?:<!-- snippet: (.*?) -->\n)?```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [Snippet(text.count("\n", 0, m.start(2)), m[1] or "", m[2]) for m in found]


def name(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


def shortened(code: str) -> str:
    for pattern, few in SHORTER if SHORT else ():
        code = re.sub(pattern, few, code)
    return code


def run(page: Path, several: list[Snippet], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))  # restored, whatever a block sets
    if SHORT:
        monkeypatch.setattr(learn_world_model, "__kwdefaults__", learn_world_model.__kwdefaults__ | FEWER)
        monkeypatch.setattr(
            grow, "__kwdefaults__", grow.__kwdefaults__ | {"updates": 3, "gradient_steps": 20}
        )
    for registry in (DYNAMICS, ENCODERS, OBJECTIVES):  # what a page registers is its own
        own = {name: part for name, part in registry._parts.items() if part.__module__.startswith("jepa_rl.")}
        monkeypatch.setattr(registry, "_parts", own)
    module = ModuleType(name(page).replace("/", "_").replace("-", "_"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for snippet in several:
        padded = "\n" * snippet.line + shortened(snippet.code)  # an error names the line of the page
        exec(compile(padded, str(page), "exec"), vars(module))


@pytest.mark.parametrize("page", [p for p in PAGES if any(not s.note for s in snippets(p))], ids=name)
def test_blocks_run_as_pasted(page, monkeypatch, tmp_path):
    run(page, [s for s in snippets(page) if not s.note], monkeypatch, tmp_path)


@pytest.mark.gl
@pytest.mark.parametrize("page", [p for p in PAGES if any(s.note == "gl" for s in snippets(p))], ids=name)
def test_blocks_that_draw_with_opengl_run_as_pasted(page, monkeypatch, tmp_path):
    run(page, [s for s in snippets(page) if s.note == "gl"], monkeypatch, tmp_path)


def test_the_block_that_imports_the_parts_of_its_page_runs(tmp_path):
    """In a process of its own: the names of the parts may be registered here already."""
    page = ROOT / "docs" / "own_parts.md"
    (tmp_path / "my_parts.py").write_text("\n".join(s.code for s in snippets(page) if not s.note))
    (block,) = [s for s in snippets(page) if s.note]
    done = subprocess.run(
        [sys.executable, "-c", shortened(block.code)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_notes_are_known_and_there_are_enough_blocks():
    found = [s for page in PAGES for s in snippets(page)]
    assert {s.note for s in found} == {"", "gl", "imports my_parts", "ray"}
    fences = sum(page.read_text().count("```python") for page in PAGES)
    assert len(found) == fences > 30


# -- commands ---------------------------------------------------------------------------------------


def commands(page: Path) -> list[str]:
    """Lines of shell blocks, and code in a line that begins like a command."""
    text = page.read_text()
    blocks = [
        line
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    inline = re.findall(r"`((?:python|make|pip install|tensorboard) [^`\n]+)`", rest)
    return [line.strip() for line in [*blocks, *inline] if line.strip() and not line.startswith("#")]


def wrong(command: str) -> str | None:
    """What of a command is not there; None if all is."""
    words = [w for w in shlex.split(command, comments=True) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
    program, *rest = words
    if program == "python" and rest[0] == "-m":
        return None if importlib.util.find_spec(rest[1]) else f"no module {rest[1]}"
    if program == "python":
        return wrong_script(rest[0], [w for w in rest[1:] if w.startswith("--")])
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return next((f"no target {t}" for t in rest if t not in targets), None)
    if program == "pip":
        parser = configparser.ConfigParser()
        parser.read(ROOT / "setup.cfg")
        asked = [extra for w in rest for m in re.findall(r"\[([\w,]+)\]", w) for extra in m.split(",")]
        known = {*parser["options.extras_require"], "python"}
        return next((f"no extra {extra}" for extra in asked if extra not in known), None)
    return (
        None
        if program in ("apt-get", "cd", "git", "source", "tensorboard", "torchrun", "pre-commit")
        else f"unknown: {program}"
    )


def wrong_script(script: str, flags: list[str]) -> str | None:
    if not (ROOT / script).exists():
        return f"no file {script}"
    source = (ROOT / script).read_text()
    fields = {
        part.target.id.replace("_", "-")
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "Args"
        for part in node.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    }
    for flag in flags:
        option = flag.removeprefix("--")
        if option not in fields and option.removeprefix("no-") not in fields and f'"{flag}"' not in source:
            return f"{script} has no {flag}"
    return None


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md"], ids=name)
def test_commands_name_what_is_there(page):
    assert {c: wrong(c) for c in commands(page) if wrong(c)} == {}


@pytest.mark.parametrize(
    "command",
    ["python examples/nothing.py", "python examples/quickstart.py --horizn 3", "make tset", 'pip install ".[dmx]"',
     "python -m jepa_rl.nothing", "jepa-rl train"],
)  # fmt: skip
def test_wrong_commands_are_seen(command):
    assert wrong(command)
