"""Acting: the same tokens as training, the same logits as without a cache, the same actions in a batch as alone."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from acting import CASES, ENVS, make, play, prompt_of
from gymnasium import spaces
from toy import CONTEXT, TRUNKS, ToyEnv, action_states_of, hidden_of, layout_of, tiny_model, toy_sequence

from gatito.data.episode import stack
from gatito.data.packing import Batch, pack
from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.decoding import Decoding
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.tokenizers.sequence import concatenate

FAST = (
    ("vectors", "flat", "no prompt"),
    ("vectors", "flat", "pinned"),
    ("vectors", "flat", "sliding"),
    ("vectors", "1 latent, decoded", "pinned"),
    ("missions", "flat", "pinned"),
    ("images", "4 latents, decoded", "pinned"),
    ("everything", "4 latents, decoded", "pinned"),
)
"""Episodes of three windows that are played each time; the others with the slow tests."""
FIELDS = ("ids", "loss_mask", "local_positions", "patches", "patch_intervals", "timestep_starts")


@dataclass
class Fed:
    """One row of one call of the model, without its padding."""

    ids: list[int]
    local: list[int]
    positions: list[int]


class Spy:
    """Records what an actor feeds to the model and between which logits it chooses."""

    def __init__(self, actor: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fed: list[Fed] = []
        self.observed: list[int] = []
        """Ids of observations that were resampled."""
        self.taken: list[int] = []
        """Ids of actions that were decoded and then fed."""
        self.logits: list[torch.Tensor] = []
        embed, begin, decoding = actor.model.embed_batch, actor.cache.begin, actor.decoding
        batches: list[Batch] = []

        def spied_embed(batch: Batch) -> torch.Tensor:
            batches.append(batch)
            return embed(batch)

        def spied_begin(rows: list[int], positions: torch.Tensor, used: int) -> torch.Tensor:
            batch = batches.pop()
            for r, n in enumerate((batch.segments > 0).sum(-1).tolist()):
                shown = (batch.input_ids, batch.local_positions, positions)
                self.fed.append(Fed(*(tensor[r, :n].tolist() for tensor in shown)))
            for kept, ids in ((self.observed, batch.observation_ids), (self.taken, batch.action_ids)):
                kept.extend([] if ids is None else ids.tolist())
            return begin(rows, positions, used)

        def spied_pick(logits: torch.Tensor, rngs: Any) -> np.ndarray:
            self.logits.append(logits.clone())
            return decoding.pick(logits, rngs)

        monkeypatch.setattr(actor.model, "embed_batch", spied_embed)
        monkeypatch.setattr(actor.cache, "begin", spied_begin)
        monkeypatch.setattr(actor, "decoding", SimpleNamespace(pick=spied_pick))


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("name", ENVS)
def test_acting_builds_exactly_the_tokens_that_training_sees(
    name: str, trunk: str, vocabulary: Vocabulary, text: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(name, length=8)
    layout = layout_of(env, vocabulary, text)
    actor = Actor(tiny_model(vocabulary, context=256, **TRUNKS[trunk]))
    spy = Spy(actor, monkeypatch)
    actor.reset(0, layout)
    observations, done = [env.reset(seed=3)[0]], False
    while not done:
        observation, _, done, _, _ = env.step(actor.act({0: observations[-1]})[0])
        observations.append(observation)
    expected = layout.episode_tokens(
        stack(env.observation_space, observations[:-1]), stack(env.action_space, env.actions)
    )
    window = concatenate(actor.sessions[0].window.sequences())
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(window, field), getattr(expected, field), err_msg=field)
        assert getattr(window, field).dtype == getattr(expected, field).dtype, field
    # The same in what the model was fed, but for the last action, or its last token, which nothing follows.
    batch = pack([[expected]], actor.trunk)
    n = batch.input_ids.shape[1] - (0 if actor.trunk.decoded_actions else 1)
    assert [i for fed in spy.fed for i in fed.ids] == batch.input_ids[0, :n].tolist()
    assert [i for fed in spy.fed for i in fed.local] == batch.local_positions[0, :n].tolist()
    assert [i for fed in spy.fed for i in fed.positions] == list(range(n))
    for field, given in (("observation_ids", spy.observed), ("action_ids", spy.taken)):
        packed = getattr(batch, field)
        if packed is None:
            assert not given
        else:
            given = given if field == "observation_ids" else [*given, *expected.ids[-layout.num_action_tokens :]]
            assert sorted(packed.tolist()) == sorted(given)


@pytest.mark.parametrize(
    ("name", "trunk", "prompted"),
    [
        pytest.param(*case, prompted, marks=[] if (*case, prompted) in FAST else [pytest.mark.slow])
        for case in CASES
        for prompted in ("no prompt", "pinned", "sliding")
        if prompted != "sliding" or case[0] == "vectors"
    ],
)
def test_cached_acting_equals_the_uncached_model_at_every_step_of_three_windows(
    name: str,
    trunk: str,
    prompted: str,
    vocabulary: Vocabulary,
    text: TextTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = make(name, length=10_000)
    layout = layout_of(env, vocabulary, text)
    model = tiny_model(vocabulary, initializer_range=0.2, **TRUNKS[trunk])
    length = model.config.trunk.length
    prompt = None if prompted == "no prompt" else prompt_of(env, layout, model.config.trunk)
    actor = Actor(model, prompt_slides=prompted == "sliding")
    spy = Spy(actor, monkeypatch)
    actor.reset(0, layout, prompt)
    observation = env.reset(seed=3)[0]
    observations, fed, drops, A = [], 0, 0, layout.num_action_tokens
    while fed < 3 * CONTEXT:
        before = len(actor.sessions[0].window.timesteps)
        observations.append(observation)
        observation = env.step(actor.act({0: observation})[0])[0]
        window = actor.sessions[0].window.sequences()
        fed += length(window[-1])
        drops += len(actor.sessions[0].window.timesteps) <= before
        assert sum(map(length, window)) <= CONTEXT
        with torch.no_grad():
            states = action_states_of(model, window, A)
        for j, (start, stop) in enumerate(layout.legal_ids):
            expected = model.logits_over(states[j], start, stop)
            torch.testing.assert_close(spy.logits[j - A][0], expected, atol=1e-5, rtol=1e-5)
        # The window is the prompt, as long as it stays, and the newest timesteps of the episode.
        kept = min(len(actor.sessions[0].window.timesteps), len(observations))
        newest = layout.episode_tokens(
            stack(env.observation_space, observations[-kept:]), stack(env.action_space, env.actions[-kept:])
        )
        np.testing.assert_array_equal(concatenate(actor.sessions[0].window.timesteps[-kept:]).ids, newest.ids)
        assert (window[0] is prompt) == (prompted == "pinned")
    assert drops >= 2  # the window did fill
    assert float(torch.cat(spy.logits, -1).std()) > 0.3  # and the logits say something


def test_evicting_from_the_cache_instead_would_not_have_been_equal(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    """The guard of the test above: what was dropped has left its mark on the keys of what stays."""
    env = make("vectors")
    layout = layout_of(env, vocabulary, text)
    model = tiny_model(vocabulary, initializer_range=0.2)
    sequence = toy_sequence(env, layout, 0).head(56, vocabulary.patch)
    with torch.no_grad():
        whole, half = hidden_of(model, [sequence]), hidden_of(model, [sequence.timesteps(4, 8, vocabulary.patch)])
    assert float((whole[-1] - half[-1]).abs().max()) > 1e-2


def test_timesteps_leave_whole_and_the_oldest_half_first(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = make("vectors", length=40)
    layout = layout_of(env, vocabulary, text)  # 4 + separator + 2 tokens: 9 timesteps fill 63 of 64
    actor = Actor(tiny_model(vocabulary))
    actor.reset(0, layout)
    observation, kept = env.reset(seed=3)[0], []
    for _ in range(16):
        observation = env.step(actor.act({0: observation})[0])[0]
        kept.append(len(actor.sessions[0].window.timesteps))
        assert {len(t) for t in actor.sessions[0].window.timesteps} == {7}
    assert kept == [1, 2, 3, 4, 5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6]


@pytest.mark.parametrize(
    ("name", "trunk", "temperature"),
    # Of sampled bins of numbers now and then one falls into its neighbour by rounding.
    [
        pytest.param(*case, t, marks=[pytest.mark.slow] if t else [])
        for case in CASES
        for t in (0.0, 1.0)
        if case[0] != "everything" and not (t and case[0] == "vectors")
    ],
)
def test_batched_sessions_act_as_each_alone(
    name: str, trunk: str, temperature: float, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    lengths, steps = [3, 7, 40, 11], 25
    envs = [make(name, length) for length in lengths]
    layout = layout_of(envs[0], vocabulary, text)
    model = tiny_model(vocabulary, **TRUNKS[trunk])
    prompt = prompt_of(envs[0], layout, model.config.trunk)
    plans = [[(100 * s + e, prompt if (s + e) % 2 else None) for e in range(20)] for s in range(len(envs))]
    together = play(
        Actor(model, len(envs), decoding=Decoding(temperature=temperature)), [layout] * len(envs), envs, plans, steps
    )
    alone = [
        play(Actor(model, decoding=Decoding(temperature=temperature)), [layout], [make(name, length)], [plan], steps)[
            0
        ]
        for length, plan in zip(lengths, plans, strict=True)
    ]
    assert together == alone
    assert [len(episodes) for episodes in together] == [9, 4, 1, 3]
    if temperature:  # the likeliest action of a random network may always be the same
        assert len({str(a) for episodes in together for episode in episodes for a in episode}) > 2


def test_a_session_may_pause_while_others_act(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = make("vectors")
    layout, model = layout_of(env, vocabulary, text), tiny_model(vocabulary)
    env.observation_space.seed(5)
    seen = [env.observation_space.sample() for _ in range(6)]

    def actions_of(calls: list[dict[int, int]], sessions: int, session: int) -> list[list[float]]:
        actor = Actor(model, sessions)
        for s in range(sessions):
            actor.reset(s, layout)
        acted = [actor.act({s: seen[t] for s, t in call.items()}) for call in calls]
        return [a[session].tolist() for a in acted if session in a]

    alone = actions_of([{0: t} for t in range(6)], 1, 0)
    paused = actions_of([{1: 0}, {0: 3, 1: 1}, {0: 4}, {2: 0, 1: 2}, {1: 3}, {0: 5, 2: 1, 1: 4}, {1: 5}], 3, 1)
    assert paused == alone


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(2),
        spaces.Discrete(3, start=-5),
        spaces.MultiDiscrete([3, 1, 7]),
        spaces.MultiBinary(3),
        spaces.Box(np.array([-1.0, 2.0], np.float32), np.array([1.0, 3.0], np.float32)),
        spaces.Box(0, 9, (2,), np.int64),
        spaces.Dict(b=spaces.Discrete(2), a=spaces.Box(-3.0, 1.0, (1,), np.float32)),
    ],
    ids=str,
)
@pytest.mark.parametrize("trunk", ["flat", "1 latent, decoded"])
def test_sampled_actions_are_always_legal(
    trunk: str, space: spaces.Space, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    env = ToyEnv(spaces.Box(-1.0, 1.0, (2,), np.float32), space, length=100)
    layout = layout_of(env, vocabulary, text)
    actor = Actor(tiny_model(vocabulary, **TRUNKS[trunk]), decoding=Decoding(temperature=50.0))
    actor.reset(0, layout, seed=1)
    observation, found = env.reset(seed=0)[0], set()
    for _ in range(40):
        action = actor.act({0: observation})[0]
        assert space.contains(action), action
        found.add(str(action))
        observation = env.step(action)[0]
        ids = actor.sessions[0].window.timesteps[-1].ids[-layout.num_action_tokens :]
        assert all(start <= i < stop for i, (start, stop) in zip(ids.tolist(), layout.legal_ids, strict=True))
    assert len(found) > 1


def test_an_unrestricted_choice_would_have_been_illegal(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    """The guard of the test above."""
    env = ToyEnv(spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(2))
    layout, model = layout_of(env, vocabulary, text), tiny_model(vocabulary)
    with torch.no_grad():
        hidden = hidden_of(model, [layout.observation_tokens(env.reset(seed=0)[0])])
        best = int(model.logits_over(hidden[-1], 0, vocabulary.size).argmax())
    start, stop = layout.legal_ids[0]
    assert not start <= best < stop


def test_the_seed_decides_the_sampled_actions_and_another_seed_gives_others(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    env = make("images", length=100)
    layout, model = layout_of(env, vocabulary, text), tiny_model(vocabulary)

    def sampled(seed: int, sessions: int, session: int) -> list[list[float]]:
        actor = Actor(model, sessions, decoding=Decoding(temperature=1.0))
        for s in range(sessions):
            actor.reset(s, layout, seed=seed if s == session else 1000 + s)
        env.observation_space.seed(0)
        result = []
        for _ in range(12):
            observation = env.observation_space.sample()
            result.append(actor.act(dict.fromkeys(range(sessions), observation))[session].tolist())
        return result

    assert sampled(4, 1, 0) == sampled(4, 5, 2) == sampled(4, 3, 0)
    assert sampled(4, 1, 0) != sampled(5, 1, 0)


def test_a_reset_forgets_the_episode_before(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = make("vectors")
    layout, model = layout_of(env, vocabulary, text), tiny_model(vocabulary)
    actor = Actor(model)
    first = []
    for _ in range(2):
        actor.reset(0, layout)
        observation = env.reset(seed=1)[0]
        first.append([])
        for _ in range(4):
            action = actor.act({0: observation})[0]
            first[-1].append(action.tolist())
            observation = env.step(action)[0]
    assert first[0] == first[1]


def test_a_prompt_changes_the_actions(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = make("vectors")
    layout, model = layout_of(env, vocabulary, text), tiny_model(vocabulary)
    observation = env.reset(seed=1)[0]
    actions = []
    for prompt in (None, prompt_of(env, layout, model.config.trunk)):
        actor = Actor(model)
        actor.reset(0, layout, prompt)
        actions.append(actor.act({0: observation})[0].tolist())
    assert actions[0] != actions[1]


def test_a_prompt_of_more_than_half_the_context_is_refused(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = ToyEnv(spaces.Box(-1.0, 1.0, (6,), np.float32), spaces.Discrete(2), length=5)  # timesteps of 8 tokens
    layout = layout_of(env, vocabulary, text)
    actor, episode = Actor(tiny_model(vocabulary)), toy_sequence(env, layout, 0)
    actor.reset(0, layout, episode.timesteps(0, 4, vocabulary.patch))  # 32 of 64 tokens fit
    with pytest.raises(UserError, match="a prompt of 40 positions, allowed 32: half the context"):
        actor.reset(0, layout, episode)


def test_one_timestep_longer_than_the_context_is_refused(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = ToyEnv(spaces.Text(2000), spaces.Discrete(2))
    layout = layout_of(env, vocabulary, text)
    actor = Actor(tiny_model(vocabulary))
    actor.reset(0, layout)
    actor.act({0: "go"})
    words = "the class " * 60
    needed = len(text.encode(words)) + 2
    assert needed > CONTEXT
    with pytest.raises(UserError, match=f"one timestep of {needed} positions .* exceed the context of {CONTEXT}"):
        actor.act({0: words})


def test_observed_values_outside_their_bounds_are_counted(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = ToyEnv(spaces.Box(np.array([-1, -np.inf]), np.array([1, np.inf]), dtype=np.float64), spaces.Discrete(2))
    actor = Actor(tiny_model(vocabulary))
    actor.reset(0, layout_of(env, vocabulary, text))
    for observation in ([0.5, 256.0], [1.5, 0.0], [-2.0, -257.0]):
        actor.act({0: np.array(observation)})
    assert actor.num_clipped == 3


def test_an_observation_of_another_space_is_refused_by_session(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    actor = Actor(tiny_model(vocabulary), 2)
    actor.reset(1, layout_of(make("vectors"), vocabulary, text))
    with pytest.raises(UserError, match=r"session 1, observation.*shape \(3,\), expected \(4,\)"):
        actor.act({1: np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=r"session 1, observation.*NaN"):
        actor.act({1: np.full(4, np.nan, np.float32)})
