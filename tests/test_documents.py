"""Documents of texts and images: their tokens, and how the sampler takes them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gatito import cli
from gatito.data.build import build
from gatito.data.checks import check_store
from gatito.data.documents import DocumentConfig, document_sequences, open_documents
from gatito.data.mixture import DatasetConfig, MixtureConfig
from gatito.data.sampler import Sampler
from gatito.data.store import Store
from gatito.errors import UserError
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.tokenizers.documents import (
    Document,
    Words,
    asked,
    captioned,
    conversation,
    document_tokens,
    documents_tokens,
    image_tokens,
    prompt_tokens,
)
from gatito.tokenizers.images import ImageConfig
from gatito.tokenizers.trunk import Trunk

END = 2
PICTURE = np.full((16, 20, 3), 9, np.uint8)
"""Two patches."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures, of 10, 20, 30 and 40, with files that name them."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    names = ["a.png", "b.png", "c.png", "more/d.png"]
    for k, name in enumerate(names, start=1):
        Image.new("L", (20, 16), 10 * k).save(folder / name)
    write_lines(folder / "metadata.jsonl", [{"file_name": n, "text": f"picture {n[-5]}"} for n in names])
    return folder


def write_lines(file: Path, rows: list[object]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def documents_of(source: str) -> list[Document]:
    return list(open_documents(source).documents())


def shown(document: Document) -> list[object]:
    """Texts, targets marked with `>`, and the brightness of images."""
    return [
        (">" if part.is_target else "") + part.text if isinstance(part, Words) else int(part[0, 0, 0])
        for part in document.parts
    ]


# Tokens


def test_a_conversation_in_full(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    document = conversation([([PICTURE, PICTURE, "a"], "an"), (["the"], "of")], "in")
    sequence = document_tokens(document, vocabulary, text)
    ids = {word: text.encode(word) for word in ("in", "Q: a", "Q: the", "A:", "an", "of")}
    P = [vocabulary.patch]
    asks = [[*ids["in"], *P * 4, *ids["Q: a"], *ids["A:"]], [*ids["Q: the"], *ids["A:"]]]
    answers = [[*ids["an"], END], [*ids["of"], END]]
    assert sequence.ids.tolist() == asks[0] + answers[0] + asks[1] + answers[1]
    assert sequence.loss_mask.tolist() == [
        value for a, b in zip(asks, answers, strict=True) for value in [False] * len(a) + [True] * len(b)
    ]
    images = len(ids["in"])
    assert sequence.local_positions[images : images + 4].tolist() == [0, 1, 0, 1]
    assert set(sequence.local_positions.tolist()) == {0, 1, 513}
    assert sequence.timestep_starts.tolist() == [0, len(asks[0] + answers[0]), len(sequence)]
    assert len(sequence.patches) == 4


def test_a_question_reads_as_a_trained_model_is_asked() -> None:
    prompt = asked([PICTURE, "What is it?"])
    document = conversation([([PICTURE, "What is it?"], "a cat")])
    assert shown(Document(prompt)) == [9, "Q: What is it?", "A:"]
    assert shown(document) == [*shown(Document(prompt)), ">a cat"]


def test_only_the_first_text_of_a_turn_begins_with_the_mark() -> None:
    assert shown(Document(asked(["one", PICTURE, "two"]))) == ["Q: one", 9, "two", "A:"]


def test_an_interleaved_document_ends_once_and_may_begin_anywhere(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    parts = (Words(text="the value"), PICTURE, Words(text="of an"), PICTURE, Words(text="object"))
    sequence = document_tokens(Document(parts), vocabulary, text)
    assert np.flatnonzero(sequence.ids == END).tolist() == [len(sequence) - 1]
    assert sequence.loss_mask.tolist() == (sequence.ids != vocabulary.patch).tolist()
    assert sequence.num_timesteps == len(sequence) - 2  # an image of two patches is one
    assert len(sequence.patches) == 4


def test_documents_encoded_together_are_those_encoded_alone(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    documents = [captioned(PICTURE, "a class"), Document((Words(text="the end"),)), conversation([(["who"], "me")])]
    for threads in (1, 2):
        together = documents_tokens(documents, vocabulary, text, threads)
        for document, sequence in zip(documents, together, strict=True):
            alone = document_tokens(document, vocabulary, text)
            for name in ("ids", "loss_mask", "local_positions", "patches", "patch_intervals", "timestep_starts"):
                np.testing.assert_array_equal(getattr(sequence, name), getattr(alone, name))


def test_a_document_without_a_target_is_refused(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    with pytest.raises(UserError, match="a document without a text to learn from"):
        document_tokens(Document((PICTURE, Words(text="why?", is_target=False))), vocabulary, text)


def test_latents_of_resampled_images_take_their_positions(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    sequence = document_tokens(conversation([([PICTURE, PICTURE, "a"], "b")]), vocabulary, text)
    words = len(sequence) - 4
    read = Trunk(vocabulary=vocabulary, latents=1, resample_images=True)
    assert read.length(sequence) == 2 + words
    assert Trunk(vocabulary=vocabulary, latents=1).length(sequence) == 4 + words
    assert len(image_tokens(PICTURE, vocabulary)) == 2


# Files


def test_captions_of_a_folder_are_those_of_its_metadata(folder: Path) -> None:
    assert [shown(d) for d in documents_of(f"captions:{folder}")] == [
        [10, ">picture a"],
        [20, ">picture b"],
        [30, ">picture c"],
        [40, ">picture d"],
    ]


def test_captions_may_lie_beside_their_images(tmp_path: Path) -> None:
    for k, name in enumerate("ab", start=1):
        Image.new("L", (16, 16), k).save(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.txt").write_text(f"it is {name}\n")
    assert [shown(d) for d in documents_of(f"captions:{tmp_path}")] == [[1, ">it is a"], [2, ">it is b"]]
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UserError, match=r"captions:.*b\.txt is missing; each image needs its caption"):
        open_documents(f"captions:{tmp_path}")


def test_questions_of_a_folder_have_any_columns(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "a.png").write_bytes((folder / "a.png").read_bytes())
    rows: list[object] = [{"file_name": "a.png", "query": "how bright?", "label": "ten"}]
    write_lines(tmp_path / "metadata.jsonl", rows)
    assert [shown(d) for d in documents_of(f"questions:{tmp_path}#query,label")] == [
        [10, "Q: how bright?", "A:", ">ten"]
    ]
    with pytest.raises(
        UserError, match=r"line 1: no value of 'question'; its fields are 'file_name', 'query', 'label'"
    ):
        documents_of(f"questions:{tmp_path}")


MESSAGES = [
    {"role": "system", "content": "Be short."},
    {
        "role": "user",
        "content": [
            {"type": "image", "path": "a.png"},
            {"type": "image", "image": "b.png"},
            {"type": "text", "text": "Which is darker?"},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "The first."}]},
    {"role": "user", "content": [{"type": "text", "text": "And of this?"}, {"type": "image"}]},
    {"role": "assistant", "content": "Still the first."},
]


def test_messages_of_chat_templates_become_a_conversation(folder: Path) -> None:
    file = write_lines(folder / "chat.jsonl", [{"messages": MESSAGES, "images": ["more/d.png"]}])
    [document] = documents_of(f"chat:{file}")
    assert shown(document) == [
        *["Be short.", 10, 20, "Q: Which is darker?", "A:", ">The first."],
        *["Q: And of this?", 40, "A:", ">Still the first."],
    ]


def test_interleaved_documents_keep_the_order_of_their_content(folder: Path) -> None:
    content = [{"type": "text", "text": "see"}, {"type": "image", "path": "c.png"}, {"type": "text", "text": "and"}]
    file = write_lines(folder / "pages.jsonl", [{"content": content}, {"content": "alone"}])
    assert [shown(d) for d in documents_of(f"interleaved:{file}")] == [[">see", 30, ">and"], [">alone"]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd.png", r"metadata\.jsonl, line 1: 'file_name' is '/etc/passwd\.png', allowed are files below"),
        ("../out.png", r"line 1: 'file_name' is '\.\./out\.png', allowed are files below the dataset's own folder"),
        ("a/../../out.png", r"allowed are files below"),
        ("C:\\\\out.png", r"allowed are files below"),
        ("file:///etc/out.png", r"allowed are files below"),
        ("link.png", r"'file_name' is 'link\.png', a link out of the dataset's folder"),
        ("none.png", r"'file_name' is 'none\.png', and .*none\.png is missing"),
        (7, r"line 1: 'file_name' is 7, expected the name of an image file"),
        ("broken.png", r"line 1: 'file_name': the image cannot be read \("),
    ],
)
def test_a_file_that_is_not_the_dataset_s_own_is_refused(tmp_path: Path, name: object, message: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "out.png")
    (root / "link.png").symlink_to(tmp_path / "out.png")
    Image.effect_noise((64, 64), 50).save(root / "whole.png")
    (root / "broken.png").write_bytes((root / "whole.png").read_bytes()[:2000])
    write_lines(root / "metadata.jsonl", [{"file_name": name, "text": "x"}])
    with pytest.raises(UserError, match=message):
        documents_of(f"captions:{root}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "a.png", "text": 3}', r"line 2: 'text' is 3, expected a text"),
        ('{"picture": "a.png", "text": "x"}', r"line 2: no image: none of file_name, image, images is among"),
        ('{"file_name": "a.png"}', r"line 2: no value of 'text'; its fields are 'file_name'"),
        ('{"file_name": "a.png", "text": " "}', r"line 2: 'text' is empty; write it, or leave the row out"),
        ('{"file_name": "a.png", "text"', r"line 2: not JSON in UTF-8"),
        ("[" * 100_000, r"line 2: not JSON in UTF-8"),
        ('{"file_name": "a.png", "text": "half \\ud83d"}', r"line 2: not JSON in UTF-8"),
        ('["a.png"]', r"line 2: a list, expected an object"),
    ],
)
def test_rows_of_another_schema_are_named_and_nothing_is_left(
    tmp_path: Path, folder: Path, text_file: str, line: str, message: str
) -> None:
    (tmp_path / "a.png").write_bytes((folder / "a.png").read_bytes())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "fine"}\n' + line + "\n")
    config = MixtureConfig(datasets=[DatasetConfig(source=f"captions:{tmp_path}")], text_model=text_file)
    with pytest.raises(UserError, match=rf"captions:.*metadata\.jsonl, {message}"):
        build(config, tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "metadata.jsonl"]


Change = Callable[[list[dict[str, object]]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop(), r"messages ends with a user's message, expected an assistant's"),
        (lambda m: m.pop(1), r"messages has the roles assistant, user, assistant, expected"),
        (lambda m: m[1].update(role="usr"), r"messages\[1\]: unknown role 'usr'; did you mean 'user'\?"),
        (lambda m: m[2].pop("content"), r"messages\[2\] is no message; it has a 'role' and a 'content'"),
        (lambda m: m[3].update(content=[{"type": "video"}]), r"messages\[3\]\.content\[0\] is neither"),
        (lambda m: m[3].update(content=[]), r"messages\[3\]\.content is neither a text nor a list"),
        (lambda m: m[2].update(content=m[3]["content"]), r"messages, an answer, has an image, allowed are texts"),
        (lambda m: m.clear(), r"messages is no list of messages"),
    ],
)
def test_messages_that_are_no_conversation_are_refused(folder: Path, change: Change, message: str) -> None:
    messages = json.loads(json.dumps(MESSAGES))
    change(messages)
    file = write_lines(folder / "bad.jsonl", [{"messages": messages, "images": ["a.png", "b.png"]}])
    with pytest.raises(UserError, match=rf"bad\.jsonl, line 1: {message}"):
        documents_of(f"chat:{file}")


def test_sources_that_are_not_there_are_named(tmp_path: Path) -> None:
    for source, message in {
        f"chat:{tmp_path}/none.jsonl": r"chat:.*none\.jsonl: expected a file that is there, of \.jsonl",
        f"questions:{tmp_path}": r"questions:.*metadata\.jsonl is missing",
        f"captions:{tmp_path}": r"the folder holds neither metadata\.jsonl nor images",
        f"questions:{tmp_path}#a": r"'a' after '#', expected 2 names \(question, answer\)",
        "captions:hf:nobody": r"hf:nobody: expected OWNER/NAME",
    }.items():
        with pytest.raises(UserError, match=message):
            documents_of(source)


# The store and the sampler


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory, text: TextTokenizer) -> str:
    path = tmp_path_factory.mktemp("model") / "small.model"
    path.write_bytes(text.model)
    return str(path)


