"""What a context begins with: which timesteps of which demonstrations, and which are refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from simulated import GRID, Points, always_three, points
from toy import TRUNKS, ToyEnv, layout_of, tiny_model, toy_sequence

from gatito.data.collect import collect
from gatito.data.collection import CollectConfig
from gatito.data.sampler import prompt_budget
from gatito.data.tasks import PROMPT_SEEDS, ExpertFailed, Reference, TaskSpec
from gatito.errors import UserError
from gatito.eval.prompts import Prompt, Prompts, datasets_of, prompt_of
from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary
from gatito.tokenizers.trunk import Trunk

CONTEXT = 64
KNOWN = Reference(random=0.0, expert=20.0)


@pytest.fixture
def layout(vocabulary: Vocabulary, text: TextTokenizer) -> Layout:
    return layout_of(Points(), vocabulary, text)  # 3 numbers, separator, action: 5 tokens a timestep


@pytest.fixture
def trunk(vocabulary: Vocabulary) -> Trunk:
    return Trunk(vocabulary=vocabulary)


def demonstration(layout: Layout, seed: int = 0, length: int = 20) -> TokenSequence:
    env = ToyEnv(Points.observation_space, Points.action_space, length)
    return toy_sequence(env, layout, seed)


def part_of(layout: Layout, trunk: Trunk, part: Prompt, *shown: TokenSequence, seed: int = 0) -> TokenSequence:
    named = [(f"demonstration {i}", sequence) for i, sequence in enumerate(shown)]
    prompt = prompt_of(named, trunk, CONTEXT, part, np.random.default_rng(seed))
    assert prompt is not None
    return prompt


def is_at(prompt: TokenSequence, sequence: TokenSequence) -> int:
    """The timestep of a sequence at which a prompt begins."""
    starts = sequence.timestep_starts
    found = [t for t in range(20) if np.array_equal(sequence.ids[starts[t] : starts[t] + len(prompt)], prompt.ids)]
    assert len(found) == 1
    return found[0]


def test_a_prompt_is_whole_timesteps_of_half_the_context(layout: Layout, trunk: Trunk) -> None:
    shown = demonstration(layout)
    for part, first in (("beginning", 0), ("end", 14)):
        prompt = part_of(layout, trunk, part, shown)  # type: ignore[arg-type]
        assert (prompt.num_timesteps, len(prompt)) == (6, 30)  # of 32 positions
        assert is_at(prompt, shown) == first
    firsts = set()
    for seed in range(40):
        prompt = part_of(layout, trunk, "uniform", shown, seed=seed)
        firsts.add(is_at(prompt, shown))
        assert prompt.num_timesteps == min(6, 20 - is_at(prompt, shown))
        assert prompt.ids.tolist() == part_of(layout, trunk, "uniform", shown, seed=seed).ids.tolist()
    assert min(firsts) < 4
    assert max(firsts) > 15


def test_a_short_demonstration_is_shown_whole(layout: Layout, trunk: Trunk) -> None:
    shown = demonstration(layout, length=4)
    for part in ("beginning", "end"):
        assert part_of(layout, trunk, part, shown).ids.tolist() == shown.ids.tolist()  # type: ignore[arg-type]


def test_several_demonstrations_share_the_room(layout: Layout, trunk: Trunk) -> None:
    first, second = demonstration(layout), demonstration(layout, seed=1)
    prompt = part_of(layout, trunk, "end", first, second)
    assert prompt.num_timesteps == 6  # three of each
    assert is_at(prompt.timesteps(0, 3, trunk.vocabulary.patch), first) == 17
    assert is_at(prompt.timesteps(3, 6, trunk.vocabulary.patch), second) == 17
    assert len(prompt) <= prompt_budget(CONTEXT)


@pytest.mark.parametrize("name", TRUNKS)
def test_the_room_of_a_prompt_is_counted_in_positions_of_the_trunk(
    name: str, layout: Layout, vocabulary: Vocabulary
) -> None:
    trunk = tiny_model(vocabulary, **TRUNKS[name]).config.trunk
    shown = demonstration(layout, length=40)
    prompt = part_of(layout, trunk, "beginning", shown)
    assert trunk.length(prompt) <= 32
    more = shown.timesteps(0, prompt.num_timesteps + 1, vocabulary.patch)
    assert prompt.num_timesteps == 40 or trunk.length(more) > 32


def test_no_prompt_without_a_demonstration_or_a_part(layout: Layout, trunk: Trunk) -> None:
    rng = np.random.default_rng(0)
    assert prompt_of([], trunk, CONTEXT, "beginning", rng) is None
    assert prompt_of([("d", demonstration(layout))], trunk, CONTEXT, "none", rng) is None


@pytest.mark.parametrize("part", ["beginning", "end", "uniform"])
def test_a_demonstration_whose_timestep_does_not_fit_is_refused(part: Any, layout: Layout, trunk: Trunk) -> None:
    named = [(f"demonstration {i}", demonstration(layout)) for i in range(8)]  # 4 positions each
    with pytest.raises(
        UserError,
        match=r"demonstration 0: timestep \d+ takes 5 positions, a prompt of 8 demonstrations may take 4 of each",
    ):
        prompt_of(named, trunk, CONTEXT, part, np.random.default_rng(0))


def prompts(spec: TaskSpec, layout: Layout, trunk: Trunk, **options: Any) -> Prompts:
    return Prompts(spec, layout, trunk, CONTEXT, **({"known": KNOWN, "count": 3} | options))


def test_the_expert_demonstrates_on_seeds_that_are_neither_trained_nor_evaluated_on(
    layout: Layout, trunk: Trunk
) -> None:
    Points.SEEDS.clear()
    made = prompts(points(), layout, trunk)
    assert [PROMPT_SEEDS + i for i in range(len(Points.SEEDS))] == Points.SEEDS
    shown = [made.prompt("beginning", number, seed=number) for number in range(4)]
    assert all(prompt is not None and prompt.num_timesteps >= 4 for prompt in shown)
    ids = [tuple(prompt.ids) for prompt in shown if prompt is not None]
    assert len(set(ids)) == 3  # each its own
    assert ids[3] == ids[0]


def test_demonstrations_on_which_the_expert_fails_or_scores_low_are_passed_over(layout: Layout, trunk: Trunk) -> None:
    def moody(env: Any) -> Any:
        def act(observation: Any) -> np.int64:
            if Points.SEEDS[-1] % 2:
                raise ExpertFailed("not today")
            return np.int64(3 if Points.SEEDS[-1] % 4 else 0)

        return act

    Points.SEEDS.clear()
    spec = dataclasses.replace(points(), expert=moody)
    made = prompts(spec, layout, trunk, known=Reference(random=0.0, expert=10.0))
    assert [int(name.rpartition(" ")[2]) - PROMPT_SEEDS for name, _ in made.demonstrations] == [2, 6, 10]
    unscored = prompts(spec, layout, trunk, known=None)
    assert [int(name.rpartition(" ")[2]) - PROMPT_SEEDS for name, _ in unscored.demonstrations] == [0, 2, 4]


def test_too_few_demonstrations_are_refused_with_how_many_score_low(layout: Layout, trunk: Trunk) -> None:
    with pytest.raises(UserError, match=r"'toy/points': 0 of 3 demonstrations; 30 others score below 0.5"):
        prompts(points(), layout, trunk, known=Reference(random=0.0, expert=1000.0))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets")
    grid = dataclasses.replace(GRID, expert=always_grid)
    config = CollectConfig(episodes=5, agents={"expert": 1.0}, processes=1)
    collect([points(), grid], folder, config)
    return folder


def always_grid(env: Any) -> Any:
    return lambda observation: np.array([2, 4])


def test_demonstrations_of_a_dataset_prompt_its_task(datasets: Path, layout: Layout, trunk: Trunk) -> None:
    for source in (datasets, datasets / "toy/points/expert-v0", f"minari:{datasets / 'toy/points/expert-v0'}"):
        made = prompts(points(), layout, trunk, source=str(source))
        assert [name for name, _ in made.demonstrations] == [
            f"{datasets / 'toy/points/expert-v0'}, episode {i}" for i in range(3)
        ]


def test_a_dataset_of_another_task_cannot_prompt(datasets: Path, layout: Layout, trunk: Trunk) -> None:
    with pytest.raises(UserError, match="holds demonstrations of 'toy/grid', expected those of 'toy/points'"):
        prompts(points(), layout, trunk, source=str(datasets / "toy/grid/expert-v0"))
    with pytest.raises(
        UserError, match="has no demonstrations of 'toy/other'; gatito data collect --tasks toy/other"
    ):
        datasets_of("toy/other", str(datasets))
    with pytest.raises(UserError, match="no Minari dataset at"):
        datasets_of("toy/other", str(datasets / "nothing"))


def test_a_dataset_of_another_layout_cannot_prompt(
    datasets: Path, vocabulary: Vocabulary, text: TextTokenizer, trunk: Trunk
) -> None:
    wider = ToyEnv(spaces.Box(-9.0, 9.0, (4,), np.float32), spaces.Discrete(4))
    with pytest.raises(UserError, match=r"its layout .* is not .*, that of 'toy/points'"):
        prompts(points(), layout_of(wider, vocabulary, text), trunk, source=str(datasets))


def test_prompts_of_the_expert_and_of_its_recorded_episodes_are_the_same(
    datasets: Path, layout: Layout, trunk: Trunk
) -> None:
    recorded = prompts(points(), layout, trunk, source=str(datasets)).demonstrations[2][1]
    env = Points()
    observation, done, ids = env.reset(seed=2)[0], False, []
    act = always_three(env)
    while not done:
        action = act(observation)
        ids.extend([*layout.observation_tokens(observation).ids, *layout.action_ids([action])[0]])
        observation, _, done, _, _ = env.step(action)
    assert recorded.ids.tolist() == ids
