"""Sessions that are decided together."""

import threading
from typing import Any

import numpy as np
import pytest
from acting import CASES, ENVS, make, prompt_of
from served import observations_of
from toy import TRUNKS, layout_of, tiny_model

from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.decoding import Decoding
from gatito.serve.sessions import Begin, Sessions, Turn
from gatito.tokenizers import TextTokenizer, Vocabulary

GREEDY = Decoding(temperature=0.0)
WAIT_S = 20


def sessions_of(vocabulary: Vocabulary, count: int = 3, **options: Any) -> Sessions:
    return Sessions(Actor(tiny_model(vocabulary), count, decoding=GREEDY), **options)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(map(same, a, b))
    return bool(np.array_equal(a, b))


def test_sessions_of_several_tasks_act_as_each_would_alone(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    layouts = {name: layout_of(make(name), vocabulary, text) for name in ENVS}
    seen = {name: observations_of(name, 6) for name in ENVS}
    alone = {}
    for name, layout in layouts.items():
        actor = Actor(tiny_model(vocabulary), decoding=GREEDY)
        actor.reset(0, layout)
        alone[name] = [actor.act({0: observation})[0] for observation in seen[name]]
    sessions = sessions_of(vocabulary, len(ENVS))
    opened = {name: sessions.open() for name in ENVS}
    for name, session in opened.items():
        sessions.submit(session, Turn(begin=Begin(layout=layouts[name]))).result(WAIT_S)
    for t in range(6):
        futures = {name: sessions.submit(s, Turn(observation=seen[name][t])) for name, s in opened.items()}
        for name, future in futures.items():
            assert same(future.result(WAIT_S), alone[name][t])
    sessions.shutdown()


def test_what_comes_while_a_step_is_computed_is_the_next_step(
    vocabulary: Vocabulary, text: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_of(make("vectors"), vocabulary, text)
    counts: list[int] = []
    sessions = sessions_of(vocabulary, 3, on_step=lambda count, seconds: counts.append(count))
    opened = [sessions.open() for _ in range(3)]
    for session in opened:
        sessions.submit(session, Turn(begin=Begin(layout=layout))).result(WAIT_S)
    computing, go_on = threading.Event(), threading.Event()
    decide = Actor.decide

    def slow(actor: Actor) -> Any:
        computing.set()
        go_on.wait(WAIT_S)
        return decide(actor)

    monkeypatch.setattr(Actor, "decide", slow)
    first = sessions.submit(opened[0], Turn(observation=np.zeros(4, np.float32)))
    computing.wait(WAIT_S)
    others = [sessions.submit(session, Turn(observation=np.zeros(4, np.float32))) for session in opened[1:]]
    go_on.set()
    for future in (first, *others):
        future.result(WAIT_S)
    sessions.shutdown()
    assert counts == [1, 2]


def test_a_session_that_asks_nothing_delays_nobody(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    layout = layout_of(make("vectors"), vocabulary, text)
    sessions = sessions_of(vocabulary, 2)
    quiet, asking = sessions.open(), sessions.open()
    for session in (quiet, asking):
        sessions.submit(session, Turn(begin=Begin(layout=layout))).result(WAIT_S)
    for observation in observations_of("vectors", 5):
        assert sessions.submit(asking, Turn(observation=observation)).result(WAIT_S).shape == (2,)
    sessions.shutdown()


def test_a_session_is_free_again_after_it_was_closed(vocabulary: Vocabulary) -> None:
    sessions = sessions_of(vocabulary, 1)
    session = sessions.open()
    with pytest.raises(UserError, match="all 1 sessions are taken; try again later"):
        sessions.open()
    sessions.close(session)
    while not sessions.num_free:
        threading.Event().wait(0.001)
    assert sessions.open() == session
    sessions.shutdown()


def test_an_observation_of_another_space_leaves_session_and_others_as_they_were(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    layout = layout_of(make("vectors"), vocabulary, text)
    sessions = sessions_of(vocabulary, 2)
    opened = [sessions.open(), sessions.open()]
    for session in opened:
        sessions.submit(session, Turn(begin=Begin(layout=layout))).result(WAIT_S)
    wrong, right = observations_of("vectors", 2)[0][:3], observations_of("vectors", 2)[0]
    refused, acted = (sessions.submit(s, Turn(observation=o)) for s, o in zip(opened, (wrong, right), strict=True))
    with pytest.raises(UserError, match=r"shape \(3,\), expected \(4,\)"):
        refused.result(WAIT_S)
    again = sessions.submit(opened[0], Turn(observation=right))
    assert same(again.result(WAIT_S), acted.result(WAIT_S))
    sessions.shutdown()


def test_a_model_that_fails_is_told_to_all_that_asked_and_they_begin_anew(
    vocabulary: Vocabulary, text: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_of(make("vectors"), vocabulary, text)
    sessions = sessions_of(vocabulary, 1)
    session, observation = sessions.open(), observations_of("vectors", 1)[0]
    sessions.submit(session, Turn(begin=Begin(layout=layout))).result(WAIT_S)
    with monkeypatch.context() as patch:
        patch.setattr(Actor, "decide", lambda _: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            sessions.submit(session, Turn(observation=observation)).result(WAIT_S)
    with pytest.raises(UserError, match="plays no task yet"):
        sessions.submit(session, Turn(observation=observation)).result(WAIT_S)
    sessions.submit(session, Turn(begin=Begin(layout=layout))).result(WAIT_S)
    assert sessions.submit(session, Turn(observation=observation)).result(WAIT_S).shape == (2,)
    sessions.shutdown()


def test_what_was_asked_is_answered_before_the_end(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    sessions = sessions_of(vocabulary, 1)
    layout = layout_of(make("vectors"), vocabulary, text)
    future = sessions.submit(
        sessions.open(), Turn(begin=Begin(layout=layout), observation=observations_of("vectors", 1)[0])
    )
    sessions.shutdown()
    assert future.result(0).shape == (2,)


@pytest.mark.parametrize(("name", "trunk"), CASES)
def test_after_a_correction_the_context_holds_what_was_executed(
    name: str, trunk: str, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    env = make(name)
    layout, seen = layout_of(env, vocabulary, text), observations_of(name, 4)
    model = tiny_model(vocabulary, context=128, **TRUNKS[trunk])
    env.action_space.seed(3)
    instead = env.action_space.sample()
    states = []
    for feeds_anew in (False, True):
        actor = Actor(model, decoding=GREEDY)
        actor.reset(0, layout, prompt_of(env, layout, model.config.trunk))
        for observation in seen[:3]:
            actor.act({0: observation})
        actor.correct(0, instead)
        if feeds_anew:
            actor.sessions[0].window._begin_anew()
        actor.observe(0, seen[3])
        states.append(actor._feed([0]).detach().numpy())
    np.testing.assert_allclose(*states, atol=2e-4)
    last = actor.sessions[0].window.timesteps[-1]
    assert last.ids[-layout.num_action_tokens :].tolist() == layout.ids_of_action(instead).tolist()


def test_there_is_nothing_to_correct_before_an_action(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    actor = Actor(tiny_model(vocabulary))
    actor.reset(0, layout_of(make("vectors"), vocabulary, text))
    with pytest.raises(UserError, match="session 0 has decided nothing yet"):
        actor.correct(0, np.zeros(2))
