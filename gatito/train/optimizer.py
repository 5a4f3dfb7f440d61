"""AdamW: which parameters decay, the learning rate of a step, and its state as tensors by name."""

import math

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from gatito.train.configs import TrainConfig
from gatito.train.sharding import whole


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up, then a cosine from the peak to `final_lr` of it; `progress` is in [0, 1]."""
    if step < config.warmup:
        return config.first_lr + (config.lr - config.first_lr) * (step + 1) / config.warmup
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return config.lr * (config.final_lr + (1.0 - config.final_lr) * cosine)


def build_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW; matrices decay, embeddings, norms and biases do not."""
    decay: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    tables = {module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        (decay if parameter.ndim >= 2 and parameter not in tables else rest).append(parameter)
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=1e-8, fused=True)


def optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, kept: bool = True
) -> dict[str, Tensor]:
    """AdamW's state by parameter name, whole and on the CPU; `restore_optimizer` undoes it.

    Where parameters are sharded, all processes have to call it; those that save nothing do not have it `kept`.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                gathered = whole(torch.as_tensor(value))
                if kept:
                    tensors[f"{key}/{names[parameter]}"] = gathered.cpu().contiguous().clone()
    return tensors


def restore_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors`; the parameters may be sharded otherwise than they were."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        parameter = parameters[name]
        own = value.to(parameter.device, copy=True)  # the fused kernel wants the number of steps there too
        if isinstance(parameter, DTensor) and kind != "step":
            own = distribute_tensor(own, parameter.device_mesh, parameter.placements)
        optimizer.state[parameter][kind] = own
