"""Memory of training on each GPU: what is kept between steps, and what the backward pass finds kept.

Activations are what PyTorch's autograd saves in eager mode. A position of a block keeps, in float32 or under
--train.precision bf16 in bf16:

    both norms       their inputs, in float32 always, and their outputs; in bf16 gate and value have a copy each
    attention        queries, keys, values and output; the mask, as large as the scores of one head
    feed-forward     gate, value, GELU of the gate, product: four times the hidden width

`torch.compile` keeps less, and attention by blocks keeps no mask. Not counted: the CUDA context, the workspace of
libraries and fragments between tensors.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import psutil
import torch

from gatito.errors import UserError
from gatito.model import GatitoConfig
from gatito.tokenizers.patches import PATCH
from gatito.train.configs import TrainConfig
from gatito.train.flops import STEM, Counts, num_compared
from gatito.train.parameters import Parameters

CONTROL_GROUP = Path("/sys/fs/cgroup")
FLOAT, HALF = 4, 2
"""Bytes of a float32 and of a bf16 number."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each GPU."""

    weights: int
    """Weights, in float32 whatever the precision."""
    gradients: int
    """Gradients; with several GPUs and no sharding twice, for the buckets in which DDP sends them."""
    moments: int
    """Both moments of AdamW, of which Muon has one; and the running average of the weights, where there is one."""
    weight_copies: int
    """Weights as they are used: bf16 copies of them, under fsdp what is gathered of the other GPUs' shares."""
    activations: int
    """What a micro-batch keeps for its backward pass; and what the block at which that is needs beyond
    the logits, which are gone by then."""
    logits: int
    """Logits of the targets, their softmax and its gradient; the head's gradient, which waits for the embedding's."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_part().values())

    def by_part(self) -> dict[str, int]:
        """Bytes by name of the part, as they add up."""
        return {field.name.replace("_", " "): getattr(self, field.name) for field in fields(self)}


def training_memory(
    config: GatitoConfig, train: TrainConfig, parameters: Parameters, row: Counts, gpus: int
) -> Memory:
    """Bytes on each of so many GPUs; `row` is what one row of the batch asks of the network, counted densely.

    Raises `UserError` where the batch does not divide.
    """
    micro = row.scaled(rows_per_gpu(train, gpus))
    size = HALF if train.precision == "bf16" else FLOAT
    shares = gpus if train.sharding == "fsdp" else 1
    share = FLOAT * -(-parameters.total // shares)
    buckets = gpus > 1 and shares == 1
    logits = _logits(config, micro, size)
    saved = saved_bytes(config, micro, size, train.activation_checkpointing)
    working = _working(config, micro, size, train.activation_checkpointing)
    return Memory(
        weights=share,
        gradients=share * (2 if buckets else 1),
        moments=(3 if train.average else 2) * share,
        weight_copies=_copies(config, parameters, size, shares > 1),
        activations=round(saved + max(0.0, working - logits)),
        logits=round(logits) + (0 if shares > 1 else FLOAT * parameters.token_table),
    )


def _copies(config: GatitoConfig, parameters: Parameters, size: int, sharded: bool) -> int:
    if sharded:
        # What is outside of blocks stays gathered; of blocks, this and the next. Then the gradients of as much, and
        # autocast's copies of all that was gathered.
        gathered = parameters.total - parameters.trunk + 2 * parameters.trunk // config.num_hidden_layers
        return 2 * FLOAT * gathered + (HALF * parameters.total if size == HALF else 0)
    return size * (parameters.non_embedding + parameters.token_table) if size == HALF else 0


def rows_per_gpu(train: TrainConfig, gpus: int) -> int:
    """Rows of a micro-batch on each GPU; raises `UserError` where the batch does not divide."""
    if gpus < 1:
        raise UserError(f"--gpus is {gpus}, allowed 1 and more")
    if train.batch % (train.accumulation * gpus):
        raise UserError(
            f"--train.batch {train.batch} does not divide by {gpus} GPUs or processes "
            f"x --train.accumulation {train.accumulation}"
        )
    return train.batch // (train.accumulation * gpus)


def saved_bytes(config: GatitoConfig, counts: Counts, size: int, checkpointing: bool) -> float:
    """Bytes that the forward pass keeps for the backward pass, logits aside; `size` is that of a number in them."""
    D, layers, m = config.hidden_size, config.num_hidden_layers, config.latents
    block = _block(config, counts, size)
    # A block that is computed again keeps its input alone, and they share one mask.
    trunk = layers * counts.positions * FLOAT * D + counts.pairs if checkpointing else layers * block
    angles = counts.positions * 2 * config.head_dim * FLOAT if config.rotary else 0
    pixels = counts.patches * FLOAT * (3 * PATCH**2 + 7 * config.patch_channels * (PATCH // STEM) ** 2)
    latents = m * counts.observations
    tokens = counts.observed_tokens * (2 * FLOAT * D + config.resampler_depth * size * (D + 4 * _inner(config)))
    resampler = tokens + latents * (
        _position(config, config.intermediate_size, size) * config.resampler_depth
        + _feed_forward(D, config.intermediate_size, size)
    )
    decoder = counts.action_tokens * (
        config.action_layers * _position(config, D, size) + (5 * FLOAT * D if config.action_layers else 0)
    )
    last = counts.positions * (FLOAT * D + 2 * FLOAT) + sum(counts.targets.values()) * D * size
    return trunk + angles + pixels + resampler + decoder + last


def _working(config: GatitoConfig, counts: Counts, size: int, checkpointing: bool) -> float:
    """Bytes that the backward pass adds in a block: gradients around the GEGLU, and what is computed again."""
    gradients = counts.positions * size * 2 * config.intermediate_size
    return gradients + (_block(config, counts, size) if checkpointing else 0)


def _inner(config: GatitoConfig) -> int:
    return config.num_attention_heads * config.head_dim


def _block(config: GatitoConfig, counts: Counts, size: int) -> float:
    """Bytes that a block of the trunk saves; the mask is a float of the products' precision for each pair."""
    return counts.positions * _position(config, config.intermediate_size, size) + counts.pairs * size


