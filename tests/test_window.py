"""Windows that fill: different tasks in one batch, timesteps that leave, memory of what has left."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from acting import ENVS, make, play, prompt_of
from gymnasium import spaces
from toy import CONTEXT, TRUNKS, ToyEnv, action_states_of, layout_of, tiny_model

from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.decoding import Decoding
from gatito.eval.window import Memory
from gatito.model import GatitoForCausalLM
from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary

GREEDY = Decoding(temperature=0.0)
LENGTHS = {"vectors": 12, "missions": 8, "images": 20, "everything": 15}
"""Timesteps of the episodes, so that sessions are reset at different times."""
Plans = list[list[tuple[int, TokenSequence | None]]]


def of_all_tasks(
    model: GatitoForCausalLM, vocabulary: Vocabulary, text: TextTokenizer
) -> tuple[list[Layout], list[ToyEnv], Plans]:
    """A session of each task and one more: layouts, environments, and episodes, every other one with a prompt."""
    names = [*ENVS, "vectors"]
    envs = [make(name, LENGTHS[name] + s) for s, name in enumerate(names)]
    layouts = [layout_of(env, vocabulary, text) for env in envs]
    prompts = [prompt_of(env, layout, model.config.trunk) for env, layout in zip(envs, layouts, strict=True)]
    plans: Plans = [[(100 * s + e, prompts[s] if (s + e) % 2 else None) for e in range(40)] for s in range(len(envs))]
    return layouts, envs, plans


class States:
    """Records the state from which an actor chooses each action token, by session."""

    def __init__(self, actor: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[int, list[torch.Tensor]] = {s: [] for s in range(actor.num_sessions)}
        choose = actor._choose

        def spied(state: torch.Tensor, rows: Sequence[int], places: Sequence[int]) -> list[int]:
            for r, s in enumerate(rows):
                self.of[s].append(state[r].clone())
            return choose(state, rows, places)

        monkeypatch.setattr(actor, "_choose", spied)

    def take(self, session: int) -> torch.Tensor:
        """Those (A, D) of the last action."""
        taken, self.of[session] = self.of[session], []
        return torch.stack(taken)


@pytest.mark.parametrize("slides", [False, True], ids=["pinned", "sliding"])
@pytest.mark.parametrize("trunk", ["flat", pytest.param("4 latents", marks=pytest.mark.slow), "1 latent, decoded"])
def test_a_batch_of_different_tasks_equals_the_uncached_model_on_each_window(
    trunk: str, slides: bool, vocabulary: Vocabulary, text: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(vocabulary, initializer_range=0.2, **TRUNKS[trunk])
    layouts, envs, plans = of_all_tasks(model, vocabulary, text)
    actor = Actor(model, len(envs), prompt_slides=slides)
    states = States(actor, monkeypatch)
    decide, full = actor.decide, set()
    before: dict[int, int] = {}

    def compared() -> dict[int, Any]:
        actions = decide()
        for s in actions:
            own = actor.sessions[s]
            with torch.no_grad():
                expected = action_states_of(model, own.window.sequences(), own.layout.num_action_tokens)
            torch.testing.assert_close(states.take(s), expected, atol=1e-5, rtol=1e-5)
            if own.window.used < before.get(s, 0) and len(own.window.timesteps) > 1:
                full.add(s)
            before[s] = own.window.used
        return actions

    monkeypatch.setattr(actor, "decide", compared)
    acted = play(actor, layouts, envs, plans, 3 * CONTEXT // 6)
    if trunk == "flat":  # the windows of all long episodes did fill
        assert len(full) >= 4
    assert len({len(episodes) for episodes in acted}) > 2  # and sessions were reset at different times


@pytest.mark.parametrize("memory", ["refill", pytest.param("xl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("trunk", ["flat", "4 latents, decoded"])
def test_different_tasks_in_one_batch_act_as_each_alone(
    trunk: str, memory: Memory, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    model, steps = tiny_model(vocabulary, **TRUNKS[trunk]), 40
    layouts, envs, plans = of_all_tasks(model, vocabulary, text)
    together = play(Actor(model, len(envs), decoding=GREEDY, memory=memory), layouts, envs, plans, steps)
    for s, (layout, env) in enumerate(zip(layouts, envs, strict=True)):
        alone = play(Actor(model, decoding=GREEDY, memory=memory), [layout], [env], [plans[s]], steps)
        assert together[s] == alone[0], s
    assert len({len(episodes) for episodes in together}) > 2  # resets at different times


def fed_and_states(
    actor: Actor, env: ToyEnv, layout: Layout, prompt: TokenSequence | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[torch.Tensor], list[int], int]:
    """States by step, timesteps in the window by step, and positions fed in all, of the same actions whatever the
    states are."""
    states, fed = States(actor, monkeypatch), 0
    forward = actor.model.model.forward

    def counting(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        nonlocal fed
        fed += x.shape[1]
        return forward(x, *rest)

    ids = iter(np.random.default_rng(0).integers(3, size=10_000).tolist())
    with monkeypatch.context() as patched:
        patched.setattr(actor.model.model, "forward", counting)
        patched.setattr(Decoding, "pick", lambda self, logits, rngs: np.array([next(ids)]))
        actor.reset(0, layout, prompt)
        observation, by_step, kept = env.reset(seed=3)[0], [], []
        for _ in range(40):
            observation = env.step(actor.act({0: observation})[0])[0]
            by_step.append(states.take(0))
            kept.append(len(actor.sessions[0].window.timesteps))
    return by_step, kept, fed


@pytest.mark.parametrize("prompted", ["no prompt", "pinned", "sliding"])
@pytest.mark.parametrize("rotary", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("trunk", ["flat", "4 latents"])
def test_memory_of_one_layer_equals_a_window_that_is_fed_anew(
    trunk: str,
    rotary: bool,
    prompted: str,
    vocabulary: Vocabulary,
    text: TextTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys of the first layer have looked at nothing else: that they move up and are turned back is exact.

    Where actions are decoded, the oldest observation's position keeps the action before it, which has left.
    """
    model = tiny_model(vocabulary, num_hidden_layers=1, rotary=rotary, **TRUNKS[trunk])
    env = make("vectors", length=100)
    layout = layout_of(env, vocabulary, text)
    prompt = None if prompted == "no prompt" else prompt_of(env, layout, model.config.trunk)
    slides = prompted == "sliding"
    xl = Actor(model, memory="xl", prompt_slides=slides)
    refill = Actor(model, prompt_slides=slides)
    states, kept, fed = fed_and_states(xl, env, layout, prompt, monkeypatch)
    expected, expected_kept, fed_anew = fed_and_states(refill, env, layout, prompt, monkeypatch)
    assert kept == expected_kept
    torch.testing.assert_close(states, expected, atol=2e-5, rtol=1e-5)
    if trunk == "flat":
        assert min(np.diff(kept)) < 0  # timesteps did leave,
        assert fed < fed_anew  # and nothing was fed twice


