"""Old versions of Python and PyTorch are refused in words, before anything else is imported."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jepa_rl._required import PYTHON, TORCH, check_versions

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("python", "torch", "words"),
    [
        ((3, 10, 12), "2.13.0", r"needs Python 3\.11 or newer, this is 3\.10 .*python3\.11 -m venv"),
        (
            (3, 11, 7),
            "2.7.1+cu128",
            r"PyTorch 2\.8 or newer, found 2\.7\.1\+cu128: `pip install -U \"torch>=2\.8,<3\"`",
        ),
        ((3, 11, 7), "1.13.1", r"found 1\.13\.1"),
        ((3, 11, 7), None, r"PyTorch 2\.8 or newer, which is not installed: `pip install"),
    ],
)
def test_too_old(python, torch, words):
    with pytest.raises(ImportError, match=words):
        check_versions(python, torch)


@pytest.mark.parametrize("torch", ["2.8.0", "2.10.1+cpu", "2.9.0a0+gitabc", "3.0.0", "unknown"])
def test_recent_enough(torch):
    check_versions((3, 14, 0), torch)


def test_the_bounds_are_those_of_the_package():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    options = parser["options"]
    assert options["python_requires"] == f">={PYTHON[0]}.{PYTHON[1]}"
    assert f"torch>={TORCH[0]}.{TORCH[1]},<3" in options["install_requires"].splitlines()


def test_jepa_rl_looks_first(tmp_path):
    """An old PyTorch that lacks everything else that the library imports."""
    (tmp_path / "torch.py").write_text("__version__ = '2.3.0'")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import jepa_rl"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1].startswith(
        "ImportError: jepa-rl needs PyTorch 2.8 or newer, found 2.3.0"
    )


@pytest.mark.parametrize("beside", [True, False])
def test_python_started_in_a_clone_finds_agents_and_envs(tmp_path, beside):
    """After a plain ``pip install .``, its folder ``jepa_rl`` still comes before the installed package."""
    clone = tmp_path / "clone"
    for name in ("jepa_rl", "agents", "envs"):
        shutil.copytree(
            ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
        )
    if beside:
        shutil.copy(ROOT / "setup.cfg", clone)
    code = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, '__name__', '') != '_EditableFinder']\n"
        "import jepa_rl.agents, jepa_rl.envs\n"
        "print(jepa_rl.agents.__file__, jepa_rl.envs.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    if beside:
        agents, envs = (str(clone.resolve() / name / "__init__.py") for name in ("agents", "envs"))
        assert done.stdout.split() == [agents, envs], done.stderr
    else:  # some other folder named jepa_rl is left alone
        assert "No module named 'jepa_rl.agents'" in done.stderr
