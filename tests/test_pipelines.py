"""A checkpoint in transformers' own pipelines and Auto classes, after `import gatito`."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import TRUNKS, tiny_model
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline

from gatito.errors import UserError
from gatito.model import GatitoForCausalLM, GatitoProcessor, GatitoTokenizer
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.tokenizers.documents import asked, conversation, document_tokens

Checkpoint = tuple[GatitoForCausalLM, GatitoProcessor]
RED = np.full((16, 32, 3), (200, 0, 0), np.uint8)
BLUE = np.full((32, 16, 3), (0, 0, 200), np.uint8)
ASKS = [
    {"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "what is the class?"}]}
]


@pytest.fixture(params=["flat", "4 latents"])
def checkpoint(request: pytest.FixtureRequest, vocabulary: Vocabulary, text: TextTokenizer) -> Checkpoint:
    model = tiny_model(vocabulary, context=128, eos_token_id=text.end, **TRUNKS[request.param])
    return model, GatitoProcessor(model.config.trunk, text, {})


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    for part in checkpoint:
        part.save_pretrained(tmp_path)
    return tmp_path


def written(checkpoint: Checkpoint, inputs: Any, **options: Any) -> list[str]:
    model, processor = checkpoint
    with torch.inference_mode():
        ids = model.generate(**inputs, **({"max_new_tokens": 6, "do_sample": False} | options))
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])


def test_images_and_text_are_answered_by_the_pipeline(folder: Path, checkpoint: Checkpoint) -> None:
    pipe = pipeline("image-text-to-text", model=str(folder))
    (answer,) = pipe(images=PIL.Image.fromarray(RED), text="the class", max_new_tokens=6, return_full_text=False)
    (expected,) = written(checkpoint, checkpoint[1](text="the class", images=RED))
    assert answer["generated_text"].strip() == expected


def test_a_conversation_is_answered_by_the_pipeline(folder: Path, checkpoint: Checkpoint) -> None:
    pipe = pipeline("image-text-to-text", model=str(folder))
    (answer,) = pipe(text=ASKS, max_new_tokens=6)
    (expected,) = written(checkpoint, checkpoint[1].prompts([asked([RED, "what is the class?"])]))
    assert answer["generated_text"][-1]["content"].strip() == expected


def test_text_goes_on_in_the_pipeline(folder: Path, checkpoint: Checkpoint) -> None:
    pipe = pipeline("text-generation", model=str(folder))
    (answer,) = pipe("the value of the", max_new_tokens=6, do_sample=False, return_full_text=False)
    (expected,) = written(checkpoint, checkpoint[1]("the value of the"))
    assert answer["generated_text"].strip() == expected


def test_auto_classes_load_model_processor_and_tokenizer(folder: Path) -> None:
    assert isinstance(AutoModelForImageTextToText.from_pretrained(folder), GatitoForCausalLM)
    assert isinstance(AutoProcessor.from_pretrained(folder), GatitoProcessor)
    assert isinstance(AutoTokenizer.from_pretrained(folder), GatitoTokenizer)


@settings(max_examples=30)
@given(words=st.text(max_size=40))
def test_the_tokenizer_gives_the_ids_that_training_saw(words: str, text: TextTokenizer) -> None:
    tokenizer = GatitoTokenizer(text)
    ids = tokenizer(words)["input_ids"]
    assert ids == text.encode(words)
    assert tokenizer.decode(ids) == text.decode(ids)


def test_a_text_cannot_forge_the_end(text: TextTokenizer) -> None:
    assert text.end not in GatitoTokenizer(text)(f"a {text.piece(text.end)} b")["input_ids"]


def test_a_saved_tokenizer_is_the_same(text: TextTokenizer, tmp_path: Path) -> None:
    GatitoTokenizer(text).save_pretrained(tmp_path)
    loaded = GatitoTokenizer.from_pretrained(tmp_path)
    assert loaded("the value of")["input_ids"] == text.encode("the value of")


# Equal, however it is asked


def test_a_batch_is_answered_as_each_alone_with_images_of_several_sizes(checkpoint: Checkpoint) -> None:
    processor = checkpoint[1]
    prompts = [asked([RED, "what is the class?"]), asked([BLUE, RED, "go"]), asked(["if the expression is a class"])]
    together = written(checkpoint, processor.prompts(prompts))
    assert together == [written(checkpoint, processor.prompts([prompt]))[0] for prompt in prompts]


def test_with_a_cache_the_same_is_written_as_without(checkpoint: Checkpoint) -> None:
    inputs = checkpoint[1].apply_chat_template(ASKS)
    assert written(checkpoint, inputs, use_cache=True) == written(checkpoint, inputs, use_cache=False)


def test_nothing_but_text_is_written(checkpoint: Checkpoint, text: TextTokenizer) -> None:
    model, processor = checkpoint
    inputs = processor.apply_chat_template(ASKS)
    ids = model.generate(**inputs, max_new_tokens=20, do_sample=True, temperature=5.0)
    assert int(ids[:, inputs["input_ids"].shape[1] :].max()) < text.size


def test_turns_read_as_in_training(checkpoint: Checkpoint, vocabulary: Vocabulary, text: TextTokenizer) -> None:
    messages = [
        {"role": "system", "content": "go"},
        *ASKS,
        {"role": "assistant", "content": "the class"},
        {"role": "user", "content": "what is the value?"},
    ]
    learned = conversation([([RED, "what is the class?"], "the class"), (["what is the value?"], "the next")], "go")
    tokens = document_tokens(learned, vocabulary, text)
    answer = len(text.encode("the next")) + 1  # and its end
    model, processor = checkpoint
    inputs = processor.apply_chat_template(messages)
    trained = processor.prompts([learned.parts])
    if model.config.trunk.is_flat:
        assert inputs["input_ids"][0].tolist() == tokens.ids[:-answer].tolist()
    kept = trained["input_ids"].shape[1] - (answer - 1)
    assert inputs["input_ids"][0].tolist() == trained["input_ids"][0, :kept].tolist()


def test_the_last_answer_is_continued_where_asked_for(checkpoint: Checkpoint) -> None:
    processor = checkpoint[1]
    begun = [*ASKS, {"role": "assistant", "content": "the"}]
    inputs = processor.apply_chat_template(begun, continue_final_message=True)
    expected = processor.prompts([conversation([([RED, "what is the class?"], "the")]).parts])
    assert torch.equal(inputs["input_ids"], expected["input_ids"])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no prompts"),
        ([{"role": "user"}], r"messages\[0\] is no message; it has a 'role' and a 'content'"),
        ([{"role": "usr", "content": "go"}], "unknown role 'usr'; did you mean 'user'"),
        ([{"role": "assistant", "content": "go"}], "messages has the roles assistant, expected a user's"),
        ([*ASKS, {"role": "assistant", "content": "go"}], "messages: the last is not a user's"),
        ([{"role": "user", "content": [{"type": "image", "path": "no.png"}]}], "'no.png' is no image file"),
        ([{"role": "user", "content": [{"type": "image", "image": 3}]}], "a int, expected an array"),
        ([{"role": "user", "content": [{"type": "video", "path": "a"}]}], "is neither"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: list[Any], message: str, checkpoint: Checkpoint) -> None:
    with pytest.raises(UserError, match=message):
        checkpoint[1].apply_chat_template(messages)


def test_an_image_file_reads_as_in_training(checkpoint: Checkpoint, tmp_path: Path) -> None:
    PIL.Image.fromarray(RED).save(tmp_path / "red.png")
    named = [{"role": "user", "content": [{"type": "image", "path": str(tmp_path / "red.png")}]}]
    given_ = [{"role": "user", "content": [{"type": "image", "image": RED}]}]
    processor = checkpoint[1]
    a, b = (processor.apply_chat_template(messages)["patches"] for messages in (named, given_))
    assert torch.equal(a, b)
