"""What a mixture names, how it is weighted, and what is held out of it."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from toy_data import Shape, write_minari

from gatito.data import build as building
from gatito.data import mixture as module
from gatito.data.build import build
from gatito.data.collection import CollectConfig
from gatito.data.minari_episodes import MinariWriter, open_minari
from gatito.data.mixture import DatasetConfig, HeldOutConfig, MixtureConfig, Part, parts_of, weights_of
from gatito.data.sampler import Sampler
from gatito.data.store import Store
from gatito.data.tasks import EVALUATION_SEEDS, matching
from gatito.data_commands import describe_store
from gatito.errors import UserError
from gatito.recipes import mixture_path
from gatito.tokenizers import TextTokenizer
from gatito.tokenizers.trunk import Trunk

UNIT = spaces.Box(-1, 1, (1,), np.float64)


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory, text: TextTokenizer) -> str:
    path = tmp_path_factory.mktemp("text-model") / "small.model"
    path.write_bytes(text.model)
    return str(path)


def dataset(root: Path, task: str, seeds: range = range(4)) -> Path:
    """Episodes of 2 timesteps whose first observation is their seed / 1000."""
    folder = root / task
    folder.mkdir(parents=True)
    writer = MinariWriter(folder, f"{task}-v0", Shape(UNIT, UNIT), {"gatito_task": task})
    for seed in seeds:
        observations = np.array([[seed / 1000], [0.0], [0.0]])
        ends = {"terminations": [False, True], "truncations": [False, False]}
        buffer = EpisodeBuffer(
            seed=seed, observations=observations, actions=np.zeros((2, 1)), rewards=[0.0, 1.0], infos={}, **ends
        )
        writer.write(buffer, agent="expert")
    writer.close()
    return folder


def entry(source: Path | str, weight: float = 1.0) -> DatasetConfig:
    scheme = "" if str(source).partition(":")[0] in module.SOURCES else "minari:"
    return DatasetConfig(source=f"{scheme}{source}", weight=weight, expert_filter=None)


# What it names


def test_a_pattern_names_every_dataset_below_it(tmp_path: Path) -> None:
    for task in ("a/one", "a/two", "b/one"):
        dataset(tmp_path, task)
    (tmp_path / "a/.two.chunks/0-1/data").mkdir(parents=True)
    (tmp_path / "a/.two.chunks/0-1/data/metadata.json").write_text("{}")
    parts = parts_of(MixtureConfig(datasets=[entry(tmp_path / "a/*"), entry(tmp_path / "b/one")]))
    assert [(part.entry, part.task, part.domain) for part in parts] == [
        (0, "a/one", "a"),
        (0, "a/two", "a"),
        (1, "b/one", "b"),
    ]


def test_a_pattern_does_not_pass_over_a_dataset_without_metadata(tmp_path: Path) -> None:
    for task in ("a/one", "a/two"):
        dataset(tmp_path, task)
    (tmp_path / "a/two/data/metadata.json").unlink()
    with pytest.raises(UserError, match=r"a/two/data/metadata\.json is missing though there are episodes beside it"):
        parts_of(MixtureConfig(datasets=[entry(tmp_path / "a/*")]))


def test_a_pattern_that_finds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'minari:.*/x/\*': the pattern finds no Minari dataset; it runs from"):
        parts_of(MixtureConfig(datasets=[entry(tmp_path / "x/*")]))


def test_a_dataset_that_two_entries_name_is_refused(tmp_path: Path) -> None:
    path = dataset(tmp_path, "a/one")
    with pytest.raises(UserError, match=r"a/one' is named by two entries of the mixture; leave it out of one"):
        parts_of(MixtureConfig(datasets=[entry(tmp_path / "a/*"), entry(path)]))


def test_a_dataset_under_two_spellings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(tmp_path, "a/one")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'minari:\./a/\.\./a/one' is named by two entries"):
        parts_of(MixtureConfig(datasets=[entry("minari:a/one"), entry("minari:./a/../a/one")]))


def test_a_task_without_references_is_refused_before_anything_is_collected(
    tmp_path: Path, text_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "references", dict)
    config = MixtureConfig(
        datasets=[DatasetConfig(source="task:classic/cartpole")], collected=str(tmp_path / "d"), text_model=text_model
    )
    with pytest.raises(UserError, match=r"task:classic/cartpole: the expert filter needs the random policy's return"):
        build(config, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_wrong_domains_are_refused_before_anything_is_built(tmp_path: Path, text_model: str) -> None:
    path = dataset(tmp_path, "a/one")
    config = MixtureConfig(datasets=[entry(path)], domains={"b": 1.0}, text_model=text_model)
    with pytest.raises(UserError, match=r"unknown domain of the mixture|has no weight"):
        build(config, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_task_sources_are_collected_where_they_are_missing(tmp_path: Path, text_model: str) -> None:
    config = MixtureConfig(
        datasets=[
            DatasetConfig(source="task:classic/acrobot,classic/cartpole", expert_filter=None, episodes=2),
            DatasetConfig(source="captions:digits"),
        ],
        collect=CollectConfig(processes=1, agents={"expert": 1.0, "random": 1.0}),
        collected=str(tmp_path / "datasets"),
        text_model=text_model,
    )
    store = build(config, tmp_path / "store")
    assert [d.metadata["task"] for d in store] == ["classic/acrobot", "classic/cartpole", "captions:digits"]
    assert [d.weight for d in store] == [0.25, 0.25, 0.5]
    assert sorted(store.datasets[0].metadata["agents"]) == ["expert", "random"]
    collected = tmp_path / "datasets/classic/acrobot/expert-random-v0"
    times = {path: path.stat().st_mtime_ns for path in collected.rglob("*")}
    assert build(config, tmp_path / "again").sha256 == store.sha256
    assert {path: path.stat().st_mtime_ns for path in collected.rglob("*")} == times


def test_a_task_that_two_task_sources_name_is_refused() -> None:
    config = MixtureConfig(datasets=[entry("task:classic/*"), entry("task:classic/cartpole")])
    with pytest.raises(
        UserError, match=r"task 'classic/cartpole' is named by two task: sources; .* !classic/cartpole"
    ):
        module.tasks_to_collect(config)


def test_tasks_are_named_by_id_group_and_pattern_and_taken_away_by_a_mark() -> None:
    assert matching(["classic/cartpole", "classic/*"])[0] == "classic/cartpole"
    assert len(matching(["ml45-train"])) == 45
    assert matching(["metaworld/door-*", "!ml45-test", "!*-goal-hidden"]) == [
        "metaworld/door-close",
        "metaworld/door-open",
    ]
    with pytest.raises(UserError, match=r"unknown task 'ml45-tran'; did you mean 'ml45-train'\?"):
        matching(["ml45-tran"])


# Weights


PARTS = [
    Part(entry=0, source="minari:1", task="a/one"),
    Part(entry=0, source="minari:2", task="a/two"),
    Part(entry=1, source="minari:3", task="b/one"),
    Part(entry=2, source="text:x", task="text:x"),
]


def mix(**values: Any) -> MixtureConfig:
    return MixtureConfig(datasets=[entry("a", 2), entry("b", 1), entry("text:x", 1)], **values)


def test_datasets_share_the_weight_of_their_entry() -> None:
    np.testing.assert_allclose(weights_of(PARTS, [1, 9, 9, 9], mix()), [0.25, 0.25, 0.25, 0.25])


def test_domains_have_the_weights_that_are_stated() -> None:
    shares = weights_of(PARTS, [1, 9, 9, 9], mix(domains={"a": 6, "b": 3, "text": 1}))
    np.testing.assert_allclose(shares, [0.3, 0.3, 0.3, 0.1])


def test_a_temperature_weighs_by_size() -> None:
    sizes = [100, 400, 900, 100]
    by_size = np.array([200, 800, 900, 100])
    np.testing.assert_allclose(weights_of(PARTS, sizes, mix(temperature=1)), by_size / by_size.sum())
    by_root = np.array([20, 40, 30, 10])
    np.testing.assert_allclose(weights_of(PARTS, sizes, mix(temperature=2)), by_root / by_root.sum())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"domains": {"a": 1, "b": 1}}, "domains: 'text' has no weight; add one, or leave its datasets out"),
        ({"domains": {"a": 1, "b": 1, "text": 1, "aa": 1}}, r"unknown domain of the mixture 'aa'"),
        ({"domains": {"a": -1}}, "weight of domain 'a' is -1, allowed > 0"),
        ({"temperature": 0}, "temperature is 0, allowed > 0, or null"),
        ({"held_out": HeldOutConfig(tasks=["a/thre*"])}, r"held_out.tasks: unknown task of the mixture 'a/thre\*'"),
    ],
)
def test_impossible_mixtures_are_refused(
    values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_sources", lambda entry, config: [entry.source])
    opened = [SimpleNamespace(task=part.task, path=Path(part.source)) for part in PARTS]
    monkeypatch.setattr(module, "open_minari", lambda location: opened["ab".index(location)])
    with pytest.raises(UserError, match=message):
        _ = (config := mix(**values)), weights_of(PARTS, [1] * 4, config), parts_of(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"episodes": 1.0}, "held_out.episodes is 1.0, allowed a share from 0 to below 1"),
        ({"seeds": [[3]]}, r"held_out.seeds: \[3\], expected \[first, stop\)"),
        ({"seeds": [[0, EVALUATION_SEEDS + 1]]}, r"expected \[first, stop\) within \[0, 1073741824\)"),
    ],
)
def test_impossible_splits_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HeldOutConfig(**values)


# Splits


def ids_trained_on(store: Store) -> set[int]:
    """Token ids in many rows; the first observation of each episode tells its seed."""
    sampler = Sampler(store=store, context=64, trunk=Trunk(vocabulary=store.vocabulary), seed=0)
    return {int(i) for index in range(200) for sequence in sampler.row(index) for i in sequence.ids}


def test_held_out_episodes_and_seeds_are_in_the_store_and_never_sampled(tmp_path: Path, text_model: str) -> None:
    path = dataset(tmp_path, "a/one", range(100, 300))
    config = MixtureConfig(
        datasets=[entry(path)], held_out=HeldOutConfig(episodes=0.2, seeds=[[100, 120]]), text_model=text_model
    )
    store = build(config, tmp_path / "store")
    (kept,), (held,) = store.datasets, store.held_out
    assert sorted([*kept.episode_seeds, *held.episode_seeds]) == list(range(100, 300))
    assert set(range(100, 120)) <= set(held.episode_seeds.tolist())
    assert 20 + 20 < held.num_episodes < 20 + 60
    assert kept.weight == 1.0
    assert held.weight == 0.0
    only_held = set(held.ids.tolist()) - set(kept.ids.tolist())
    assert len(only_held) > 10
    assert not only_held & ids_trained_on(store)


def test_what_a_filter_left_out_is_said_once_though_episodes_are_held_out(
    tmp_path: Path, text_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(building, "_kept_episodes", lambda source, config: range(5))
    path = dataset(tmp_path, "a/one", range(8))
    config = MixtureConfig(datasets=[entry(path)], held_out=HeldOutConfig(seeds=[[0, 3]]), text_model=text_model)
    describe_store(build(config, tmp_path / "store"))
    assert capsys.readouterr().out.count("filtered 3 episodes") == 1


def test_more_episodes_move_none_across_the_split(tmp_path: Path, text_model: str) -> None:
    held: list[set[int]] = []
    for n in (50, 150):
        path = dataset(tmp_path / str(n), "a/one", range(n))
        config = MixtureConfig(datasets=[entry(path)], held_out=HeldOutConfig(episodes=0.3), text_model=text_model)
        held.append(set(build(config, tmp_path / f"store-{n}").held_out[0].episode_seeds.tolist()))
    assert held[0] == {seed for seed in held[1] if seed < 50}
    assert len(held[0]) > 5


def test_a_held_out_task_is_known_and_never_sampled(tmp_path: Path, text_model: str) -> None:
    for task in ("a/one", "a/two"):
        dataset(tmp_path, task)
    config = MixtureConfig(
        datasets=[entry(tmp_path / "a/*")], held_out=HeldOutConfig(tasks=["a/tw*"]), text_model=text_model
    )
    store = build(config, tmp_path / "store")
    assert [d.metadata["task"] for d in store.datasets] == ["a/one"]
    assert [d.metadata["task"] for d in store.held_out] == ["a/two"]
    assert store.layouts().keys() == {"a/one", "a/two"}
    with pytest.raises(UserError, match="every task of the mixture is held out; nothing is left to train on"):
        build(dataclasses.replace(config, held_out=HeldOutConfig(tasks=["a/*"])), tmp_path / "none")


def test_the_twins_of_a_held_out_task_are_held_out_with_it() -> None:
    held_out = HeldOutConfig(tasks=["ml45-test", "babyai/go-to-obj", "dmc/finger-spin-pixels"])
    for task in ("metaworld/bin-picking-goal-hidden", "babyai/go-to-obj-symbolic", "dmc/finger-spin"):
        assert held_out.has_task(task)
    for task in ("metaworld/reach-goal-hidden", "babyai/go-to-obj-s4", "dmc/reacher-easy"):
        assert not held_out.has_task(task)


def test_an_episode_of_an_evaluation_seed_is_refused(tmp_path: Path, text_model: str) -> None:
    path = dataset(tmp_path, "a/one", range(EVALUATION_SEEDS - 1, EVALUATION_SEEDS + 1))
    config = MixtureConfig(datasets=[entry(path)], text_model=text_model)
    with pytest.raises(UserError, match=r"a/one, episode 1: its seed 1073741824 is kept for evaluation"):
        build(config, tmp_path / "store")


def test_a_dataset_without_seeds_is_split_by_the_index_of_its_episodes(tmp_path: Path, text_model: str) -> None:
    episodes = [([[0.0]] * 3, [[0.0]] * 2, [1.0, 1.0])] * 40
    path = write_minari(tmp_path, "toy/one", UNIT, UNIT, episodes)
    assert open_minari(path).episode(0).seed is None
    config = MixtureConfig(datasets=[entry(path)], held_out=HeldOutConfig(episodes=0.5), text_model=text_model)
    store = build(config, tmp_path / "store")
    expected = sum(config.held_out.has_episode(i) for i in range(40))
    assert store.held_out[0].num_episodes == expected > 10


def test_an_entry_takes_the_episodes_that_it_asks_for(tmp_path: Path, text_model: str) -> None:
    path = dataset(tmp_path, "a/one", range(20))
    some = dataclasses.replace(entry(path), first_episode=3, episodes=5)
    store = build(MixtureConfig(datasets=[some], text_model=text_model), tmp_path / "store")
    assert store.datasets[0].episode_seeds.tolist() == [3, 4, 5, 6, 7]
    assert store.datasets[0].metadata["filtered_episodes"] == 0
    later = dataclasses.replace(some, first_episode=4)  # the same store, built anew
    store = build(MixtureConfig(datasets=[later], text_model=text_model), tmp_path / "store")
    assert store.datasets[0].episode_seeds.tolist() == [4, 5, 6, 7, 8]


def test_episodes_that_there_are_not_are_refused(tmp_path: Path, text_model: str) -> None:
    path = dataset(tmp_path, "a/one", range(20))
    for first, count, said in ((16, 5, "episodes 16 to 20 are asked for, it has 20"), (20, None, "it has 20")):
        wanted = dataclasses.replace(entry(path), first_episode=first, episodes=count)
        with pytest.raises(UserError, match=said):
            build(MixtureConfig(datasets=[wanted], text_model=text_model), tmp_path / "store")
    with pytest.raises(UserError, match="first_episode of 'text:x' is 2; allowed 0 and more, of minari: sources"):
        DatasetConfig(source="text:x", first_episode=2)


# The mixtures of the package


def packaged(name: str) -> MixtureConfig:
    values = yaml.safe_load(Path(mixture_path(name)).read_text())
    values["datasets"] = [DatasetConfig(**entry) for entry in values["datasets"]]
    values["held_out"], values["collect"] = HeldOutConfig(**values["held_out"]), CollectConfig(**values["collect"])
    return MixtureConfig(**values)


def parts_to_come(config: MixtureConfig) -> list[Part]:
    """The parts of a mixture whose tasks are yet to be collected."""
    return [
        Part(entry=index, source=task, task=task, held_out=config.held_out.has_task(task))
        for index, entry in enumerate(config.datasets)
        for task in (matching(entry.location.split(",")) if entry.scheme == "task" else [entry.source])
    ]


def test_the_mixture_hundred_trains_on_more_than_a_hundred_tasks_of_seven_domains() -> None:
    config = packaged("hundred")
    trained = [part for part in parts_to_come(config) if not part.held_out]
    assert len(module.tasks_to_collect(config)) >= 105
    assert sum("/" in part.task for part in trained) >= 100
    assert {part.domain for part in trained if "/" in part.task} == {
        "babyai", "metaworld", "classic", "box2d", "mujoco", "dmc", "sokoban"
    }  # fmt: skip
    shares = weights_of(trained, [1] * len(trained), config)
    assert sum(s for s, part in zip(shares, trained, strict=True) if part.domain == "babyai") == pytest.approx(4 / 16)


def test_the_mixture_gato_has_the_weights_of_the_paper_s_table_1() -> None:
    config = packaged("gato")
    trained = [part for part in parts_to_come(config) if not part.held_out]
    shares = weights_of(trained, [1] * len(trained), config)
    percent: dict[str, float] = {}
    for share, part in zip(shares, trained, strict=True):
        name = "dmc pixels" if part.task.endswith("-pixels") else part.domain
        percent[name] = percent.get(name, 0.0) + float(share)
    paper = {"atari": 9.5, "babyai": 9.06, "metaworld": 8.96, "dmc pixels": 7.07, "dmc": 4.62, "sokoban": 1.33}
    paper |= {"text": 6.7, "captions": 0.67}
    assert percent == pytest.approx({name: value / sum(paper.values()) for name, value in paper.items()})
    assert not any(part.task.endswith(("-symbolic", "-goal-hidden")) for part in trained)
    assert {part.task for part in parts_to_come(config) if part.held_out} == set(matching(["ml45-test"]))
