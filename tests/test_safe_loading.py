"""Zip files of Stable-Baselines3 that would execute something, or are not what they say, are refused before they do."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict, deque
from pathlib import Path

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule, set_random_seed

from jepa_rl.agents import JEPAMPC, JEPASAC, JEPAMPCPolicy
from jepa_rl.agents.sb3.baselines import load_saved
from jepa_rl.agents.sb3.joint import JEPAReplayBuffer, JointFeatures
from jepa_rl.agents.sb3.saved import load_agent
from jepa_rl.agents.sb3.saved.pickles import PickleError, read_pickle
from jepa_rl.agents.sb3.saved.rebuild import Rebuild, name_of
from jepa_rl.control import ControlConfig
from jepa_rl.dynamics.flow import FlowSampling
from jepa_rl.training.joint import JointConfig
from jepa_rl.world_model import WorldModel

SMALL = {
    "world": {"latent_dim": 8},
    "control": ControlConfig(width=8, depth=1),
    "horizon": 2,
    "samples": 8,
    "elites": 4,
}


class Makes:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture(scope="module")
def saved() -> bytes:
    """A JEPAMPC, saved."""
    file = io.BytesIO()
    agent = JEPAMPC("MlpPolicy", "Pendulum-v1", buffer_size=100, policy_kwargs=SMALL, seed=0, device="cpu")
    agent.save(file)
    return file.getvalue()


@pytest.fixture
def trap(tmp_path):
    return tmp_path / "made"


def pickled(value, **shown) -> dict:
    """A setting as Stable-Baselines3 pickles it."""
    return {":type:": "", ":serialized:": base64.b64encode(cloudpickle.dumps(value)).decode(), **shown}


def altered(saved: bytes, settings: dict | None = None, **members: bytes) -> io.BytesIO:
    """The file with some settings, and some members, replaced or added."""
    old, file = zipfile.ZipFile(io.BytesIO(saved)), io.BytesIO()
    contents = {name: old.read(name) for name in old.namelist()}
    contents["data"] = json.dumps(json.loads(contents["data"]) | (settings or {})).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (contents | members).items():
            archive.writestr(name, content)
    file.seek(0)
    return file


def refused(file: io.BytesIO, words: str, algorithm=JEPAMPC, **options) -> None:
    with pytest.raises(ValueError, match=words):
        algorithm.load(file, **options)


# --- what would execute something ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "policy_class",
        "learning_rate",
        "lr_schedule",
        "observation_space",
        "action_space",
        "_last_obs",
        "of_its_own",
    ],
)
def test_a_pickle_that_calls_is_refused_and_named(saved, trap, key):
    file = altered(saved, {key: pickled(Makes(trap))})
    refused(file, rf"{key}': it calls (posix|nt)\.mkdir.*Nothing was unpickled.*custom_objects=.*trust=True")
    assert not trap.exists()
    with contextlib.suppress(Exception):
        JEPAMPC.load(file, trust=True)
    assert trap.exists(), "a trap that never closes tests nothing"


@pytest.mark.parametrize(
    "hide", [lambda x: {"world": {"encoder": x}}, lambda x: [x], lambda x: {1: (2, {"a": [x]})}]
)
def test_a_call_deep_inside_is_refused(saved, trap, hide):
    refused(altered(saved, {"policy_kwargs": pickled(hide(Makes(trap)))}), "policy_kwargs': it calls")
    assert not trap.exists()


def test_several_are_named_at_once(saved, trap):
    settings = {"policy_kwargs": pickled(Makes(trap)), "lr_schedule": pickled(lambda left: left)}
    refused(
        altered(saved, settings), "policy_kwargs': it calls .*lr_schedule': it holds the code of a function"
    )
    assert not trap.exists()


def test_functions_are_refused_unless_they_are_passed_or_trusted(saved):
    falling = {
        "learning_rate": pickled(lambda left: 0.5 * left),
        "lr_schedule": pickled(lambda left: 0.5 * left),
    }
    refused(altered(saved, falling), "learning_rate': it holds the code of a function")
    own = {"learning_rate": LinearSchedule(1.0, 0.0, 1.0), "lr_schedule": None}
    assert JEPAMPC.load(altered(saved, falling), custom_objects=own).lr_schedule(0.25) == 0.25
    assert JEPAMPC.load(altered(saved, falling), trust=True).lr_schedule(0.5) == 0.25


def in_a_box(part):
    box = spaces.Box(-1, 1, (2,))
    box.low = part
    return box


def in_a_schedule(part):
    schedule = FloatSchedule(1.0)
    schedule.value_schedule = part
    return schedule


@pytest.mark.parametrize(
    "hide",
    [
        in_a_box,
        in_a_schedule,
        lambda x: spaces.Dict({"a": in_a_box(x)}),
        lambda x: deque([x]),
        lambda x: OrderedDict(a=x),
        lambda x: np.array([x], dtype=object),
        lambda x: NormalActionNoise(x, np.ones(1)),
        lambda x: JointConfig(world={"a": x}),
    ],
)
def test_a_known_object_does_not_hide_a_call(hide, trap):
    with pytest.raises(PickleError, match=r"calls (posix|nt)\.mkdir|an array of 'O"):
        remake(hide(Makes(trap)))
    assert not trap.exists()


def with_fields(kind: type, fields: dict):
    """An object as an attacker would write it: past its constructor."""
    made = object.__new__(kind)
    made.__dict__.update(fields)
    return made


@pytest.mark.parametrize(
    "hostile",
    [
        with_fields(JointConfig, {"weight": -1.0}),
        with_fields(ControlConfig, {"width": 0}),
        with_fields(ConstantSchedule, {"val": "1e-3"}),
        with_fields(LinearSchedule, {"start": 1.0, "end": 0.0}),
        with_fields(FloatSchedule, {"value_schedule": int}),
        with_fields(spaces.Box, {"low": np.zeros(2), "high": np.zeros(3), "dtype": np.dtype("f4")}),
        with_fields(spaces.Box, {"low": np.zeros(2), "high": np.zeros(2), "dtype": "float32"}),
        with_fields(spaces.Discrete, {"n": 10**400}),
        with_fields(spaces.Dict, {"spaces": {"a": 1}}),
        TrainFreq(1, "step"),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, object),
        np.random.Generator(np.random.MT19937(0)),
        getattr,
        os.system,
        torch.load,
        Path,
        object(),
        {("a", "tuple"): 1},
        1j,
    ],
)  # fmt: skip
def test_unsound_states_of_known_classes_and_unknown_ones_are_refused(hostile):
    with pytest.raises(PickleError):
        remake(hostile)


def test_pickles_that_hold_themselves_or_are_endless_are_refused():
    circle: list = []
    circle.append(circle)
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(PickleError, match="holds itself"):
        remake(circle)
    with pytest.raises(PickleError, match="nested too deeply"):
        Rebuild({})(read_pickle(b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b"."))
    doubled: object = [1]
    for _ in range(200):  # 2 ** 200 lists, if each were made anew
        doubled = [doubled, doubled]
    assert len(remake(doubled)) == 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        b"cos\nsystem\n(S'true'\ntR.",  # protocol 0
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x04\x82\x01.",  # from the registry of extensions
        b"\x80\x04N\x85Q.",  # a persistent id
        b"\x80\x04}\x8c\x01a.",
        b"\x80\x04R.",
        b"\x80\x04(u.",
        b"\x80\x04h\x07.",
        b"\x80\x04]]s.",
        b"\x80\x04N}b.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
)
def test_other_pickles_are_refused(data):
    with pytest.raises(PickleError):
        Rebuild({})(read_pickle(data))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_pickle_is_refused_or_read_and_raises_nothing_else(data):
    whole = bytearray(
        cloudpickle.dumps({"space": spaces.Dict({"a": spaces.Box(-1, 1, (2,))}), "rate": FloatSchedule(1)})
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    with contextlib.suppress(PickleError):
        Rebuild({})(read_pickle(bytes(whole[:cut] if cut % 2 else whole)))


# --- what is made anew -----------------------------------------------------------------------------------------------


def remake(value):
    known = (JointFeatures, JEPAReplayBuffer, *SAC.policy_aliases.values())
    return Rebuild({name_of(kind): kind for kind in known})(read_pickle(cloudpickle.dumps(value)))


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 10**30, -2.5, float("inf"), "text", b"bytes", (1, [2, {3}]), frozenset({1}), {"a": {"b": (1,)}},
        set(),
        np.float32(2.5), np.int64(-3), np.bool_(True),
        np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(8)[::2],
        np.arange(3, dtype=">f4"), np.zeros((0, 2), np.uint8), np.array(1.5), np.array([True, False]),
        spaces.Box(0, 255, (3, 4, 4), np.uint8), spaces.Box(-np.inf, 1, (2,), np.float64), spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 3], start=[1, 0]), spaces.MultiBinary(3), spaces.MultiBinary([2, 2]),
        spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Box(0, 1, (1,))}),
        TrainFreq(4, TrainFrequencyUnit.EPISODE), deque([1.5, {"r": np.float64(1)}], maxlen=7), deque(),
        OrderedDict(b=1, a=2),
        Path("runs/agent"), ControlConfig(width=7), JointConfig(steps=2, world={"encoder": "conv"}),
        FlowSampling(),
        {"activation_fn": torch.nn.ELU, "optimizer_class": torch.optim.AdamW, "net_arch": {"pi": [8], "qf": [8]}},
        JEPAReplayBuffer, JointFeatures, SAC.policy_aliases["CnnPolicy"], PPO.policy_aliases["MlpPolicy"],
    ],
    ids=str,
)  # fmt: skip
def test_known_settings_are_made_as_they_were(value):
    found = remake(value)
    assert type(found) is type(value)
    if isinstance(value, np.ndarray | np.generic):
        assert found.dtype == value.dtype and found.shape == value.shape
        np.testing.assert_array_equal(found, value)
        assert isinstance(value, np.generic) or found.flags.writeable
    elif isinstance(value, deque):
        assert found == value and found.maxlen == value.maxlen
    elif isinstance(value, spaces.Dict):
        assert found == value and list(found.spaces) == list(value.spaces)
    else:
        assert found == value


@pytest.mark.parametrize(
    "schedule",
    [
        ConstantSchedule(0.5),
        LinearSchedule(1.0, 0.1, 0.5),
        FloatSchedule(LinearSchedule(1.0, 0.1, np.float64(1))),
    ],
)
def test_schedules_give_what_they_gave(schedule):
    found = remake(schedule)
    assert type(found) is type(schedule)
    assert [found(left) for left in (1.0, 0.7, 0.2, 0.0)] == [schedule(left) for left in (1.0, 0.7, 0.2, 0.0)]


def test_action_noise_and_random_actions_go_on():
    noise = VectorizedActionNoise(NormalActionNoise(np.zeros(2), np.full(2, 0.1)), 3)
    set_random_seed(0)
    drawn = noise()
    set_random_seed(0)
    np.testing.assert_array_equal(remake(noise)(), drawn)
    for space in (spaces.Box(-1, 1, (2,), seed=3), spaces.Discrete(1000, seed=3)):
        space.sample()
        found = remake(space)
        np.testing.assert_array_equal([found.sample() for _ in range(5)], [space.sample() for _ in range(5)])


def test_a_file_is_loaded_as_if_it_were_trusted(saved, monkeypatch):
    trusted = JEPAMPC.load(altered(saved), env=gym.make("Pendulum-v1"), trust=True)
    monkeypatch.setattr("stable_baselines3.common.save_util.cloudpickle.loads", None)
    found = JEPAMPC.load(altered(saved), env=gym.make("Pendulum-v1"))
    for agent in (trusted, found):
        agent.learning_starts, agent.seed = 10, 4
        agent.set_random_seed(4)
        agent.learn(20)
    for name, value in trusted.policy.state_dict().items():
        torch.testing.assert_close(found.policy.state_dict()[name], value, rtol=0, atol=0)


def test_agents_of_stable_baselines3_itself_are_loaded_safely(tmp_path, trap):
    agent = PPO(
        "MlpPolicy", "CartPole-v1", n_steps=4, batch_size=4, policy_kwargs={"activation_fn": torch.nn.ReLU}
    )
    agent.save(tmp_path / "agent")
    loaded = load_agent(PPO, tmp_path / "agent", device="cpu")
    seen = np.full((1, 4), 0.1, np.float32)
    assert loaded.predict(seen, deterministic=True)[0] == agent.predict(seen, deterministic=True)[0]
    with pytest.raises(
        ValueError, match=r"policy is of stable_baselines3\..*, not a JEPAMPC; load it by its own"
    ):
        JEPAMPC.load(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="is a zip file, expected safetensors"):
        WorldModel.load(tmp_path / "agent.zip")
    file = altered((tmp_path / "agent.zip").read_bytes(), {"clip_range": pickled(Makes(trap))})
    with pytest.raises(ValueError, match="clip_range': it calls"):
        load_agent(PPO, file)
    assert not trap.exists()


def test_a_class_of_a_subclass_is_known_where_it_says_so():
    class Own(JointFeatures):
        pass

    with pytest.raises(PickleError, match="the code of a function or class"):
        remake(Own)
    assert JointFeatures in JEPASAC.known_classes


# --- settings and zip files that are not what they say ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"env": "antigravity:Fly-v0"}, r"no agent saves: \['env'\]"),  # Gymnasium would import that module
        ({"train": "later", "predict": 1}, r"no agent saves: \['predict', 'train'\]"),
        ({"policy_kwargs": {":serialized:": 3}}, "no text in base64"),
        ({"policy_kwargs": {":serialized:": "!"}}, "no text in base64"),
    ],
)
def test_settings_that_no_agent_saves_are_refused(saved, setting, words):
    refused(altered(saved, setting), words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "settings are no JSON"),
        (b"[" * 100_000, "settings are no JSON"),
        (b"\xff\xfe{", "settings are no JSON"),
        (b"[]", "settings are a list"),
        (b'{"source": ""}', "holds no agent of Stable-Baselines3"),
    ],
)
def test_settings_that_are_none_are_refused(saved, data, words):
    refused(altered(saved, data=data), words)


def test_a_file_without_settings_is_refused(saved):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("policy.pth", b"")
    refused(file, "holds no settings of an agent")


def weights(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_weights_that_are_something_else_are_refused(saved, trap):
    words = "the part 'policy.pth' of the open file holds something else than weights"
    refused(altered(saved, **{"policy.pth": weights({"a": Makes(trap)})}), words)
    assert not trap.exists()
    agent = JEPAMPC.load(altered(saved))
    with pytest.raises(ValueError, match=words):
        agent.set_parameters(altered(saved, **{"policy.pth": weights(Makes(trap))}))
    assert not trap.exists()
    agent.set_parameters(altered(saved, {"policy_kwargs": pickled(Makes(trap))}))  # settings are not read
    assert not trap.exists()
    # Nor would Stable-Baselines3 unpickle them; versions before 2.8 did.
    with pytest.raises(pickle.UnpicklingError):
        load_from_zip_file(altered(saved, **{"policy.pth": weights({"a": Makes(trap)})}), load_data=False)
    assert not trap.exists()
    for content in (b"", cloudpickle.dumps(Makes(trap)), b"PK\x05\x06" + b"\0" * 18):
        refused(altered(saved, **{"policy.pth": content}), "policy.pth'")
    assert not trap.exists()


@pytest.mark.parametrize(
    "variables", [{"__class__": torch.ones(1)}, {"a.b": torch.ones(1)}, {"a": "b"}, [1], {1: None}]
)
def test_variables_that_no_agent_has_are_refused(saved, variables):
    refused(altered(saved, **{"pytorch_variables.pth": weights(variables)}), "variable")


@pytest.mark.parametrize(
    "name", ["../up.pth", "/root.pth", "a/b.pth", r"a\b.pth", "C:a.pth", "__class__.pth", "a.__dict__.pth"]
)
def test_names_of_members_that_lead_elsewhere_are_refused(saved, name):
    refused(altered(saved, **{name: weights({})}), "which no agent's part has")


def test_two_members_of_one_name_are_refused(saved):
    file = altered(saved)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("policy.pth", b"")
    refused(file, "two members of one name")


def test_zip_bombs_are_refused_before_they_unpack(saved):
    file = altered(saved)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.pth", bytes(2**25))
    refused(file, "'bomb.pth' compressed")
    inside = io.BytesIO()
    with zipfile.ZipFile(inside, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**25))
    refused(altered(saved, **{"policy.pth": inside.getvalue()}), "'archive/data/0' compressed")


@pytest.mark.parametrize(
    ("name", "words"), [("policy.pth", "members that declare"), ("data", "more than any agent's")]
)
def test_sizes_that_are_not_there_are_refused(saved, name, words):
    file = altered(saved)
    with zipfile.ZipFile(file, "a") as archive:
        archive.getinfo(name).file_size = 2**40
        archive.writestr("note", b"")  # writes the list of members anew
    refused(file, words)


def test_encrypted_members_are_refused(saved):
    content = bytearray(altered(saved).getvalue())
    at = content.rindex(b"policy.pth") - 46  # its entry in the list of members
    assert content[at : at + 4] == b"PK\x01\x02"
    struct.pack_into("<H", content, at + 8, 1)
    refused(io.BytesIO(bytes(content)), "encrypted")


def test_truncated_and_damaged_files_are_refused(saved):
    for cut in np.linspace(0, len(saved) - 1, 25).astype(int):
        refused(
            io.BytesIO(saved[:cut]),
            "wasn't a zip-file of Stable-Baselines3|holds no settings of an agent; it is truncated",
        )
    content = bytearray(saved)
    content[content.index(b"policy.pth") + 5000] ^= 255
    refused(io.BytesIO(bytes(content)), "checksum|CRC")


# --- what is not a zip file ------------------------------------------------------------------------------------------


def test_a_policy_alone_is_loaded_safely(saved, tmp_path, trap):
    policy = JEPAMPC.load(altered(saved)).policy
    hostile = {"state_dict": policy.state_dict(), "data": Makes(trap)}
    torch.save(hostile, tmp_path / "hostile.pt")
    with pytest.raises(ValueError, match="no weights and settings of a JEPAMPCPolicy"):
        JEPAMPCPolicy.load(tmp_path / "hostile.pt")
    assert not trap.exists()
    torch.save(
        {"state_dict": {}, "settings": json.dumps({"world": pickled(Makes(trap))})}, tmp_path / "hostile.pt"
    )
    with pytest.raises(ValueError, match="world': it calls"):
        JEPAMPCPolicy.load(tmp_path / "hostile.pt")
    assert not trap.exists()
    with pytest.raises(FileNotFoundError):
        JEPAMPCPolicy.load(tmp_path / "none.pt")
    super(JEPAMPCPolicy, policy).save(str(tmp_path / "old.pt"))  # as 0.2.0 did
    loaded = JEPAMPCPolicy.load(tmp_path / "old.pt", trust=True)
    torch.testing.assert_close(loaded.state_dict(), policy.state_dict())


def test_pickled_replays_and_statistics_need_trust(tmp_path, trap):
    env = gym.make("Pendulum-v1")
    SAC("MlpPolicy", env, buffer_size=10).save(tmp_path / "agent.zip")
    (tmp_path / "replay.pkl").write_bytes(cloudpickle.dumps(Makes(trap)))
    with pytest.raises(ValueError, match=r"\['replay.pkl'\], which Stable-Baselines3 unpickles"):
        load_saved(SAC, tmp_path, SAC._wrap_env(env))
    assert not trap.exists()
    with contextlib.suppress(Exception):
        load_saved(SAC, tmp_path, SAC._wrap_env(env), trust=True)
    assert trap.exists()