def test_memory_of_several_layers_equals_a_window_fed_anew_only_until_it_is_full(
    vocabulary: Vocabulary, text: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(vocabulary)
    env = make("vectors", length=100)
    layout = layout_of(env, vocabulary, text)
    states, kept, _ = fed_and_states(Actor(model, memory="xl"), env, layout, None, monkeypatch)
    expected, _, _ = fed_and_states(Actor(model), env, layout, None, monkeypatch)
    full = int(np.flatnonzero(np.diff(kept) < 0)[0]) + 1
    assert full == CONTEXT // 7
    for t in range(full):
        torch.testing.assert_close(states[t], expected[t], atol=0, rtol=0)
    assert float((states[full] - expected[full]).abs().max()) > 1e-2


def test_a_timestep_of_more_than_half_the_context_replaces_the_one_before(
    vocabulary: Vocabulary, text: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = ToyEnv(spaces.Box(-9.0, 9.0, (40,), np.float32), spaces.Discrete(3), length=100)
    layout = layout_of(env, vocabulary, text)
    model = tiny_model(vocabulary, num_hidden_layers=1)
    states, kept, _ = fed_and_states(Actor(model, memory="xl"), env, layout, None, monkeypatch)
    expected, _, _ = fed_and_states(Actor(model), env, layout, None, monkeypatch)
    assert set(kept) == {1}
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


def test_a_sliding_prompt_leaves_and_a_pinned_one_stays(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = make("vectors", length=100)
    layout = layout_of(env, vocabulary, text)
    model = tiny_model(vocabulary)
    prompt = prompt_of(env, layout, model.config.trunk)  # 4 timesteps of 7 positions
    starts = []
    for slides in (False, True):
        actor = Actor(model, prompt_slides=slides)
        actor.reset(0, layout, prompt)
        observation = env.reset(seed=3)[0]
        starts.append([])
        for _ in range(8):
            observation = env.step(actor.act({0: observation})[0])[0]
            window = actor.sessions[0].window.sequences()
            starts[-1].append(sum(map(len, window)) // 7)
    assert starts == [[5, 6, 7, 8, 9, 7, 8, 9], [5, 6, 7, 8, 9, 5, 6, 7]]


def test_an_observation_that_cannot_be_taken_in_leaves_every_session_as_it_was(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    env = ToyEnv(spaces.Text(2000), spaces.Discrete(2))
    layout, model = layout_of(env, vocabulary, text), tiny_model(vocabulary)
    actor, other = Actor(model, 2, decoding=GREEDY), Actor(model, 2, decoding=GREEDY)
    for s in range(2):
        actor.reset(s, layout)
        other.reset(s, layout)
    for words, match in (("the class " * 60, "one timestep of"), (7, "expected text")):
        with pytest.raises(UserError, match=match):
            actor.act({0: "go", 1: words})
        assert actor.decide() == {}
    for words in ("go", "return"):
        assert actor.act({0: words, 1: "if"}) == other.act({0: words, 1: "if"})


def test_a_session_that_plays_no_task_or_waits_to_decide_does_not_observe(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    env = make("vectors")
    actor = Actor(tiny_model(vocabulary), 2)
    actor.reset(0, layout_of(env, vocabulary, text))
    observation = env.reset(seed=0)[0]
    with pytest.raises(UserError, match="session 1 plays no task yet"):
        actor.observe(1, observation)
    actor.observe(0, observation)
    with pytest.raises(UserError, match="session 0 has observed already"):
        actor.observe(0, observation)
    assert list(actor.decide()) == [0]


def test_another_episode_may_go_on_in_the_same_context(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = make("vectors", length=100)
    actor = Actor(tiny_model(vocabulary))
    actor.reset(0, layout_of(env, vocabulary, text), seed=1)
    observation = env.reset(seed=0)[0]
    first = actor.act({0: observation})[0]
    actor.go_on(0, seed=1)
    again = actor.act({0: observation})[0]
    assert len(actor.sessions[0].window.timesteps) == 2
    assert first.tolist() != again.tolist()  # of the same draws: it has seen the first episode
    assert actor.sessions[0].rng.random() == np.random.default_rng(1).random(3)[2]


def test_a_memory_that_does_not_exist_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(UserError, match="--memory is 'long', allowed refill or xl"):
        Actor(tiny_model(vocabulary), memory="long")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("trunk", ["flat", "4 latents, decoded"])
def test_the_compiled_trunk_acts_as_the_other(trunk: str, vocabulary: Vocabulary, text: TextTokenizer) -> None:
    model, steps = tiny_model(vocabulary, **TRUNKS[trunk]), 40
    layouts, envs, plans = of_all_tasks(model, vocabulary, text)
    compiled = Actor(model, len(envs), decoding=GREEDY, compiled=True)
    widths = []
    assert compiled.compiled is not None
    forward = compiled.compiled._forward
    compiled.compiled._forward = lambda x, *rest: widths.append(x.shape[1]) or forward(x, *rest)
    acted = play(compiled, layouts, envs, plans, steps)
    assert acted == play(Actor(model, len(envs), decoding=GREEDY), layouts, envs, plans, steps)
    assert {width & (width - 1) for width in widths} == {0}
    assert len(set(widths)) > 1
