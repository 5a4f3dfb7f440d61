"""Environments, prompts and a loop for the tests of acting."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from toy import CONTEXT, TRUNKS, ToyEnv, toy_sequence

from gatito.data.sampler import prompt_budget
from gatito.eval.actor import Actor
from gatito.tokenizers import Layout, TokenSequence
from gatito.tokenizers.trunk import Trunk

IMAGE = spaces.Box(0, 255, (16, 32, 3), np.uint8)
ENVS = {
    "vectors": (spaces.Box(-9.0, 9.0, (4,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32)),
    "missions": (spaces.Dict(at=spaces.MultiDiscrete([4, 4]), mission=spaces.Text(24)), spaces.Discrete(5)),
    "images": (spaces.Dict(image=IMAGE, heading=spaces.Discrete(4)), spaces.MultiDiscrete([3, 2])),
    "everything": (
        spaces.Dict(image=IMAGE, mission=spaces.Text(24), at=spaces.Box(-1.0, 1.0, (2,), np.float32)),
        spaces.Tuple((spaces.Discrete(6, start=-2), spaces.Box(0.0, 8.0, (2,), np.float64))),
    ),
}
CASES = [
    (name, trunk)
    for name in ENVS
    for trunk in TRUNKS
    if name == "vectors"
    or trunk in ("flat", "4 latents, decoded")
    or (name == "everything" and trunk != "flat, decoded")
]
"""Every trunk with numbers and with everything at once, the simplest and the largest with the rest."""


def make(name: str, length: int = 20) -> ToyEnv:
    return ToyEnv(*ENVS[name], length=length)


def prompt_of(env: ToyEnv, layout: Layout, trunk: Trunk) -> TokenSequence:
    """As many whole timesteps of another episode as half the context holds."""
    sequence = toy_sequence(make_like(env, 40), layout, seed=77)
    last = int(np.searchsorted(trunk.timestep_starts(sequence), prompt_budget(CONTEXT), side="right")) - 1
    assert last >= 1
    return sequence.timesteps(0, last, layout.vocabulary.patch)


def make_like(env: ToyEnv, length: int) -> ToyEnv:
    return ToyEnv(env.observation_space, env.action_space, length)


def play(
    actor: Actor,
    layouts: Sequence[Layout],
    envs: Sequence[ToyEnv],
    plans: Sequence[Sequence[tuple[int, TokenSequence | None]]],
    steps: int,
) -> list[list[list[Any]]]:
    """Play each session's episodes (seed, prompt) for `steps` steps together: actions by session and episode."""
    actions: list[list[list[Any]]] = [[] for _ in envs]
    observations: dict[int, Any] = {}
    waiting = [iter(plan) for plan in plans]

    def begin(s: int) -> None:
        seed, prompt = next(waiting[s])
        actor.reset(s, layouts[s], prompt, seed)
        observations[s] = envs[s].reset(seed=seed)[0]
        actions[s].append([])

    for s in range(len(envs)):
        begin(s)
    for _ in range(steps):
        chosen = actor.act(observations)
        for s, action in chosen.items():
            actions[s][-1].append(_listed(action))
            observations[s], _, done, _, _ = envs[s].step(action)
            if done:
                begin(s)
    return actions


def _listed(action: Any) -> Any:
    return [_listed(part) for part in action] if isinstance(action, tuple) else np.asarray(action).tolist()
