"""The page's server, without a browser."""

import base64
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from played import CAR, CARTPOLE, GRID, WAIT_S, Page, checkpoint_of, page, playing
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from gatito.data.collection import CollectConfig, played_seeds
from gatito.data.minari_arrow import EncodedEpisode
from gatito.data.minari_episodes import open_minari
from gatito.data.tasks import get_task
from gatito.errors import UserError
from gatito.eval.agent import Agent
from gatito.eval.simulators import Answer, Failed, LocalSimulators, Lost
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.play.config import PlayConfig
from gatito.play.requests import opened as opened_message
from gatito.play.requests import request_of
from gatito.play.server import PlayServer
from gatito.tokenizers import TextTokenizer, Vocabulary

Checkpoint = tuple[GatitoForCausalLM, GatitoProcessor]


@pytest.fixture(scope="module")
def checkpoint(vocabulary: Vocabulary, text: TextTokenizer) -> Checkpoint:
    return checkpoint_of(vocabulary, text)


@pytest.fixture(scope="module")
def served(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PlayServer, str]]:
    """A server for all tests that leave it as it was."""
    with playing(*checkpoint, record=str(tmp_path_factory.mktemp("recorded"))) as these:
        yield these


@pytest.fixture
def opened(served: tuple[PlayServer, str]) -> Iterator[Page]:
    with page(served[1]) as own:
        yield own


def png(width: int, height: int) -> bytes:
    """The head of an image of this size, with hardly any content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def rendered(width: int, height: int) -> bytes:
    """A whole image of this size."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return file.getvalue()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def collected(task: str, seed: int = 3) -> EncodedEpisode:
    """An episode as `gatito data collect` writes it."""
    ((_, episode),) = played_seeds(get_task(task), CollectConfig(episodes=1), [seed])
    assert isinstance(episode, EncodedEpisode)
    return episode


def get(url: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), {}


# --- who may come in


def test_the_page_is_three_files_that_ask_no_other_host(served: tuple[PlayServer, str]) -> None:
    url = served[1].partition("#")[0]
    for name in ("", "page.css", "page.js"):
        status, body, headers = get(url + name)
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "http://" not in body
        assert "https://" not in body
    assert get(url + "../../etc/passwd")[0] == 404


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:81"])
def test_the_page_is_found_at_the_usual_port_and_through_a_forwarded_one(
    served: tuple[PlayServer, str], host: str
) -> None:
    assert get(served[1].partition("#")[0], Host=host)[0] == 200


@pytest.mark.parametrize("wrong", ["token", "origin", "no origin", "host"])
def test_another_site_or_who_lacks_the_token_opens_nothing(served: tuple[PlayServer, str], wrong: str) -> None:
    url, _, token = served[1].partition("#")
    host = url.split("/")[2]
    origin: Any = {"origin": "http://evil.example", "no origin": None}.get(wrong, f"http://{host}")
    headers = {"Host": f"evil.example:{host.partition(':')[2]}"} if wrong == "host" else {}
    given = "x" * len(token) if wrong == "token" else token
    if wrong == "host":
        assert get(url, **headers)[0] == 403
        return
    with pytest.raises(InvalidStatus, match="403"), connect(f"ws://{host}/socket?token={given}", origin=origin):
        pass