def _position(config: GatitoConfig, hidden: int, size: int) -> int:
    """Bytes that a position of a block saves, its mask aside."""
    D, inner = config.hidden_size, _inner(config)
    turned = 2 * inner if config.rotary else 0
    attention = size * (D + 4 * inner + turned) + FLOAT * (D + 2 + config.num_attention_heads)
    return attention + _feed_forward(D, hidden, size)


def _feed_forward(width: int, hidden: int, size: int) -> int:
    """Of a vector: norm and GEGLU. In bf16 gate and value each keep a copy of what they are given."""
    given = 2 if size == HALF else 1
    return FLOAT * (width + 2) + size * (given * width + 4 * hidden)


def _logits(config: GatitoConfig, counts: Counts, size: int) -> float:
    """Softmax in float32 and its gradient, which in bf16 stand beside logits of that precision."""
    logits = sum(n * num_compared(config, name) for name, n in counts.targets.items())
    return logits * (2 * FLOAT + (HALF if size == HALF else 0))


def available_bytes(device: torch.device, processes: int = 1) -> int | None:
    """Bytes that a process can still take on a device; None where that is not known.

    Processes on CPUs share the memory of their machine, or of their container; each GPU has one.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu":
        return min([int(psutil.virtual_memory().available), *_container_bytes()]) // processes
    return None


def _container_bytes() -> list[int]:
    """What a control group (version 2) leaves to this process, in a list; empty where there is no limit."""
    try:
        limit, used = (int((CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
        cached = sum(int(size) for name, size in lines if name in ("active_file", "inactive_file"))
    except (OSError, ValueError):  # "max" is no limit
        return []
    return [max(0, limit - used + cached)]


def check_fits(need: Memory, available: int | None, train: TrainConfig, gpus: int) -> None:
    """Raise `UserError` that says what would help where a process has fewer bytes `available` than it is to `need`.

    Nothing is checked where `available` is None.
    """
    if available is None or need.total <= available:
        return
    where = f" for each of {gpus} processes" if gpus > 1 else ""
    raise UserError(
        f"training takes about {in_bytes(need.total)}{where}, and {in_bytes(available)} are free; "
        f"{_advice(need, available, train, gpus)}"
    )


def _advice(need: Memory, available: int, train: TrainConfig, gpus: int) -> str:
    """What would make a run fit, the cheapest first: more micro-batches cost nothing but a little time."""
    passing = need.activations + need.logits
    kept = need.total - passing
    rows = rows_per_gpu(train, gpus)
    for smaller in range(rows - 1, 0, -1):
        if rows % smaller == 0 and kept + passing * smaller / rows <= available:
            more = train.accumulation * rows // smaller
            return f"use --train.accumulation {more}, which takes {in_bytes(kept + passing * smaller // rows)}"
    helps = []
    if not train.activation_checkpointing:
        helps.append("--train.activation_checkpointing")
    if train.sharding == "none":
        helps.append("--train.sharding fsdp on several GPUs")
    if rows > 1:
        helps.append(f"--train.accumulation {train.accumulation * rows}")
    else:
        helps.append("a shorter --train.context")
    return f"try {', '.join(helps)}, or a smaller recipe"


def in_bytes(count: float) -> str:
    """A number of bytes in the unit that suits it, of powers of 1000."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"
