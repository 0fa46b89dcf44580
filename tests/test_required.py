"""Old versions of Python and PyTorch are refused in words, before anything else is imported."""

import configparser
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
