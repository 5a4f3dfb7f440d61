"""Videos of seeded episodes, as GIFs that a web page can hold.

An episode is played first and then replayed for the camera: only then is it known which timesteps to render, and
rendering is the slow part (0.15 s a frame for MuJoCo on a CPU).
"""

import io
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from gatito.data.tasks import EVALUATION_SEEDS, TaskSpec, get_task, references
from gatito.eval.actor import Actor
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.tokenizers import Layout
from gatito.tokenizers.fields import value_at

MAX_FRAMES = 150
"""Frames of one video."""
MAX_MUJOCO_FRAMES = 40
"""The same for Meta-World."""
MAX_WIDTH = 256
"""Pixels."""
MAX_GIF_BYTES = 600_000
"""Frames are halved until a GIF is smaller, or has 20 frames."""
DURATION_S = (3.0, 12.0)
"""Shortest and longest playing time of a video; in between it plays at the environment's own speed."""
COLOURS = 128
"""Size of a GIF's palette."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """One played episode."""

    task: str
    """Task id."""
    frames: list[np.ndarray]
    """(H, W, 3) uint8 each, at most 256 pixels wide."""
    fps: float
    """Frames per second."""
    caption: str
    """Return, score and how it was played."""
    note: str
    """Empty, or why the state is drawn instead of rendered, and what to install."""


def record_episode(
    model: GatitoForCausalLM,
    processor: GatitoProcessor,
    task: str,
    seed: int = EVALUATION_SEEDS,
    max_frames: int = MAX_FRAMES,
) -> Video:
    """Play one episode and film it; where rendering fails, the frames are drawings of the observations."""
    spec, layout = get_task(task), processor.layout(task)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory; without a screen it would fail
    observations, actions, total, speed = _play(spec, Actor(model), layout, seed)
    T = len(observations)
    limit = min(max_frames, MAX_MUJOCO_FRAMES) if spec.domain == "metaworld" else max_frames
    shown = np.unique(np.linspace(0, T - 1, min(limit, T)).round().astype(int)).tolist()
    try:
        frames, note = _film(spec, actions, total, seed, shown)
    except Exception as error:  # whatever a broken driver raises: a video must not cost the report
        frames = [draw_observation(observations[t], layout) for t in shown]
        note = f"Rendering failed ({type(error).__name__}: {error}): the observation is drawn"
        extras = ",".join(sorted(set(spec.modules.values())))
        note += f"; for real frames: pip install 'gatito[{extras}]'" if extras else ""
    known = references().get(task)
    score = f", score {known.score(total):.2f}" if known else ""
    return Video(
        task=task,
        frames=frames,
        fps=len(frames) / float(np.clip(T / speed, *DURATION_S)),
        caption=f"return {total:.4g}{score}, {T - 1} timesteps, seed {seed}",
        note=note,
    )


def encode_gif(frames: Sequence[np.ndarray], fps: float) -> bytes:
    """Encode frames (H, W, 3) uint8 as a looping GIF that rests a second on the last one."""
    kept = [frames[i] for i in np.linspace(0, len(frames) - 1, min(MAX_FRAMES, len(frames))).round().astype(int)]
    encoded = _encode(kept, fps * len(kept) / len(frames))
    while len(encoded) > MAX_GIF_BYTES and len(kept) > 20:
        kept = [*kept[:-1:2], kept[-1]]
        encoded = _encode(kept, fps * len(kept) / len(frames))
    return encoded


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


def _play(spec: TaskSpec, actor: Actor, layout: Layout, seed: int) -> tuple[list[Any], list[Any], float, float]:
    """Observations, actions, return, and timesteps per second at the environment's own speed."""
    env = spec.make()
    actor.reset(0, layout, seed=seed)
    observations, actions, total, done = [env.reset(seed=seed)[0]], [], 0.0, False
    while not done:
        actions.append(actor.act({0: observations[-1]})[0])
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        observations.append(observation)
        total += float(reward)
        done = terminated or truncated
    env.close()
    return observations, actions, total, float(env.metadata.get("render_fps") or 30)


def _film(
    spec: TaskSpec, actions: list[Any], total: float, seed: int, shown: list[int]
) -> tuple[list[np.ndarray], str]:
    """Replay the actions and render the timesteps `shown`; the note tells where the frames are not the real thing."""
    frames, replayed = [], 0.0
    with closing(spec.make(render_mode="rgb_array")) as env:
        env.reset(seed=seed)
        for t in range(len(actions) + 1):
            if t in shown:
                frames.append(_shrunk(env.render()))
            if t < len(actions):
                replayed += float(env.step(actions[t])[1])
        drawn = getattr(env.unwrapped, "renders_state", False)
    if drawn:
        return frames, (
            "MuJoCo found neither EGL nor OSMesa: the state is drawn (hand blue, object red, goal green; from above, "
            "and from the front below); install libegl1 or libosmesa6 for real frames"
        )
    if not np.isclose(replayed, total):
        return (
            frames,
            f"the environment is not determined by its seed: the replay that is shown returned {replayed:.4g}",
        )
    return frames, ""


def _shrunk(frame: Any) -> np.ndarray:
    if frame is None:
        raise RuntimeError("the environment renders nothing")
    picture = Image.fromarray(_rgb(np.asarray(frame, np.uint8)))
    if picture.width > MAX_WIDTH:
        picture = picture.resize((MAX_WIDTH, max(1, picture.height * MAX_WIDTH // picture.width)))
    return np.asarray(picture)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) of an image with one or three channels."""
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _encode(frames: Sequence[np.ndarray], fps: float) -> bytes:
    """One palette for all frames and no dithering: what stands still costs nothing."""
    sample = np.concatenate([frames[i] for i in np.linspace(0, len(frames) - 1, min(8, len(frames))).astype(int)])
    palette = Image.fromarray(sample).quantize(COLOURS)
    pictures = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    durations = [round(1000 / fps)] * (len(pictures) - 1) + [1000]
    file = io.BytesIO()
    pictures[0].save(
        file, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True
    )
    return file.getvalue()
