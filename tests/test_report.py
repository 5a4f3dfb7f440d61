"""The report is one page that needs nothing else."""

import json
import re

import numpy as np
import pytest

from gatito.eval.language import Answer
from gatito.eval.report import Report, write_report
from gatito.eval.results import Results
from gatito.eval.scores import Baseline, EpisodeRecord
from gatito.eval.videos import Video

SCORES = {"toy/good": 1.0, "toy/bad": -3.0, "other/a<b": 0.5}


def video(folder, task, failed):
    path = folder / f"{task.replace('/', '--')}.mp4"
    path.write_bytes(b"frames")
    score = 0.25 if failed else 1.0
    return Video(task=task, path=path, caption="<c>", note="<n>", score=score, failed=failed, length=5)


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
        videos=[video(tmp_path, "toy/good", False), video(tmp_path, "toy/bad", True)],
        answers=[
            Answer(
                source="captions:digits",
                image=np.zeros((8, 8, 1), np.uint8),
                prompt="",
                expected="one",
                written="<b>two</b>",
            )
        ],
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
    assert "1 episode of 25 failed" in page
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


def test_report_shows_failures_first_and_says_so(page):
    figures = re.findall(r"<figure><video .*?</figure>", page)
    assert ["toy/bad" in figure for figure in figures] == [True, False]
    assert ["below 0.5" in figure for figure in figures] == [True, False]


def test_the_page_may_play_its_videos_and_load_nothing_else(page):
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy == ["default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"]
