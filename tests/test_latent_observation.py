"""Latent wrappers: histories across resets worked out by hand, one batch per step, and clear refusals."""

import dataclasses
import os
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from torch import nn

from jepa_rl.envs import (
    ActionRepeat,
    LatentObservation,
    PixelObservation,
    SB3LatentObservation,
    VectorLatentObservation,
    world_spec,
    wrap,
)
from jepa_rl.spaces import observed_spec
from jepa_rl.types import ActionSpec, WorldSpec
from jepa_rl.world_model import WorldModel, WorldModelConfig


class Clock(gym.Env):
    """Pixels of brightness 10 * episode + t, state -t; an episode ends after ``length`` steps."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, length=2, state=False):
        pixels = spaces.Box(0, 255, (1, 8, 8), np.uint8)
        self.observation_space = pixels
        if state:
            self.observation_space = spaces.Dict(pixels=pixels, state=spaces.Box(-9, 0, (1,)))
        self.action_space = spaces.Discrete(2)
        self.length, self.state, self.episode = length, state, -1

    def _observation(self):
        pixels = np.full((1, 8, 8), 10 * self.episode + self.t, np.uint8)
        return {"pixels": pixels, "state": np.float32([-self.t])} if self.state else pixels

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        return self._observation(), 1.0, self.t == self.length, False, {}


class Brightness(nn.Module):
    """The mean brightness as a latent of width 1; notes the size of every batch it encodes."""

    latent_dim = 1

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.dropout = nn.Dropout(0.5)
        self.batches = []

    def encode(self, pixels):
        self.batches.append(len(pixels))
        return self.dropout(pixels.float().mean((1, 2, 3))[:, None] * self.scale)


def clocks(*lengths, state=False):
    return [lambda length=length: Clock(length, state) for length in lengths]


def rows(array):
    return array.tolist()


# --- histories, by hand: row 0 has episodes of 2 steps, row 1 of 3 ---


def test_one_environment():
    env = LatentObservation(Clock(2, state=True), Brightness(), history=2, append_state=True)
    assert env.observation_space.shape == (3,) and env.observation_space.dtype == np.float32
    assert rows(env.reset()[0]) == [0, 0, 0]
    assert rows(env.step(0)[0]) == [0, 1, -1]
    assert rows(env.step(0)[0]) == [1, 2, -2]
    assert rows(env.reset()[0]) == [10, 10, 0]
    assert rows(env.step(0)[0]) == [10, 11, -1]


def test_next_step_autoreset():
    encoder = Brightness()
    venv = SyncVectorEnv(clocks(2, 3), autoreset_mode=AutoresetMode.NEXT_STEP)
    venv = VectorLatentObservation(venv, encoder, history=2)
    actions = np.zeros(2, int)
    assert rows(venv.reset()[0]) == [[0, 0], [0, 0]]
    assert rows(venv.step(actions)[0]) == [[0, 1], [0, 1]]
    assert rows(venv.step(actions)[0]) == [[1, 2], [1, 2]]
    assert rows(venv.step(actions)[0]) == [[10, 10], [2, 3]]
    assert rows(venv.step(actions)[0]) == [[10, 11], [10, 10]]
    assert rows(venv.reset()[0]) == [[20, 20], [20, 20]]
    assert rows(venv.step(actions)[0]) == [[20, 21], [20, 21]]
    assert rows(venv.step(actions)[2]) == [True, False]
    venv.reset()  # by hand, just before row 0 would have reset itself
    assert rows(venv.step(actions)[0]) == [[30, 31], [30, 31]]
    assert encoder.batches == [2] * 10


def test_same_step_autoreset_encodes_the_final_observations_in_the_same_batch():
    encoder = Brightness()
    venv = SyncVectorEnv(clocks(2, 3), autoreset_mode=AutoresetMode.SAME_STEP)
    venv = VectorLatentObservation(venv, encoder, history=2)
    actions = np.zeros(2, int)
    assert rows(venv.reset()[0]) == [[0, 0], [0, 0]]
    assert rows(venv.step(actions)[0]) == [[0, 1], [0, 1]]
    latents, _, terminated, _, infos = venv.step(actions)
    assert rows(latents) == [[10, 10], [1, 2]] and rows(terminated) == [True, False]
    assert rows(infos["final_obs"][0]) == [1, 2] and infos["final_obs"][1] is None
    latents, _, _, _, infos = venv.step(actions)
    assert rows(latents) == [[10, 11], [10, 10]]
    assert infos["final_obs"][0] is None and rows(infos["final_obs"][1]) == [2, 3]
    assert encoder.batches == [2, 2, 3, 3]


def test_disabled_autoreset_resets_only_the_masked_rows():
    venv = SyncVectorEnv(clocks(2, 3), autoreset_mode=AutoresetMode.DISABLED)
    venv = VectorLatentObservation(venv, Brightness(), history=2)
    actions = np.zeros(2, int)
    venv.reset()
    venv.step(actions)
    assert rows(venv.step(actions)[0]) == [[1, 2], [1, 2]]
    options = {"reset_mask": np.array([True, False])}
    assert rows(venv.reset(options=options)[0]) == [[10, 10], [1, 2]]
    assert rows(venv.step(actions)[0]) == [[10, 11], [2, 3]]


def test_states_are_appended_in_every_row_and_final_observation():
    venv = SyncVectorEnv(clocks(2, 3, state=True), autoreset_mode=AutoresetMode.SAME_STEP)
    venv = VectorLatentObservation(venv, Brightness(), history=2, append_state=True)
    venv.reset()
    venv.step(np.zeros(2, int))
    latents, _, _, _, infos = venv.step(np.zeros(2, int))
    assert rows(latents) == [[10, 10, 0], [1, 2, -2]]
    assert rows(infos["final_obs"][0]) == [1, 2, -2]
    assert venv.observation_space.contains(latents)


@pytest.mark.parametrize("make_venv", [DummyVecEnv, lambda fns: SubprocVecEnv(fns, start_method="fork")])
def test_sb3_encodes_the_terminal_observation_in_the_same_batch(make_venv):
    encoder = Brightness()
    venv = SB3LatentObservation(make_venv(clocks(2, 3, state=True)), encoder, history=2, append_state=True)
    try:
        actions = np.zeros(2, int)
        assert rows(venv.reset()) == [[0, 0, 0], [0, 0, 0]]
        assert rows(venv.step(actions)[0]) == [[0, 1, -1], [0, 1, -1]]
        latents, _, dones, infos = venv.step(actions)
        assert rows(latents) == [[10, 10, 0], [1, 2, -2]] and rows(dones) == [True, False]
        assert rows(infos[0]["terminal_observation"]) == [1, 2, -2]
        assert "terminal_observation" not in infos[1]
        latents, _, _, infos = venv.step(actions)
        assert rows(latents) == [[10, 11, -1], [10, 10, 0]]
        assert rows(infos[1]["terminal_observation"]) == [2, 3, -3]
        assert encoder.batches == [2, 2, 3, 3]
    finally:
        venv.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_natively_vectorised_world(mode):
    """Two Rooms steps itself as one array; its first rows equal those of single environments."""
    kwargs = {"num_envs": 3, "max_episode_steps": 4, "autoreset_mode": mode}
    venv = VectorLatentObservation(gym.make_vec("jepa_rl/TwoRooms-v0", **kwargs), Brightness(), history=2)
    plain = gym.make_vec("jepa_rl/TwoRooms-v0", **kwargs)
    latents, pixels = venv.reset(seed=0)[0], plain.reset(seed=0)[0]
    rng = np.random.default_rng(0)
    for _ in range(9):
        np.testing.assert_allclose(latents[:, 1], pixels.mean((1, 2, 3)), rtol=1e-5)
        actions = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
        latents, _, _, truncated, infos = venv.step(actions)
        pixels, _, _, _, raw = plain.step(actions)
        if truncated.any() and mode is AutoresetMode.SAME_STEP:
            final = np.stack(list(infos["final_obs"]))
            last = np.stack(list(raw["final_obs"])).mean((1, 2, 3))
            np.testing.assert_allclose(final[:, 1], last, rtol=1e-5)
        if truncated.any() and mode is AutoresetMode.DISABLED:
            options = {"reset_mask": truncated}
            latents, pixels = venv.reset(options=dict(options))[0], plain.reset(options=dict(options))[0]


# --- with a real world model ---


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained world model of CartPole pictures, saved."""
    path = tmp_path_factory.mktemp("model") / "cartpole.safetensors"
    spec = WorldSpec((6, 32, 32), 2, ActionSpec("discrete", 2))
    torch.manual_seed(0)
    WorldModel(WorldModelConfig(spec, latent_dim=8)).save(path)
    return path


