"""The report is one page that needs nothing else."""

import json
import re

import numpy as np
import pytest

from gatito.eval.language import Caption
from gatito.eval.report import Report, write_report
from gatito.eval.results import Results
from gatito.eval.rollout import TaskResult
from gatito.eval.videos import Video

SCORES = {"toy/good": 1.0, "toy/bad": -3.0, "other/a<b": 0.5}


def video(folder, task, failed):
    path = folder / f"{task.replace('/', '--')}.mp4"
    path.write_bytes(b"frames")
    score = 0.25 if failed else 1.0
    return Video(task=task, path=path, caption="<c>", note="<n>", score=score, failed=failed, length=5)


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
        videos=[video(tmp_path, "toy/good", False), video(tmp_path, "toy/bad", True)],
        captions=[Caption(image=np.zeros((8, 8, 1), np.uint8), expected="one", written="<b>two</b>")],
        texts=["if a < b: pass"],
        facts={"machine": "<m>"},
        next_commands=["gatito eval <run>"],
    )
    write_report(report, tmp_path / "report.html")
    assert not list(tmp_path.glob("*.partial"))
    return (tmp_path / "report.html").read_text()


def test_report_refers_to_nothing_outside_itself(page):
    references = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)""", page)
    kinds = [source.partition(";")[0] for source, _ in references]
    assert kinds == ["data:video/mp4", "data:video/mp4", "data:image/png", "data:image/png"]  # observed, caption
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


def test_report_shows_failures_first_and_says_so(page):
    figures = re.findall(r"<figure><video .*?</figure>", page)
    assert ["toy/bad" in figure for figure in figures] == [True, False]
    assert ["failed" in figure for figure in figures] == [True, False]


def test_the_page_may_play_its_videos_and_load_nothing_else(page):
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy == ["default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"]
