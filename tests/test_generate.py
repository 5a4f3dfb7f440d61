"""`gatito generate` and `gatito chat`."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy import tiny_model

from gatito import cli
from gatito.errors import UserError
from gatito.eval.decoding import Decoding
from gatito.eval.writing import Conversation, write
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.talking import prompt_parts
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.tokenizers.documents import Words, asked

Checkpoint = tuple[GatitoForCausalLM, GatitoProcessor]
RED = np.full((16, 16, 3), (200, 0, 0), np.uint8)


@pytest.fixture
def checkpoint(vocabulary: Vocabulary, text: TextTokenizer) -> Checkpoint:
    model = tiny_model(vocabulary, eos_token_id=text.end)
    return model, GatitoProcessor(model.config.trunk, text, {})


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    for part in checkpoint:
        part.save_pretrained(tmp_path / "checkpoint")
    Image.fromarray(RED).save(tmp_path / "red.png")
    return tmp_path


def test_what_is_shown_and_said_decides_what_is_asked() -> None:
    assert prompt_parts([RED], None, False) == [RED]
    assert prompt_parts([], "the value", False) == [Words(text="the value")]
    assert prompt_parts([], "the value", True) == asked(["the value"])
    assert len(prompt_parts([RED, RED], "which?", False)) == 4


def test_words_are_handed_on_as_they_come(checkpoint: Checkpoint) -> None:
    heard: list[str] = []
    inputs = checkpoint[1]("the value of")
    written = write(*checkpoint, inputs, new_tokens=12, on_text=heard.append)
    assert len(heard) > 1
    assert "".join(heard).strip() == written.strip()


def test_sampled_text_follows_from_the_seed(checkpoint: Checkpoint) -> None:
    decoding = Decoding(temperature=3.0)
    written = [
        write(*checkpoint, checkpoint[1]("the"), new_tokens=8, decoding=decoding, seed=seed) for seed in (1, 2, 1)
    ]
    assert written[0] == written[2] != written[1]


def test_sampling_leaves_the_random_numbers_of_others_alone(checkpoint: Checkpoint) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    write(*checkpoint, checkpoint[1]("the"), new_tokens=3, decoding=Decoding(temperature=1.0))
    assert torch.equal(torch.rand(3), expected)


def test_a_text_ends_where_the_context_does(checkpoint: Checkpoint) -> None:
    model, processor = checkpoint
    inputs = processor("the value of the class " * 10)
    assert inputs["input_ids"].shape[1] + 100 > model.config.context
    write(model, processor, inputs, new_tokens=100)
    with pytest.raises(UserError, match=r"a prompt of \d+ positions, the checkpoint's context is 64; shorten"):
        write(model, processor, processor("the value of the class " * 40), new_tokens=1)


def test_the_oldest_turns_leave_a_conversation_that_outgrows_the_context(checkpoint: Checkpoint) -> None:
    conversation = Conversation(*checkpoint, new_tokens=8)
    for k in range(12):
        conversation.say([{"type": "text", "text": f"what is the value of object {k}?"}])
    assert len(conversation.messages) < 24
    assert conversation.messages[0]["role"] == "user"
    assert conversation.messages[-2]["content"][0]["text"].endswith("object 11?")


def test_what_cannot_be_said_is_not_taken_in(checkpoint: Checkpoint) -> None:
    conversation = Conversation(*checkpoint)
    conversation.say([{"type": "text", "text": "go"}])
    before = list(conversation.messages)
    with pytest.raises(UserError):
        conversation.say([{"type": "text", "text": "the value of the class " * 60}])
    assert conversation.messages == before


def test_the_command_prints_text_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["generate", str(folder / "checkpoint"), "--max-new-tokens", "5"]
    cli.run([*common, "--text", "the value of"])
    streamed = capsys.readouterr().out
    cli.run([*common, "--text", "the value of", "--json"])
    assert json.loads(capsys.readouterr().out)["text"].strip() == streamed.strip()
    cli.run([*common, "--image", str(folder / "red.png"), "--text", "what is it?"])
    cli.run([*common, "--image", str(folder / "red.png")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing is asked; give --text, --image, or both"),
        (["--ask"], "nothing is asked"),
        (["--text", " "], "--text is empty"),
        (["--image", "no.png"], r"no\.png: the image cannot be read"),
        (["--image", "{folder}/checkpoint/config.json"], "no image of a format that is read"),
        (["--text", "go", "--temperature", "-1"], "temperature"),
        (["--text", "go", "--max-new-tokens", "0"], "--max-new-tokens is 0, allowed 1 and more"),
        (["--text", "the value of the class " + "go " * 80], "positions, the checkpoint's context is 64"),
    ],
)
def test_wrong_prompts_are_refused_in_one_sentence(options: list[str], message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        cli.run(["generate", str(folder / "checkpoint"), *(option.format(folder=folder) for option in options)])


def test_a_conversation_is_read_line_by_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "go",
        f"/image {folder}/red.png",
        "what is it?",
        "/image no.png",
        "/what",
        "",
        "/reset",
        "go",
        "/quit",
        "no",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    cli.run(["chat", str(folder / "checkpoint"), "--max-new-tokens", "4"])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4  # the help and three answers
    assert err.splitlines()[0].startswith("gatito: no.png: the image cannot be read")
    assert err.splitlines()[1].startswith("gatito: unknown command '/what'; /image FILE")
