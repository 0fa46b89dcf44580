"""A run that is killed and started again is the run that was never killed, bit for bit."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from jepa_rl.agents import JEPAMPC, ResumableRun
from jepa_rl.agents.sb3.jepa_mpc.resume import environment_of, run_state
from jepa_rl.control import ControlConfig
from jepa_rl.csv_log import read_csv
from jepa_rl.files import load_tensors, save_tensors
from jepa_rl.version import __version__

TINY = {
    "world": {
        "latent_dim": 16, "encoder_options": {"widths": (8, 8)}, "dynamics_options": {"width": 24, "depth": 2}
    },
    "control": ControlConfig(width=24, bins=21),
}  # fmt: skip
SEARCH = dict(samples=8, elites=3, iterations=2, proposals=2)


class Spot(gym.Env):
    """A bright spot on 16 x 16 pixels that actions push about; episodes of unlike lengths, random starts."""

    metadata = {"frames": 2, "render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (2, 16, 16), np.uint8)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, crash_at: int | None = None, same_length: bool = False):
        self.crash_at, self.same_length, self.total = crash_at, same_length, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.uniform(2, 13, 2)
        self.left = 12 if self.same_length else int(self.np_random.integers(5, 15))
        self.before = self._picture()
        return np.stack([self.before, self.before]), {}

    def step(self, action):
        self.total += 1
        if self.total == self.crash_at:
            raise ArithmeticError("the simulation blew up")
        self.at = np.clip(self.at + action + 0.1 * self.np_random.normal(size=2), 0, 15)
        now, before = self._picture(), self.before
        self.left, self.before = self.left - 1, now
        return np.stack([before, now]), float(-abs(self.at - 8).mean()), False, self.left == 0, {}

    def _picture(self):
        picture = np.zeros((16, 16), np.uint8)
        picture[tuple(self.at.astype(int))] = 255
        return picture


def agent(env=None, **options) -> JEPAMPC:
    settings = TINY | SEARCH | options.pop("policy_kwargs", {})
    options = dict(n_step=(6, 3), learning_rate=LinearSchedule(1e-3, 1e-4, 1.0)) | options
    return JEPAMPC(
        "CnnPolicy", env or Spot(), seed=3, learning_starts=30, batch_size=8, buffer_size=120,
        policy_kwargs=settings, **options,
    )  # fmt: skip


def same(a: JEPAMPC, b: JEPAMPC) -> None:
    (there, facts), (here, others) = run_state(a), run_state(b)
    for episode in (*facts["recent"], *others["recent"]):
        del episode["t"]  # the wall clock of Monitor
    assert facts == others
    for name, tensor in there.items():
        assert torch.equal(tensor, here[name]), name
    one, other = (m.replay_buffer.sample(64, 3, np.random.default_rng(0)) for m in (a, b))
    assert torch.equal(one.observations, other.observations) and torch.equal(one.rewards, other.rewards)


class Stop(Exception):
    pass


def interrupt_at(step: int):
    def callback(locals_, globals_):
        if locals_["self"].num_timesteps >= step:
            raise Stop
        return True

    return ConvertCallback(callback)


@pytest.mark.parametrize("at", [10, 61, 95, 150])
def test_interrupted_anywhere_it_ends_in_the_same_place(tmp_path, at):
    whole = agent().learn(180, callback=ResumableRun(tmp_path / "whole", every=40))
    with pytest.raises(Stop):
        agent().learn(180, callback=[ResumableRun(tmp_path / "parts", every=40), interrupt_at(at)])
    resumed = agent().learn(180, callback=ResumableRun(tmp_path / "parts", every=40))
    assert resumed.num_timesteps == whole.num_timesteps == 180
    same(whole, resumed)
    held = sorted(int(path.stem) for path in (tmp_path / "parts/episodes").glob("*.safetensors"))
    assert held == resumed.replay_buffer.numbers()  # episodes that made room are gone from the disk, too
    assert held[0] > 0
    # The whole run in one progress.csv, whatever was logged after the checkpoint that it resumed from.
    steps = [[row[0] for row in read_csv(tmp_path / run / "progress.csv")[1]] for run in ("whole", "parts")]
    assert steps[0] == steps[1] and len(steps[0]) > 3


def test_whatever_is_noted_of_an_episode_a_checkpoint_holds_it(tmp_path):
    class Noted(Spot):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, info | {"at": self.at, "kinds": {"spot"}, "seen": np.int64(3)}

    def venv():
        return make_vec_env(Noted, 1, monitor_kwargs={"info_keywords": ("at", "kinds", "seen")})

    agent(venv()).learn(60, callback=ResumableRun(tmp_path, every=30))
    resumed = agent(venv())
    resumed.learn(60, callback=ResumableRun(tmp_path, every=30))
    assert resumed.num_timesteps == 60
    noted = resumed.ep_info_buffer[-1]
    assert len(noted["at"]) == 2 and noted["kinds"] == "{'spot'}" and noted["seen"] == 3


@pytest.mark.parametrize("same_length", [True, False])
def test_many_environments_too(tmp_path, same_length):
    def venv():
        return make_vec_env(lambda: Spot(same_length=same_length), 3)

    whole = agent(venv()).learn(180, callback=ResumableRun(tmp_path / "whole", every=30))
    with pytest.raises(Stop):
        agent(venv()).learn(180, callback=[ResumableRun(tmp_path / "parts", every=30), interrupt_at(150)])
    resumed = agent(venv())
    resumed.learn(180, callback=ResumableRun(tmp_path / "parts", every=30))
    same(whole, resumed)


SCRIPT = """
    import importlib.util, sys
    spec = importlib.util.spec_from_file_location("runs", {path!r})
    runs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runs)
    runs.torch.set_num_threads(1)
    def tell(locals_, globals_):
        print(locals_["self"].num_timesteps, flush=True)
        return True
    model = runs.agent().learn(160, callback=[runs.ResumableRun(sys.argv[1], every=30), runs.ConvertCallback(tell)])
