"""Minari's Arrow layout: what we write Minari reads, what it writes we read, to the bit."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPACES
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from gatito.data.chunk import Chunk, DamagedChunk, Finished
from gatito.data.episode import stack
from gatito.data.minari_arrow import (
    EncodedEpisode,
    encode_episode,
    is_one_file,
    read_episode,
    read_metadata,
    write_episode,
)

ACTIONS = spaces.Tuple([spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3), spaces.Text(8)])


def buffer(observation_space: spaces.Space, T: int = 4, seed: int | None = 7) -> EpisodeBuffer:
    observation_space.seed(0)
    ACTIONS.seed(1)
    return EpisodeBuffer(
        seed=seed,
        observations=stack(observation_space, [observation_space.sample() for _ in range(T + 1)]),
        actions=stack(ACTIONS, [ACTIONS.sample() for _ in range(T)]),
        rewards=[0.5 * t for t in range(T)],
        terminations=[False] * (T - 1) + [True],
        truncations=[False] * T,
        infos={"exploratory": np.arange(T + 1)[:, None] % 2 == 0, "wind": np.arange(2.0 * (T + 1)).reshape(-1, 2)},
    )


def storage(folder: Path, observation_space: spaces.Space) -> Any:
    folder.mkdir()
    return MinariStorage.new(folder, observation_space, ACTIONS, None, "arrow", jpeg_encoding=False)


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert sorted(a) == sorted(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, list):
        assert list(map(str, a)) == list(map(str, b))
    else:
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("space", [pytest.param(space, id=name) for name, space in SPACES])
def test_what_we_write_minari_reads_and_what_it_writes_we_read(space: spaces.Space, tmp_path: Path) -> None:
    episode = buffer(space)
    theirs, ours = storage(tmp_path / "theirs", space), storage(tmp_path / "ours", space)
    theirs.update_episodes([episode])
    write_episode(tmp_path / "ours", 0, encode_episode(episode, space, ACTIONS, {"agent": "x"}))
    read_by_us = read_episode(tmp_path / "theirs", 0, space, ACTIONS)
    (read_by_them,) = ours.get_episodes([0])
    (expected,) = theirs.get_episodes([0])
    for name in ("observations", "actions", "rewards", "terminations", "truncations", "infos"):
        assert_same(expected[name], read_by_us[name])
        assert_same(expected[name], read_by_them[name])


def test_an_episode_without_infos_and_seed_reads_back(tmp_path: Path) -> None:
    space = spaces.Discrete(3)
    plain = EpisodeBuffer(
        observations=np.array([0, 1, 2]), actions=buffer(space, 2).actions, rewards=[1.0, 2.0],
        terminations=[False, True], truncations=[False, False],
    )  # fmt: skip
    write_episode(tmp_path, 3, encode_episode(plain, space, ACTIONS, {}))
    read = read_episode(tmp_path, 3, space, ACTIONS)
    assert read["observations"].tolist() == [0, 1, 2]
    assert read["infos"] == {}
    metadata = read_metadata(tmp_path, 3)
    assert len(metadata.pop("sha256")) == 64
    assert metadata == {"id": 3, "total_steps": 2}


CHUNK_SPACE = spaces.Box(-1, 1, (3,), np.float64)


def write_chunk(path: Path) -> tuple[Chunk, list[EncodedEpisode]]:
    """A finished chunk of three episodes and a seed on which the expert gave up, and its episodes."""
    chunk = Chunk(path=path, seeds=range(6, 10))
    made = [
        encode_episode(buffer(CHUNK_SPACE, 2 + seed, seed), CHUNK_SPACE, ACTIONS, {"agent": "random"})
        for seed in (6, 7, 9)
    ]
    with chunk.continued() as writer:
        assert writer.seeds == range(6, 10)
        for episode in made[:2]:
            writer.append(episode)
        writer.give_up(8, "stuck")
        writer.append(made[2])
    return chunk, made


def test_the_episodes_of_a_chunk_come_back_to_the_byte(tmp_path: Path) -> None:
    chunk, made = write_chunk(tmp_path / "chunk")
    assert list(chunk.episodes()) == made
    assert chunk.finished() == Finished(episodes=3, failed=["stuck"], whole=True)


def test_a_chunk_cut_off_anywhere_goes_on_after_its_last_whole_episode(tmp_path: Path) -> None:
    chunk, made = write_chunk(tmp_path / "chunk")
    whole = {file: file.read_bytes() for file in chunk.path.iterdir()}
    ends = list(itertools.accumulate(len(episode.content) for episode in made))
    lefts = set()
    for file, content in whole.items():
        for size in range(0, len(content), 41):
            for other, bytes_ in whole.items():
                other.write_bytes(bytes_[:size] if other == file else bytes_)
            assert not chunk.finished().whole
            with chunk.continued() as writer:
                lefts.add(len(writer.seeds))
                assert (chunk.path / "episodes.bin").stat().st_size in (0, *ends)
                for seed in writer.seeds:
                    if seed == 8:
                        writer.give_up(8, "stuck")
                    else:
                        writer.append(made[(6, 7, 9).index(seed)])
            assert {file: file.read_bytes() for file in chunk.path.iterdir()} == whole
    assert lefts == {1, 2, 3, 4}


def test_a_chunk_with_a_flipped_byte_is_refused_and_goes_on_before_it(tmp_path: Path) -> None:
    chunk, made = write_chunk(tmp_path / "chunk")
    file = chunk.path / "episodes.bin"
    broken = bytearray(file.read_bytes())
    broken[len(made[0].content) + 100] ^= 1
    file.write_bytes(broken)
    with pytest.raises(DamagedChunk, match="chunk: the episode of seed 7 does not match its SHA-256"):
        list(chunk.episodes())
    with chunk.continued() as writer:
        assert writer.seeds == range(7, 10)


def test_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    space = spaces.Box(-1, 1, (3,), np.float64)
    write_episode(tmp_path, 0, encode_episode(buffer(space), space, ACTIONS, {}))
    path, sha256 = tmp_path / "0/part-0.arrow", read_metadata(tmp_path, 0)["sha256"]
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        broken = bytearray(whole)
        broken[place] ^= 1
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="does not match its SHA-256"):
            read_episode(tmp_path, 0, space, ACTIONS, sha256)


def test_values_of_another_dtype_than_the_space_are_refused(tmp_path: Path) -> None:
    written, declared = spaces.Box(-1, 1, (3,), np.float64), spaces.Box(-1, 1, (3,), np.float32)
    write_episode(tmp_path, 0, encode_episode(buffer(written), written, ACTIONS, {}))
    with pytest.raises(ValueError, match=r"values of float64 where the space Box.* has float32"):
        read_episode(tmp_path, 0, declared, ACTIONS)


def test_an_episode_that_minari_appended_to_is_not_taken_for_one_file(tmp_path: Path) -> None:
    space = spaces.Discrete(3)
    write_episode(tmp_path, 0, encode_episode(buffer(space), space, ACTIONS, {}))
    assert is_one_file(tmp_path, 0)
    (tmp_path / "0/part-1.arrow").write_bytes(b"")
    assert not is_one_file(tmp_path, 0)
