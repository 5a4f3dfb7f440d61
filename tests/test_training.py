"""Training: resuming to the bit, accumulation, checkpoints that survive damage, and learning to act."""

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from gymnasium import spaces
from runs import assert_close_weights, assert_same_run, metrics_of, weights_of
from toy import (
    CONTEXT,
    TRUNKS,
    Line,
    ToyEnv,
    layout_of,
    tiny_model,
    tiny_recipe,
    toy_sequence,
    write_store,
)

import gatito.model.loss
from gatito.data.sampler import Sampler
from gatito.data.store import open_store, sha256_of
from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.agent import load_checkpoint
from gatito.model import GatitoForCausalLM
from gatito.model.loss import TargetLoss
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.tokenizers.trunk import Trunk
from gatito.train import trainer
from gatito.train.card import processor_of
from gatito.train.checkpoint import (
    MANIFEST,
    TrainingState,
    find_problem,
    list_checkpoints,
    load_newest,
    read_state,
    resolve_checkpoint,
    save_checkpoint,
)
from gatito.train.configs import LoraConfig, ModelConfig, Recipe, TrainConfig
from gatito.train.optimizer import Average, build_optimizer, learning_rate
from gatito.train.settings import check_same_settings, run_settings
from gatito.train.stream import MicroBatches
from gatito.train.trainer import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """A run of 20 steps with checkpoints at 10 and 20, never to be written to."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    torch.set_num_threads(1)
    train(tiny_recipe(save_every=10, drop_path=0.1), store, out)
    return out


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def damage(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# Resuming


@pytest.mark.parametrize("changes", [{}, {"trunk": "4 latents, decoded"}, {"optimizer": "muon", "average": 0.9}])
def test_an_interrupted_and_resumed_run_is_bitwise_the_uninterrupted_one(
    changes: dict, tmp_path: Path, store: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(save_every=10, drop_path=0.1, **changes)
    if changes:
        finished = tmp_path / "finished"
        train(recipe, store, finished)
    step, calls = trainer._Loop._step, []

    def interrupted(self: object, *arguments: object) -> object:
        calls.append(1)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return step(self, *arguments)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer._Loop, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, store, out)
    assert [p.name for p in list_checkpoints(out)] == ["step-00000010"]
    assert max(metrics_of(out)) == 13
    torch.manual_seed(999)  # whatever happened in between
    resumed = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, resume="auto"))
    train(resumed, store, out)
    assert_same_run(out, finished)
    assert weights_of(list_checkpoints(out)[0]).keys() == weights_of(list_checkpoints(out)[1]).keys()
    first, last = (weights_of(c) for c in list_checkpoints(out))
    assert not torch.equal(first["model.norm.weight"], last["model.norm.weight"])


def test_resuming_a_finished_run_changes_nothing(run: Path, store: Path, finished: Path) -> None:
    path = train(tiny_recipe(save_every=10, drop_path=0.1, resume="auto"), store, run)
    assert path == run / "checkpoints/step-00000020"
    assert_same_run(run, finished)


def test_resume_auto_starts_where_there_is_no_run(tmp_path: Path, store: Path) -> None:
    train(tiny_recipe(steps=2, resume="auto"), store, tmp_path / "new")
    assert list(metrics_of(tmp_path / "new")) == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, "train.seed was 0, now 3"),
        ({"batch": 8}, "train.batch was 4, now 8"),
        ({"context": 80}, "train.context was 64, now 80"),
        ({"lr": 0.5}, "train.lr was 0.003, now 0.5"),
        ({"drop_path": 0.2}, "model.drop_path was 0.1, now 0.2"),
        ({"trunk": "4 latents"}, "model.latents was 0, now 4"),
        ({"trunk": "flat, decoded"}, "model.action_layers was 0, now 1"),
    ],
)
def test_resuming_with_other_settings_is_refused_with_both_values(
    run: Path, store: Path, changes: dict, message: str
) -> None:
    recipe = tiny_recipe(**{"save_every": 10, "drop_path": 0.1, "resume": "auto"} | changes)
    with pytest.raises(UserError, match=message):
        train(recipe, store, run)


def test_a_run_begun_before_there_were_latents_continues_with_a_flat_trunk(store: Path) -> None:
    opened, before = open_store(store), {}
    asked = run_settings(tiny_recipe(), opened)
    for name, value in asked.items():
        if not any(part in name for part in ("latents", "resample", "action_layers", "predict_observations")):
            before[name] = value
    assert len(before) == len(asked) - 5
    check_same_settings(before, asked, Path("run"))
    with pytest.raises(UserError, match=r"cannot resume run: model\.latents was 0, now 1"):
        check_same_settings(before, run_settings(tiny_recipe(trunk="1 latent"), opened), Path("run"))


def test_actions_of_more_tokens_than_the_decoder_has_places_are_refused(
    tmp_path: Path, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    env = ToyEnv(spaces.Discrete(3), spaces.MultiBinary(513), length=2)
    layout = layout_of(env, vocabulary, text)
    data = write_store(tmp_path / "store", text, vocabulary, {"toy/many": (layout, [toy_sequence(env, layout, 0)])})
    message = r"task 'toy/many': an action of 513 tokens, the action decoder allows 512; .*--model\.action_layers 0"
    with pytest.raises(UserError, match=message):
        train(tiny_recipe(trunk="1 latent, decoded"), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(tiny_recipe(trunk="1 latent", steps=1, batch=1, context=520), data, tmp_path / "other")
    with pytest.raises(UserError, match="an action of 513 tokens"):
        Actor(tiny_model(vocabulary, **TRUNKS["flat, decoded"])).reset(0, layout)


def test_a_checkpoint_whose_two_files_differ_in_the_trunk_is_refused(run: Path) -> None:
    checkpoint = list_checkpoints(run)[-1]
    (checkpoint / MANIFEST).unlink()
    path = checkpoint / "processor_config.json"
    values = json.loads(path.read_text())
    values["trunk"]["latents"] = 4
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"differ in the positions of the trunk, .*'latents': 0.* and .*'latents': 4"):
        load_checkpoint(checkpoint)


def test_resuming_with_other_data_is_refused_with_both_hashes(
    run: Path, store: Path, tmp_path: Path, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    env = Line()
    layout = layout_of(env, vocabulary, text)
    other = write_store(
        tmp_path / "other", text, vocabulary, {"toy/line": (layout, [layout.episode_tokens(*env.demonstration())])}
    )
    old, new = open_store(store).sha256, open_store(other).sha256
    with pytest.raises(UserError, match=f"data was '{old}', now '{new}'"):
        train(tiny_recipe(save_every=10, drop_path=0.1, resume="auto"), other, run)


def test_without_resume_an_existing_run_is_refused_and_kept(run: Path, store: Path, finished: Path) -> None:
    with pytest.raises(UserError, match=r"holds a run already; continue it with --train\.resume auto"):
        train(tiny_recipe(), store, run)
    assert_same_run(run, finished)


# Checkpoints


def test_a_checkpoint_is_a_hugging_face_folder_without_pickle_and_hashed(finished: Path) -> None:
    checkpoint = list_checkpoints(finished)[-1]
    files = sorted(str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file())
    assert files == [
        "README.md",
        "config.json",
        "generation_config.json",
        "layouts.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.model",
        "training/manifest.json",
        "training/optimizer.safetensors",
        "training/state.json",
    ]
    assert sorted(json.loads((checkpoint / MANIFEST).read_text())) == [f for f in files if f != MANIFEST]
    model, processor = load_checkpoint(finished)
    assert sorted(processor.layouts) == ["toy/pictures", "toy/vectors"]
    assert model.config.drop_path == 0.1


@pytest.mark.parametrize("name", ["model.safetensors", "training/optimizer.safetensors", "layouts.json", MANIFEST])
def test_a_flipped_bit_in_the_newest_checkpoint_is_said_and_the_one_before_is_used(
    name: str, run: Path, store: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / "checkpoints/step-00000020" / name)
    train(tiny_recipe(save_every=10, drop_path=0.1, resume="auto"), store, run)
    said = capsys.readouterr().out
    assert "skipping a damaged checkpoint" in said
    assert "step-00000020" in said
    if name != MANIFEST:
        assert f"{run / 'checkpoints/step-00000020' / name} does not match its SHA-256" in said
    assert_same_run(run, finished)
    assert all(find_problem(c) is None for c in list_checkpoints(run))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "training/state.json", MANIFEST])
def test_a_missing_file_in_the_newest_checkpoint_is_named_and_the_one_before_is_used(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints/step-00000020" / name).unlink()
    newest = load_newest(run)
    assert newest is not None
    assert newest[1].step == 10
    assert f"{run / 'checkpoints/step-00000020' / name} is missing" in capsys.readouterr().out


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_afresh(run: Path, store: Path) -> None:
    for checkpoint in list_checkpoints(run):
        damage(checkpoint / "model.safetensors")
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        train(tiny_recipe(save_every=10, drop_path=0.1, resume="auto"), store, run)
    assert len(list_checkpoints(run)) == 2


def test_acting_passes_over_a_damaged_checkpoint_and_refuses_the_one_that_was_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / "checkpoints/step-00000020/model.safetensors")
    assert resolve_checkpoint(run).name == "step-00000010"
    assert "skipping a damaged checkpoint" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"refused: .*model\.safetensors does not match its SHA-256"):
        resolve_checkpoint(run / "checkpoints/step-00000020")
    damage(run / "checkpoints/step-00000010/config.json")
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        resolve_checkpoint(run)


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at"):
        resolve_checkpoint(tmp_path / "nothing")


def test_a_checkpoint_of_a_newer_schema_is_refused(run: Path) -> None:
    checkpoint = run / "checkpoints/step-00000020"
    state = json.loads((checkpoint / "training/state.json").read_text())
    (checkpoint / "training/state.json").write_text(json.dumps(state | {"schema": 99}))
    hashes = json.loads((checkpoint / MANIFEST).read_text())
    hashes["training/state.json"] = sha256_of(checkpoint / "training/state.json")
    (checkpoint / MANIFEST).write_text(json.dumps(hashes))
    with pytest.raises(UserError, match="schema 99, this gatito reads up to 1"):
        load_newest(run)


def state_of(step: int, optimizer: dict[str, torch.Tensor] | None = None) -> TrainingState:
    return TrainingState(step=step, settings={}, optimizer=optimizer or {"generator": torch.get_rng_state()})


@pytest.mark.parametrize("stage", ["model", "optimizer"])
def test_a_failing_disk_leaves_earlier_checkpoints_and_no_temporary_files(stage: str, run: Path) -> None:
    model, processor = load_checkpoint(run)
    size = (run / "checkpoints/step-00000020/model.safetensors").stat().st_size
    optimizer = {"moments": torch.zeros(size)}  # four times the weights
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2 if stage == "model" else size * 2, hard))
    try:
        with pytest.raises(UserError, match=r"cannot save .*step-00000030.*what was saved before is intact") as error:
            save_checkpoint(run, model, processor, state_of(30, optimizer), "card", keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-00000010", "step-00000020"]
    assert all(find_problem(c) is None for c in list_checkpoints(run))
    save_checkpoint(run, model, processor, state_of(30, optimizer), "card", keep=2)
    assert [p.name for p in list_checkpoints(run)] == ["step-00000020", "step-00000030"]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, store: Path) -> None:
    train(tiny_recipe(steps=5, save_every=1, keep=2), store, tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


def test_a_damaged_newer_checkpoint_never_crowds_out_the_good_ones(run: Path) -> None:
    model, processor = load_checkpoint(run)
    damage(run / "checkpoints/step-00000020/model.safetensors")
    save_checkpoint(run, model, processor, state_of(15), "card", keep=1)
    newest = load_newest(run)
    assert newest is not None
    assert newest[1].step == 15


# The step


def test_the_logged_loss_is_that_of_the_global_number_of_targets(tmp_path: Path, store: Path) -> None:
    recipe = tiny_recipe(steps=1, batch=4, accumulation=4)
    train(recipe, store, tmp_path)
    opened = open_store(store)
    torch.manual_seed(0)
    model = GatitoForCausalLM(recipe.model.build(opened.vocabulary, CONTEXT, opened.text.end))
    sampler = Sampler(store=opened, trunk=Trunk(vocabulary=opened.vocabulary), context=CONTEXT, seed=0)
    sums, counts = [], []
    for row in range(4):
        with torch.no_grad():
            targets = model(**sampler.batch(row, 1).tensors()).targets
        counts.append(int(sum(targets.num_targets.values())))
        sums.append(float(sum(targets.loss_sum.values())))
    logged = metrics_of(tmp_path)[1]["loss"]
    assert logged == pytest.approx(sum(sums) / sum(counts), abs=1e-6)
    assert min(counts) == 0  # very unequal rows, for which the mean of means is another number
    assert max(counts) > 50
    assert abs(np.mean([a / max(b, 1) for a, b in zip(sums, counts, strict=True)]) - logged) > 0.05


@pytest.mark.parametrize("trunk", ["flat", "1 latent, decoded"])
def test_accumulation_gives_the_losses_and_weights_of_one_batch(trunk: str, tmp_path: Path, store: Path) -> None:
    for k in (1, 2, 4):
        train(tiny_recipe(steps=4, accumulation=k, warmup=0, lr=1e-3, trunk=trunk), store, tmp_path / str(k))
    whole = metrics_of(tmp_path / "1")
    for k in (2, 4):
        for step, values in metrics_of(tmp_path / str(k)).items():
            for name in ("loss", "grad_norm", "loss/text", "loss/continuous", "loss/discrete", "lr"):
                assert (name in values) == (name in whole[step])
                assert values.get(name, 0.0) == pytest.approx(whole[step].get(name, 0.0), rel=1e-6, abs=1e-6)
        if trunk == "flat":  # elsewhere gradients of rounding size reach the patches, and Adam scales them up
            assert_close_weights(tmp_path / str(k), tmp_path / "1")


def test_micro_batches_of_all_processes_are_the_rows_of_the_stream_each_once(store: Path) -> None:
    opened = open_store(store)
    sampler = Sampler(store=opened, trunk=Trunk(vocabulary=opened.vocabulary), context=CONTEXT, seed=0)
    config = TrainConfig(steps=2, batch=8, accumulation=2, context=CONTEXT)
    expected = sampler.batch(0, 16).input_ids
    parts = []
    for k in range(4):
        for process in range(2):
            parts.append(MicroBatches(sampler, config, process, 2)[k]["input_ids"])
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_workers_give_the_same_run(tmp_path: Path, store: Path, finished: Path) -> None:
    train(tiny_recipe(save_every=10, drop_path=0.1, workers=1), store, tmp_path)
    assert_same_run(tmp_path, finished)


def test_a_killed_worker_ends_the_run_at_once_and_is_named(tmp_path: Path, store: Path) -> None:
    killed: list[int] = []

    def kill_a_worker() -> None:
        while not multiprocessing.active_children():
            time.sleep(0.01)
        time.sleep(0.5)
        killed.append(multiprocessing.active_children()[0].pid or 0)
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    began = time.monotonic()
    with pytest.raises(UserError, match=r"the data-loading worker of process id \d+ died .*--train.resume auto"):
        train(tiny_recipe(steps=100_000, workers=1), store, tmp_path)
    killer.join()
    assert time.monotonic() - began < 30


def test_the_learning_rate_warms_up_and_falls_by_a_cosine(tmp_path: Path, store: Path) -> None:
    config = TrainConfig(steps=8, warmup=4, lr=0.004, final_lr=0.1)
    assert [learning_rate(config, step, 0.0) for step in range(4)] == pytest.approx([0.001, 0.002, 0.003, 0.004])
    assert learning_rate(config, 4, 0.0) == 0.004
    assert learning_rate(config, 6, 0.5) == pytest.approx(0.0022)  # half way between 0.004 and 0.0004
    assert learning_rate(config, 8, 1.0) == pytest.approx(0.0004)
    assert learning_rate(config, 99, 7.0) == pytest.approx(0.0004)
    train(tiny_recipe(steps=8, warmup=4, lr=0.004), store, tmp_path)
    expected = [0.001, 0.002, 0.003, 0.004]
    expected += [0.0004 + 0.0036 * 0.5 * (1 + math.cos(math.pi * p / 4)) for p in range(4)]
    assert [m["lr"] for m in metrics_of(tmp_path).values()] == pytest.approx(expected, rel=1e-9)


def test_minutes_end_the_run_and_its_schedule(tmp_path: Path, store: Path) -> None:
    path = train(tiny_recipe(steps=100_000, minutes=1 / 60, warmup=2), store, tmp_path)
    metrics = metrics_of(tmp_path)
    last = int(path.name.removeprefix("step-"))
    assert 2 < last < 100_000
    assert metrics[max(metrics)]["lr"] < 0.3 * 3e-3


def test_bf16_trains_to_nearly_the_same_losses(tmp_path: Path, store: Path) -> None:
    for precision in ("bf16", "no"):
        AcceleratorState._reset_state(reset_partial_state=True)  # one process has one precision
        train(tiny_recipe(steps=6, precision=precision), store, tmp_path / precision)
    plain, mixed = metrics_of(tmp_path / "no"), metrics_of(tmp_path / "bf16")
    assert any(mixed[step]["loss"] != plain[step]["loss"] for step in plain)
    for step in plain:
        assert mixed[step]["loss"] == pytest.approx(plain[step]["loss"], rel=0.02), step


def test_matrices_decay_and_tables_norms_and_biases_do_not(store: Path) -> None:
    opened = open_store(store)
    model = GatitoForCausalLM(tiny_recipe(trunk="4 latents, decoded").model.build(opened.vocabulary, CONTEXT, 2))
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.1))
    names = {p: n for n, p in model.named_parameters()}
    assert optimizer.defaults["fused"]
    decayed, kept = ({names[p] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert decayed | kept == set(names.values())
    assert "model.blocks.0.attention.qkv.weight" in decayed
    assert "model.embedding.patches.conv1.weight" in decayed
    assert "model.resampler.layers.0.keys_values.weight" in decayed
    assert "model.action_decoder.blocks.0.attention.qkv.weight" in decayed
    for name in ("tokens", "local_positions", "patch_rows", "patch_columns"):
        assert f"model.embedding.{name}.weight" in kept
    for name in ("resampler.latents", "resampler.sum.gates", "action_decoder.places", "action_decoder.taken.gates"):
        assert f"model.{name}.weight" in kept
    assert all(name in kept for name in names.values() if "norm" in name or name.endswith("bias"))


def test_muon_steps_the_matrices_of_the_layers_and_adamw_all_else(store: Path) -> None:
    model = GatitoForCausalLM(tiny_recipe().model.build(open_store(store).vocabulary, CONTEXT, 2))
    optimizer = build_optimizer(model, TrainConfig(optimizer="muon", weight_decay=0.1, lr=0.01))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_kind = {"momentum_buffer": set(), "exp_avg": set()}
    for parameter, state in optimizer.state.items():
        by_kind[next(kind for kind in by_kind if kind in state)].add(names[parameter])
    layers = {name for name, parameter in model.named_parameters() if "blocks" in name and parameter.ndim == 2}
    assert by_kind["momentum_buffer"] == layers | {"model.embedding.patches.project.weight"}
    assert by_kind["momentum_buffer"] | by_kind["exp_avg"] == set(before)
    # Orthogonal steps whose root mean square is 0.2 of the learning rate, whatever the gradient's size.
    name = "model.blocks.0.attention.qkv.weight"
    turned = (dict(model.named_parameters())[name].detach() - before[name] * (1 - 0.01 * 0.1)) / 0.01
    assert float(turned.square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def test_an_average_of_the_weights_is_saved_to_be_used_and_the_last_ones_to_go_on(
    tmp_path: Path, store: Path
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(Average):
        def update(self) -> None:
            super().update()
            seen.append({name: value.detach().clone() for name, value in self.model.named_parameters()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Average", Watched)
        checkpoint = train(tiny_recipe(steps=5, average=0.25), store, tmp_path / "averaged")
    name, expected = "model.norm.weight", torch.ones(())  # as it begins
    for n, weights in enumerate(seen, start=1):
        keeps = min(0.25, (1 + n) / (10 + n))
        expected = keeps * expected + (1 - keeps) * weights[name]
    torch.testing.assert_close(weights_of(checkpoint)[name], expected)
    assert not torch.equal(weights_of(checkpoint)[name], seen[-1][name])
    assert torch.equal(read_state(checkpoint).optimizer[f"parameter/{name}"], seen[-1][name])
    plain = train(tiny_recipe(steps=5), store, tmp_path / "plain")
    assert torch.equal(weights_of(plain)[name], seen[-1][name])  # averaging changes nothing of what is trained


def test_a_run_may_go_on_with_another_optimizer_and_without_the_average_where_changes_are_accepted(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(tiny_recipe(steps=2, optimizer="muon", average=0.5), store, tmp_path / "run")
    own = read_state(first).optimizer["parameter/model.norm.weight"]
    going_on = {"resume": "auto", "accept_changes": True}
    train(tiny_recipe(steps=2, lr=1e-30, **going_on), store, tmp_path / "run")  # nothing to do
    last = train(tiny_recipe(steps=3, lr=1e-30, first_lr=1e-30, **going_on), store, tmp_path / "run")
    assert "the state of muon is left behind: adamw begins anew" in capsys.readouterr().out
    torch.testing.assert_close(weights_of(last)["model.norm.weight"], own)  # not the averaged ones
    again = train(tiny_recipe(steps=4, average=0.5, **going_on), store, tmp_path / "run")
    assert weights_of(again)


@pytest.mark.parametrize("changes", [{"optimizer": "muon"}, {"average": 0.9}])
def test_weights_that_are_sharded_by_the_launcher_are_neither_averaged_nor_stepped_by_muon(
    changes: dict, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="ACCELERATE_USE_FSDP shards the weights"):
        train(tiny_recipe(**changes), store, tmp_path / "run")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TrainConfig(average=1.0), "--train.average is 1.0, allowed 0"),
        (lambda: TrainConfig(optimizer="muon", sharding="fsdp"), "--train.optimizer muon needs whole weights"),
        (lambda: TrainConfig(average=0.9, sharding="fsdp"), "--train.average 0.9 needs whole weights"),
        (lambda: Recipe(train=TrainConfig(average=0.9), lora=LoraConfig(rank=2)), "adapters are not averaged"),
        (lambda: ModelConfig(target_spread=-1.0), "--model.target_spread is -1.0, allowed 0 to 100 bins"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_three_steps_that_are_not_finite_abort_the_run(tmp_path: Path, store: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"at step 4 \(stream rows 13 \(text\), 14 \(toy-vectors\), 15 .*; lower the learning rate, --train\.lr",
    ):
        train(tiny_recipe(lr=1e38, warmup=0), store, tmp_path)
    assert list_checkpoints(tmp_path) == []


def test_two_steps_that_are_not_finite_are_skipped(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = gatito.model.loss.target_loss, []

    def sometimes_nan(*arguments: Any, **values: Any) -> TargetLoss:
        targets = original(*arguments, **values)
        calls.append(1)
        if len(calls) in (3, 4, 6):
            return dataclasses.replace(targets, loss_sum={k: v * math.nan for k, v in targets.loss_sum.items()})
        return targets

    monkeypatch.setattr(gatito.model.loss, "target_loss", sometimes_nan)
    train(tiny_recipe(steps=7, save_every=1, keep=9), store, tmp_path)
    weights = [weights_of(c)["model.norm.weight"] for c in list_checkpoints(tmp_path)]
    same = [torch.equal(a, b) for a, b in itertools.pairwise(weights)]
    assert same == [False, True, True, False, True, False]
    assert all(torch.isfinite(w).all() for w in weights)


def test_batches_without_targets_are_skipped_steps(
    tmp_path: Path, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    env = ToyEnv(spaces.Box(-9.0, 9.0, (3,), np.float32), spaces.Discrete(4), length=2000)
    layout = layout_of(env, vocabulary, text)
    sequence = toy_sequence(env, layout, 0, np.arange(2000) == 0)  # one target, in none of the rows below
    data = write_store(tmp_path / "store", text, vocabulary, {"toy/none": (layout, [sequence])})
    train(tiny_recipe(steps=3, save_every=1, keep=3, warmup=0), data, tmp_path / "run")
    assert [("loss" in m, m["skipped"]) for m in metrics_of(tmp_path / "run").values()] == [(False, 1)] * 3
    first, *others = (weights_of(c) for c in list_checkpoints(tmp_path / "run"))
    assert all(torch.equal(first[n], w[n]) for w in others for n in first)
    assert all(torch.isfinite(w).all() for w in first.values())


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"--train\.batch 6 does not divide by --train\.accumulation 4"):
        TrainConfig(batch=6, accumulation=4)


def test_predicting_observations_makes_targets_of_them(tmp_path: Path, store: Path) -> None:
    plain = train(tiny_recipe(steps=2), store, tmp_path / "plain")
    train(tiny_recipe(steps=2, predict_observations=True), store, tmp_path / "predicting")
    assert plain.is_dir()
    opened = open_store(store)
    rows = {
        predicts: Sampler(
            store=opened,
            context=CONTEXT,
            trunk=Trunk(vocabulary=opened.vocabulary),
            seed=0,
            predict_observations=predicts,
        ).batch(0, 20)
        for predicts in (False, True)
    }
    assert torch.equal(rows[True].input_ids, rows[False].input_ids)
    assert int(rows[True].loss_mask.sum()) > 1.5 * int(rows[False].loss_mask.sum())
    special = (opened.vocabulary.patch, opened.vocabulary.separator)
    assert not any(int(i) in special for i in rows[True].input_ids[rows[True].loss_mask])


def test_latents_with_a_recipe_that_predicts_observations_are_refused() -> None:
    for trunk, name in (("1 latent", "latents"), ("flat, decoded", "action_layers")):
        message = (
            rf"--train\.predict_observations needs .* --model\.{name} is 1; use --model\.latents 0 --model\.action"
        )
        with pytest.raises(UserError, match=message):
            tiny_recipe(trunk=trunk, predict_observations=True)


def test_more_latents_than_an_observation_has_tokens_are_allowed_and_said_once(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_recipe(steps=2, trunk="4 latents"), store, tmp_path / "fits")
    assert "--model.latents" not in capsys.readouterr().out
    recipe = tiny_recipe(steps=2, trunk="4 latents")
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, latents=5))
    train(recipe, store, tmp_path / "spare")
    said = capsys.readouterr().out
    assert said.count("--model.latents 5 is more than an observation has tokens in toy-vectors (4);") == 1
    again = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, steps=2, resume="auto"))
    train(again, store, tmp_path / "spare")
    assert "--model.latents" not in capsys.readouterr().out


def test_a_timestep_longer_than_the_context_is_refused_before_anything_is_written(
    tmp_path: Path, store: Path
) -> None:
    with pytest.raises(UserError, match=r"has a timestep of .* positions, the context is 4; raise --train\.context"):
        train(tiny_recipe(context=4), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_store_is_refused_naming_the_file(tmp_path: Path, store: Path) -> None:
    broken = Path(shutil.copytree(store, tmp_path / "store"))
    damage(broken / "toy-vectors/ids.bin")
    with pytest.raises(UserError, match=r"toy-vectors/ids\.bin does not match its SHA-256"):
        train(tiny_recipe(), broken, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The whole


@pytest.mark.parametrize(
    ("continuous", "trunk"),
    [
        (False, "flat"),
        pytest.param(True, "flat", marks=pytest.mark.slow),
        pytest.param(True, "4 latents, decoded", marks=pytest.mark.slow),
    ],
)
def test_the_tiny_model_learns_one_episode_and_acts_it_back(
    continuous: bool, trunk: str, tmp_path: Path, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    env = Line(continuous=continuous)
    layout = layout_of(env, vocabulary, text)
    demonstration = layout.episode_tokens(*env.demonstration())
    data = write_store(tmp_path / "store", text, vocabulary, {"toy/line": (layout, [demonstration])})
    steps = 250 if continuous else 120
    recipe = tiny_recipe(steps=steps, batch=4, lr=1e-2, warmup=10, log_every=1000, trunk=trunk)
    train(recipe, data, tmp_path / "run")
    model, processor = load_checkpoint(tmp_path / "run")

    def acted(model: GatitoForCausalLM) -> tuple[float, np.ndarray]:
        actor = Actor(model)
        actor.reset(0, processor.layout("toy/line"))
        observation, total, done, ids = env.reset()[0], 0.0, False, []
        while not done:
            observation, reward, done, _, _ = env.step(actor.act({0: observation})[0])
            total += reward
            ids.append(actor.sessions[0].window.timesteps[-1].ids)
        return total, np.concatenate(ids)

    total, ids = acted(model)
    assert total == env.length
    np.testing.assert_array_equal(ids, demonstration.ids)
    torch.manual_seed(0)
    assert acted(GatitoForCausalLM(model.config).eval())[0] < env.length  # before it learned, it could not


def test_the_recipe_of_a_run_and_its_card_are_readable(finished: Path, store: Path, vocabulary: Vocabulary) -> None:
    card = (list_checkpoints(finished)[-1] / "README.md").read_text()
    assert "trained for 20 steps of 4 x 64" in card
    assert '    agent.reset(task="toy/vectors")' in card
    assert "| toy-vectors | control | 4 | 80 | 1 |" in card
    assert sorted(processor_of(open_store(store), Trunk(vocabulary=vocabulary)).layouts) == [
        "toy/pictures",
        "toy/vectors",
    ]
    assert Recipe().train.seed == 0
