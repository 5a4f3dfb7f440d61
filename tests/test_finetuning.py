"""Runs that begin with the weights of a checkpoint."""

import dataclasses
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from gymnasium import spaces
from peft import PeftModel
from runs import assert_same_run, weights_of
from safetensors.torch import load_file
from toy import ToyEnv, layout_of, tiny_recipe, toy_sequence, write_store

from gatito import cli
from gatito.errors import UserError
from gatito.eval.agent import Agent, load_checkpoint
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.train.checkpoint import list_checkpoints
from gatito.train.configs import LoraConfig, Recipe
from gatito.train.trainer import train

STRANGE = (
    spaces.Dict(grip=spaces.MultiBinary(3), pose=spaces.Box(-np.inf, np.inf, (5,), np.float64)),
    spaces.Tuple((spaces.Discrete(9, start=-4), spaces.Box(0.0, 2.0, (2,), np.float32))),
)


@pytest.fixture(scope="module")
def pretrained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    train(tiny_recipe(steps=10), store, out)
    return out


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary, text: TextTokenizer) -> Path:
    """A store of a task whose spaces the pretrained run has not seen."""
    return strange_store(tmp_path_factory.mktemp("strange") / "store", "toy/strange", vocabulary, text)


def strange_store(folder: Path, task: str, vocabulary: Vocabulary, text: TextTokenizer) -> Path:
    env = ToyEnv(*STRANGE)
    layout = layout_of(env, vocabulary, text)
    return write_store(folder, text, vocabulary, {task: (layout, [toy_sequence(env, layout, i) for i in range(3)])})


def test_a_run_begins_with_the_weights_and_the_shape_of_a_checkpoint(
    pretrained: Path, strange: Path, tmp_path: Path
) -> None:
    other_shape = tiny_recipe(steps=1, lr=1e-12, warmup=0, trunk="4 latents, decoded")
    train(other_shape, strange, tmp_path / "run", init=pretrained)
    before, after = (weights_of(list_checkpoints(run)[-1]) for run in (pretrained, tmp_path / "run"))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)


def test_new_spaces_need_no_surgery_and_the_old_tasks_stay_known(
    pretrained: Path, strange: Path, tmp_path: Path
) -> None:
    known = set(load_checkpoint(pretrained)[1].layouts)
    train(tiny_recipe(steps=3, context=128), strange, tmp_path / "run", init=pretrained)
    agent = Agent.from_pretrained(tmp_path / "run")
    assert set(agent.tasks) == known | {"toy/strange"}
    agent.reset(task="toy/strange")
    assert STRANGE[1].contains(agent.act(STRANGE[0].sample()))
    agent.reset(task=min(known))
    assert agent.model.config.context == 128


def test_a_fine_tuning_that_was_interrupted_continues_to_the_bit_without_what_it_began_with(
    pretrained: Path, strange: Path, tmp_path: Path
) -> None:
    init = tmp_path / "init"
    shutil.copytree(pretrained, init)
    whole = tiny_recipe(steps=8, save_every=4, drop_path=0.1)
    train(whole, strange, tmp_path / "whole", init=init)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(list_checkpoints(tmp_path / "cut")[-1])
    shutil.rmtree(init)
    again = tiny_recipe(steps=8, save_every=4, drop_path=0.1, resume="auto")
    train(again, strange, tmp_path / "cut", init=init)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    layouts = [list_checkpoints(tmp_path / run)[-1] / "layouts.json" for run in ("cut", "whole")]
    assert json.loads(layouts[0].read_text()) == json.loads(layouts[1].read_text())


def test_a_run_continues_with_what_it_began_with_and_nothing_else(
    pretrained: Path, strange: Path, tmp_path: Path
) -> None:
    train(tiny_recipe(steps=2), strange, tmp_path / "run", init=pretrained)
    more = tiny_recipe(steps=2, resume="auto")
    with pytest.raises(UserError, match="no checkpoint at /elsewhere"):
        train(more, strange, tmp_path / "run", init="/elsewhere")
    with pytest.raises(UserError, match=r"init was .*, now None"):
        train(more, strange, tmp_path / "run")


def test_the_card_says_what_a_run_began_with(pretrained: Path, strange: Path, tmp_path: Path) -> None:
    checkpoint = train(tiny_recipe(steps=1), strange, tmp_path / "run", init=pretrained)
    assert f"It began with the weights of `{pretrained}`" in (checkpoint / "README.md").read_text()


def test_a_task_that_is_known_with_another_layout_is_refused(
    pretrained: Path, vocabulary: Vocabulary, text: TextTokenizer, tmp_path: Path
) -> None:
    task = min(load_checkpoint(pretrained)[1].layouts)
    other = strange_store(tmp_path / "store", task, vocabulary, text)
    with pytest.raises(UserError, match=rf"task '{task}' has the layout .* give the new one another name"):
        train(tiny_recipe(), other, tmp_path / "run", init=pretrained)


