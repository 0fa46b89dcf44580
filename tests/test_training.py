"""The training loop: exact resume after a kill, what TensorBoard shows, alarms, mistakes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jepa_rl import (
    WORLD_PRESETS,
    EpisodeStore,
    TrainConfig,
    WindowSampler,
    WorldModel,
    WorldModelConfig,
    fit,
    preset,
    world_model_evaluation,
)
from jepa_rl.csv_log import read_csv
from jepa_rl.envs import SmoothRandomPolicy, collect
from jepa_rl.envs.worlds.two_rooms import TwoRoomsVectorEnv
from jepa_rl.files import load_tensors
from jepa_rl.types import ActionSpec

CONFIG = TrainConfig(steps=12, batch_size=8, checkpoint_every=4, log_every=3, evaluate_every=6, seed=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    venv = TwoRoomsVectorEnv(8, max_episode_steps=12, start="any")
    policy = SmoothRandomPolicy(ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)), 8)
    return collect(
        venv,
        tmp_path_factory.mktemp("store") / "episodes",
        policy=policy,
        episodes=24,
        seed=0,
        extras=("position",),
        progress=False,
    )


def build(store, **options):
    torch.manual_seed(0)
    objective = {"sigreg": 0.5, "inverse_dynamics": 1.0, "projections": 8}
    return WorldModel(
        WorldModelConfig(store.spec.with_block(2), 8, **{"objective_options": objective, **options})
    )


def train(store, out, config=CONFIG, model=None, **options):
    train_part, held_out = store.split(0.25, seed=0)
    model = build(store) if model is None else model
    evaluate = world_model_evaluation(WindowSampler(held_out, 3, 2), windows=32, extras=("position",))
    result = fit(
        model, WindowSampler(train_part, 3, 2), config, out, evaluate=evaluate, progress=False, **options
    )
    return model, result


def weights_equal(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_what_a_run_leaves(store, tmp_path):
    model, result = train(store, tmp_path)
    assert not model.training
    assert weights_equal(WorldModel.load(tmp_path), model)
    assert weights_equal(WorldModel.load(tmp_path / "checkpoint.safetensors"), model)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    assert scalars >= {
        "jepa/loss", "jepa/prediction", "jepa/sigreg", "jepa/inverse_dynamics", "jepa/learning_rate",
        "jepa/frames_per_second", "jepa/effective_rank", "jepa/std_min", "jepa/std_mean", "jepa/std_max",
        "model/rollout_error_1", "model/rollout_error_3", "model/action_gap",
    }  # fmt: skip
    assert [event.step for event in events.Scalars("jepa/loss")] == [3, 6, 9, 12]
    assert any("latent_map" in tag for tag in events.Tags()["images"])
    assert result.metrics["jepa/effective_rank"] >= 1 and result.seconds > 0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_equal_seeds_equal_runs_and_a_stopped_run_goes_on_exactly(store, tmp_path, optimizer):
    torch.set_num_threads(1)
    config = replace(CONFIG, optimizer=optimizer, log_every=2)  # divides checkpoint_every: equal means
    whole, _ = train(store, tmp_path / "whole", config)
    again, _ = train(store, tmp_path / "again", config)
    assert weights_equal(whole, again)

    class Stops(Exception):
        pass

    class Stopping(WindowSampler):
        """Gives out after seven batches, between two checkpoints."""

        left = 7

        def sample(self, batch_size, rng):
            self.left -= 1
            if self.left < 0:
                raise Stops
            return super().sample(batch_size, rng)

    train_part, _ = store.split(0.25, seed=0)
    with pytest.raises(Stops):
        fit(build(store), Stopping(train_part, 3, 2), config, tmp_path / "cut", progress=False)
    assert load_tensors(tmp_path / "cut" / "checkpoint.safetensors", ("training",))[1]["step"] == 4
    torch.manual_seed(99)  # nothing of the outside may enter
    resumed, _ = train(store, tmp_path / "cut", config)
    assert weights_equal(whole, resumed)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    whole_lines = lines(tmp_path / "whole")
    assert [line["step"] for line in whole_lines] == ["2", "4", "6", "8", "10", "12"]
    assert [line["step"] for line in whole_lines if line["jepa/effective_rank"]] == ["6", "12"]


def lines(run):
    """Of ``progress.csv``, without the speed, which no run has twice."""
    columns, rows = read_csv(run / "progress.csv")
    return [
        {name: value for name, value in zip(columns, row, strict=True) if name != "jepa/frames_per_second"}
        for row in rows
    ]


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
import importlib.util
spec = importlib.util.spec_from_file_location("t", {file!r}); t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
torch.set_num_threads(1)
from jepa_rl import EpisodeStore
print("ready", flush=True)
t.train(EpisodeStore.open({store!r}), {out!r}, t.replace(t.CONFIG, steps=60, log_every=2))
"""


