"""Captions, answers and texts of a checkpoint, measured."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy import TRUNKS, tiny_model

from gatito import cli
from gatito.errors import UserError
from gatito.eval.language import evaluate_language
from gatito.eval.results import read_results
from gatito.eval.statistics import wilson_interval
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.tokenizers import TextTokenizer, Vocabulary, text_tokens

Checkpoint = tuple[GatitoForCausalLM, GatitoProcessor]


@pytest.fixture(params=["flat", "4 latents"])
def checkpoint(request: pytest.FixtureRequest, vocabulary: Vocabulary, text: TextTokenizer) -> Checkpoint:
    model = tiny_model(vocabulary, context=128, eos_token_id=text.end, **TRUNKS[request.param])
    return model, GatitoProcessor(model.config.trunk, text, {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four captioned images, three of them captioned alike."""
    for k in range(4):
        Image.new("RGB", (32, 16), (60 * k, 0, 0)).save(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text("the class" if k else "the value")
    return tmp_path


def test_captions_are_compared_to_the_letter_with_a_wilson_interval(checkpoint: Checkpoint, folder: Path) -> None:
    found = evaluate_language(*checkpoint, f"captions:{folder}")
    score = found.score
    right = sum(answer.written == answer.expected for answer in found.answers)
    assert (score.documents, score.exact, score.commonest) == (4, right / 4, 0.75)
    assert (score.ci_low, score.ci_high) == wilson_interval(right, 4)
    assert [answer.expected for answer in found.answers] == ["the value", *["the class"] * 3]


def test_a_model_that_writes_what_is_expected_is_exact(
    checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gatito.eval.language.write_after", lambda *_, **__: ["the value", "the class", "the class", "a class"]
    )
    score = evaluate_language(*checkpoint, f"captions:{folder}").score
    assert score.exact == 0.75
    assert score.bleu == pytest.approx(100 * (7 / 8 * 3 / 4) ** 0.5)  # of 8 words and 4 pairs of words


def test_bits_per_byte_are_those_of_the_model_s_own_probabilities(
    vocabulary: Vocabulary, text: TextTokenizer, tmp_path: Path
) -> None:
    model = tiny_model(vocabulary, context=128)
    words = "the value of the expression is the class of the next object"
    (tmp_path / "a.txt").write_text(words)
    found = evaluate_language(model, GatitoProcessor(model.config.trunk, text, {}), f"text:{tmp_path}/a.txt")
    ids = torch.tensor(text_tokens(words, text).ids[None].astype(np.int64))
    with torch.inference_mode():
        logits = model(ids).logits[0, :-1, : text.size]
    nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    size = len(words) - len(text.decode([int(ids[0, 0])]))
    assert found.score.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert found.score.exact is None
    assert not found.answers


def test_long_texts_are_predicted_in_windows_every_token_once(
    checkpoint: Checkpoint, tmp_path: Path, text: TextTokenizer
) -> None:
    (tmp_path / "long.txt").write_text("the value of the class is a name. " * 60)
    found = evaluate_language(*checkpoint, f"text:{tmp_path}/long.txt")
    ids = text_tokens("the value of the class is a name. " * 60, text).ids[1:]
    assert len(ids) > 2 * 128
    shares = np.unique(ids, return_counts=True)[1] / len(ids)
    size = len("the value of the class is a name. ") * 60 - len(text.decode([int(text.encode("the value")[0])]))
    entropy = -(shares * np.log2(shares)).sum() * len(ids) / size
    assert found.score.unigram_bits_per_byte == pytest.approx(entropy, rel=1e-3)


def test_held_out_documents_are_asked_about_where_a_source_keeps_some(checkpoint: Checkpoint) -> None:
    scenes, captions = (evaluate_language(*checkpoint, source, 5) for source in ("scenes:", "captions:digits"))
    assert len(scenes.answers) == len(captions.answers) == 5
    assert scenes.answers[0].prompt.startswith("Q: ")


def test_a_source_without_documents_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(UserError, match=r"none\.jsonl: it has no documents to ask about"):
        evaluate_language(*checkpoint, f"text:{tmp_path}/none.jsonl")


def test_images_that_exceed_the_context_are_named(
    vocabulary: Vocabulary, text: TextTokenizer, tmp_path: Path
) -> None:
    model = tiny_model(vocabulary, context=64, **TRUNKS["flat"])
    Image.new("RGB", (160, 160)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("the class")
    with pytest.raises(UserError, match=r"document 0: \d+ positions, the context is 64"):
        evaluate_language(model, GatitoProcessor(model.config.trunk, text, {}), f"captions:{tmp_path}")


def test_the_command_writes_scores_and_answers_beside_those_of_control(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    for part in checkpoint:
        part.save_pretrained(tmp_path / "checkpoint")
    out = tmp_path / "out"
    source = f"captions:{folder}"
    cli.run(["eval", str(tmp_path / "checkpoint"), "--tasks", "none", "--language", source, "--out", str(out)])
    (score,) = read_results(out).language
    assert (score.source, score.documents) == (source, 4)
    assert json.loads((out / "results.json").read_text())["language"][0]["source"] == source
    assert "always the commonest" in (out / "report.html").read_text()


def test_nothing_to_evaluate_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--tasks none leaves nothing to evaluate; give --language"):
        cli.run(["eval", "x", "--tasks", "none", "--out", str(tmp_path / "o")])
