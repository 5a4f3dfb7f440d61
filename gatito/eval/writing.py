"""Text that is written as it comes: continuations, captions, answers, and turns of a conversation."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import BatchFeature, TextStreamer

from gatito.errors import UserError
from gatito.eval.decoding import Decoding
from gatito.model import GatitoForCausalLM, GatitoProcessor

GREEDY = Decoding(temperature=0.0)


class _Stream(TextStreamer):
    """Hands on whole words."""

    def __init__(self, processor: GatitoProcessor, on_text: Callable[[str], object]) -> None:
        super().__init__(processor.tokenizer, skip_prompt=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers for what will not change any more."""
        if text:
            self._on_text(text)


def room_of(model: GatitoForCausalLM, inputs: BatchFeature) -> int:
    """Tokens that the context has room for behind a prompt; raises `UserError` where there is none."""
    used, context = inputs["input_ids"].shape[1], int(model.config.context)
    if used >= context:
        raise UserError(
            f"a prompt of {used} positions, the checkpoint's context is {context}; shorten the text, or give fewer "
            "or smaller images"
        )
    return context - used


def write(
    model: GatitoForCausalLM,
    processor: GatitoProcessor,
    inputs: BatchFeature,
    *,
    new_tokens: int = 64,
    decoding: Decoding = GREEDY,
    seed: int = 0,
    on_text: Callable[[str], object] = lambda text: None,
) -> str:
    """What the model writes after a prompt, up to its end, `new_tokens`, or the end of its context.

    `on_text` is given the words as they come. Raises `UserError` for a prompt that fills the context.
    """
    if new_tokens < 1:
        raise UserError(f"--max-new-tokens is {new_tokens}, allowed 1 and more")
    count = min(new_tokens, room_of(model, inputs))
    options: dict[str, Any] = {"do_sample": False}
    if decoding.temperature > 0:
        options = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        ids = model.generate(
            **inputs.to(model.device), max_new_tokens=count, streamer=_Stream(processor, on_text), **options
        )
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :])


class Conversation:
    """Turns with a model; when they outgrow the context, the oldest question leaves with its answer."""

    def __init__(
        self,
        model: GatitoForCausalLM,
        processor: GatitoProcessor,
        new_tokens: int = 64,
        decoding: Decoding = GREEDY,
        seed: int = 0,
    ) -> None:
        """Answers are written as by `write`."""
        self._model, self._processor = model, processor
        self._new_tokens, self._decoding, self._seed = new_tokens, decoding, seed
        self.messages: list[dict[str, Any]] = []
        """As transformers' chat templates have them."""

    def say(self, content: Sequence[dict[str, Any]], on_text: Callable[[str], object] = lambda text: None) -> str:
        """Say something, texts and images, and return the answer.

        Raises `UserError`, and takes nothing in, for what alone exceeds the context, and for images that are none.
        """
        turns = [*self.messages, {"role": "user", "content": list(content)}]
        answer = write(
            self._model,
            self._processor,
            self._inputs(turns),
            new_tokens=self._new_tokens,
            decoding=self._decoding,
            seed=self._seed,
            on_text=on_text,
        )
        self.messages = [*turns, {"role": "assistant", "content": answer or " "}]
        return answer

    def _inputs(self, turns: list[dict[str, Any]]) -> BatchFeature:
        """The prompt, with room for an answer; `turns` loses those that leave."""
        context = int(self._model.config.context)
        wanted = min(self._new_tokens, context // 2)
        while True:
            inputs = self._processor.apply_chat_template(turns)
            if len(turns) == 1 or inputs["input_ids"].shape[1] + wanted <= context:
                return inputs
            del turns[:2]