def test_one_page_more_than_there_is_room_for_is_told_so(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatito.play.server.SEAT_S", 0.1)
    with playing(*checkpoint, pages=1) as (_, address), page(address) as first:
        with pytest.raises(ConnectionClosed, match="1 pages are open already"), page(address):
            pass
        first.begin()
        assert first.heard("moment")["timestep"] == 0


# --- the agent acts


@pytest.mark.parametrize("task", [CARTPOLE, GRID, CAR])
def test_the_page_shows_what_the_agent_does_in_a_loop_of_ones_own(
    checkpoint: Checkpoint, opened: Page, task: str
) -> None:
    agent = Agent(*checkpoint, temperature=0)
    agent.reset(task=task, seed=5)
    env = get_task(task).make()
    observation, _ = env.reset(seed=5)
    opened.begin(task, seed=5)
    assert opened.heard("moment")["timestep"] == 0
    total = 0.0
    for t in range(4):
        action = agent.act(observation)
        observation, reward, *_ = env.step(action)
        total += float(reward)
        (moment,) = opened.stepped()
        np.testing.assert_array_equal(np.ravel(moment["action"]), np.ravel(np.asarray(action, np.float64)))
        assert (moment["timestep"], moment["return"]) == (t + 1, pytest.approx(total))
        assert moment["frame"].startswith("data:image/png;base64,")
    env.close()


def test_running_agents_come_to_the_end_of_their_episode_and_are_scored(opened: Page) -> None:
    opened.begin(CARTPOLE, seed=1)
    opened.say("run", going=True, speed=1000)
    last = opened.heard("moment", lambda moment: moment["over"])
    assert last["score"] == pytest.approx((last["return"] - 21.68) / (500 - 21.68), abs=0.01)
    opened.heard("ended")


def test_an_agent_that_is_told_to_go_on_leaves_the_episode_of_a_person_alone(opened: Page) -> None:
    opened.begin(CARTPOLE, controlled=True)
    opened.heard("moment")
    opened.say("run", going=True, speed=1000)
    opened.say("act", values=[1])
    opened.heard("moment", lambda moment: moment["timestep"] == 1)
    with pytest.raises(TimeoutError):
        opened.socket.recv(0.3)


def test_what_was_wrong_says_of_which_request(opened: Page) -> None:
    opened.say("begin", task=CARTPOLE, seed=-1, prompts=[None], part="beginning", instruction=None, controlled=False)
    error = opened.heard("error")
    assert error["of"] == "begin"
    assert "seed is -1" in error["text"]


def test_a_paused_agent_waits(opened: Page) -> None:
    opened.begin(CAR)
    opened.say("run", going=True, speed=1)
    opened.heard("moment", lambda moment: moment["timestep"] == 2)
    opened.say("run", going=False, speed=1)
    opened.say("look", pane=0)
    opened.heard("look")
    with pytest.raises(TimeoutError):
        opened.socket.recv(0.3)


def test_side_by_side_each_pane_plays_as_it_would_alone(checkpoint: Checkpoint, opened: Page) -> None:
    opened.say("demonstrate", task=GRID)
    number = opened.heard("kept")["number"]
    alone = []
    for prompt in (None, number):
        began = opened.begin(GRID, seed=2, prompts=[prompt])
        assert (began["prompts"][0] is None) == (prompt is None)
        opened.heard("moment")
        alone.append([opened.stepped()[0]["action"] for _ in range(3)])
    opened.begin(GRID, seed=2, prompts=[None, number])
    together = [[moment["action"] for moment in opened.stepped(2)] for _ in range(3)]
    assert [list(row) for row in zip(*together, strict=True)] == alone


def test_a_typed_instruction_is_what_the_model_reads(checkpoint: Checkpoint, opened: Page) -> None:
    opened.begin(GRID, seed=4, instruction="go to the red ball")
    assert opened.heard("moment")["text"] == "go to the red ball"
    agent = Agent(*checkpoint, temperature=0)
    agent.reset(task=GRID, seed=4)
    env = get_task(GRID).make()
    observation, _ = env.reset(seed=4)
    (moment,) = opened.stepped()
    assert moment["action"] == [float(agent.act({**observation, "mission": "go to the red ball"}))]
    opened.say("instruct", text=None)
    assert opened.stepped()[0]["text"] == observation["mission"]
    env.close()


@pytest.mark.parametrize(
    ("task", "typed", "said"),
    [(GRID, "GO! TO?", "is not of Text"), (GRID, "x" * 600, "is not of Text"), (CARTPOLE, "balance", "reads no ins")],
)
def test_an_instruction_that_the_task_cannot_read_is_refused(opened: Page, task: str, typed: str, said: str) -> None:
    opened.begin(task)
    assert said in opened.refused("instruct", text=typed)


def test_attention_is_that_of_the_last_step(opened: Page) -> None:
    opened.begin(CARTPOLE)
    assert "has not acted here yet" in opened.refused("look", pane=0)
    for _ in range(3):
        opened.stepped()
    opened.say("look", pane=0)
    html = opened.heard("look")["html"]
    assert "steps 0 to 2, which is now" in html
    assert "<script" not in html


# --- a person acts


def test_what_a_person_does_becomes_a_demonstration_a_prompt_and_a_dataset(served: Any, opened: Page) -> None:
    opened.begin(CAR, seed=9, controlled=True)
    opened.heard("moment")
    actions = [0.25, -1.0, 1.0]
    for action in actions:
        opened.say("act", values=[action])
        assert opened.heard("moment")["action"] == [action]
    opened.say("finish")
    number = opened.heard("kept")["number"]
    listed = opened.heard("demonstrations")["all"][-1]
    assert (listed["number"], listed["length"], listed["saved"]) == (number, 3, None)
    assert opened.begin(CAR, prompts=[number])["prompts"] == [3]
    opened.say("save", task=CAR, name="lessons-v0")
    folder = Path(opened.heard("saved")["folder"])
    assert folder == Path(served[0].config.record) / CAR / "lessons-v0"
    dataset = open_minari(folder)
    assert (dataset.task, dataset.agent, len(dataset)) == (CAR, "human", 1)
    episode = dataset.episode(0)
    np.testing.assert_array_equal(episode.actions[:, 0], np.float32(actions))
    env = get_task(CAR).make()
    np.testing.assert_array_equal(episode.observations[0], env.reset(seed=9)[0])
    env.close()
    assert episode.seed == 9
    assert "not saved yet" in opened.refused("save", task=CAR, name="more-v0")


def test_an_episode_that_ends_under_a_persons_hands_is_kept_by_itself(opened: Page) -> None:
    opened.begin(CARTPOLE, seed=1, controlled=True)
    opened.heard("moment")
    while True:
        opened.say("act", values=[1])
        if opened.heard("moment")["over"]:
            break
    opened.heard("kept")
    assert "the episode is over" in opened.refused("act", values=[1])
    assert "not kept yet" in opened.refused("finish")


def test_what_a_page_leaves_behind_is_kept_and_saved_at_the_end(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with playing(*checkpoint, record=str(tmp_path)) as (server, address):
        with page(address) as own:
            own.begin(CARTPOLE, controlled=True)
            own.say("act", values=[0])
            own.heard("moment", lambda moment: moment["timestep"] == 1)
        deadline = time.monotonic() + WAIT_S
        while not server.demonstrations.described() and time.monotonic() < deadline:
            time.sleep(0.02)
    (folder,) = server.demonstrations.save_rest()
    assert open_minari(folder).episode(0).actions.tolist() == [0]
    assert server.demonstrations.save_rest() == []


def test_where_it_cannot_be_saved_it_is_saved_elsewhere_and_the_rest_where_it_should(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with playing(*checkpoint, record=str(tmp_path)) as (server, address), page(address) as own:
        for task, action in ((CARTPOLE, 1), (CAR, 0.5)):
            own.begin(task, controlled=True)
            own.say("act", values=[action])
            own.say("finish")
            own.heard("kept")
    (tmp_path / "classic").mkdir()
    (tmp_path / CARTPOLE).write_text("in the way")
    elsewhere, here = sorted(server.demonstrations.save_rest(), key=lambda folder: folder.is_relative_to(tmp_path))
    assert not elsewhere.is_relative_to(tmp_path)
    assert open_minari(elsewhere).task == CARTPOLE
    assert open_minari(here).task == CAR
    shutil.rmtree(elsewhere.parents[2])


def test_many_recordings_are_all_kept_and_none_is_taken_for_another(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatito.play.demonstrations.MOST", 1)
    with playing(*checkpoint, record=str(tmp_path)) as (server, address), page(address) as own:
        numbers = []
        for name in (None, "first-v0", None):
            own.begin(CARTPOLE, controlled=True)
            own.say("act", values=[1])
            own.say("finish")
            numbers.append(own.heard("kept")["number"])
            if name:
                own.say("save", task=CARTPOLE, name=name)
                own.heard("saved")
        assert len(set(numbers)) == 3
        assert [d["saved"] for d in server.demonstrations.described()][-1] is None
        own.say("save", task=CARTPOLE, name="second-v0")
        own.heard("saved")
    assert [len(open_minari(tmp_path / CARTPOLE / name)) for name in ("first-v0", "second-v0")] == [2, 1]


def test_what_is_refused_leaves_the_episode_as_it_was(opened: Page) -> None:
    opened.begin(GRID, controlled=True)
    opened.say("act", values=[2])
    opened.heard("moment", lambda moment: moment["timestep"] == 1)
    begin = {"seed": 0, "prompts": [None], "part": "beginning", "controlled": False}
    assert "is not of Text" in opened.refused("begin", task=GRID, instruction="GO!", **begin)
    assert "was not trained on" in opened.refused("begin", task="classic/nothing", instruction=None, **begin)
    opened.say("act", values=[2])
    assert opened.heard("moment")["timestep"] == 2


@pytest.mark.parametrize("answer", [Failed(reason="it fell over"), Lost()])
def test_an_expert_that_breaks_takes_no_recording_along(
    opened: Page, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    class Broken(LocalSimulators):
        def __init__(self, processes: int, limit_s: float) -> None:
            super().__init__(limit_s=limit_s)

        def exchange(self, requests: Any) -> dict[int, Answer]:
            return dict.fromkeys(requests, answer)

    monkeypatch.setattr("gatito.play.experts.SimulatorPool", Broken)
    opened.begin(CARTPOLE, controlled=True)
    opened.say("act", values=[1])
    assert "gave up 10 times, last: it" in opened.refused("demonstrate", task=CARTPOLE)
    opened.say("finish")
    opened.heard("kept")


def test_another_page_is_told_of_a_demonstration(served: tuple[PlayServer, str], opened: Page) -> None:
    with page(served[1]) as other:
        other.heard("demonstrations")
        opened.say("demonstrate", task=CARTPOLE)
        number = opened.heard("kept")["number"]
        assert number in [one["number"] for one in other.heard("demonstrations")["all"]]
        other.begin(CARTPOLE, prompts=[number])
        opened.begin(CAR)
        assert other.stepped()[0]["timestep"] == opened.stepped()[0]["timestep"] == 1


def test_a_page_that_is_loaded_again_finds_its_place(checkpoint: Checkpoint) -> None:
    with playing(*checkpoint, pages=1) as (_, address):
        for _ in range(4):
            with page(address) as own:
                own.begin(CAR)
                own.say("run", going=True, speed=1000)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([2], "is not of Discrete"),
        ([0, 1], "2 numbers, expected 1"),
        ([0.5], "0.5 is not of Discrete"),
        ([], "allowed 1 to"),
    ],
)
def test_what_is_no_action_of_the_task_is_refused(opened: Page, values: list[float], said: str) -> None:
    opened.begin(CARTPOLE, controlled=True)
    assert said in opened.refused("act", values=values)


def test_only_who_has_the_controls_acts(opened: Page) -> None:
    opened.begin(CARTPOLE)
    assert "the agent has the controls" in opened.refused("act", values=[0])
    opened.begin(CARTPOLE, controlled=True)
    assert "you have the controls" in opened.refused("step")


@pytest.mark.parametrize("name", ["../../evil-v0", "/tmp/evil-v0", "lessons", "", "Lessons-v0", "a/b-v0"])
def test_a_path_in_place_of_a_name_is_refused(opened: Page, name: str) -> None:
    assert "expected letters, digits and a version" in opened.refused("save", task=CARTPOLE, name=name)


def test_a_name_that_is_taken_is_refused_and_nothing_is_lost(served: Any, opened: Page) -> None:
    for name in ("taken-v0", "free-v0"):
        opened.begin(GRID, controlled=True)
        opened.say("act", values=[2])
        opened.heard("moment", lambda moment: moment["timestep"] == 1)
        opened.say("finish")
        opened.heard("kept")
        assert name == "taken-v0" or "exists; choose another name" in opened.refused(
            "save", task=GRID, name="taken-v0"
        )
        opened.say("save", task=GRID, name=name)
        opened.heard("saved")
    assert len(open_minari(Path(served[0].config.record) / GRID / "free-v0")) == 1


# --- demonstrations of others


def test_an_episode_of_a_dataset_is_opened_as_it_was_collected(served: Any, opened: Page) -> None:
    opened.say("upload", task=GRID, name="part-0.arrow", content=encoded(collected(GRID).content))
    number = opened.heard("kept")["number"]
    opened.begin(GRID, prompts=[number])
    kept = served[0].demonstrations.of(number, GRID).episode
    env = get_task(GRID).make()
    assert kept.observations["mission"][0] == env.reset(seed=3)[0]["mission"]
    env.close()


def test_what_is_no_demonstration_of_the_task_is_refused_and_the_page_goes_on(opened: Page) -> None:
    good = collected(GRID).content
    cases = [
        (CARTPOLE, good), (GRID, collected(CARTPOLE).content), (GRID, b"not arrow at all"),
        (GRID, good[: len(good) // 2]), (GRID, b""), (GRID, png(16, 16)), (CAR, collected(CARTPOLE).content),
    ]  # fmt: skip
    for task, content in cases:
        told = opened.refused("upload", task=task, name="wrong.arrow", content=encoded(content))
        assert told.startswith(f"wrong.arrow: no episode of {task!r}"), told
    opened.begin(GRID)
    assert opened.stepped()


def test_flipped_bytes_of_an_episode_are_told_or_are_an_episode(opened: Page) -> None:
    good, rng = collected(CARTPOLE).content, random.Random(0)
    for _ in range(40):
        broken = bytearray(good)
        for _ in range(8):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        opened.say("upload", task=CARTPOLE, name="flipped.arrow", content=encoded(bytes(broken)))
        while True:
            message = json.loads(opened.socket.recv(WAIT_S))
            if message["say"] in ("kept", "error"):
                break
        if message["say"] == "error":
            assert "Error:" not in message["text"].split("(")[0], message["text"]


def test_a_demonstration_of_another_task_prompts_nothing(opened: Page) -> None:
    opened.say("demonstrate", task=CAR)
    number = opened.heard("kept")["number"]
    begin = {"seed": 0, "part": "beginning", "instruction": None, "controlled": False}
    assert "cannot prompt" in opened.refused("begin", task=GRID, prompts=[number], **begin)
    assert "there is no demonstration 999" in opened.refused("begin", task=GRID, prompts=[999], **begin)


# --- questions


def test_a_question_about_the_image_on_the_page_is_answered(opened: Page) -> None:
    assert "no episode has begun" in opened.refused("ask", text="what is it?", image="frame")
    opened.begin(GRID)
    opened.say("ask", text="what is it?", image="frame")
    assert opened.heard("answer")["image"].startswith("data:image/png")
    opened.heard("answer", lambda message: message["over"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (png(20_000, 20_000), "20000 x 20000 pixels"),
        (b"not an image", "no image of a format"),
        (png(8, 8)[:40], "the image"),
    ],
)
def test_an_image_that_cannot_be_read_is_told(opened: Page, content: bytes, said: str) -> None:
    told = opened.refused("ask", text="", image=encoded(content))
    assert said in told or "decompression bomb" in told


def test_an_image_is_scaled_to_what_the_context_holds(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    short = checkpoint_of(vocabulary, text, [CARTPOLE], context=32)
    with playing(*short) as (_, address), page(address) as own:
        own.begin(CARTPOLE)
        for image in ("frame", encoded(rendered(640, 480))):
            own.say("ask", text="", image=image)
            own.heard("answer", lambda message: message["over"])


def test_nothing_asked_is_told(opened: Page) -> None:
    assert "nothing is asked" in opened.refused("ask", text="  ", image=None)


# --- wrong messages


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("{", "is no JSON"),
        ("[1]", "expected an object"),
        ("{}", "do is missing"),
        ('{"do": "begn"}', "did you mean 'begin'"),
        ('{"do": "look", "pane": 7}', "look: pane is 7, allowed 0 to 1"),
        ('{"do": "run", "going": 1, "speed": 1}', "going is 1, expected true or false"),
        ('{"do": "run", "going": true, "speed": 0}', "speed is 0, allowed 0.01"),
        ('{"do": "act", "values": ["x"]}', "expected a finite number"),
        ('{"do": "act", "values": [1e999]}', "expected a finite number"),
        ('{"do": "ask", "text": "", "image": "/etc/passwd!"}', "expected the content of a file"),
        ('{"do": "upload", "task": "x", "name": "n", "content": "~"}', "expected the content of a file"),
    ],
)
def test_a_message_that_says_nothing_is_told_so_and_the_page_goes_on(opened: Page, message: str, said: str) -> None:
    opened.socket.send(message)
    assert said in opened.heard("error")["text"]
    opened.begin()


@pytest.mark.parametrize("task", ["../../etc/passwd", "/tmp/demo", "classic/cart-pole", ""])
def test_a_path_in_place_of_a_task_is_told_what_there_is(opened: Page, task: str) -> None:
    told = opened.refused(
        "begin", task=task, seed=0, prompts=[None], part="beginning", instruction=None, controlled=False
    )
    assert "was not trained on task" in told


def test_fuzzed_messages_are_refused_with_a_sentence() -> None:
    rng = random.Random(1)
    whole = '{"do": "begin", "task": "a", "seed": 1, "prompts": [null], "part": "end", "instruction": null}'
    for _ in range(5000):
        message = list(whole)
        for _ in range(rng.randrange(1, 6)):
            message[rng.randrange(len(message))] = chr(rng.randrange(32, 300))
        with pytest.raises(UserError, match=r"\w"):
            request_of(*opened_message("".join(message)))
    with pytest.raises(UserError, match="binary"):
        opened_message(b"\x00")
    with pytest.raises(UserError, match="JSON"):
        opened_message("[" * 100_000)


def test_a_message_that_is_too_long_ends_its_page_alone(checkpoint: Checkpoint) -> None:
    with playing(*checkpoint, max_message_bytes=10_000) as (_, address), page(address) as other:
        with page(address) as own, pytest.raises(ConnectionClosed, match="too big"):
            own.refused("ask", text="", image="x" * 20_000)
        other.begin()
        assert other.stepped()


# --- what breaks


def test_a_simulator_that_dies_is_told_and_the_next_episode_begins(served: Any, opened: Page) -> None:
    opened.begin(CARTPOLE)
    opened.heard("moment")
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    opened.begin(CARTPOLE)
    for process in before & {p.pid for p in psutil.Process().children(recursive=True)}:
        name = " ".join(psutil.Process(process).cmdline())
        if "forkserver" in name and not psutil.Process(process).children():
            os.kill(process, signal.SIGKILL)
    opened.say("step")
    assert "begin another episode" in opened.heard("error")["text"]
    opened.begin(CARTPOLE)
    assert opened.stepped()[0]["timestep"] == 1


def test_a_checkpoint_without_tasks_of_this_machine_is_refused(checkpoint: Checkpoint) -> None:
    model, processor = checkpoint
    strange = GatitoProcessor(processor.trunk, processor.text, {"lab/nowhere": processor.layouts[CARTPOLE]})
    with pytest.raises(UserError, match="none of the 1 tasks of toy can be simulated here: 'lab/nowhere'"):
        PlayServer(model, strange, PlayConfig(), "toy")
    with pytest.raises(UserError, match="was not trained on task"):
        PlayServer(model, processor, PlayConfig(task="classic/acrobot"), "toy")


def test_a_task_with_other_spaces_than_it_was_trained_with_is_refused(checkpoint: Checkpoint) -> None:
    model, processor = checkpoint
    changed = GatitoProcessor(processor.trunk, processor.text, {CARTPOLE: processor.layouts[CAR]})
    with pytest.raises(UserError, match="the spaces have changed"):
        PlayServer(model, changed, PlayConfig(), "toy")


@pytest.mark.slow
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP])
def test_the_command_saves_what_was_recorded_when_it_is_told_to_end(
    checkpoint: Checkpoint, tmp_path: Path, told: signal.Signals
) -> None:
    model, processor = checkpoint
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "gatito", "play", "model", "--no-browser", "--record", "kept"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as own:
        assert own.stdout is not None
        with page(own.stdout.readline().strip()) as opened:
            opened.begin(CARTPOLE, controlled=True)
            opened.say("act", values=[1])
            opened.heard("moment", lambda moment: moment["timestep"] == 1)
            own.send_signal(told)
            with pytest.raises(ConnectionClosed, match="has stopped"):
                opened.heard("never")
        said = own.stdout.read()
    assert own.returncode == 0
    (folder,) = (tmp_path / "kept" / CARTPOLE).glob("unsaved-*-v0")
    assert f"recorded and not saved yet, now in kept/{CARTPOLE}/{folder.name}" in said
    assert open_minari(folder).episode(0).actions.tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"port": 70_000}, "--port is 70000"),
        ({"pages": 0}, "--pages is 0"),
        ({"threads": 0}, "--threads is 0"),
        ({"record": __file__}, "is a file; name a folder"),
        ({"record": "/proc/nowhere"}, "--record /proc/nowhere cannot be written"),
        ({"temperature": -1.0}, "temperature"),
        ({"limit_s": 0.0}, "--limit-s is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        PlayConfig(**settings)


def test_controls_have_the_names_and_keys_of_their_actions(opened: Page) -> None:
    (grid,) = opened.begin(GRID)["controls"]
    assert grid["names"][:3] == ["turn left", "turn right", "forward"]
    assert grid["keys"][:3] == ["ArrowLeft", "ArrowRight", "ArrowUp"]
    (car,) = opened.begin(CAR)["controls"]
    assert (car["kind"], car["low"], car["high"]) == ("continuous", -1.0, 1.0)