def pixels(**kwargs):
    return PixelObservation(
        gym.make("CartPole-v1", render_mode="rgb_array"), **{"size": 32, "frames": 2} | kwargs
    )


@pytest.mark.parametrize("options", [{}, {"history": 3}, {"append_state": True}])
def test_both_checkers_pass_on_the_whole_chain(checkpoint, options):
    check_env(wrap("CartPole-v1", checkpoint, **options))
    check_env_sb3(wrap("CartPole-v1", checkpoint, **options))


def test_the_spec_makes_the_same_environment_again(checkpoint):
    env = wrap("CartPole-v1", checkpoint, history=2, append_state=True)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert isinstance(again, LatentObservation)
    np.testing.assert_array_equal(env.reset(seed=1)[0], again.reset(seed=1)[0])
    np.testing.assert_array_equal(env.step(1)[0], again.step(1)[0])


def test_a_live_encoder_is_shared_and_its_environment_can_be_made_again():
    encoder = Brightness()
    env = LatentObservation(pixels(), encoder)
    assert env._tracker.encoder is encoder
    again = gym.make(env.spec)
    np.testing.assert_array_equal(env.reset(seed=1)[0], again.reset(seed=1)[0])


def test_all_three_wrappers_agree(checkpoint):
    single = LatentObservation(pixels(), checkpoint, history=2)
    vector = VectorLatentObservation(AsyncVectorEnv([pixels] * 2), checkpoint, history=2)
    sb3 = SB3LatentObservation(DummyVecEnv([pixels] * 2), checkpoint, history=2)
    try:
        sb3.seed(4)
        seen = [single.reset(seed=4)[0], vector.reset(seed=4)[0][0], sb3.reset()[0]]
        for _ in range(3):
            np.testing.assert_allclose(seen[0], seen[1], atol=1e-5)
            np.testing.assert_allclose(seen[0], seen[2], atol=1e-5)
            ones = np.ones(2, int)
            seen = [single.step(1)[0], vector.step(ones)[0][0], sb3.step(ones)[0][0]]
    finally:
        vector.close()
        sb3.close()


