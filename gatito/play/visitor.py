"""What one open page does: its episode, its questions, and what it is told."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from gatito.data.tasks import PROMPT_SEEDS, TaskSpec, references
from gatito.errors import UserError
from gatito.eval.prompts import DEMONSTRATION_SCORE, prompt_of_episodes
from gatito.eval.simulators import Demonstrate as DemonstrateTask
from gatito.eval.simulators import Demonstrated, Failed, Simulators
from gatito.eval.writing import write
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.pages import png_uri
from gatito.play import requests
from gatito.play.demonstrations import Demonstrations
from gatito.play.game import PACE, Game, Stage
from gatito.policies import has_expert
from gatito.serve.sessions import Sessions
from gatito.talking import prompt_parts
from gatito.tokenizers import TokenSequence
from gatito.tokenizers.images import ImageConfig, checked_image, read_image

Tell = Callable[[dict[str, Any]], Awaitable[None]]
"""Sends a message to the page."""
PANES = 2
"""Most of a page, each with a session and a simulator; the simulator after theirs is for experts."""
TRIES = 10
"""Episodes of an expert that are played until one scores well enough for a prompt."""


class Visitor:
    """One open page; `tell` sends to it."""

    def __init__(
        self,
        model: GatitoForCausalLM,
        processor: GatitoProcessor,
        sessions: Sessions,
        simulators: Simulators,
        seats: tuple[int, int],
        demonstrations: Demonstrations,
        stages: Callable[[str], Stage],
        answering: asyncio.Lock,
        tell: Tell,
    ) -> None:
        """`seats` are sessions of its own, `stages` gives tasks by id, `answering` lets one page ask at a time."""
        self._model, self._processor, self._stages, self._tell = model, processor, stages, tell
        self._sessions, self._simulators, self._seats = sessions, simulators, seats
        self._demonstrations, self._answering = demonstrations, answering
        self._game: Game | None = None
        self._at_it = asyncio.Lock()
        """Held by whoever uses the game or the simulators."""
        self._going = asyncio.Event()
        self._speed = 1.0
        self._asking: asyncio.Task[None] | None = None

    async def do(self, request: requests.Request) -> None:
        """Do what is asked, and tell the page what came of it; raises `UserError` for what cannot be done."""
        match request:
            case requests.Begin():
                await self._begin(request)
            case requests.Run():
                self._speed = request.speed
                (self._going.set if request.going else self._going.clear)()
            case requests.Step():
                await self._play(lambda game: game.step())
            case requests.Act():
                await self._play(lambda game: game.act(request.values))
            case requests.Finish():
                await self._keep()
            case requests.Instruct():
                async with self._at_it:
                    self._playing().instruct(request.text)
            case requests.Look():
                async with self._at_it:
                    html = await asyncio.to_thread(self._playing().look, request.pane)
                await self._tell({"say": "look", "pane": request.pane, "html": html})
            case requests.Demonstrate():
                await self._demonstrate(request.task)
            case requests.Upload():
                await self._upload(request)
            case requests.Save():
                folder = await asyncio.to_thread(self._demonstrations.save, request.task, request.name)
                await self._tell({"say": "saved", "folder": str(folder)})
                await self.tell_demonstrations()
            case requests.Ask():
                if self._asking is not None and not self._asking.done():
                    raise UserError("the last question is still being answered; wait for it")
                self._asking = asyncio.create_task(self._ask(request))

    async def run(self) -> None:
        """Let the agent act at its pace as long as it is to go on; ends with the page."""
        while True:
            await self._going.wait()
            if self._game is None or self._game.is_over:
                self._going.clear()
                continue
            began = time.monotonic()
            try:
                await self._play(lambda game: game.step())
            except Exception as error:
                self._going.clear()
                await self.tell_error("run", error)
            pace = self._game.stage.pace * self._speed if self._game else PACE[1]
            await asyncio.sleep(max(0.0, 1 / pace - (time.monotonic() - began)))

    async def leave(self) -> None:
        """The page is gone: what a person had recorded is kept, and the simulators are closed."""
        self._going.clear()
        if self._asking is not None:
            self._asking.cancel()
        async with self._at_it:
            game = self._game
            if game is not None and game.has_unkept:
                await asyncio.to_thread(game.keep, self._demonstrations)
            await asyncio.to_thread(self._simulators.close)

    async def tell_error(self, what: str, error: Exception) -> None:
        """Say what was wrong: a user's mistake as it is, a fault of ours with its kind."""
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        await self._tell({"say": "error", "of": what, "text": said[:2000]})

    async def tell_demonstrations(self) -> None:
        """Say which demonstrations there are."""
        await self._tell({"say": "demonstrations", "all": self._demonstrations.described()})

    def _playing(self) -> Game:
        if self._game is None:
            raise UserError("no episode has begun; choose a task first")
        return self._game

    async def _begin(self, request: requests.Begin) -> None:
        """Another episode; where it cannot begin, the one before is over too."""
        self._going.clear()
        async with self._at_it:
            before, self._game = self._game, None
            if before is not None and before.has_unkept:
                await asyncio.to_thread(before.keep, self._demonstrations)
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
            moments = await asyncio.to_thread(game.begin)
            self._game = game
            shown = [None if p is None else p.num_timesteps for p in prompts]
            await self._tell({"say": "began", "seed": request.seed, "prompts": shown, **stage.described()})
            await self._show(moments)
        await self.tell_demonstrations()

    def _prompt(self, stage: Stage, request: requests.Begin, number: int | None) -> TokenSequence | None:
        if number is None:
            return None
        demonstration = self._demonstrations.of(number, stage.spec.id)
        config, rng = self._model.config, np.random.default_rng(request.seed)
        window = (config.trunk, int(config.context))
        return prompt_of_episodes([demonstration.episode], stage.spec.id, stage.layout, *window, request.part, rng)

    async def _play(self, act: Callable[[Game], list[dict[str, Any]]]) -> None:
        """Take a step of the game and show it."""
        async with self._at_it:
            game = self._playing()
            await self._show(await asyncio.to_thread(act, game))
            if game.is_over:
                self._going.clear()
                await self._tell({"say": "ended"})
        if game.is_over and game.controlled:
            await self._keep()

    async def _show(self, moments: list[dict[str, Any]]) -> None:
        for moment in moments:
            await self._tell({"say": "moment", **moment})

    async def _keep(self) -> None:
        """Keep what a person did."""
        async with self._at_it:
            number = await asyncio.to_thread(self._playing().keep, self._demonstrations)
        await self._tell({"say": "kept", "number": number})
        await self.tell_demonstrations()

    async def _demonstrate(self, task: str) -> None:
        """Let the expert play, until it does so well enough."""
        async with self._at_it:
            stage = await asyncio.to_thread(self._stages, task)
            number = await asyncio.to_thread(self._of_expert, stage)
        await self._tell({"say": "kept", "number": number})
        await self.tell_demonstrations()

    def _of_expert(self, stage: Stage) -> int:
        spec: TaskSpec = stage.spec
        if not has_expert(spec):
            raise UserError(f"{spec.id} has no scripted expert; take the controls, or give an episode")
        known, reason = references().get(spec.id), ""
        played = sum(d["task"] == spec.id for d in self._demonstrations.described())
        for seed in range(PROMPT_SEEDS + played, PROMPT_SEEDS + played + TRIES):
            answer = self._simulators.exchange({PANES: DemonstrateTask(spec=spec, seed=seed)})[PANES]
            if isinstance(answer, Failed):
                reason, self._game = answer.reason, None  # its process may have been replaced, with all simulators
                continue
            assert isinstance(answer, Demonstrated)
            total = float(np.sum(answer.buffer.rewards))
            if known is not None and known.score(total) < DEMONSTRATION_SCORE:
                reason = f"its return is {total:.4g}"
                continue
            by = f"the expert, seed {seed - PROMPT_SEEDS}"
            return self._demonstrations.add(spec, stage.env, stage.layout, by, answer.buffer, "expert")
        raise UserError(f"the expert of {spec.id} gave up {TRIES} times, last: {reason}")

    async def _upload(self, request: requests.Upload) -> None:
        stage = await asyncio.to_thread(self._stages, request.task)
        kept = (stage.spec, stage.env, stage.layout, request.name, request.content)
        number = await asyncio.to_thread(self._demonstrations.upload, *kept)
        await self._tell({"say": "kept", "number": number})
        await self.tell_demonstrations()

    async def _ask(self, request: requests.Ask) -> None:
        """Answer a question, word by word."""
        try:
            await self._answer(request)
        except Exception as error:
            await self.tell_error("ask", error)

    async def _answer(self, request: requests.Ask) -> None:
        if not request.text and request.image is None:
            raise UserError("nothing is asked: write a question, choose an image, or both")
        images, config = [], ImageConfig()
        if request.image == requests.FRAME:
            images = [checked_image(self._playing().image(), config, "the image on the page")]
        elif isinstance(request.image, bytes):
            images = [await asyncio.to_thread(read_image, request.image, config, "the image")]
        parts = prompt_parts(images, request.text or None, ask=bool(request.text))
        loop, words = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def answer() -> None:
            try:
                inputs = self._processor.prompts([parts])
                say = lambda text: loop.call_soon_threadsafe(words.put_nowait, text)  # noqa: E731
                write(self._model, self._processor, inputs, on_text=say)
            finally:
                loop.call_soon_threadsafe(words.put_nowait, None)

        shown = png_uri(images[0]) if images else None
        await self._tell({"say": "answer", "text": "", "image": shown, "over": False})
        async with self._answering:
            writing = asyncio.create_task(asyncio.to_thread(answer))
            while (text := await words.get()) is not None:
                await self._tell({"say": "answer", "text": text, "over": False})
            await writing
        await self._tell({"say": "answer", "text": "", "over": True})
