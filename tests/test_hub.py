"""Checkpoints on the hub, whose API notes what it is given."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError
from toy import tiny_recipe, write_mixed_store

from gatito.cli import run as gatito
from gatito.errors import UserError
from gatito.eval.agent import load_checkpoint, weights_sha256
from gatito.eval.results import Results, write_results
from gatito.eval.scores import Baseline, EpisodeRecord
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.train import hub
from gatito.train.trainer import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary, text: TextTokenizer) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("hub")
    train(tiny_recipe(steps=4), write_mixed_store(folder / "store", vocabulary, text), folder / "run")
    return folder / "run"


class LocalHub:
    """Copies what is uploaded into a folder, as the hub's files are downloaded again."""

    def __init__(self, root: Path) -> None:
        self.root, self.private = root, False

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        self.private = private
        assert exist_ok
        (self.root / name).mkdir(parents=True, exist_ok=True)
        return f"https://huggingface.co/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, ignore_patterns: list[str], **_: Any) -> None:
        assert ignore_patterns == ["training/*"]
        for file in folder_path.iterdir():
            if file.is_file():
                (self.root / repo_id / file.name).write_bytes(file.read_bytes())

    def upload_file(self, *, repo_id: str, path_or_fileobj: bytes, path_in_repo: str, **_: Any) -> None:
        (self.root / repo_id / path_in_repo).write_bytes(path_or_fileobj)


def test_a_checkpoint_is_uploaded_with_its_card_and_loads_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    local = LocalHub(tmp_path)
    monkeypatch.setattr(hub, "HfApi", lambda: local)
    gatito(["push", str(trained), "--to", "someone/cat", "--private"])
    assert capsys.readouterr().out.endswith("https://huggingface.co/someone/cat\n")
    assert local.private
    uploaded = tmp_path / "someone/cat"
    assert "library_name: transformers" in (uploaded / "README.md").read_text()
    assert not (uploaded / "training").exists()
    model, processor = load_checkpoint(uploaded)
    original, _ = load_checkpoint(trained)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters(), strict=True))
    assert sorted(processor.layouts) == ["toy/pictures", "toy/vectors"]


@pytest.mark.parametrize("name", ["cat", "a/b/c", "some one/cat", "/cat"])
def test_a_name_that_is_no_repository_is_refused(name: str, trained: Path) -> None:
    with pytest.raises(UserError, match="a repository on the hub is named owner/name"):
        hub.push_to_hub(trained, name)


def test_without_a_login_it_says_how_to_log_in(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NobodyIsLoggedIn(LocalHub):
        def create_repo(self, *_: Any, **__: Any) -> str:
            raise LocalTokenNotFoundError("Token is required")

    monkeypatch.setattr(hub, "HfApi", lambda: NobodyIsLoggedIn(trained))
    with pytest.raises(UserError, match="someone/cat: Token is required; log in with hf auth login"):
        hub.push_to_hub(trained, "someone/cat")


def test_a_damaged_checkpoint_is_not_uploaded(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HfApi", lambda: LocalHub(tmp_path))
    (checkpoint,) = (trained / "checkpoints").iterdir()
    file = checkpoint / "README.md"
    whole = file.read_text()
    file.write_text(whole + "!")
    with pytest.raises(UserError, match=r"README.md does not match its SHA-256"):
        hub.push_to_hub(checkpoint, "someone/cat")
    file.write_text(whole)
    assert list(tmp_path.iterdir()) == []


def test_scores_of_an_evaluation_are_added_to_the_card(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = LocalHub(tmp_path)
    monkeypatch.setattr(hub, "HfApi", lambda: local)
    record = EpisodeRecord(task="toy/vectors", prompt="none", seed=1, total_return=4.0, length=3)
    weights = weights_sha256(load_checkpoint(trained)[0])[:16]
    results = Results(
        records=[record, dataclasses.replace(record, seed=2)],
        baselines={"toy/vectors": Baseline(random=0.0, expert=8.0)},
        checkpoint="run",
        settings={"weights": weights},
    )
    write_results(results, tmp_path / "results.json")
    gatito(["push", str(trained), "--to", "someone/dog", "--results", str(tmp_path)])
    card = ModelCard.load(tmp_path / "someone/dog/README.md")
    assert card.data.to_dict()["library_name"] == "transformers"
    values = {found.metric_name: found.metric_value for found in card.data.eval_results}
    assert values["score"].startswith("0.50 [")
    assert "agent = gatito.load_agent" in card.text
    assert "## Scores" in card.text
    write_results(dataclasses.replace(results, settings={"weights": "0123"}), tmp_path / "results.json")
    with pytest.raises(UserError, match=f"scores weights 0123, checkpoint .* has {weights}; evaluate it first"):
        gatito(["push", str(trained), "--to", "someone/dog", "--results", str(tmp_path)])
