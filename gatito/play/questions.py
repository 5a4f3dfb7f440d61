"""Questions about images and texts, answered word by word; one at a time of all pages."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatito.errors import UserError
from gatito.eval.writing import write
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.pages import png_uri
from gatito.talking import prompt_parts
from gatito.tokenizers.images import ImageConfig, checked_image, read_image

Tell = Callable[[dict[str, Any]], Awaitable[None]]
"""Sends a message to the page."""


class Questions:
    """What the model is asked."""

    def __init__(self, model: GatitoForCausalLM, processor: GatitoProcessor) -> None:
        """An image is scaled to at most half the model's context: as many patches as that has positions."""
        self._model, self._processor = model, processor
        self._images = ImageConfig(max_patches=max(1, min(ImageConfig().max_patches, model.config.context // 2)))
        self._one_at_a_time = asyncio.Lock()

    async def answer(self, text: str, image: bytes | NDArray[np.uint8] | None, tell: Tell) -> None:
        """Tell the page what is asked, and the answer as it is written.

        Raises `UserError` where nothing is asked, for an image that cannot be read, and for what exceeds the context.
        """
        if not text and image is None:
            raise UserError("nothing is asked: write a question, choose an image, or both")
        images = [] if image is None else [await asyncio.to_thread(self._pixels, image)]
        parts = prompt_parts(images, text or None, ask=bool(text))
        inputs = await asyncio.to_thread(self._processor.prompts, [parts])
        loop, words = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def say(some: str | None) -> None:
            loop.call_soon_threadsafe(words.put_nowait, some)

        def write_all() -> None:
            try:
                write(self._model, self._processor, inputs, on_text=say)
            finally:
                say(None)

        await tell({"say": "answer", "text": "", "image": png_uri(images[0]) if images else None, "over": False})
        async with self._one_at_a_time:
            writing = asyncio.create_task(asyncio.to_thread(write_all))
            while (some := await words.get()) is not None:
                await tell({"say": "answer", "text": some, "over": False})
            await writing
        await tell({"say": "answer", "text": "", "over": True})

    def _pixels(self, image: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
        if isinstance(image, bytes):
            return read_image(image, self._images, "the image")
        return checked_image(image, self._images, "the image on the page")