"""


def test_a_killed_process_loses_nothing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(path=__file__))
    command = [sys.executable, str(script), str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for until in (70, 120):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        steps = (int(line) for line in process.stdout)
        first = next(steps)
        assert first == 1 if until == 70 else first > 60
        assert next(step for step in steps if step >= until)
        time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = agent().learn(160, callback=ResumableRun(tmp_path / "killed", every=30))
        whole = agent().learn(160, callback=ResumableRun(tmp_path / "whole", every=30))
    finally:
        torch.set_num_threads(threads)
    same(whole, resumed)


def test_rollouts_of_several_steps_too(tmp_path):
    """Episodes end inside of rollouts: the running ones are cut where a checkpoint has waited long enough."""
    whole = agent(train_freq=4).learn(200, callback=ResumableRun(tmp_path / "whole", every=30))
    with pytest.raises(Stop):
        agent(train_freq=4).learn(
            200, callback=[ResumableRun(tmp_path / "parts", every=30), interrupt_at(170)]
        )
    assert (tmp_path / "parts/checkpoint.safetensors").exists()
    resumed = agent(train_freq=4).learn(200, callback=ResumableRun(tmp_path / "parts", every=30))
    same(whole, resumed)


def test_a_wrapper_with_a_function_in_it_is_the_same_in_another_process():
    def scaled():
        return gym.wrappers.TransformReward(gym.make("Pendulum-v1"), lambda reward: 0.1 * reward)

    one, other = (environment_of(DummyVecEnv([scaled])) for _ in range(2))
    assert one == other and "Pendulum-v1" in one and "TransformReward" in one
    assert environment_of(DummyVecEnv([lambda: gym.make("Pendulum-v1", g=1.0)])) != environment_of(
        DummyVecEnv([lambda: gym.make("Pendulum-v1")])
    )


CONSTANT = dict(learning_rate=1e-3, n_step=4)


def test_a_finished_run_is_not_run_again_and_can_be_prolonged_at_constant_rates(tmp_path):
    first = agent(**CONSTANT).learn(100, callback=ResumableRun(tmp_path, every=40))
    again = agent(**CONSTANT).learn(100, callback=ResumableRun(tmp_path, every=40))
    same(first, again)
    longer = agent(**CONSTANT).learn(140, callback=ResumableRun(tmp_path, every=40))
    assert longer.num_timesteps == 140


@pytest.mark.parametrize(
    ("options", "total", "jump"),
    [
        (dict(n_step=4), 160, r"learning rate would jump from 0.0001 to 0.00055, its n_step from 4 to 4"),
        (dict(learning_rate=1e-3, n_step=(12, 3)), 320, r"from 0.001 to 0.001, its n_step from 3 to 6"),
    ],
)
def test_a_run_whose_rates_fall_is_not_prolonged(tmp_path, options, total, jump):
    done = agent(**options).learn(80, callback=ResumableRun(tmp_path, every=40))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    with pytest.raises(
        ValueError, match=rf"run of 80 steps, 80 of which are done\. With {total} steps .*{jump}"
    ):
        agent(**options).learn(total, callback=ResumableRun(tmp_path, every=40))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    # Fewer steps leave nothing to train, and do not make it a run of fewer steps.
    same(done, agent(**options).learn(40, callback=ResumableRun(tmp_path, every=40)))
    same(done, agent(**options).learn(80, callback=ResumableRun(tmp_path, every=40)))


def test_another_version_is_told(tmp_path):
    agent().learn(60, callback=ResumableRun(tmp_path, every=30))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        agent().learn(60, callback=ResumableRun(tmp_path, every=30))
    tensors, header = load_tensors(tmp_path / "checkpoint.safetensors", ("jepa_mpc run",))
    assert header["version"] == __version__ and header["total_timesteps"] == 60
    del header["version"], header["total_timesteps"]  # as 0.1.0 wrote it
    save_tensors(tmp_path / "checkpoint.safetensors", "jepa_mpc run", tensors, header)
    with pytest.warns(UserWarning, match=rf"written by jepa-rl of an older version, this is {__version__}"):
        assert agent().learn(70, callback=ResumableRun(tmp_path, every=30)).num_timesteps == 70


def test_settings_may_be_numpy_numbers(tmp_path):
    """What a sweep over np.arange gives; and it is the same run as with Python's numbers."""
    one = dict(gamma=0.9, max_grad_norm=10.0, gradient_steps=2, n_step=4)
    other = {name: np.asarray(value)[()] for name, value in one.items()}
    assert all(isinstance(value, np.generic) for value in other.values())
    search = {
        "temperature": np.float64(0.5),
        "control": replace(TINY["control"], width=np.int64(24)),
        "world": TINY["world"] | {"latent_dim": np.int64(16)},
    }
    plain_search = {"temperature": 0.5}
    agent(policy_kwargs=search, **other).learn(
        np.int64(60), callback=ResumableRun(tmp_path, every=np.int64(30))
    )
    resumed = agent(policy_kwargs=plain_search, **one)
    assert resumed.learn(60, callback=ResumableRun(tmp_path, every=30)).num_timesteps == 60


