"""What ``fit`` asks of models and data: the same data when it resumes, and a loss that can be trained on."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from jepa_rl.data import Episode, EpisodeStore, WindowSampler
from jepa_rl.data.latent_windows import LatentEpisodes, LatentWindowSampler
from jepa_rl.files import load_tensors, save_tensors
from jepa_rl.training import TrainConfig, fit
from jepa_rl.types import ActionSpec

ACTION = ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0))
CONFIG = TrainConfig(steps=4, batch_size=4, checkpoint_every=2, log_every=2)


def episodes(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Episode(
            rng.integers(0, 256, (length + 1, 1, 4, 4), np.uint8),
            rng.uniform(-1, 1, (length, 2)).astype(np.float32),
            rng.random(length, np.float32),
        )
        for length in lengths
    ]


def make_store(path, lengths=(6, 8, 7), seed=0):
    store = EpisodeStore.create(path, (1, 4, 4), ACTION)
    store.append_many(episodes(lengths, seed))
    return store


@dataclass(frozen=True)
class SumConfig:
    size: int = 2


class Sum(torch.nn.Module):
    """Fits the sum of rewards to the actions; ``make`` is what it gives as loss and terms."""

    def __init__(self, make=lambda error: (error.mean(), {"error": error.mean()})):
        super().__init__()
        self.config, self.make = SumConfig(), make
        self.weights = torch.nn.Parameter(torch.zeros(2))

    def loss(self, batch, generator=None):
        return self.make((batch.actions @ self.weights - batch.rewards).square())

    def after_update(self):
        pass

    def save(self, path):
        save_tensors(path, "sum", self.state_dict(), {})


def train(sampler, out, model=None, config=CONFIG, **options):
    model = Sum() if model is None else model
    fit(model, sampler, config, out, progress=False, **options)
    return model


# -- the data of a resumed run ----------------------------------------------------------------------


def test_a_run_goes_on_with_the_same_data_only(tmp_path):
    store = make_store(tmp_path / "store")
    trained = train(WindowSampler(store, 2), tmp_path / "run")
    again = train(WindowSampler(EpisodeStore.open(store.path), 2), tmp_path / "run")
    assert torch.equal(again.weights, trained.weights)
    for other, difference in (
        (WindowSampler(make_store(tmp_path / "other", seed=1), 2), "rows"),
        (WindowSampler(make_store(tmp_path / "longer", (6, 8, 8)), 2), "environment_steps"),
        (WindowSampler(store, 3), "steps"),
        (WindowSampler(store, 1, 2), "block"),
        (WindowSampler(store, 2, frames=2), "frames"),
        (WindowSampler(store.view([0, 1]), 2), "episodes"),
    ):
        model = Sum()
        with pytest.raises(
            ValueError, match=rf"other data .*'{difference}'.*same data to resume, or another"
        ):
            train(other, tmp_path / "run", model)
        assert not model.weights.any(), "nothing has changed"
    train(WindowSampler(make_store(tmp_path / "other2", seed=1), 2), tmp_path / "run2")


def test_one_other_frame_or_reward_is_other_data(tmp_path):
    first = make_store(tmp_path / "first", (20,))
    here = WindowSampler(first, 2).fingerprint()
    for name, change in (("frames", 1), ("rewards", 0.5), ("actions", -0.1)):
        (episode,) = episodes((20,))
        getattr(episode, name)[7] += np.asarray(change, getattr(episode, name).dtype)
        other = EpisodeStore.create(tmp_path / name, (1, 4, 4), ACTION)
        other.append(episode)
        there = WindowSampler(other, 2).fingerprint()
        assert {key for key in here if here[key] != there[key]} == {"rows"}, name


def test_episodes_that_were_added_are_told_in_words(tmp_path):
    store = make_store(tmp_path / "store")
    trained = train(WindowSampler(store, 2), tmp_path / "run")
    store.append_many(episodes((9, 9), seed=5))
    with pytest.raises(
        ValueError, match=r"trained on 3 episodes, and there are 5 now.*store\.view\(indices\)"
    ):
        train(WindowSampler(store, 2), tmp_path / "run")
    assert torch.equal(
        train(WindowSampler(store.view(range(3)), 2), tmp_path / "run").weights, trained.weights
    )


def test_a_checkpoint_of_0_1_0_knows_no_data_and_goes_on(tmp_path):
    store = make_store(tmp_path / "store")
    trained = train(WindowSampler(store, 2), tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    tensors, header = load_tensors(path, ("training",))
    del header["data"]
    save_tensors(path, "training", tensors, header)
    assert torch.equal(train(WindowSampler(store, 2), tmp_path / "run").weights, trained.weights)


def test_samplers_without_a_fingerprint_are_known_by_their_class(tmp_path):
    windows = WindowSampler(make_store(tmp_path / "store"), 2)

    class Mine:
        def sample(self, batch_size, rng):
            return windows.sample(batch_size, rng)

    class Yours(Mine):
        pass

    trained = train(Mine(), tmp_path / "run")
    assert torch.equal(train(Mine(), tmp_path / "run").weights, trained.weights)
    for other in (Yours(), windows):
        with pytest.raises(ValueError, match="'Mine'"):
            train(other, tmp_path / "run")


def test_fingerprints_of_latents_are_those_of_the_episodes_they_come_from():
    torch.manual_seed(0)
    lengths = torch.tensor([5, 6])
    latents, actions = torch.randn(13, 3), torch.randn(11, 2)

    def fingerprint(latents, actions, source, steps=2):
        return LatentWindowSampler(LatentEpisodes(latents, actions, lengths, source), steps).fingerprint()

    here = fingerprint(latents, actions, {"rows": "a"})
    assert here == fingerprint(latents * 1.001, actions, {"rows": "a"})  # another machine's rounding
    assert here != fingerprint(latents, actions, {"rows": "b"})
    assert here != fingerprint(latents, actions, {"rows": "a"}, steps=3)
    by_value = fingerprint(latents, actions, None)
    assert by_value == fingerprint(latents.clone(), actions.clone(), None)
    assert by_value != fingerprint(latents + 1, actions, None)
    assert by_value != fingerprint(latents, actions + 1, None)


def test_a_fingerprint_that_json_does_not_know_is_refused_at_once(tmp_path):
    class Sampler(WindowSampler):
        def fingerprint(self):
            return {"path": tmp_path}

    with pytest.raises(TypeError, match="data must be plain numbers"):
        train(Sampler(make_store(tmp_path / "store"), 2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- the loss ---------------------------------------------------------------------------------------

LOSSES = {
    "a batch of losses": (lambda e: (e.mean(1), {}), ValueError, r"shape \(4,\).*\.mean\(\)"),
    "one loss in a row": (lambda e: (e.mean()[None], {}), ValueError, r"shape \(1,\)"),
    "a number": (lambda e: (float(e.mean()), {}), TypeError, "got float"),
    "no gradient": (lambda e: (e.mean().detach(), {}), ValueError, "no gradient"),
    "NaN": (lambda e: (e.mean() * float("nan"), {"part": e.mean()}), ValueError, "first update is nan.*part"),
    "infinite": (lambda e: (e.mean() / 0, {}), ValueError, "first update is inf"),
    "NaN in the gradient": (
        lambda e: ((e - e).sqrt().mean(), {}),
        ValueError,
        "gradient of the first update",
    ),
    "terms by window": (lambda e: (e.mean(), {"part": e}), ValueError, r"term 'part'.*shape \(4, 2\)"),
    "a term of no tensor": (lambda e: (e.mean(), {"part": 0.5}), TypeError, "term 'part'.*torch.tensor"),
    "a term that is logged anyway": (lambda e: (e.mean(), {"loss": e.mean()}), ValueError, "rename"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_cannot_be_trained_on_is_named_before_anything_is_written(tmp_path, name):
    make, error, words = LOSSES[name]
    model = Sum(make)
    with pytest.raises(error, match=words):
        train(WindowSampler(make_store(tmp_path / "store"), 2), tmp_path / "run", model)
    assert not (tmp_path / "run").exists()
    if "gradient of" not in words:
        assert not model.weights.any(), "no step was made"


def test_what_is_not_trainable_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"config, loss, after_update and save.*got Linear"):
        train(WindowSampler(make_store(tmp_path / "store"), 2), tmp_path / "run", torch.nn.Linear(1, 1))


def test_numpy_numbers_are_settings_too(tmp_path):
    windows = WindowSampler(make_store(tmp_path / "store"), 2)
    train(
        windows,
        tmp_path / "run",
        config=replace(CONFIG, batch_size=np.int64(4), learning_rate=np.float32(1e-3)),
    )
    with pytest.raises(ValueError, match="steps must be a whole number"):
        replace(CONFIG, steps=4e3)


def test_windows_of_other_blocks_or_actions_than_the_model_are_refused(tmp_path):
    store = make_store(tmp_path / "store")
    model = Sum()
    model.spec = store.spec.with_block(2)
    with pytest.raises(
        ValueError, match=r"latent step is 2 environment steps, that of the windows 1.*with_block\(1\)"
    ):
        train(WindowSampler(store, 2), tmp_path / "run", model)
    model.spec = replace(store.spec, action=ActionSpec("discrete", 3))
    with pytest.raises(
        ValueError, match=r"driven by .* the episodes hold .* episodes of the model's environment"
    ):
        train(WindowSampler(store, 2), tmp_path / "run", model)
    assert not (tmp_path / "run").exists()
    model.spec = store.spec
    train(WindowSampler(store, 2), tmp_path / "run", model)
