"""What `gatito generate` and `gatito chat` do."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatito.errors import UserError
from gatito.eval.agent import load_checkpoint
from gatito.eval.decoding import Decoding
from gatito.eval.writing import Conversation, write
from gatito.tokenizers.documents import Part, Words, asked
from gatito.tokenizers.images import ImageConfig, read_image

HELP = "/image FILE shows an image with what you say next, /reset begins anew, /quit or Ctrl-D ends"


def prompt_parts(images: Sequence[Any], text: str | None, ask: bool) -> Sequence[Part]:
    """What is said to the model: images alone to be captioned, a question about them, or a text to go on with.

    Raises `UserError` where there is nothing.
    """
    if text is not None and not text.strip():
        raise UserError("--text is empty; give a text, or leave it out")
    if text is None and (ask or not images):
        raise UserError("nothing is asked; give --text, --image, or both")
    if text is not None and (images or ask):
        return asked([*images, text])
    return [*images] if text is None else [Words(text=text)]


def generate_text(
    checkpoint: str,
    files: Sequence[str],
    text: str | None,
    ask: bool,
    new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    *,
    as_json: bool,
) -> None:
    """Print what the model writes, as it comes or as JSON; raises `UserError` for images that are none, and for a
    prompt that exceeds the context."""
    decoding = Decoding(temperature=temperature, top_p=top_p)
    images = [read_image(Path(file), ImageConfig(), file) for file in files]
    parts = prompt_parts(images, text, ask)
    model, processor = load_checkpoint(checkpoint)
    inputs = processor.prompts([parts])
    say = (lambda words: None) if as_json else _print
    written = write(model, processor, inputs, new_tokens=new_tokens, decoding=decoding, seed=seed, on_text=say)
    if as_json:
        print(json.dumps({"text": written, "prompt_positions": inputs["input_ids"].shape[1], "seed": seed}))
    else:
        print()


def talk(checkpoint: str, new_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    """Read what is said line by line, and print the answers as they come."""
    decoding = Decoding(temperature=temperature, top_p=top_p)
    model, processor = load_checkpoint(checkpoint)
    conversation, shown = Conversation(model, processor, new_tokens, decoding, seed), list[dict[str, Any]]()
    print(HELP)
    for line in _lines():
        command, _, rest = line.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/reset":
                conversation.messages, shown = [], []
            elif command == "/image":
                shown.append({"type": "image", "image": read_image(Path(rest.strip()), ImageConfig(), rest)})
            elif command.startswith("/"):
                raise UserError(f"unknown command {command!r}; {HELP}")
            else:
                before = len(conversation.messages)
                conversation.say([*shown, {"type": "text", "text": line}], _print)
                shown = []
                gone = before + 2 - len(conversation.messages)
                print(f"\n(the oldest {gone // 2} turns have left the context)" if gone else "")
        except UserError as error:
            print(f"gatito: {error}", file=sys.stderr)


def _lines() -> Any:
    """What is typed, without empty lines, up to the end."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line:
            yield line


def _print(words: str) -> None:
    print(words, end="", flush=True)