def test_a_killed_run_goes_on_exactly(store, tmp_path):
    """SIGKILL at some moment after the first checkpoint; the resumed run ends with the same weights."""
    torch.set_num_threads(1)
    config = replace(CONFIG, steps=60, log_every=2)
    whole, _ = train(store, tmp_path / "whole", config)
    code = SCRIPT.format(
        tests=os.path.dirname(__file__), file=__file__, store=str(store.path), out=str(tmp_path / "cut")
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    checkpoint = tmp_path / "cut" / "checkpoint.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(float(np.random.default_rng().uniform(0, 0.3)))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_tensors(checkpoint, ("training",))[1]["step"] >= 4
    resumed, _ = train(store, tmp_path / "cut", config)
    assert weights_equal(whole, resumed)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_a_finished_run_returns_at_once(store, tmp_path):
    model, first = train(store, tmp_path)
    other, second = train(store, tmp_path)
    assert weights_equal(model, other)
    assert second.metrics["jepa/loss"] == first.metrics["jepa/loss"]


def test_another_configuration_is_refused(store, tmp_path):
    train(store, tmp_path)
    with pytest.raises(ValueError, match="learning_rate"):
        train(store, tmp_path, replace(CONFIG, learning_rate=5e-3))
    with pytest.raises(ValueError, match="sigreg"):
        train(store, tmp_path, model=build(store, objective_options={"sigreg": 0.1}))
    with pytest.raises(ValueError, match="resume=True"):
        train(store, tmp_path, resume=False)


def test_a_diverging_run_says_so_and_keeps_its_checkpoint(store, tmp_path):
    train_part, _ = store.split(0.25, seed=0)

    class Poisoned(WindowSampler):
        count = 0

        def sample(self, batch_size, rng):
            batch = super().sample(batch_size, rng)
            self.count += 1
            return replace(batch, actions=batch.actions * float("nan")) if self.count > 6 else batch

    with pytest.raises(ValueError, match=r"NaN or infinite.*learning rate"):
        fit(build(store), Poisoned(train_part, 3, 2), CONFIG, tmp_path, progress=False)
    tensors, header = load_tensors(tmp_path / "checkpoint.safetensors", ("training",))
    assert header["step"] == 4
    assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())


def test_collapse_is_called_by_its_name(store, tmp_path):
    """Without an anti-collapse term and without batch norm's help, prediction alone flattens the latents."""
    model = build(store, objective_options={"sigreg": 0.0})
    model.encoder.norm = torch.nn.Identity()
    _, result = train(
        store, tmp_path, replace(CONFIG, steps=150, learning_rate=3e-3, evaluate_every=50), model
    )
    assert result.alarms and "collapse" in result.alarms[-1][1]


def test_muon_moves_matrices_equally_far_in_all_directions(tmp_path):
    """... and AdamW what is no matrix; the first update of either is the rate times a known size."""

    @dataclass(frozen=True)
    class Config:
        pass

    class Model(torch.nn.Module):
        config = Config()

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.matrix = torch.nn.Parameter(torch.randn(8, 6))
            self.vector = torch.nn.Parameter(torch.randn(6))
            self.kernel = torch.nn.Parameter(torch.randn(4, 3, 2, 2))

        def loss(self, batch, generator=None):
            loss = (batch @ self.matrix + self.vector).square().mean() + self.kernel.square().sum()
            return loss, {}

        def after_update(self):
            pass

        def save(self, path):
            pass

    class Noise(torch.Tensor):
        states = 1

    class Sampler:
        def sample(self, batch_size, rng):
            return torch.from_numpy(rng.standard_normal((64, 8))).float().as_subclass(Noise)

    before, model = Model(), Model()
    config = TrainConfig(steps=1, warmup=0.0, learning_rate=0.1, weight_decay=0.0, optimizer="muon")
    fit(model, Sampler(), config, tmp_path, progress=False)
    with torch.no_grad():
        sizes = torch.linalg.svdvals(model.matrix - before.matrix) / (0.1 * 0.2 * 8**0.5)
        assert sizes.min() > 0.6 and sizes.max() < 1.3
        for name in ("vector", "kernel"):
            moved = (getattr(model, name) - getattr(before, name)).abs()
            torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-3, atol=0)


def test_learning_rate_schedule():
    config = TrainConfig(steps=100, warmup=0.1, learning_rate=1.0)
    assert config.learning_rate_at(0) == pytest.approx(0.1)
    assert config.learning_rate_at(9) == pytest.approx(1.0)
    assert config.learning_rate_at(55) == pytest.approx(0.5, abs=0.02)
    assert config.learning_rate_at(99) < 0.001


@pytest.mark.parametrize(
    "wrong",
    [
        dict(steps=0),
        dict(batch_size=0),
        dict(learning_rate=0.0),
        dict(warmup=1.0),
        dict(clip=-1.0),
        dict(optimizer="sgd"),
    ],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainConfig(**wrong)


def test_presets(store):
    for name in WORLD_PRESETS:
        model, config, steps = preset(name, store.spec)
        assert isinstance(WorldModel(model), WorldModel) and config.steps > 0 and steps > 0
    with pytest.raises(ValueError, match="laptop"):
        preset("desktop", store.spec)


def test_a_store_too_short_or_empty(store, tmp_path):
    with pytest.raises(ValueError, match="longest has"):
        WindowSampler(store, 50, 2)
    empty = EpisodeStore.create(tmp_path / "empty", (2, 64, 64), store.spec.action)
    with pytest.raises(ValueError, match="no episodes"):
        WindowSampler(empty, 1)
