"""Videos are MP4 files that hold the frames given, never cost a run, and show the episode that was scored."""

import dataclasses
import sys
import weakref
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from gatito.data.tasks import TaskSpec
from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.evaluate import CheckedTask
from gatito.eval.mp4 import Mp4Writer
from gatito.eval.scores import Baseline
from gatito.eval.videos import record_episode
from gatito.model import GatitoConfig, GatitoForCausalLM
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary

av = pytest.importorskip("av", reason="needs pip install 'gatito[video]'")


class Walk(gym.Env):
    """Ten steps on a line, at a position that is seen as two numbers."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = gym.spaces.Box(-100.0, 100.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    renders_state = False

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.steps = float(self.np_random.uniform(-1, 1)), 0
        return self._observation(), {}

    def step(self, action):
        self.position += 2 * int(action) - 1
        self.steps += 1
        return self._observation(), self.position, self.steps == 10, False, {}

    def render(self):
        """Red right of where the time has come to; below a black bar as long as the position is far right."""
        frame = np.full((300, 600, 3), 255, np.uint8)
        frame[:, self.steps * 60 :] = (200, 0, 0)
        frame[200:] = 255
        frame[200:, : 300 + round(20 * self.position)] = 0
        return frame

    def _observation(self):
        return np.array([self.position, self.steps], np.float32)


@pytest.fixture
def walk(vocabulary: Vocabulary, text: TextTokenizer) -> tuple[Actor, CheckedTask]:
    spec = TaskSpec(id="toy/walk", make=Walk, expert=lambda env: lambda o: 0, modules={"numpy": "demo"})
    layout = Layout.from_spaces(Walk.observation_space, Walk.action_space, vocabulary=vocabulary, text=text)
    model = GatitoForCausalLM(GatitoConfig(num_hidden_layers=1, context=64, **vocabulary.to_json()))
    unknown = Baseline(random=None, expert=None)
    return Actor(model), CheckedTask(spec=spec, layout=layout, baseline=unknown, env=Walk())


def frames_of(path: Path) -> np.ndarray:
    """(F, H, W, 3) uint8."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def test_an_mp4_decodes_to_the_frames_that_were_added(tmp_path: Path) -> None:
    frames = np.zeros((40, 48, 64, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[:] = (250 - 6 * i, 100, 6 * i)
        frame[:24, : 16 + i] = (20, 200, 90)
    with Mp4Writer(tmp_path / "a.mp4", 12.5) as video:
        for frame in frames:
            video.add(frame)
    decoded = frames_of(tmp_path / "a.mp4")
    assert decoded.shape == frames.shape
    flat = np.s_[:, 30:, :, :]  # edges of colours are blurred: they have half the resolution
    assert np.abs(decoded.astype(int) - frames)[flat].max() <= 10
    assert np.abs(decoded.astype(int) - frames).mean() < 3
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12.5
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_odd_sizes_get_a_second_last_row_and_column(tmp_path: Path) -> None:
    frame = np.zeros((33, 21, 3), np.uint8)
    frame[-4:] = 255
    with Mp4Writer(tmp_path / "odd.mp4", 5) as video:
        video.add(frame)
    decoded = frames_of(tmp_path / "odd.mp4")
    assert decoded.shape == (1, 34, 22, 3)
    assert decoded[0, :28].max() < 30
    assert decoded[0, -2:].min() > 225


@pytest.mark.parametrize("count", [5, 300])
def test_a_frame_is_not_kept_once_it_was_added(tmp_path: Path, count: int) -> None:
    frames: list[weakref.ref[np.ndarray]] = []
    with Mp4Writer(tmp_path / "long.mp4", 30) as video:
        for i in range(count):
            frame = np.full((32, 32, 3), i % 256, np.uint8)
            frames.append(weakref.ref(frame))
            video.add(frame)
            del frame
            assert not [f for f in frames if f() is not None]
    assert len(frames_of(tmp_path / "long.mp4")) == count


def test_a_failure_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    path, frame = tmp_path / "a.mp4", np.zeros((8, 8, 3), np.uint8)
    path.write_bytes(b"earlier")

    def fail_after(count: int) -> None:
        with Mp4Writer(path, 5) as video:
            for _ in range(count):
                video.add(frame)
            raise RuntimeError("no screen")

    for count in (0, 1, 30):
        with pytest.raises(RuntimeError, match="no screen"):
            fail_after(count)
    assert path.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_video_without_frames_and_frames_of_two_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without frames"), Mp4Writer(tmp_path / "a.mp4", 5):
        pass
    with Mp4Writer(tmp_path / "b.mp4", 5) as video:
        video.add(np.zeros((8, 8, 3), np.uint8))
        with pytest.raises(UserError, match=r"a frame \(8, 10, 3\), the first was \(8, 8, 3\)"):
            video.add(np.zeros((8, 10, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["b.mp4"]


def test_missing_pyav_names_the_extra_before_anything_is_played(
    walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"^videos need PyAV: pip install 'gatito\[video\]'$"):
        record_episode(*walk, tmp_path / "videos")
    assert not (tmp_path / "videos").exists()


def test_a_video_shows_the_episode_that_was_scored(walk, tmp_path: Path) -> None:
    played: list[float] = []

    class Watched(Walk):
        def step(self, action):
            if self.render_mode is None:
                played.append(float(self.position + 2 * int(action) - 1))
            return super().step(action)

    object.__setattr__(walk[1].spec, "make", Watched)
    video = record_episode(*walk, tmp_path / "videos", seed=3)
    assert video.path == tmp_path / "videos" / "toy--walk.mp4"
    assert (video.note, video.length) == ("", 10)
    assert (video.score, video.failed) == (None, False)  # the task has no references
    assert f"return {sum(played):.4g}, 10 timesteps, seed 3" in video.caption
    decoded = frames_of(video.path)
    assert decoded.shape == (11, 128, 256, 3)
    assert decoded[0, 0, 0] == pytest.approx((200, 0, 0), abs=8)  # nothing walked yet
    assert decoded[-1, 0].min() > 240
    bars = (decoded[1:, 120, :, 1] < 128).sum(-1)
    np.testing.assert_allclose(bars, [(300 + 20 * position) * 256 / 600 for position in played], atol=2)
    assert len(set(bars.tolist())) > 2
    record_episode(*walk, tmp_path / "videos", seed=3, max_frames=4)
    assert len(frames_of(video.path)) == 4


def test_a_prompted_episode_says_so(walk, tmp_path: Path) -> None:
    layout = walk[1].layout
    prompt = layout.episode_tokens(np.zeros((2, 2), np.float32), np.array([0, 1]))
    video = record_episode(*walk, tmp_path, prompt=prompt, part="end")
    assert video.caption.endswith(", prompt end")


@pytest.mark.parametrize(("expert", "failed"), [(1e6, True), (-999.0, False)])
def test_an_episode_with_a_score_below_a_half_has_failed(
    walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expert: float, failed: bool
) -> None:
    scored = dataclasses.replace(walk[1], baseline=Baseline(random=-1000.0, expert=expert))
    video = record_episode(walk[0], scored, tmp_path)
    assert video.score is not None
    assert (video.score < 0.5) == failed == video.failed
    assert f"score {video.score:.2f}" in video.caption


def test_missing_renderer_draws_the_observation_and_says_what_to_install(
    walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(self):
        if self.steps == 2:
            raise ImportError("no screen")
        return np.zeros((64, 64, 3), np.uint8)

    monkeypatch.setattr(Walk, "render", render)
    video = record_episode(*walk, tmp_path)
    assert video.note == (
        "Rendering failed (ImportError: no screen): the observation is drawn; "
        "for real frames: pip install 'gatito[demo]'"
    )
    decoded = frames_of(video.path)
    assert decoded.shape == (11, 160, 256, 3)
    assert len({frame.tobytes() for frame in decoded}) > 5
    assert [path.name for path in tmp_path.iterdir()] == ["toy--walk.mp4"]


def test_missing_opengl_is_said_where_the_environment_draws_itself(
    walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Walk, "renders_state", True)
    assert "install libegl1 or libosmesa6" in record_episode(*walk, tmp_path).note


def test_a_replay_that_differs_says_so(walk, tmp_path: Path) -> None:
    resets = iter(range(100))

    class Drifting(Walk):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed + next(resets), options=options)

    object.__setattr__(walk[1].spec, "make", Drifting)
    assert "not determined by its seed" in record_episode(*walk, tmp_path).note
