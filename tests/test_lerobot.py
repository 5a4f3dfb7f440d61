"""LeRobot datasets as the library lays them out, v3.0 and v2.1, with cameras in parquet files and in videos."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from PIL import Image

from gatito.data.formats.importing import import_episodes
from gatito.data.formats.source import ImportConfig
from gatito.data.minari_episodes import MinariSource, open_minari
from gatito.errors import UserError
from gatito.eval.mp4 import Mp4Writer

LENGTHS, FPS = (4, 3, 5), 10
INSTRUCTIONS = ("pick it up", "put it down")
SIDE = 32


def frame_of(episode: int, t: int) -> np.ndarray:
    """Every frame has a brightness of its own, which survives the codec."""
    return np.full((SIDE, SIDE, 3), 20 + 60 * episode + 10 * t, np.uint8)


def features_of(camera: str) -> dict[str, Any]:
    names = {"timestamp": "float32"} | dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")
    features: dict[str, Any] = {name: {"dtype": dtype, "shape": [1]} for name, dtype in names.items()}
    return features | {
        "observation.state": {"dtype": "float32", "shape": [2]},
        "observation.gripper": {"dtype": "float32", "shape": [1]},
        "observation.images.top": {"dtype": camera, "shape": [SIDE, SIDE, 3]},
        "action": {"dtype": "float32", "shape": [2]},
        "next.reward": {"dtype": "float32", "shape": [1]},
        "next.done": {"dtype": "bool", "shape": [1]},
    }


def rows_of(episode: int, first: int, camera: str) -> dict[str, Any]:
    rng, T = np.random.default_rng(episode), LENGTHS[episode]
    rows: dict[str, Any] = {
        "timestamp": pa.array(np.arange(T) / FPS, pa.float32()),
        "frame_index": np.arange(T),
        "episode_index": np.full(T, episode),
        "index": first + np.arange(T),
        "task_index": np.full(T, episode % 2),
        "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=2 * T), pa.float32()), 2),
        "observation.gripper": pa.array(rng.normal(size=T), pa.float32()),
        "action": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=2 * T), pa.float32()), 2),
        "next.reward": pa.array(np.arange(T), pa.float32()),
        "next.done": [*[False] * (T - 1), True],
    }
    if camera == "image":
        rows["observation.images.top"] = [{"bytes": png(frame_of(episode, t)), "path": "frame.png"} for t in range(T)]
    return rows


def png(frame: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "PNG")
    return content.getvalue()


def write_info(root: Path, camera: str, **changes: Any) -> None:
    info = {"fps": FPS, "features": features_of(camera), "total_episodes": len(LENGTHS), "robot_type": "arm"}
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(json.dumps(info | changes))


def write_video(path: Path, episodes: list[int]) -> None:
    path.parent.mkdir(parents=True)
    with Mp4Writer(path, FPS) as video:
        for episode in episodes:
            for t in range(LENGTHS[episode]):
                video.add(frame_of(episode, t))


def write_v3(root: Path, camera: str = "image") -> Path:
    """Two files of data, one video of all episodes."""
    write_info(root, camera, codebase_version="v3.0")
    pd.DataFrame({"task_index": [0, 1]}, index=pd.Index(INSTRUCTIONS, name="task")).to_parquet(
        root / "meta/tasks.parquet"
    )
    starts = np.cumsum([0, *LENGTHS]).tolist()
    for file, episodes in enumerate(([0, 1], [2])):
        path = root / f"data/chunk-000/file-{file:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables([pa.table(rows_of(e, starts[e], camera)) for e in episodes]), path)
    episodes_of: dict[str, Any] = {
        "episode_index": [0, 1, 2],
        "tasks": [[INSTRUCTIONS[e % 2]] for e in range(3)],
        "length": list(LENGTHS),
        "data/chunk_index": [0, 0, 0],
        "data/file_index": [0, 0, 1],
        "dataset_from_index": starts[:-1],
        "dataset_to_index": starts[1:],
        "stats/action/min": [[0.0, 0.0]] * 3,
    }
    if camera == "video":
        write_video(root / "videos/observation.images.top/chunk-000/file-000.mp4", [0, 1, 2])
        key = "videos/observation.images.top"
        episodes_of |= {f"{key}/chunk_index": [0] * 3, f"{key}/file_index": [0] * 3}
        episodes_of[f"{key}/from_timestamp"] = [start / FPS for start in starts[:-1]]
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(episodes_of), root / "meta/episodes/chunk-000/file-000.parquet")
    return root


def write_v2(root: Path, camera: str = "image") -> Path:
    write_info(root, camera, codebase_version="v2.1", chunks_size=2)
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(INSTRUCTIONS)]
    (root / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    rows = [{"episode_index": e, "tasks": [INSTRUCTIONS[e % 2]], "length": T} for e, T in enumerate(LENGTHS)]
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for episode in range(3):
        path = root / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows_of(episode, sum(LENGTHS[:episode]), camera)), path)
        if camera == "video":
            folder = root / f"videos/chunk-{episode // 2:03d}/observation.images.top"
            folder.mkdir(parents=True, exist_ok=True)
            with Mp4Writer(folder / f"episode_{episode:06d}.mp4", FPS) as video:
                for t in range(LENGTHS[episode]):
                    video.add(frame_of(episode, t))
    return root


def imported(root: Path, out: Path, **values: Any) -> MinariSource:
    import_episodes(ImportConfig(source=f"lerobot:{root}", task="toy/robot", **values), out)
    return open_minari(out)


@pytest.mark.parametrize("camera", ["image", "video"])
@pytest.mark.parametrize("write", [write_v3, write_v2])
def test_every_frame_is_where_it_was(write: Callable[[Path, str], Path], camera: str, tmp_path: Path) -> None:
    source = imported(write(tmp_path / "robot", camera), tmp_path / "out")
    assert len(source) == 3
    for e, episode in enumerate(source.episodes()):
        rows = rows_of(e, 0, "none")
        state, action = (np.stack(rows[name].to_pylist()) for name in ("observation.state", "action"))
        np.testing.assert_array_equal(episode.observations["state"], state)
        np.testing.assert_array_equal(episode.actions, action)
        assert episode.observations["gripper"].tolist() == [
            [value] for value in rows["observation.gripper"].to_pylist()
        ]
        assert episode.rewards.tolist() == list(range(LENGTHS[e]))
        assert episode.observations["task"] == [INSTRUCTIONS[e % 2]] * LENGTHS[e]
        expected = np.stack([frame_of(e, t) for t in range(LENGTHS[e])]).astype(int)
        off = np.abs(episode.observations["images.top"].astype(int) - expected)
        assert off.max() <= (0 if camera == "image" else 3)  # the codec rounds
        assert source.read(e)[0]["terminations"][-1]


def test_bounds_of_actions_are_those_of_the_data(tmp_path: Path) -> None:
    source = imported(write_v3(tmp_path / "robot"), tmp_path / "out")
    actions = np.concatenate([episode.actions for episode in source.episodes()])
    assert source.dataset.action_space == spaces.Box(actions.min(0), actions.max(0), (2,), np.float32)


def test_the_mapping_chooses_one_observation(tmp_path: Path) -> None:
    source = imported(write_v3(tmp_path / "robot"), tmp_path / "out", mapping={"observation": "observation.state"})
    assert source.dataset.observation_space == spaces.Box(-np.inf, np.inf, (2,), np.float32)


def changed(root: Path, **changes: Any) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def feature(root: Path, name: str, **changes: Any) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][name] = {"dtype": "float32", "shape": [2]} | changes
    (root / "meta/info.json").write_text(json.dumps(info))


def episode_rows(root: Path, **columns: Any) -> None:
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pa.table({**pq.read_table(path).to_pydict(), **columns}), path)


DATA = "data/chunk-000/file-000.parquet"
HOSTILE: dict[str, Callable[[Path], Any]] = {
    r"codebase_version v9, read are v3\.0 and v2\.1": lambda root: changed(root, codebase_version="v9"),
    r"data_path '/etc/passwd', read is": lambda root: changed(root, data_path="/etc/passwd"),
    r"video_path '\.\./x\.mp4', read is": lambda root: changed(root, video_path="../x.mp4"),
    r"feature '\.\./\.\./up', allowed are letters": lambda root: feature(root, "../../up"),
    r"feature a has shape \[1099511627776\], expected": lambda root: feature(root, "a", shape=[1 << 40]),
    r"feature observation\.b has dtype 'os\.system'": lambda root: feature(root, "observation.b", dtype="os.system"),
    r"column observation\.new is missing": lambda root: feature(root, "observation.new"),
    r"states 7 episodes, there are 3": lambda root: changed(root, total_episodes=7),
    r"fps: 0, allowed above 0": lambda root: changed(root, fps=0),
    r"has 4 of its rows, stated are 9": lambda root: episode_rows(root, length=[9, 3, 5]),
    r"data/file_index: -1, expected a number from 0": lambda root: episode_rows(
        root, **{"data/file_index": [-1, 0, 1]}
    ),
    r"file-001\.parquet: cannot be read": lambda root: (root / "data/chunk-000/file-001.parquet").unlink(),
    r"file-000\.parquet: cannot be read": lambda root: (root / "data/chunk-000/file-000.parquet").write_bytes(
        b"PAR1"
    ),
    r"task_index 1, the tasks are \[0\]": lambda root: pd.DataFrame(
        {"task_index": [0]}, index=pd.Index(["only"], name="task")
    ).to_parquet(root / "meta/tasks.parquet"),
    r"info\.json: no LeRobot dataset": lambda root: (root / "meta/info.json").unlink(),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_what_cannot_be_trusted_is_refused_by_file_and_field(message: str, tmp_path: Path) -> None:
    HOSTILE[message](write_v3(tmp_path / "robot"))
    with pytest.raises(UserError, match=message):
        imported(tmp_path / "robot", tmp_path / "out", mapping=mapping_of(message))
    assert not (tmp_path / "out").exists()


def mapping_of(message: str) -> dict[str, str]:
    """Tasks are read only where they are asked for: one alone tells nothing."""
    return {"observation": "task"} if message.startswith("task_index") else {}


def test_a_video_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    root = write_v3(tmp_path / "robot", "video")
    video = root / "videos/observation.images.top/chunk-000/file-000.mp4"
    video.unlink()
    video.parent.rmdir()
    write_video(video, [0, 1])
    with pytest.raises(
        UserError, match=r"episode 2, observation\.images\.top: .* ends before 0\.700 s; it is cut off"
    ):
        imported(root, tmp_path / "out")
    video.write_bytes(video.read_bytes()[:200])
    with pytest.raises(UserError, match=r"file-000\.mp4 cannot be read"):
        imported(root, tmp_path / "out")
