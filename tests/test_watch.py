"""What a run says of itself: losses by domain, accuracy of actions, spikes, evaluations, and what it keeps."""

import dataclasses
import json
import os
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from runs import assert_same_run, metrics_of, weights_of
from toy import TRUNKS, tiny_model, tiny_recipe, write_task_store

import gatito.model.loss
from gatito.data.packing import pack
from gatito.data.sampler import Sampler
from gatito.data.store import open_store
from gatito.data.tasks import get_task, registry
from gatito.errors import UserError
from gatito.model.blocks import Attention
from gatito.model.masks import segment_blocks, visible
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.train import evaluation, memory, sharding, tracking, trainer
from gatito.train.checkpoint import list_checkpoints
from gatito.train.stop import Terminated
from gatito.train.trainer import train


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary, text: TextTokenizer) -> Path:
    return write_task_store(tmp_path_factory.mktemp("stores") / "cartpole", ["classic/cartpole"], vocabulary, text)


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# Losses


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_losses_of_rows_add_up_to_those_of_groups_and_belong_to_their_rows(
    trunk: str, store: Path, vocabulary: Vocabulary
) -> None:
    model = tiny_model(vocabulary, **TRUNKS[trunk])
    sampler = Sampler(store=open_store(store), context=64, trunk=model.config.trunk, seed=0)
    together = model(**sampler.batch(0, 6).tensors()).targets
    assert float(together.row_loss.sum()) == pytest.approx(float(sum(together.loss_sum.values()).detach()), rel=1e-5)
    assert int(together.row_targets.sum()) == int(sum(together.num_targets.values()))
    for row in range(6):
        alone = model(**sampler.batch(row, 1).tensors()).targets
        assert float(together.row_loss[row]) == pytest.approx(float(alone.row_loss[0]), rel=1e-5)
        assert int(together.row_targets[row]) == int(alone.row_targets[0])


def test_the_loss_of_a_domain_is_the_mean_over_the_targets_of_its_rows(tmp_path: Path, store: Path) -> None:
    """With a learning rate of nearly nothing every step has the losses of the first weights."""
    train(tiny_recipe(steps=4, lr=1e-30, warmup=0, log_every=4), store, tmp_path)
    (line,) = metrics_of(tmp_path).values()
    model = trainer.GatitoForCausalLM.from_pretrained(list_checkpoints(tmp_path)[-1])
    opened = open_store(store)
    sampler = Sampler(store=opened, context=64, trunk=model.config.trunk, seed=0)
    sums: dict[str, np.ndarray] = {}
    for row in range(16):
        targets = model(**sampler.batch(row, 1).tensors()).targets
        domain = "text" if sampler.dataset(row).kind == "text" else "toy"
        own = np.array([float(targets.row_loss[0]), int(targets.row_targets[0])])
        sums[domain] = sums.get(domain, np.zeros(2)) + own
    assert sorted(sums) == ["text", "toy"]
    for domain, (loss, count) in sums.items():
        assert line[f"domain_loss/{domain}"] == pytest.approx(loss / count, rel=1e-5)
    assert line["loss/text"] == pytest.approx(line["domain_loss/text"], rel=1e-5)
    assert 0 <= line["action_accuracy"] <= 1
    assert line["timesteps_per_s"] > 0
    assert 0 < line["mfu"] < 1.5
    assert line["eta_s"] == 0


