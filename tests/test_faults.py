"""Real faults: processes killed while they save or train, and told to end. Full disks are in `test_training.py`."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from runs import assert_same_run
from toy import tiny_model, tiny_recipe
from tqdm import tqdm

from gatito.data.store import open_store
from gatito.model import GatitoForCausalLM
from gatito.tokenizers import Vocabulary
from gatito.train.card import processor_of
from gatito.train.checkpoint import TrainingState, find_problem, list_checkpoints, load_newest, save_checkpoint
from gatito.train.trainer import train

TRIALS = 200
"""Kills while saving."""


def command(store: Path, out: Path, *settings: str) -> list[str]:
    """`gatito train` of the tiny recipe, one line of metrics per step."""
    fixed = ["--train.context", "64", "--train.log_every", "1", "--train.batch", "4"]
    train = [sys.executable, "-m", "gatito", "train", "--config", "tiny", "--data", str(store), "--out", str(out)]
    return [*train, *fixed, *settings]


def steps_in(out: Path) -> int:
    """Steps that a running training has logged so far."""
    metrics = out / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.is_file() else 0


def wait_for(out: Path, steps: int, process: subprocess.Popen[bytes]) -> None:
    """Return once so many steps are done."""
    began = time.monotonic()
    while steps_in(out) < steps:
        assert process.poll() is None
        assert time.monotonic() - began < 60
        time.sleep(0.01)


def started(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Begin on one thread: on more, sums would be added up in another order."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def completed(arguments: list[str]) -> None:
    """The same, up to a good end."""
    process = started(arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-3000:]


def save_for_ever(
    model: GatitoForCausalLM, processor: object, settings: dict[str, str], out: Path, first: int, pipe: int
) -> None:
    """Save one step after the other, each followed by a line in the pipe; never returns."""
    tqdm.set_lock(threading.RLock())  # its usual one is shared with the parent, which would wait for a killed child
    step = first
    while True:
        optimizer = {"exp_avg/model.norm.weight": torch.full((32,), float(step))}
        state = TrainingState(step=step, settings=settings, optimizer=optimizer)
        save_checkpoint(out, model, processor, state, f"step {step}", keep=2)
        os.write(pipe, f"{step}\n".encode())
        step += 1


@pytest.mark.slow
def test_two_hundred_kills_while_saving_lose_no_checkpoint_that_was_finished(
    tmp_path: Path, vocabulary: Vocabulary, store: Path
) -> None:
    """Each kill hits a process forked from this one, at a random instant of its saving."""
    model = tiny_model(vocabulary)
    processor = processor_of(open_store(store), model.config.trunk)
    rng, hit_a_write, newest = random.Random(0), 0, 0
    for _ in range(TRIALS):
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save_for_ever(model, processor, {}, tmp_path, newest + 1, writes)
            finally:
                os._exit(1)
        os.close(writes)
        time.sleep(rng.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reads) as pipe:
            said = [int(line) for line in pipe.read().splitlines()]
        hit_a_write += any(path.name.startswith(".step-") for path in (tmp_path / "checkpoints").glob(".*"))
        finished = max([newest, *said])
        found = load_newest(tmp_path)
        assert found is None if finished == 0 and not list_checkpoints(tmp_path) else found is not None
        if found is None:
            continue
        path, state = found
        # The kill may have come after the rename and before the line in the pipe.
        assert state.step in (finished, finished + 1)
        assert find_problem(path) is None
        assert state.optimizer["exp_avg/model.norm.weight"].tolist() == [float(state.step)] * 32
        newest = state.step
    assert newest > TRIALS / 4, "the kills came before anything was saved"
    assert hit_a_write > TRIALS / 4, "the kills missed the writing"
    out = tmp_path / "checkpoints"
    save_checkpoint(tmp_path, model, processor, TrainingState(step=newest + 1, settings={}, optimizer={}), "", keep=2)
    assert sorted(path.name for path in out.iterdir()) == [f"step-{newest:08d}", f"step-{newest + 1:08d}"]


@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_losses_and_weights_of_one_that_was_not(
    tmp_path: Path, store: Path
) -> None:
    settings = ["--train.steps", "60", "--train.save_every", "7"]
    completed(command(store, tmp_path / "whole", *settings))
    for steps in (11, 29, 50):
        process = started(command(store, tmp_path / "killed", *settings, "--train.resume", "auto"))
        wait_for(tmp_path / "killed", steps, process)
        process.kill()
        process.communicate()
    completed(command(store, tmp_path / "killed", *settings, "--train.resume", "auto"))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_sigterm_saves_ends_with_143_and_the_same_command_continues(
    workers: str, tmp_path: Path, store: Path
) -> None:
    settings = ["--train.steps", "150", "--train.save_every", "1000", "--train.workers", workers]
    completed(command(store, tmp_path / "whole", *settings))
    again = command(store, tmp_path / "stopped", *settings, "--train.resume", "auto")
    process = started(again)
    wait_for(tmp_path / "stopped", 12, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors[-3000:]
    (checkpoint,) = list_checkpoints(tmp_path / "stopped")
    step = int(checkpoint.name[-8:])
    assert 12 <= step < 150
    assert f"told to end after step {step}; saved {checkpoint}, --train.resume auto continues" in errors.decode()
    completed(again)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_minutes_go_on_where_an_interrupted_run_left_them(tmp_path: Path, store: Path) -> None:
    recipe = tiny_recipe(steps=10, save_every=5, keep=9, minutes=60)
    train(recipe, store, tmp_path)
    state = list_checkpoints(tmp_path)[0] / "training/state.json"
    elapsed = [json.loads((path / "training/state.json").read_text())["elapsed_s"] for path in
               list_checkpoints(tmp_path)]  # fmt: skip
    assert 0 < elapsed[0] < elapsed[1] < 60
    assert json.loads(state.read_text())["step"] == 5
    before = sorted(tmp_path.rglob("*"))
    over = tiny_recipe(steps=10, save_every=5, keep=9, minutes=elapsed[1] / 120, resume="auto")
    assert train(over, store, tmp_path).name == "step-00000010"
    assert sorted(tmp_path.rglob("*")) == before
    more = tiny_recipe(steps=10, save_every=5, keep=9, minutes=60, resume_step=5)
    train(more, store, tmp_path)
    again = json.loads((list_checkpoints(tmp_path)[-1] / "training/state.json").read_text())["elapsed_s"]
    assert again > elapsed[0]
