"""Datasets of other formats become Minari datasets, whole or not at all, with every value where it was."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import gymnasium as gym
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from PIL import Image
from toy_data import Walk

from gatito.cli import run
from gatito.data.build import open_layout
from gatito.data.formats.importing import import_episodes, open_source, task_of
from gatito.data.formats.source import ImportConfig, parse_mapping
from gatito.data.minari_episodes import MinariSource, MinariWriter, open_minari
from gatito.data.publish import published
from gatito.data.recording import collect_episode
from gatito.data.tasks import TaskSpec
from gatito.errors import UserError
from gatito.tokenizers import TextTokenizer, Vocabulary

LENGTHS = (4, 3, 5)


def imported(source: str, out: Path, task: str = "toy/task", **values: Any) -> MinariSource:
    import_episodes(ImportConfig(source=source, task=task, **values), out)
    return open_minari(out)


def d4rl(path: Path, **changes: Any) -> Path:
    """Three episodes end to end: the first terminates, the second is cut, the third is unfinished."""
    rng, N = np.random.default_rng(0), sum(LENGTHS)
    columns = {
        "observations": rng.normal(size=(N, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (N, 2)).astype(np.float32),
        "rewards": np.arange(N, dtype=np.float32),
        "terminals": np.arange(N) == 3,
        "timeouts": np.arange(N) == 6,
    } | changes
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            if values is not None:
                file[name] = values
    return path


def robomimic(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        for i in (10, 2):
            group = file.create_group(f"data/demo_{i}")
            group["obs/eef"] = np.arange(8.0).reshape(4, 2) + i
            group["next_obs/eef"] = np.arange(2.0, 10).reshape(4, 2) + i
            group["obs/image"] = np.full((4, 16, 16, 3), i, np.uint8)
            group["actions"] = np.zeros((4, 7))
            group["rewards"], group["dones"] = np.zeros(4), np.array([0, 0, 0, int(i == 2)])
    return path


def jat(folder: Path, features: dict[str, Any], rows: dict[str, Any], config: str = "toy") -> Path:
    """A dataset repository with one configuration, as the library itself writes it."""
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    (folder / config).mkdir(parents=True)
    table.to_parquet(folder / config / "train-00000-of-00001.parquet")
    card = {"configs": [{"config_name": config, "data_files": [{"split": "train", "path": f"{config}/train-*"}]}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    return folder


def of_values() -> tuple[dict[str, Any], dict[str, Any]]:
    rng, floats = np.random.default_rng(1), datasets.Value("float32")
    features = {
        "continuous_observations": datasets.List(datasets.List(floats)),
        "continuous_actions": datasets.List(datasets.List(floats)),
        "rewards": datasets.List(floats),
    }
    rows = {
        "continuous_observations": [rng.normal(size=(T, 3)).astype(np.float32).tolist() for T in LENGTHS],
        "continuous_actions": [rng.normal(size=(T, 2)).astype(np.float32).tolist() for T in LENGTHS],
        "rewards": [[float(t) for t in range(T)] for T in LENGTHS],
    }
    return features, rows


def of_frames(channels: int) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(2)
    features = {
        "image_observations": datasets.List(datasets.Image()),
        "discrete_actions": datasets.List(datasets.Value("int64")),
        "rewards": datasets.List(datasets.Value("float32")),
    }
    rows = {
        "image_observations": [list(rng.integers(0, 256, (T, 20, 16, channels), np.uint8)) for T in LENGTHS],
        "discrete_actions": [list(range(T)) for T in LENGTHS],
        "rewards": [[0.0] * T for T in LENGTHS],
    }
    return features, rows


def test_d4rl_episodes_end_where_they_terminate_or_are_cut(tmp_path: Path) -> None:
    source = imported(f"hdf5:{d4rl(tmp_path / 'a.hdf5')}", tmp_path / "out")
    with h5py.File(tmp_path / "a.hdf5") as file:
        for name, read in (("observations", "observations"), ("actions", "actions"), ("rewards", "rewards")):
            found = np.concatenate([getattr(episode, read) for episode in source.episodes()])
            np.testing.assert_array_equal(found, file[name][:])
    assert [len(episode) for episode in source.episodes()] == list(LENGTHS)
    ends = [source.read(i)[0] for i in range(3)]
    assert [bool(data["terminations"][-1]) for data in ends] == [True, False, False]
    assert [bool(data["truncations"][-1]) for data in ends] == [False, True, True]


def test_the_last_observation_is_the_stored_one_or_the_one_before_it(tmp_path: Path) -> None:
    following = np.full((sum(LENGTHS), 3), 7, np.float32)
    with_it = imported(f"hdf5:{d4rl(tmp_path / 'a.hdf5', next_observations=following)}", tmp_path / "a")
    without = imported(f"hdf5:{d4rl(tmp_path / 'b.hdf5')}", tmp_path / "b")
    seen = [source.read(0)[0]["observations"] for source in (with_it, without)]
    assert [len(observations) for observations in seen] == [LENGTHS[0] + 1] * 2
    assert seen[0][-1].tolist() == [7, 7, 7]
    assert seen[1][-1].tolist() == seen[1][-2].tolist()


def test_where_nothing_says_which_episodes_were_cut_their_limit_does(tmp_path: Path) -> None:
    file = d4rl(tmp_path / "a.hdf5", timeouts=None)
    with pytest.raises(UserError, match=r"a\.hdf5: no field says which episodes were cut .* --max-episode-steps"):
        open_source(ImportConfig(source=f"hdf5:{file}", task="t"))
    source = imported(f"hdf5:{file}", tmp_path / "out", max_episode_steps=3)
    assert [len(episode) for episode in source.episodes()] == [3, 1, 3, 3, 2]


def test_a_row_that_terminates_was_not_cut(tmp_path: Path) -> None:
    both = np.arange(sum(LENGTHS)) == 3
    source = imported(f"hdf5:{d4rl(tmp_path / 'a.hdf5', timeouts=both)}", tmp_path / "out")
    assert source.read(0)[0]["truncations"].tolist() == [False] * 4


def test_robomimic_demonstrations_are_taken_by_number_with_all_observations(tmp_path: Path) -> None:
    source = imported(f"hdf5:{robomimic(tmp_path / 'r.hdf5')}", tmp_path / "out", agent="people")
    assert sorted(source.dataset.observation_space.spaces) == ["eef", "image"]
    data = source.read(0)[0]
    assert data["observations"]["eef"][[0, -1]].tolist() == [[2, 3], [10, 11]]  # demo_2, and its next_obs
    assert data["terminations"][-1]
    assert source.read(1)[0]["truncations"][-1]
    assert [episode.agent for episode in source.episodes()] == ["people"] * 2


def test_columns_of_numbers_are_read_as_they_are(tmp_path: Path) -> None:
    features, rows = of_values()
    source = imported(f"hf:{jat(tmp_path / 'jat', features, rows)}/toy", tmp_path / "out")
    for i, episode in enumerate(source.episodes()):
        assert episode.observations.tolist() == rows["continuous_observations"][i]
        assert episode.actions.tolist() == rows["continuous_actions"][i]
        assert episode.rewards.tolist() == rows["rewards"][i]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_read_without_loss(channels: int, tmp_path: Path) -> None:
    features, rows = of_frames(3)
    frames = [[frame[..., :channels].squeeze() for frame in episode] for episode in rows["image_observations"]]
    pictures = [[Image.fromarray(frame) for frame in episode] for episode in frames]
    source = imported(
        f"hf:{jat(tmp_path / 'jat', features, rows | {'image_observations': pictures})}", tmp_path / "out"
    )
    for i, episode in enumerate(source.episodes()):
        np.testing.assert_array_equal(episode.observations.squeeze(), np.stack(frames[i]))
    assert source.dataset.action_space == spaces.Discrete(5)


def test_four_channels_are_four_frames(tmp_path: Path, vocabulary: Vocabulary, text: TextTokenizer) -> None:
    features, rows = of_frames(4)
    pictures = [[Image.fromarray(frame) for frame in episode] for episode in rows["image_observations"]]
    folder = jat(tmp_path / "jat", features, rows | {"image_observations": pictures})
    source = imported(f"hf:{folder}/toy", tmp_path / "out")
    seen = source.episode(1).observations
    stacked = np.concatenate([seen[f"frame_{k}"] for k in range(4)], axis=-1)
    np.testing.assert_array_equal(stacked, np.stack(rows["image_observations"][1]))
    assert open_layout(source, vocabulary, text).num_observation_tokens == 4 * 2 + 1


def test_texts_and_symbols_are_seen_together(tmp_path: Path) -> None:
    features = {
        "text_observations": datasets.List(datasets.Value("string")),
        "discrete_observations": datasets.List(datasets.List(datasets.Value("int64"))),
        "discrete_actions": datasets.List(datasets.Value("int64")),
        "rewards": datasets.List(datasets.Value("float32")),
    }
    rows = {
        "text_observations": [["go to the key"] * T for T in LENGTHS],
        "discrete_observations": [[[t, 9 - t] for t in range(T)] for T in LENGTHS],
        "discrete_actions": [[t % 3 for t in range(T)] for T in LENGTHS],
        "rewards": [[0.0] * T for T in LENGTHS],
    }
    source = imported(f"hf:{jat(tmp_path / 'jat', features, rows)}/toy", tmp_path / "out")
    episode = source.episode(2)
    assert episode.observations["text"] == rows["text_observations"][2]
    assert episode.observations["discrete"].tolist() == rows["discrete_observations"][2]
    assert source.dataset.observation_space["discrete"] == spaces.MultiDiscrete([5, 10])


def walk_dataset(folder: Path, seeds: range = range(3)) -> Path:
    env = Walk()
    spec = TaskSpec(id="toy/walk", make=Walk, expert=lambda env: lambda _: env.action_space.sample())
    with published(folder) as begun:
        writer = MinariWriter(begun, "toy/walk-v0", env, {"algorithm_name": "expert", "ref_min_score": 1.5})
        for seed in seeds:
            writer.write(collect_episode(spec, env, seed), agent="expert")
        writer.close()
    return folder


def test_a_minari_dataset_is_taken_as_it_is(tmp_path: Path) -> None:
    before = open_minari(walk_dataset(tmp_path / "walk"))
    source = imported(f"minari:{tmp_path / 'walk'}", tmp_path / "out", task="toy/again")
    assert source.dataset.observation_space == before.dataset.observation_space
    assert (source.task, source.agent, source.stated("ref_min_score")) == ("toy/again", "expert", 1.5)
    for i in range(3):
        (data, said), (expected, stated) = source.read(i), before.read(i)
        assert (said["seed"], said["agent"]) == (stated["seed"], "expert")
        for key in ("place", "image"):
            np.testing.assert_array_equal(data["observations"][key], expected["observations"][key])
        assert data["observations"]["mission"] == expected["observations"]["mission"]
        for key in ("actions", "rewards", "terminations", "truncations"):
            np.testing.assert_array_equal(data[key], expected[key])


def test_parts_of_a_minari_dataset_are_chosen_by_the_mapping(tmp_path: Path) -> None:
    source = f"minari:{walk_dataset(tmp_path / 'walk')}"
    one = imported(source, tmp_path / "one", mapping={"observation": "observations/place"})
    assert one.dataset.observation_space == Walk().observation_space["place"]
    two = {"observation.where": "observations/place", "observation.goal": "observations/mission"}
    both = imported(source, tmp_path / "two", mapping=two)
    assert sorted(both.dataset.observation_space.spaces) == ["goal", "where"]
    np.testing.assert_array_equal(both.episode(1).observations["where"], one.episode(1).observations)


@pytest.mark.filterwarnings("ignore:.*(None|Skipping|skipping).*:UserWarning")
def test_minari_s_own_files_of_several_parts_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    ends = {"terminations": [False, True], "truncations": [False, False]}
    buffers = [
        EpisodeBuffer(
            observations=np.array([0, 1, 2]), actions=np.array([0, i]), rewards=[0.0, 1.0], infos={}, **ends
        )
        for i in (0, 1)
    ]
    minari.create_dataset_from_buffers(
        "toy/parts-v0", buffers, observation_space=spaces.Discrete(3), action_space=spaces.Discrete(2),
        data_format="arrow",
    )  # fmt: skip
    source = imported("minari:toy/parts-v0", tmp_path / "out")
    assert [episode.actions.tolist() for episode in source.episodes()] == [[0, 0], [0, 1]]


def test_with_an_environment_its_spaces_are_taken_and_values_compared(tmp_path: Path) -> None:
    features, rows = of_frames(1)
    grey = [[Image.fromarray(frame[..., 0]) for frame in episode] for episode in rows["image_observations"]]
    rows["image_observations"] = grey
    source = f"hf:{jat(tmp_path / 'jat', features, rows)}/toy"
    image = spaces.Box(0, 255, (20, 16, 1), np.uint8)
    config = ImportConfig(source=source, task="t")
    import_episodes(config, tmp_path / "out", given=(image, spaces.Discrete(9)))
    assert open_minari(tmp_path / "out").dataset.action_space == spaces.Discrete(9)
    with pytest.raises(UserError, match=r"row 0, action, timestep 2: value 2, allowed \[0, 1\]; .* without --env"):
        import_episodes(config, tmp_path / "small", given=(image, spaces.Discrete(2)))
    assert not (tmp_path / "small").exists()


def test_a_missing_mapping_is_answered_with_the_fields(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "own.hdf5", "w") as file:
        file["state"], file["torque"] = np.zeros((6, 3)), np.zeros((6, 2), np.float32)
    with pytest.raises(UserError) as error:
        run(["data", "import", f"hdf5:{tmp_path}/own.hdf5", "--out", str(tmp_path / "out")])
    said = str(error.value)
    assert "it is not known which field is the observation; say so: --map observation=FIELD" in said
    assert "  state   float64   3\n  torque  float32   2" in said
    mapping = {"observation": "state", "action": "torque"}
    source = imported(f"hdf5:{tmp_path}/own.hdf5", tmp_path / "out", mapping=mapping, max_episode_steps=3)
    assert len(source) == 2


def test_a_mapping_names_roles_and_fields_that_there_are(tmp_path: Path) -> None:
    assert parse_mapping("observation.a=x/y,action=z") == {"observation.a": "x/y", "action": "z"}
    for typed in ("observation", "=x", "action="):
        with pytest.raises(UserError, match="expected ROLE=FIELD"):
            parse_mapping(typed)
    with pytest.raises(UserError, match="gives action twice"):
        parse_mapping("action=a,action=b")
    file = d4rl(tmp_path / "a.hdf5")
    for mapping, message in (
        ({"observatoin": "observations"}, "unknown role 'observatoin'; did you mean 'observation'"),
        ({"action": "acton"}, "unknown field 'acton'; did you mean 'actions'"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(ImportConfig(source=f"hdf5:{file}", task="t", mapping=mapping))


def test_task_ids_come_from_the_user_the_environment_or_the_source() -> None:
    assert task_of("hdf5:/data/Half Cheetah.hdf5", None, None) == "imported/half-cheetah"
    assert task_of("hf:jat/jat/mujoco-ant", None, "Ant-v5") == "Ant-v5"
    assert task_of("hf:jat/jat/mujoco-ant", "mujoco/ant", "Ant-v5") == "mujoco/ant"
    for bad in ("../up", "/root", "a/../b", "a//b", "module:id"):
        with pytest.raises(UserError, match="allowed is domain/name"):
            ImportConfig(source="hdf5:x", task=bad)


def test_an_id_with_a_colon_from_a_file_is_refused(tmp_path: Path) -> None:
    folder = walk_dataset(tmp_path / "walk")
    path = folder / "data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gatito_task": "os:system"}))
    with pytest.raises(UserError, match="task 'os:system': allowed is domain/name"):
        run(["data", "export", str(folder), "--to", "minari", "--out", str(tmp_path / "out")])


def with_nan(values: np.ndarray) -> np.ndarray:
    values[5, 1] = np.nan
    return values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": with_nan(np.zeros((12, 3)))}, "episode 1, observation, timestep 1: .*NaN"),
        ({"actions": with_nan(np.zeros((12, 2)))}, "episode 1, action, timestep 1: .*NaN"),
        ({"rewards": np.full(12, np.inf)}, "episode 0, timestep 0: the reward is inf"),
    ],
)
def test_numbers_that_are_none_are_refused_by_place(
    changes: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        imported(f"hdf5:{d4rl(tmp_path / 'a.hdf5', **changes)}", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]


def absurd(file: h5py.File) -> None:
    del file["observations"]
    file.create_dataset("observations", (12, 1 << 40), "f4", chunks=(1, 1 << 10))


def link_out(file: h5py.File) -> None:
    file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")


def link_within(file: h5py.File) -> None:
    file["elsewhere"] = h5py.SoftLink("/observations")


def loop(file: h5py.File) -> None:
    file.create_group("infos")["above"] = file["/"]


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((12,), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "raw", (12,))
    file.create_virtual_dataset("raw", layout)


def external(file: h5py.File) -> None:
    file.create_dataset("raw", (12,), "u1", external=[("/etc/passwd", 0, 12)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (absurd, r"/observations claims \d+ bytes of which 0 are stored"),
        (link_out, r"/elsewhere is a link \(ExternalLink\)"),
        (link_within, r"/elsewhere is a link \(SoftLink\)"),
        (loop, "/infos/above is another name of a group"),
        (virtual, "/raw keeps its values in other files"),
        (external, "/raw keeps its values in other files"),
    ],
)
def test_hostile_hdf5_files_are_refused(change: Callable[[h5py.File], None], message: str, tmp_path: Path) -> None:
    path = d4rl(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(UserError, match=message):
        imported(f"hdf5:{path}", tmp_path / "out")


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = d4rl(tmp_path / "a.hdf5")
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match=r"a\.hdf5: no HDF5 file"):
        imported(f"hdf5:{path}", tmp_path / "out")


def parquet_of(folder: Path) -> Path:
    return folder / "toy/train-00000-of-00001.parquet"


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    folder = jat(tmp_path / "jat", *of_values())
    content = bytearray(parquet_of(folder).read_bytes())
    content[4:200] = bytes(196)
    parquet_of(folder).write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet"):
        imported(f"hf:{folder}/toy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    folder = jat(tmp_path / "jat", *of_values())
    pq.write_table(pa.table({"rewards": [[1]]}), folder / "toy/train-00001-of-00002.parquet")
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet: its columns are not those of .*rewards"):
        open_source(ImportConfig(source=f"hf:{folder}/toy", task="t"))


def packed(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (width, height)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ({"bytes": packed(5000, 5000), "path": None}, "timestep 1: a picture of 5000x5000, allowed"),
        ({"bytes": packed(16, 20)[:45], "path": None}, "timestep 1: the picture cannot be decoded"),
        ({"bytes": None, "path": "/etc/passwd"}, "timestep 1: a picture that names another file"),
        (
            {"bytes": packed(16, 16), "path": None},
            r"timestep 1: a picture of \(16, 16, 1\), the first is \(20, 16, 1\)",
        ),
    ],
)
def test_pictures_that_are_none_are_refused(picture: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = {
        "image_observations": [[{"bytes": packed(16, 20), "path": None}, picture]],
        "discrete_actions": [[0, 1]],
    }
    (tmp_path / "toy").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "toy/train.parquet")
    with pytest.raises(UserError, match=message):
        imported(f"hf:{tmp_path}/toy", tmp_path / "out")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[[1.0, 2.0], [3.0]]], "list 1 has 1 values where the first timestep has 2"),
        ([[[1.0, 2.0], [3.0, None]]], "a value is missing"),
        ([[[1.0, 2.0]]], "continuous_observations has 1 rows, expected 2 as of actions"),
    ],
)
def test_lists_that_do_not_fit_are_refused(column: Any, message: str, tmp_path: Path) -> None:
    rows = {"continuous_observations": column, "continuous_actions": [[[0.0], [1.0]]]}
    (tmp_path / "toy").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "toy/train.parquet")
    with pytest.raises(UserError, match=message):
        imported(f"hf:{tmp_path}/toy", tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hdf:x", "unknown format 'hdf'; did you mean 'hdf5'"),
        ("hdf5:{}.hdf5", r"nowhere\.hdf5 is missing"),
        ("hf:{}/a", "no such folder; on the hub it is hf:OWNER/NAME"),
        ("minari:{}", "no Minari dataset at .*nowhere"),
        ("lerobot:{}", r"nowhere/meta/info\.json: no LeRobot dataset"),
    ],
)
def test_what_is_not_there_is_named(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_source(ImportConfig(source=source.format(tmp_path / "nowhere"), task="t"))


@pytest.mark.parametrize("scheme", ["hdf5", "robomimic", "hf", "minari"])
def test_ranges_of_episodes_are_those_of_all(scheme: str, tmp_path: Path) -> None:
    sources = {
        "hdf5": lambda: f"hdf5:{d4rl(tmp_path / 'a.hdf5')}",
        "robomimic": lambda: f"hdf5:{robomimic(tmp_path / 'r.hdf5')}",
        "hf": lambda: f"hf:{jat(tmp_path / 'jat', *of_values())}/toy",
        "minari": lambda: f"minari:{walk_dataset(tmp_path / 'walk')}",
    }
    source = open_source(ImportConfig(source=sources[scheme](), task="t"))
    whole = [buffer.rewards for buffer, _ in source.episodes()]
    for first in range(len(whole)):
        for last in range(first, len(whole) + 2):
            assert [buffer.rewards for buffer, _ in source.episodes(first, last)] == whole[first:last]


def test_a_split_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path) -> None:
    folder = jat(tmp_path / "jat", *of_values())
    with pytest.raises(UserError, match="unknown split 'trian'; did you mean 'train'"):
        open_source(ImportConfig(source=f"hf:{folder}/toy", task="t", split="trian"))


def test_an_imported_dataset_is_filtered_by_the_returns_that_it_states(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = d4rl(tmp_path / "a.hdf5")  # returns of 6, 15 and 45
    out, store = str(tmp_path / "out"), str(tmp_path / "store")
    told = ["--task", "toy/scored", "--random-return", "0", "--expert-return", "50", "--license", "CC-BY-4.0"]
    run(["data", "import", f"hdf5:{file}", "--out", out, *told])
    run(["data", "info", out])
    assert "0.00    50.00" in capsys.readouterr().out
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f"datasets:\n  - source: minari:{out}\n")
    run(["data", "build", "--config", str(mixture), "--out", store])
    metadata = json.loads(next(Path(store).glob("*/dataset.json")).read_text())
    assert (metadata["episodes"], metadata["filtered_episodes"], metadata["license"]) == (1, 2, "CC-BY-4.0")


@pytest.mark.slow
def test_an_imported_task_is_trained_prompted_and_evaluated_like_our_own(tmp_path: Path) -> None:
    env = gym.make("CartPole-v1", max_episode_steps=40)
    rows: dict[str, list[Any]] = {"continuous_observations": [], "discrete_actions": [], "rewards": []}
    for seed in range(8):
        observation, done = env.reset(seed=seed)[0], False
        seen: list[Any] = []
        while not done:
            action = int(observation[2] + observation[3] > 0)
            following, reward, terminated, truncated, _ = env.step(action)
            seen.append((observation.tolist(), action, float(reward)))
            observation, done = following, terminated or truncated
        for name, values in zip(rows, zip(*seen, strict=True), strict=True):
            rows[name].append(list(values))
    floats = datasets.Value("float32")
    features = {
        "continuous_observations": datasets.List(datasets.List(floats)),
        "discrete_actions": datasets.List(datasets.Value("int64")),
        "rewards": datasets.List(floats),
    }
    folder = jat(tmp_path / "jat", features, rows)
    data, store, trained = (str(tmp_path / name) for name in ("data", "store", "run"))
    known = ["--env", "CartPole-v1", "--random-return", "20"]
    run(["data", "import", f"hf:{folder}/toy", "--out", data, "--agent", "rule", *known])
    run(["data", "check", data])
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f"datasets:\n  - source: minari:{data}\n    expert_filter: null\n")
    run(["data", "build", "--config", str(mixture), "--out", store])
    steps = ["--train.steps", "3", "--train.batch", "2"]
    run(["train", "--config", "tiny", "--data", store, "--out", trained, *steps])
    played = ["--episodes", "2", "--prompt", "none,beginning", "--demonstrations-from", data, "--videos", "0"]
    run(["eval", trained, "--env", "CartPole-v1", *played, "--out", str(tmp_path / "eval")])
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert {(row["id"], row["prompt"]) for row in results["tasks"]} == {
        ("CartPole-v1", "none"), ("CartPole-v1", "beginning"),
    }  # fmt: skip