@pytest.fixture(scope="module")
def store(folder: Path, text_file: str, tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("built")
    rows: list[object] = [{"messages": MESSAGES, "images": ["c.png"]}, {"messages": MESSAGES[1:3]}]
    write_lines(folder / "talk.jsonl", rows)
    long = [{"type": "text", "text": " ".join(f"{k}{i}" for i in range(90))} for k in range(3)]
    image = {"type": "image", "path": "a.png"}
    write_lines(folder / "book.jsonl", [{"content": [long[0], image, long[1], image, long[2]]}])
    (root / "texts").mkdir()
    for k in range(4):
        (root / "texts" / f"{k}.txt").write_text(" ".join(f"{k}{i}" for i in range(30 + 200 * (k == 3))))
    sources = [f"captions:{folder}", f"chat:{folder}/talk.jsonl", f"interleaved:{folder}/book.jsonl"]
    datasets = [DatasetConfig(source=source) for source in [*sources, f"text:{root}/texts"]]
    return build(MixtureConfig(datasets=datasets, text_model=text_file), root / "store")


def only(store: Store, index: int, context: int) -> Sampler:
    one = Store(folder=store.folder, vocabulary=store.vocabulary, text=store.text, datasets=(store.datasets[index],))
    return Sampler(store=one, trunk=Trunk(vocabulary=store.vocabulary), context=context, seed=0)


def test_what_is_built_is_sound_and_names_its_domain(store: Store) -> None:
    check_store(store)
    assert [d.kind for d in store] == ["pairs", "documents", "documents", "text"]
    assert [d.num_episodes for d in store] == [4, 2, 1, 4]
    assert store.datasets[0].num_timesteps == 4
    assert store.datasets[1].num_timesteps == 3  # turns


def test_check_and_info_take_a_store_of_documents(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["data", "check", str(store.folder)])
    assert "every file is as it was written" in capsys.readouterr().out
    cli.run(["data", "info", str(store.folder)])
    assert "4 datasets to train on, 11 episodes" in capsys.readouterr().out


@pytest.mark.parametrize("scheme", ["captions", "chat", "interleaved"])
def test_the_tokens_of_a_source_are_those_of_its_document(
    scheme: str, folder: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {"captions": folder, "chat": folder / "talk.jsonl", "interleaved": folder / "book.jsonl"}[scheme]
    cli.run(["tokens", f"{scheme}:{place}", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {row["modality"] for row in rows} == {"patch", "text"}
    assert rows[-1]["meaning"] == "'</s>'"
    assert rows[-1]["loss_mask"]
    dataset = next(d for d in store if d.metadata["source"].startswith(scheme))
    assert sum(row["id"] is None for row in rows) == len(dataset.episode(0).patches)
    with pytest.raises(UserError, match=r"has no episode 99; it has \d+, 0 to \d+"):
        cli.run(["tokens", f"{scheme}:{place}", "--episode", "99"])


def test_conversations_that_fit_begin_at_their_beginning(store: Store) -> None:
    whole = {tuple(store.datasets[1].episode(i).ids.tolist()) for i in range(2)}
    sampler, seen = only(store, 1, 400), set()
    for i in range(20):
        *sequences, last = sampler.row(i)
        seen |= {tuple(sequence.ids.tolist()) for sequence in sequences}
        assert any(list(one)[: len(last)] == last.ids.tolist() for one in whole)
    assert seen == whole


def test_longer_conversations_begin_at_a_turn(store: Store) -> None:
    first, second = (store.datasets[1].sequence(t, t + 1) for t in (0, 1))
    context = max(len(first), len(second)) + 3
    assert context < len(first) + len(second)
    begins = {tuple(s.ids[:12].tolist()) for i in range(40) for s in only(store, 1, context).row(i) if len(s) > 12}
    assert tuple(second.ids[:12].tolist()) in begins
    assert tuple(first.ids[:12].tolist()) in begins


def test_long_documents_are_cut_into_random_windows(store: Store) -> None:
    for index in (2, 3):
        dataset = store.datasets[index]
        longest = max(range(dataset.num_episodes), key=lambda i: len(dataset.episode(i)))
        ids = dataset.episode(longest).ids
        begins = set()
        for i in range(60):
            for window in only(store, index, 64).row(i):
                places = np.flatnonzero(ids == window.ids[0])
                found = [p for p in places if np.array_equal(ids[p : p + len(window)], window.ids)]
                if len(window) > 20 and found:
                    begins.add(int(found[0]))
        assert len(begins) > 25
        assert max(begins) - min(begins) > len(ids) / 2


def test_documents_of_a_row_are_segments_that_do_not_meet(store: Store) -> None:
    dataset, sampler, joined = store.datasets[3], only(store, 3, 300), 0
    documents = [dataset.episode(i).ids for i in range(4)]
    for i in range(10):
        row = sampler.row(i)
        for sequence in row:
            assert any(sequence.ids.tolist() in windows(ids, len(sequence)) for ids in documents)
        batch = sampler.batch(i, 1)
        segments = batch.segments[0]
        assert segments.tolist() == [k for k, s in enumerate(row, start=1) for _ in range(len(s))]
        joined += len(row) > 1
    assert joined > 3


def windows(ids: np.ndarray, length: int) -> list[list[int]]:
    return [ids[first : first + length].tolist() for first in range(len(ids) - length + 1)]


def test_the_end_of_a_document_is_a_target(store: Store) -> None:
    for dataset in store:
        ends = dataset.ids == END
        assert ends.sum() >= dataset.num_episodes
        assert dataset.loss_mask[ends].all()
        assert all(dataset.episode(i).ids[-1] == END for i in range(dataset.num_episodes))


def test_a_build_again_leaves_documents_alone_until_an_image_changes(
    folder: Path, text_file: str, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "a.png").write_bytes((folder / "a.png").read_bytes())
    (own / "a.txt").write_text("one")
    config = MixtureConfig(datasets=[DatasetConfig(source=f"captions:{own}")], text_model=text_file)

    def written() -> int:
        return (build(config, tmp_path / "store").datasets[0].folder / "ids.bin").stat().st_mtime_ns

    first = written()
    assert written() == first
    (own / "a.png").write_bytes((folder / "b.png").read_bytes())
    second = written()
    smaller = dataclasses.replace(config, images=ImageConfig(max_patches=1))
    assert build(smaller, tmp_path / "store").datasets[0].metadata["patches"] == 1
    assert second != first


def test_caps_end_endless_sources(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    def count(**caps: int) -> int:
        return len(list(document_sequences(open_documents("scenes:"), vocabulary, text, DocumentConfig(**caps))))

    assert count(documents=7) == 7
    some = list(document_sequences(open_documents("scenes:"), vocabulary, text, DocumentConfig(tokens=500)))
    total = sum(len(sequence) for sequence in some)
    assert 500 <= total < 500 + len(some[-1])
    assert count(documents=3, tokens=10**6) == 3
    with pytest.raises(UserError, match="the source has no end; say how much of it by documents: or tokens:"):
        count()


def test_caps_of_what_is_no_document_are_refused() -> None:
    with pytest.raises(UserError, match=r"documents of 'minari:x' is 5; allowed 1 and more, of sources of documents"):
        DatasetConfig(source="minari:x", documents=5)
    with pytest.raises(UserError, match=r"tokens of 'text:x' is 0; allowed 1 and more"):
        DatasetConfig(source="text:x", tokens=0)
    with pytest.raises(UserError, match=r"threads is 0, allowed 1 and more"):
        MixtureConfig(datasets=[DatasetConfig(source="text:x")], threads=0)


def test_a_prompt_is_what_a_conversation_begins_with(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    image = np.arange(16 * 32 * 3, dtype=np.uint8).reshape(16, 32, 3)
    content = [image, "how many?"]
    prompt = prompt_tokens(asked(content), vocabulary, text)
    whole = document_tokens(conversation([(content, "two")]), vocabulary, text)
    for name in ("ids", "local_positions", "loss_mask"):
        np.testing.assert_array_equal(getattr(prompt, name), getattr(whole, name)[: len(prompt)])
    np.testing.assert_array_equal(prompt.patches, whole.patches)
    assert whole.loss_mask[len(prompt) :].all()


def test_an_empty_prompt_is_refused(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    with pytest.raises(UserError, match="an empty prompt: give a text or an image"):
        prompt_tokens([Words(text="")], vocabulary, text)


def test_check_reads_every_document_of_a_source(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["data", "check", f"captions:{folder}", "captions:digits", "scenes:"])
    said = capsys.readouterr().out
    assert f"captions:{folder}: 4 documents, 4 images, " in said
    assert "captions:digits: 1437 documents, 1437 images, " in said
    assert "scenes:: 1000 documents, 1000 images, " in said
    with pytest.raises(UserError, match=r"captions:.*nowhere"):
        cli.run(["data", "check", f"captions:{folder}/nowhere"])
