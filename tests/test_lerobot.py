"""LeRobot datasets in and out: the format field by field, pictures bit for bit or by their PSNR, and broken ones."""

import hashlib
import io
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from test_minari import CONTINUOUS, DISCRETE, MULTI, assert_same_episodes, make_store

from jepa_rl.data import Episode, EpisodeStore
from jepa_rl.envs.lerobot import from_lerobot, info, to_lerobot
from jepa_rl.types import ActionSpec

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
av = pytest.importorskip("av")


def digests(store, without=()) -> dict[str, str]:
    """Of the files of a store, but for its index cache and lock; without pictures, of lines without checksums."""
    files = [file for file in store.path.iterdir() if file.suffix in (".bin", ".json", ".jsonl")]
    found = {file.name: file.read_bytes() for file in files if file.name not in without}
    if without:
        lines = map(json.loads, found["episodes.jsonl"].splitlines())
        told = [{key: line[key] for key in line if key not in ("data", "line")} for line in lines]
        found["episodes.jsonl"] = json.dumps(told).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def psnr(one, two) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - two.astype(float)) ** 2)))


def make_smooth_store(path, episodes=3, side=64):
    """Pictures as worlds show them: a disc of two colours that moves over a gradient."""
    store = EpisodeStore.create(path, (3, side, side), CONTINUOUS, frames=3)
    y, x = np.mgrid[:side, :side]
    for seed in range(episodes):
        rng = np.random.default_rng(seed)
        frames = np.empty((seed + 7, 3, side, side), np.uint8)
        for t, frame in enumerate(frames):
            disc = (y - 20 - t) ** 2 + (x - 10 - 4 * t - seed) ** 2 < 64
            frame[:] = np.where(disc, np.array([200, 60, 90])[:, None, None], np.stack([x, y, x + y]) % 256)
        steps = len(frames) - 1
        actions = rng.random((steps, 2), np.float32)
        store.append(
            Episode(frames, actions, rng.random(steps, np.float32), seed == 1, metadata={"seed": seed})
        )
    return store


# -- round trips ------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [CONTINUOUS, DISCRETE, MULTI], ids=["continuous", "discrete", "multi"])
@pytest.mark.parametrize("shape", [(3, 40, 40), (1, 5, 7)])
def test_a_round_trip_with_images_changes_no_byte(tmp_path, action, shape):
    store = make_store(tmp_path / "one", action, shape)
    to_lerobot(store, tmp_path / "dataset", fps=20, task="go")
    assert digests(from_lerobot(tmp_path / "dataset", tmp_path / "two")) == digests(store)
    to_lerobot(store.view([2, 0]), tmp_path / "some", fps=20)
    assert_same_episodes(store.view([2, 0]), from_lerobot(tmp_path / "some", tmp_path / "three"))


def test_a_round_trip_with_a_video_changes_pictures_alone_and_little(tmp_path):
    store = make_smooth_store(tmp_path / "one")
    to_lerobot(store, tmp_path / "dataset", fps=15, pictures="video")
    back = from_lerobot(tmp_path / "dataset", tmp_path / "two")
    assert digests(back, ["frames.bin"]) == digests(store, ["frames.bin"])
    for i in range(3):
        worst = min(map(psnr, back.episode(i).frames, store.episode(i).frames))
        assert worst > 30  # the frames of neighbouring times are at 20
        assert psnr(back.episode(i).frames[1:], store.episode(i).frames[:-1]) < 25
    assert from_lerobot(tmp_path / "dataset", tmp_path / "small", size=16).layout.frame_shape == (3, 16, 16)


def test_files_that_are_full_are_followed_by_others(tmp_path, monkeypatch):
    monkeypatch.setattr(info, "DATA_MB", 0)
    monkeypatch.setattr(info, "VIDEO_MB", 0)
    monkeypatch.setattr(info, "CHUNKS", 2)
    store = make_smooth_store(tmp_path / "one", episodes=5, side=16)
    for pictures in ("image", "video"):
        to_lerobot(store, tmp_path / pictures, fps=10, pictures=pictures)
        names = sorted(
            str(p.relative_to(tmp_path / pictures)) for p in (tmp_path / pictures / "data").rglob("*.parquet")
        )
        assert names == [f"data/chunk-{i // 2:03d}/file-{i % 2:03d}.parquet" for i in range(5)]
        back = from_lerobot(tmp_path / pictures, tmp_path / f"{pictures}_back")
        assert digests(back, ["frames.bin"]) == digests(store, ["frames.bin"])
    assert len(list((tmp_path / "video" / "videos" / "observation.image").rglob("*.mp4"))) == 5


