"""Several processes against one, over gloo: whole models (DDP), shards (FSDP2), and faults in one of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from runs import assert_close_weights, assert_same_run, metrics_of, weights_of
from toy import TRUNKS, tiny_model, tiny_recipe, write_task_store

from gatito.errors import UserError
from gatito.model import GatitoForCausalLM
from gatito.model.blocks import TrunkBlock
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.train.checkpoint import list_checkpoints
from gatito.train.sharding import shard_plan
from gatito.train.trainer import train

SCRIPT = Path(__file__).with_name("launched.py")
SETTINGS: dict[str, Any] = {"batch": 8, "accumulation": 2, "lr": 1e-3}


def start(processes: int, store: Path, out: Path, fault: str = "none", **settings: Any) -> subprocess.Popen[str]:
    """Begin a training in several processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    arguments = [*launch, str(SCRIPT), str(store), str(out), fault, json.dumps(SETTINGS | settings)]
    return subprocess.Popen(
        [sys.executable, *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    """What it printed, once it has ended with this exit code; within two minutes, or a process hangs."""
    try:
        stdout, stderr = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == code, stdout[-2000:] + stderr[-6000:]
    return stdout


def run(processes: int, store: Path, out: Path, fault: str = "none", **settings: Any) -> str:
    return ended(start(processes, store, out, fault, **settings))


def assert_close_runs(found: Path, expected: Path) -> None:
    """Losses to 1e-6, and the weights after the last step to 1e-5."""
    a, b = metrics_of(found), metrics_of(expected)
    assert a.keys() == b.keys()
    for step in (step for step in b if "loss" in b[step]):
        assert a[step]["loss"] == pytest.approx(b[step]["loss"], abs=1e-6), step
        assert a[step]["grad_norm"] == pytest.approx(b[step]["grad_norm"], rel=1e-5), step
    assert_close_weights(found, expected)


def rows_of(out: Path) -> list[list[int]]:
    """Rows of the stream that each process drew, in its order."""
    files = sorted(out.parent.glob(f"{out.name}.rows-*"))
    return [[int(line) for line in file.read_text().splitlines()] for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("trunk", ["flat", "1 latent, decoded"])
def test_two_processes_give_the_losses_and_weights_of_one(trunk: str, tmp_path: Path, store: Path) -> None:
    train(tiny_recipe(**SETTINGS, trunk=trunk), store, tmp_path / "one")
    printed = run(2, store, tmp_path / "two", trunk=trunk)
    assert "process 0 of 2 is done" in printed
    assert "process 1 of 2 is done" in printed
    assert_close_runs(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("trunk", ["flat", "1 latent, decoded", "4 latents, decoded"])
def test_two_sharded_processes_give_the_losses_and_weights_of_one(trunk: str, tmp_path: Path, store: Path) -> None:
    """Through Accelerate's FSDP2, which on CPUs has to be told that it may."""
    train(tiny_recipe(**SETTINGS, trunk=trunk), store, tmp_path / "one")
    run(2, store, tmp_path / "two", "sharded", trunk=trunk)
    assert_close_runs(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_gradients_are_clipped_by_their_norm_over_all_shards(tmp_path: Path, store: Path) -> None:
    """So small a norm that AdamW's epsilon lets its size be seen."""
    settings = {**SETTINGS, "trunk": "1 latent, decoded", "warmup": 0}
    for name, clip in (("one", 1e-6), ("unclipped", 1.0)):
        train(tiny_recipe(**settings, clip=clip), store, tmp_path / name)
    run(2, store, tmp_path / "two", "sharded", **settings, clip=1e-6)
    assert_close_runs(tmp_path / "two", tmp_path / "one")
    with pytest.raises(AssertionError):
        assert_close_runs(tmp_path / "one", tmp_path / "unclipped")


@pytest.mark.slow
def test_sharded_processes_in_bf16_keep_the_precision_of_one(tmp_path: Path, store: Path) -> None:
    """Weights and gradients stay float32: with Accelerate's own policy losses differ by 2e-3."""
    settings = {**SETTINGS, "precision": "bf16", "trunk": "1 latent, decoded"}
    run(1, store, tmp_path / "one", **settings)
    run(2, store, tmp_path / "two", "sharded", **settings)
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    for step in one:
        assert two[step]["loss"] == pytest.approx(one[step]["loss"], rel=5e-4), step


@pytest.mark.slow
def test_a_sharded_run_continues_in_one_process_and_the_other_way_round(tmp_path: Path, store: Path) -> None:
    settings = {**SETTINGS, "trunk": "1 latent, decoded", "save_every": 10}
    train(tiny_recipe(**settings), store, tmp_path / "one")
    half = {**settings, "steps": 20}
    run(2, store, tmp_path / "sharded", "sharded", **half, keep=9)
    last = list_checkpoints(tmp_path / "sharded")[-1]
    assert last.name == "step-00000020"
    # Continued from step 10: in one process what was sharded, sharded what was one.
    train(tiny_recipe(**half, resume_step=10), store, tmp_path / "sharded")
    assert_close_runs(tmp_path / "sharded", tmp_path / "one")
    run(2, store, tmp_path / "one", "sharded", **half, resume_step=10)
    assert_close_runs(tmp_path / "one", tmp_path / "sharded")


@pytest.mark.parametrize("trunk", TRUNKS)
def test_each_block_of_the_trunk_is_a_shard_group_and_nothing_else_is(trunk: str, vocabulary: Vocabulary) -> None:
    """Blocks of the action decoder are called once per length of action, which differs between processes."""
    model = tiny_model(vocabulary, **TRUNKS[trunk])
    plan = shard_plan()
    plan.set_auto_wrap_policy(model)
    chosen = fsdp2_prepare_auto_wrap_policy(plan, model)
    assert [module for module in model.modules() if chosen(module)] == list(model.model.blocks)
    assert all(isinstance(block, TrunkBlock) for block in model.model.blocks)


def test_every_parameter_has_a_gradient_of_a_batch_of_text_alone(vocabulary: Vocabulary) -> None:
    """Processes exchange gradients parameter by parameter: none may be missing in one of them."""
    ids = torch.arange(5, 12)[None]
    inputs = {"input_ids": ids, "loss_mask": torch.ones_like(ids, dtype=torch.bool)}
    none = torch.zeros(0, dtype=torch.int64)
    images = {
        "patches": torch.zeros((0, 16, 16, 3), dtype=torch.uint8),
        "patch_indices": none,
        "patch_positions": none.view(0, 2),
    }
    for trunk in TRUNKS.values():
        model = tiny_model(vocabulary, **trunk).train()
        beside: dict[str, torch.Tensor] = dict(images)
        if trunk["latents"]:
            beside |= {"observation_ids": none, "observation_sizes": none.view(0, 2)}
            beside |= {"latent_slots": none.view(0, trunk["latents"])}
        if trunk["action_layers"]:
            beside |= {"action_ids": none, "action_targets": none.bool(), "action_sizes": none.view(0, 2)}
            beside |= {"action_slots": none, "following_slots": none}
        model(**inputs, **beside).loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.slow
def test_the_stream_of_samples_is_the_same_on_one_two_and_four_processes(tmp_path: Path, store: Path) -> None:
    settings = {"steps": 6, "batch": 8, "accumulation": 1}
    for processes in (1, 2, 4):
        run(processes, store, tmp_path / str(processes), **settings)
    for processes in (1, 2, 4):
        drawn = rows_of(tmp_path / str(processes))
        assert len(drawn) == processes
        by_step = [sorted(row for rows in drawn for row in rows if row // 8 == step) for step in range(6)]
        assert by_step == [list(range(8 * step, 8 * step + 8)) for step in range(6)]
        assert_close_runs(tmp_path / str(processes), tmp_path / "1")


@pytest.mark.slow
def test_a_run_continues_on_more_processes_and_workers_with_the_same_samples(tmp_path: Path, store: Path) -> None:
    settings = {**SETTINGS, "steps": 20, "save_every": 10, "keep": 9}
    train(tiny_recipe(**settings), store, tmp_path / "one")
    run(2, store, tmp_path / "two", **settings, workers=1)
    for file in tmp_path.glob("two.rows-*"):
        file.unlink()
    run(4, store, tmp_path / "two", **{**settings, "accumulation": 1}, resume_step=10, workers=2)
    drawn = sorted(row for rows in rows_of(tmp_path / "two") for row in rows)
    assert drawn == list(range(80, 160))
    assert_close_runs(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_rows_without_targets_on_one_process_count_nothing_and_on_all_skip_the_step(
    tmp_path: Path, store: Path
) -> None:
    settings = {"steps": 8, "batch": 8, "accumulation": 1, "save_every": 1, "keep": 9, "warmup": 0}
    for processes in (1, 2):
        run(processes, store, tmp_path / str(processes), "targets", **settings)
    assert_close_runs(tmp_path / "2", tmp_path / "1")
    lines = metrics_of(tmp_path / "2")
    assert ("loss" in lines[6], lines[6]["skipped"]) == (False, 1)
    assert all(0 < lines[step]["loss"] < 20 for step in lines if step != 6)
    weights = [weights_of(checkpoint)["model.norm.weight"] for checkpoint in list_checkpoints(tmp_path / "2")]
    assert torch.equal(weights[4], weights[5])
    assert not torch.equal(weights[2], weights[3])


@pytest.mark.slow
def test_a_broken_row_on_one_process_skips_the_step_on_all_and_is_named(tmp_path: Path, store: Path) -> None:
    settings = {"steps": 6, "batch": 8, "accumulation": 1, "save_every": 1, "keep": 9}
    run(2, store, tmp_path, "two broken", **settings)
    spikes = [json.loads(line) for line in (tmp_path / "spikes.jsonl").read_text().splitlines()]
    assert [(spike["step"], spike["kind"], len(spike["rows"])) for spike in spikes] == [
        (3, "skipped", 1),
        (4, "skipped", 1),
    ]
    for spike, step in zip(spikes, (2, 3), strict=True):
        row = int(spike["rows"][0].split()[0])
        assert 8 * step + 4 <= row < 8 * step + 8  # of the second process
    weights = [weights_of(checkpoint) for checkpoint in list_checkpoints(tmp_path)]
    for a, b in ((1, 2), (2, 3)):
        assert all(torch.equal(weights[a][name], weights[b][name]) for name in weights[a])
    assert not torch.equal(weights[3]["model.norm.weight"], weights[4]["model.norm.weight"])


@pytest.mark.slow
def test_the_third_broken_step_in_a_row_ends_all_processes(tmp_path: Path, store: Path) -> None:
    process = start(2, store, tmp_path, "three broken", steps=20, batch=8, accumulation=1)
    printed = ended(process, code=1)  # the launcher's own code for a process that failed
    for k in range(2):
        assert f"process {k} of 2: the loss is not finite at step 5 (stream rows " in printed


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["none", "sharded"])
def test_processes_share_the_tasks_of_an_evaluation_and_score_them_as_one_does(
    fault: str, tmp_path: Path, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    """At a learning rate of nearly nothing, so that all have the same weights to the bit."""
    tasks = ["classic/acrobot", "classic/cartpole", "classic/mountain-car"]
    data = write_task_store(tmp_path / "store", tasks, vocabulary, text)
    settings = {"steps": 2, "lr": 1e-30, "warmup": 0, "evaluate_every": 2, "evaluate_episodes": 2}
    train(tiny_recipe(**SETTINGS | settings, trunk="1 latent, decoded"), data, tmp_path / "one")
    run(2, data, tmp_path / "two", fault, **settings, trunk="1 latent, decoded")
    one, two = (json.loads((tmp_path / name / "evaluations.jsonl").read_text()) for name in ("one", "two"))
    assert sorted(name for name in one if name.startswith("score/")) == [f"score/{task}" for task in tasks]
    assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in two.items() if k != "seconds"}


@pytest.mark.slow
@pytest.mark.parametrize("told", ["a worker", "the launcher", "all of them"])
def test_sigterm_to_the_processes_saves_once_and_the_run_continues_to_the_bit(
    told: str, tmp_path: Path, store: Path
) -> None:
    settings = {"steps": 150, "batch": 8, "accumulation": 1, "save_every": 1000, "log_every": 1}
    run(2, store, tmp_path / "whole", **settings)
    process = start(2, store, tmp_path / "stopped", **settings)
    began = time.monotonic()
    while not (tmp_path / "stopped/metrics.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", SCRIPT.name], capture_output=True, text=True)
    workers = [int(pid) for pid in found.stdout.split()]
    asked = {"a worker": workers[:1], "the launcher": [process.pid], "all of them": [*workers, process.pid]}
    for pid in asked[told]:
        os.kill(pid, signal.SIGTERM)
    ended(process, code=1)
    (checkpoint,) = list_checkpoints(tmp_path / "stopped")
    assert 0 < int(checkpoint.name[-8:]) < 150
    run(2, store, tmp_path / "stopped", **settings, resume="auto")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_sharding_that_accelerate_would_not_do_is_refused(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")  # Accelerate sets it for good where it is given a plan
    message = r"sharding \(FSDP\) needs several GPUs .*, here are 1 on cpu.*; use --train.sharding none"
    with pytest.raises(UserError, match=message):
        train(tiny_recipe(sharding="fsdp"), store, tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=message):
        train(tiny_recipe(), store, tmp_path)
    assert list_checkpoints(tmp_path) == []


@pytest.mark.slow
def test_accelerate_launch_and_the_plain_command_train_the_same(tmp_path: Path, store: Path) -> None:
    arguments = ["train", "--config", "tiny", "--data", str(store), "--train.context", "64"]
    arguments += ["--train.steps", "5", "--train.log_every", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launchers = {"plain": [], "accelerate": ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m"]}
    for name, launcher in launchers.items():
        command = [sys.executable, "-m", *launcher, "gatito", *arguments, "--out", str(tmp_path / name)]
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=120)
    assert_same_run(tmp_path / "accelerate", tmp_path / "plain")


def test_the_copy_of_a_model_that_is_saved_has_its_weights_and_ties(vocabulary: Vocabulary) -> None:
    from gatito.train.sharding import whole_model

    model = tiny_model(vocabulary)
    assert whole_model(model, model.config, kept=False) is None
    copy = whole_model(model, model.config)
    assert isinstance(copy, GatitoForCausalLM)
    assert copy.lm_head.weight is copy.model.embedding.tokens.weight
    assert all(torch.equal(a, b) for a, b in zip(copy.parameters(), model.parameters(), strict=True))
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(copy.parameters(), model.parameters(), strict=True))
