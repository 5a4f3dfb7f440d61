"""What a message says, in terms of a task's spaces; the docs have the same as a table (docs/serving.md).

    {"image": ..., "direction": 3, "prompt": "go to the red ball"}          an observation: answered by an action
    {"gatito/reset": {"task": "babyai/go-to-obj", "seed": 7}, ...}          before it, an episode begins
    {"gatito/reset": ..., "gatito/demonstration": {"image": ..., "actions": ...}}    with a prompt

A field of an observation goes by its name in the task's layout (`gatito tokens TASK`), with or without `observation/`
in front; `/` and nested maps mean the same. A space that is no Dict is `observation`. `prompt` is the observation's
text, where it has one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatito.data.episode import Episode
from gatito.errors import UserError
from gatito.tokenizers.fields import Field, build_tree, value_at
from gatito.tokenizers.layout import Layout

OBSERVATION, PROMPT, ACTIONS = "observation", "prompt", "actions"
RESET, DEMONSTRATION, LATE, MISSED = "gatito/reset", "gatito/demonstration", "gatito/late", "gatito/missed_deadlines"
LARGEST_SEED = 1 << 63


@dataclass(frozen=True, kw_only=True)
class Reset:
    """An episode is to begin."""

    task: str | None = None
    """Its task; None is the one of the session, or of the server."""
    seed: int = 0
    """Of the sampled actions."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A message that is well-formed."""

    reset: Reset | None = None
    """Before all else."""
    demonstration: Mapping[str, Any] | None = None
    """By name, each with a leading time axis; what the episode is prompted with."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The fields of an observation by name; empty where there is none."""
    prompt: str | None = None
    """The instruction."""

    @property
    def has_observation(self) -> bool:
        """Whether it asks for an action."""
        return bool(self.values) or self.prompt is not None


def parse_request(message: Mapping[str, Any]) -> Request:
    """Read a message; raises `UserError` for what it cannot say."""
    names = dict(_leaves({key: value for key, value in message.items() if key not in (RESET, DEMONSTRATION)}))
    prompt = names.pop(PROMPT, None)
    if prompt is not None and not isinstance(prompt, str):
        raise UserError(f"{PROMPT} is a {type(prompt).__name__}, expected a text")
    reset = _reset(message[RESET]) if RESET in message else None
    shown = message.get(DEMONSTRATION)
    if shown is not None:
        if reset is None:
            raise UserError(f"{DEMONSTRATION} without {RESET}; a prompt is what an episode begins with")
        if not isinstance(shown, dict) or ACTIONS not in shown:
            raise UserError(f"{DEMONSTRATION} is no map of observations and {ACTIONS!r}")
        shown = dict(_leaves(shown))
    if reset is None and prompt is None and not names:
        raise UserError(f"an empty message; send an observation, {RESET!r}, or both")
    return Request(reset=reset, demonstration=shown, values=names, prompt=prompt)


def observation_of(layout: Layout, request: Request) -> Any:
    """The observation of a message, nested as the task's space; raises `UserError` for fields that are not its own.

    Values are checked where they become tokens.
    """
    return build_tree(dict(_matched(layout, request.values, request.prompt)))


def episode_of(layout: Layout, task: str, demonstration: Mapping[str, Any]) -> Episode:
    """The demonstration of a message: T actions (T, A), and T observations or T + 1.

    A single text stands for all timesteps. Raises `UserError` for fields that are not those of the task.
    """
    values = dict(demonstration)
    actions = _rows(values.pop(ACTIONS), layout)
    T = len(actions)
    prompt = values.pop(PROMPT, None)
    if not (prompt is None or isinstance(prompt, str)):
        raise UserError(f"{DEMONSTRATION}: {PROMPT} is a {type(prompt).__name__}, expected a text")
    try:
        leaves = {path: _over_time(value, T) for path, value in _matched(layout, values, prompt)}
    except UserError as error:
        raise UserError(f"{DEMONSTRATION}: {error}") from None
    return Episode(
        task=task,
        id=0,
        agent="client",
        observations=build_tree(leaves),
        actions=split_actions(layout.actions, actions),
        rewards=np.zeros(T),
        targets=np.ones(T, np.bool_),
    )


def joined_actions(fields: Sequence[Field], action: Any) -> NDArray[Any]:
    """An action (1, A): its fields one after another, each row-major."""
    parts = [np.asarray(value_at(action, f.path)).reshape(-1) for f in fields]
    return np.concatenate(parts)[None]


