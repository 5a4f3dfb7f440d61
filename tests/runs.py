"""Finished runs, compared."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from gatito.train.checkpoint import list_checkpoints
from gatito.train.watch import TIMINGS


def metrics_of(run: Path) -> dict[int, dict[str, float]]:
    """Step to its line of `metrics.jsonl`; a step must not be there twice."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == len(lines), "a step was logged twice"
    return {line["step"]: line for line in lines}


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def assert_same_run(found: Path, expected: Path) -> None:
    """Bitwise: every logged loss, norm and rate, and all files of the last checkpoint but timings."""
    a, b = metrics_of(found), metrics_of(expected)
    assert a.keys() == b.keys()
    for step in a:
        assert {k: v for k, v in a[step].items() if k not in TIMINGS} == {
            k: v for k, v in b[step].items() if k not in TIMINGS
        }
    first, second = list_checkpoints(found)[-1], list_checkpoints(expected)[-1]
    assert first.name == second.name
    for name in ("model.safetensors", "training/optimizer.safetensors"):
        x, y = load_file(first / name), load_file(second / name)
        assert x.keys() == y.keys()
        assert all(torch.equal(x[k], y[k]) for k in x), name


def assert_close_weights(found: Path, expected: Path) -> None:
    """The last checkpoints of two runs agree to 1e-5."""
    a, b = (weights_of(list_checkpoints(run)[-1]) for run in (found, expected))
    # The norm behind it, of one channel a group, takes this bias out again: its gradient is rounding alone.
    without_effect = "model.embedding.patches.conv1.bias"
    far = {n: float((a[n] - b[n]).abs().max()) for n in a if n != without_effect}
    assert {n: d for n, d in far.items() if d >= 1e-5} == {}
