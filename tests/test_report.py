"""The report is one page that needs nothing else, and its videos never cost a run."""

import io
import json
import re

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from gatito.data.tasks import TaskSpec
from gatito.eval import videos
from gatito.eval.language import Caption
from gatito.eval.report import Report, write_report
from gatito.eval.results import Results
from gatito.eval.rollout import TaskResult
from gatito.eval.videos import Video, encode_gif, record_episode
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.model.configuration import GatitoConfig
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary
from gatito.tokenizers.trunk import Trunk

SCORES = {"toy/good": 1.0, "toy/bad": -3.0, "other/a<b": 0.5}


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
        frame = np.full((300, 600, 3), 255, np.uint8)
        frame[:, self.steps * 60 :] = (200, 0, 0)
        return frame

    def _observation(self):
        return np.array([self.position, self.steps], np.float32)


def row(task, prompt, score):
    return TaskResult(
        id=task,
        domain=task.split("/")[0],
        prompt=prompt,
        episodes=4,
        mean_return=10 * score,
        score=score,
        ci_low=score - 0.1,
        ci_high=score + 0.1,
        random=0.0,
        expert=10.0,
    )


@pytest.fixture
def page(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": s, "loss/discrete": 3.0 / s, "accuracy/discrete": s / 20}) for s in (10, 20)]
    metrics.write_text("\n".join([*lines, '{"step": 3']))
    token = {"id": 5, "modality": "text", "meaning": "'<i>'", "local_position": 0, "loss_mask": True}
    report = Report(
        title="a <script> & more",
        results=Results(tasks=[row(t, p, s) for t, s in SCORES.items() for p in ("none", "demo")]),
        metrics=metrics,
        timesteps={"toy/<good>": [token] * 70},
        images={"toy/<good>": np.zeros((8, 8, 1), np.uint8)},
        videos=[Video(task="toy/good", frames=[np.zeros((8, 8, 3), np.uint8)], fps=5.0, caption="<c>", note="<n>")],
        captions=[Caption(image=np.zeros((8, 8, 1), np.uint8), expected="one", written="<b>two</b>")],
        texts=["if a < b: pass"],
        facts={"machine": "<m>"},
        next_commands=["gatito eval <run>"],
    )
    write_report(report, tmp_path / "report.html")
    assert not list(tmp_path.glob("*.partial"))
    return (tmp_path / "report.html").read_text()


@pytest.fixture
def walk(monkeypatch):
    spec = TaskSpec(id="toy/walk", make=Walk, expert=lambda env: lambda o: 0, modules={"numpy": "demo"})
    monkeypatch.setattr(videos, "get_task", lambda task: spec)
    text = TextTokenizer.load()
    vocabulary = Vocabulary(text_size=text.size)
    layout = Layout.from_spaces(Walk.observation_space, Walk.action_space, vocabulary=vocabulary, text=text)
    model = GatitoForCausalLM(GatitoConfig(num_hidden_layers=1, context=64))
    return model, GatitoProcessor(Trunk(vocabulary=vocabulary), text, {"toy/walk": layout})


def test_report_refers_to_nothing_outside_itself(page):
    references = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)""", page)
    assert len(references) == 3  # observed image, video, caption
    assert all(source.startswith("data:image/") for source, _ in references)
    assert "http://" not in page
    assert "https://" not in page


def test_report_escapes_every_text(page):
    for text in ("<script>", "<i>", "<c>", "<n>", "<b>two", "<m>", "<run>", "a < b", "a<b", "<good>"):
        assert text not in page
        assert text.replace("<", "&lt;").replace(">", "&gt;") in page


def test_report_lists_every_task_the_bad_ones_too(page):
    cells = re.findall(r"<tr><td>(.*?)</td><td>(none|demo)</td>", page)
    assert cells == [(task, p) for task in ("other/a&lt;b", "toy/bad", "toy/good") for p in ("none", "demo")]
    assert "<td>-3.00</td><td>-3.10 to -2.90</td>" in page


def test_report_draws_what_a_killed_run_logged(page):
    assert page.count("<polyline") == 2
    assert "discrete 0.150" in page
    assert "1.000" in page


def test_report_of_scores_alone_leaves_the_rest_out(tmp_path):
    write_report(Report(title="t", results=Results(tasks=[row("toy/good", "none", 1.0)])), tmp_path / "r.html")
    assert re.findall("<h2>(.*?)</h2>", (tmp_path / "r.html").read_text()) == [
        "At a glance",
        "Scores by domain",
        "All tasks",
    ]


def test_gif_decodes_to_the_frames_that_were_kept():
    frames = [np.zeros((12, 200, 3), np.uint8) for _ in range(200)]
    for i, frame in enumerate(frames):
        frame[:, i] = (255, 0, 0)
    picture = Image.open(io.BytesIO(encode_gif(frames, 20.0)))
    assert picture.n_frames == videos.MAX_FRAMES
    assert picture.info["loop"] == 0
    picture.seek(videos.MAX_FRAMES - 1)
    assert (np.asarray(picture.convert("RGB")) == frames[-1]).all()


def test_video_shows_the_episode_that_was_scored(walk):
    video = record_episode(*walk, "toy/walk", seed=3)
    assert video.note == ""
    assert len(video.frames) == 11
    assert video.frames[0].shape == (128, 256, 3)
    assert (video.frames[0][0, 0] == (200, 0, 0)).all()  # nothing walked yet
    assert (video.frames[-1] == 255).all()
    assert "10 timesteps, seed 3" in video.caption
    assert len(record_episode(*walk, "toy/walk", seed=3, max_frames=4).frames) == 4


def test_missing_renderer_draws_the_observation_and_says_what_to_install(walk, monkeypatch):
    def render(self):
        raise ImportError("no screen")

    monkeypatch.setattr(Walk, "render", render)
    video = record_episode(*walk, "toy/walk")
    assert video.note == (
        "Rendering failed (ImportError: no screen): the observation is drawn; "
        "for real frames: pip install 'gatito[demo]'"
    )
    assert len({frame.tobytes() for frame in video.frames}) > 5


def test_missing_opengl_is_said_where_the_environment_draws_itself(walk, monkeypatch):
    monkeypatch.setattr(Walk, "renders_state", True)
    assert "install libegl1 or libosmesa6" in record_episode(*walk, "toy/walk").note
