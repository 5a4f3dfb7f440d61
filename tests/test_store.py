"""From Minari datasets, captions and texts to a store, and back."""

import json
import mmap
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from toy_data import write_minari

from gatito.data import build as building
from gatito.data.build import build, open_layout
from gatito.data.checks import checked_tokens
from gatito.data.domains import digits
from gatito.data.minari_episodes import open_minari
from gatito.data.mixture import DatasetConfig, MixtureConfig
from gatito.data.store import ARRAYS, Store, open_store
from gatito.data.tasks import Reference
from gatito.errors import UserError
from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary, pair_tokens, text_tokens

OBSERVATION = spaces.Dict(
    camera=spaces.Box(0, 255, (16, 20, 3), np.uint8),
    mission=spaces.Text(32),
    place=spaces.Box(-1, 1, (2,), np.float32),
)
ACTION = spaces.Box(-1, 1, (2,), np.float64)
DOCUMENTS = ["the value of an object", "a class is a statement.\nthe end"]


def image_episode(seed: int, T: int) -> tuple[list[Any], list[Any], list[float]]:
    rng = np.random.default_rng(seed)
    observations = [
        {
            "camera": rng.integers(0, 256, (16, 20, 3), dtype=np.uint8),
            "mission": ["go", "stop"][seed % 2],
            "place": rng.uniform(-1, 1, 2).astype(np.float32),
        }
        for _ in range(T + 1)
    ]
    return observations, list(rng.uniform(-1, 1, (T, 2))), [1.0] * T


Episodes = list[tuple[list[Any], list[Any], list[float]]]


