"""What the README promises in code works as written."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from gatito import cli
from gatito.data import tasks
from gatito.data.build import build
from gatito.data.collect import collect
from gatito.data.collection import CollectConfig
from gatito.data.mixture import DatasetConfig, MixtureConfig
from gatito.eval.agent import load_agent
from gatito.eval.config import EvaluationConfig
from gatito.eval.evaluate import evaluate_task
from gatito.parsing import normalised
from gatito.train.configs import ModelConfig, Recipe, TrainConfig
from gatito.train.trainer import train

README = Path(__file__).parents[1] / "README.md"


class FakeEntry:
    """The entry point that the README's pyproject.toml declares."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def load(self) -> object:
        return self.module.tasks


@pytest.fixture
def my_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    block = re.search(r"```python\n(.*?)```", README.read_text(), re.S)
    assert block
    code = block.group(1)
    assert len(code.splitlines()) <= 42, "the README says 30 lines, imports and blanks aside"
    (tmp_path / "my_package.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("my_package")
    monkeypatch.setattr(tasks, "entry_points", lambda group: [FakeEntry(module)])
    tasks.registry.cache_clear()
    tasks.references.cache_clear()
    yield module
    sys.modules.pop("my_package")
    tasks.registry.cache_clear()
    tasks.references.cache_clear()


def test_your_own_environment_is_collected_trained_and_evaluated(my_package: ModuleType, tmp_path: Path) -> None:
    dataset = collect(["mine/follow"], tmp_path / "datasets", CollectConfig(episodes=20, processes=1))[0]
    build(MixtureConfig(datasets=[DatasetConfig(source=f"minari:{dataset}")]), tmp_path / "store")
    recipe = Recipe(
        model=ModelConfig(width=32, layers=1, heads=1, feed_forward=64),
        train=TrainConfig(steps=60, batch=8, context=64, warmup=5, lr=5e-3),
    )
    train(recipe, tmp_path / "store", tmp_path / "run")
    agent = load_agent(tmp_path / "run")
    env = my_package.Follow()
    observation, _ = env.reset(seed=0)
    agent.reset(task="mine/follow")
    assert env.action_space.contains(agent.act(observation))
    result = evaluate_task(agent.model, agent.processor, "mine/follow", EvaluationConfig(episodes=5))
    assert result.episodes == 5
    assert result.expert == my_package.tasks()[0].reference.expert


def test_the_readme_references_are_what_the_environment_gives(my_package: ModuleType) -> None:
    from gatito.eval.references import measure_references

    measured = dict(measure_references(["mine/follow"], episodes=50))["mine/follow"]
    stated = my_package.tasks()[0].reference
    assert measured["random"] == pytest.approx(stated.random, rel=0.15)
    assert measured["expert"] == pytest.approx(stated.expert, rel=0.15)


def test_the_readme_mixture_and_commands_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = README.read_text()
    monkeypatch.chdir(tmp_path)
    lines = text.splitlines()
    first = lines.index("    datasets:")
    end = lines.index("", first)
    (tmp_path / "mixture.yaml").write_text("\n".join(line[4:] for line in lines[first:end]))
    commands = [line.split("#")[0].split()[1:] for line in lines if line.startswith("    gatito ")]
    assert len(commands) >= 6
    for command in commands:
        parser = cli.build_parser(command)
        parser.parse_args(normalised(command, parser))
    for task in re.findall(r"\b(?:classic|box2d|babyai|metaworld)/[a-z0-9-]+", text):
        if not task.endswith("noisy-v0"):
            assert task in tasks.registry(), task
