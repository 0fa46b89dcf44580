"""Making the shipped checkpoints: what is written loads, its card fits it, and what does not belong is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from jepa_rl import WorldModel, WorldModelConfig, hub
from jepa_rl.agents import JEPAMPC
from jepa_rl.diagnostics import fit_mlp_probe
from jepa_rl.files import load_tensors, save_tensors
from jepa_rl.types import ActionSpec, WorldSpec

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SPEC = WorldSpec((2, 64, 64), 1, ActionSpec("continuous", 2, (-1, -1), (1, 1)), 5)


@pytest.fixture
def maker(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import make_hub

    yield make_hub
    for folder in (BENCHMARKS, BENCHMARKS.parent / "examples"):
        for path in folder.glob("*.py"):
            sys.modules.pop(path.stem, None)


def small(**options) -> WorldModel:
    return WorldModel(
        WorldModelConfig(SPEC, latent_dim=8, encoder_options={"widths": (8, 8)}, **options)
    ).eval()


@pytest.fixture
def finished(tmp_path, maker):
    """A finished run of Two Rooms and its record."""
    folder, made = tmp_path / "runs/two_rooms/seed_3", [{"commit": "0123456789", "code": "abc"}]
    small().save(folder / "model.safetensors")
    (folder / "processes.json").write_text(json.dumps(made))
    record = {
        "settings": {"train_episodes": 40, "train_steps": 30}, "success": {"agent": [1, 1, 1, 0]},
        "commit": "0123456789", "versions": {"python": "3.11"}, "processes": made,
    }  # fmt: skip
    file = tmp_path / "results/two_rooms/seed_3.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(record))
    (tmp_path / "out").mkdir()
    return maker.Args(("two-rooms",), tmp_path / "runs", tmp_path / "results", tmp_path / "out")


def test_a_finished_run_becomes_a_checkpoint_with_its_card(maker, finished):
    maker.main(finished)
    file, card = hub.path("two-rooms", finished.out), hub.card("two-rooms", finished.out)
    assert {path.name for path in finished.out.iterdir()} == {"two-rooms.safetensors", "two-rooms.json"}
    assert card.score.mean == 0.75 and 0 < card.score.low < 0.75 < card.score.high < 1
    assert card.score.episodes == 4 and card.training_seeds == (3,) and card.commit == "0123456789"
    assert "40 episodes of 30 steps" in card.data and "--names two-rooms" in card.recipe
    made, shipped = WorldModel.load(finished.runs / "two_rooms/seed_3"), WorldModel.load(file)
    assert made.encoder_fingerprint() == shipped.encoder_fingerprint() and shipped.spec == made.spec
    assert not made.spec.source and json.loads(shipped.spec.source) == [["jepa_rl/TwoRooms-v0", {}, 200]]
    pixels, z, actions = (
        torch.zeros(1, 2, 64, 64, dtype=torch.uint8),
        torch.randn(2, 8),
        torch.randn(2, 3, 10),
    )
    torch.testing.assert_close(shipped.encode(pixels), made.encode(pixels))
    torch.testing.assert_close(shipped.rollout(z, actions), made.rollout(z, actions))


def test_another_run_than_the_records_is_refused(maker, finished):
    told = finished.runs / "two_rooms/seed_3/processes.json"
    told.write_text(json.dumps([{"commit": "other"}]))
    with pytest.raises(SystemExit, match=r"is not the run that .*seed_3.json tells of"):
        maker.main(finished)
    told.unlink()
    with pytest.raises(SystemExit, match=r"whose folder .* is missing: copy it there"):
        maker.main(finished)
    with pytest.raises(SystemExit, match=r"no recipe for \['chess'\]; choose from \['two-rooms'"):
        maker.main(replace(finished, names=("chess",)))
    assert not list(finished.out.iterdir())


def test_what_is_too_large_is_not_written(maker, finished):
    facts = {"holds": "", "data": "", "training_seeds": (0,), "commit": "", "score": None, "protocol": "",
             "recipe": "", "versions": {}}  # fmt: skip
    heavy = {"x": torch.zeros(600_000)}
    for number in range(4):
        light = {"x": torch.zeros(490_000)}
        maker.write(f"m{number}", lambda path, w=light: save_tensors(path, "t", w, {}), facts, finished.out)
    for weights in (heavy, {"x": torch.zeros(100_000)}):
        with pytest.raises(SystemExit, match="at most 2 MB a file and 8 together ship"):
            maker.write("more", lambda path, w=weights: save_tensors(path, "t", w, {}), facts, finished.out)
    assert hub.names(finished.out) == ["m0", "m1", "m2", "m3"]


def test_training_weights_are_left_out_where_the_file_would_be_too_large(maker, tmp_path):
    world = small(dynamics_options={"width": 210, "depth": 2}, objective_options={"target": "ema"})
    parts = {"at_rest": {"0.weight": torch.zeros(300_000)}}
    maker.save_world(tmp_path / "light", world, {})
    assert any("objective" in name for name in load_tensors(tmp_path / "light", ("world_model",))[0])
    maker.save_world(tmp_path / "heavy", world, parts)
    tensors, _ = load_tensors(tmp_path / "heavy", ("world_model",))
    assert not any("objective" in name for name in tensors)
    lean = WorldModel.load(tmp_path / "heavy")
    assert lean.encoder_fingerprint() == world.encoder_fingerprint()
    z, actions = torch.randn(2, 8), torch.randn(2, 3, 10)
    torch.testing.assert_close(lean.rollout(z, actions), world.rollout(z, actions))


def test_networks_beside_a_world_model_come_back(maker, tmp_path):
    import hub_scores

    world = small()
    at_rest = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))
    probe = fit_mlp_probe(torch.randn(64, 8), torch.randn(64, 4), torch.Generator().manual_seed(0), 16, 5)
    parts = {"at_rest": at_rest.state_dict(), "probe": maker.probe_weights(probe)}
    maker.save_world(tmp_path / "both", world, parts)
    assert WorldModel.load(tmp_path / "both").encoder_fingerprint() == world.encoder_fingerprint()
    z = torch.randn(3, 8)
    read = hub_scores.perceptron(maker.part_of(tmp_path / "both", "at_rest"))
    torch.testing.assert_close(read(z), at_rest(z).detach())
    torch.testing.assert_close(hub_scores.load_probe(tmp_path / "both")(z), probe(z))


def test_a_finished_run_of_jepa_mpc_becomes_an_agent(maker, tmp_path):
    import dmc_pixels as harness

    args = harness.Args(frames=120, evaluate_every=60, episodes=1, out=tmp_path, device="cpu")
    harness.run(args, "CartPole-v1", "jepa_mpc", 0)
    folder = tmp_path / "CartPole-v1/jepa_mpc/seed_0"
    maker.save_control("CartPole-v1")(folder, {"preset": "laptop"}, tmp_path / "agent.safetensors")
    assert (tmp_path / "agent.safetensors").stat().st_size < maker.LARGEST
    tensors, header = load_tensors(folder / "run/checkpoint.safetensors", ("jepa_mpc run",))
    agent = JEPAMPC.from_weights(
        tmp_path / "agent.safetensors", harness.make_pixels(harness.TASKS["CartPole-v1"])
    )
    assert agent._n_updates == header["updates"] > 0 and agent.lr_schedule(1.0) == pytest.approx(1e-4)
    found = {
        key.removeprefix("policy.average."): tensor for key, tensor in tensors.items() if "average" in key
    }
    ours = agent.policy.average.state_dict()
    assert len(found) > 10
    assert all(torch.equal(ours[key], tensor) for key, tensor in found.items() if "target_heads" not in key)


def test_scores_have_intervals(maker):
    assert maker.rate("", [1] * 200).low > 0.97
    found = maker.mean_return("", [1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.low, found.high) == pytest.approx((1.037, 4.963), abs=1e-3)
    flat = maker.mean_return("", [500.0] * 10)
    assert flat.low == flat.mean == flat.high == 500
