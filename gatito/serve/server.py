"""The policy server: one WebSocket connection is one session, in openpi-client's wire format.

    -> GET / Upgrade: websocket, Authorization: Api-Key TOKEN        401 without, 503 where all sessions are taken
    <- metadata: tasks with the fields of their spaces
    -> observation                                                   -> ...
    <- {"actions": (1, A), "server_timing": {"infer_ms": ...}}       <- or a text frame: what was wrong with it

`GET /healthz` and `GET /metrics` are answered on the same port.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import numpy as np
import torch
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from gatito import __version__
from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.decoding import Decoding
from gatito.eval.prompts import prompt_of_episodes
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.model.int8 import quantize_int8
from gatito.model.packed import pack_linears
from gatito.serve.config import ServeConfig
from gatito.serve.deadlines import Deadlines
from gatito.serve.messages import (
    ACTIONS,
    LATE,
    Request,
    described,
    episode_of,
    joined_actions,
    observation_of,
    parse_request,
)
from gatito.serve.metrics import Metrics
from gatito.serve.sessions import Begin, Sessions, Turn
from gatito.serve.wire import pack, unpack
from gatito.tokenizers import Layout

GOING_AWAY, TRY_AGAIN_LATER, INTERNAL_ERROR = 1001, 1013, 1011
"""Close codes of RFC 6455."""
LONGEST_ERROR = 2000
"""Characters of an error: it may quote what was sent."""
PING_S = 20.0
"""Between two pings, and for their answer: a peer that is gone is noticed."""


class PolicyServer:
    """Serves a model until it is told to stop."""

    def __init__(self, model: GatitoForCausalLM, processor: GatitoProcessor, config: ServeConfig, name: str) -> None:
        """`name` is the checkpoint's; raises `UserError` for a task it does not know, and a host without a token."""
        self.config, self.processor, self._token = config, processor, config.token()
        if not processor.layouts:
            raise UserError(f"checkpoint {name} knows no task; there is nothing to serve")
        self._task = config.task or (next(iter(processor.layouts)) if len(processor.layouts) == 1 else None)
        if self._task is not None:
            processor.layout(self._task)
        self._model = model
        actor = Actor(
            quantize_int8(model) if config.int8 else pack_linears(model),
            config.sessions,
            decoding=Decoding(temperature=config.temperature, top_p=config.top_p),
            cache_dtype=torch.bfloat16 if config.int8 else None,
        )
        self._connections: set[ServerConnection] = set()
        self._idle: set[ServerConnection] = set()
        self.metrics = Metrics(lambda: len(self._connections))
        self._sessions = Sessions(actor, self.metrics.on_step)
        self._metadata = pack(self._describe(name))
        self._stopping = asyncio.Event()

    async def run(self, on_ready: Callable[[int], None] = lambda port: None) -> None:
        """Listen until `stop`; `on_ready` is told the port. Raises `OSError` where the port is taken."""
        quiet = logging.getLogger("gatito.serve")
        quiet.setLevel(logging.CRITICAL)  # what strangers send is counted, not logged
        async with serve(
            self._handle,
            self.config.host,
            self.config.port,
            process_request=self._answer_http,
            compression=None,
            max_size=self.config.max_message_bytes,
            ping_interval=PING_S,
            ping_timeout=PING_S,
            logger=quiet,
            server_header="gatito",
        ) as server:
            on_ready(_port(server))
            await self._stopping.wait()
            server.close(close_connections=False)
            for connection in list(self._idle):
                await connection.close(GOING_AWAY, "the server stops")
            await server.wait_closed()
        self._sessions.shutdown()

    def stop(self) -> None:
        """Take no new connections, answer what was asked, and end."""
        self._stopping.set()

    def _describe(self, name: str) -> dict[str, Any]:
        return {
            "server": "gatito",
            "version": __version__,
            "checkpoint": name,
            "task": self._task,
            "tasks": {task: described(layout) for task, layout in sorted(self.processor.layouts.items())},
            "action_horizon": 1,
            "hz": self.config.hz,
            "max_message_bytes": self.config.max_message_bytes,
        }

    def _answer_http(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """What is no WebSocket, and who may not open one."""
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        given = request.headers.get("Authorization", "")
        if self._token is not None and not hmac.compare_digest(
            given.encode(errors="replace"), f"Api-Key {self._token}".encode()
        ):
            self.metrics.refused.labels("token").inc()
            return connection.respond(HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Api-Key TOKEN\n")
        if request.path == "/metrics":
            return connection.respond(HTTPStatus.OK, self.metrics.text())
        if self._stopping.is_set():
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the server stops\n")
        if not self._sessions.num_free:
            self.metrics.refused.labels("sessions").inc()
            told = f"all {self.config.sessions} sessions are taken; try again later\n"
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, told)
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        try:
            session = self._sessions.open()
        except UserError as error:
            self.metrics.refused.labels("sessions").inc()
            await connection.close(TRY_AGAIN_LATER, str(error))
            return
        self._connections.add(connection)
        self.metrics.sessions.inc()
        try:
            await self._converse(
                connection, _Peer(session=session, task=self._task, deadlines=Deadlines(self.config))
            )
        except (ConnectionClosed, TimeoutError):
            connection.transport.abort()  # who does not read, or is gone, waits for nothing
        finally:
            self._connections.discard(connection)
            self._idle.discard(connection)
            self._sessions.close(session)

    async def _converse(self, connection: ServerConnection, peer: "_Peer") -> None:
        await self._send(connection, self._metadata)
        while not self._stopping.is_set():
            self._idle.add(connection)
            try:
                content = await asyncio.wait_for(connection.recv(), self.config.idle_s)
            except TimeoutError:
                await connection.close(GOING_AWAY, f"nothing was asked for {self.config.idle_s:g} s")
                return
            self._idle.discard(connection)
            began = time.monotonic()
            answer = await self._answer(content, peer, began)
            await self._send(connection, answer)
            self.metrics.latency.observe(time.monotonic() - began)
            if peer.is_broken:
                await connection.close(INTERNAL_ERROR, "the model failed; see the frame before")
                return
        await connection.close(GOING_AWAY, "the server stops")

    async def _send(self, connection: ServerConnection, answer: bytes | str) -> None:
        await asyncio.wait_for(connection.send(answer), self.config.send_s)

    async def _answer(self, content: bytes | str, peer: "_Peer", began: float) -> bytes | str:
        """What a frame is answered by: a message, or in a text what is wrong with it."""
        try:
            if isinstance(content, str):
                raise UserError("a text frame; send msgpack in a binary one")
            request = parse_request(unpack(content))
            reply = await self._act(request, peer, began)
            peer.seconds = time.monotonic() - began
            return pack(reply)
        except UserError as error:
            self.metrics.errors.labels("request").inc()
            return str(error)[:LONGEST_ERROR]
        except Exception as error:  # a fault of ours: told to the client, and the others go on
            self.metrics.errors.labels("internal").inc()
            peer.is_broken = True
            return f"the model failed ({type(error).__name__}: {error}); connect anew"

    async def _act(self, request: Request, peer: "_Peer", began: float) -> dict[str, Any]:
        task = (request.reset and request.reset.task) or peer.task
        if task is None:
            known = ", ".join(sorted(self.processor.layouts))
            raise UserError(f'no task is named; send {{"gatito/reset": {{"task": ...}}}} first, one of {known}')
        layout = self.processor.layout(task)
        await peer.deadlines.settle()
        anew = request.reset is not None or not peer.has_begun
        if anew:
            # A long demonstration is tokenized in a thread, and the other sessions go on.
            begin = await asyncio.to_thread(self._begin, request, task, layout)
            await self._ask(peer, Turn(begin=begin))
            peer.task, peer.has_begun = task, True
            peer.deadlines.begin()
        reply: dict[str, Any] = {}
        if request.has_observation:
            observation = observation_of(layout, request)
            future = self._ask(peer, Turn(observation=observation, executed=peer.deadlines.executed))
            deadline = began + 1 / self.config.hz if self.config.hz else None
            action, said = await peer.deadlines.decided(future, layout, deadline)
            self.metrics.missed.inc(said.get(LATE, False))
            reply |= {ACTIONS: joined_actions(layout.actions, action), **said}
        timing = {"infer_ms": (time.monotonic() - began) * 1000}
        if peer.seconds is not None:
            timing["prev_total_ms"] = peer.seconds * 1000
        return reply | {"server_timing": timing}

    def _ask(self, peer: "_Peer", turn: Turn) -> asyncio.Future[Any]:
        return asyncio.wrap_future(self._sessions.submit(peer.session, turn))

    def _begin(self, request: Request, task: str, layout: Layout) -> Begin:
        """An episode, and the demonstration that it is prompted with."""
        seed = request.reset.seed if request.reset is not None else 0
        if request.demonstration is None:
            return Begin(layout=layout, seed=seed)
        episode = episode_of(layout, task, request.demonstration)
        config, rng = self._model.config, np.random.default_rng(seed)
        prompt = prompt_of_episodes([episode], task, layout, config.trunk, int(config.context), "beginning", rng)
        return Begin(layout=layout, prompt=prompt, seed=seed)


class _Peer:
    """What is known of the other end of a connection."""

    def __init__(self, session: int, task: str | None, deadlines: Deadlines) -> None:
        self.session, self.task, self.deadlines = session, task, deadlines
        self.has_begun = False
        """Whether an episode has."""
        self.seconds: float | None = None
        """That the last answer took."""
        self.is_broken = False
        """Whether the model failed."""


def _port(server: Server) -> int:
    return int(next(iter(server.sockets)).getsockname()[1])
