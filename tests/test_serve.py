"""A policy server and its clients."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from acting import make
from served import OpenPi, observations_of, packed, serving, toy_checkpoint, unpacked
from toy import toy_episode
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from gatito import cli
from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.agent import Agent
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.serve.client import Client
from gatito.serve.config import ServeConfig
from gatito.serve.deadlines import still
from gatito.tokenizers import TextTokenizer, Vocabulary

Checkpoint = tuple[GatitoForCausalLM, GatitoProcessor]


@pytest.fixture(scope="module")
def checkpoint(vocabulary: Vocabulary, text: TextTokenizer) -> Checkpoint:
    """Knows a toy task of each kind of space."""
    return toy_checkpoint(vocabulary, text)


@pytest.fixture(scope="module")
def vectors(vocabulary: Vocabulary, text: TextTokenizer) -> Checkpoint:
    """Knows one task of numbers."""
    return toy_checkpoint(vocabulary, text, "vectors")


def same(a: Any, b: Any) -> bool:
    return all(map(same, a, b)) if isinstance(a, tuple) else bool(np.array_equal(a, b))


def get(uri: str, path: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(uri.replace("ws://", "http://") + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric(uri: str, name: str) -> float:
    line = next(line for line in get(uri, "/metrics")[1].splitlines() if line.startswith(f"{name} "))
    return float(line.split()[-1])


# Its clients


def test_a_client_of_openpi_is_served_unchanged(vectors: Checkpoint) -> None:
    with serving(*vectors) as (_, uri), OpenPi(uri) as client:
        assert client.metadata["task"] == "toy/vectors"
        answers = [client.infer({"observation": seen}) for seen in observations_of("vectors", 3)]
    agent = Agent(*vectors, temperature=0)
    agent.reset("toy/vectors")
    for answer, seen in zip(answers, observations_of("vectors", 3), strict=True):
        assert answer["actions"].shape == (1, 2)
        assert same(answer["actions"][0], agent.act(seen))
        assert answer["server_timing"]["infer_ms"] > 0
    assert answers[1]["server_timing"]["prev_total_ms"] > 0


@pytest.mark.parametrize("name", ["vectors", "missions", "images", "everything"])
def test_the_client_acts_as_the_agent_does(name: str, checkpoint: Checkpoint) -> None:
    agent, task = Agent(*checkpoint, temperature=0), f"toy/{name}"
    agent.reset(task)
    with serving(*checkpoint) as (_, uri), Client(uri) as client:
        client.reset(task)
        for seen in observations_of(name, 3):
            action = client.act(seen)
            assert same(action, agent.act(seen))
            assert make(name).action_space.contains(action)


def test_a_demonstration_is_the_prompt(checkpoint: Checkpoint) -> None:
    agent, task = Agent(*checkpoint, temperature=0), "toy/everything"
    shown = toy_episode(make("everything", length=2), seed=5, task=task)
    agent.reset(task, demonstration=shown)
    with serving(*checkpoint) as (server, uri), Client(uri) as client:
        client.reset(task, demonstration=shown)
        (session,) = server._sessions._actor.sessions.values()
        assert session.window.pinned is not None
        for seen in observations_of("everything", 3):
            assert same(client.act(seen), agent.act(seen))


def test_sampled_actions_follow_from_the_seed(vectors: Checkpoint) -> None:
    seen = observations_of("vectors", 1)[0]
    with serving(*vectors, temperature=1.0) as (_, uri), Client(uri) as client:
        acted = []
        for seed in (1, 2, 1):
            client.reset(seed=seed)
            acted.append(client.act(seen))
    assert same(acted[0], acted[2])
    assert not same(acted[0], acted[1])


def test_prompt_is_the_instruction_and_names_may_be_nested_or_prefixed(checkpoint: Checkpoint) -> None:
    at, mission = np.array([1, 2]), "if the expression is a class"
    ways = (
        {"at": at, "mission": mission},
        {"at": at, "prompt": mission},
        {"observation/at": at, "prompt": mission},
        {"observation": {"at": at, "mission": mission}},
        {"at": at.tolist(), "prompt": mission},
    )
    with serving(*checkpoint) as (server, uri):
        contexts = []
        for way in ways:
            with OpenPi(uri) as client:
                client.infer({"gatito/reset": {"task": "toy/missions"}} | way)
                (session,) = server._sessions._actor.sessions.values()
                contexts.append(session.window.timesteps[0].ids.tolist())
            while server._sessions._actor.sessions:
                time.sleep(0.001)
    assert all(context == contexts[0] for context in contexts)


def test_an_episode_begins_with_an_empty_context(vectors: Checkpoint) -> None:
    seen = observations_of("vectors", 3)
    with serving(*vectors) as (_, uri), OpenPi(uri) as client:
        first = client.infer({"observation": seen[0]})["actions"]
        client.infer({"observation": seen[1]})
        assert client.infer({"gatito/reset": True}).keys() == {"server_timing"}
        assert same(client.infer({"observation": seen[0]})["actions"], first)


# What a client does wrong


def large_image() -> dict[str, Any]:
    return {b"__ndarray__": True, b"data": b"\0" * 64, b"dtype": "|u1", b"shape": [20_000, 20_000, 3]}


def shown(demonstration: dict[str, Any]) -> dict[str, Any]:
    return {"gatito/reset": True, "gatito/demonstration": demonstration}


IMAGE, TWO = np.zeros((16, 32, 3), np.uint8), np.zeros((2, 2), np.int64)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"gatito/reset": {"task": "../../etc/passwd"}}, "not trained on task '../../etc/passwd'"),
        ({"image": IMAGE, "heading": 1, "gatito/reset": {"task": "toy/image"}}, "did you mean 'toy/images'"),
        ({"gatito/reset": {"task": 7}}, "task is 7, expected a task id"),
        ({"gatito/reset": {"seed": -1}}, "seed is -1, allowed 0 to"),
        ({"gatito/reset": {"sed": 1}}, "expected true, or a map of 'task' and 'seed'"),
        ({"gatito/reset": [1]}, r"gatito/reset is \[1\], expected true"),
        ({}, "an empty message; send an observation"),
        ({"image": IMAGE}, "field 'heading' is missing; got 'image'"),
        ({"image": IMAGE, "heading": 1, "speed": 1}, "field 'speed' is none of the task's; its fields are 'h"),
        ({"image": IMAGE, "heading": 1, "prompt": "go"}, "prompt is 'go', and the task.s observations have no text"),
        ({"image": IMAGE, "heading": 1, "prompt": 3}, "prompt is a int, expected a text"),
        ({"image": IMAGE.astype(np.float32), "heading": 1}, "dtype float32, expected uint8"),
        ({"image": IMAGE[:8], "heading": 1}, r"shape \(8, 32, 3\), expected \(16, 32, 3\)"),
        ({"image": large_image(), "heading": 1}, "20000, 20000, 3.* with 64 bytes; they do not fit"),
        ({"image": IMAGE, "heading": 9}, r"value 9, allowed \[0, 3\]"),
        ({"image": IMAGE, "heading": np.nan}, "NaN or Inf"),
        ({"image": IMAGE, "heading": "left"}, "dtype <U4, expected int64"),
        ({"image": "a.png", "heading": 1}, "expected uint8"),
        ({"gatito/demonstration": {"actions": np.zeros((2, 2))}}, "without gatito/reset"),
        (shown({"image": 1}), "no map of observations and 'actions'"),
        (shown({"actions": np.zeros((2, 3))}), r"shape \(2, 3\), expected an array \(timesteps, 2\)"),
        (shown({"actions": TWO, "heading": np.zeros(2)}), "field 'image' is missing"),
        (shown({"actions": TWO, "heading": np.zeros(5), "image": IMAGE[None]}), "5 values where there are 2 actions"),
        (shown({"actions": TWO + 9, "heading": np.zeros(2), "image": np.stack([IMAGE, IMAGE])}), "value 9, allowed"),
    ],
)  # fmt: skip
def test_a_wrong_message_is_answered_by_what_was_expected_and_the_session_goes_on(
    message: dict[str, Any], said: str, checkpoint: Checkpoint
) -> None:
    with serving(*checkpoint, task="toy/images") as (_, uri), OpenPi(uri) as client:
        with pytest.raises(RuntimeError, match=said):
            client.infer(message)
        assert client.infer({"image": IMAGE, "heading": 1})["actions"].shape == (1, 2)


def test_a_task_has_to_be_named_where_the_server_knows_several(checkpoint: Checkpoint) -> None:
    message = r"no task is named; .* one of toy/everything, toy/images"
    with serving(*checkpoint) as (_, uri), OpenPi(uri) as client, pytest.raises(RuntimeError, match=message):
        client.infer({"image": IMAGE, "heading": 1})


def test_frames_that_are_no_messages_are_answered_and_the_session_goes_on(vectors: Checkpoint) -> None:
    with serving(*vectors) as (_, uri), OpenPi(uri) as client:
        for frame, said in ((b"\xc1garbage", "no msgpack message"), ("text", "a text frame"), (b"", "no msgpack")):
            client.socket.send(frame)
            assert said in client.socket.recv(20)
        assert client.infer({"observation": np.zeros(4)})["actions"].shape == (1, 2)


def test_a_message_that_is_too_long_ends_its_session_alone(vectors: Checkpoint) -> None:
    with serving(*vectors, max_message_bytes=1000) as (_, uri), OpenPi(uri) as other, OpenPi(uri) as client:
        with pytest.raises(ConnectionClosed, match="1009"):
            client.infer({"observation": np.zeros(1000)})
        assert other.infer({"observation": np.zeros(4)})["actions"].shape == (1, 2)


def test_bytes_that_are_no_websocket_are_refused(vectors: Checkpoint) -> None:
    with serving(*vectors) as (_, uri):
        for content in (b"\x16\x03\x01" + b"\0" * 200, b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n", b""):
            with socket.create_connection(("127.0.0.1", int(uri.rpartition(":")[2]))) as stranger:
                stranger.sendall(content)
        with OpenPi(uri) as client:
            assert client.infer({"observation": np.zeros(4)})["actions"].shape == (1, 2)


@pytest.mark.parametrize("count", [300, pytest.param(100_000, marks=pytest.mark.slow)])
def test_fuzzed_frames_leave_the_server_alive_and_the_others_served(vectors: Checkpoint, count: int) -> None:
    rng = np.random.default_rng(0)
    whole = packed({"observation": np.zeros(4, np.float32), "gatito/reset": {"seed": 3}})
    with serving(*vectors) as (_, uri), OpenPi(uri) as client, OpenPi(uri) as other:
        for i in range(count):
            if i % 1000 == 0:
                assert other.infer({"observation": np.zeros(4)})["actions"].shape == (1, 2)
            content = bytearray(whole)
            for place in rng.integers(len(content), size=3):
                content[place] = rng.integers(256)
            client.socket.send(bytes(content))
            assert client.socket.recv(20)
        assert client.infer({"observation": np.zeros(4)})["actions"].shape == (1, 2)


def test_a_client_that_leaves_in_the_middle_frees_its_session(vectors: Checkpoint) -> None:
    with serving(*vectors, sessions=1) as (server, uri):
        for _ in range(3):
            client = OpenPi(uri)
            client.socket.send(packed({"observation": np.zeros(4)}))
            client.socket.socket.close()
            deadline = time.monotonic() + 20
            while not server._sessions.num_free and time.monotonic() < deadline:
                time.sleep(0.01)
        with OpenPi(uri) as client:
            assert client.infer({"observation": np.zeros(4)})["actions"].shape == (1, 2)


def test_a_session_that_asks_nothing_is_closed_in_time(vectors: Checkpoint) -> None:
    message = r"nothing was asked for 0\.05 s"
    with serving(*vectors, idle_s=0.05) as (_, uri), OpenPi(uri) as client:
        with pytest.raises(ConnectionClosed, match=message):
            client.socket.recv(20)
        assert get(uri, "/healthz")[0] == 200


@pytest.mark.slow
def test_a_client_that_stops_reading_is_dropped(vectors: Checkpoint) -> None:
    def ask_on(stuck: ClientConnection) -> None:
        for _ in range(200_000):
            stuck.send(packed({"x" * 1500: 1}))  # answered by as long an error

    with serving(*vectors, send_s=0.5) as (_, uri):
        with pytest.raises((ConnectionClosed, OSError)), connect(uri, compression=None, max_queue=1) as stuck:
            ask_on(stuck)
        with OpenPi(uri) as client:
            assert client.infer({"observation": np.zeros(4)})["actions"].shape == (1, 2)


@pytest.mark.slow
def test_a_thousand_connections_get_what_there_is(vectors: Checkpoint) -> None:
    with serving(*vectors, sessions=8) as (_, uri):
        open_clients = [OpenPi(uri) for _ in range(8)]
        for _ in range(992):
            with pytest.raises(InvalidStatus) as refused:
                OpenPi(uri)
            assert refused.value.response.status_code == 503
            assert b"all 8 sessions are taken" in (refused.value.response.body or b"")
        for client in open_clients:
            assert client.infer({"observation": np.zeros(4)})["actions"].shape == (1, 2)
            client.socket.close()


# Who may, and how it is watched


def test_who_has_no_token_is_refused(vectors: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATITO_TOKEN", "secret")
    with serving(*vectors) as (_, uri):
        for key in (None, "secre", "secret2"):
            with pytest.raises(InvalidStatus, match="401"):
                OpenPi(uri, key)
        assert get(uri, "/healthz") == (200, "OK\n")
        assert get(uri, "/metrics")[0] == 401
        assert get(uri, "/metrics", Authorization="Api-Key secret")[0] == 200
        with OpenPi(uri, "secret") as client:
            assert client.infer({"observation": np.zeros(4)})["actions"].shape == (1, 2)
        with pytest.raises(UserError, match=r"no policy server at ws://.*401"):
            Client(uri, token="wrong")


@pytest.mark.parametrize(
    ("settings", "token", "message"),
    [
        ({"host": "0.0.0.0"}, None, r"--host 0\.0\.0\.0 is reached by others; set a token"),
        ({}, "", "the token of GATITO_TOKEN is empty or has spaces"),
        ({"token_file": "missing"}, None, "--token-file missing: cannot be read"),
    ],
)
def test_a_server_without_a_sound_token_does_not_start(
    settings: dict[str, Any], token: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GATITO_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("GATITO_TOKEN", token)
    with pytest.raises(UserError, match=message):
        ServeConfig(**settings).token()


def test_metrics_count_sessions_actions_and_errors(vectors: Checkpoint) -> None:
    with serving(*vectors) as (_, uri), OpenPi(uri) as client:
        for _ in range(3):
            client.infer({"observation": np.zeros(4)})
        with pytest.raises(RuntimeError):
            client.infer({})
        assert metric(uri, "gatito_sessions") == 1
        assert metric(uri, "gatito_actions_total") == 3
        assert metric(uri, 'gatito_errors_total{kind="request"}') == 1
        assert metric(uri, "gatito_answer_seconds_count") == 4


def test_a_model_that_fails_is_told_and_the_client_may_connect_anew(
    vectors: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(*vectors) as (_, uri):
        with monkeypatch.context() as patch, OpenPi(uri) as client:
            patch.setattr(Actor, "decide", lambda _: 1 // 0)
            with pytest.raises(RuntimeError, match=r"the model failed .ZeroDivisionError.*; connect anew"):
                client.infer({"observation": np.zeros(4)})
            with pytest.raises(ConnectionClosed, match="1011"):
                client.socket.recv(20)
        with OpenPi(uri) as client:
            assert client.infer({"observation": np.zeros(4)})["actions"].shape == (1, 2)


# Real time


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    decide = Actor.decide

    def slow(actor: Actor) -> Any:
        time.sleep(seconds)
        return decide(actor)

    monkeypatch.setattr(Actor, "decide", slow)


@pytest.mark.parametrize("late", ["repeat", "hold"])
def test_a_late_action_is_counted_and_another_is_executed(
    late: str, vectors: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = observations_of("vectors", 3)
    with serving(*vectors, hz=20, late=late) as (server, uri), OpenPi(uri) as client:
        first = client.infer({"observation": seen[0]})
        slowed(monkeypatch, 0.2)
        began = time.monotonic()
        second = client.infer({"observation": seen[1]})
        assert time.monotonic() - began < 0.19
        assert same(second["actions"], first["actions"] if late == "repeat" else np.zeros((1, 2)))
        assert (second["gatito/late"], second["gatito/missed_deadlines"]) == (True, 1 + first["gatito/late"])
        monkeypatch.undo()
        time.sleep(0.3)  # until the late one is decided
        client.infer({"observation": seen[2]})
        (session,) = server._sessions._actor.sessions.values()
        layout = session.layout
        executed = session.window.timesteps[1].ids[-2:].tolist()
        assert executed == layout.ids_of_action(second["actions"][0]).tolist()
        assert metric(uri, "gatito_missed_deadlines_total") >= 1


def test_the_first_action_is_waited_for(vectors: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, 0.1)
    with serving(*vectors, hz=50) as (_, uri), OpenPi(uri) as client:
        answer = client.infer({"observation": np.zeros(4)})
        assert answer["gatito/late"]
        assert answer["actions"].shape == (1, 2)


def test_holding_still_is_the_bound_nearest_to_zero_and_the_last_choice(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    _, processor = toy_checkpoint(vocabulary, text, "everything")
    choice, values = still(processor.layout("toy/everything"), (np.int64(3), np.array([7.0, 8.0])))
    assert choice == 3
    assert values.tolist() == [0.0, 0.0]


# The command


@pytest.fixture(scope="module")
def folder(vectors: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "checkpoint"
    for part in vectors:
        part.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_sigterm_drains_and_ends_with_zero(folder: Path) -> None:
    command = [sys.executable, "-m", "gatito", "serve", str(folder), "--port", "0", "--temperature", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as server:
        assert server.stdout is not None
        uri = server.stdout.readline().partition(": ")[0]
        asking, idle = OpenPi(uri), OpenPi(uri)
        asking.infer({"observation": np.zeros(4)})
        asking.socket.send(packed({"observation": np.zeros(4)}))
        time.sleep(0.05)
        server.send_signal(signal.SIGTERM)
        assert unpacked(asking.socket.recv(20))["actions"].shape == (1, 2)
        for client in (asking, idle):
            with pytest.raises(ConnectionClosed, match="1001"):
                client.socket.recv(20)
        assert server.wait(20) == 0
        assert "stopped: what was asked has been answered" in server.stdout.read()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "missing: CHECKPOINT"),
        (["nowhere"], "nowhere"),
        (["{folder}", "--task", "toy/vector"], "did you mean 'toy/vectors'"),
        (["{folder}", "--host", "0.0.0.0"], "is reached by others; set a token"),
        (["{folder}", "--port", "70000"], "--port is 70000, allowed 0"),
        (["{folder}", "--sessions", "0"], "--sessions is 0, allowed 1 to 1024"),
        (["{folder}", "--hz", "0"], "--hz is 0, allowed above 0"),
        (["{folder}", "--late", "wait"], "late"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(options: list[str], message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        cli.run(["serve", *(option.format(folder=folder) for option in options)])


def test_a_port_that_is_taken_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen on 127\.0\.0\.1:{port} \("):
            cli.run(["serve", str(folder), "--port", str(port)])


def test_an_answer_that_comes_too_late_is_never_taken_for_the_next() -> None:
    fields = [{"name": "", "path": [], "kind": "discrete", "dtype": "int64", "shape": []}]
    metadata = {"task": "a/b", "tasks": {"a/b": {"observations": fields, "actions": fields, "prompt": None}}}

    def slow(connection: ServerConnection) -> None:
        connection.send(packed(metadata))
        for _ in connection:
            time.sleep(0.5)
            connection.send(packed({"actions": np.zeros((1, 1))}))

    with serve(slow, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = Client(f"ws://127.0.0.1:{server.socket.getsockname()[1]}", timeout_s=0.1)
        with pytest.raises(UserError, match=r"has not answered for 0\.1 s; connect anew"):
            client.act(np.int64(0))
        with pytest.raises(UserError, match="connect anew"):
            client.act(np.int64(0))
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_the_probe_names_the_largest_recipe_that_holds_a_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gatito.serve.probe.recipe_names", lambda: ["ladder-1m", "ladder-0.3m"])
    monkeypatch.setattr("gatito.serve.probe.STEPS", 5)
    cli.run(["serve", "--probe", "--hz", "0.5"])
    said = capsys.readouterr().out
    assert said.index("| ladder-0.3m |") < said.index("| ladder-1m |")
    assert "the largest that holds 0.5 Hz here: ladder-1m" in said
    cli.run(["serve", "--probe", "--hz", "1000"])
    assert "the largest that holds 1000 Hz here: none" in capsys.readouterr().out