def test_latents_are_those_of_the_model_and_carry_no_gradient(checkpoint):
    model = WorldModel.load(checkpoint)
    plain, env = pixels(), LatentObservation(pixels(), model)
    observation = env.reset(seed=0)[0]
    expected = model.encode(torch.from_numpy(plain.reset(seed=0)[0][None]))
    np.testing.assert_allclose(observation, expected[0].detach().numpy(), atol=1e-6)
    observation[:] = 7  # the caller may scribble on it
    assert not (env.step(0)[0] == 7).any()
    assert env.render().shape == (400, 600, 3)


def test_a_model_in_training_mode_is_evaluated_and_left_as_it_was():
    encoder = Brightness().train()
    encoder.dropout.eval()
    frozen, dropping = nn.Dropout(0.5).eval(), nn.Dropout(0.5)
    encoder.more = nn.ModuleList([frozen, dropping])
    encoder.dropout = dropping
    env = LatentObservation(Clock(), encoder)
    env.reset()
    assert env.step(0)[0].item() == 1.0  # dropout would give 0 or 2
    assert encoder.training and dropping.training and not frozen.training


def test_wrap_leaves_alone_what_is_ready(checkpoint, tmp_path):
    env = pixels()
    assert wrap(env, checkpoint).env is env
    rooms = gym.make("jepa_rl/TwoRooms-v0")
    model = WorldModel(WorldModelConfig(world_spec(rooms), latent_dim=4))
    model.save(tmp_path / "rooms.safetensors")
    assert isinstance(wrap("jepa_rl/TwoRooms-v0", tmp_path / "rooms.safetensors").env, gym.wrappers.TimeLimit)
    with pytest.raises(TypeError, match="max_episode_steps"):
        wrap(rooms, tmp_path / "rooms.safetensors", max_episode_steps=5)


