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
from gatito.eval.scores import Baseline, EpisodeRecord
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


def episodes(scores, prompts=("none", "beginning"), **values):
    """Four episodes of every task and prompt, a little above and below the score."""
    return [
        EpisodeRecord(task=task, prompt=prompt, seed=i, total_return=10 * score + i - 1.5, length=9, **values)
        for task, score in scores.items()
        for prompt in prompts
        for i in range(4)
    ]


def results_of(records, **values):
    baselines = {record.task: Baseline(random=0.0, expert=10.0) for record in records}
    return Results(records=records, **{"baselines": baselines} | values)


def written(tmp_path, results, **values):
    write_report(Report(title="t", results=results, **values), tmp_path / "r.html")
    return (tmp_path / "r.html").read_text()


@pytest.fixture
def page(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": s, "loss/discrete": 3.0 / s, "accuracy/discrete": s / 20}) for s in (10, 20)]
    metrics.write_text("\n".join([*lines, '{"step": 3']))
    token = {"id": 5, "modality": "text", "meaning": "'<i>'", "local_position": 0, "loss_mask": True}
    broken = EpisodeRecord(
        task="toy/good", prompt="none", seed=9, total_return=None, length=2, failure="it <fell> off"
    )
    report = Report(
        title="a <script> & more",
        results=results_of([*episodes(SCORES), broken], settings={"<s>": "<v>"}),
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
    for text in (
        "<script>",
        "<i>",
        "<c>",
        "<n>",
        "<b>two",
        "<m>",
        "<run>",
        "a < b",
        "a<b",
        "<good>",
        "<fell>",
        "<s>",
        "<v>",
    ):
        assert text not in page
        assert text.replace("<", "&lt;").replace(">", "&gt;") in page


def test_report_lists_every_task_the_bad_ones_too(page):
    table = page[page.index("<h2>All tasks") :]
    cells = re.findall(r"<tr><td>(.*?)</td><td>(none|beginning)</td>", table)
    assert cells == [(task, p) for task in ("other/a&lt;b", "toy/bad", "toy/good") for p in ("none", "beginning")]
    assert re.search("<td>-3.00</td><td>-3.1[0-9] to -2.[89][0-9]</td>", table)


def test_failures_and_the_worst_tasks_come_before_all_scores(page):
    assert "1 episode of 25 failed in the simulator" in page
    failures = page[page.index("<h2>What went wrong") : page.index("<h2>Tasks above")]
    assert "<td>toy/good</td><td>none</td><td>1</td>" in failures
    assert "it &lt;fell&gt; off" in failures
    assert re.findall("<td>(-?[0-9.]+)</td><td>-?[0-9.]+ to", failures) == ["-3.00"] * 2 + ["0.50"] * 2 + ["1.00"] * 2


def test_report_draws_what_a_killed_run_logged(page):
    assert page.count("<polyline") == 2
    assert "discrete 0.150" in page
    assert "1.000" in page


def test_report_of_scores_alone_leaves_the_rest_out(tmp_path):
    page = written(tmp_path, results_of(episodes({"toy/good": 1.0}, prompts=["none"])))
    headings = [
        "At a glance",
        "What went wrong",
        "Tasks above a percentage of the expert",
        "Scores by domain",
        "All tasks",
    ]
    assert re.findall("<h2>(.*?)</h2>", page) == headings
    assert re.findall("<h2>(.*?)</h2>", written(tmp_path, results_of([]))) == ["At a glance"]


def test_each_prompt_has_its_chart_and_bars_and_its_difference(page):
    assert page.count("Tasks at or above each percentage of the expert, ") == 4  # a chart and its table each
    assert page.count('class="beginning" x=') == 3 + 2 + 2 + 1  # tasks, domains; differences of domains, overall
    compared = page[page.index("<h2>Prompts compared") :]
    row = "<td>beginning</td><td>-0.25 .*?</td><td>.*?</td><td>3</td><td>.0.00 .*?</td><td>0 / 0 / 3</td>"
    assert re.search(row, compared)


def test_the_chart_of_tasks_above_percentages_has_a_step_where_a_task_ends(tmp_path):
    page = written(tmp_path, results_of(episodes({"a/x": 0.5, "b/y": 2.0}, prompts=["none"])))
    first, second = re.findall('<polygon class="(.*?)" points="(.*?)"', page)
    assert first == ("d0", "0,0.5000 0.5,0.5000 0.5,1.0000 1,1.0000 1,1.0000 0,1.0000")
    assert second == ("d1", "0,0.0000 0.5,0.0000 0.5,0.5000 1,0.5000 1,1.0000 0.5,1.0000 0.5,0.5000 0,0.5000")
    assert "<td>all</td><td>2</td><td>2</td><td>2</td><td>2</td><td>1</td><td>1</td><td>1</td>" in page


def test_a_task_without_a_score_is_listed_apart_with_the_reason(tmp_path):
    records = episodes({"toy/good": 1.0, "toy/odd": 0.3}, prompts=["none"])
    baselines = {"toy/good": Baseline(random=0.0, expert=10.0), "toy/odd": Baseline(random=5.0, expert=5.0)}
    page = written(tmp_path, results_of(records, baselines=baselines))
    scored, apart = page.split("<h2>Tasks without a score")
    assert "toy/odd" not in scored
    assert "the expert (5.00) is not above the random policy (5.00)" in apart


def test_scores_by_order_are_drawn_where_contexts_hold_several_episodes(tmp_path):
    records = episodes({"toy/good": 0.2}, prompts=["none"]) + episodes({"toy/good": 0.6}, prompts=["none"], order=1)
    page = written(tmp_path, results_of(records))
    rows = re.findall(r"<td>(episode .)</td><td>none</td><td>(.*?) \(", page[page.index("<h2>Episodes of one") :])
    assert rows == [("episode 1", "0.20"), ("episode 2", "0.60")]
    assert '<span class="name">episode 2</span>' in page


def test_scores_while_training_are_drawn_by_domain(tmp_path):
    lines = [
        {
            "step": step,
            "failed": {"toy/x": "no"},
            "score/toy/good": step / 10,
            "score/other/bad": 0.1,
            "score": step / 20,
        }
        for step in (4, 8)
    ]
    (tmp_path / "evaluations.jsonl").write_text("\n".join(map(json.dumps, lines)))
    results = results_of(episodes({"toy/good": 1.0}, prompts=["none"]))
    page = written(tmp_path, results, evaluations=tmp_path / "evaluations.jsonl")
    assert re.findall('<polyline class="(.*?)" points="(.*?)"', page) == [
        ("d1", "0.5000,0.9000 0.5000,0.9000 1.0000,0.9000"),
        ("d0", "0.5000,0.6000 0.5000,0.6000 1.0000,0.2000"),
        ("all", "0.5000,0.8000 0.5000,0.8000 1.0000,0.6000"),
    ]
    for words in ("toy 0.80", "other 0.10", "all tasks 0.40"):
        assert f"<span>{words}</span>" in page


def test_domains_of_many_tasks_are_folded(tmp_path):
    few, many = (results_of(episodes({f"toy/{i}": 0.5 for i in range(n)}, prompts=["none"])) for n in (80, 81))
    assert "<details open>" in written(tmp_path, few)
    assert "<details open>" not in written(tmp_path, many)


def test_a_single_episode_has_a_bar_without_an_interval(tmp_path):
    record = EpisodeRecord(task="toy/good", prompt="none", seed=0, total_return=5.0, length=1)
    page = written(tmp_path, results_of([record]))
    assert 'class="whisker"' not in page
    assert "<td>0.50</td><td>-</td>" in page


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