def number_episodes(returns: list[float], T: int = 3) -> Episodes:
    """Episodes of the second dataset: Discrete in, Box out."""
    return [([0, 1, 2, 0][: T + 1], [np.zeros(2)] * T, [value] + [0.0] * (T - 1)) for value in returns]


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory, text: TextTokenizer) -> str:
    path = tmp_path_factory.mktemp("text-model") / "small.model"
    path.write_bytes(text.model)
    return str(path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two Minari datasets and a folder of texts."""
    root = tmp_path_factory.mktemp("sources")
    folder = root / "texts"
    folder.mkdir()
    for i, document in enumerate(DOCUMENTS):
        (folder / f"{i}.txt").write_text(document)
    (folder / "not.bin").write_bytes(b"\xff")
    return {
        "images": write_minari(
            root,
            "toy/images",
            OBSERVATION,
            ACTION,
            [image_episode(0, 4), image_episode(1, 6)],
            algorithm_name="expert",
            gatito_task="toy/images",
        ),
        "numbers": write_minari(
            root, "toy/numbers", spaces.Discrete(3), ACTION, number_episodes([1, 2]), algorithm_name="someone"
        ),
        "texts": folder,
    }


@pytest.fixture(scope="module")
def store(sources: dict[str, Path], text_model: str, tmp_path_factory: pytest.TempPathFactory) -> Store:
    config = MixtureConfig(
        datasets=[
            DatasetConfig(source=f"minari:{sources['images']}", weight=2.0, expert_filter=None),
            DatasetConfig(source=f"minari:{sources['numbers']}", expert_filter=None),
            DatasetConfig(source=f"text:{sources['texts']}", weight=0.5),
            DatasetConfig(source="captions:digits"),
        ],
        text_model=text_model,
    )
    return build(config, tmp_path_factory.mktemp("built") / "store")


def assert_same(a: TokenSequence, b: TokenSequence) -> None:
    for name in ("ids", "loss_mask", "local_positions", "patches", "patch_intervals", "timestep_starts"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        assert getattr(a, name).dtype == getattr(b, name).dtype, name


# What is written is what is read


def test_episodes_read_back_equal(store: Store, sources: dict[str, Path]) -> None:
    for dataset, key in zip(store.datasets[:2], ("images", "numbers"), strict=True):
        source = open_minari(sources[key])
        layout = open_layout(source, store.vocabulary, store.text)
        assert dataset.num_episodes == len(source) == 2
        for index, episode in enumerate(source.episodes()):
            expected = layout.episode_tokens(episode.observations, episode.actions)
            assert len(expected) > 10
            assert_same(dataset.episode(index), expected)
        assert dataset.metadata["layout"] == json.loads(json.dumps(layout.to_json()))


def test_documents_and_captions_read_back_equal(store: Store) -> None:
    documents, captions = store.datasets[2:]
    assert documents.num_episodes == 2
    for index, document in enumerate(DOCUMENTS):
        assert_same(documents.episode(index), text_tokens(document, store.text))
    pairs = digits.training_pairs()
    assert captions.num_episodes == len(pairs) == 1437
    for index in (0, 700, 1436):
        image, caption = pairs[index]
        assert caption.startswith("the digit ")
        assert_same(captions.episode(index), pair_tokens(image, caption, store.vocabulary, store.text))


def test_any_run_of_timesteps_reads_back_with_its_patches(store: Store) -> None:
    dataset = store.datasets[0]
    patch = store.vocabulary.patch
    whole = dataset.sequence(0, 10)
    assert len(whole.patches) == 2 * 10
    for first in range(10):
        for last in range(first + 1, 11):
            assert_same(dataset.sequence(first, last), whole.timesteps(first, last, patch))


def test_the_description_counts_what_is_there(store: Store) -> None:
    images, numbers, documents, captions = (dataset.metadata for dataset in store)
    assert [d.kind for d in store] == ["control", "control", "text", "pairs"]
    assert [d.weight * 4.5 for d in store] == pytest.approx([2.0, 1.0, 0.5, 1.0])
    assert (images["task"], images["agents"], images["episodes"], images["timesteps"]) == (
        "toy/images",
        ["expert"],
        2,
        10,
    )
    assert (images["patches"], images["targets"]) == (20, 20)
    tokens = {"text": 25, "continuous": 40, "discrete": 0, "separator": 10, "patch": 20}
    assert images["modalities"] == tokens | {"text": images["tokens"] - 70}
    assert store.datasets[0].episode_returns.tolist() == [
        1.0 * T for T in np.diff(store.datasets[0].episode_timesteps)
    ]
    assert store.datasets[0].episode_seeds.tolist() == [-1, -1]
    assert (numbers["task"], numbers["agents"], numbers["tokens"]) == ("toy/numbers", ["someone"], 6 * 4)
    assert documents["tokens"] == documents["targets"] == documents["timesteps"]
    assert captions["patches"] == captions["timesteps"] == 1437
    assert store.layouts().keys() == {"toy/images", "toy/numbers"}


def test_pixels_are_kept_as_uint8_and_ids_small(store: Store) -> None:
    dataset = store.datasets[0]
    assert dataset.patches.dtype == np.uint8
    assert dataset.ids.dtype == np.uint16
    assert (dataset.folder / "patches.bin").stat().st_size == 20 * 16 * 16 * 3
    base = dataset.patches
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)  # pixels stay on disk until they are used


def test_a_store_opened_again_is_the_same(store: Store) -> None:
    again = open_store(store.folder)
    assert again.sha256 == store.sha256
    assert again.vocabulary == store.vocabulary == Vocabulary(text_size=300)
    assert again.text.sha256 == store.text.sha256
    assert_same(again.datasets[0].episode(1), store.datasets[0].episode(1))
    layout = Layout.from_json(again.layouts()["toy/images"], again.text)
    assert layout.num_action_tokens == 2


def test_the_same_sources_give_the_same_store(sources: dict[str, Path], text_model: str, tmp_path: Path) -> None:
    def made(name: str, weight: float = 1.0) -> str:
        datasets = [DatasetConfig(source=f"minari:{sources['numbers']}", weight=weight, expert_filter=None)]
        return build(MixtureConfig(datasets=datasets, text_model=text_model), tmp_path / name).sha256

    assert made("a") == made("b")
    assert made("c", weight=2.0) == made("a2")  # alone, any weight is all of it


# Damage


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_one_flipped_byte_in_any_file_is_refused_naming_it(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store.folder, copy)
    open_store(copy)
    flipped = 0
    for path in files_of(copy):
        whole = path.read_bytes()
        for place in sorted(
            {int(share * (len(whole) - 1)) for share in (0, 0.13, 0.37, 0.5, 0.71, 1)} if whole else ()
        ):
            broken = bytearray(whole)
            broken[place] ^= 1
            path.write_bytes(broken)
            with pytest.raises(UserError) as error:
                open_store(copy)
            assert str(path) in str(error.value), (path, place)
            flipped += 1
        path.write_bytes(whole)
    assert flipped > 150
    open_store(copy)


def test_every_byte_of_the_descriptions_counts(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store.folder, copy)
    for path in (copy / "mixture.json", copy / store.datasets[1].name / "dataset.json"):
        whole = path.read_bytes()
        digits_at = [i for i, byte in enumerate(whole) if chr(byte).isdigit()]
        assert len(digits_at) > 50
        for place in digits_at[:: len(digits_at) // 25]:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(UserError) as error:
                open_store(copy, verify=False)
            assert str(path) in str(error.value)
        path.write_bytes(whole)


def test_a_file_that_lost_its_end_is_refused(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store.folder, copy)
    path = copy / store.datasets[0].name / "ids.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"ids\.bin has \d+ bytes, expected \d+; build the store"):
        open_store(copy)


def test_a_missing_file_is_named(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store.folder, copy)
    missing = 0
    for path in files_of(copy):
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises(UserError) as error:
            open_store(copy)
        assert str(path) in str(error.value)
        path.write_bytes(whole)
        missing += 1
    assert missing == 2 + 4 * (1 + len(ARRAYS))


def test_another_schema_is_refused(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store.folder, copy)
    values = json.loads((copy / "mixture.json").read_text())
    (copy / "mixture.json").write_text(json.dumps({**values, "schema": 99}))
    with pytest.raises(UserError, match=r"mixture\.json: schema 99, this gatito reads 3; build the store again"):
        open_store(copy)


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenized store at .*mixture\.json is missing; run gatito data build"):
        open_store(tmp_path)


# Bad data


@pytest.fixture
def build_one(tmp_path: Path, text_model: str) -> Callable[..., Store]:
    """Write one Minari dataset and build a store of it; whatever happens, nothing half-written may be left."""

    def run(
        observation: spaces.Space,
        action: spaces.Space,
        episodes: Episodes,
        *,
        expert_filter: float | None = None,
        **changes: Any,
    ) -> Store:
        path = write_minari(tmp_path / "minari", "toy/one", observation, action, episodes, algorithm_name="x")
        dataset = DatasetConfig(source=f"minari:{path}", expert_filter=expert_filter)
        try:
            return build(MixtureConfig(datasets=[dataset], text_model=text_model, **changes), tmp_path / "store")
        finally:
            left = {entry.name for entry in tmp_path.iterdir()}
            assert left in ({"minari"}, {"minari", "store"})
            assert ("store" in left) == ((tmp_path / "store" / "mixture.json").is_file())

    return run


def box_episode(observations: Any, actions: Any) -> tuple[list[Any], list[Any], list[float]]:
    T = len(actions)
    return list(np.asarray(observations, np.float64)), list(np.asarray(actions, np.float64)), [1.0] * T


UNIT = spaces.Box(-1, 1, (1,), np.float64)


def test_a_nan_is_refused_naming_the_episode_and_nothing_is_left(tmp_path: Path, build_one: Any) -> None:
    good = box_episode([[0], [0], [0]], [[0], [0]])
    bad = box_episode([[0], [np.nan], [0]], [[0], [0]])
    with pytest.raises(UserError, match=r"toy/one, episode 1, observation, timestep 1: NaN or Inf in \[nan\]"):
        build_one(UNIT, UNIT, [good, bad])
    assert not (tmp_path / "store").exists()


def test_a_nan_in_the_last_observation_which_is_dropped_does_no_harm(build_one: Any) -> None:
    assert build_one(UNIT, UNIT, [box_episode([[0], [0], [np.nan]], [[0], [0]])]).datasets[0].num_timesteps == 2


def test_a_nan_action_is_refused(build_one: Any) -> None:
    with pytest.raises(UserError, match=r"toy/one, episode 0, action, timestep 1: NaN or Inf"):
        build_one(UNIT, UNIT, [box_episode([[0], [0], [0]], [[0], [np.inf]])])


def test_actions_slightly_outside_are_clipped_and_counted(build_one: Any) -> None:
    store = build_one(UNIT, UNIT, [box_episode([[0]] * 5, [[1.0005], [-1.0005], [1.0], [0.5]])])
    metadata = store.datasets[0].metadata
    assert (metadata["clipped_actions"], metadata["clipped_observations"]) == (2, 0)
    sequence = store.datasets[0].episode(0)
    assert (sequence.ids[sequence.loss_mask] - 300).tolist() == [1023, 0, 1023, 768]


def test_actions_far_outside_are_refused_with_what_to_do(build_one: Any) -> None:
    message = (
        r"toy/one, episode 1, timestep 1: action\[0\] is -1\.1, allowed \[-1\.0, 1\.0\]; build with --clip-actions to"
    )
    good = box_episode([[0]] * 3, [[1.0], [0.5]])
    with pytest.raises(UserError, match=message):
        build_one(UNIT, UNIT, [good, box_episode([[0]] * 3, [[0.0], [-1.1]])])


def test_with_clip_actions_they_are_clipped_and_counted(build_one: Any) -> None:
    episodes = [box_episode([[0]] * 4, [[1.1], [-55.0], [0.0]])]
    store = build_one(UNIT, UNIT, episodes, clip_actions=True)
    assert store.datasets[0].metadata["clipped_actions"] == 2
    sequence = store.datasets[0].episode(0)
    assert (sequence.ids[sequence.loss_mask] - 300).tolist() == [1023, 0, 512]


def test_an_action_with_one_bound_is_clipped_to_it(build_one: Any) -> None:
    space = spaces.Box(-np.inf, 1.0, (1,), np.float64)
    store = build_one(UNIT, space, [box_episode([[0]] * 4, [[1.0], [9.0], [-9.0]])], clip_actions=True)
    sequence = store.datasets[0].episode(0)
    at, beyond, below = sequence.ids[sequence.loss_mask].tolist()
    assert at == beyond
    assert below < at
    assert store.datasets[0].metadata["clipped_actions"] == 1


def test_observations_outside_their_bounds_are_counted(build_one: Any) -> None:
    store = build_one(UNIT, UNIT, [box_episode([[1.5], [0.0], [-2.0], [9.0]], [[0]] * 3)])  # the last is dropped
    assert store.datasets[0].metadata["clipped_observations"] == 2
    sequence = store.datasets[0].episode(0)
    assert (sequence.ids[sequence.timestep_starts[:-1]] - 300).tolist() == [1023, 512, 0]


def test_counts_add_up_over_episodes(text: TextTokenizer, vocabulary: Vocabulary, tmp_path: Path) -> None:
    episodes = [box_episode([[2.0], [0.0], [0.0]], [[1.0001], [0]])]
    path = write_minari(tmp_path, "toy/one", UNIT, UNIT, episodes * 2)
    source = open_minari(path)
    layout = open_layout(source, vocabulary, text)
    counts = [checked_tokens(layout, episode, where="x")[1] for episode in source.episodes()]
    total = counts[0] + counts[1]
    assert (total.observations, total.actions) == (2, 2)


def test_a_space_that_cannot_be_serialized_names_the_dataset(build_one: Any) -> None:
    with pytest.raises(UserError, match=r"toy/one: action space has 2000 discrete values, allowed 1 to 1024"):
        build_one(UNIT, spaces.Discrete(2000), [([np.zeros(1)] * 3, [1, 2], [0.0, 0.0])])


# The expert filter


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """References of the toy task: the random policy scores 2."""
    monkeypatch.setattr(building, "references", lambda: {"toy/one": Reference(random=2.0, expert=99.0)})


@pytest.mark.usefixtures("known")
def test_the_filter_drops_episodes_below_80_percent_and_counts_them(build_one: Any) -> None:
    # W = 1, the best episode 12: kept from 2 + 0.8 * (12 - 2) = 10 on
    returns = [12.0, 10.0, 9.99, 2.0, 11.0]
    store = build_one(spaces.Discrete(3), ACTION, number_episodes(returns), expert_filter=0.8)
    assert store.datasets[0].num_episodes == 3
    assert store.datasets[0].metadata["filtered_episodes"] == 2


@pytest.mark.usefixtures("known")
def test_without_the_filter_all_are_kept(build_one: Any) -> None:
    store = build_one(spaces.Discrete(3), ACTION, number_episodes([12.0, 2.0]))
    assert store.datasets[0].num_episodes == 2
    assert store.datasets[0].metadata["filtered_episodes"] == 0


@pytest.mark.usefixtures("known")
def test_a_nan_reward_names_its_episode(build_one: Any) -> None:
    with pytest.raises(
        UserError, match=r"toy/one, episode 1, timestep 0: the reward is nan; repair or drop the episode"
    ):
        build_one(spaces.Discrete(3), ACTION, number_episodes([12.0, np.nan, 3.0]), expert_filter=0.8)


def test_the_filter_needs_the_random_policy_s_return(build_one: Any) -> None:
    message = r"toy/one: the expert filter needs the random policy's return of task 'toy/one'; .* expert_filter: null"
    with pytest.raises(UserError, match=message):
        build_one(spaces.Discrete(3), ACTION, number_episodes([1.0]), expert_filter=0.8)


# The mixture


def test_an_empty_mixture_is_refused() -> None:
    with pytest.raises(UserError, match="the mixture has no datasets; list at least one under 'datasets:'"):
        MixtureConfig(datasets=[])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_no_share_are_refused(weight: float) -> None:
    with pytest.raises(
        UserError, match=rf"weight of 'captions:digits' is {weight}, allowed > 0; leave the dataset out"
    ):
        DatasetConfig(source="captions:digits", weight=weight)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("minary:toy/one", r"source 'minary:toy/one': unknown kind of source 'minary'; did you mean 'minari'\?"),
        ("digits", r"source 'digits': unknown kind of source 'digits'; "),
        ("txt:x", r"did you mean 'text'\?"),
    ],
)
def test_an_unknown_kind_of_source_is_refused_with_the_nearest(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DatasetConfig(source=source)


def config_of(text_model: str, *sources: str) -> MixtureConfig:
    return MixtureConfig(
        datasets=[DatasetConfig(source=source, expert_filter=None) for source in sources], text_model=text_model
    )


def test_a_source_that_is_listed_twice_is_refused(tmp_path: Path, text_model: str, sources: dict[str, Path]) -> None:
    source = f"text:{sources['texts']}"
    with pytest.raises(UserError, match=r"source 'text:.*' is listed twice; change its weight instead"):
        build(config_of(text_model, source, source), tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_sources_whose_folders_would_have_one_name_get_two(tmp_path: Path, text_model: str) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/b", "a-b"):
        (tmp_path / name).write_text("some words " * 50)
    datasets = [DatasetConfig(source=f"text:{tmp_path / name}") for name in ("a/b", "a-b")]
    store = build(MixtureConfig(datasets=datasets, text_model=text_model), tmp_path / "store")
    assert len({dataset.folder for dataset in store}) == 2


def test_two_datasets_of_one_task_with_other_spaces_are_refused(tmp_path: Path, text_model: str) -> None:
    paths = [
        write_minari(
            tmp_path,
            f"toy/{i}",
            space,
            UNIT,
            [box_episode([[0], [0]], [[0]])],
            algorithm_name="x",
            gatito_task="toy/t",
        )
        for i, space in enumerate([UNIT, spaces.Box(-2, 2, (1,), np.float64)])
    ]
    datasets = [DatasetConfig(source=f"minari:{path}", expert_filter=None) for path in paths]
    with pytest.raises(UserError, match=r"are both of task 'toy/t' and differ in their spaces"):
        build(MixtureConfig(datasets=datasets, text_model=text_model), tmp_path / "store")
    with pytest.raises(UserError, match=r"mixture\.json is missing"):
        open_store(tmp_path / "store")


def test_a_missing_part_of_a_dataset_is_named(tmp_path: Path, text_model: str) -> None:
    path = write_minari(tmp_path, "toy/t", UNIT, UNIT, [box_episode([[0], [0]], [[0]])] * 3, algorithm_name="x")
    for file in (path / "data" / "1").rglob("*"):
        if file.is_file():
            file.unlink()
    dataset = DatasetConfig(source=f"minari:{path}", expert_filter=None)
    with pytest.raises(UserError, match=r"toy/t, episode 1: cannot be read"):
        build(MixtureConfig(datasets=[dataset], text_model=text_model), tmp_path / "store")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("minari:/nowhere", r"no Minari dataset at /nowhere: .*metadata\.json is missing"),
        ("text:/nowhere.txt", r"cannot read /nowhere\.txt: it is missing"),
        ("captions:digit", r"unknown caption dataset 'digit'; did you mean 'digits'\?"),
    ],
)
def test_a_source_that_is_not_there_is_named_and_nothing_is_left(
    tmp_path: Path, text_model: str, source: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(config_of(text_model, "captions:digits", source), tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_texts_without_text_are_refused(tmp_path: Path, text_model: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"text:.*/empty: the folder holds no files of \.txt, \.md, \.jsonl, \.parquet, \.arrow"
    ):
        build(config_of(text_model, f"text:{tmp_path}/empty"), tmp_path / "store")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"cannot read .*latin\.txt as UTF-8 text"):
        build(config_of(text_model, f"text:{tmp_path}/latin.txt"), tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "latin.txt"]


def test_an_output_that_exists_is_never_overwritten(tmp_path: Path, text_model: str) -> None:
    out = tmp_path / "store"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match=r"store exists and is no store; choose another --out or remove it"):
        build(config_of(text_model, "captions:digits"), out)
    assert (out / "mine.txt").read_text() == "keep"


def files_with_times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.bin")}


def test_adding_a_dataset_rewrites_no_other(tmp_path: Path, text_model: str, sources: dict[str, Path]) -> None:
    first = f"minari:{sources['numbers']}"
    build(config_of(text_model, first), tmp_path / "store")
    before = files_with_times(tmp_path / "store")
    grown = build(config_of(text_model, "captions:digits", first), tmp_path / "store")
    assert [d.metadata["source"] for d in grown] == ["captions:digits", first]
    assert [d.weight for d in grown] == [0.5, 0.5]
    after = files_with_times(tmp_path / "store")
    assert len(before) == len(ARRAYS)
    assert {path: after[path] for path in before} == before
    weighted = MixtureConfig(
        datasets=[DatasetConfig(source=first, weight=3, expert_filter=None), DatasetConfig(source="captions:digits")],
        text_model=text_model,
    )
    assert [d.weight for d in build(weighted, tmp_path / "store")] == [0.75, 0.25]
    assert files_with_times(tmp_path / "store") == after


def test_a_dataset_whose_files_or_settings_changed_is_built_anew(tmp_path: Path, text_model: str) -> None:
    def built(returns: list[float], threshold: float | None = None, random: float = 0.0) -> int:
        shutil.rmtree(tmp_path / "minari", ignore_errors=True)
        path = write_minari(tmp_path / "minari", "toy/n", spaces.Discrete(3), ACTION, number_episodes(returns))
        dataset = DatasetConfig(source=f"minari:{path}", expert_filter=threshold)
        store = build(MixtureConfig(datasets=[dataset], text_model=text_model), tmp_path / "store")
        return store.datasets[0].num_episodes

    assert built([1.0, 2.0]) == 2
    assert built([1.0, 2.0, 3.0]) == 3
    assert [path.name for path in (tmp_path / "store").iterdir() if path.is_dir()] != []


def test_a_build_that_was_killed_continues(
    tmp_path: Path, text_model: str, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(text_model, f"minari:{sources['numbers']}", "captions:digits")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(building, "write_documents", killed)
        with pytest.raises(KeyboardInterrupt):
            build(config, tmp_path / "store")
    before = files_with_times(tmp_path / "store")
    assert len(before) == len(ARRAYS)
    with pytest.raises(UserError, match=r"mixture\.json is missing"):
        open_store(tmp_path / "store")
    store = build(config, tmp_path / "store")
    assert len(store.datasets) == 2
    after = files_with_times(tmp_path / "store")
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize("name", ["ids.bin", "dataset.json", "../mixture.json"])
def test_building_again_repairs_what_is_damaged(
    name: str, tmp_path: Path, text_model: str, sources: dict[str, Path]
) -> None:
    config = config_of(text_model, f"minari:{sources['numbers']}", "captions:digits")
    whole = build(config, tmp_path / "store")
    path = whole.datasets[0].folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"build the store again"):
        open_store(tmp_path / "store")
    untouched = (tmp_path / "store/captions-digits/ids.bin").stat().st_mtime_ns
    assert build(config, tmp_path / "store").sha256 == whole.sha256
    open_store(tmp_path / "store")
    assert (tmp_path / "store/captions-digits/ids.bin").stat().st_mtime_ns == untouched


def test_datasets_that_change_places_are_not_built_again(tmp_path: Path, text_model: str) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/b", "a-b"):
        (tmp_path / name).write_text(f"some words of {name} " * 50)
    names = [f"text:{tmp_path / name}" for name in ("a/b", "a-b")]
    build(config_of(text_model, *names), tmp_path / "store")
    before = files_with_times(tmp_path / "store")
    store = build(config_of(text_model, *reversed(names)), tmp_path / "store")
    assert files_with_times(tmp_path / "store") == before
    assert [d.metadata["source"] for d in store] == [*reversed(names)]


def test_a_store_of_another_text_model_is_refused(tmp_path: Path, text_model: str) -> None:
    build(config_of(text_model, "captions:digits"), tmp_path / "store")
    with pytest.raises(UserError, match=r"is a store of another vocabulary or text model; choose another --out"):
        build(MixtureConfig(datasets=[DatasetConfig(source="captions:digits")]), tmp_path / "store")


def test_held_out_digits_are_never_trained_on() -> None:
    held_out, training = digits.held_out_pairs(), digits.training_pairs()
    assert (len(held_out), len(training)) == (360, 1437)
    trained = {image.tobytes() for image, _ in training}
    assert sum(image.tobytes() in trained for image, _ in held_out) == 0
    assert {image.shape for image, _ in held_out} == {(16, 16, 1)}
