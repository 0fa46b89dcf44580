"""``learn_world_model``: random play, training and refining of any environment in one call."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch

from jepa_rl import WORLD_PRESETS, EpisodeStore, WorldModel
from jepa_rl.envs import PixelObservation, TwoRoomsEnv, learn_world_model, wrap
from jepa_rl.files import read_json
from jepa_rl.report import read_run

FEW = {"steps": 60, "updates": 2, "refine_updates": 2, "progress": False}
pytestmark = pytest.mark.filterwarnings("ignore:.*is of little use")  # two updates


class Bar(gym.Env):
    """An environment of somebody's own: vectors as observations, pictures by ``render``."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(3)
    render_mode = "rgb_array"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = int(self.np_random.integers(0, 24))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.x = int(np.clip(self.x + 4 * (action - 1), 0, 24))
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self):
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[:, self.x : self.x + 8] = 255
        return picture


def bar(steps: int = 20) -> gym.Env:
    return gym.wrappers.TimeLimit(Bar(), steps)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "run"
    with pytest.warns(UserWarning, match="is of little use: collapse: 64 of 64 latent dimensions"):
        model = learn_world_model(bar(), out, **FEW)
    return model, out


def test_an_own_environment_becomes_latents(learned):
    model, out = learned
    assert model.spec.pixels == (9, 64, 64) and model.spec.frames == 3 and model.spec.block == 1
    assert not model.training
    latents = [wrap(bar(), source).reset(seed=0)[0] for source in (model, out / "model.safetensors")]
    np.testing.assert_array_equal(*latents)
    assert EpisodeStore.open(out / "episodes").num_steps >= 60


def test_the_dynamics_are_refined_and_the_encoder_is_not(learned):
    model, out = learned
    joint = WorldModel.load(out / "joint" / "model.safetensors")
    for name, before in joint.state_dict().items():
        after = model.state_dict()[name]
        if name.startswith("encoder."):
            torch.testing.assert_close(after, before, rtol=0, atol=0)
    moved = [
        n for n, p in joint.dynamics.named_parameters() if not torch.equal(p, model.dynamics.get_parameter(n))
    ]
    assert moved


def test_a_finished_run_is_returned_and_another_is_refused(learned):
    model, out = learned
    again = learn_world_model(bar(), out, **FEW)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"holds a run with .*pass resume=False"):
        learn_world_model(bar(), out, **FEW | {"seed": 1})


def test_another_environment_or_other_actions_are_refused(learned):
    class Dimmed(Bar):
        def render(self):
            return super().render() // 2

    class Steps(Bar):
        action_space = gym.spaces.Discrete(2)

    Steps.__qualname__ = Bar.__qualname__
    for other, named in ((Dimmed(), "environment"), (Steps(), "actions")):
        with pytest.raises(ValueError, match=rf"holds a run with {{'{named}': .*pass resume=False"):
            learn_world_model(gym.wrappers.TimeLimit(other, 20), learned[1], **FEW)


def test_its_report_says_that_it_has_ended(learned):
    assert read_run(learned[1]).finished


def test_pictures_that_are_stacked_already_stay_as_they_are(tmp_path):
    env = PixelObservation(TwoRoomsEnv(), size=32, frames=2)
    env = gym.wrappers.TimeLimit(env, 30)
    model = learn_world_model(env, tmp_path / "run", block=5, **FEW | {"refine_updates": 0})
    assert model.spec.pixels == (4, 32, 32) and model.spec.frames == 2 and model.spec.block == 5


def test_a_preset_is_chosen_by_name_and_says_how_long_it_trains(learned, tmp_path, monkeypatch):
    assert learned[0].config.objective == "change" and learned[0].config.encoder == "frames"
    few = {"steps": 60, "refine_updates": 0, "progress": False, "frames": 1, "block": 5}
    short = WORLD_PRESETS["laptop"]
    monkeypatch.setitem(
        WORLD_PRESETS,
        "laptop",
        lambda spec: short(spec)._replace(train=replace(short(spec).train, steps=3)),
    )
    model = learn_world_model(bar(), tmp_path / "run", preset="laptop", **few)
    assert model.config.objective == "jepa" and model.config.encoder == "conv"
    assert read_json(tmp_path / "run/args.json")["updates"] == 3
    with pytest.raises(ValueError, match=r"'preset': 'laptop'"):
        learn_world_model(bar(), tmp_path / "run", **few | {"updates": 3})
    with pytest.raises(ValueError, match=r"no preset 'desktop'; choose one of .*'agent'"):
        learn_world_model(bar(), tmp_path / "other", preset="desktop", **few)
    assert not (tmp_path / "other").exists()


def test_an_environment_without_an_end_is_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match=r"one episode.*TimeLimit.*resume=False"):
        learn_world_model(Bar(), tmp_path / "run", **FEW)
    learn_world_model(bar(), tmp_path / "run", **FEW, resume=False)  # as it says


@pytest.mark.parametrize("count", ["steps", "updates", "refine_updates"])
def test_a_negative_count_is_refused_before_anything_is_played(tmp_path, count):
    with pytest.raises(ValueError, match=f"{count} must be a whole number"):
        learn_world_model(bar(), tmp_path / "run", **FEW | {count: -1})
    assert not (tmp_path / "run").exists()
