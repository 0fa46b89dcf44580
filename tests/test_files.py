"""Files: NumPy numbers in settings, and the lock of writers."""

import errno
import importlib.util
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save

from jepa_rl import files
from jepa_rl.files import load_tensors, lock, open_run, save_tensors, unlock
from jepa_rl.training import TrainConfig
from jepa_rl.training.checkpoint import TrainingState


def test_a_header_may_hold_numpy_numbers(tmp_path):
    header = {
        "batch_size": np.int64(8),
        "rate": np.float32(0.5),
        "on": np.bool_(True),
        "widths": np.arange(3),
    }
    save_tensors(tmp_path / "a", "thing", {}, header)
    _, found = load_tensors(tmp_path / "a", ("thing",))
    assert found == {"batch_size": 8, "rate": 0.5, "on": True, "widths": [0, 1, 2]}


def test_what_a_header_cannot_hold_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"settings must be numbers, texts, lists and dicts, got set"):
        save_tensors(tmp_path / "a", "thing", {}, {"odd": {1}})
    assert not (tmp_path / "a").exists()


def test_a_run_of_numpy_numbers_is_the_run_of_pythons(tmp_path):
    open_run(tmp_path / "run", {"batch_size": np.int64(8)})
    open_run(tmp_path / "run", {"batch_size": 8})
    with pytest.raises(ValueError, match=r"holds a run with \{'batch_size': 8\}"):
        open_run(tmp_path / "run", {"batch_size": np.int64(9)})


@dataclass(frozen=True)
class Width:
    width: int


class Line(torch.nn.Linear):
    def __init__(self, config):
        super().__init__(config.width, 1)
        self.config = config


def test_a_training_of_numpy_numbers_goes_on(tmp_path):
    def state(config, width):
        model = Line(Width(width))
        return TrainingState(model, {"adam": torch.optim.Adam(model.parameters())}, config, data={})

    config = TrainConfig(steps=10, batch_size=8)
    state(replace(config, batch_size=np.int64(8)), np.int64(3)).save(tmp_path / "a")
    state(config, 3).restore(tmp_path / "a")
    state(replace(config, batch_size=np.int64(8)), np.int64(3)).restore(tmp_path / "a")
    with pytest.raises(ValueError, match=r"batch_size.*\(8, 9\)"):
        state(replace(config, batch_size=np.int64(9)), 3).restore(tmp_path / "a")


def test_a_lock_has_one_holder(tmp_path):
    with open(tmp_path / "lock", "a") as one, open(tmp_path / "lock", "a") as other:
        assert lock(one) and not lock(other)
        unlock(one)
        assert lock(other) and not lock(one)


def test_on_windows_the_lock_is_that_of_the_c_library(tmp_path, monkeypatch):
    """``fcntl`` does not exist there. The stand-in for ``msvcrt`` does what its documentation says."""
    held = set()

    def locking(descriptor, mode, nbytes):
        assert nbytes == 1
        if mode == 2 and held - {descriptor}:
            raise OSError(errno.EACCES, "Permission denied")
        held.add(descriptor) if mode == 2 else held.remove(descriptor)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0))
    monkeypatch.setitem(sys.modules, "fcntl", None)  # an import of it fails
    spec = importlib.util.spec_from_file_location("files_on_windows", files.__file__)
    there = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(there)
    with open(tmp_path / "lock", "a") as one, open(tmp_path / "lock", "a") as other:
        assert there.lock(one) and not there.lock(other)
        there.unlock(one)
        assert there.lock(other)


@pytest.mark.parametrize(
    "metadata",
    [
        {"header": "[" * 100_000 + "]" * 100_000},
        {"header": '{"steps": ' + "1" * 5000 + "}"},
        {"header": "[]"},
        {"header": "{"},
        {"version": "9" * 5000},
        {"version": "-1"},
    ],
    ids=["deep", "digits", "list", "cut", "long version", "odd version"],
)
def test_odd_metadata_is_refused_in_words_that_name_the_file(tmp_path, metadata):
    """Checksums are no secret: these files have the right one."""
    path = tmp_path / "odd.safetensors"
    facts = {"format": "jepa-rl", "version": "1", "kind": "thing", "header": "{}"} | metadata
    path.write_bytes(save({}, facts | {"checksum": files._checksum({}, facts)}))
    with pytest.raises(ValueError, match=r"odd.safetensors is truncated or corrupt"):
        load_tensors(path, ("thing",))


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_settings_of_a_run_are_named(tmp_path, text):
    open_run(tmp_path, {"steps": 3})
    (tmp_path / "args.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"args.json holds no settings that can be read"):
        open_run(tmp_path, {"steps": 3})
