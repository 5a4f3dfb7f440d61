"""Texts out of files and of `datasets` datasets."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gatito.data.build import build
from gatito.data.documents import DocumentConfig, document_sequences, open_documents
from gatito.data.mixture import DatasetConfig, MixtureConfig
from gatito.data.rows import rows_of
from gatito.errors import UserError
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.tokenizers.documents import Words

TEXTS = ["the value", "of an object", "is a class"]


def texts_of(source: str) -> list[str]:
    documents = [document.parts for document in open_documents(source).documents()]
    return [part.text for parts in documents for part in parts if isinstance(part, Words)]


def write_json(path: Path) -> None:
    path.write_text("\n".join(json.dumps({"text": text, "n": i}) for i, text in enumerate(TEXTS)) + "\n\n")


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=2)


def write_stream(path: Path) -> None:
    table = pa.table({"text": TEXTS})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_random_access(path: Path) -> None:
    table = pa.table({"text": TEXTS})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "jsonl": ("a.jsonl", write_json),
    "parquet": ("a.parquet", write_parquet),
    "arrow stream": ("a.arrow", write_stream),
    "arrow file": ("b.arrow", write_random_access),
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_row_of_a_file_is_a_document(tmp_path: Path, name: str) -> None:
    file, write = WRITERS[name]
    write(tmp_path / file)
    assert texts_of(f"text:{tmp_path / file}") == TEXTS


def test_a_column_is_named_behind_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one", "text": "two"}\n{"body": ""}\n')
    assert texts_of(f"text:{tmp_path}/a.jsonl#body") == ["one"]
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: no value of 'bodi'; its fields are 'body', 'text'"):
        texts_of(f"text:{tmp_path}/a.jsonl#bodi")


def test_a_folder_and_a_pattern_are_several_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write_json(tmp_path / "c.jsonl")
    (tmp_path / "a.txt").write_text("first\n")
    (tmp_path / "deep/z.md").write_text("last")
    (tmp_path / "not.csv").write_text("x")
    assert texts_of(f"text:{tmp_path}") == ["first\n", *TEXTS, "last"]
    assert texts_of(f"text:{tmp_path}/*.txt") == ["first\n"]
    with pytest.raises(UserError, match=r"\*\.tex: the pattern finds no file"):
        texts_of(f"text:{tmp_path}/*.tex")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("é".encode("latin-1"), r"byte 0xe9 at 0"),
        ("words".encode("utf-16"), "it is UTF-16"),
        ("words".encode("utf-32"), "it is UTF-32"),
        (b"fine, then \x80", r"byte 0x80 at 11"),
    ],
)
def test_other_encodings_are_refused_by_name(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot read .*a\.txt as UTF-8 text \({found}\); convert it with iconv"):
        texts_of(f"text:{tmp_path}/a.txt")


def test_the_mark_of_utf_8_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfwords")
    assert texts_of(f"text:{tmp_path}/a.txt") == ["words"]


def test_python_carries_prose_and_sources() -> None:
    documents = open_documents("text:python-sources").documents()
    first = [next(documents).parts[0] for _ in range(20)]
    assert all(isinstance(words, Words) and "\n" in words.text for words in first)
    assert sum(isinstance(words, Words) and "import " in words.text for words in first) > 10
    assert len(texts_of("text:python-docs")) > 50


# datasets


@pytest.fixture(autouse=True)
def own_cache_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_map_style_dataset_is_read_from_its_folder(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"text": TEXTS, "body": TEXTS[::-1]})
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=made, test=made.select([0])).save_to_disk(str(tmp_path / "two"))
    assert texts_of(f"text:hf:{tmp_path}/one") == TEXTS
    assert texts_of(f"text:hf:{tmp_path}/one#body") == TEXTS[::-1]
    assert texts_of(f"text:hf:{tmp_path}/two") == TEXTS
    assert texts_of(f"text:hf:{tmp_path}/two:test") == TEXTS[:1]
    with pytest.raises(UserError, match=r"two:dev: no split 'dev'; it has train, test"):
        texts_of(f"text:hf:{tmp_path}/two:dev")


def test_a_repository_s_folder_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    write_parquet(tmp_path / "repo/train.parquet")
    write_parquet(tmp_path / "repo/test.parquet")
    assert texts_of(f"text:hf:{tmp_path}/repo") == TEXTS
    assert not list(tmp_path.rglob("cache/**/*.arrow"))  # nothing is copied
    with pytest.raises(UserError, match=r"hf:.*repo:dev: cannot be opened by datasets .*dev"):
        texts_of(f"text:hf:{tmp_path}/repo:dev")


def test_images_of_a_dataset_are_decoded_by_our_rule(tmp_path: Path) -> None:
    image = Image.new("RGBA", (40, 24), (0, 0, 0, 0))
    rows = {"image": [image], "question": ["what?"], "answer": ["nothing"], "text": ["a blank"]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "repo").mkdir()
    datasets.load_from_disk(str(tmp_path / "saved")).to_parquet(str(tmp_path / "repo/train.parquet"))
    for place in ("saved", "repo"):
        [caption] = open_documents(f"captions:hf:{tmp_path}/{place}").documents()
        assert [part.shape for part in caption.images] == [(24, 40, 3)]
        assert next(caption.images).min() == 255  # alpha over white
        [question] = open_documents(f"questions:hf:{tmp_path}/{place}").documents()
        assert [words.text for words in question.texts] == ["Q: what?", "A:", "nothing"]


def test_a_dataset_cannot_name_files_of_this_machine(tmp_path: Path) -> None:
    Image.new("L", (16, 16)).save(tmp_path / "mine.png")
    (tmp_path / "repo").mkdir()
    image = {"bytes": None, "path": str(tmp_path / "mine.png")}
    features = datasets.Features(image=datasets.Image(decode=False), text=datasets.Value("string"))
    rows: dict[str, Any] = {"image": [image], "text": ["mine"]}
    table = pa.table(rows, schema=features.arrow_schema)
    pq.write_table(table, tmp_path / "repo/train.parquet")
    with pytest.raises(
        UserError, match=r"row 0: 'image' is '.*mine\.png', allowed are files below the dataset's own"
    ):
        list(open_documents(f"captions:hf:{tmp_path}/repo").documents())


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("owner/name", ("owner/name", None, "train")),
        ("owner/name/config", ("owner/name", "config", "train")),
        ("owner/name/config:test", ("owner/name", "config", "test")),
    ],
)
def test_a_repository_of_the_hub_is_streamed(
    name: str, asked: tuple[str, str | None, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset_builder(path: str, config: str | None) -> SimpleNamespace:
        def as_streaming_dataset(split: str) -> datasets.IterableDataset:
            assert (path, config, split) == asked
            return datasets.IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS))

        files = SimpleNamespace(data_files={"train": [f"hf://datasets/{place}@0123/train.jsonl"]})
        return SimpleNamespace(config=files, as_streaming_dataset=as_streaming_dataset)

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    place = "owner/name"
    assert texts_of(f"text:hf:{name}") == TEXTS
    place = "other/name"
    with pytest.raises(UserError, match=r"its card names hf://datasets/other/name@0123/train\.jsonl"):
        texts_of(f"text:hf:{name}")


def test_without_the_network_the_hub_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hf:someone/nothing: cannot be opened by datasets .* \(.+\)"):
        texts_of("text:hf:someone/nothing")
    with pytest.raises(UserError, match=r"hf:someone/nothing: the hub does not answer for it \(.+\)"):
        open_documents("text:hf:someone/nothing").identity()


def test_the_identity_of_a_hub_s_dataset_is_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "one"

    def dataset_info(_: huggingface_hub.HfApi, name: str) -> SimpleNamespace:
        assert name == "owner/name"
        return SimpleNamespace(sha=commit)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    first = open_documents("text:hf:owner/name/config").identity()
    assert open_documents("text:hf:owner/name/config").identity() == first
    assert open_documents("text:hf:owner/name/config#body").identity() != first
    commit = "two"
    assert open_documents("text:hf:owner/name/config").identity() != first


# Damage


@pytest.mark.parametrize("name", ["parquet", "arrow stream", "arrow file"])
def test_a_damaged_file_is_refused_wherever_it_is_damaged(tmp_path: Path, name: str) -> None:
    file, write = WRITERS[name]
    path = tmp_path / file
    write(path)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 7):
        for broken in (whole[:place], whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]):
            path.write_bytes(broken)
            try:
                texts_of(f"text:{path}")
            except UserError as error:
                assert str(path) in str(error)  # noqa: PT017
                refused += 1
    assert refused > len(whole) // 14


def test_offsets_that_point_outside_are_refused(tmp_path: Path) -> None:
    batch = pa.record_batch({"text": ["abcd", "efgh", "ijkl"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    whole, stated = sink.getvalue().to_pybytes(), np.array([0, 4, 8, 12], np.int32).tobytes()
    assert whole.count(stated) == 1
    path = tmp_path / "a.arrow"
    for offsets in ([0, 4, 8, 2**30], [0, 2**30, 8, 12], [0, 8, 4, 12], [-4, 4, 8, 12]):
        path.write_bytes(whole.replace(stated, np.array(offsets, np.int32).tobytes()))
        with pytest.raises(UserError, match=r"a\.arrow: damaged at or after row 0"):
            list(rows_of(path))


# Memory and mixtures


def test_memory_stays_flat_over_a_long_stream(tmp_path: Path, vocabulary: Vocabulary, text: TextTokenizer) -> None:
    path = tmp_path / "long.jsonl"
    line = json.dumps({"text": "the value of an object " * 40}) + "\n"
    path.write_text(line * 8_000)  # 7 MB
    process, peak = psutil.Process(), 0
    sequences = document_sequences(open_documents(f"text:{path}"), vocabulary, text, DocumentConfig(tokens=700_000))
    before = process.memory_info().rss
    tokens = 0
    for i, sequence in enumerate(sequences):
        tokens += len(sequence)
        if i % 500 == 0:
            peak = max(peak, process.memory_info().rss - before)
    assert tokens >= 700_000
    assert peak < 16e6  # all tokens in memory would be 21 bytes each, and the texts as much


def test_the_same_rows_in_two_layouts_are_the_same_data(tmp_path: Path, text: TextTokenizer) -> None:
    write_json(tmp_path / "a.jsonl")
    write_parquet(tmp_path / "b.parquet")
    (tmp_path / "small.model").write_bytes(text.model)
    hashes = []
    for name in ("a.jsonl", "b.parquet"):
        entry = DatasetConfig(source=f"text:{tmp_path / name}")
        config = MixtureConfig(datasets=[entry], text_model=str(tmp_path / "small.model"))
        store = build(config, tmp_path / f"store-{name}")
        assert store.datasets[0].ids.dtype == np.uint16
        hashes.append(store.datasets[0].metadata["sha256"])
    assert hashes[0] == hashes[1]