def split_actions(fields: Sequence[Field], rows: NDArray[Any]) -> Any:
    """Actions with a leading time axis, nested as their space, of (T, A) rows; undoes `joined_actions`."""
    leaves, start = {}, 0
    for f in fields:
        leaves[f.path] = rows[:, start : start + f.size].reshape(len(rows), *f.shape)
        start += f.size
    return build_tree(leaves)


def action_of(fields: Sequence[Field], rows: NDArray[Any]) -> Any:
    """The action for the environment of a reply (1, A), in the dtypes of its space."""
    actions = split_actions(fields, rows)
    return build_tree({f.path: value_at(actions, f.path)[0].astype(f.dtype) for f in fields})


def described(layout: Layout) -> dict[str, Any]:
    """The fields of a task, as its clients need them."""
    instruction = text_field(layout)
    return {
        "observations": [_described_field(f) for f in layout.observations],
        "actions": [_described_field(f) for f in layout.actions],
        "prompt": None if instruction is None else instruction.name,
    }


def _described_field(f: Field) -> dict[str, Any]:
    values = asdict(f)
    kept = ("path", "kind", "dtype", "shape", "low", "high", "start", "num_values")
    return {"name": f.name, **{key: list(v) if isinstance(v := values[key], tuple) else v for key in kept}}


def text_field(layout: Layout) -> Field | None:
    """The field that `prompt` stands for: the only text of the observation."""
    texts = [f for f in layout.observations if f.kind == "text"]
    return texts[0] if len(texts) == 1 else None


def _matched(layout: Layout, values: Mapping[str, Any], prompt: str | None) -> Iterator[tuple[Any, Any]]:
    """The path of each field of the space, and the value that is meant for it."""
    left = dict(values)
    instruction = text_field(layout)
    if instruction is None and prompt:
        raise UserError(
            f"{PROMPT} is {prompt[:40]!r}, and the task's observations have no text, or several; leave it out"
        )
    for f in layout.observations:
        name = next((name for name in _names(f) if name in left), None)
        if name is not None:
            yield f.path, left.pop(name)
        elif f is instruction and prompt is not None:
            yield f.path, prompt
        else:
            raise UserError(f"field {f.name or OBSERVATION!r} is missing; got {_listed(values)}")
    if left:
        known = _listed(_names(f)[0] for f in layout.observations)
        raise UserError(f"field {next(iter(left))!r} is none of the task's; its fields are {known}")


def _names(f: Field) -> tuple[str, ...]:
    return (f.name, f"{OBSERVATION}/{f.name}") if f.path else (OBSERVATION,)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _leaves(values: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested maps, by names joined with `/`."""
    for key, value in values.items():
        if not isinstance(key, str):
            raise UserError(f"the key {key!r} in {above or 'the message'}, expected a text")
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}/")
        else:
            yield above + key, value


def _reset(value: Any) -> Reset:
    values = {} if value is True else value
    if not isinstance(values, dict) or not values.keys() <= {"task", "seed"}:
        raise UserError(f"{RESET} is {value!r:.80}, expected true, or a map of 'task' and 'seed'")
    task, seed = values.get("task"), values.get("seed", 0)
    if not (task is None or isinstance(task, str)):
        raise UserError(f"{RESET}: task is {task!r:.80}, expected a task id")
    if type(seed) is not int or not 0 <= seed < LARGEST_SEED:
        raise UserError(f"{RESET}: seed is {seed!r:.80}, allowed 0 to {LARGEST_SEED - 1}")
    return Reset(task=task, seed=seed)


def _rows(actions: Any, layout: Layout) -> NDArray[Any]:
    """Actions (T, A) of a demonstration."""
    width = layout.num_action_tokens
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.shape[1] != width or not len(actions):
        got = f"shape {actions.shape}" if isinstance(actions, np.ndarray) else f"a {type(actions).__name__}"
        raise UserError(f"{DEMONSTRATION}: {ACTIONS} is {got}, expected an array (timesteps, {width})")
    return actions


def _over_time(value: Any, T: int) -> Any:
    """T values of a field, of T or T + 1; a text stands for all."""
    if isinstance(value, str):
        return [value] * T
    if not isinstance(value, np.ndarray | list) or np.ndim(value) == 0 or len(value) not in (T, T + 1):
        got = f"{len(value)} values" if isinstance(value, np.ndarray | list) and np.ndim(value) else f"{value!r:.40}"
        raise UserError(f"{got} where there are {T} actions, expected {T} or {T + 1}")
    return value[:T]