# -- the format -------------------------------------------------------------------------------------


def test_the_dataset_is_as_the_format_says(tmp_path):
    """LeRobot's documentation of version 3.0, and what its DatasetInfo, load_tasks and load_episodes read."""
    store = make_store(tmp_path / "one", shape=(3, 8, 6))
    to_lerobot(store, tmp_path / "d", fps=20, task="open the door")
    found = json.loads((tmp_path / "d/meta/info.json").read_text())
    own = found.pop("jepa_rl")
    features = found.pop("features")
    assert found == {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": 3,
        "total_frames": 12,
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 20,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
    }
    assert own["frames"] == 2
    assert features["observation.image"] == {
        "dtype": "image", "shape": [8, 6, 3], "names": ["height", "width", "channels"]
    }  # fmt: skip
    dtypes = {name: (feature["dtype"], feature["shape"]) for name, feature in features.items()}
    assert dtypes == {
        "observation.image": ("image", [8, 6, 3]),
        "action": ("float32", [2]),
        "observation.position": ("float64", [2]),
        "observation.door": ("int64", [1]),
        "next.reward": ("float32", [1]),
        "next.done": ("bool", [1]),
        "next.truncated": ("bool", [1]),
        "timestamp": ("float32", [1]),
        "frame_index": ("int64", [1]),
        "episode_index": ("int64", [1]),
        "index": ("int64", [1]),
        "task_index": ("int64", [1]),
    }
    table = pq.read_table(tmp_path / "d/data/chunk-000/file-000.parquet")
    assert set(table.column_names) == set(features)
    assert table.schema.field("action").type == pa.list_(pa.float32(), 2)
    assert table.schema.field("observation.image").type == pa.struct(
        {"bytes": pa.binary(), "path": pa.string()}
    )
    assert pq.ParquetFile(tmp_path / "d/data/chunk-000/file-000.parquet").num_row_groups == 3
    columns = table.to_pydict()
    assert columns["episode_index"] == [0] * 4 + [1] * 2 + [2] * 6 and columns["index"] == list(range(12))
    assert (
        columns["frame_index"] == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 5] and columns["task_index"] == [0] * 12
    )
    np.testing.assert_allclose(columns["timestamp"], np.array(columns["frame_index"]) / 20, rtol=1e-6)
    np.testing.assert_array_equal(columns["action"][:3], store.episode(0).actions)
    assert columns["action"][3] == columns["action"][2] and columns["next.reward"][3] == 0
    assert columns["next.done"][:6] == [False, False, True, True, True, True]
    assert columns["next.truncated"] == [False] * 4 + [True] * 2 + [False] * 6
    image = np.asarray(Image.open(io.BytesIO(columns["observation.image"][7]["bytes"])))
    np.testing.assert_array_equal(image, store.episode(2).frames[1].transpose(1, 2, 0))
    hub = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert hub.keys() == features.keys() and hub["observation.image"] == {"_type": "Image"}


