"""What is exported loads with the libraries of others, and comes back to the bit."""

from pathlib import Path
from typing import Any

import datasets
import minari
import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from toy_data import Shape, Walk

from gatito.cli import run
from gatito.data.formats.importing import import_episodes
from gatito.data.formats.source import ImportConfig
from gatito.data.minari_episodes import EXPLORATORY, MinariSource, MinariWriter, open_minari
from gatito.data.publish import published
from gatito.data.recording import collect_episode
from gatito.data.tasks import EVALUATION_SEEDS, TaskSpec
from gatito.errors import UserError

GREY = spaces.Box(0, 255, (20, 16, 1), np.uint8)
SPACES = {
    "vector": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "double": spaces.Box(-1.0, 1.0, (2, 2), np.float64),
    "discrete": spaces.Discrete(5, start=-2),
    "symbols": spaces.MultiDiscrete([3, 4]),
    "bits": spaces.MultiBinary(4),
    "grey": GREY,
    "colour": spaces.Box(0, 255, (16, 32, 3), np.uint8),
    "frames": spaces.Dict({f"frame_{k}": GREY for k in range(4)}),
    "text and discrete": spaces.Dict(text=spaces.Text(9), discrete=spaces.MultiDiscrete([7, 7])),
    "nested": spaces.Dict(
        a=spaces.Tuple((spaces.Discrete(3), spaces.Dict(b=GREY, c=spaces.Box(-1, 1, (2,), np.float32)))),
        d=spaces.Text(5),
    ),
}  # fmt: skip
ACTIONS = [spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(4), spaces.Tuple((spaces.Discrete(2), GREY))]


def drawn(observation_space: spaces.Space, action_space: spaces.Space, folder: Path) -> MinariSource:
    """Two episodes of random values: one that was cut and one that terminated, with a random action executed."""
    observation_space.seed(0)
    action_space.seed(1)
    env = Shape(observation_space, action_space)
    stated = {"algorithm_name": "somebody", "gatito_task": "toy/drawn", "ref_min_score": -1.25}
    with published(folder) as begun:
        writer = MinariWriter(begun, "toy/drawn-v0", env, stated)
        for T, seed in ((3, None), (1, 7)):
            values = [_stacked([space.sample() for _ in range(n)]) for space, n in
                      ((observation_space, T + 1), (action_space, T))]  # fmt: skip
            buffer = EpisodeBuffer(
                seed=seed,
                observations=values[0],
                actions=values[1],
                rewards=list(np.random.default_rng(T).normal(size=T)),
                terminations=[*[False] * (T - 1), seed is not None],
                truncations=[*[False] * (T - 1), seed is None],
                infos={EXPLORATORY: np.array([*[True] * T, False])[:, None]},
            )
            writer.write(buffer, agent=f"agent {T}")
        writer.close()
    return open_minari(folder)