def test_a_checkpoint_of_other_tokens_is_refused(
    pretrained: Path, vocabulary: Vocabulary, text: TextTokenizer, tmp_path: Path
) -> None:
    model = io.BytesIO()
    sentences = [f"sentence {i} of another text" for i in range(2000)]
    options = {"vocab_size": text.size, "model_type": "bpe", "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=model, **options)
    (tmp_path / "other.model").write_bytes(model.getvalue())
    other = TextTokenizer.load(tmp_path / "other.model")
    larger = TextTokenizer.load()
    for own, said in ((other, "text model|vocabulary"), (larger, "has the vocabulary")):
        folder = strange_store(tmp_path / str(own.size), "toy/strange", Vocabulary(text_size=own.size), own)
        with pytest.raises(UserError, match=said):
            train(tiny_recipe(), folder, tmp_path / "run", init=pretrained)


def test_what_is_no_checkpoint_is_refused(strange: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at"):
        train(tiny_recipe(), strange, tmp_path / "run", init=tmp_path / "nowhere")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_shape_typed_beside_init_is_refused(pretrained: Path, strange: Path, tmp_path: Path) -> None:
    command = ["train", "--data", str(strange), "--out", str(tmp_path / "run"), "--init", str(pretrained)]
    with pytest.raises(UserError, match=r"--model.width beside --init"):
        cli.run([*command, "--model.width", "64"])
    cli.run([*command, "--train.steps", "1", "--train.context", "64", "--model.drop_path", "0.1"])
    assert list_checkpoints(tmp_path / "run")


def test_a_run_continues_where_the_weights_that_it_began_with_were_moved(
    pretrained: Path, store: Path, strange: Path, tmp_path: Path
) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    shutil.copytree(pretrained, first)
    train(tiny_recipe(steps=4, save_every=2), strange, tmp_path / "whole", init=first)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(list_checkpoints(tmp_path / "cut")[-1])
    train(tiny_recipe(steps=1, seed=1), store, other)
    more = tiny_recipe(steps=4, save_every=2, resume="auto")
    with pytest.raises(UserError, match=r"init was .*first.*, now .*other.*; init.weights was"):
        train(more, strange, tmp_path / "cut", init=other)
    first.rename(tmp_path / "moved")
    train(more, strange, tmp_path / "cut", init=tmp_path / "moved")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


# --- adapters


def lora(steps: int = 6, modules: list[str] | None = None, **train: Any) -> Recipe:
    adapters = LoraConfig(rank=2, **({} if modules is None else {"modules": modules}))
    return dataclasses.replace(tiny_recipe(steps=steps, **train), lora=adapters)


def test_adapters_of_low_rank_are_all_that_is_trained(pretrained: Path, strange: Path, tmp_path: Path) -> None:
    train(lora(modules=["qkv", "gate"]), strange, tmp_path / "run", init=pretrained)
    before, after = (weights_of(list_checkpoints(run)[-1]) for run in (pretrained, tmp_path / "run"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {"qkv", "gate"}
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks by the old name
def test_peft_reads_the_adapters_and_computes_what_the_merged_model_does(
    pretrained: Path, strange: Path, tmp_path: Path
) -> None:
    checkpoint = train(lora(), strange, tmp_path / "run", init=pretrained)
    whole, base = (load_checkpoint(source)[0] for source in (checkpoint, pretrained))
    before = base.state_dict()["model.blocks.0.attention.qkv.weight"].clone()
    adapted = PeftModel.from_pretrained(base, checkpoint / "adapter").merge_and_unload()
    assert not torch.equal(adapted.state_dict()["model.blocks.0.attention.qkv.weight"], before)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(adapted.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def test_adapters_that_were_interrupted_continue_to_the_bit(pretrained: Path, strange: Path, tmp_path: Path) -> None:
    train(lora(save_every=3), strange, tmp_path / "whole", init=pretrained)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(list_checkpoints(tmp_path / "cut")[-1])
    train(lora(save_every=3, resume="auto"), strange, tmp_path / "cut", init=pretrained)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    adapters = [
        load_file(list_checkpoints(tmp_path / run)[-1] / "adapter/adapter_model.safetensors")
        for run in ("cut", "whole")
    ]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[1])


def test_adapters_are_not_continued_beside_other_weights(
    pretrained: Path, store: Path, strange: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(pretrained, base)
    train(lora(steps=2), strange, tmp_path / "run", init=base)
    shutil.rmtree(base)
    train(tiny_recipe(steps=10, seed=1), store, base)
    with pytest.raises(UserError, match=r"init.weights was"):
        train(lora(steps=4, resume="auto"), strange, tmp_path / "run", init=base)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lora.rank", "-1"], "--lora.rank is -1"),
        (["--lora.rank", "2", "--lora.modules", "[qvk]"], "did you mean 'qkv'"),
        (["--lora.rank", "2", "--lora.alpha", "0"], "--lora.alpha is 0"),
        (["--lora.rank", "2", "--train.sharding", "fsdp"], "adapters are not sharded"),
    ],
)
def test_adapters_that_cannot_be_are_refused(
    pretrained: Path, strange: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    command = ["train", "--data", str(strange), "--out", str(tmp_path / "run"), "--init", str(pretrained)]
    with pytest.raises(UserError, match=said):
        cli.run([*command, *options])
    assert not list_checkpoints(tmp_path / "run")


def test_adapters_need_weights_and_peft(
    strange: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="without --init"):
        train(lora(), strange, tmp_path / "run")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="gatito\\[lora\\]"):
        train(lora(), strange, tmp_path / "run", init=pretrained)