def test_tasks_and_episodes_are_as_the_format_says(tmp_path):
    store = make_store(tmp_path / "one", shape=(3, 8, 6))
    to_lerobot(store, tmp_path / "d", fps=20, task="open the door", pictures="video")
    tasks = pq.read_table(tmp_path / "d/meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0], "task": ["open the door"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    episodes = pq.read_table(tmp_path / "d/meta/episodes/chunk-000/file-000.parquet").to_pydict()
    told = {name: rows for name, rows in episodes.items() if not name.startswith(("stats/", "jepa_rl"))}
    video = "videos/observation.image"
    assert told == {
        "episode_index": [0, 1, 2],
        "tasks": [["open the door"]] * 3,
        "length": [4, 2, 6],
        "dataset_from_index": [0, 4, 6],
        "dataset_to_index": [4, 6, 12],
        **{
            f"{where}/{n}_index": [0] * 3
            for where in ("data", "meta/episodes", video)
            for n in ("chunk", "file")
        },
        f"{video}/from_timestamp": [0, 0.2, 0.3],
        f"{video}/to_timestamp": [0.2, 0.3, 0.6],
    }
    names = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}
    features = json.loads((tmp_path / "d/meta/info.json").read_text())["features"]
    assert {n for n in episodes if n.startswith("stats/")} == {
        f"stats/{f}/{n}" for f in features for n in names
    }
    shown = features["observation.image"]["info"]
    with av.open(str(tmp_path / "d/videos/observation.image/chunk-000/file-000.mp4")) as film:
        stream = film.streams.video[0]
        assert (shown["video.height"], shown["video.width"]) == (stream.height, stream.width) == (8, 6)
        assert (shown["video.codec"], shown["video.pix_fmt"]) == (stream.codec.canonical_name, stream.pix_fmt)
        assert shown["video.fps"] == stream.base_rate == 20
        assert sum(1 for _ in film.decode(stream)) == 12


def test_statistics_are_those_of_the_rows(tmp_path):
    store = make_store(tmp_path / "one", shape=(3, 8, 6))
    to_lerobot(store, tmp_path / "d", fps=20)
    stats = json.loads((tmp_path / "d/meta/stats.json").read_text())
    episodes = pq.read_table(tmp_path / "d/meta/episodes/chunk-000/file-000.parquet").to_pydict()
    rows = [store.episode(i).extras["position"] for i in range(3)]
    for name, of in {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}.items():
        np.testing.assert_allclose(
            stats["observation.position"][name], of(np.concatenate(rows), 0), rtol=1e-9
        )
        np.testing.assert_allclose(
            episodes[f"stats/observation.position/{name}"][2], of(rows[2], 0), rtol=1e-9
        )
        pixels = np.concatenate([store.episode(i).frames for i in range(3)]) / 255
        want = of(pixels, (0, 2, 3)).reshape(3, 1, 1)
        np.testing.assert_allclose(stats["observation.image"][name], want, atol=1e-9)
    assert stats["observation.position"]["count"] == [12] and stats["observation.image"]["count"] == [12]
    medians = np.array(episodes["stats/observation.position/q50"])
    np.testing.assert_allclose(medians[2], np.median(rows[2], 0))
    np.testing.assert_allclose(stats["observation.position"]["q50"], medians.min(0))  # LeRobot's bounds
    upper = np.array(episodes["stats/observation.position/q90"]).max(0)
    np.testing.assert_allclose(stats["observation.position"]["q90"], upper)
    assert np.shape(episodes["stats/observation.image/q50"][0]) == (3, 1, 1)


# -- other people's datasets ------------------------------------------------------------------------


