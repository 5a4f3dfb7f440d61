"""A policy server in a thread, and a client in the documented wire of openpi-client 0.1.2, apart from ours."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import gymnasium as gym
import msgpack
import numpy as np
from acting import ENVS, make
from toy import layout_of, tiny_model
from websockets.sync.client import connect

from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.serve.config import ServeConfig
from gatito.serve.server import PolicyServer
from gatito.tokenizers import TextTokenizer, Vocabulary


def toy_checkpoint(
    vocabulary: Vocabulary, text: TextTokenizer, *names: str, **changes: Any
) -> tuple[GatitoForCausalLM, GatitoProcessor]:
    """A tiny model and a processor that knows toy environments by name, such as `toy/images`."""
    model = tiny_model(vocabulary, **changes)
    layouts = {f"toy/{name}": layout_of(make(name), vocabulary, text) for name in names or ENVS}
    return model, GatitoProcessor(model.config.trunk, text, layouts)


@contextmanager
def serving(
    model: GatitoForCausalLM, processor: GatitoProcessor, **config: Any
) -> Iterator[tuple[PolicyServer, str]]:
    """The server, and the address that it listens on."""
    server = PolicyServer(model, processor, ServeConfig(**{"port": 0, "temperature": 0.0} | config), "toy")
    ready, ports, loop = threading.Event(), list[int](), asyncio.new_event_loop()

    def on_ready(port: int) -> None:
        ports.append(port)
        ready.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(server.run(on_ready)))
    thread.start()
    try:
        assert ready.wait(20)
        yield server, f"ws://127.0.0.1:{ports[0]}"
    finally:
        loop.call_soon_threadsafe(server.stop)
        thread.join(20)
        assert not thread.is_alive()
        loop.close()


def packed(message: Any) -> bytes:
    """As openpi-client packs it."""

    def default(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}

    return msgpack.packb(message, default=default)


def unpacked(content: bytes) -> Any:
    """As openpi-client unpacks it."""

    def hook(values: dict[Any, Any]) -> Any:
        if b"__ndarray__" in values:
            return np.ndarray(buffer=values[b"data"], dtype=values[b"dtype"], shape=values[b"shape"])
        return np.dtype(values[b"dtype"]).type(values[b"data"]) if b"__npgeneric__" in values else values

    return msgpack.unpackb(content, object_hook=hook)


class OpenPi:
    """What openpi's `WebsocketClientPolicy` does on the wire."""

    def __init__(self, uri: str, api_key: str | None = None) -> None:
        headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        opening = connect(uri, compression=None, max_size=None, additional_headers=headers)
        self.opened = ExitStack()
        self.socket = self.opened.enter_context(opening)
        self.metadata = unpacked(self.socket.recv(20))

    def __enter__(self) -> "OpenPi":
        return self

    def __exit__(self, *error: object) -> None:
        self.opened.close()

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        self.socket.send(packed(observation))
        answer = self.socket.recv(20)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return unpacked(answer)


def observations_of(name: str, count: int, seed: int = 0) -> list[Any]:
    """What a toy environment shows over some steps."""
    env: gym.Env[Any, Any] = make(name, length=count + 1)
    found = [env.reset(seed=seed)[0]]
    while len(found) < count:
        found.append(env.step(env.action_space.sample())[0])
    return found
