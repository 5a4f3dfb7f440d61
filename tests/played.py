"""The server of the page in a thread, and what a page says to it."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from toy import tiny_model
from websockets.sync.client import ClientConnection, connect

from gatito.data.tasks import get_task
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.play.config import PlayConfig
from gatito.play.server import PlayServer
from gatito.tokenizers import TextTokenizer, Vocabulary

CARTPOLE, GRID, CAR = "classic/cartpole", "babyai/go-to-local-s5n2", "classic/mountain-car-continuous"
WAIT_S = 30


def checkpoint_of(
    vocabulary: Vocabulary, text: TextTokenizer, tasks: Sequence[str] = (CARTPOLE, GRID, CAR), context: int = 256
) -> tuple[GatitoForCausalLM, GatitoProcessor]:
    """A tiny model and a processor that knows tasks of the registry."""
    model, layouts = tiny_model(vocabulary, context=context), {}
    for task in tasks:
        spec = get_task(task)
        env = spec.make()
        layouts[task] = spec.layout(env, vocabulary, text)
        env.close()
    return model, GatitoProcessor(model.config.trunk, text, layouts)


@contextmanager
def playing(model: GatitoForCausalLM, processor: GatitoProcessor, **config: Any) -> Iterator[tuple[PlayServer, str]]:
    """The server, and the address that it prints."""
    server = PlayServer(model, processor, PlayConfig(**{"temperature": 0.0, "task": CARTPOLE} | config), "toy")
    ready, addresses, loop = threading.Event(), list[str](), asyncio.new_event_loop()

    def on_ready(address: str) -> None:
        addresses.append(address)
        ready.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(server.run(on_ready)))
    thread.start()
    try:
        assert ready.wait(WAIT_S)
        yield server, addresses[0]
    finally:
        loop.call_soon_threadsafe(server.stop)
        thread.join(WAIT_S)
        assert not thread.is_alive()
        loop.close()


class Page:
    """An open page."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.greeting = self.heard("hello")

    def say(self, do: str, **values: Any) -> None:
        self.socket.send(json.dumps({"do": do, **values}))

    def begin(self, task: str = CARTPOLE, **values: Any) -> dict[str, Any]:
        """Begin an episode; returns what the server says of it."""
        usual = {"seed": 0, "prompts": [None], "part": "beginning", "instruction": None, "controlled": False}
        self.say("begin", task=task, **(usual | values))
        return self.heard("began")

    def heard(self, say: str, where: Callable[[dict[str, Any]], bool] = lambda message: True) -> dict[str, Any]:
        """The next message of a kind; an error of which none was expected fails the test."""
        while True:
            message = json.loads(self.socket.recv(WAIT_S))
            if message["say"] == say and where(message):
                return message
            assert message["say"] != "error", message["text"]

    def refused(self, do: str, **values: Any) -> str:
        """What is said to be wrong with a request."""
        self.say(do, **values)
        return self.heard("error")["text"]

    def stepped(self, panes: int = 1) -> list[dict[str, Any]]:
        """What each pane shows after a step of the agent."""
        self.say("step")
        return [self.heard("moment", lambda moment: moment["timestep"] > 0) for _ in range(panes)]


@contextmanager
def page(address: str) -> Iterator[Page]:
    """A page of the address that was printed."""
    url, _, token = address.partition("#")
    host = url.split("/")[2]
    with connect(f"ws://{host}/socket?token={token}", origin=f"http://{host}", max_size=None) as socket:
        yield Page(socket)
