"""What one open page does: its episode, its questions, and what it is told."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import numpy as np

from gatito.errors import UserError
from gatito.eval.prompts import prompt_of_episodes
from gatito.eval.simulators import Simulators
from gatito.play import requests
from gatito.play.demonstrations import Demonstrations
from gatito.play.experts import demonstrate
from gatito.play.game import PACE, Game, Stage
from gatito.play.questions import Questions, Tell
from gatito.serve.server import LONGEST_ERROR
from gatito.serve.sessions import Sessions
from gatito.tokenizers import TokenSequence

GameAct = Callable[[Game], list[dict[str, Any]]]
"""Does something in a game and returns the moments that it shows then."""


class Visitor:
    """One open page; `tell` sends to it."""

    def __init__(
        self,
        sessions: Sessions,
        simulators: Simulators,
        seats: tuple[int, ...],
        demonstrations: Demonstrations,
        questions: Questions,
        stages: Callable[[str], Stage],
        limit_s: float,
        tell: Tell,
        announce: Callable[[], Awaitable[None]],
    ) -> None:
        """`seats` are its own sessions, `stages` gives tasks by id; `announce` tells all pages which demonstrations
        there are."""
        self._sessions, self._simulators, self._seats = sessions, simulators, seats
        self._demonstrations, self._questions, self._stages = demonstrations, questions, stages
        self._limit_s, self._tell, self._announce = limit_s, tell, announce
        self._game: Game | None = None
        self._lock = asyncio.Lock()
        """Held by whoever uses the game or the simulators."""
        self._running = asyncio.Event()
        """Whether the agent goes on by itself."""
        self._speed = 1.0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """What takes its time, by the kind of request; the page goes on meanwhile."""
        self._is_gone = False

    async def handle(self, request: requests.Request) -> None:
        """Do what is asked, and tell the page what came of it; raises `UserError` for what cannot be done."""
        match request:
            case requests.Begin():
                await self._begin(request)
            case requests.Run():
                self._speed = request.speed
                (self._running.set if request.going else self._running.clear)()
            case requests.Step():
                await self._play(lambda game: game.step())
            case requests.Act():
                await self._play(lambda game: game.act(request.values))
            case requests.Finish():
                await self._keep()
            case requests.Instruct():
                async with self._lock:
                    self._playing().instruct(request.text)
                await self._tell({"say": "instructed", "text": request.text})
            case requests.Look():
                async with self._lock:
                    html = await asyncio.to_thread(self._playing().look, request.pane)
                await self._tell({"say": "look", "pane": request.pane, "html": html})
            case requests.Demonstrate():
                self._go_about("demonstrate", self._demonstrate(request.task))
            case requests.Upload():
                await self._upload(request)
            case requests.Save():
                folder = await asyncio.to_thread(self._demonstrations.save, request.task, request.name)
                await self._tell({"say": "saved", "folder": str(folder)})
                await self._announce()
            case requests.Ask():
                self._go_about("ask", self._ask(request))

    async def run(self) -> None:
        """Let the agent act at its pace as long as it is to go on; ends with the page."""
        while True:
            await self._running.wait()
            if self._game is None or self._game.is_over or self._game.controlled:
                self._running.clear()
                continue
            began = time.monotonic()
            try:
                await self._play(lambda game: game.step(), by_itself=True)
            except Exception as error:
                self._running.clear()
                await self.tell_error("run", error)
            pace = self._game.stage.pace * self._speed if self._game else PACE[1]
            await asyncio.sleep(max(0.0, 1 / pace - (time.monotonic() - began)))

    async def leave(self) -> None:
        """The page is gone: what a person had recorded is kept, and the simulators are closed."""
        self._is_gone = True
        self._running.clear()
        async with self._lock:
            try:
                await self._keep_what_is_left()
            finally:
                await asyncio.to_thread(self._simulators.close)

    async def tell_error(self, what: str, error: Exception) -> None:
        """Say what was wrong: a user's mistake as it is, a fault of ours with its kind."""
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        await self._tell({"say": "error", "of": what, "text": said[:LONGEST_ERROR]})

    async def tell_demonstrations(self) -> None:
        """Say which demonstrations there are."""
        await self._tell({"say": "demonstrations", "all": self._demonstrations.described()})

    def _playing(self) -> Game:
        if self._game is None:
            raise UserError("no episode has begun; choose a task first")
        return self._game

    async def _begin(self, request: requests.Begin) -> None:
        """Another episode; where it is refused, the one before is as it was."""
        async with self._lock:
            stage = await asyncio.to_thread(self._stages, request.task)
            prompts = await asyncio.to_thread(lambda: [self._prompt(stage, request, n) for n in request.prompts])
            game = Game(
                stage,
                self._sessions,
                self._simulators,
                dict(zip(self._seats, prompts, strict=False)),
                request.seed,
                instruction=request.instruction,
                controlled=request.controlled,
            )
            self._running.clear()
            await self._keep_what_is_left()
            self._game = None  # its simulators are given to the new one
            moments = await asyncio.to_thread(game.begin)
            self._game = game
            shown = [None if p is None else p.num_timesteps for p in prompts]
            told = {"seed": request.seed, "controlled": request.controlled, "prompts": shown}
            await self._tell({"say": "began", **told, **stage.described()})
            await self._show(moments)

    def _prompt(self, stage: Stage, request: requests.Begin, number: int | None) -> TokenSequence | None:
        if number is None:
            return None
        episode = self._demonstrations.of(number, stage.spec.id).episode
        window, rng = self._sessions.window, np.random.default_rng(request.seed)
        return prompt_of_episodes([episode], stage.spec.id, stage.layout, *window, request.part, rng)

    async def _play(self, act: GameAct, *, by_itself: bool = False) -> None:
        """Take a step of the game and show it; what a person did is kept when it is over.

        A step that the agent takes `by_itself` is left out where it is not to go on any more.
        """
        async with self._lock:
            if by_itself and not self._running.is_set():
                return
            game = self._playing()
            await self._show(await asyncio.to_thread(act, game))
            if game.is_over:
                self._running.clear()
                await self._tell({"say": "ended"})
        if game.is_over and game.controlled:
            await self._keep()

    async def _show(self, moments: list[dict[str, Any]]) -> None:
        for moment in moments:
            await self._tell({"say": "moment", **moment})

    async def _keep(self) -> None:
        """Keep what a person did."""
        async with self._lock:
            number = await asyncio.to_thread(self._playing().keep, self._demonstrations)
        await self._kept(number)

    async def _keep_what_is_left(self) -> None:
        """The same before the game is forgotten, where there is something."""
        if self._game is not None and self._game.has_unkept:
            await asyncio.to_thread(self._game.keep, self._demonstrations)
            await self._announce()

    async def _kept(self, number: int) -> None:
        await self._tell({"say": "kept", "number": number})
        await self._announce()

    async def _upload(self, request: requests.Upload) -> None:
        stage = await asyncio.to_thread(self._stages, request.task)
        given = (stage.spec, stage.env, stage.layout, request.name, request.content)
        await self._kept(await asyncio.to_thread(self._demonstrations.upload, *given))

    async def _demonstrate(self, task: str) -> None:
        stage = await asyncio.to_thread(self._stages, task)
        how = (self._demonstrations, self._limit_s, lambda: not self._is_gone)
        await self._kept(await asyncio.to_thread(demonstrate, stage, *how))

    async def _ask(self, request: requests.Ask) -> None:
        image = self._playing().image() if isinstance(request.image, str) else request.image
        await self._questions.answer(request.text, image, self._tell)

    def _go_about(self, what: str, doing: Coroutine[Any, Any, None]) -> None:
        """Do something beside all else, one of a kind at a time; what goes wrong is told."""
        before = self._tasks.get(what)
        if before is not None and not before.done():
            doing.close()
            raise UserError(f"the last {what} is still going on; wait for it")

        async def told() -> None:
            try:
                await doing
            except Exception as error:
                await self.tell_error(what, error)

        self._tasks[what] = asyncio.create_task(told())
