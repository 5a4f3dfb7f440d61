"""AdamW, or Muon for the matrices: which parameters decay, the learning rate of a step, the running average of the
weights, and all of their state as tensors by name."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from gatito.train.configs import TrainConfig
from gatito.train.sharding import whole

OWN = "parameter"
"""Begins the names of parameters among the state of the optimizer."""


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up, then a cosine from the peak to `final_lr` of it; `progress` is in [0, 1]."""
    if step < config.warmup:
        return config.first_lr + (config.lr - config.first_lr) * (step + 1) / config.warmup
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return config.lr * (config.final_lr + (1.0 - config.final_lr) * cosine)


def build_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Fused AdamW, beside Muon where that is asked for; matrices decay, embeddings, norms and biases do not."""
    matrices: list[torch.nn.Parameter] = []
    decay: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    tables = {module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        if parameter.ndim < 2 or parameter in tables:
            rest.append(parameter)
        elif parameter.ndim == 2 and config.optimizer == "muon":
            matrices.append(parameter)
        else:
            decay.append(parameter)
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=1e-8, fused=True)
    if not matrices:
        return adamw
    # Steps as long as AdamW's, so that one learning rate serves both (Liu et al. 2025).
    muon = torch.optim.Muon(matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return Together(muon, adamw)


class Together(torch.optim.Optimizer):
    """Several optimizers, each of parameters of its own, as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of each of them, on the state that is kept here."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state
            part.step()


class Average:
    """The running average of a model's parameters (Polyak and Juditsky 1992), which forgets them exponentially."""

    def __init__(self, model: torch.nn.Module, keeps: float) -> None:
        """Begin with the parameters as they are; after n steps a step keeps (1 + n) / (10 + n) of it, `keeps` at
        most."""
        self.model, self.keeps, self.steps = model, keeps, 0
        self.values = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after a step."""
        self.steps += 1
        takes = 1 - min(self.keeps, (1 + self.steps) / (10 + self.steps))
        current = dict(self.model.named_parameters())
        torch._foreach_lerp_(list(self.values.values()), [current[name].detach() for name in self.values], takes)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model has the averaged parameters."""
        own = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(own)

    def tensors(self) -> dict[str, Tensor]:
        """The model's own parameters, which a checkpoint has elsewhere only as their average."""
        return {f"{OWN}/{name}": value.detach().cpu().clone() for name, value in self.model.named_parameters()}

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in self.model.named_parameters():
            value.copy_(values[name])


@torch.no_grad()
def restore_own_parameters(model: torch.nn.Module, tensors: dict[str, Tensor]) -> bool:
    """Give a model that has averaged parameters its own ones; False where `Average` has kept none."""
    if not any(key.startswith(f"{OWN}/") for key in tensors):
        return False
    for name, value in model.named_parameters():
        value.copy_(tensors[f"{OWN}/{name}"])
    return True


def optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, kept: bool = True
) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, whole and on the CPU; `restore_optimizer` undoes it.

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
        if kind == OWN:  # see `Average`
            continue
        parameter = parameters[name]
        own = value.to(parameter.device, copy=True)  # the fused kernel wants the number of steps there too
        if isinstance(parameter, DTensor) and kind != "step":
            own = distribute_tensor(own, parameter.device_mesh, parameter.placements)
        optimizer.state[parameter][kind] = own
