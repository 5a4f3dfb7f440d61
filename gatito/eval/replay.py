"""One seeded episode, timestep by timestep: played by a policy, or replayed and rendered."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw

from gatito.data.tasks import Policy, TaskSpec
from gatito.tokenizers import Layout
from gatito.tokenizers.fields import value_at

MAX_WIDTH = 256
"""Pixels of a frame."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeState:
    """Where an episode has come to."""

    observation: Any
    """Of the environment."""
    action: Any
    """That led here; None at the beginning."""
    total: float
    """Return so far."""
    done: bool
    """Whether the episode has ended: no action follows."""


def states(env: gym.Env[Any, Any], policy: Policy, seed: int) -> Iterator[EpisodeState]:
    """The states of a seeded episode, the last one included; the policy is asked between them."""
    state = EpisodeState(observation=env.reset(seed=seed)[0], action=None, total=0.0, done=False)
    yield state
    while not state.done:
        action = policy(state.observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, done = state.total + float(reward), terminated or truncated
        state = EpisodeState(observation=observation, action=action, total=total, done=done)
        yield state


def replayed(env: gym.Env[Any, Any], actions: Sequence[Any], seed: int) -> Iterator[EpisodeState]:
    """The states of an episode whose actions are known, at most one more than there are actions."""
    known = iter(actions)
    for _, state in zip(range(len(actions) + 1), states(env, lambda _: next(known), seed), strict=False):
        yield state


def rendering(spec: TaskSpec) -> closing[gym.Env[Any, Any]]:
    """The environment of a task with a camera, to be used in a `with`."""
    return closing(make_rendering(spec))


def make_rendering(spec: TaskSpec) -> gym.Env[Any, Any]:
    """The environment of a task with a camera."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory; without a screen it would fail
    return spec.make(render_mode="rgb_array")


def render_frame(env: gym.Env[Any, Any]) -> np.ndarray:
    """What the camera sees now, (H, W, 3) uint8 and at most 256 pixels wide."""
    frame: Any = env.render()
    if frame is None:
        raise RuntimeError("the environment renders nothing")
    picture = Image.fromarray(_rgb(np.asarray(frame, np.uint8)))
    if picture.width > MAX_WIDTH:
        picture = picture.resize((MAX_WIDTH, max(1, picture.height * MAX_WIDTH // picture.width)))
    return np.asarray(picture)


def draw_observation(observation: Any, layout: Layout) -> np.ndarray:
    """Draw an observation (160, 256, 3): its text, its images, and a bar for every number (0 in the middle)."""
    picture = Image.new("RGB", (MAX_WIDTH, 160), "white")
    canvas = ImageDraw.Draw(picture)
    numbers: list[float] = []
    left = 4
    for field in layout.observations:
        value = value_at(observation, field.path)
        if field.kind == "text":
            canvas.text((4, 4), str(value)[:42], "black")
        elif field.kind == "image":
            pixels = Image.fromarray(_rgb(np.asarray(value, np.uint8)))
            pixels.thumbnail((64, 64))
            picture.paste(pixels, (left, 20))
            left += 68
        else:
            numbers.extend(np.asarray(value, np.float64).reshape(-1))
    canvas.line((0, 124, MAX_WIDTH, 124), "gray")
    width = min(24.0, MAX_WIDTH / max(1, len(numbers)))
    for i, number in enumerate(numbers):
        height = 32 * number / (1 + abs(number))  # bounded, and monotone
        top, bottom = sorted((124 - height, 124.0))
        canvas.rectangle((i * width + 1, top, (i + 1) * width - 1, bottom), "steelblue")
    return np.asarray(picture)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) of an image with one or three channels."""
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
