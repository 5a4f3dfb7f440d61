"""The page's server: three files over HTTP, and a WebSocket of JSON for each open page.

It listens on 127.0.0.1 alone. The WebSocket is opened only by the page itself (`Origin`), with the random token that
the printed address carries behind `#`: what stands there, browsers send to nobody.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Callable
from functools import cached_property
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from gatito import __version__
from gatito.data.tasks import get_task, registry
from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.decoding import Decoding
from gatito.eval.evaluate import check_environment
from gatito.eval.simulator_pool import SimulatorPool
from gatito.eval.simulators import Begin, Simulators
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.model.packed import pack_linears
from gatito.play.config import PlayConfig
from gatito.play.demonstrations import Demonstrations
from gatito.play.game import Stage
from gatito.play.questions import Questions
from gatito.play.requests import PANES, opened, request_of
from gatito.play.visitor import Visitor
from gatito.serve.server import GOING_AWAY, TRY_AGAIN_LATER
from gatito.serve.sessions import Sessions

HOST = "127.0.0.1"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
SOCKET = "/socket"
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'"
"""The page runs its own script and style and shows what it was sent; it asks no other host."""
FIRST_SEED = 0
SEAT_S = 3.0
"""Seconds that a page waits for a place: one that is loaded again has just left its own."""


class PlayServer:
    """Serves the page until it is told to stop."""

    def __init__(self, model: GatitoForCausalLM, processor: GatitoProcessor, config: PlayConfig, name: str) -> None:
        """`name` is the checkpoint's.

        Raises `UserError` where none of its tasks can be simulated here, or not the one that is to be shown first.
        """
        self.config, self.token = config, secrets.token_urlsafe(24)
        self._processor, self._name = processor, name
        self._stages: dict[str, Stage] = {}
        self._tasks = _simulated(processor)
        if not self._tasks:
            raise UserError(
                f"none of the {len(processor.layouts)} tasks of {name} can be simulated here: {_why(processor)}"
            )
        self._first = config.task or self._tasks[0]
        self.stage(self._first)
        decoding = Decoding(temperature=config.temperature, top_p=config.top_p)
        self._sessions = Sessions(Actor(pack_linears(model), PANES * config.pages, decoding=decoding))
        self.demonstrations = Demonstrations(Path(config.record))
        self._stopping = asyncio.Event()
        self._open: dict[ServerConnection, Visitor] = {}
        self._questions = Questions(model, processor)
        self._spare: asyncio.Task[Simulators] | None = None

    def stage(self, task: str) -> Stage:
        """A task that the checkpoint knows; raises `UserError` for others, and for one with other spaces here."""
        if task not in self._stages:
            self._processor.layout(task)  # what it knows is what may be asked for
            spec, layout, env = check_environment(self._processor, get_task(task))
            self._stages[task] = Stage(spec=spec, layout=layout, env=env)
        return self._stages[task]

    async def run(self, on_ready: Callable[[str], None] = lambda address: None) -> None:
        """Listen until `stop`; `on_ready` is told the page's address. Raises `OSError` where the port is taken."""
        quiet = logging.getLogger("gatito.play")
        quiet.setLevel(logging.CRITICAL)  # what strangers send is refused, not logged
        self._spare = asyncio.create_task(asyncio.to_thread(self._prepare))
        try:
            async with serve(
                self._handle,
                HOST,
                self.config.port,
                process_request=self._answer_http,
                compression=None,
                max_size=self.config.max_message_bytes,
                logger=quiet,
                server_header="gatito",
            ) as server:
                port = next(iter(server.sockets)).getsockname()[1]
                await asyncio.wait([self._spare])  # the first page finds its simulator ready
                on_ready(f"http://{HOST}:{port}/#{self.token}")
                await self._stopping.wait()
                server.close(close_connections=False)
                pages = list(self._open)
                await asyncio.gather(*(page.close(GOING_AWAY, "gatito play has stopped") for page in pages))
                await server.wait_closed()
        finally:
            (await self._spare).close()
            self._sessions.shutdown()

    def stop(self) -> None:
        """End; what was recorded and not saved is the caller's to save."""
        self._stopping.set()

    def _prepare(self) -> Simulators:
        """A process for the simulators of the next page, in which the first task has been built."""
        these = SimulatorPool(1, limit_s=self.config.limit_s)
        these.exchange({0: Begin(spec=self.stage(self._first).spec, seed=FIRST_SEED, renders=True)})
        return these

    def _answer_http(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """The page's files, and who may open the WebSocket."""
        path, host = urlsplit(request.path), request.headers.get("Host", "")
        if urlsplit(f"//{host}").hostname not in (HOST, "localhost"):
            return _response(HTTPStatus.FORBIDDEN, b"open the page by the address that gatito play printed\n")
        if path.path in FILES:
            name, kind = FILES[path.path]
            return _response(HTTPStatus.OK, files("gatito.play").joinpath(name).read_bytes(), kind)
        if path.path != SOCKET:
            return _response(HTTPStatus.NOT_FOUND, b"there is the page at /, and nothing else\n")
        given = parse_qs(path.query).get("token", [""])[0]
        of_page = request.headers.get("Origin") == f"http://{host}"
        if not (of_page and hmac.compare_digest(given.encode(errors="replace"), self.token.encode())):
            return _response(HTTPStatus.FORBIDDEN, b"the page's own address and token are needed\n")
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        seats = await self._seats()
        if seats is None:
            told = f"{self.config.pages} pages are open already; close one"
            await connection.close(TRY_AGAIN_LATER, told)
            return
        try:
            with contextlib.suppress(ConnectionClosed):
                await self._converse(connection, seats)
        finally:
            for seat in seats:
                self._sessions.close(seat)

    async def _seats(self) -> tuple[int, ...] | None:
        """The sessions of a page; None where there are none for a while."""
        deadline = time.monotonic() + SEAT_S
        while True:
            try:
                return tuple(self._sessions.open_all(PANES))
            except UserError:
                if time.monotonic() > deadline:
                    return None
                await asyncio.sleep(0.05)

    async def _announce(self) -> None:
        """Tell all pages which demonstrations there are."""
        for visitor in list(self._open.values()):
            await visitor.tell_demonstrations()

    async def _converse(self, connection: ServerConnection, seats: tuple[int, ...]) -> None:
        async def tell(message: dict[str, Any]) -> None:
            with contextlib.suppress(ConnectionClosed):  # who is gone is told nothing; reading ends by itself
                await connection.send(json.dumps(message))

        assert self._spare is not None
        mine, self._spare = self._spare, asyncio.create_task(asyncio.to_thread(self._prepare))
        visitor = Visitor(
            self._sessions,
            await mine,
            seats,
            self.demonstrations,
            self._questions,
            self.stage,
            self.config.limit_s,
            tell,
            self._announce,
        )
        self._open[connection] = visitor
        playing = asyncio.create_task(visitor.run())
        try:
            await tell(self._greeting)
            await visitor.tell_demonstrations()
            async for message in connection:
                kind = "message"
                try:
                    kind, values = opened(message)
                    await visitor.handle(request_of(kind, values))
                except Exception as error:  # a fault of ours is told to the page, and the others go on
                    await visitor.tell_error(kind, error)
        finally:
            del self._open[connection]
            try:
                await visitor.leave()
            finally:
                playing.cancel()

    @cached_property
    def _greeting(self) -> dict[str, Any]:
        layouts = self._processor.layouts
        return {
            "say": "hello",
            "version": __version__,
            "checkpoint": self._name,
            "first": self._first,
            "record": str(self.config.record),
            "max_message_bytes": self.config.max_message_bytes,
            "tasks": [{"id": task, "expert": registry()[task].has_expert} for task in self._tasks],
            "others": len(layouts) - len(self._tasks),
        }


def _simulated(processor: GatitoProcessor) -> list[str]:
    """Tasks of a checkpoint that can be simulated here, in order."""
    known = registry()
    return [task for task in sorted(processor.layouts) if task in known and known[task].missing_extra() is None]


def _why(processor: GatitoProcessor) -> str:
    """Why the first task of a checkpoint cannot be simulated here."""
    for task in sorted(processor.layouts):
        missing = registry()[task].missing_extra() if task in registry() else None
        return missing or f"{task!r} is no task that gatito knows here; install the package that registers it"
    return "it knows none"


def _response(status: HTTPStatus, body: bytes, kind: str = "text/plain") -> Response:
    headers = Headers(
        {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            "Connection": "close",
        }
    )
    return Response(status.value, status.phrase, headers, body)
