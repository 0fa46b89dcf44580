"""``python -m jepa_rl.report``: what it finds in run folders, whole, damaged or still going on, and what it refuses."""

import html.parser
import io
import json
import os
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from jepa_rl import TrainConfig, WindowSampler, WorldModel, WorldModelConfig, fit, world_model_evaluation
from jepa_rl.agents.evaluation import add_animation
from jepa_rl.envs import collect
from jepa_rl.envs.worlds.two_rooms import TwoRoomsVectorEnv
from jepa_rl.report import page, read_run, text
from jepa_rl.report.__main__ import main
from jepa_rl.report.charts import data_uri, thin
from jepa_rl.report.contents import charts, plain, rows
from jepa_rl.report.series import Series


class Reader(html.parser.HTMLParser):
    """Addresses, titles and cells of a page; checks that every tag is closed where it was opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses, self.text, self.open = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of ``fit`` that has ended; its evaluation sees a collapse, since it hardly trains."""
    folder = tmp_path_factory.mktemp("trained")
    store = collect(
        TwoRoomsVectorEnv(4, max_episode_steps=8), folder / "episodes", episodes=12, seed=0, progress=False
    )
    train, held_out = store.split(0.25, seed=0)
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(store.spec, 8, encoder_options={"widths": (8, 8)}))
    config = TrainConfig(steps=6, batch_size=4, log_every=2, evaluate_every=3, checkpoint_every=3)
    evaluate = world_model_evaluation(WindowSampler(held_out, 2), windows=8)
    result = fit(model, WindowSampler(train, 2), config, folder / "run", evaluate=evaluate, progress=False)
    return folder / "run", result