def test_a_spike_is_written_down_with_its_worst_rows_and_an_even_course_is_not(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = gatito.model.loss.target_loss, []

    def spiking(*arguments: Any, **values: Any) -> Any:
        targets = original(*arguments, **values)
        calls.append(1)
        if len(calls) != 27:
            return targets
        rows = targets.row_loss.clone()
        rows[2] += 4000.0
        sums = {**targets.loss_sum, "text": targets.loss_sum["text"] + 4000.0}
        return dataclasses.replace(targets, row_loss=rows, loss_sum=sums)

    monkeypatch.setattr(gatito.model.loss, "target_loss", spiking)
    train(tiny_recipe(steps=30, lr=1e-4), store, tmp_path)
    (spike,) = lines_of(tmp_path / "spikes.jsonl")
    assert (spike["step"], spike["kind"]) == (27, "spike")
    assert spike["loss"] > 2 * spike["usual_loss"]
    sampler = Sampler(store=open_store(store), context=64, trunk=tiny_recipe().model.build(
        open_store(store).vocabulary, 64, 2).trunk, seed=0)  # fmt: skip
    assert spike["rows"][0] == f"{26 * 4 + 2} ({sampler.dataset(106).name})"


# Evaluation


def test_evaluations_while_training_are_logged_and_change_nothing_of_it(tmp_path: Path, cartpole: Path) -> None:
    settings = {"steps": 8, "trunk": "1 latent, decoded"}
    train(tiny_recipe(**settings), cartpole, tmp_path / "plain")
    train(tiny_recipe(**settings, evaluate_every=4, evaluate_episodes=2), cartpole, tmp_path / "evaluated")
    lines = lines_of(tmp_path / "evaluated/evaluations.jsonl")
    assert [line["step"] for line in lines] == [4, 8]
    for line in lines:
        assert line["failed"] == {}
        assert line["score"] == line["score/classic/cartpole"]
        assert -0.1 < line["score"] < 1.1
    assert_same_run(tmp_path / "evaluated", tmp_path / "plain")


def test_a_task_whose_simulator_fails_is_counted_and_the_training_goes_on(
    tmp_path: Path, cartpole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crashes(gym.Wrapper):
        def step(self, action: Any) -> Any:
            raise RuntimeError("the pole broke off")

    spec = get_task("classic/cartpole")
    broken = dataclasses.replace(spec, make=lambda: Crashes(spec.make()))
    monkeypatch.setitem(registry(), "classic/cartpole", broken)
    path = train(tiny_recipe(steps=4, evaluate_every=2, evaluate_episodes=2), cartpole, tmp_path)
    assert path.name == "step-00000004"
    for line in lines_of(tmp_path / "evaluations.jsonl"):
        assert "the pole broke off" in line["failed"]["classic/cartpole"]
        assert "score" not in line


def test_a_simulator_that_hangs_is_given_up_and_counted(
    tmp_path: Path, cartpole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hangs(gym.Wrapper):
        def step(self, action: Any) -> Any:
            time.sleep(60)

    spec = get_task("classic/cartpole")
    monkeypatch.setitem(registry(), "classic/cartpole", dataclasses.replace(spec, make=lambda: Hangs(spec.make())))
    began = time.monotonic()
    train(tiny_recipe(steps=2, evaluate_every=2, evaluate_limit_s=0.5), cartpole, tmp_path)
    assert time.monotonic() - began < 30
    (line,) = lines_of(tmp_path / "evaluations.jsonl")
    assert "the evaluation took more than 0.5 s" in line["failed"]["classic/cartpole"]


def test_an_evaluation_that_was_interrupted_is_done_when_the_run_continues(
    tmp_path: Path, cartpole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(steps=8, save_every=4, evaluate_every=4, evaluate_episodes=2, resume="auto")
    original = evaluation.evaluate_task

    def told_to_end(*arguments: Any, **values: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **values)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate_task", told_to_end)
        with pytest.raises(Terminated, match="told to end after step 4"):
            train(recipe, cartpole, tmp_path)
    assert not (tmp_path / "evaluations.jsonl").exists()
    train(recipe, cartpole, tmp_path)
    assert [line["step"] for line in lines_of(tmp_path / "evaluations.jsonl")] == [4, 8]


@pytest.mark.slow
def test_time_that_is_no_training_counts_in_no_rate(
    tmp_path: Path, cartpole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = evaluation.evaluate_task

    def slow(*arguments: Any, **values: Any) -> Any:
        time.sleep(1.5)
        return original(*arguments, **values)

    monkeypatch.setattr(evaluation, "evaluate_task", slow)
    train(tiny_recipe(steps=6, evaluate_every=3, evaluate_episodes=2), cartpole, tmp_path)
    rates = [line["tokens_per_s"] for line in metrics_of(tmp_path).values()]
    assert rates[3] > 0.2 * max(rates)  # with these seconds it would be a fiftieth


def test_tasks_that_the_data_does_not_know_are_refused_before_training(
    tmp_path: Path, store: Path, cartpole: Path
) -> None:
    with pytest.raises(UserError, match="evaluate_tasks all: the data has no such task that is registered"):
        train(tiny_recipe(evaluate_every=2), store, tmp_path)
    with pytest.raises(
        UserError, match="unknown task of the data 'classic/acrobot'; did you mean 'classic/cartpole'"
    ):
        train(tiny_recipe(evaluate_every=2, evaluate_tasks="classic/acrobot"), cartpole, tmp_path)
    with pytest.raises(UserError, match=r"evaluate_tasks box2d/\*: the data has no such task"):
        train(tiny_recipe(evaluate_every=2, evaluate_tasks="box2d/*"), cartpole, tmp_path)
    with pytest.raises(UserError, match=r"evaluate_tasks is given, but --train\.evaluate_every is 0"):
        tiny_recipe(evaluate_tasks="classic/cartpole")
    assert list_checkpoints(tmp_path) == []


# What is kept, and from where a run continues


def test_checkpoints_at_multiples_are_kept_for_good_beside_the_newest(tmp_path: Path, store: Path) -> None:
    train(tiny_recipe(steps=12, save_every=2, keep=2, keep_every=4), store, tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"step-{k:08d}" for k in (4, 8, 10, 12)]


def test_a_run_continues_from_the_step_it_is_told(tmp_path: Path, store: Path) -> None:
    recipe = tiny_recipe(steps=9, save_every=3, keep=9)
    train(recipe, store, tmp_path)
    expected = weights_of(list_checkpoints(tmp_path)[-1])
    again = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, resume_step=3))
    train(again, store, tmp_path)
    found = weights_of(list_checkpoints(tmp_path)[-1])
    assert [path.name for path in (tmp_path / "abandoned-1").iterdir()] != []
    assert sorted(metrics_of(tmp_path)) == list(range(1, 10))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_step_that_is_not_there_or_damaged_is_an_error_and_never_a_fresh_start(tmp_path: Path, store: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint of step 3 in .*; there are: none"):
        train(tiny_recipe(resume_step=3), store, tmp_path)
    train(tiny_recipe(steps=4, save_every=2), store, tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint of step 3 in .*; there are: 2, 4"):
        train(tiny_recipe(steps=4, resume_step=3), store, tmp_path)
    file = tmp_path / "checkpoints/step-00000002/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot resume step 2: .*model.safetensors does not match its SHA-256"):
        train(tiny_recipe(steps=4, resume_step=2), store, tmp_path)


def test_changed_settings_are_refused_unless_they_are_accepted(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_recipe(steps=4), store, tmp_path)
    said = r"train.steps was 4, now 6; train.seed was 0, now 5"
    with pytest.raises(UserError, match=rf"{said}; --train.accept_changes true continues nevertheless"):
        train(tiny_recipe(steps=6, seed=5, resume="auto"), store, tmp_path)
    path = train(tiny_recipe(steps=6, seed=5, resume="auto", accept_changes=True), store, tmp_path)
    assert path.name == "step-00000006"
    printed = capsys.readouterr().out
    assert "continues although train.steps was 4, now 6\ncontinues although train.seed was 0, now 5\n" in printed
    changed = tiny_recipe(steps=8, seed=5, resume="auto", accept_changes=True, trunk="1 latent")
    with pytest.raises(UserError, match=r"model.latents was 0, now 1; .*; a network keeps its shape"):
        train(changed, store, tmp_path)


# How it is computed


def test_activation_checkpointing_computes_blocks_twice_and_changes_nothing(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Attention.forward, []

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(Attention, "forward", counted)
    settings = {"trunk": "4 latents, decoded", "drop_path": 0.1, "steps": 6}
    train(tiny_recipe(**settings), store, tmp_path / "plain")
    once = len(calls)
    train(tiny_recipe(**settings, activation_checkpointing=True), store, tmp_path / "again")
    assert len(calls) - once == 2 * once
    assert_same_run(tmp_path / "again", tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own
def test_compiled_blocks_train_to_nearly_the_same_losses(tmp_path: Path, store: Path) -> None:
    settings = {"trunk": "1 latent, decoded", "steps": 6}
    train(tiny_recipe(**settings), store, tmp_path / "plain")
    train(tiny_recipe(**settings, compile=True), store, tmp_path / "compiled")
    plain, compiled = metrics_of(tmp_path / "plain"), metrics_of(tmp_path / "compiled")
    for step in plain:
        assert compiled[step]["loss"] == pytest.approx(plain[step]["loss"], rel=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # on a CPU, where it is slow
def test_attention_by_blocks_sees_what_the_mask_of_segments_lets_see(store: Path, vocabulary: Vocabulary) -> None:
    sampler = Sampler(store=open_store(store), context=64, trunk=tiny_model(vocabulary).config.trunk, seed=0)
    batch = sampler.batch(0, 5)
    dense = visible(batch.segments, None, 64, 0, batch.segments.device)
    blocks = segment_blocks(batch.segments)
    rows = [torch.full((5,), row) for row in range(64)]
    found = torch.stack(
        [
            torch.stack([blocks.mask_mod(torch.arange(5), rows[0] * 0, rows[q], rows[k]) for k in range(64)])
            for q in range(64)
        ]
    )
    assert torch.equal(found.permute(2, 0, 1), dense[:, 0])
    model = tiny_model(vocabulary)
    with torch.no_grad():
        expected = model(**batch.tensors()).loss
        model.set_attn_implementation("flex_attention")
        torch.testing.assert_close(model(**batch.tensors()).loss, expected, rtol=1e-5, atol=1e-5)


def test_bf16_on_a_gpu_without_it_is_refused(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sharding.torch.cuda, "is_bf16_supported", lambda *_: False)
    monkeypatch.setattr(sharding.torch.cuda, "get_device_name", lambda *_: "Tesla V100")
    with pytest.raises(UserError, match=r"--train\.precision bf16: Tesla V100 has no bfloat16; use no"):
        train(tiny_recipe(precision="bf16"), store, tmp_path)


def test_a_recipe_that_does_not_fit_is_refused_before_it_is_built(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1_000_000))
    message = r"training takes about [0-9.]+ MB, and 1.0 MB are free; try --train.activation_checkpointing"
    with pytest.raises(UserError, match=message):
        train(tiny_recipe(batch=8), store, tmp_path)
    assert list_checkpoints(tmp_path) == []


# Trackers


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tracker_is_sent_what_is_written_down(tmp_path: Path, cartpole: Path) -> None:
    settings = {"steps": 4, "log_every": 2, "evaluate_every": 4, "evaluate_episodes": 2}
    train(tiny_recipe(**settings, tracker="tensorboard"), cartpole, tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sent = EventAccumulator(str(tmp_path / "gatito"))
    sent.Reload()
    for name, key in (("loss", "loss"), ("accuracy/discrete", "accuracy/discrete"), ("mfu", "mfu")):
        assert [(scalar.step, pytest.approx(scalar.value)) for scalar in sent.Scalars(name)] == [
            (step, values[key]) for step, values in metrics_of(tmp_path).items()
        ]
    (line,) = lines_of(tmp_path / "evaluations.jsonl")
    (score,) = sent.Scalars("score/classic/cartpole")
    assert (score.step, score.value) == (4, pytest.approx(line["score"]))


def test_wandb_without_a_login_stays_on_this_disk_and_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda _: True)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nowhere")  # no netrc
    monkeypatch.setenv("WANDB_MODE", "")  # so that what is set below is undone after the test
    monkeypatch.delenv("WANDB_MODE")
    tracking.check_tracker(tiny_recipe(tracker="wandb").train)
    assert os.environ["WANDB_MODE"] == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.delenv("WANDB_MODE")
    tracking.check_tracker(tiny_recipe(tracker="wandb").train)
    assert "WANDB_MODE" not in os.environ


def test_rows_that_are_packed_count_their_timesteps_whatever_the_trunk(vocabulary: Vocabulary, store: Path) -> None:
    opened = open_store(store)
    (dataset,) = (d for d in opened.datasets if d.name == "toy-vectors")
    sequence = dataset.sequence(0, 20)
    for trunk in TRUNKS.values():
        model = tiny_model(vocabulary, **trunk)
        assert pack([[sequence]], model.config.trunk).num_timesteps(vocabulary.separator) == 20