def make_foreign(path, legacy, lossy=False):
    """A dataset as LeRobot writes it, made of an exported one: no notes of ours, and the layout of version 2.1."""
    store = make_smooth_store(path.with_name(f"{path.name}_store"), side=32)
    to_lerobot(store, path, fps=10, camera="observation.images.top", pictures="video" if lossy else "image")
    told = json.loads((path / "meta/info.json").read_text())
    del told["jepa_rl"]
    if legacy:
        told |= {
            "codebase_version": "v2.1",
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        }
        file = path / "data/chunk-000/file-000.parquet"
        table = pq.read_table(file)
        file.unlink()
        lines = []
        for i, length in enumerate([7, 8, 9]):
            part = table.filter(pa.compute.equal(table["episode_index"], i))
            pq.write_table(part, path / f"data/chunk-000/episode_{i:06d}.parquet")
            lines.append({"episode_index": i, "tasks": [""], "length": length})
        (path / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        shutil.rmtree(path / "meta/episodes")
    (path / "meta/info.json").write_text(json.dumps(told))
    return store


@pytest.mark.parametrize("legacy", [False, True], ids=["3.0", "2.1"])
def test_other_peoples_datasets(tmp_path, legacy):
    store = make_foreign(tmp_path / "d", legacy)
    back = from_lerobot(tmp_path / "d", tmp_path / "two", camera="observation.images.top", frames=2)
    assert back.lengths.tolist() == store.lengths.tolist() and back.spec.frames == 2
    for i in range(3):
        one, two = back.episode(i), store.episode(i)
        np.testing.assert_array_equal(one.frames, two.frames)
        np.testing.assert_array_equal(one.actions, two.actions)
        np.testing.assert_array_equal(one.rewards, two.rewards)
        assert (one.terminated, one.truncated) == (two.terminated, not two.terminated)
    actions = np.concatenate([store.episode(i).actions for i in range(3)])
    np.testing.assert_allclose(back.layout.action.low, actions.min(0))
    np.testing.assert_allclose(back.layout.action.high, actions.max(0))
    wide = ActionSpec("continuous", 2, (-9.0, -9.0), (9.0, 9.0))
    assert from_lerobot(tmp_path / "d", tmp_path / "three", action=wide).layout.action == wide


def test_a_legacy_dataset_with_a_video_of_each_episode(tmp_path):
    store = make_smooth_store(tmp_path / "one", side=32)
    for i in range(3):
        to_lerobot(store.view([i]), tmp_path / f"d{i}", fps=10, pictures="video")
    make_foreign(tmp_path / "d", legacy=True, lossy=False)
    told = json.loads((tmp_path / "d/meta/info.json").read_text())
    told["features"]["observation.images.top"]["dtype"] = "video"
    (tmp_path / "d/meta/info.json").write_text(json.dumps(told))
    films = tmp_path / "d/videos/chunk-000/observation.images.top"
    films.mkdir(parents=True)
    for i in range(3):
        film = tmp_path / f"d{i}/videos/observation.image/chunk-000/file-000.mp4"
        shutil.copy(film, films / f"episode_{i:06d}.mp4")
    back = from_lerobot(tmp_path / "d", tmp_path / "two")
    assert all(psnr(back.episode(i).frames, store.episode(i).frames) > 30 for i in range(3))


# -- broken and malicious ones ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """One with images and one with a video; tests copy them."""
    folder = tmp_path_factory.mktemp("lerobot")
    make_foreign(folder / "image", legacy=False)
    make_foreign(folder / "video", legacy=False, lossy=True)
    make_foreign(folder / "legacy", legacy=True)
    return folder


def edit_info(folder, **changes):
    file = folder / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_feature(folder, name, **changes):
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    edit_info(folder, features=features | {name: features[name] | changes})


def edit_table(folder, name, file="data/chunk-000/file-000.parquet", rows=None, **columns):
    table = pq.read_table(folder / file)
    if rows is not None:
        table = table.slice(0, rows)
    names = [name] if name else []
    for key, values in (dict.fromkeys(names) | columns).items():
        at = table.column_names.index(key)
        table = table.remove_column(at)
        if values is not None:
            table = table.append_column(key, [values])
    pq.write_table(table, folder / file)


EPISODES = "meta/episodes/chunk-000/file-000.parquet"
TOP = "observation.images.top"
FROM = f"videos/{TOP}/from_timestamp"


def big_png(side=200_000):
    """A picture that says that it has 40 gigapixels."""
    data = io.BytesIO()
    Image.new("RGB", (32, 32)).save(data, "PNG")
    raw = bytearray(data.getvalue())
    raw[16:24] = side.to_bytes(4, "big") * 2
    return bytes(raw)


def actions_of(value, kind=None):
    return pa.array([value] * 24, kind)


@pytest.mark.parametrize(
    ("kind", "harm", "error", "match"),
    [
        ("image", lambda d: (d / "meta/info.json").unlink(), FileNotFoundError, "not the folder of a LeRobot dataset"),
        ("image", lambda d: (d / "meta/info.json").write_text("{"), ValueError, "cannot be read"),
        ("image", lambda d: (d / "meta/info.json").write_text("[]"), ValueError, "cannot be read"),
        ("image", lambda d: edit_info(d, codebase_version="v4.0"), ValueError, "this jepa-rl reads v2.1 and v3.0"),
        ("image", lambda d: edit_info(d, fps=0), ValueError, "must be positive"),
        ("image", lambda d: edit_info(d, data_path="../secret.parquet"), ValueError, "leads out of the dataset"),
        ("image", lambda d: edit_info(d, data_path="/etc/passwd"), ValueError, "leads out of the dataset"),
        ("image", lambda d: edit_info(d, data_path="{chunk_index.__class__}"), ValueError, "does not name files"),
        ("image", lambda d: edit_info(d, data_path="{chunk_index:099999999d}"), ValueError, "does not name files"),
        ("legacy", lambda d: edit_info(d, data_path="{other}"), ValueError, "does not name files"),
        ("video", lambda d: edit_info(d, video_path="{video_key}/../../x"), ValueError, "leads out of the dataset"),
        ("video", lambda d: edit_info(d, video_path=None), ValueError, "does not name files"),
        ("image", lambda d: edit_feature(d, TOP, dtype="float32"), ValueError, "camera must name one of"),
        ("image", lambda d: edit_feature(d, TOP, shape=[32, 32]), ValueError, "must be pictures of shape"),
        ("image", lambda d: edit_feature(d, TOP, shape=[64, 32, 3]), ValueError, "32 x 32 pixels, not 64 x 32"),
        ("image", lambda d: edit_feature(d, TOP, shape=[32, 32, 4]), ValueError, "one or three channels"),
        ("video", lambda d: edit_feature(d, TOP, shape=[64, 32, 3]), ValueError, "32 x 32 pixels, not 64 x 32"),
        ("image", lambda d: edit_feature(d, TOP, shape=[2**20, 2**20, 3]), ValueError, "declared size|of disk left"),
        ("image", lambda d: edit_feature(d, "action", dtype="object"), TypeError, "action must be numbers"),
        ("image", lambda d: edit_feature(d, "action", shape=[3]), ValueError, r"expected 7 rows of shape \(3,\)"),
        ("image", lambda d: edit_feature(d, "action", shape=[2, 1]), ValueError, "actions must be flat"),
        ("image", lambda d: edit_table(d, "action"), ValueError, r"has no columns \['action'\]"),
        ("image", lambda d: edit_table(d, TOP), ValueError, "has no columns"),
        ("image", lambda d: edit_table(d, None, action=actions_of(b"cos\nsystem")), TypeError, "expected numbers"),
        ("image", lambda d: edit_table(d, None, action=actions_of(None, pa.list_(pa.float32(), 2))), ValueError,
         "values are missing"),
        ("image", lambda d: edit_table(d, None, action=actions_of([np.nan, 0.0])), ValueError, "NaN|bounds"),
        ("image", lambda d: edit_table(d, None, rows=20), ValueError, "ends within episode 2: 4 of its rows"),
        ("image", lambda d: edit_table(d, None, **{TOP: actions_of({"bytes": b"no", "path": ""})}), ValueError,
         "a picture cannot be read"),
        ("image", lambda d: edit_table(d, None, **{TOP: actions_of({"bytes": big_png(), "path": ""})}), ValueError,
         "a picture cannot be read"),
        ("image", lambda d: edit_table(d, None, **{TOP: actions_of({"bytes": None, "path": "/etc/passwd"})}),
         ValueError, "holds no bytes"),
        ("image", lambda d: edit_table(d, None, EPISODES, length=pa.array([7, 0, 17])), ValueError,
         r"episode 1 has 0 row\(s\)"),
        ("image", lambda d: edit_table(d, None, EPISODES, length=pa.array([7, 9, 8])), ValueError,
         "holds rows of other episodes where episode 1"),
        ("image", lambda d: edit_table(d, None, EPISODES, length=pa.array([2**45, 8, 9])), ValueError,
         "is its declared size true"),
        ("image", lambda d: edit_table(d, "length", EPISODES), ValueError, "has no columns"),
        ("image", lambda d: edit_table(d, None, EPISODES, rows=0), ValueError, "has no episodes"),
        ("image", lambda d: shutil.rmtree(d / "meta/episodes"), FileNotFoundError, "is not whole"),
        ("image", lambda d: shutil.rmtree(d / "data"), FileNotFoundError, "is not whole"),
        ("video", lambda d: shutil.rmtree(d / "videos"), FileNotFoundError, "is not whole"),
        ("video", lambda d: edit_table(d, None, EPISODES, **{FROM: pa.array([0.0, 0.7, 2.0])}),
         ValueError, "ends before"),
        ("video", lambda d: edit_table(d, None, EPISODES, **{FROM: pa.array([0.0, 0.65, 1])}),
         ValueError, "no picture at"),
        ("legacy", lambda d: (d / "meta/episodes.jsonl").unlink(), FileNotFoundError, "is not whole"),
        ("legacy", lambda d: (d / "meta/episodes.jsonl").write_text("{}\n"), ValueError, "is damaged"),
        ("legacy", lambda d: (d / "data/chunk-000/episode_000001.parquet").unlink(), FileNotFoundError, "is not whole"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_and_leaves_nothing(datasets, tmp_path, kind, harm, error, match):
    shutil.copytree(datasets / kind, tmp_path / "d")
    shutil.copy(datasets / "image/data/chunk-000/file-000.parquet", tmp_path / "secret.parquet")
    harm(tmp_path / "d")
    with pytest.raises(error, match=match):
        from_lerobot(tmp_path / "d", tmp_path / "s")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["d", "secret.parquet"]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_files_cut_short_are_refused(datasets, tmp_path, share):
    for kind, name in [
        ("image", "data/chunk-000/file-000.parquet"),
        ("image", EPISODES),
        ("video", f"videos/{TOP}/chunk-000/file-000.mp4"),
    ]:
        folder = tmp_path / kind
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(datasets / kind, folder)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=r"cannot be read|ends before"):
            from_lerobot(folder, tmp_path / "s")
        assert not list(tmp_path.glob("s*"))


def test_mistakes_are_named_and_leave_nothing(datasets, tmp_path, monkeypatch):
    store = make_store(tmp_path / "one", shape=(3, 5, 5))
    folder = datasets / "image"
    for options, match in [
        ({"camera": "top"}, "camera must name one of the pictures"),
        ({"extras": ["speed"]}, "has no column 'speed'"),
        ({"extras": [TOP]}, "must be numbers, got image"),
        ({"extras": ["next.reward", "next_reward"]}, "would share a name"),
        ({"action": DISCRETE}, "actions of the store"),
    ]:
        with pytest.raises((TypeError, ValueError), match=match):
            from_lerobot(folder, tmp_path / "two", **options)
    with pytest.raises(FileExistsError, match="is there already"):
        from_lerobot(folder, tmp_path / "one")
    two_channels = make_store(tmp_path / "channels", shape=(2, 8, 8))
    for wrong, options, match in [
        (two_channels, {}, "one or three channels, the store's pictures have 2"),
        (store, {"pictures": "video"}, "even sides, got 5 x 5"),
        (store, {"pictures": "gif"}, "must be 'image' or 'video'"),
        (store, {"camera": "a/b"}, "name of its own"),
        (store, {"camera": "observation.position"}, "name of its own"),
        (store, {"fps": 0}, "fps must be at least 1"),
        (store.view([]), {}, "no episodes to export"),
    ]:
        with pytest.raises(ValueError, match=match):
            to_lerobot(wrong, tmp_path / "d", **({"fps": 10} | options))
    with pytest.raises(FileExistsError, match="is there already"):
        to_lerobot(store, tmp_path / "one", fps=10)
    whole, calls = type(store).episode, []

    def crash(self, i):
        calls.append(i)
        return whole(self, i) if i < 1 else 1 / 0

    monkeypatch.setattr(type(store), "episode", crash)
    with pytest.raises(ZeroDivisionError):
        to_lerobot(store, tmp_path / "d", fps=10)
    assert calls == [0, 1] and sorted(file.name for file in tmp_path.iterdir()) == ["channels", "one"]
    for module, package in (("pyarrow", "pyarrow"), ("av", "PyAV")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            ImportError, match=rf'{package} is not installed; pip install "jepa-rl\[lerobot\]"'
        ):
            from_lerobot(datasets / "video", tmp_path / "two")
        monkeypatch.delitem(sys.modules, module)
        sys.modules[module] = {"pyarrow": pa, "av": av}[module]
