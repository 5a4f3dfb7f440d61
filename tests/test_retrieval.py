"""Retrieve-and-play: which observation is the nearest, what is done then, and which demonstrations are refused."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from acting import ENVS, make
from demonstrated import episode, labelled, line_demonstrations, line_spec, random_demonstrations
from gymnasium import spaces
from toy import Line, ToyEnv, layout_of, toy_episode

from gatito.baselines import demonstrations as module
from gatito.baselines import retrieval
from gatito.baselines.acting import MemorylessActor
from gatito.baselines.demonstrations import Demonstrations
from gatito.baselines.retrieval import Retrieval
from gatito.data.episode import row
from gatito.data.tasks import EVALUATION_SEEDS
from gatito.errors import UserError
from gatito.eval.rollout import Job, rollouts
from gatito.eval.simulators import LocalSimulators
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary
from gatito.tokenizers.fields import value_at


def brute_force(demonstrations: Demonstrations, observation: Any) -> int:
    """The rule in loops: texts first, then the sum over fields, then the earliest."""
    layout, best = demonstrations.layout, (np.inf, np.inf, -1)
    for t in range(len(demonstrations)):
        other, apart, distance = row(demonstrations.observations, t), 0, 0.0
        for field in layout.observations:
            a, b = value_at(observation, field.path), value_at(other, field.path)
            if field.kind == "text":
                apart += len(set(layout.text.encode(a)) ^ set(layout.text.encode(b)))
            elif field.kind == "discrete":
                distance += 2 * int((np.asarray(a) != np.asarray(b)).sum())
            elif field.kind == "continuous":
                deviation = np.asarray(value_at(demonstrations.observations, field.path), np.float64).std(axis=0)
                distance += float((((np.asarray(a, np.float64) - b) / deviation) ** 2).sum())
            else:  # 16 x 32 pixels in cells of 2 x 2
                cells = [np.asarray(x, np.float64).reshape(8, 2, 16, 2, 3).mean(axis=(1, 3)) / 255 for x in (a, b)]
                distance += float(((cells[0] - cells[1]) ** 2).sum())
        if (apart, round(distance, 4)) < best[:2]:
            best = (apart, round(distance, 4), t)
    return best[2]


@pytest.mark.parametrize("name", ENVS)
def test_the_nearest_observation_is_that_of_a_brute_force_loop(
    name: str, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    env = make(name)
    shown = random_demonstrations(env, layout_of(env, vocabulary, text), count=6)
    policy = Retrieval(shown)
    asked = [row(toy_episode(env, seed).observations, t) for seed in (90, 91) for t in range(10)]
    found = policy.nearest([shown.layout.with_time_axis(observation) for observation in asked])
    assert found.tolist() == [brute_force(shown, observation) for observation in asked]
    assert len(set(found)) > 5


@pytest.mark.parametrize("name", ENVS)
def test_what_was_demonstrated_is_done_again(name: str, vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = make(name)
    shown = random_demonstrations(env, layout_of(env, vocabulary, text), count=2)
    actor = MemorylessActor(Retrieval(shown), 1)
    actor.reset(0, shown.layout)
    for t in range(0, len(shown), 7):
        actor.observe(0, row(shown.observations, t))
        action = actor.decide()[0]
        assert env.action_space.contains(action)
        assert repr(action) == repr(row(shown.actions, brute_force(shown, row(shown.observations, t))))


@pytest.mark.parametrize("continuous", [False, True])
def test_a_deterministic_environment_is_played_perfectly_after_one_demonstration(
    continuous: bool, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    layout = layout_of(Line(continuous=continuous), vocabulary, text)
    policy = Retrieval(line_demonstrations(layout, continuous))
    seeds = range(EVALUATION_SEEDS, EVALUATION_SEEDS + 3)
    spec = line_spec(continuous)
    jobs = [Job(spec=spec, layout=layout, part="none", prompt=lambda: None, seeds=(seed,)) for seed in seeds]
    played = rollouts(MemorylessActor(policy, 2), LocalSimulators(), jobs)
    assert [record.total_return for records in played for record in records] == [10.0] * 3


def of_numbers(
    vocabulary: Vocabulary, text: TextTokenizer, values: list[list[float]], actions: list[int], **options: Any
) -> Demonstrations:
    space = spaces.Box(-1e6, 1e6, (len(values[0]),), np.float64)
    layout = layout_of(ToyEnv(space, spaces.Discrete(9)), vocabulary, text)
    shown = episode("toy/task", np.array(values), np.array(actions), **options)
    return Demonstrations.of("toy/task", layout, [("numbers", shown)])


def act(policy: Retrieval, observation: Any) -> Any:
    return policy.act([policy.layout.with_time_axis(observation)], [np.random.default_rng(0)])[0]


def test_of_equal_distances_the_earliest_is_taken(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    values = [[1.0, 3.0], [2.0, 5.0], [1.0, 3.0], [2.0, 5.0]] * 50
    policy = Retrieval(of_numbers(vocabulary, text, values, [1, 2, 3, 4] * 50))
    assert act(policy, np.array([1.1, 3.0])) == 1
    assert act(policy, np.array([1.9, 5.0])) == 2
    assert act(policy, np.array([1.5, 4.0])) == 1


def test_each_number_counts_in_standard_deviations(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    policy = Retrieval(
        of_numbers(vocabulary, text, [[0.0, 0.0], [1000.0, 0.0], [0.0, 1.0], [1000.0, 1.0]], [0, 1, 2, 3])
    )
    assert act(policy, np.array([400.0, 0.9])) == 2
    assert act(policy, np.array([600.0, 0.1])) == 1


def test_a_number_that_never_changed_counts_nothing(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    policy = Retrieval(of_numbers(vocabulary, text, [[0.0, 7.0], [1.0, 7.0]], [0, 1]))
    assert act(policy, np.array([0.9, -1e5])) == 1


def test_numbers_far_outside_of_what_was_shown_are_clipped(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    policy = Retrieval(of_numbers(vocabulary, text, [[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]], [0, 1, 2]))
    assert act(policy, np.array([1e6, 0.9])) == 1
    assert np.isfinite(policy.numbers(np.array([[1e300, -1e300]]))).all()


def test_a_value_that_was_never_shown_is_as_far_from_all_others(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    space = spaces.Dict(kind=spaces.Discrete(5), x=spaces.Box(-9, 9, (1,), np.float64))
    layout = layout_of(ToyEnv(space, spaces.Discrete(4)), vocabulary, text)
    seen = {"kind": np.array([0, 1]), "x": np.array([[0.0], [1.0]])}
    policy = Retrieval(
        Demonstrations.of("toy/task", layout, [("kinds", episode("toy/task", seen, np.array([0, 1])))])
    )
    assert [act(policy, {"kind": 4, "x": np.array([x])}) for x in (0.4, 0.6)] == [0, 1]
    (near,) = policy.numbers({"kind": [4], "x": [[0.0]]}) - policy.numbers({"kind": [0], "x": [[0.0]]})
    assert near @ near == 2


def test_a_demonstration_with_the_same_text_goes_before_a_nearer_one(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    space = spaces.Dict(mission=spaces.Text(40), x=spaces.Box(-9, 9, (1,), np.float64))
    layout = layout_of(ToyEnv(space, spaces.Discrete(4)), vocabulary, text)
    seen = {"mission": ["go", "the value of a class"], "x": np.array([[0.0], [5.0]])}
    policy = Retrieval(Demonstrations.of("toy/task", layout, [("two", episode("toy/task", seen, np.array([0, 1])))]))
    assert act(policy, {"mission": "the value of a class", "x": np.zeros(1)}) == 1
    assert act(policy, {"mission": "the value of the class", "x": np.zeros(1)}) == 1  # the nearest of other texts
    assert act(policy, {"mission": "go", "x": np.full(1, 5.0)}) == 0


def test_an_action_that_is_no_target_is_never_retrieved(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    values = [[float(t)] for t in range(6)]
    shown = of_numbers(vocabulary, text, values, [0, 1, 2, 3, 4, 5], targets=[True, False, True, True, False, True])
    assert len(shown) == 4
    policy = Retrieval(shown)
    assert [int(act(policy, np.array([x]))) for x in (0.9, 1.2, 3.9, 4.1)] == [0, 2, 3, 5]


def test_an_action_that_overshot_its_bounds_is_clipped_to_them(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = ToyEnv(spaces.Box(-9, 9, (1,), np.float64), spaces.Box(-1, 1, (2,), np.float32))
    shown = episode("toy/task", np.zeros((1, 1)), np.array([[1.0005, -0.25]], np.float32))
    policy = Retrieval(Demonstrations.of("toy/task", layout_of(env, vocabulary, text), [("one", shown)]))
    action = act(policy, np.zeros(1))
    assert action.tolist() == [1.0, -0.25]
    assert env.action_space.contains(action)


def test_actions_do_not_depend_on_what_is_played_beside(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    shown, seen = labelled(
        spaces.Box(-9, 9, (39,), np.float64), spaces.Box(-1, 1, (4,), np.float32),
        lambda x: np.sin(x[:4]).astype(np.float32), vocabulary, text,
    )  # fmt: skip
    policy = Retrieval(shown)
    asked = [shown.layout.with_time_axis(x + 0.5) for x in seen[:30]]
    together = policy.nearest(asked)
    assert together.tolist() == [int(policy.nearest([one])[0]) for one in asked]


def test_the_hash_of_demonstrations_tells_other_values(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    first, same, other = (of_numbers(vocabulary, text, [[0.0], [x]], [0, 1]) for x in (1.0, 1.0, 1.5))
    assert first.sha256 == same.sha256 != other.sha256
    assert first.sha256 != of_numbers(vocabulary, text, [[0.0], [1.0]], [0, 2]).sha256


def test_demonstrations_that_cannot_be_are_refused(
    vocabulary: Vocabulary, text: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=r"numbers: its seed 1073741824 is one of evaluation, allowed below 1073741824"
    ):
        of_numbers(vocabulary, text, [[0.0]], [0], seed=EVALUATION_SEEDS)
    with pytest.raises(UserError, match="1 demonstration without an action to imitate"):
        of_numbers(vocabulary, text, [[0.0]], [0], targets=[False])
    with pytest.raises(UserError, match=r"numbers, observation, timestep 1: NaN or Inf"):
        of_numbers(vocabulary, text, [[0.0], [np.nan]], [0, 1])
    sound = of_numbers(vocabulary, text, [[0.0]], [0])
    foreign = episode("toy/other", np.zeros((1, 1)), np.zeros(1, np.int64))
    with pytest.raises(UserError, match="foreign: it demonstrates 'toy/other', expected 'toy/task'"):
        Demonstrations.of("toy/task", sound.layout, [("foreign", foreign)])
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    own = episode("toy/task", np.zeros((1, 1)), np.zeros(1, np.int64))
    with pytest.raises(UserError, match=r"2 demonstrations have .* of observations, .*; ask for fewer"):
        Demonstrations.of("toy/task", sound.layout, [("a", own), ("b", own)])


def test_vectors_that_exceed_the_memory_are_refused(
    vocabulary: Vocabulary, text: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make("images")
    shown = random_demonstrations(env, layout_of(env, vocabulary, text), count=1)
    size_bytes = Retrieval(shown).vectors.nbytes
    assert size_bytes >= 4 * len(shown) * 8 * 16 * 3  # the cells of images are counted
    monkeypatch.setattr(retrieval, "MAX_BYTES", size_bytes - 1)
    with pytest.raises(UserError, match=r"20 timesteps are vectors of .*; ask for fewer with --demonstrations"):
        Retrieval(shown)


def test_sessions_refuse_prompts_other_layouts_and_values_of_other_spaces(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    shown = of_numbers(vocabulary, text, [[0.0], [1.0]], [0, 1])
    actor = MemorylessActor(Retrieval(shown), 1)
    prompt = shown.layout.observation_tokens(np.zeros(1))
    with pytest.raises(UserError, match="acts by the present observation alone; evaluate it with --prompt none"):
        actor.reset(0, shown.layout, prompt)
    other: Layout = dataclasses.replace(shown.layout, actions=shown.layout.actions * 2)
    with pytest.raises(UserError, match="play the task that was demonstrated"):
        actor.reset(0, other)
    actor.reset(0, shown.layout)
    for wrong in (np.array([np.nan]), np.zeros(2), "left"):
        with pytest.raises(UserError, match="timestep 4"):
            actor.observe(0, wrong, "timestep 4")
    assert actor.decide() == {}
