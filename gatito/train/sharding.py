"""Several processes, all through Accelerate: each with the whole model (DDP), or with a shard of it (FSDP2)."""

import datetime
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from gatito.errors import UserError
from gatito.model import GatitoConfig, GatitoForCausalLM
from gatito.train.configs import TrainConfig
from gatito.train.memory import rows_per_gpu

PATIENCE = datetime.timedelta(hours=2)
"""How long a process waits for the others, of which one may still evaluate or save."""


def begin_accelerator(config: TrainConfig, out: Path) -> Accelerator:
    """The processes of this run.

    Raises `UserError` for a batch that does not divide, sharding that Accelerate would not do, and bf16 where there
    is none.
    """
    if config.precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
        raise UserError(f"--train.precision bf16: {torch.cuda.get_device_name()} has no bfloat16; use no")
    wanted = config.sharding == "fsdp" or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if wanted and (config.optimizer == "muon" or config.average):
        raise UserError(
            "ACCELERATE_USE_FSDP shards the weights, which --train.optimizer muon and --train.average need whole; "
            "launch without it, or use --train.optimizer adamw --train.average 0"
        )
    accelerator = Accelerator(
        # Without it torchrun's processes on CPUs would each train alone.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=config.precision,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=str(out),
        step_scheduler_with_optimizer=False,
        fsdp_plugin=shard_plan() if wanted else None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if wanted and not is_sharded(accelerator):
        raise UserError(
            f"sharding (FSDP) needs several GPUs with a process each, here are {accelerator.num_processes} on "
            f"{accelerator.device.type}, which Accelerate would give a whole model each without a word; "
            "use --train.sharding none"
        )
    rows_per_gpu(config, accelerator.num_processes)  # refuses what does not divide
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a shard of the model only."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def shard_plan() -> FullyShardedDataParallelPlugin:
    """Each block is a shard group of its own, gathered while it computes; what is left is one more."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(GatitoForCausalLM._no_split_modules),
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
        # Weights stay float32 and autocast casts them, as without sharding. Otherwise Accelerate would cast them, and
        # add up gradients, in bfloat16.
        mixed_precision_policy=MixedPrecisionPolicy(),
    )


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, as a whole; where it is, all processes have to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_model(model: torch.nn.Module, config: GatitoConfig, *, kept: bool = True) -> GatitoForCausalLM | None:
    """A model of its own on the CPU with the weights of one that may be sharded; None where it is not `kept`.

    Where parameters are sharded, all processes have to call it.
    """
    weights = {}
    for name, value in model.state_dict().items():
        gathered = whole(value.detach())
        if kept:
            weights[name] = gathered.cpu().clone()
    if not kept:
        return None
    with torch.device("meta"):
        copy = GatitoForCausalLM(config)
    copy.load_state_dict(weights, assign=True)
    copy.tie_weights()
    return copy.eval()
