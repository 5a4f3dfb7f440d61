"""Videos of seeded episodes, as MP4 files.

An episode is played first and then replayed for the camera: only then is it known which timesteps to render, and
rendering is the slow part (0.15 s a frame for MuJoCo on a CPU). Neither observations nor frames are kept: each frame
is encoded as it is rendered.
"""

from collections.abc import Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gatito.data.tasks import EVALUATION_SEEDS, TaskSpec
from gatito.eval.actor import Actor
from gatito.eval.evaluate import CheckedTask
from gatito.eval.mp4 import Mp4Writer, pyav
from gatito.eval.replay import draw_observation, render_frame, rendering, replayed, states
from gatito.eval.scores import succeeded
from gatito.tokenizers import Layout, TokenSequence

MAX_FRAMES = 300
"""Frames of one video."""
MAX_MUJOCO_FRAMES = 40
"""The same for Meta-World."""
DURATION_S = (3.0, 12.0)
"""Shortest and longest playing time of a video; in between it plays at the environment's own speed."""
FAILED_BELOW = 0.5
"""An episode with a smaller score has failed: it is nearer to the random policy than to the expert."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """One played episode."""

    task: str
    """Task id."""
    path: Path
    """MP4 file."""
    caption: str
    """Return, score and how it was played."""
    note: str
    """Empty, or why the state is drawn instead of rendered, and what to install."""
    score: float | None
    """(return - random) / (expert - random); None where the task has no references."""
    failed: bool
    """Whether the score is below 0.5; without references, whether a task of success did not succeed."""
    length: int
    """Timesteps of the episode."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Episode:
    """What is needed to show an episode again."""

    spec: TaskSpec
    layout: Layout
    seed: int
    actions: Sequence[Any]
    total: float
    """Return."""
    shown: Set[int]
    """Timesteps that become frames."""
    fps: float
    """Frames a second."""


def record_episode(
    actor: Actor,
    task: CheckedTask,
    out: Path,
    seed: int = EVALUATION_SEEDS,
    max_frames: int = MAX_FRAMES,
    prompt: TokenSequence | None = None,
    part: str = "",
) -> Video:
    """Play one episode in the first session and film it into the folder `out`, as the task's name with `--` for `/`.

    `part` says what the prompt shows. Where rendering fails the frames are drawings of the observations. Raises
    `UserError` where PyAV is missing.
    """
    pyav()  # before the episode is played
    spec, layout = task.spec, task.layout
    limit = min(max_frames, MAX_MUJOCO_FRAMES) if spec.domain == "metaworld" else max_frames
    actor.reset(0, layout, prompt, seed)
    episode = _play(spec, actor, layout, seed, limit)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{spec.id.replace('/', '--')}.mp4"
    try:
        note = _film(episode, path)
    except Exception as error:  # whatever a broken driver raises: a video must not cost the report
        note = f"Rendering failed ({type(error).__name__}: {error}): the observation is drawn"
        extras = ",".join(sorted(set(spec.modules.values())))
        note += f"; for real frames: pip install 'gatito[{extras}]'" if extras else ""
        _draw(episode, path)
    total, length = episode.total, len(episode.actions)
    score = task.baseline.score(total) if task.baseline.is_scored else None
    how = f"{length} timesteps, seed {seed}" + (f", prompt {part}" if prompt is not None else "")
    return Video(
        task=spec.id,
        path=path,
        caption=f"return {total:.4g}{'' if score is None else f', score {score:.2f}'}, {how}",
        note=note,
        score=score,
        failed=spec.success and not succeeded(total) if score is None else not score >= FAILED_BELOW,  # of nan too
        length=length,
    )


def _play(spec: TaskSpec, actor: Actor, layout: Layout, seed: int, limit: int) -> _Episode:
    """Play an episode, of which at most `limit` timesteps will be shown."""
    actions: list[Any] = []
    with closing(spec.make()) as env:
        for state in states(env, lambda observation: actor.act({0: observation})[0], seed):
            actions.append(state.action)
            total = state.total
        speed = float(env.metadata.get("render_fps") or 30)
    T = len(actions)
    shown = np.linspace(0, T - 1, min(limit, T)).round().astype(int).tolist()
    return _Episode(
        spec=spec,
        layout=layout,
        seed=seed,
        actions=actions[1:],  # none leads to the beginning
        total=total,
        shown=set(shown),
        fps=len(shown) / float(np.clip(T / speed, *DURATION_S)),
    )


def _film(episode: _Episode, path: Path) -> str:
    """Replay the episode and render it; the note tells where the frames are not the real thing."""
    with rendering(episode.spec) as env, Mp4Writer(path, episode.fps) as video:
        for t, state in enumerate(replayed(env, episode.actions, episode.seed)):
            if t in episode.shown:
                video.add(render_frame(env))
            total = state.total
        drawn = getattr(env.unwrapped, "renders_state", False)
    if drawn:
        return (
            "MuJoCo found neither EGL nor OSMesa: the state is drawn (hand blue, object red, goal green; from above, "
            "and from the front below); install libegl1 or libosmesa6 for real frames"
        )
    if not np.isclose(total, episode.total):
        return f"the environment is not determined by its seed: the replay that is shown returned {total:.4g}"
    return ""


def _draw(episode: _Episode, path: Path) -> None:
    """Replay the episode and draw what was observed."""
    with closing(episode.spec.make()) as env, Mp4Writer(path, episode.fps) as video:
        for t, state in enumerate(replayed(env, episode.actions, episode.seed)):
            if t in episode.shown:
                video.add(draw_observation(state.observation, episode.layout))
