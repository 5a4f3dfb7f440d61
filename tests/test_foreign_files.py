"""What damaged and hostile datasets try, beyond what their formats allow: other files, and more than they hold."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from PIL import Image
from test_archives import archive, samples
from test_import import d4rl, imported, jat, of_values, robomimic
from test_lerobot import write_v2, write_v3
from toy_data import Shape

from gatito.cli import run
from gatito.data import below
from gatito.data.documents import open_documents
from gatito.data.formats.lerobot_export import _Numbers
from gatito.data.minari_episodes import MinariSource, MinariWriter, open_minari
from gatito.data.publish import published
from gatito.errors import UserError


def documents(source: str) -> list[Any]:
    return list(open_documents(source).documents())


# Files outside of the folder


@pytest.mark.parametrize(
    "name", ["../secret/s.jsonl", "{outside}/s.jsonl", "http://127.0.0.1:9/s.jsonl", "hf://datasets/a/b/s.jsonl"]
)
@pytest.mark.parametrize("scheme", ["text:hf", "hf"])
def test_a_card_that_names_data_elsewhere_is_refused(scheme: str, name: str, tmp_path: Path) -> None:
    outside, folder = tmp_path / "secret", tmp_path / "data"
    for place in (outside, folder):
        place.mkdir()
    (outside / "s.jsonl").write_text('{"text": "secret"}\n')
    files = [{"split": "train", "path": name.format(outside=outside)}]
    card = {"configs": [{"config_name": "default", "data_files": files}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    with pytest.raises(UserError, match=r"README\.md: data_files names .*outside of the folder"):
        documents(f"text:hf:{folder}") if scheme == "text:hf" else imported(f"hf:{folder}", tmp_path / "out")


def test_a_saved_dataset_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    for place, words in (("secret", "secret"), ("data", "open")):
        datasets.Dataset.from_dict({"text": [words]}).save_to_disk(tmp_path / place)
    state = tmp_path / "data/state.json"
    values = json.loads(state.read_text())
    for name in ("../secret/data-00000-of-00001.arrow", f"{tmp_path}/secret/data-00000-of-00001.arrow", 7):
        state.write_text(json.dumps(values | {"_data_files": [{"filename": name}]}))
        with pytest.raises(UserError, match=r"state\.json: file .*, allowed are names of files beside it"):
            documents(f"text:hf:{tmp_path}/data")


@pytest.mark.parametrize("link", ["a.png", "a.txt"])
def test_links_that_lead_out_of_a_folder_of_captions_are_refused(link: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "captions", tmp_path / "outside"
    for place in (folder, outside):
        place.mkdir()
        Image.new("L", (16, 16)).save(place / "a.png")
        (place / "a.txt").write_text("secret")
    (folder / link).unlink()
    (folder / link).symlink_to(outside / link)
    with pytest.raises(UserError, match=r"it leads out of .*; copy the file into it"):
        documents(f"captions:{folder}")
    with pytest.raises(UserError, match="it leads out of"):
        documents(f"text:{folder}") if link == "a.txt" else documents(f"captions:{folder}")


def test_snapshots_of_the_hub_s_cache_are_links_and_are_read(tmp_path: Path) -> None:
    cached = tmp_path / "datasets--owner--name"
    snapshot, blob = cached / "snapshots/0123", cached / "blobs/abc"
    for place in (snapshot, blob.parent):
        place.mkdir(parents=True)
    blob.write_text("words")
    (snapshot / "a.txt").symlink_to(blob)
    assert len(documents(f"text:{snapshot}")) == 1
    (tmp_path / "secret").write_text("secret")
    (snapshot / "b.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="it leads out of"):
        below.check_below(snapshot / "b.txt", snapshot)


@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_a_video_that_is_a_playlist_or_a_link_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    root = write(tmp_path / "data", "video")
    video = next(root.rglob("*.mp4"))
    other = video.rename(tmp_path / "other.mp4")
    video.symlink_to(other)
    with pytest.raises(UserError, match="it leads out of"):
        imported(f"lerobot:{root}", tmp_path / "out")
    video.unlink()
    other.rename(video.with_name("other.mp4"))
    for playlist in ("ffconcat version 1.0\nfile other.mp4\n", "#EXTM3U\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n"):
        video.write_text(playlist)
        with pytest.raises(UserError, match="cannot be read"):
            imported(f"lerobot:{root}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# More than they hold, or less


@pytest.mark.slow
def test_a_parquet_file_that_claims_more_than_it_stores_is_refused(tmp_path: Path) -> None:
    folder = jat(tmp_path / "bomb", *of_values())
    rows = pa.array(np.zeros(3 * 10_000_000, np.float32))
    inner = pa.FixedSizeListArray.from_arrays(rows, 3).cast(pa.list_(pa.float32()))
    columns = {
        "continuous_observations": pa.ListArray.from_arrays([0, len(inner)], inner),
        "continuous_actions": pa.array([[[0.0]]], pa.list_(pa.list_(pa.float32()))),
    }
    pq.write_table(pa.table(columns), next(folder.rglob("*.parquet")), compression="zstd")
    with pytest.raises(UserError, match=r"continuous_observations\S* claims 30000000 values in \d+ bytes"):
        imported(f"hf:{folder}/toy", tmp_path / "out")


def shorter(name: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        return d4rl(path, **{name: np.zeros((5, 3) if name == "next_observations" else 5, np.float32)})

    return write


def nan_flags(path: Path) -> Path:
    return d4rl(path, terminals=np.array([np.nan] * 12))


def other_next(path: Path) -> Path:
    with h5py.File(robomimic(path), "a") as file:
        del file["data/demo_2/next_obs/eef"]
        file["data/demo_2/next_obs/eef"] = np.zeros((4, 3))
    return path


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (shorter("next_observations"), r"/next_observations has shape \(5, 3\), /observations \(12, 3\)"),
        (nan_flags, "terminals, row 0: nan, expected 0 or 1"),
        (other_next, r"/data/demo_2/next_obs/eef has shape \(4, 3\), /data/demo_2/obs/eef \(4, 2\)"),
    ],
)
def test_hdf5_files_that_contradict_themselves_are_refused(
    write: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        imported(f"hdf5:{write(tmp_path / 'a.hdf5')}", tmp_path / "out")


def test_whole_numbers_as_far_as_they_go_are_values(tmp_path: Path) -> None:
    widest = np.iinfo(np.int64)
    path = d4rl(tmp_path / "a.hdf5", observations=np.array([[widest.min], [widest.max]] * 6))
    assert isinstance(imported(f"hdf5:{path}", tmp_path / "out").dataset.observation_space, spaces.Box)


@pytest.mark.parametrize("index", [0, 0.5, None, "1", 7])
def test_episodes_that_are_not_numbered_are_refused(index: Any, tmp_path: Path) -> None:
    root = write_v2(tmp_path / "data")
    file = root / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1]["episode_index"] = index
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"episode_index|has index"):
        imported(f"lerobot:{root}", tmp_path / "out")


@pytest.mark.parametrize(
    "row", [{"task_index": None, "task": "a"}, {"task_index": 0, "task": 5}, {"task": "a"}, {"task_index": "a"}]
)
def test_instructions_that_are_none_are_refused(row: dict[str, Any], tmp_path: Path) -> None:
    root = write_v2(tmp_path / "data")
    (root / "meta/tasks.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"meta/tasks\.jsonl, task"):
        imported(f"lerobot:{root}", tmp_path / "out")


def test_whatever_a_damaged_file_makes_a_library_raise_names_the_source(tmp_path: Path) -> None:
    root = write_v2(tmp_path / "data")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.state"]["shape"] = [(1 << 24) - 1] * 4
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"^lerobot:.*: its files contradict themselves|its feature states"):
        imported(f"lerobot:{root}", tmp_path / "out")


# What a user maps


def test_a_field_is_taken_for_one_thing(tmp_path: Path) -> None:
    path = d4rl(tmp_path / "a.hdf5")
    for mapping in ({"reward": "rewards", "observation": "rewards"}, {"observation": "actions", "action": "actions"}):
        with pytest.raises(UserError, match=r"field \w+ is taken for \w+ and for \w+; map one of them"):
            imported(f"hdf5:{path}", tmp_path / "out", mapping=mapping)


@pytest.mark.parametrize("options", [["--max-episode-steps", "0"], ["--engine", "ray", "--processes", "0"]])
def test_counts_of_nothing_are_refused(options: list[str], tmp_path: Path) -> None:
    path = d4rl(tmp_path / "a.hdf5")
    with pytest.raises(UserError, match=rf"{options[-2]} is 0, allowed 1 and more"):
        run(["data", "import", f"hdf5:{path}", "--out", str(tmp_path / "out"), *options])


# Datasets of others, exported


def recorded(folder: Path, observation_space: spaces.Space, seen: Any, **stated: Any) -> MinariSource:
    """One episode of three timesteps, of which nothing says what was exploration."""
    env = Shape(observation_space, spaces.Discrete(2))
    stated |= {"algorithm_name": "a", "gatito_task": "toy/others"}
    with published(folder) as begun:
        writer = MinariWriter(
            begun, "toy/others-v0", env, {"algorithm_name": "a", "gatito_task": "toy/others", **stated}
        )
        writer.write(
            EpisodeBuffer(
                observations=seen,
                actions=np.array([0, 1, 0]),
                rewards=[0.0, 1.0, 2.0],
                terminations=[False, False, True],
                truncations=[False] * 3,
                infos={},
            )
        )
        writer.close()
    return open_minari(folder)


@pytest.mark.parametrize("to", ["hf", "lerobot", "minari"])
def test_a_dataset_without_exploration_and_with_several_authors_comes_back(to: str, tmp_path: Path) -> None:
    seen = np.arange(8.0, dtype=np.float32).reshape(4, 2)
    before = recorded(tmp_path / "before", spaces.Box(-9, 9, (2,), np.float32), seen, author={"one", "two"})
    run(["data", "export", str(tmp_path / "before"), "--to", to, "--out", str(tmp_path / "out")])
    after = imported(f"{to}:{tmp_path / 'out'}", tmp_path / "after")
    np.testing.assert_array_equal(after.read(0)[0]["observations"], before.read(0)[0]["observations"])
    assert set(after.dataset.storage.metadata["author"]) == {"one", "two"}


def test_a_key_with_a_slash_is_a_field_of_its_own(tmp_path: Path) -> None:
    space = spaces.Dict({"a/b": spaces.Discrete(3), "c": spaces.Box(-1, 1, (1,), np.float32)})
    seen = {"a/b": np.array([0, 1, 2, 0]), "c": np.zeros((4, 1), np.float32)}
    before = recorded(tmp_path / "before", space, seen)
    whole = imported(f"minari:{tmp_path}/before", tmp_path / "whole")
    assert whole.dataset.observation_space == before.dataset.observation_space
    part = imported(f"minari:{tmp_path}/before", tmp_path / "part", mapping={"observation": "observations/a/b"})
    assert part.read(0)[0]["observations"].tolist() == [0, 1, 2, 0]


# Memory


def test_statistics_of_many_frames_take_as_much_memory_as_those_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatito.data.formats.lerobot_export.SAMPLED", 64)
    rng = np.random.default_rng(0)
    parts = [rng.normal(3, 2, (T, 2)) for T in rng.integers(1, 60, 100)]
    numbers = _Numbers(2)
    for part in parts:
        numbers.add(part)
    whole, found = np.concatenate(parts), numbers.to_json()
    assert len(numbers.kept) <= 64
    assert found["count"] == [len(whole)]
    for name, expected in (
        ("min", whole.min(0)),
        ("max", whole.max(0)),
        ("mean", whole.mean(0)),
        ("std", whole.std(0)),
    ):
        np.testing.assert_allclose(found[name], expected)
    np.testing.assert_allclose(found["q50"], np.quantile(whole, 0.5, axis=0), atol=1.0)
    np.testing.assert_array_equal(numbers.kept, whole[:: numbers.every])


@pytest.mark.slow
def test_memory_of_an_archive_does_not_grow_with_its_files(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        archive(tmp_path / f"{count}.tar", samples(0, count))
        tracemalloc.start()
        for _ in open_documents(f"captions:{tmp_path}/{count}.tar").documents():
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(3000)  # imports, and what is kept of first times
    assert peak(6000) < 1 << 21


def test_a_source_of_no_format_is_answered_with_the_nearest(tmp_path: Path) -> None:
    path = d4rl(tmp_path / "a.hdf5")
    with pytest.raises(UserError, match=r"unknown format .*, as in hdf5:FILE"):
        run(["data", "import", str(path), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        run(["data", "import", f"hdf5:{tmp_path}", "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="random_return is nan, expected a finite number"):
        run(["data", "import", f"hdf5:{path}", "--random-return", "nan", "--out", str(tmp_path / "out")])


def test_sources_without_a_text_train_no_pieces(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="there is no text to learn pieces from"):
        run(["data", "tokenizer", "--from", f"text:{tmp_path}/empty.txt", "--out", str(tmp_path / "a.model")])
