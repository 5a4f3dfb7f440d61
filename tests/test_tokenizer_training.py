"""SentencePiece models of one's own texts, and what refuses data of another model."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from toy import tiny_recipe

from gatito import cli
from gatito.data.build import build
from gatito.data.mixture import DatasetConfig, MixtureConfig
from gatito.data.store import Store, open_store
from gatito.data.text_model import Algorithm, train_text_model, write_text_model
from gatito.errors import UserError
from gatito.eval.agent import load_checkpoint
from gatito.tokenizers import TextTokenizer
from gatito.train.trainer import train

HARD = [
    "  def f(x):\n\treturn  x\n\n",
    "trailing  ",
    "naïve ﬁ Ｆ½ 日本語 🎉",
    "\x00\x7f\r\n",
    "",
    "1234567",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of the same size."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "a.txt").write_text("the value of an object is the class of a statement\n" * 30)
    (folder / "b.txt").write_text("Wer reitet so spät durch Nacht und Wind, es ist der Vater mit seinem Kind\n" * 30)
    for name in ("a", "b"):
        write_text_model(train_text_model([f"text:{folder}/{name}.txt"], 300), folder / f"{name}.model")
    return {name: folder / f"{name}.model" for name in ("a", "b")}


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_any_text_comes_back_as_it_was(algorithm: Algorithm, models: dict[str, Path]) -> None:
    model = train_text_model([f"text:{models['b'].with_suffix('.txt')}"], 285, algorithm)
    assert model.size == 285
    assert (model.end, model.piece(0), model.piece(1), model.piece(2)) == (2, "<unk>", "<s>", "</s>")
    for text in HARD:
        ids = model.encode(text)
        assert model.decode(ids) == text
        assert 0 not in ids


def test_texts_of_its_own_kind_take_fewer_tokens(models: dict[str, Path]) -> None:
    own, other = (TextTokenizer.load(models[name]) for name in ("a", "b"))
    text = "the class of an object"
    assert len(own.encode(text)) < len(other.encode(text))


def test_the_same_texts_give_the_same_model(models: dict[str, Path]) -> None:
    source = f"text:{models['a'].with_suffix('.txt')}"
    assert train_text_model([source], 300).model == models["a"].read_bytes()


def test_all_texts_of_all_sources_are_learned_from(models: dict[str, Path]) -> None:
    model = train_text_model([f"text:{models['a'].with_suffix('.txt')}", "captions:digits"], 320)
    assert len(model.encode("the digit seven")) <= 4


@pytest.mark.parametrize(
    ("sources", "size", "message"),
    [
        (["text:python-docs"], 259, r"--size is 259, allowed 260 and more: 256 bytes and 3 marks are pieces"),
        (["captions:digits"], 5000, r"cannot train --size 5000 on captions:digits: Vocabulary size too high"),
        (["text:python-docs"], 261, r"cannot train --size 261 on text:python-docs: Vocabulary size is smaller"),
        (["text:none.txt"], 300, r"none\.txt: it is missing"),
        (["scenes:"], 300, r"a source without an end cannot be learned from as a whole"),
        (["minari:x"], 300, r"source 'minari:x': unknown kind of documents 'minari'"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(sources: list[str], size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_text_model(sources, size)


def test_the_command_writes_a_model_that_mixtures_take(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out, source = tmp_path / "deep/mine.model", f"text:{models['a'].with_suffix('.txt')}"
    line = ["data", "tokenizer", "--from", source, "captions:digits", "--out", str(out), "--size", "320"]
    cli.run(line)
    assert capsys.readouterr().out == f"{out}: 320 pieces; name it as text_model: in a mixture\n"
    assert [path.name for path in out.parent.iterdir()] == ["mine.model"]
    assert built(tmp_path / "store", out).vocabulary.text_size == 320
    with pytest.raises(UserError, match=r"mine\.model exists; choose another file or remove it"):
        cli.run(line)


def test_a_failed_training_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too high"):
        cli.run(
            ["data", "tokenizer", "--from", "captions:digits", "--out", f"{tmp_path}/deep/a.model", "--size", "9000"]
        )
    assert list(tmp_path.iterdir()) == []


# Data of another model


def built(out: Path, model: Path) -> Store:
    entry = DatasetConfig(source="captions:digits", documents=40)
    return build(MixtureConfig(datasets=[entry], text_model=str(model)), out)


@pytest.fixture(scope="module")
def stores(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("stores")
    return {name: built(root / name, model).folder for name, model in models.items()}


@pytest.fixture(scope="module")
def run(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(tiny_recipe(steps=2, save_every=2), stores["a"], out)
    return out


def test_a_store_refuses_documents_of_another_model(stores: dict[str, Path], models: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"is a store of another vocabulary or text model; choose another --out"):
        built(stores["a"], models["b"])


def exchanged(folder: Path, copy: Path, model: Path) -> Path:
    """A copy of a folder with another text model of the same size."""
    shutil.copytree(folder, copy)
    (copy / "tokenizer.model").write_bytes(model.read_bytes())
    return copy


def test_training_refuses_a_store_whose_model_was_exchanged(
    tmp_path: Path, stores: dict[str, Path], models: dict[str, Path]
) -> None:
    other = exchanged(stores["a"], tmp_path / "store", models["b"])
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        train(tiny_recipe(steps=2), other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resuming_refuses_the_same_documents_of_another_model(run: Path, stores: dict[str, Path]) -> None:
    assert open_store(stores["a"]).vocabulary == open_store(stores["b"]).vocabulary
    recipe = tiny_recipe(steps=4, save_every=2, resume="auto")
    with pytest.raises(UserError, match=r"data"):
        train(recipe, stores["b"], run)


def test_a_checkpoint_whose_model_was_exchanged_is_not_evaluated(
    tmp_path: Path, run: Path, models: dict[str, Path]
) -> None:
    [checkpoint] = (run / "checkpoints").iterdir()
    _, processor = load_checkpoint(str(checkpoint))
    assert processor.text.sha256 == TextTokenizer.load(models["a"]).sha256
    other = exchanged(checkpoint, tmp_path / "checkpoint", models["b"])
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        load_checkpoint(str(other))


# Losses of each kind


def test_training_logs_the_loss_of_each_kind_of_documents(tmp_path: Path, models: dict[str, Path]) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("L", (16, 16)).save(pictures / "a.png")
    row = {"file_name": "a.png", "question": "what is it?", "answer": "nothing"}
    (pictures / "metadata.jsonl").write_text(json.dumps(row))
    entries = [
        DatasetConfig(source=f"questions:{pictures}"),
        DatasetConfig(source=f"text:{models['a'].with_suffix('.txt')}"),
        DatasetConfig(source="captions:digits", documents=40),
        DatasetConfig(source="scenes:", documents=40),
    ]
    store = build(MixtureConfig(datasets=entries, text_model=str(models["a"])), tmp_path / "store")
    recipe = tiny_recipe(steps=30, log_every=10)
    train(
        dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, context=64)),
        store.folder,
        tmp_path / "run",
    )
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for domain in ("text", "captions", "questions", "scenes"):
        losses = [line[f"domain_loss/{domain}"] for line in lines]
        assert losses[-1] < losses[0]
