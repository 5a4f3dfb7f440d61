"""A LeRobotDataset v3.0 as its own reader opens it: every path, column and statistic that it asks for."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from toy_data import Shape

from gatito.cli import run
from gatito.data.formats import lerobot_export
from gatito.data.minari_episodes import MinariWriter
from gatito.data.publish import published
from gatito.errors import UserError

LENGTHS = (3, 2)
SPACE = spaces.Dict(
    arm=spaces.Box(-np.inf, np.inf, (2,), np.float32),
    camera=spaces.Box(0, 255, (16, 20, 3), np.uint8),
    mission=spaces.Text(9, charset="abc "),
)


def features_of(info: dict[str, Any]) -> datasets.Features:
    """The columns as LeRobot declares them to `datasets`."""
    columns: dict[str, Any] = {}
    for name, feature in info["features"].items():
        if feature["dtype"] == "image":
            columns[name] = datasets.Image()
        elif feature["shape"] == [1]:
            columns[name] = datasets.Value(feature["dtype"])
        else:
            columns[name] = datasets.Sequence(length=feature["shape"][0], feature=datasets.Value(feature["dtype"]))
    return datasets.Features(columns)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    env = Shape(SPACE, spaces.Box(-1.0, 1.0, (2,), np.float32))
    with published(tmp_path / "toy") as begun:
        writer = MinariWriter(begun, "toy/robot-v0", env, {"gatito_task": "toy/robot"})
        for i, T in enumerate(LENGTHS):
            frames = np.stack([np.full((16, 20, 3), 100 * i + 10 * t, np.uint8) for t in range(T + 1)])
            buffer = EpisodeBuffer(
                observations={
                    "arm": rng.normal(size=(T + 1, 2)).astype(np.float32),
                    "camera": frames,
                    "mission": ["ab" if i else "a c"] * (T + 1),
                },
                actions=rng.uniform(-1, 1, (T, 2)).astype(np.float32),
                rewards=[1.0] * T,
                terminations=[False] * (T - 1) + [True],
                truncations=[False] * T,
            )
            writer.write(buffer, agent="expert")
        writer.close()
    return tmp_path / "toy"


def exported(dataset: Path, *options: str) -> Path:
    out = dataset.parent / "robot"
    run(["data", "export", str(dataset), "--to", "lerobot", "--out", str(out), *options])
    return out


def test_frames_load_with_the_features_that_the_file_of_facts_states(dataset: Path, tmp_path: Path) -> None:
    out = exported(dataset, "--fps", "20")
    info = json.loads((out / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["total_frames"]) == ("v3.0", 20, 2, 5)
    files = [str(path) for path in sorted((out / "data").glob("*/*.parquet"))]
    rows = datasets.Dataset.from_parquet(files, features=features_of(info), cache_dir=str(tmp_path / "cache"))
    assert rows["index"][:] == list(range(5))
    assert rows["frame_index"][:] == [0, 1, 2, 0, 1]
    np.testing.assert_allclose(rows["timestamp"][:], np.array([0, 1, 2, 0, 1]) / 20, atol=1e-6)
    assert [np.asarray(picture)[0, 0, 0] for picture in rows["observation.images.camera"]] == [0, 10, 20, 100, 110]
    assert rows["next.terminated"][:] == [False, False, True, False, True]


def test_tasks_are_the_instructions_that_were_observed(dataset: Path) -> None:
    tasks = pd.read_parquet(exported(dataset) / "meta/tasks.parquet")
    assert [tasks.iloc[i].name for i in range(len(tasks))] == ["a c", "ab"]


def test_episodes_say_where_they_lie(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_export, "FILE_BYTES", 1)
    out = exported(dataset)
    episodes = pd.read_parquet(out / "meta/episodes/chunk-000/file-000.parquet")
    assert episodes["length"].tolist() == list(LENGTHS)
    assert episodes["dataset_from_index"].tolist() == [0, 3]
    assert episodes["dataset_to_index"].tolist() == [3, 5]
    assert episodes["data/file_index"].tolist() == [0, 1]
    assert [list(tasks) for tasks in episodes["tasks"]] == [["a c"], ["ab"]]
    assert sorted(path.name for path in (out / "data/chunk-000").iterdir()) == [
        "file-000.parquet",
        "file-001.parquet",
    ]


def test_statistics_are_those_of_all_frames(dataset: Path) -> None:
    out = exported(dataset)
    stats = json.loads((out / "meta/stats.json").read_text())
    frames = pd.read_parquet(out / "data/chunk-000/file-000.parquet")
    actions = np.stack(frames["action"].tolist()).astype(np.float64)
    for name, expected in (("mean", actions.mean(0)), ("std", actions.std(0)), ("q50", np.median(actions, axis=0))):
        np.testing.assert_allclose(stats["action"][name], expected)
    assert stats["action"]["count"] == [5]
    pixels = np.array([0, 10, 20, 100, 110]) / 255
    camera = stats["observation.images.camera"]
    for name, value in (("mean", pixels.mean()), ("std", pixels.std()), ("min", 0.0), ("max", 110 / 255)):
        np.testing.assert_allclose(camera[name], np.full((3, 1, 1), value))
    np.testing.assert_allclose(camera["q50"], np.full((3, 1, 1), 20 / 255))


@pytest.mark.parametrize("fps", ["0", "-1", "inf", "nan"])
def test_a_rate_that_is_none_is_refused(fps: str, dataset: Path) -> None:
    with pytest.raises(UserError, match=r"fps is .*, (allowed above 0|expected a finite number)"):
        exported(dataset, "--fps", fps)
    assert not (dataset.parent / "robot").exists()
