"""Adapters of low rank beside frozen weights, through peft (Hu et al. 2021).

What is saved is the merged model, a checkpoint like any other, and beside it `adapter/` in peft's own layout.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gatito.errors import UserError, nearest
from gatito.model import GatitoForCausalLM
from gatito.train.configs import LoraConfig

ADAPTER, NAME = "adapter", "default"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""What peft puts before the names of a model's modules."""


def add_adapters(model: GatitoForCausalLM, config: LoraConfig) -> None:
    """Put adapters beside linear layers, which leave the model as it was, and freeze all else.

    Raises `UserError` where peft is not installed, and for a module that is not there.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError:
        raise UserError("--lora.rank needs peft: pip install 'gatito[lora]'") from None
    there = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    there.discard("lm_head")  # it is the token table, and computes the loss
    for name in config.modules:
        if name not in there:
            raise UserError(f"--lora.modules: {nearest(name, there, 'linear module')}")
    inject_adapter_in_model(_peft_config(config), model, adapter_name=NAME)


def merged(model: GatitoForCausalLM) -> GatitoForCausalLM:
    """A model without adapters that computes what this one does with them."""
    state = {
        name.replace(".base_layer.", "."): value for name, value in model.state_dict().items() if ".lora_" not in name
    }
    with torch.inference_mode():
        for name, layer in _adapted(model):
            state[f"{name}.weight"] = layer.get_base_layer().weight + layer.get_delta_weight(NAME)
    plain = GatitoForCausalLM(model.config)
    plain.load_state_dict(state)
    return plain.eval().to(device=model.device)


def write_adapter(model: GatitoForCausalLM, config: LoraConfig, folder: Path) -> None:
    """Write the adapters into `folder/adapter`, for peft's `PeftModel.from_pretrained`."""
    target = folder / ADAPTER
    target.mkdir()
    save_file({f"{PREFIX}{name}": value for name, value in _tensors(model).items()}, target / WEIGHTS)
    (target / CONFIG).write_text(json.dumps(_json(config), indent=1))


def read_adapter(model: GatitoForCausalLM, checkpoint: Path) -> None:
    """Undo `write_adapter`: the adapters of a checkpoint into a model that has such."""
    saved = {name.removeprefix(PREFIX): value for name, value in load_file(checkpoint / ADAPTER / WEIGHTS).items()}
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in saved.items():
            own[_with_adapter_name(name)].copy_(value)


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters by peft's names, which leave out that of the adapter."""
    return {
        name.replace(f".{NAME}.", "."): value.detach().cpu().contiguous()
        for name, value in model.named_parameters()
        if ".lora_" in name
    }


def _with_adapter_name(name: str) -> str:
    return name.removesuffix(".weight") + f".{NAME}.weight"


def _peft_config(config: LoraConfig) -> Any:
    from peft import LoraConfig as PeftConfig

    return PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(config.modules), bias="none")


def _json(config: LoraConfig) -> dict[str, Any]:
    """peft's own description; sets as lists."""
    values = _peft_config(config).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
