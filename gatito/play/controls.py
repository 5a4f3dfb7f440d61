"""How a person acts: what stands on the page for each value of an action, and the keys for it.

The names of actions are those of the environments' own documentation (gymnasium 1.2, minigrid 3.0); games of Atari
say theirs themselves. Other actions go by their numbers.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from gatito.data.tasks import domain_of
from gatito.tokenizers import Layout
from gatito.tokenizers.fields import Field

Named = Sequence[tuple[str, str]]
"""Name and key (`KeyboardEvent.key`) of each value, from the smallest on."""
LEFT, RIGHT, UP, DOWN = "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"
TASKS: dict[str, Named] = {
    "classic/cartpole": [("push left", LEFT), ("push right", RIGHT)],
    "classic/mountain-car": [("push left", LEFT), ("coast", DOWN), ("push right", RIGHT)],
    "classic/acrobot": [("torque -1", LEFT), ("no torque", DOWN), ("torque 1", RIGHT)],
    "box2d/lunar-lander": [
        ("coast", DOWN), ("left engine", LEFT), ("main engine", UP), ("right engine", RIGHT)
    ],
}  # fmt: skip
DOMAINS: dict[str, Named] = {
    "babyai": [
        ("turn left", LEFT), ("turn right", RIGHT), ("forward", UP), ("pick up", "p"), ("drop", "d"), ("toggle", "t"),
        ("done", "e"),
    ],
    "sokoban": [("up", UP), ("down", DOWN), ("left", LEFT), ("right", RIGHT)],
}  # fmt: skip
OF_MEANINGS = {"LEFT": LEFT, "RIGHT": RIGHT, "UP": UP, "DOWN": DOWN, "FIRE": "f", "NOOP": "n"}
MOST_KEYS = 18
"""Values of an action that have a button each; of more, one is chosen from a list."""
UNBOUNDED = 1.0
"""Sliders of values without bounds go so far."""


def controls_of(task: str, layout: Layout, env: gym.Env[Any, Any]) -> list[dict[str, Any]]:
    """One entry for each number of the action, in the order of `joined_actions`; keys only where there is but one."""
    controls = [control for f in layout.actions for control in _controls(f)]
    if len(controls) == 1 and controls[0]["kind"] == "discrete" and controls[0]["count"] <= MOST_KEYS:
        only = controls[0]
        named = _named(task, env, only["count"]) or [(str(only["start"] + i), "") for i in range(only["count"])]
        digits = [key or (str(i) if i < 10 else "") for i, (_, key) in enumerate(named)]
        only |= {"names": [name for name, _ in named], "keys": digits}
    return controls


def _controls(f: Field) -> list[dict[str, Any]]:
    names = [f.name or "action"] if f.size == 1 else [f"{f.name or 'action'} {i}" for i in range(f.size)]
    if f.kind == "discrete":
        pairs = zip(names, f.start, f.num_values, strict=True)
        return [{"name": n, "kind": "discrete", "start": start, "count": count} for n, start, count in pairs]
    whole = f.dtype.startswith(("int", "uint"))
    return [
        {
            "name": name,
            "kind": "continuous",
            "low": -UNBOUNDED if low is None else low,
            "high": UNBOUNDED if high is None else high,
            "whole": whole,
        }
        for name, low, high in zip(names, f.low, f.high, strict=True)
    ]


def _named(task: str, env: gym.Env[Any, Any], count: int) -> Named | None:
    """Names and keys, where there are as many as actions."""
    said: Sequence[str] = getattr(env.unwrapped, "get_action_meanings", lambda: [])()
    meanings = [(name.lower(), OF_MEANINGS.get(name, "")) for name in map(str, said)]
    found = TASKS.get(task) or DOMAINS.get(domain_of(task)) or meanings
    return found if len(found) == count else None
