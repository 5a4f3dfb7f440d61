"""What a page asks for: JSON objects, each checked before anything is done.

{"do": "begin", "task": "babyai/go-to-obj", "seed": 7, "prompts": [null, 2], "part": "beginning",
 "instruction": null, "controlled": false}
{"do": "step"}      {"do": "act", "values": [2]}      {"do": "ask", "text": "what is it?", "image": "frame"}
"""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gatito.errors import UserError, nearest
from gatito.eval.checked import checked, shown

Part = Literal["beginning", "end"]
"""Which part of a demonstration is the prompt."""
FRAME = "frame"
"""In place of an image: the one that is on the page."""
LARGEST_SEED = 1 << 53
"""Whole numbers below it are exact in JavaScript."""
LONGEST_TEXT = 4000
"""Characters of an instruction or question."""
SPEEDS = (0.01, 1000.0)
"""Slowest and fastest, times the pace of the task; the latter is as fast as it goes."""
PANES = 2
"""Most of a page."""
MAX_VALUES = 4096
"""Numbers of an action."""


@dataclass(frozen=True, kw_only=True)
class Begin:
    """An episode is to begin, in a pane for each prompt."""

    task: str
    """Task id."""
    seed: int
    """Of the environment and the sampled actions."""
    prompts: tuple[int | None, ...]
    """Numbers of demonstrations, None for no prompt; one or two."""
    part: Part
    """Of the demonstrations."""
    instruction: str | None
    """In place of the environment's own."""
    controlled: bool
    """Whether a person acts; what they do is recorded."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Whether the agent goes on by itself, and how fast."""

    going: bool
    """Whether it does."""
    speed: float
    """Times the pace of the task."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The agent acts once."""


@dataclass(frozen=True, kw_only=True)
class Act:
    """A person acts."""

    values: tuple[float, ...]
    """Of the fields of the action, one after another, each row-major."""


@dataclass(frozen=True, kw_only=True)
class Finish:
    """The recorded episode ends here."""


@dataclass(frozen=True, kw_only=True)
class Instruct:
    """Another instruction, from the next observation on."""

    text: str | None
    """None for the environment's own."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the model looked at when it acted last."""

    pane: int
    """Which one."""


@dataclass(frozen=True, kw_only=True)
class Demonstrate:
    """The task's expert is to play an episode."""

    task: str
    """Task id."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """An episode out of a Minari dataset."""

    task: str
    """Task id."""
    name: str
    """Of the file."""
    content: bytes
    """Of `part-0.arrow`."""


@dataclass(frozen=True, kw_only=True)
class Save:
    """What was recorded of a task is to become a Minari dataset."""

    task: str
    """Task id."""
    name: str
    """Last part of the dataset's id."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A question, about an image or none; an image alone is captioned."""

    text: str
    """Empty for a caption."""
    image: bytes | Literal["frame"] | None
    """Content of a file, or the one that is on the page."""


Request = Begin | Run | Step | Act | Finish | Instruct | Look | Demonstrate | Upload | Save | Ask


def opened(message: str | bytes) -> tuple[str, Any]:
    """The kind of request that a message is, and its values; raises `UserError` for what is none."""
    if isinstance(message, bytes):
        raise UserError("a binary message, expected JSON in a text")
    try:
        values = json.loads(message)
    except (ValueError, RecursionError):
        raise UserError(f"{shown(message[:60])} is no JSON") from None
    kind = checked(values, "do", "a text")
    if kind not in KINDS:
        raise UserError(nearest(kind, KINDS, "request"))
    return kind, values


def request_of(kind: str, values: Any) -> Request:
    """The request of a kind; raises `UserError` for values that it cannot have."""
    try:
        return KINDS[kind](values)
    except UserError as error:
        raise UserError(f"{kind}: {error}") from None


def _begin(values: Any) -> Begin:
    prompts = checked(values, "prompts", "a list")
    if not 1 <= len(prompts) <= PANES:
        raise UserError(f"prompts has {len(prompts)} entries, allowed 1 to {PANES}")
    for prompt in prompts:
        if prompt is not None and (type(prompt) is not int or prompt < 0):
            raise UserError(f"prompts holds {shown(prompt)}, expected numbers of demonstrations, or null for none")
    part = checked(values, "part", "a text")
    if part not in get_args(Part):
        raise UserError(f"part is {shown(part)}, allowed {' or '.join(get_args(Part))}")
    controlled = checked(values, "controlled", "true or false")
    if controlled and len(prompts) > 1:
        raise UserError("several panes cannot be controlled; choose one prompt")
    return Begin(
        task=_text(values, "task"),
        seed=_whole(values, "seed", LARGEST_SEED),
        prompts=tuple(prompts),
        part=part,
        instruction=_text(values, "instruction", optional=True),
        controlled=controlled,
    )


def _run(values: Any) -> Run:
    speed = checked(values, "speed", "a finite number")
    if not SPEEDS[0] <= speed <= SPEEDS[1]:
        raise UserError(f"speed is {speed}, allowed {SPEEDS[0]:g} to {SPEEDS[1]:g}")
    return Run(going=checked(values, "going", "true or false"), speed=float(speed))


def _act(values: Any) -> Act:
    numbers = checked(values, "values", "a list")
    if not 1 <= len(numbers) <= MAX_VALUES:
        raise UserError(f"values has {len(numbers)} numbers, allowed 1 to {MAX_VALUES}")
    checks = [checked({"values": number}, "values", "a finite number") for number in numbers]
    return Act(values=tuple(map(float, checks)))


def _ask(values: Any) -> Ask:
    image = checked(values, "image", "a text", optional=True)
    return Ask(
        text=(_text(values, "text", optional=True) or "").strip(),
        image=image if image in (None, FRAME) else _decoded(image, "image"),
    )


def _upload(values: Any) -> Upload:
    content = _decoded(checked(values, "content", "a text"), "content")
    return Upload(task=_text(values, "task"), name=_text(values, "name")[:80], content=content)


def _text(values: Any, key: str, *, optional: bool = False) -> Any:
    text = checked(values, key, "a text", optional=optional)
    if text is not None and len(text) > LONGEST_TEXT:
        raise UserError(f"{key} has {len(text)} characters, allowed {LONGEST_TEXT}")
    if text is not None and any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        raise UserError(f"{key} holds half of a surrogate pair, which is no character")
    return text


def _whole(values: Any, key: str, limit: int) -> int:
    number: int = checked(values, key, "a whole number")
    if not 0 <= number < limit:
        raise UserError(f"{key} is {shown(number)}, allowed 0 to {limit - 1}")
    return number


def _decoded(text: str, key: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{key} is {shown(text)}, expected the content of a file in base64") from None


KINDS: Mapping[str, Callable[[Any], Request]] = {
    "begin": _begin,
    "run": _run,
    "step": lambda values: Step(),
    "act": _act,
    "finish": lambda values: Finish(),
    "instruct": lambda values: Instruct(text=_text(values, "text", optional=True)),
    "look": lambda values: Look(pane=_whole(values, "pane", PANES)),
    "demonstrate": lambda values: Demonstrate(task=_text(values, "task")),
    "upload": _upload,
    "save": lambda values: Save(task=_text(values, "task"), name=_text(values, "name")),
    "ask": _ask,
}
"""What reads each kind of request."""
