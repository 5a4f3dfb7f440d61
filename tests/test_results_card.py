"""Scores in a model card: what people read, and what the hub reads."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from gatito.eval.card import results_card, write_card
from gatito.eval.results import Results
from gatito.eval.scores import Baseline, EpisodeRecord


@pytest.fixture
def results() -> Results:
    records = [
        *(EpisodeRecord(task="a/x", prompt="none", seed=i, total_return=float(i), length=1) for i in range(5)),
        *(
            EpisodeRecord(task="b|z", prompt="end", seed=i, total_return=float(i < 3), length=1, success=i < 3)
            for i in range(4)
        ),
        EpisodeRecord(task="a/<odd>", prompt="none", seed=0, total_return=1.0, length=1),
    ]
    baselines = {"a/x": Baseline(random=0.0, expert=4.0), "b|z": Baseline(random=0.0, expert=1.0)}
    return Results(records=records, baselines=baselines, checkpoint="runs/a", settings={"temperature": 1.0})


def test_the_hub_reads_every_score_back(results: Results) -> None:
    card = ModelCard(results_card(results))
    assert (card.data.to_dict()["library_name"], card.data.pipeline_tag) == ("transformers", "reinforcement-learning")
    name, found = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "a"
    values = {(r.dataset_type, r.dataset_config, r.metric_type): r.metric_value for r in found}
    assert values["a/x", "prompt-none", "expert_normalized_total_reward"] == "0.50 [0.20, 0.80]"
    assert values["a/x", "prompt-none", "total_reward"] == 2.0
    assert values["a/<odd>", "prompt-none", "total_reward"] == 1.0
    assert ("a/<odd>", "prompt-none", "expert_normalized_total_reward") not in values
    assert values["b|z", "prompt-end", "success_rate"] == "0.75 [0.30, 0.95]"
    assert values["overall", "prompt-none", "mean_expert_normalized_total_reward"] == "0.50 [0.20, 0.80]"
    assert values["overall", "prompt-end", "iqm_over_tasks_expert_normalized_total_reward"] == "0.75 [0.25, 1.00]"
    assert len(values) == len(found)


def test_people_read_intervals_and_what_has_no_score(results: Results) -> None:
    text = ModelCard(results_card(results)).text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| a/x | none | 2.00 | 0.50 | 0.20 to 0.80 | - | 5 | 0 |" in rows
    assert any(row.startswith("| b\\|z | end | 0.75 | 0.75 | 0.30 to 0.95 | 75% | 4 | 0 |") for row in rows)
    assert "- a/&lt;odd>, prompt none: no reference returns were measured" in text
    assert "Evaluated with checkpoint runs/a, temperature 1.0." in text


def test_a_card_of_nothing_is_still_a_card(tmp_path: Path) -> None:
    write_card(Results(records=[], baselines={}), tmp_path / "card.md")
    card = ModelCard.load(tmp_path / "card.md")
    assert card.data.eval_results is None
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]
