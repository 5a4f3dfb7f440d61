"""Captioned images out of tar files, as WebDataset lays them out."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gatito.data.build import build
from gatito.data.documents import open_documents
from gatito.data.mixture import DatasetConfig, MixtureConfig
from gatito.errors import UserError
from gatito.tokenizers.documents import Document


def picture(value: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (20, 16), value).save(content, "PNG")
    return content.getvalue()


def archive(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(first: int, last: int) -> list[tuple[str, bytes]]:
    return [
        file
        for k in range(first, last)
        for file in ((f"a/{k:04}.png", picture(k)), (f"a/{k:04}.txt", b"picture %d\n" % k), (f"a/{k:04}.cls", b"7"))
    ]


def documents_of(source: str) -> list[Document]:
    return list(open_documents(source).documents())


def test_samples_of_all_archives_of_a_pattern_are_captions(tmp_path: Path) -> None:
    archive(tmp_path / "0.tar", samples(0, 2))
    archive(tmp_path / "1.tar", samples(2, 3))
    documents = documents_of(f"captions:{tmp_path}/*.tar")
    assert [words.text for d in documents for words in d.texts] == ["picture 0", "picture 1", "picture 2"]
    assert [int(np.unique(image)) for d in documents for image in d.images] == [0, 1, 2]


def test_fields_of_a_json_file_are_those_of_its_sample(tmp_path: Path) -> None:
    asks = json.dumps({"query": "what is it?", "label": "grey"}).encode()
    archive(tmp_path / "a.tar", [("x.png", picture(1)), ("x.json", asks)])
    (document,) = documents_of(f"questions:{tmp_path}/a.tar#query,label")
    assert [words.text for words in document.texts] == ["Q: what is it?", "A:", "grey"]


def test_an_archive_is_built_again_where_it_changes(tmp_path: Path) -> None:
    mixture = MixtureConfig(datasets=[DatasetConfig(source=f"captions:{tmp_path}/a.tar", weight=1)])
    for count in (1, 2):
        archive(tmp_path / "a.tar", samples(0, count))
        (dataset,) = build(mixture, tmp_path / "store")
        assert dataset.num_episodes == count


def link(tar: tarfile.TarFile) -> None:
    member = tarfile.TarInfo("a/0000.png")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar.addfile(member)


def named(name: str, content: bytes) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))

    return add


def huge(tar: tarfile.TarFile) -> None:
    member = tarfile.TarInfo("b.png")
    member.size = 1 << 40
    assert tar.fileobj is not None
    tar.fileobj.write(member.tobuf())


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (link, r"a/0000\.png: a link or device, allowed are files"),
        (named("/b.png", b""), r"/b\.png: an absolute name"),
        (named("a/../../b.png", b""), r"b\.png: an absolute name, or one with '\.\.'"),
        (huge, r"b\.png: 1099511627776 bytes, allowed 268435456"),
        (named("b.png", b"no picture"), r"b: 'image': no image of a format"),
        (named("b.json", b"[1]"), r"b\.json: a list, expected an object"),
        (named("b.txt", b"\xff"), r"b\.txt: no text in UTF-8"),
        (named("b.txt", b"alone"), "b: no image: none of"),
    ],
)
def test_hostile_archives_are_refused(add: Callable[[tarfile.TarFile], None], message: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        named("a.png", picture(1))(tar)
        named("a.txt", b"one")(tar)
        add(tar)
    with pytest.raises(UserError, match=message):
        documents_of(f"captions:{tmp_path}/a.tar")


def test_two_images_of_a_sample_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", [("x.png", picture(1)), ("x.jpg", picture(2)), ("x.txt", b"one")])
    with pytest.raises(UserError, match=r"x\.jpg: another 'image' of the same sample"):
        documents_of(f"captions:{path}")


@pytest.mark.parametrize("size", [0, 700, 2600])
def test_an_archive_that_is_cut_off_is_refused(size: int, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", samples(0, 3))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="no tar file, or cut off"):
        documents_of(f"captions:{path}")


def test_a_pattern_that_finds_no_archive_says_where_it_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\*\.tar: the pattern finds no file; it runs from"):
        open_documents(f"captions:{tmp_path}/*.tar")