def test_settings_that_no_checkpoint_can_hold_are_refused_before_training(tmp_path):
    model = agent(max_grad_norm=torch.tensor(10.0))
    with pytest.raises(TypeError, match=r"settings must be numbers.*got Tensor"):
        model.learn(60, callback=ResumableRun(tmp_path, every=30))
    assert model.num_timesteps == 0


def test_an_environment_with_other_numpy_arguments_is_another(tmp_path):
    one, other = (
        environment_of(
            DummyVecEnv([lambda number=number: gym.make("CartPole-v1", sutton_barto_reward=number)])
        )
        for number in (np.int64(0), np.int64(1))
    )
    assert one != other


@pytest.mark.parametrize("first", [100, 107])
def test_learning_twice_in_one_process_is_going_on_in_another(tmp_path, first):
    one = agent(**CONSTANT).learn(first, callback=ResumableRun(tmp_path / "one", every=40))
    one.learn(180 - first, callback=ResumableRun(tmp_path / "one", every=40), reset_num_timesteps=False)
    agent(**CONSTANT).learn(first, callback=ResumableRun(tmp_path / "two", every=40))
    other = agent(**CONSTANT).learn(180, callback=ResumableRun(tmp_path / "two", every=40))
    assert one.num_timesteps == other.num_timesteps == 180
    same(one, other)


def test_a_data_set_that_was_there_is_not_deleted(tmp_path):
    (tmp_path / "episodes").mkdir()
    (tmp_path / "episodes/store.json").write_text("{}")
    with pytest.raises(ValueError, match=r"episodes holds \['store.json'\], which no run of JEPAMPC wrote"):
        agent().learn(40, callback=ResumableRun(tmp_path))
    assert (tmp_path / "episodes/store.json").exists()