def test_a_run_of_fit(trained, capsys, tmp_path):
    folder, result = trained
    assert main([str(folder), "--out", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "training of a world model\nThis run has ended." in said
    assert re.search(f"jepa/effective_rank +{result.metrics['jepa/effective_rank']:.4g} at step 6", said)
    for _, alarm in result.alarms:
        assert alarm in said
    assert f"wrote {tmp_path / 'page.html'}" in said and not (folder / "report.html").exists()
    read = Reader((tmp_path / "page.html").read_text())
    assert {"Alarms", "Latent map", "Latent space", "Prediction errors", "Losses", "Settings"} <= set(
        read.text
    )
    assert len(read.addresses) > 8 and all(a.startswith("data:image/") for a in read.addresses)


def test_events_and_csv_say_the_same(trained):
    folder, _ = trained
    (part,) = read_run(folder).parts
    with_csv = part.events.series
    (folder / "progress.csv").rename(folder / "away.csv")
    try:
        (part,) = read_run(folder).parts
    finally:
        (folder / "away.csv").rename(folder / "progress.csv")
    assert part.events.series.keys() == with_csv.keys()
    for tag, series in part.events.series.items():
        assert series.steps == with_csv[tag].steps, tag
        assert np.allclose(series.values, with_csv[tag].values, rtol=1e-6), tag


def write_events(folder, steps=5, tag="jepa/loss"):
    with SummaryWriter(str(folder)) as writer:
        for step in range(steps):
            writer.add_scalar(tag, 1 / (1 + step), step)
        return writer


def test_texts_of_a_run_are_escaped(tmp_path):
    evil = '<script>alert("x")</script>'
    write_events(tmp_path, tag=f"train/{evil}")
    (tmp_path / "args.json").write_text(json.dumps({evil: evil, "env_id": "a&b"}))
    (tmp_path / "results.json").write_text(json.dumps({"alarm": evil, "probe_r2": {evil: 0.5}}))
    Image.new("RGB", (4, 4)).save(tmp_path / "quote\"'><b>.png")
    shown = page(read_run(tmp_path))
    assert "<script" not in shown and "<b>.png" not in shown and "a&amp;b" in shown
    assert evil in "".join(Reader(shown).text)


def test_films_and_pictures_stand_in_the_page_once(tmp_path):
    with SummaryWriter(str(tmp_path / "run_1")) as writer:
        frames = [np.full((8, 8, 3), 40 * i, np.uint8) for i in range(4)]
        add_animation(writer, "eval/episode", frames, 10)
        add_animation(writer, "eval/episode", frames[::-1], 20)
        figure = Figure(figsize=(1, 1))
        writer.add_figure("futures", figure, 3)
    figure.savefig(tmp_path / "futures.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "plan.gif")
    (tmp_path / "broken.png").write_text("no picture")
    read = Reader(page(read_run(tmp_path)))
    assert sum(address.startswith("data:image/gif") for address in read.addresses) == 2
    assert sum(address.startswith("data:image/png") for address in read.addresses) == 1
    words = " ".join(read.text)
    assert "run_1: eval/episode, step 20" in words and "plan.gif" in words
    assert "broken.png: expected a PNG, GIF, JPEG, SVG or MP4" in words


def test_a_folder_of_stable_baselines3(tmp_path, capsys):
    returns = np.array([[1.0, 3.0], [5.0, 9.0]])
    np.savez(tmp_path / "evaluations.npz", timesteps=[100, 200], results=returns, ep_lengths=returns)
    (tmp_path / "0.monitor.csv").write_text(
        '#{"t_start": 1.5, "env_id": "x"}\nr,l,t\n1.5,10,0.1\n2.5,20,0.2\n'
    )
    (tmp_path / "progress.csv").write_text("train/loss,time/total_timesteps,text\n,100,hi\n0.5,200,ho\n")
    run = read_run(tmp_path)
    drawn = {chart.title: chart.lines for group in charts(run).values() for chart in group}
    assert drawn["mean return of the evaluation episodes"][""] == Series([100, 200], [2, 7])
    assert drawn["monitor: return of each episode (0.monitor.csv)"][""] == Series([10, 30], [1.5, 2.5])
    assert drawn["train/loss"][""] == Series([200], [0.5])
    assert main([str(tmp_path), "--text"]) == 0
    said = capsys.readouterr().out
    assert "training of an agent" in said and "Nothing in this folder says whether the run has ended" in said
    assert "mean return of the evaluation episodes" in said and "7 at step 200" in said


def test_a_run_that_is_still_going_on(trained, tmp_path):
    write_events(tmp_path)
    (tmp_path / "args.json").write_text("{}")
    run = read_run(tmp_path)
    assert run.finished is False and "seems to be still going on: results.json is not there yet" in run.status
    old = time.time() - 7200
    for path in tmp_path.iterdir():
        os.utime(path, (old, old))
    assert (
        "has not ended: results.json is not there yet; last written 2 hours ago" in read_run(tmp_path).status
    )
    assert "1 at step 0" not in text(run) and "0.2 at step 4" in text(run)
    (tmp_path / "results.json").write_text("{}")
    assert read_run(tmp_path).finished


def test_a_stopped_fit_says_how_far_it_came(trained, tmp_path):
    folder, _ = trained
    model = WorldModel.load(folder)
    store = folder.parent / "episodes"
    from jepa_rl import EpisodeStore

    sampler = WindowSampler(EpisodeStore.open(store), 2)

    class Stop(Exception):
        pass

    def stop(model):
        if (tmp_path / "checkpoint.safetensors").exists():
            raise Stop
        return replace(world_model_evaluation(sampler, windows=4)(model), alarm="something")

    config = TrainConfig(steps=6, batch_size=4, log_every=2, evaluate_every=2, checkpoint_every=2)
    with pytest.raises(Stop):
        fit(model, sampler, config, tmp_path, evaluate=stop, progress=False)
    run = read_run(tmp_path)
    assert "still going on: 2 of 6 done at its last checkpoint" in run.status
    assert run.alarms == [(".", 2, "something")]


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_damaged_events_are_named_and_the_rest_is_shown(tmp_path, damage, capsys):
    write_events(tmp_path)
    (events,) = tmp_path.glob("events*")
    content = events.read_bytes()
    events.write_bytes(content[:-13] if damage == "truncated" else b"\x00\xff no events" * 50)
    (tmp_path / "results.json").write_text('{"score": 1')
    (tmp_path / "evaluations.npz").write_bytes(b"PK nothing")
    (tmp_path / "monitor.csv").write_text("a,b\n1,2\n")
    (tmp_path / "checkpoint.safetensors").write_bytes(b"short")
    np.savez(tmp_path / "x.npz", a=1)
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Could not be read" in said
    for name in ("results.json", "evaluations.npz", "monitor.csv", "checkpoint.safetensors"):
        assert f"{tmp_path / name} is damaged" in said, name
    if damage == "truncated":
        assert "0.25 at step 3" in said  # what stands before the damage
    assert str(tmp_path) in said.split("Could not be read")[1]
    assert f"{events} is damaged, or ends in the middle of a record" in said


def test_what_cannot_be_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # errors name the runs of the folder where one is

    def refused(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, capsys.readouterr().err

    assert refused(tmp_path / "nowhere") == (2, f"error: there is no folder {tmp_path / 'nowhere'}\n")
    (tmp_path / "file").touch()
    code, said = refused(tmp_path / "file")
    assert code == 2 and "is a file; give the folder of the run" in said
    code, said = refused(tmp_path)
    assert code == 2 and "holds no run: no TensorBoard events, progress.csv" in said
    for name in ("a", "b"):
        write_events(tmp_path / name)
        (tmp_path / name / "args.json").write_text("{}")
    code, said = refused(tmp_path)
    assert code == 2 and f"holds several runs, name one of them: {tmp_path / 'a'}, {tmp_path / 'b'}" in said
    code, said = refused(tmp_path / "c")
    assert code == 2 and f"there is no folder {tmp_path / 'c'}; runs are in {tmp_path / 'a'}" in said
    with pytest.raises(SystemExit) as left:
        main([str(tmp_path / "a"), "--pdf"])
    assert left.value.code == 2 and "unrecognized arguments: --pdf" in capsys.readouterr().err


def test_a_folder_that_takes_no_page(tmp_path, capsys):
    write_events(tmp_path)
    (tmp_path / "report.html").mkdir()  # root may write to a read-only folder
    assert main([str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "jepa/loss" in shown.out
    assert (
        f"could not be written to {tmp_path / 'report.html'}" in shown.err and "--out FILE.html" in shown.err
    )
    if os.geteuid() != 0:
        (tmp_path / "report.html").rmdir()
        tmp_path.chmod(0o500)
        assert main([str(tmp_path)]) == 1 and "Permission denied" in capsys.readouterr().err
        tmp_path.chmod(0o700)


def test_a_report_is_no_part_of_the_run(tmp_path):
    write_events(tmp_path)
    old = time.time() - 7200
    for path in tmp_path.iterdir():
        os.utime(path, (old, old))
    assert main([str(tmp_path)]) == 0
    assert "2 hours ago" in read_run(tmp_path).status


def test_numbers_and_long_lines():
    found = {"a": {"b": True, "c": None}, "d": [1, 2.5], "e": [{"x": 1}, {"x": 2}], "f": list(range(20))}
    assert rows(found) == [
        ("a.b", "yes"), ("a.c", "none"), ("d", "1, 2.5"), ("e (2 entries), the last", "x 2"),
        ("f", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ... (20 in all)"),
    ]  # fmt: skip
    assert [plain(x) for x in (123456, 0.00012346, 1234.56, float("nan"))] == [
        "123,456",
        "0.0001235",
        "1,234.6",
        "nan",
    ]
    steps, values = thin(Series(list(range(1000)), [2.0] * 1000), points=10)
    assert len(steps) == 10 and (values == 2).all() and steps[0] == 49.5
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "jpeg")
    assert data_uri(file.getvalue()).startswith("data:image/jpeg;base64,")