def _stacked(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: _stacked([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(_stacked(list(column)) for column in zip(*values, strict=True))
    return values if isinstance(values[0], str) else np.stack(values)


def assert_same(found: MinariSource, expected: MinariSource) -> None:
    assert found.dataset.observation_space == expected.dataset.observation_space
    assert found.dataset.action_space == expected.dataset.action_space
    assert len(found) == len(expected)
    for i in range(len(expected)):
        (data, said), (other, stated) = found.read(i), expected.read(i)
        assert _plain(data) == _plain(other)
        assert (said.get("seed"), said["agent"]) == (stated.get("seed"), stated["agent"])


def _plain(tree: Any) -> Any:
    """Nested values with every number's dtype, which can be compared."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map(_plain, tree))
    return (str(tree.dtype), tree.shape, tree.tobytes()) if isinstance(tree, np.ndarray) else list(tree)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("to", ["hf", "lerobot", "minari"])
def test_what_is_exported_and_imported_again_is_equal_to_the_bit(to: str, name: str, tmp_path: Path) -> None:
    before = drawn(SPACES[name], ACTIONS[len(name) % 2], tmp_path / "before")
    run(["data", "export", str(tmp_path / "before"), "--to", to, "--out", str(tmp_path / "out")])
    source = f"{to}:{tmp_path / 'out'}"
    import_episodes(ImportConfig(source=source, task="toy/again"), tmp_path / "after")
    after = open_minari(tmp_path / "after")
    assert_same(after, before)
    assert (after.task, after.agent, after.stated("ref_min_score")) == ("toy/again", "somebody", -1.25)
    assert [e.targets.tolist() for e in after.episodes()] == [e.targets.tolist() for e in before.episodes()]


def test_what_is_exported_loads_with_datasets(tmp_path: Path) -> None:
    before = drawn(SPACES["colour"], spaces.Discrete(4), tmp_path / "before")
    run(["data", "export", str(tmp_path / "before"), "--to", "hf", "--out", str(tmp_path / "out")])
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert {"image_observations", "discrete_actions", "rewards"} <= set(rows.column_names)
    for i, row in enumerate(rows):
        episode = before.episode(i)
        np.testing.assert_array_equal(np.stack(row["image_observations"]), episode.observations)
        assert row["discrete_actions"] == episode.actions.tolist()
        assert row["rewards"] == episode.rewards.tolist()
        assert (row["seed"], row["agent"]) == (episode.seed, episode.agent)


def test_what_is_exported_loads_with_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = drawn(SPACES["vector"], spaces.Discrete(4), tmp_path / "before")
    run(["data", "export", str(tmp_path / "before"), "--to", "minari", "--out", str(tmp_path / "root/toy/out-v0")])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    loaded = minari.MinariDataset(MinariStorage.read(tmp_path / "root/toy/out-v0/data"))
    for i, episode in enumerate(loaded.iterate_episodes()):
        np.testing.assert_array_equal(episode.observations, before.read(i)[0]["observations"])


def test_frames_that_were_stacked_are_one_picture_again(tmp_path: Path) -> None:
    before = drawn(SPACES["frames"], spaces.Discrete(4), tmp_path / "before")
    run(["data", "export", str(tmp_path / "before"), "--to", "hf", "--out", str(tmp_path / "out")])
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    picture = np.asarray(rows[0]["image_observations"][2])
    frames = before.episode(0).observations
    np.testing.assert_array_equal(picture, np.concatenate([frames[f"frame_{k}"][2] for k in range(4)], axis=-1))


def test_jat_s_columns_come_back_as_they_were(tmp_path: Path) -> None:
    rng, lengths = np.random.default_rng(0), (4, 3)
    floats = datasets.List(datasets.List(datasets.Value("float32")))
    features = {"continuous_observations": floats, "continuous_actions": floats}
    rows = {
        "continuous_observations": [rng.normal(size=(T, 3)).astype(np.float32).tolist() for T in lengths],
        "continuous_actions": [rng.normal(size=(T, 2)).astype(np.float32).tolist() for T in lengths],
    }
    (tmp_path / "jat").mkdir()
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    table.to_parquet(tmp_path / "jat/train.parquet")
    import_episodes(ImportConfig(source=f"hf:{tmp_path / 'jat'}", task="toy/jat"), tmp_path / "minari")
    run(["data", "export", str(tmp_path / "minari"), "--to", "hf", "--out", str(tmp_path / "out")])
    back = pq.read_table(next((tmp_path / "out/data").glob("*.parquet")))
    for name, values in rows.items():
        assert back.column(name).to_pylist() == values


def test_the_card_names_the_files_and_passes_for_yaml(tmp_path: Path) -> None:
    import yaml

    drawn(SPACES["vector"], spaces.Discrete(4), tmp_path / "before")
    run(["data", "export", str(tmp_path / "before"), "--to", "hf", "--out", str(tmp_path / "out")])
    head = (tmp_path / "out/README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(head)["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]


def test_large_datasets_are_split_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gatito.data.formats import export

    before = drawn(SPACES["vector"], spaces.Discrete(4), tmp_path / "before")
    monkeypatch.setattr(export, "FILE_BYTES", 1)
    run(["data", "export", str(tmp_path / "before"), "--to", "hf", "--out", str(tmp_path / "out")])
    names = sorted(path.name for path in (tmp_path / "out/data").iterdir())
    assert names == ["train-00000.parquet", "train-00001.parquet"]
    import_episodes(ImportConfig(source=f"hf:{tmp_path / 'out'}", task="toy/again"), tmp_path / "after")
    assert_same(open_minari(tmp_path / "after"), before)


def test_a_dataset_with_errors_is_not_exported_and_nothing_is_left(tmp_path: Path) -> None:
    env = Walk()
    spec = TaskSpec(id="toy/walk", make=Walk, expert=lambda env: lambda _: env.action_space.sample())
    with published(tmp_path / "walk") as begun:
        writer = MinariWriter(begun, "toy/walk-v0", env, {})
        writer.write(collect_episode(spec, env, EVALUATION_SEEDS))
        writer.close()
    with pytest.raises(UserError, match=r"walk has \d+ errors; gatito data check says which"):
        run(["data", "export", str(tmp_path / "walk"), "--to", "hf", "--out", str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["walk"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: b"{", "its gatito metadata cannot be read"),
        (
            lambda text: text.replace(b'"continuous_observations"', b'"rewards"'),
            "names other columns than its spaces",
        ),
        (lambda text: text.replace(b'\\"type\\": \\"Box\\"', b'\\"type\\": \\"os.system\\"'), "cannot be read"),
    ],
)
def test_foreign_metadata_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    drawn(SPACES["vector"], spaces.Discrete(4), tmp_path / "before")
    run(["data", "export", str(tmp_path / "before"), "--to", "hf", "--out", str(tmp_path / "out")])
    file = next((tmp_path / "out/data").glob("*.parquet"))
    table = pq.read_table(file)
    marks = dict(table.schema.metadata)
    changed = change(marks[b"gatito"])
    assert changed != marks[b"gatito"]
    pq.write_table(table.replace_schema_metadata({**marks, b"gatito": changed}), file)
    with pytest.raises(UserError, match=message):
        import_episodes(ImportConfig(source=f"hf:{tmp_path / 'out'}", task="t"), tmp_path / "after")