class OtherSpot(Spot):
    pass


@pytest.mark.parametrize("processes", [False, True])
def test_another_environment_of_equal_spaces_is_refused(tmp_path, processes):
    def venv(kind):
        return SubprocVecEnv([kind], start_method="fork") if processes else DummyVecEnv([kind])

    there, here = venv(Spot), venv(OtherSpot)
    agent(there).learn(40, callback=ResumableRun(tmp_path, every=30))
    with pytest.raises(ValueError, match=r"environment.*Spot.*OtherSpot"):
        agent(here).learn(60, callback=ResumableRun(tmp_path, every=30))
    there.close()
    here.close()


def test_another_environment_space_or_preset_is_refused_before_anything_changes(tmp_path):
    agent().learn(60, callback=ResumableRun(tmp_path, every=30))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    wider = {"control": ControlConfig(width=32, bins=21)}
    for other, message in [
        (agent(policy_kwargs=wider), "policy"),
        (agent(gamma=0.5), "gamma"),
        (agent(make_vec_env(Spot, 2)), "n_envs"),
        (JEPAMPC("MlpPolicy", "Pendulum-v1", seed=3), "observation_space"),
    ]:
        weights = {name: value.clone() for name, value in other.policy.state_dict().items()}
        with pytest.raises(ValueError, match=f"belongs to another run configuration.*{message}"):
            other.learn(80, callback=ResumableRun(tmp_path, every=30))
        assert all(torch.equal(weights[name], value) for name, value in other.policy.state_dict().items())
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}


def test_another_time_limit_is_refused(tmp_path):
    def pendulum(steps):
        env = gym.make("Pendulum-v1", max_episode_steps=steps)
        return JEPAMPC("MlpPolicy", env, seed=3)

    pendulum(20).learn(40, callback=ResumableRun(tmp_path, every=30))
    with pytest.raises(ValueError, match=r"another run configuration.*environment"):
        pendulum(40).learn(80, callback=ResumableRun(tmp_path, every=30))


def test_damaged_files_are_named(tmp_path):
    agent().learn(60, callback=ResumableRun(tmp_path, every=30))
    file = sorted((tmp_path / "episodes").iterdir())[-1]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{file.name} is truncated or corrupt"):
        agent().learn(60, callback=ResumableRun(tmp_path, every=30))
    file.unlink()
    with pytest.raises(FileNotFoundError, match=file.name):
        agent().learn(60, callback=ResumableRun(tmp_path, every=30))
    file.write_bytes(whole)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"checkpoint.safetensors is truncated or corrupt"):
        agent().learn(60, callback=ResumableRun(tmp_path, every=30))


def test_it_says_what_it_cannot_keep(tmp_path):
    with pytest.raises(ValueError, match="every must be at least 1"):
        ResumableRun(tmp_path, every=0)
    with pytest.raises(TypeError, match="keeps runs of JEPAMPC, got SAC"):
        SAC("MlpPolicy", "Pendulum-v1").learn(10, callback=ResumableRun(tmp_path))
    normalised = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    with pytest.raises(TypeError, match="VecNormalize"):
        JEPAMPC("MlpPolicy", normalised).learn(10, callback=ResumableRun(tmp_path))


def test_a_crash_of_the_environment_is_passed_on_and_the_run_goes_on(tmp_path):
    crashing = Spot(crash_at=90)
    with pytest.raises(ArithmeticError, match="blew up"):
        agent(crashing).learn(120, callback=ResumableRun(tmp_path, every=30))
    steps: list[int] = []
    note = ConvertCallback(lambda locals_, globals_: steps.append(locals_["self"].num_timesteps) or True)
    resumed = agent().learn(120, callback=[ResumableRun(tmp_path, every=30), note])
    assert 30 < steps[0] < 90 and steps[-1] == resumed.num_timesteps == 120
    assert len(resumed.replay_buffer) > 90


def test_a_dead_worker_is_named(tmp_path):
    venv = SubprocVecEnv([lambda: Spot(crash_at=20), Spot], start_method="fork")
    with pytest.raises(RuntimeError, match="process of an environment died after"):
        agent(venv).learn(200)
    for process in venv.processes:
        process.terminate()