def test_wrap_of_gray_pictures_and_of_a_dict_entry(tmp_path):
    class Camera(Clock):
        def __init__(self):
            super().__init__(state=True)
            colour = spaces.Box(0, 255, (20, 24, 3), np.uint8)
            self.observation_space = spaces.Dict(camera=colour, speed=spaces.Box(-9, 0, (1,)))

        def _observation(self):
            return {"camera": np.full((20, 24, 3), self.t, np.uint8), "speed": np.float32([-self.t])}

    model = WorldModel(WorldModelConfig(WorldSpec((3, 32, 32), 3, ActionSpec("discrete", 2)), latent_dim=4))
    model.save(tmp_path / "gray.safetensors")
    env = wrap(Camera(), tmp_path / "gray.safetensors", key="camera", append_state=True)
    env.reset()
    assert env.observation_space.shape == (5,) and env.step(0)[0][-1] == -1.0


# --- Stable-Baselines3 on top ---


def test_ppo_vec_normalize_and_evaluate_policy(checkpoint):
    venv = make_vec_env(pixels, n_envs=2, seed=0)
    venv = VecNormalize(SB3LatentObservation(venv, checkpoint))
    agent = PPO("MlpPolicy", venv, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    agent.learn(128)
    assert venv.obs_rms.count > 100
    mean, _ = evaluate_policy(agent, venv, n_eval_episodes=2)
    assert mean >= 1


def test_eval_and_checkpoint_callbacks(checkpoint, tmp_path):
    venv = SB3LatentObservation(make_vec_env(pixels, n_envs=2, seed=0), checkpoint)
    held_out = SB3LatentObservation(make_vec_env(pixels, n_envs=1, seed=9), checkpoint)
    evaluate = EvalCallback(held_out, n_eval_episodes=1, eval_freq=16, log_path=str(tmp_path), verbose=0)
    keep = CheckpointCallback(16, str(tmp_path))
    PPO("MlpPolicy", venv, n_steps=16, batch_size=32, n_epochs=1, seed=0, device="cpu").learn(
        64, [evaluate, keep]
    )
    assert evaluate.best_mean_reward >= 1
    assert len(list(tmp_path.glob("rl_model_*_steps.zip"))) == 2


def test_record_video(checkpoint, tmp_path):
    pytest.importorskip("moviepy", reason="RecordVideo needs moviepy")
    env = gym.wrappers.RecordVideo(wrap("CartPole-v1", checkpoint), str(tmp_path), disable_logger=True)
    env.reset(seed=0)
    while not any(env.step(env.action_space.sample())[2:4]):
        pass
    env.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


# --- refusals ---


@pytest.mark.parametrize(
    "make_env, words",
    [
        (lambda: pixels(size=48), r"\(6, 32, 32\), the environment shows \(6, 48, 48\).*size=32, frames=2\)"),
        (lambda: pixels(frames=3), r"shows \(9, 32, 32\)"),
        (lambda: pixels(frames=6, grayscale=True), r"2 stacked frames, the environment stacks 6"),
        (
            lambda: PixelObservation(gym.make("Acrobot-v1", render_mode="rgb_array"), size=32, frames=2),
            r"size=2.*by .*size=3",
        ),
        (lambda: gym.make("CartPole-v1"), "uint8 pixels.*PixelObservation"),
        (
            lambda: gym.wrappers.TransformObservation(
                pixels(), lambda o: o.astype(np.float32), spaces.Box(0, 255, (6, 32, 32))
            ),
            "uint8 pixels of shape.*float32",
        ),
    ],
)
def test_an_environment_that_differs_from_the_checkpoint(checkpoint, make_env, words):
    env = make_env()
    for make in (
        lambda: LatentObservation(env, checkpoint),
        lambda: VectorLatentObservation(SyncVectorEnv([make_env]), checkpoint),
        lambda: SB3LatentObservation(DummyVecEnv([make_env]), checkpoint),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_what_is_not_an_encoder(tmp_path, checkpoint):
    with pytest.raises(TypeError, match=r"encode\(pixels\) and latent_dim, got int"):
        LatentObservation(Clock(), 3)
    with pytest.raises(FileNotFoundError):
        LatentObservation(Clock(), tmp_path / "missing.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(ValueError, match="broken"):
        LatentObservation(pixels(), broken)


def test_options_that_make_no_sense():
    with pytest.raises(ValueError, match="history must be at least 1, got 0"):
        LatentObservation(Clock(), Brightness(), history=0)
    with pytest.raises(ValueError, match=r"append_state=True needs a Dict.*keep_state=True"):
        LatentObservation(Clock(), Brightness(), append_state=True)


class Returns(Brightness):
    def __init__(self, latents):
        super().__init__()
        self.latents = latents

    def encode(self, pixels):
        return self.latents


@pytest.mark.parametrize(
    "latents, words",
    [(torch.full((1, 1), torch.nan), "NaN"), (torch.zeros(1, 2), r"\(1, 1\).*got \(1, 2\)")],
)
def test_an_encoder_that_answers_nonsense(latents, words):
    with pytest.raises(ValueError, match=words):
        LatentObservation(Clock(), Returns(latents)).reset()


def test_non_finite_states_say_where():
    class Breaks(Clock):
        def _observation(self):
            return {**super()._observation(), "state": np.float32([np.nan if self.t else 0])}

    venv = VectorLatentObservation(
        SyncVectorEnv([lambda: Breaks(9, True)] * 2), Brightness(), append_state=True
    )
    venv.reset()
    with pytest.raises(ValueError, match="environment 0 at index 0"):
        venv.step(np.zeros(2, int))


def test_a_vector_environment_that_hides_its_autoreset_mode():
    venv = SyncVectorEnv(clocks(2))
    venv.metadata = {}
    with pytest.raises(ValueError, match="autoreset_mode"):
        VectorLatentObservation(venv, Brightness())


# --- episodes that begin by themselves, reused arrays ---


def test_autoreset_begins_a_new_history():
    env = LatentObservation(gym.wrappers.Autoreset(Clock(2)), Brightness(), history=2)
    seen = [env.reset()[0]] + [env.step(0)[0] for _ in range(4)]
    assert [rows(s) for s in seen] == [[0, 0], [0, 1], [1, 2], [10, 10], [10, 11]]


class Reuses(Clock):
    """Writes every observation into the same array."""

    def _observation(self):
        self.buffer = getattr(self, "buffer", np.zeros((1, 8, 8), np.uint8))
        self.buffer[:] = 10 * self.episode + self.t
        return self.buffer


def test_the_last_observation_of_an_episode_survives_a_reused_array():
    venv = SyncVectorEnv([Reuses, Reuses], autoreset_mode=AutoresetMode.SAME_STEP)
    venv = VectorLatentObservation(venv, Brightness())
    venv.reset()
    venv.step(np.zeros(2, int))
    latents, *_, infos = venv.step(np.zeros(2, int))
    assert rows(latents) == [[10], [10]] and [rows(last) for last in infos["final_obs"]] == [[2], [2]]
    sb3 = SB3LatentObservation(DummyVecEnv([Reuses]), Brightness())
    sb3.reset()
    sb3.step(np.zeros(1, int))
    latents, _, _, infos = sb3.step(np.zeros(1, int))
    assert rows(latents) == [[10]] and rows(infos[0]["terminal_observation"]) == [2]


def test_a_reused_array_in_a_worker_is_warned_of():
    venv = AsyncVectorEnv([Reuses], autoreset_mode=AutoresetMode.SAME_STEP)
    venv = VectorLatentObservation(venv, Brightness())
    try:
        venv.reset()
        venv.step(np.zeros(1, int))
        with pytest.warns(UserWarning, match=r"environment 0 equals the first.*PixelObservation"):
            venv.step(np.zeros(1, int))
    finally:
        venv.close()


class ReusingVenv(gym.vector.VectorEnv):
    """Natively vectorised; episodes of one step, the last observation a view of what it writes next."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    num_envs = 1
    single_observation_space = spaces.Box(0, 255, (1, 8, 8), np.uint8)
    single_action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.seen = np.zeros((1, 1, 8, 8), np.uint8)
        return self.seen, {}

    def step(self, actions):
        return self.seen, np.zeros(1), np.ones(1, bool), np.zeros(1, bool), {"final_obs": [self.seen[0]]}


def test_a_last_observation_that_shares_its_memory_is_refused():
    venv = VectorLatentObservation(ReusingVenv(), Brightness())
    venv.reset()
    with pytest.raises(ValueError, match=r"environment 0 shares its memory.*copies"):
        venv.step(np.zeros(1, int))


def test_a_vec_env_without_terminal_observations_is_named():
    class Forgets(DummyVecEnv):
        def step_wait(self):
            observations, rewards, dones, infos = super().step_wait()
            for info in infos:
                info.pop("terminal_observation", None)
            return observations, rewards, dones, infos

    venv = SB3LatentObservation(Forgets(clocks(1)), Brightness())
    venv.reset()
    with pytest.raises(ValueError, match=r"infos\[0\] must hold 'terminal_observation'.*step_wait"):
        venv.step(np.zeros(1, int))


def test_rewards_that_are_arrays_of_one_become_numbers():
    class Rewards(Clock):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, np.array([1.5]), *rest

    env = LatentObservation(Rewards(), Brightness())
    env.reset()
    reward = env.step(0)[1]
    assert reward == 1.5 and np.ndim(reward) == 0


# --- torch's state ---


def test_latents_are_float32_whatever_torch_defaults_to(checkpoint):
    expected = wrap("CartPole-v1", checkpoint).reset(seed=0)[0]
    try:
        torch.set_default_dtype(torch.float64)
        env = wrap("CartPole-v1", checkpoint)
        observation = env.reset(seed=0)[0]
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert observation.dtype == np.float32
    np.testing.assert_array_equal(observation, expected)


@pytest.mark.parametrize("kind", ["gymnasium", "sb3"])
def test_workers_forked_after_torch_was_used_encode_instead_of_hanging(checkpoint, kind):
    """In a process of its own, with two threads, whatever this one has."""
    code = f"""
import gymnasium as gym, numpy as np, torch
from stable_baselines3.common.vec_env import SubprocVecEnv
from jepa_rl.envs import wrap
torch.set_num_threads(2)
make = lambda: wrap("CartPole-v1", {str(checkpoint)!r})
torch.nn.Conv2d(3, 32, 4, 2)(torch.rand(64, 3, 64, 64))  # starts the threads
expected = make().reset(seed=0)[0]
if {kind!r} == "gymnasium":
    venv = gym.vector.AsyncVectorEnv([make] * 2, context="fork")
    seen = venv.reset(seed=[0, 0])[0]
else:
    venv = SubprocVecEnv([make] * 2, start_method="fork")
    venv.seed(0)
    seen = venv.reset()
np.testing.assert_allclose(seen[0], expected, atol=1e-5)
venv.close()
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]


# --- wrap ---


def test_wrap_keeps_the_device_for_the_encoder_and_reads_the_checkpoint_once(checkpoint, monkeypatch):
    read, load = [], WorldModel.load
    monkeypatch.setattr(WorldModel, "load", lambda path, device: read.append(device) or load(path, device))
    env = wrap("CartPole-v1", checkpoint, device="cpu")
    assert read == ["cpu"]
    assert env.spec.additional_wrappers[-1].kwargs == {
        "encoder": str(checkpoint),
        "history": 1,
        "append_state": False,
        "device": "cpu",
    }


def test_wrap_refuses_a_model_of_vectors(tmp_path):
    spec = observed_spec(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
    WorldModel(WorldModelConfig(spec, latent_dim=4)).save(tmp_path / "vectors.safetensors")
    with pytest.raises(ValueError, match="wrap needs one of pictures"):
        wrap("CartPole-v1", tmp_path / "vectors.safetensors")


# --- pictures made otherwise ---


class Looks(Clock):
    """An environment with arguments that change its pictures."""

    def __init__(self, render="default", camera=0, length=3, render_mode=None):
        super().__init__(length)
        self.render_mode = render_mode


@pytest.fixture
def looks():
    names = [f"jepa_rl_tests/{name}-v0" for name in ("Looks", "Other")]
    for name in names:
        gym.register(name, entry_point=lambda **kwargs: Looks(**kwargs), max_episode_steps=50)
    gym.registry[names[0]].entry_point = Looks
    yield names
    for name in names:
        del gym.registry[name]


def encoder_of(env):
    """An encoder that learned from this environment's pictures."""
    encoder = Brightness()
    encoder.spec = world_spec(env)
    return encoder


def told(encoder, env):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LatentObservation(env, encoder)
    return [str(w.message) for w in caught if "made otherwise" in str(w.message)]


def test_pictures_made_otherwise_are_warned_of_in_words(looks):
    name, other = looks

    def make(*wrappers, env_id=name, **kwargs):
        env = gym.make(env_id, **kwargs)
        for wrapper in wrappers:
            env = wrapper(env)
        return env

    def repeat(n):
        return lambda env: ActionRepeat(env, n)

    encoder = encoder_of(make(repeat(4), render="fast"))
    assert told(encoder, make(repeat(4), render="fast")) == []
    for env, words in [
        (make(repeat(4)), "render='fast' then, render='default' now"),
        (make(repeat(4), render="fast", camera=1), "camera=0 then, camera=1 now"),
        (make(repeat(2), render="fast"), "ActionRepeat: repeat=4 then, repeat=2 now"),
        (make(render="fast"), "wrappers [ActionRepeat(repeat=4)] then, [] now"),
        (make(repeat(4), env_id=other, render="fast"), f"environment {name!r} then, {other!r} now"),
    ]:
        (message,) = told(encoder, env)
        assert words in message and message.count(" then, ") == 1, message


def test_what_changes_no_picture_is_not_warned_of(looks):
    name, _ = looks
    encoder = encoder_of(gym.make(name))
    same = [
        gym.make(name, render="default", render_mode="rgb_array", max_episode_steps=7),
        gym.wrappers.RecordEpisodeStatistics(gym.make(name)),
        Clock(),  # does not say how it is made
    ]
    assert [told(encoder, env) for env in same] == [[], [], []]
    encoder.spec = dataclasses.replace(encoder.spec, source="")
    assert told(encoder, gym.make(name, camera=1)) == []


def test_vector_environments_warn_as_well_and_wrap_names_its_caller(looks, tmp_path):
    name, _ = looks
    encoder = encoder_of(gym.make(name, render="fast"))
    for make in (
        lambda: VectorLatentObservation(SyncVectorEnv([lambda: gym.make(name)]), encoder),
        lambda: VectorLatentObservation(gym.make_vec(name, 2, "sync"), encoder),
        lambda: SB3LatentObservation(DummyVecEnv([lambda: gym.make(name)]), encoder),
        lambda: SB3LatentObservation(make_vec_env(lambda: gym.make(name), 1), encoder),
    ):
        with pytest.warns(UserWarning, match="render='fast' then, render='default' now"):
            make()
    env = pixels()
    WorldModel(WorldModelConfig(world_spec(env), latent_dim=4)).save(tmp_path / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrap("CartPole-v1", tmp_path / "model.safetensors", append_state=True)
    repeated = ActionRepeat(gym.make("CartPole-v1", render_mode="rgb_array"), 2)
    with pytest.warns(UserWarning, match=r"wrappers \[PixelObservation\(.*then, \[ActionRepeat") as caught:
        wrap(repeated, tmp_path / "model.safetensors")
    assert [w.filename for w in caught if "made otherwise" in str(w.message)] == [__file__]
